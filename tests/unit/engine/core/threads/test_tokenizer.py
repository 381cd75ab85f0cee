"""The tokenizer thread, moved by the test: long texts leave the way to interactive requests."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from engine.backends.fake import FakeBackend
from engine.core.request_tracker import RequestTracker
from engine.core.scheduler import StepLimits
from engine.core.sequence import Sequence
from engine.core.threads.inbox import Inbox
from engine.core.threads.outbox import Outbox
from engine.core.threads.request_queue import RequestQueue
from engine.core.threads.tokenizer import TokenizerThread
from engine.errors import PromptTooLong
from engine.protocol.engine_spec import EngineSpec
from engine.protocol.request import Request

LONG = "long"
NUM_SLICES = 5


class SlicingBackend(FakeBackend):
    """Takes NUM_SLICES slices for a long text, which it refuses then."""

    def __init__(self, spec: EngineSpec, on_slice: Callable[[Request, int], None]) -> None:
        super().__init__(spec)
        self.on_slice = on_slice

    def encode(self, request: Request, between_slices: Callable[[], None] = int) -> Sequence:
        if request.text != LONG:
            return super().encode(request)
        for at in range(NUM_SLICES):
            self.on_slice(request, at)
            between_slices()
        raise PromptTooLong(9, 3, "shorten it", is_at_least=True)


class Parts:
    def __init__(self, on_slice: Callable[[Request, int], None]) -> None:
        spec = EngineSpec(alias="demo", checkpoint="fake", engine="fake")
        backend = SlicingBackend(spec, on_slice)
        self.requests, self.inbox, self.outbox = RequestQueue(), Inbox(), Outbox()
        self.tracker = RequestTracker(99)
        self.thread = TokenizerThread(
            backend,
            StepLimits.of(backend.sized.spec),
            self.tracker,
            self.requests,
            self.inbox,
            self.outbox,
        )

    def put(self, *requests: Request) -> None:
        self.tracker.open(each.id for each in requests)
        for each in requests:
            self.requests.put(each)

    def encode_next(self) -> None:
        self.thread.encode(self.requests.get())

    def outputs(self) -> list[object]:
        self.outbox.close()
        waiting, _ = self.outbox.take() or ([], None)
        return waiting


def request(id_: int, text: str = "a b", is_interactive: bool = False) -> Request:
    return Request(id=id_, task="generate", text=text, is_interactive=is_interactive)


def test_an_interactive_request_goes_before_the_next_slice_of_a_bulk_text():
    encoded_by_slice = []

    def on_slice(_: Request, at: int) -> None:
        encoded_by_slice.append([each.id for each in it.inbox.take()])
        if at == 1:
            it.put(request(7, is_interactive=True), request(8), request(9, is_interactive=True))

    it = Parts(on_slice)
    it.put(request(0, LONG))
    it.encode_next()
    assert encoded_by_slice == [[], [], [7, 9], [], []]
    assert [each.failure.code for each in it.outputs()] == ["prompt_too_long"]
    it.encode_next()
    assert [each.id for each in it.inbox.take()] == [8]


def test_a_long_text_that_is_cancelled_is_tokenized_no_further():
    slices = []

    def on_slice(each: Request, at: int) -> None:
        slices.append(at)
        if at == 1:
            it.tracker.cancel([each.id])

    it = Parts(on_slice)
    it.put(request(0, LONG))
    it.encode_next()
    assert slices == [0, 1]
    (output,) = it.outputs()
    assert output.choices[0].finish_reason == "cancelled"


@pytest.mark.parametrize("text", ["a b", LONG, " "])
def test_an_interactive_request_between_slices_is_answered(text):
    """And neither its failure nor its own length is taken for that of the bulk text."""
    sequences = []

    def on_slice(each: Request, at: int) -> None:
        if each.id == 0 and at == 0:
            it.put(request(5, text, is_interactive=True))

    it = Parts(on_slice)
    it.put(request(0, LONG))
    it.encode_next()
    sequences = [each.id for each in it.inbox.take()]
    assert sorted(sequences + [each.request_id for each in it.outputs()]) == [0, 5]
