"""Families of each kind that is proved at load: whatever requests come and go, of whatever lengths
and settings, each is answered in flight as alone."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.backends.loader import load
from engine.backends.router import RouterBackend
from engine.protocol.request import Request
from engine.protocol.sampling_params import SamplingParams
from tests import checkpoints
from tests.parity.trials.alone import Alone
from tests.parity.trials.coming_and_going import let_come_and_go, seen_by
from tests.parity.trials.joining import spec_of
from tests.running.engines import Bench

KINDS = {
    "gemma3": "windows in every other layer",
    "gemma2": "soft caps",
    "gpt_oss": "sinks, and a mixture of experts",
    "bloom": "ALiBi, by its own cache",
    "deepseek_v3": "latent keys, by its own cache",
    "llama4": "attention in chunks, by its own cache",
    "mamba": "recurrent",
    "qwen3_5": "a delta net beside attention",
    "t5gemma": "an encoder-decoder with windows",
    "led": "an encoder-decoder by its own cache",
    "prophetnet": "rows of one length at a time",
    "bigbird_pegasus": "it changes itself at a short text",
}
TEXTS = checkpoints.sentences(8, seed=13)
# Each with a number of tokens.
SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "to the end": {"do_sample": False, "full": True},
    "beams": {"do_sample": False, "num_beams": 3, "num_return_sequences": 2},
    "penalty": {"do_sample": False, "repetition_penalty": 1.4},
    "n-grams": {"do_sample": False, "no_repeat_ngram_size": 2},
    "drawn": {"do_sample": True, "seed": 5},
    "several drawn": {"do_sample": True, "seed": 6, "num_return_sequences": 2, "top_p": 0.8},
}
ASKED = st.tuples(
    st.integers(0, len(TEXTS) - 1), st.sampled_from(list(SETTINGS)), st.integers(1, 12)
)
ARRIVAL = st.tuples(
    st.integers(0, 5),  # steps after the one before
    ASKED,
    st.none() | st.none() | st.integers(0, 9),  # steps after which it is cancelled
)


class AnsweredAlone:
    """A request with its answer by `generate`, once for each of ASKED."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind, self.alone = kind, Alone(kind, folder)
        self.known: dict[Any, tuple[Request, list[list[int]]]] = {}

    def __getitem__(self, asked: tuple[int, str, int]) -> tuple[Request, list[list[int]]]:
        if asked not in self.known:
            which, name, num_tokens = asked
            how = {**SETTINGS[name], "max_new_tokens": num_tokens}
            if how.pop("full", False):
                how["min_new_tokens"] = num_tokens
            request = Request(
                id=0, task="generate", text=TEXTS[which], params=SamplingParams(**how)
            )
            is_changed = self.kind in checkpoints.CHANGED_BY_REQUESTS
            alone = self.alone.afresh() if is_changed else self.alone
            self.known[asked] = (request, alone.generate(TEXTS[which], **how))
        return self.known[asked]


@pytest.fixture(scope="module")
def answered_alone(folder_of):
    return cache(lambda kind: AnsweredAlone(kind, folder_of(kind)))


@pytest.fixture(scope="module")
def narrow_bench_of(folder_of):
    """One in which few rows fit, so that requests wait for one another."""

    @cache
    def make(kind: str) -> Bench:
        spec = spec_of(
            folder_of(kind), max_sequences=6, max_step_tokens=200, max_cache_tokens=2_000
        )
        engine = load(spec)
        assert isinstance(engine, RouterBackend), engine.card.engine_reason
        assert engine.card.engine_reason.startswith("proved at load")
        engine.in_flight.runner.kv_cache.poisoned = True
        return Bench(engine, spec)

    return make


@pytest.mark.usefixtures("proved_once")
@pytest.mark.parametrize("kind", KINDS)
@settings(
    max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(arrivals=st.lists(ARRIVAL, min_size=4, max_size=12))
def test_requests_of_any_family_that_come_and_go_answer_as_alone(
    kind, arrivals, answered_alone, narrow_bench_of
):
    bench = narrow_bench_of(kind)
    let_come_and_go(bench, answered_alone(kind), arrivals)
    assert not any(each.runs_to_completion for each in seen_by(bench))
    assert bench.loop.engine.in_flight.running_sequences == {}
    assert bench.progress.num_by_generate == 0
