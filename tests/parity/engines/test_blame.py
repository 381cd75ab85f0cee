"""When a call fails, only the request that made it fail is blamed."""

from __future__ import annotations

import pytest
import torch

from engine.errors import EngineBroken
from engine.protocol.request import Request
from engine.protocol.sampling_params import SamplingParams
from tests import checkpoints

CULPRIT = 3


def requests() -> list[Request]:
    params = SamplingParams(max_new_tokens=6, do_sample=False)
    return [
        Request(id=at, task="generate", text=f"{at} {text}", params=params)
        for at, text in enumerate(checkpoints.sentences(2) * 4)
    ]


@pytest.fixture(scope="module")
def engine_name():
    return "exact"


@pytest.fixture
def bench(bench_of):
    return bench_of("gpt2")


def break_when(bench, fails) -> None:
    """Make every call raise for which `fails` returns an error; it is given the prompts."""
    whole = bench.loop.engine.model.generate

    def generate(input_ids, **settings):
        error = fails(input_ids)
        if error is not None:
            raise error
        return whole(input_ids, **settings)

    bench.loop.engine.model.generate = generate


def holds_culprit(bench, input_ids) -> bool:
    texts = [bench.loop.engine.checkpoint.tokenizer.decode(row.tolist()) for row in input_ids]
    return any(f"{CULPRIT} " in text for text in texts)


def test_a_request_that_makes_its_group_fail_fails_alone(bench, bench_of):
    expected = bench_of("gpt2").answers(requests())
    secret = "the water of the mill"
    break_when(bench, lambda ids: ValueError(secret) if holds_culprit(bench, ids) else None)
    outputs = bench.answers(requests())
    failure = outputs.pop(CULPRIT).failure
    assert (failure.code, failure.retryable) == ("generation_failed", False)
    assert "ValueError" in failure.message
    assert secret not in failure.message
    expected.pop(CULPRIT)
    assert outputs == expected


def test_a_group_that_does_not_fit_is_run_in_parts(bench, bench_of):
    expected = bench_of("gpt2").answers(requests())
    sizes = []

    def fails(input_ids):
        sizes.append(len(input_ids))
        return torch.OutOfMemoryError() if len(input_ids) > 2 else None

    break_when(bench, fails)
    assert bench.answers(requests()) == expected
    assert max(sizes) > 2


def test_a_request_that_does_not_fit_alone_says_so_and_may_be_tried_again(bench):
    def fails(input_ids):
        if holds_culprit(bench, input_ids):
            return RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried ...")
        return None

    break_when(bench, fails)
    outputs = bench.answers(requests())
    failed = {id_: each.failure for id_, each in outputs.items() if each.failure is not None}
    assert failed.keys() == {CULPRIT}
    assert (failed[CULPRIT].code, failed[CULPRIT].retryable) == ("out_of_memory", True)


def test_a_device_beyond_repair_ends_the_engine(bench):
    break_when(bench, lambda ids: torch.AcceleratorError("an illegal memory access"))
    bench.submit(*requests())
    with pytest.raises(EngineBroken):
        bench.advance()


def test_a_cancelled_request_of_a_later_group_never_runs(bench):
    short, long = "the mill", "water " * 40
    params = SamplingParams(max_new_tokens=4, do_sample=False)
    bench.submit(
        Request(id=0, task="generate", text=short, params=params),
        Request(id=1, task="generate", text=long, params=params),
    )
    bench.advance()
    bench.tracker.cancel([1])
    outputs = {each.request_id: each for each in bench.finish()}
    assert len(bench.plans) == 1
    assert outputs[0].choices[0].completion_tokens > 0
    assert outputs[1].choices[0].finish_reason == "cancelled"
