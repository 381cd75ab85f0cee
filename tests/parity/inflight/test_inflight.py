"""In flight, whatever requests come and go, every answer is the one that `generate` gives alone."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.backends.generate import GenerateBackend
from engine.backends.loader import load
from engine.backends.router import RouterBackend
from engine.errors import InvariantBroken, Unloadable
from engine.kv_cache.layer_group import BUCKET_TOKENS
from engine.protocol.engine_spec import EngineSpec
from engine.protocol.sampling_params import SamplingParams
from tests import checkpoints
from tests.parity.trials.alone import Alone
from tests.parity.trials.coming_and_going import ARRIVAL, GREEDY, KINDS, let_come_and_go, request


@pytest.fixture(scope="module")
def engine_name() -> str:
    return "inflight"


@pytest.fixture(scope="module")
def small_bench_of(bench_of):
    """One in which few rows fit, so that requests wait for one another."""
    return cache(lambda kind: bench_of(kind, max_sequences=6, max_step_tokens=500))


@pytest.mark.parametrize("kind", KINDS)
@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(arrivals=st.lists(ARRIVAL, min_size=1, max_size=14))
def test_requests_that_come_and_go_answer_as_alone(kind, arrivals, asked_of, small_bench_of):
    bench = small_bench_of(kind)
    let_come_and_go(bench, asked_of(kind), arrivals)


def test_requests_join_and_leave_while_others_run(bench_of):
    bench = bench_of("llama", max_sequences=4)
    bench.answers(
        request(at, text, params=replace(GREEDY, max_new_tokens=4 + 9 * (at % 3)))
        for at, text in enumerate(checkpoints.sentences(12))
    )
    shared = [plan for plan in bench.plans if plan.running and plan.admitted]
    assert len(shared) > 3
    assert max(plan.num_rows for plan in bench.plans) == 4
    assert bench.loop.engine.in_flight.running_sequences == {}


def test_a_request_that_is_not_proved_runs_by_generate_while_others_run(bench_of, folder_of):
    bench, alone = bench_of("t5"), Alone("t5", folder_of("t5"))
    text, other = checkpoints.sentences(2)
    bench.submit(request(0, text, params=replace(GREEDY, max_new_tokens=30)))
    bench.advance()
    how = {"max_new_tokens": 8, "do_sample": True, "seed": 7, "num_beams": 2}
    bench.submit(request(1, other, params=SamplingParams(**how)))
    plan = bench.advance()
    assert [each.id for each in plan.running] == [0]
    assert [(each.id, each.runs_to_completion) for each in plan.admitted] == [(1, True)]
    outputs = {each.request_id: each for each in bench.finish()}
    assert [list(each.token_ids) for each in outputs[1].choices] == alone.generate(other, **how)
    (expected,) = alone.generate(text, max_new_tokens=30, do_sample=False)
    assert list(outputs[0].choices[0].token_ids) == expected


def test_a_cache_grows_with_its_sequence_and_is_freed_at_its_end(bench_of):
    bench = bench_of("gpt2")
    bench.submit(request(0, "the mill", params=replace(GREEDY, max_new_tokens=200)))
    running_sequences = bench.loop.engine.in_flight.running_sequences
    capacities = []
    while bench.advance() is not None:
        capacities += [each.cache.capacity for each in running_sequences.values()]
    assert capacities == sorted(capacities)
    assert capacities[0] == BUCKET_TOKENS
    (output,) = bench.collect()
    num_tokens = output.prompt_tokens + output.choices[0].completion_tokens
    assert capacities[-1] < num_tokens + BUCKET_TOKENS
    assert running_sequences == {}


def test_a_request_larger_than_the_cache_is_refused_with_numbers(bench_of):
    bench = bench_of("gpt2", max_cache_tokens=60)
    (output,) = bench.answers(
        [request(0, "the mill", params=SamplingParams(max_new_tokens=100, do_sample=False))]
    ).values()
    assert output.failure.code == "unsupported_parameter"
    assert "which has 60 (max_cache_tokens)" in output.failure.message
    # Two of these do not fit together, so one waits for the other.
    both = [request(at, "the mill", params=replace(GREEDY, max_new_tokens=40)) for at in (1, 2)]
    outputs = bench.answers(both)
    assert outputs[1].choices == outputs[2].choices
    assert max(len(plan.sequences) for plan in bench.plans) == 1


def test_caches_of_sequences_that_do_not_run_are_noticed(bench_of):
    bench = bench_of("gpt2")
    bench.submit(request(0, "the mill"))
    bench.advance()
    engine = bench.loop.engine
    with pytest.raises(InvariantBroken, match=r"sequences \[0\] own caches, but \[\] run"):
        engine.check(())
    cache = engine.in_flight.running_sequences[0].cache
    cache.length = 0
    with pytest.raises(InvariantBroken, match="0 tokens"):
        engine.check(bench.scheduler.running.values())
    cache.commit_prompt(cache.capacity)
    engine.in_flight.runner.kv_cache.buffer_pool.put(cache.groups[0].kv)
    with pytest.raises(InvariantBroken, match="2 sequences and pooled buffers have 1 tensors"):
        engine.check(bench.scheduler.running.values())


def test_the_backend_is_in_flight_unless_another_is_named(folder_of):
    def engine(name: str) -> object:
        folder = str(folder_of("llama"))
        return load(EngineSpec(alias="a", checkpoint=folder, device="cpu", engine=name))

    assert isinstance(engine("inflight"), RouterBackend)
    assert isinstance(engine("auto"), RouterBackend)
    assert isinstance(engine("exact"), GenerateBackend)


@pytest.mark.parametrize(
    ("kind", "said"), [("nllb_moe", "rows compete"), ("rwkv", "in a cache that is known")]
)
def test_an_unproved_model_runs_by_generate_or_is_refused(kind, said, folder_of):
    spec = EngineSpec(alias="a", checkpoint=str(folder_of(kind)), device="cpu")
    assert isinstance(load(spec), GenerateBackend)
    with pytest.raises(Unloadable, match=said):
        load(replace(spec, engine="inflight"))


@pytest.fixture
def count_mixed(monkeypatch):
    """A function that makes a bench count the forward passes that are prefill and decode in one;
    `after` runs when such a pass has been computed."""

    def watch(bench, after=lambda: None) -> list[int]:
        runner = bench.loop.engine.in_flight.runner
        whole, mixed = runner.prefill_and_decode, []

        def prefill_and_decode(sequences, caches, tokens, begun):
            result = whole(sequences, caches, tokens, begun)
            if result is not None:
                mixed.append(len(sequences))
                after()
            return result

        monkeypatch.setattr(runner, "prefill_and_decode", prefill_and_decode)
        return mixed

    return watch


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_a_decoder_only_model_prefills_in_the_pass_that_decodes(
    kind, asked_of, small_bench_of, count_mixed
):
    """It reads its weights once for both. An encoder-decoder has other weights for prompts."""
    bench = small_bench_of(kind)
    mixed = count_mixed(bench)
    let_come_and_go(bench, asked_of(kind), [(at % 3, at, None) for at in range(12)])
    assert bool(mixed) == (kind == "llama")


def test_a_mixed_pass_that_fails_is_run_again_as_two(asked_of, small_bench_of, count_mixed):
    def fail():
        raise RuntimeError("after all was written, which must not matter")

    bench = small_bench_of("gpt2")
    failed = count_mixed(bench, after=fail)
    let_come_and_go(bench, asked_of("gpt2"), [(at % 3, at, None) for at in range(12)])
    assert failed
