"""A step that fails is run again in parts, until the culprit fails alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from engine.errors import EngineBroken
from tests.parity.trials.coming_and_going import CULPRIT, break_when, prompts


@pytest.fixture(scope="module")
def engine_name() -> str:
    return "inflight"


@pytest.mark.parametrize("name", ["prefill", "decode"])
def test_a_request_that_makes_a_step_fail_fails_alone(bench_of, name):
    expected = bench_of("gpt2").answers(prompts())
    bench = bench_of("gpt2")
    secret = "the water of the mill"
    break_when(bench, name, lambda ids: ValueError(secret) if CULPRIT in ids else None)
    outputs = bench.answers(prompts())
    failure = outputs.pop(CULPRIT).failure
    assert (failure.code, failure.retryable) == ("generation_failed", False)
    assert secret not in failure.message
    expected.pop(CULPRIT)
    assert outputs == expected


def test_a_sampler_that_fails_fails_its_request_alone(bench_of):
    bench = bench_of("gpt2")
    expected = bench.answers(prompts())
    bench.submit(*(replace(each, id=each.id + 100) for each in prompts()))
    bench.advance()
    running = bench.loop.engine.in_flight.running_sequences[CULPRIT + 100]
    running.choice.advance = lambda logits, argmax: [][0]
    outputs = {each.request_id - 100: each for each in bench.finish()}
    assert outputs.pop(CULPRIT).failure.code == "generation_failed"
    assert all(each.choices == expected[id_].choices for id_, each in outputs.items())


def test_a_request_that_does_not_fit_says_so_and_may_be_tried_again(bench_of):
    bench = bench_of("gpt2")
    break_when(bench, "decode", lambda ids: torch.OutOfMemoryError() if CULPRIT in ids else None)
    outputs = bench.answers(prompts())
    failed = {id_: each.failure for id_, each in outputs.items() if each.failure is not None}
    assert failed.keys() == {CULPRIT}
    assert (failed[CULPRIT].code, failed[CULPRIT].retryable) == ("out_of_memory", True)


def test_a_step_that_finds_no_memory_is_halved_and_no_later_one_is_as_large(bench_of):
    expected = bench_of("gpt2").answers(prompts())
    bench = bench_of("gpt2")
    tried = []

    def fails(ids):
        tried.append(len(ids))
        return torch.OutOfMemoryError() if len(ids) > 3 else None

    break_when(bench, "decode", fails)
    assert bench.answers(prompts()) == expected
    assert tried[:2] == [8, 4]
    assert max(tried[2:]) == 2
    # Later requests are admitted by the limit that was found.
    bench.plans.clear()
    later = [replace(each, id=each.id + 100) for each in prompts()]
    outputs = bench.answers(later)
    assert max(plan.num_rows for plan in bench.plans) == 2
    assert [outputs[each.id].choices for each in later] == [
        expected[each.id - 100].choices for each in later
    ]


def test_a_device_beyond_repair_ends_the_engine(bench_of):
    bench = bench_of("gpt2")
    break_when(bench, "decode", lambda ids: torch.AcceleratorError("an illegal memory access"))
    bench.submit(*prompts())
    bench.advance()
    with pytest.raises(EngineBroken):
        bench.advance()
