"""A document of thousands of parts: work grows with its length, and no more of it is held."""

import itertools
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast
from uuid import uuid4

import pytest

from db.outcome import Fence, FinishedSegment, Outcome
from db.states import JobState
from engine.protocol.engine_spec import EngineSpec
from engine.protocol.limits import Sized
from engine.protocol.output import Choice, Measurement, Output, RequestFailure
from engine.protocol.request import Request
from tasks.configuration.masking import MaskingRules
from tests.samples.model_cards import FAKE_CARD
from worker.attempts.attempt import PAGE_REQUESTS, Attempt
from worker.cache.output_reader import RequestPage, StoredOutputs
from worker.cache.segments import PLACEHOLDERS
from worker.engines.engine_client import EngineClient
from worker.masking.finders import finders_of
from worker.masking.masker import Masker
from worker.recipes import Work
from worker.settings import Settings

CONTEXT = 40  # words
ROWS = 8
JOB_ID = uuid4()
CARD = replace(FAKE_CARD, max_context_tokens=CONTEXT)
TASKS: dict[str, dict[str, Any]] = {
    "map_reduce": {"task": "summarize", "strategy": "map_reduce", "max_new_tokens": 8},
    "refine": {"task": "summarize", "strategy": "refine", "max_new_tokens": 8},
    "translate": {"task": "translate", "source_language": "en", "target_language": "fr"},
}


def document(num_parts: int) -> str:
    return "\n\n".join(
        " ".join(f"Sentence {line} of part {part} is here." for line in range(5))
        for part in range(num_parts)
    )


class Instant:
    """A client whose engine answers at once, in words of the prompt; nothing else runs."""

    spec = EngineSpec(alias="fake", checkpoint="fake", engine="fake", max_sequences=ROWS)
    sized = Sized(spec, {})
    card = CARD
    model_digest = b"one"

    def __init__(self) -> None:
        self.generated: list[int] = []
        self.num_answered = 0
        self.most_ahead = 0  # requests that were made and not answered

    def submit(self, requests: Iterable[Request], on_output: Callable[[Output], None]) -> None:
        for request in requests:
            self.most_ahead = max(self.most_ahead, request.id - self.num_answered)
            self.num_answered += 1
            on_output(self._answer(request))

    def _answer(self, request: Request) -> Output:
        if request.is_measured:
            lengths = tuple(len(each.split()) for each in request.measured_texts)
            measured = Measurement(num_tokens=lengths, max_prompt_tokens=CONTEXT, max_new_tokens=8)
            return Output(request_id=request.id, measurement=measured)
        words = (request.text or "").split()
        if len(words) > CONTEXT:
            failure = RequestFailure("prompt_too_long", "shorten it", False)
            return Output(request_id=request.id, failure=failure)
        self.generated.append(request.id)
        choice = Choice(" ".join(words[:3]), "stop", 3)
        return Output(request_id=request.id, choices=(choice,), prompt_tokens=len(words))

    def cancel(self, request_ids: Iterable[int]) -> None:
        assert not list(request_ids)


@dataclass
class Run:
    """An attempt from its start to its end, on this thread."""

    kind: str
    num_parts: int
    segments: Mapping[int, dict[str, Any]] = field(default_factory=dict)
    kept: dict[int, dict[str, Any]] = field(default_factory=dict)
    pages: list[RequestPage] = field(default_factory=list)
    client: Instant = field(default_factory=Instant)
    outcomes: list[Outcome] = field(default_factory=list)
    masker: Masker | None = None
    text: str | None = None

    def __post_init__(self) -> None:
        fields = {**TASKS[self.kind], "text": self.text or document(self.num_parts)}
        task = fields.pop("task")
        work = Work(JOB_ID, task, fields, CARD, itertools.count(1), masker=self.masker)
        self.attempt = Attempt(
            Fence(work.job_id, 2 if self.segments else 1, "one"),
            work,
            0,
            cast(EngineClient, self.client),
            Settings(),
            None,
            self.outcomes.append,
            self._keep,
            self,
            keeps_placeholders=True,
        )

    def start(self) -> "Run":
        self.attempt.start()
        (outcome,) = self.outcomes
        assert outcome.state is JobState.SUCCEEDED, outcome.error_message
        return self

    @property
    def output(self) -> str:
        answer = self.outcomes[0].answer
        assert answer is not None
        return answer.output

    def look_up(self, page: RequestPage) -> None:
        self.pages.append(page)
        found = {each: self.segments[each] for each in page.positions if each in self.segments}
        page.on_read(StoredOutputs(found))

    def _keep(self, segment: FinishedSegment) -> None:
        self.kept[segment.position] = segment.output


def num_calls(act: Callable[[], object]) -> int:
    """How many functions of Python's were called: a measure of work that no load changes."""
    num = 0

    def count(_frame: object, what: str, _argument: object) -> None:
        nonlocal num
        num += what == "call"

    sys.setprofile(count)
    try:
        act()
    finally:
        sys.setprofile(None)
    return num


@pytest.mark.parametrize("kind", TASKS)
def test_four_times_the_document_is_four_times_the_work(kind: str) -> None:
    Run(kind, 10).start()  # what is loaded once
    small, large = Run(kind, 250), Run(kind, 1000)
    assert num_calls(large.start) < 4.6 * num_calls(small.start)


@pytest.mark.parametrize("kind", TASKS)
def test_a_documents_requests_are_made_one_page_ahead(kind: str) -> None:
    run = Run(kind, 1000).start()
    assert len(run.client.generated) >= 1000
    assert run.client.most_ahead <= 1.5 * PAGE_REQUESTS + 2 * ROWS


@pytest.mark.parametrize("kind", ["map_reduce", "translate"])
def test_segments_of_an_earlier_attempt_are_read_page_by_page(kind: str) -> None:
    first = Run(kind, 1000).start()
    second = Run(kind, 1000, segments=first.kept).start()
    assert second.client.generated == []
    assert second.output == first.output
    assert max(len(page.positions) for page in second.pages) <= PAGE_REQUESTS
    read = [position for page in second.pages for position in page.positions]
    assert len(read) == len(set(read)), "none is read twice"
    assert len(second.pages) <= 2 * len(first.kept) // PAGE_REQUESTS + 10


def test_a_first_attempt_reads_nothing() -> None:
    assert Run("map_reduce", 100).start().pages == []


def masked(**patterns: str) -> Masker:
    return Masker(finders_of(MaskingRules(patterns=tuple(patterns.items()))))


def test_a_placeholder_keeps_its_value_when_the_rules_change() -> None:
    names = [f"{'ab'[part % 2]}{part}" for part in range(40)]
    text = "\n\n".join(f"{name} is here and says something." for name in names)
    first = Run("translate", 0, masker=masked(K="b[0-9]+"), text=text).start()
    kept = dict(first.kept)
    assert kept[PLACEHOLDERS] == {f"⟦K_{n}⟧": name for n, name in enumerate(names[1::2], start=1)}

    # Found first now: without what was kept, a0 were ⟦K_1⟧, which stood for b1.
    wider = masked(K="[ab][0-9]+")
    second = Run("translate", 0, segments=kept, masker=wider, text=text).start()
    assert second.output == Run("translate", 0, masker=wider, text=text).start().output
    assert second.kept[PLACEHOLDERS].items() >= kept[PLACEHOLDERS].items()
    assert sorted(second.kept[PLACEHOLDERS].values()) == sorted(names)


def test_under_the_same_rules_nothing_of_a_masked_document_is_computed_again() -> None:
    text = "\n\n".join(f"b{part} is here and says something." for part in range(40))
    first = Run("translate", 0, masker=masked(K="b[0-9]+"), text=text).start()
    second = Run("translate", 0, segments=first.kept, masker=masked(K="b[0-9]+"), text=text).start()
    assert (second.client.generated, second.output) == ([], first.output)
