"""In company every request gets what `model.generate` gives it alone, token for token."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

from engine.protocol.messages import Params, Request
from engine.runners.captured_step import CapturedExecutor
from engine.runners.step_executor import FusedExecutor
from tests import checkpoints
from tests.engines import Bench
from tests.parity.alone import Alone

NUM_PROMPTS = 6

# How the answer to each prompt is asked for. `i` is the number of the prompt, so that
# lengths and seeds differ among those that share a call.
SETTINGS: dict[str, Callable[[int], dict[str, Any]]] = {
    "greedy": lambda i: {"max_new_tokens": 8 + 5 * i},
    "max_length": lambda i: {"max_length": 145},
    "beams": lambda i: {"max_new_tokens": 14, "num_beams": 4},
    "beams, several returned": lambda i: {
        "max_new_tokens": 10 + i % 2,
        "num_beams": 3,
        "num_return_sequences": 2,
        "length_penalty": 2.0,
        "early_stopping": True,
    },
    "repetition penalty": lambda i: {"max_new_tokens": 20, "repetition_penalty": 1.4},
    "no repeated n-gram": lambda i: {"max_new_tokens": 20, "no_repeat_ngram_size": 2},
    "minimum length": lambda i: {"max_new_tokens": 24, "min_new_tokens": 14 + i},
    "beams with everything": lambda i: {
        "max_new_tokens": 16,
        "min_new_tokens": 6,
        "num_beams": 2,
        "repetition_penalty": 1.2,
        "no_repeat_ngram_size": 3,
    },
    "sampling": lambda i: {"max_new_tokens": 10 + i, "do_sample": True, "seed": i},
    "sampling, warped": lambda i: {
        "max_new_tokens": 12,
        "do_sample": True,
        "seed": 40 + i,
        "temperature": 0.7,
        "top_k": 30,
        "top_p": 0.9,
        "num_return_sequences": 1 + i % 3,
        "repetition_penalty": 1.1,
    },
    "beam sampling": lambda i: {
        "max_new_tokens": 8,
        "do_sample": True,
        "seed": 7,
        "num_beams": 2,
    },
}  # fmt: skip


CODES = {"m2m100": ("en", "fr"), "nllb": ("eng_Latn", "fra_Latn"), "mbart": ("en_XX", "fr_XX")}
TASK = {
    **dict.fromkeys(checkpoints.DECODER_ONLY, "generate"),
    **dict.fromkeys(("t5", "mt5", "bart", "pegasus"), "summarize"),
    **dict.fromkeys(("marian", "marian_multi", "m2m100", "nllb", "mbart"), "translate"),
}


def requests_of(kind: str) -> list[tuple[str, Request, dict[str, Any]]]:
    """Every setting for every prompt, in an order that mixes them."""
    asked = [
        (name, text, {"do_sample": False, **of_prompt(i)})
        for name, of_prompt in SETTINGS.items()
        for i, text in enumerate(checkpoints.sentences(NUM_PROMPTS, seed=3))
    ]
    random.Random(5).shuffle(asked)
    languages = {}
    if TASK[kind] == "translate":
        languages = {"source_language": "en", "target_language": "fr"}
    return [
        (name, Request(id=at, task=TASK[kind], text=text, params=Params(**how), **languages), how)
        for at, (name, text, how) in enumerate(asked)
    ]


def alone_of(alone: Alone, request: Request, how: dict[str, Any]) -> list[list[int]]:
    text = request.text or ""
    if alone.kind == "t5":
        return alone.generate(f"summarize: {text}", **how)
    if alone.kind == "marian_multi":
        return alone.generate(f">>fra<< {text}", **how)
    if alone.kind in CODES:
        return alone.generate(**alone.translation(text, *CODES[alone.kind]), **how)
    return alone.generate(text, **how)


@pytest.fixture(scope="module")
def alone_answers_of(folder_of):
    """The checkpoint of a kind alone, and what it answers to each request by its id; once
    for all engines."""

    @cache
    def make(kind: str) -> tuple[Alone, dict[int, list[list[int]]]]:
        alone = Alone(kind, folder_of(kind))
        answers = {each.id: alone_of(alone, each, how) for _, each, how in requests_of(kind)}
        return alone, answers

    return make


@pytest.mark.parametrize("kind", checkpoints.KINDS)
def test_every_answer_in_company_is_the_answer_alone(kind, alone_answers_of, bench_of, engine_name):
    alone, answers = alone_answers_of(kind)
    company = bench_of(kind)
    requests = requests_of(kind)

    outputs = company.answers(request for _, request, _ in requests)

    assert len(outputs) == len(requests)
    # Prompts of several lengths did share calls, or nothing would have been shown.
    assert any(len({len(each.prompt_ids) for each in plan.sequences}) > 1 for plan in company.plans)
    wrong, said, greedy = [], [], set()
    for name, request, _ in requests:
        expected = answers[request.id]
        choices = outputs[request.id].choices
        got = [list(each.token_ids) for each in choices]
        if got != expected:
            wrong.append((name, outputs[request.id].failure, got, expected))
        assert [each.text.strip() for each in choices] == [alone.text(each).strip() for each in got]
        said += expected
        if name == "greedy":
            greedy.add(tuple(expected[0]))
    assert wrong == []
    assert len(greedy) > NUM_PROMPTS / 2  # a model that does not hear its prompt proves little
    assert_varied(said)
    if engine_name == "inflight":
        assert_captured_or_fused(company)


def assert_captured_or_fused(bench: Bench) -> None:
    """Its steps were captured and replayed, and not given up; or they are fused, which needs no
    capture."""
    executor = bench.loop.engine.in_flight.runner.executor
    if isinstance(executor, FusedExecutor):
        return
    assert isinstance(executor, CapturedExecutor)
    assert executor.graphs.record is not None
    assert executor.graphs.recorded


def assert_varied(said: list[list[int]]) -> None:
    """References that repeat one token, or one another, would agree with anything."""
    assert all(said)
    tokens = [token for each in said for token in each]
    assert len(set(tokens)) >= 30
    assert sum(len(set(each)) / len(each) for each in said) / len(said) > 0.4
    assert len({tuple(each) for each in said}) > len(said) / 3
