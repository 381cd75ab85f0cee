"""Equal requests are computed once; what becomes of those who wait when it goes wrong."""

import itertools
import json
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, cast
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from db.encryption.key_ring import KeyRing
from db.outcome import Fence, FinishedRequest
from engine.protocol.engine_spec import EngineSpec
from engine.protocol.output import Choice, Output, RequestFailure
from engine.protocol.request import Request
from engine.protocol.sampling_params import SamplingParams
from tests.samples.model_cards import FAKE_CARD
from worker.cache.content_cache import MAX_RECENT_SECONDS, ContentCache, num_characters
from worker.cache.content_key import ContentKey, SharingScope, model_digest
from worker.cache.settings import CacheSettings
from worker.engines.engine_client import EngineClient

IDS = itertools.count(1)
FENCE = Fence(uuid4(), 1, "one")
MINE = SharingScope("mine", has_seed=False)
SEEDED = SharingScope("mine", has_seed=True)
SPEC = EngineSpec(alias="fake", checkpoint="fake", engine="fake")
FAILED = RequestFailure("generation_failed", "it failed", False)


@dataclass(eq=False)
class Engine:
    """A client whose outputs come when the test says so, in any order."""

    model_digest: bytes = b"one"
    spec: EngineSpec = field(default_factory=lambda: SPEC)
    held: dict[int, tuple[Request, Callable[[Output], None]]] = field(default_factory=dict)
    asked: list[Request] = field(default_factory=list)
    cancelled: list[int] = field(default_factory=list)

    def submit(self, requests: Iterable[Request], on_output: Callable[[Output], None]) -> None:
        for request in requests:
            self.asked.append(request)
            self.held[request.id] = request, on_output

    def cancel(self, request_ids: Iterable[int]) -> None:
        self.cancelled += [each for each in request_ids if each in self.held]

    def answer(self, request: Request, *, samples: bool = False) -> None:
        choice = Choice(f"answer to {request.text}", "stop", 3)
        if request.id in self.cancelled:
            choice = replace(choice, finish_reason="cancelled")
        settings = {"do_sample": samples}
        self._say(Output(request_id=request.id, choices=(choice,), settings=settings))

    def fail(self, request: Request) -> None:
        self._say(Output(request_id=request.id, failure=FAILED))

    def _say(self, output: Output) -> None:
        _, on_output = self.held.pop(output.request_id)
        on_output(output)


@dataclass
class Asker:
    """Attempts that ask, what they were told, and what was kept."""

    engine: Engine = field(default_factory=Engine)
    settings: CacheSettings = field(default_factory=CacheSettings)
    kept: list[FinishedRequest] = field(default_factory=list)
    received: dict[int, tuple[Output, bool]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.cache = ContentCache(self.settings, self.kept.append)

    def ask(
        self,
        text: str = "the tide",
        *,
        sharing: SharingScope = MINE,
        is_interactive: bool = False,
        engine: Engine | None = None,
        **params: Any,
    ) -> Request:
        request = Request(
            id=next(IDS),
            task="generate",
            text=text,
            params=SamplingParams(seed=next(IDS), **params),
            is_interactive=is_interactive,
        )
        engine = engine or self.engine
        key = self.cache.key(request, sharing, engine.model_digest)
        self.submit(engine, request, key)
        return request

    def submit(self, engine: Engine, request: Request, key: ContentKey | None) -> None:
        self.cache.submit(cast(EngineClient, engine), FENCE, [(request, key)], self._receive)

    def _receive(self, output: Output, is_shared: bool = False) -> None:
        assert output.request_id not in self.received, "answered twice"
        self.received[output.request_id] = output, is_shared

    def cancel(self, request: Request) -> None:
        self.cache.cancel(cast(EngineClient, self.engine), [request.id])

    def text(self, request: Request) -> str:
        output, _ = self.received[request.id]
        return output.choices[0].text

    def is_shared(self, request: Request) -> bool:
        return self.received[request.id][1]

    def failed(self, request: Request) -> bool:
        return self.received[request.id][0].failure is not None


@pytest.fixture
def asker() -> Asker:
    return Asker()


def test_equal_requests_at_once_are_one(asker: Asker) -> None:
    first, second, other = asker.ask(), asker.ask(), asker.ask("the ebb")
    assert asker.engine.asked == [first, other]
    asker.engine.answer(first)
    assert asker.text(first) == asker.text(second) == "answer to the tide"
    assert (asker.is_shared(first), asker.is_shared(second)) == (False, True)
    assert other.id not in asker.received


def test_a_recent_answer_is_reused_before_it_is_in_the_database(asker: Asker) -> None:
    first = asker.ask()
    asker.engine.answer(first)
    second = asker.ask()
    assert asker.engine.asked == [first]
    assert asker.text(second) == asker.text(first)
    assert asker.is_shared(second)
    (kept,) = asker.kept
    assert Output.from_json(json.loads(kept.output)).choices == asker.received[first.id][0].choices


def test_a_recent_answer_leaves_memory_when_it_is_too_old(
    asker: Asker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is a text: what is erased from the database is to be gone from memory too."""
    now = 0.0
    clock = SimpleNamespace(monotonic=lambda: now)
    monkeypatch.setattr("worker.cache.content_cache.time", clock)
    asker.engine.answer(asker.ask("one"))
    now += MAX_RECENT_SECONDS
    asker.engine.answer(asker.ask("another"))
    asker.cache.forget_old()
    assert len(asker.cache._recent) == 2

    now += 1
    asker.cache.forget_old()
    (kept,) = asker.cache._recent.values()
    assert kept[1].choices[0].text == "answer to another"
    assert asker.cache._num_recent_characters == num_characters(kept[1])
    now += MAX_RECENT_SECONDS
    asker.cache.forget_old()
    assert (len(asker.cache._recent), asker.cache._num_recent_characters) == (0, 0)


@pytest.mark.parametrize(
    "other",
    [
        {"text": "the Tide"},
        {"max_new_tokens": 9},
        {"num_beams": 2},
        {"stop": ("x",)},
        {"sharing": SharingScope("yours", has_seed=False)},
        {"sharing": SharingScope(None, has_seed=False)},
        {"engine": Engine(model_digest=b"two")},
    ],
    ids=lambda each: next(iter(each)),
)
def test_any_different_request_is_computed(asker: Asker, other: dict[str, Any]) -> None:
    asker.engine.answer(asker.ask())
    request = asker.ask(**other)
    assert request in other.get("engine", asker.engine).asked


def test_a_failure_is_not_shared_and_the_next_waiting_request_is_computed(asker: Asker) -> None:
    first, second, third = asker.ask(), asker.ask(), asker.ask()
    asker.engine.fail(first)
    assert asker.failed(first)
    assert asker.engine.asked == [first, second], "one at a time"
    asker.engine.fail(second)
    asker.engine.answer(third)
    assert asker.failed(second)
    assert asker.text(third) == "answer to the tide"
    assert not asker.is_shared(third)


def test_waiting_requests_get_the_answer_of_a_second_try(asker: Asker) -> None:
    first, second, third = asker.ask(), asker.ask(), asker.ask()
    asker.engine.fail(first)
    fourth = asker.ask()
    asker.engine.answer(second)
    assert asker.text(second) == asker.text(third) == asker.text(fourth)
    assert asker.engine.asked == [first, second]


def test_a_cancelled_request_goes_on_for_others_and_does_not_answer_its_own_job(
    asker: Asker,
) -> None:
    first, second = asker.ask(), asker.ask()
    asker.cancel(first)
    assert asker.engine.cancelled == []
    asker.engine.answer(first)
    assert first.id not in asker.received
    assert asker.text(second) == "answer to the tide"


def test_a_request_without_waiters_is_cancelled_and_not_joined(asker: Asker) -> None:
    first, second = asker.ask(), asker.ask()
    asker.cancel(second)
    asker.cancel(first)
    assert asker.engine.cancelled == [first.id]
    third = asker.ask()
    asker.engine.answer(first)
    assert asker.kept == []
    asker.engine.answer(third)
    assert list(asker.received) == [third.id]


def test_a_waiting_request_that_was_cancelled_is_never_computed(asker: Asker) -> None:
    first, second, third = asker.ask(), asker.ask(), asker.ask()
    asker.cancel(second)
    asker.engine.fail(first)
    assert asker.engine.asked == [first, third]
    asker.cancel(third)
    assert asker.engine.cancelled == [third.id]


def test_an_interactive_request_waits_for_no_bulk_one_and_a_bulk_one_for_any(
    asker: Asker,
) -> None:
    bulk = asker.ask()
    interactive = asker.ask(is_interactive=True)
    later_bulk, later_interactive = asker.ask(), asker.ask(is_interactive=True)
    assert asker.engine.asked == [bulk, interactive]
    asker.engine.answer(interactive)
    assert asker.text(later_bulk) == asker.text(later_interactive)
    assert bulk.id not in asker.received
    asker.engine.answer(bulk)
    assert asker.text(bulk) == "answer to the tide"


def test_an_interactive_request_leads_where_the_first_has_failed(asker: Asker) -> None:
    first = asker.ask(is_interactive=True)
    asker.ask()
    interactive = asker.ask(is_interactive=True)
    asker.engine.fail(first)
    assert asker.engine.asked == [first, interactive]


@pytest.mark.parametrize("params", [{"temperature": 0.7}, {"do_sample": True}, {"top_k": 5}])
def test_a_sample_without_a_seed_is_not_shared(asker: Asker, params: dict[str, Any]) -> None:
    first, second = asker.ask(**params), asker.ask(**params)
    asker.engine.answer(first, samples=True)
    asker.ask(**params)
    assert len(asker.engine.asked) == 3
    asker.engine.answer(second, samples=True)
    assert not asker.is_shared(second)
    assert asker.kept == []


def test_an_answer_of_a_checkpoint_that_samples_by_default_is_not_shared(asker: Asker) -> None:
    first, second, third = asker.ask(), asker.ask(), asker.ask()
    asker.engine.answer(first, samples=True)
    assert asker.engine.asked == [first, second, third], "at once: it will be the same with each"
    fourth = asker.ask()
    assert asker.engine.asked[-1] is fourth
    for request in (second, third, fourth):
        asker.engine.answer(request, samples=True)
        assert not asker.is_shared(request)
    assert asker.kept == []
    greedy = asker.ask(do_sample=False)
    asker.engine.answer(greedy)
    assert asker.is_shared(asker.ask(do_sample=False))


def test_a_request_that_is_not_shared_can_be_cancelled(asker: Asker) -> None:
    first, second = asker.ask(), asker.ask()
    asker.engine.answer(first, samples=True)
    asker.cancel(second)
    assert asker.engine.cancelled == [second.id]


def test_a_sample_is_shared_by_requests_with_the_same_seed(asker: Asker) -> None:
    def seeded(seed: int) -> Request:
        request = Request(
            id=next(IDS),
            task="generate",
            text="x",
            params=SamplingParams(temperature=0.7, seed=seed),
        )
        asker.submit(asker.engine, request, asker.cache.key(request, SEEDED, b"one"))
        return request

    first, same, other = seeded(1), seeded(1), seeded(2)
    assert asker.engine.asked == [first, other]
    asker.engine.answer(first, samples=True)
    assert asker.is_shared(same)


def test_an_output_of_a_reloaded_model_answers_only_its_own_request(
    asker: Asker,
) -> None:
    first, second = asker.ask(), asker.ask()
    asker.engine.model_digest = b"two"  # the process ended, and its folder held another
    asker.engine.answer(first)
    assert asker.kept == []
    assert asker.engine.asked == [first, second]
    asker.engine.answer(second)
    assert asker.kept == []
    assert not asker.is_shared(second)


def test_an_entry_past_its_ttl_is_computed_again() -> None:
    asker = Asker(settings=CacheSettings(ttl_seconds=1e-9))
    asker.engine.answer(asker.ask())
    asker.ask()
    assert len(asker.engine.asked) == 2


def test_measurements_are_not_shared() -> None:
    request = Request(id=1, task="generate", measured_texts=("a",))
    assert MINE.key(request, b"one") is None


# What decides an answer, one thing changed at a time.
CHANGES: list[tuple[str, Any]] = [
    ("revision", "two"),
    ("checkpoint", "other"),
    ("alias", "other"),
    ("dtype", "bfloat16"),
    ("engine", "exact"),
    ("device", "cuda"),
    ("versions", {"transformers": "6"}),
]


@pytest.mark.parametrize(("name", "value"), CHANGES, ids=[name for name, _ in CHANGES])
def test_another_model_has_another_digest(name: str, value: Any) -> None:
    changed = replace(FAKE_CARD, **{name: value})
    assert model_digest(SPEC, changed) != model_digest(SPEC, FAKE_CARD)


@pytest.mark.parametrize(
    ("name", "value", "same"),
    [
        ("prompt", {"generate": "Say: {text}"}, False),
        ("max_new_tokens", 7, False),
        ("quantization", "int8", False),
        ("revision", "two", False),
        ("languages", ("en",), False),
        ("replica", 1, True),
        ("threads", 2, True),
        ("max_sequences", 2, True),
        ("kv_cache", "1GiB", True),
    ],
)
def test_settings_count_where_they_decide_an_answer(name: str, value: Any, same: bool) -> None:
    changed = replace(SPEC, **{name: value})
    assert (model_digest(changed, FAKE_CARD) == model_digest(SPEC, FAKE_CARD)) is same


def test_replicas_on_two_gpus_are_one_model() -> None:
    one, other = (replace(FAKE_CARD, device=f"cuda:{number}") for number in range(2))
    assert model_digest(SPEC, one) == model_digest(SPEC, other)


@given(st.text(), st.text())
def test_texts_have_a_key_each_whatever_they_hold(one: str, other: str) -> None:
    keys = [
        MINE.key(Request(id=1, task="generate", text=text), b"one").digest  # type: ignore[union-attr]
        for text in (one, other)
    ]
    assert (keys[0] == keys[1]) is (one == other)


def test_many_threads_with_equal_requests_all_get_an_answer() -> None:
    """Some give up and some outputs are failures, in no order; each that stayed has one."""
    asker = Asker()
    over = threading.Event()
    stayed: list[Request] = []
    left: list[Request] = []

    def answer() -> None:
        for number in itertools.count():
            # A copy, made in one step: others ask meanwhile.
            request = next((one for one, _ in list(asker.engine.held.values())), None)
            if request is None:
                if over.is_set() and not asker.engine.held:
                    return
                continue
            if number % 3:
                asker.engine.answer(request)
            else:
                asker.engine.fail(request)

    def ask() -> None:
        for number in range(200):
            request = asker.ask(f"text {number // 10}")
            if number % 4 == 0:
                asker.cancel(request)
                left.append(request)
            else:
                stayed.append(request)

    engine = threading.Thread(target=answer)
    askers = [threading.Thread(target=ask) for _ in range(4)]
    engine.start()
    for thread in askers:
        thread.start()
    for thread in askers:
        thread.join()
    over.set()
    engine.join()
    assert {each.id for each in stayed} <= asker.received.keys()
    assert len(asker.received) <= len(stayed) + len(left)


def test_with_encryption_the_cache_key_is_an_hmac() -> None:
    """Else whoever reads the table could try texts until a digest is there."""
    plain, sealed, rotated = Asker(), Asker(), Asker()
    for asker, names in ((sealed, ("k1",)), (rotated, ("k2", "k1"))):
        ring = KeyRing({name: name.encode().ljust(32, b".") for name in names})
        asker.cache = ContentCache(asker.settings, asker.kept.append, fingerprint=ring.fingerprint)
    for asker in (plain, sealed, rotated):
        first = asker.ask()
        asker.ask()
        asker.engine.answer(first)

    keys = [{each.key for each in asker.kept} for asker in (plain, sealed, rotated)]
    assert [len(of_one) for of_one in keys] == [1, 1, 1], "equal requests still share"
    assert len(set.union(*keys)) == 3
