"""In flight, whatever requests come and go, every answer is the one that `generate` gives alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import cache

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.attention.torch_backend import TorchAttentionBackend
from engine.backends.generate import GenerateBackend
from engine.backends.router import RouterBackend, load
from engine.checkpoint import weight_layout
from engine.cpu.linear import PackedLinear, fastest_linear, pack
from engine.errors import EngineBroken, InvariantBroken, Unloadable
from engine.kv_cache.contiguous import BUCKET_TOKENS
from engine.protocol.engine_spec import EngineSpec
from engine.protocol.messages import Params, Request
from engine.runners.step_executor import EagerExecutor
from tests import checkpoints
from tests.parity.alone import Alone
from tests.parity.test_engine import alone_of, assert_captured_or_fused, requests_of

GREEDY = Params(max_new_tokens=12, do_sample=False)
# One of each way to know a position and to keep keys, and one whose requests are beams.
KINDS = ("t5", "bart", "marian", "m2m100", "gpt2", "llama", "qwen3", "opt", "gpt_neox")


@pytest.fixture(scope="module")
def engine_name() -> str:
    return "inflight"


@pytest.fixture(scope="module")
def asked_of(folder_of):
    """Requests of a kind with the answers that they get alone."""

    @cache
    def make(kind: str) -> list[tuple[Request, list[list[int]]]]:
        alone = Alone(kind, folder_of(kind))
        return [(request, alone_of(alone, request, how)) for _, request, how in requests_of(kind)]

    return make


@pytest.fixture(scope="module")
def small_bench_of(bench_of):
    """One in which few rows fit, so that requests wait for one another."""
    return cache(lambda kind: bench_of(kind, max_sequences=6, max_step_tokens=500))


def request(id_: int, text: str, task: str = "generate", params: Params = GREEDY) -> Request:
    return Request(id=id_, task=task, text=text, params=params)


ARRIVAL = st.tuples(
    st.integers(0, 5),  # steps after the one before
    st.integers(0, 65),  # which of the requests
    st.none() | st.none() | st.integers(0, 12),  # steps after which it is cancelled
)


@pytest.mark.parametrize("kind", KINDS)
@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(arrivals=st.lists(ARRIVAL, min_size=1, max_size=14))
def test_requests_that_come_and_go_answer_as_alone(kind, arrivals, asked_of, small_bench_of):
    bench = small_bench_of(kind)
    let_come_and_go(bench, asked_of(kind), arrivals)


def let_come_and_go(bench, asked, arrivals) -> None:
    """Each answer must be that of its request alone, or that it was cancelled."""
    first_id = 1 + max((each.id for each in seen_by(bench)), default=0)
    expected, cancelled_at = {}, {}
    step, waiting = 0, []
    for id_, (delay, which, cancelled_after) in enumerate(arrivals, start=first_id):
        step += delay
        one, answer = asked[which]
        waiting.append((step, replace(one, id=id_)))
        expected[id_] = answer
        if cancelled_after is not None:
            cancelled_at[id_] = step + cancelled_after
    step = 0
    while True:
        due = [each for at, each in waiting if at <= step]
        waiting = [(at, each) for at, each in waiting if at > step]
        bench.submit(*due)
        bench.tracker.cancel([id_ for id_, at in cancelled_at.items() if at == step])
        step += 1
        if bench.advance() is None and not waiting:
            break
    outputs = {each.request_id: each for each in bench.collect()}
    assert outputs.keys() == expected.keys()
    for id_, output in outputs.items():
        got = [list(each.token_ids) for each in output.choices]
        if [each.finish_reason for each in output.choices] == ["cancelled"]:
            assert id_ in cancelled_at
        else:
            assert got == expected[id_]


def seen_by(bench):
    return [each for plan in bench.plans for each in plan.sequences]


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
    bench.submit(request(1, other, params=Params(**how)))
    plan = bench.advance()
    assert [each.id for each in plan.running] == [0]
    assert [(each.id, each.runs_to_completion) for each in plan.admitted] == [(1, True)]
    outputs = {each.request_id: each for each in bench.finish()}
    assert [list(each.token_ids) for each in outputs[1].choices] == alone.generate(other, **how)
    (expected,) = alone.generate(text, max_new_tokens=30, do_sample=False)
    assert list(outputs[0].choices[0].token_ids) == expected


@pytest.mark.parametrize(
    ("own", "in_flight"),
    [
        ({}, True),
        ({"bad_words_ids": [[7], [9, 11]], "min_length": 5}, True),
        ({"suppress_tokens": list(range(5, 200))}, True),
        ({"begin_suppress_tokens": list(range(5, 200))}, True),
        ({"exponential_decay_length_penalty": [3, 1.5]}, True),
        ({"renormalize_logits": True}, True),
        ({"renormalize_logits": True, "repetition_penalty": 1.7}, True),
        ({"encoder_repetition_penalty": 1.3}, True),
        ({"encoder_no_repeat_ngram_size": 1}, True),
        ({"remove_invalid_values": True}, True),
        ({"sequence_bias": [[[7], 4.0], [[9, 11], -4.0]]}, True),
        ({"cache_implementation": "dynamic"}, True),
        ({"max_time": 600.0}, False),
    ],
)
@pytest.mark.parametrize(
    "how",
    [
        {"do_sample": False},
        {"do_sample": False, "num_beams": 3},
    ],
    ids=["greedy", "beams"],
)
@pytest.mark.parametrize("kind", ["t5", "gpt2"])
def test_a_setting_of_the_checkpoint_is_never_dropped(
    kind, how, own, in_flight, bench_of, folder_of, tmp_path
):
    folder = tmp_path / kind
    shutil.copytree(folder_of(kind), folder)
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | own))
    bench, alone = bench_of(kind, checkpoint=str(folder)), Alone(kind, folder)
    params = Params(max_new_tokens=12, **how)
    requests = [
        request(at, text, params=params) for at, text in enumerate(checkpoints.sentences(5))
    ]
    outputs = bench.answers(requests)
    assert {not each.runs_to_completion for each in seen_by(bench)} == {in_flight}
    ways = (bench.progress.num_in_flight, bench.progress.num_by_generate)
    assert ways == ((5, 0) if in_flight else (0, 5))
    said = bench.loop.engine.card.engine_reason
    assert "proved" in said if in_flight else all(name in said for name in own)
    for each in requests:
        (expected,) = alone.generate(each.text, max_new_tokens=12, **how)
        assert list(outputs[each.id].choices[0].token_ids) == expected


@pytest.mark.parametrize(
    "own",
    [
        {"min_p": 0.1},
        {"typical_p": 0.7},
        {"epsilon_cutoff": 0.02},
        {"eta_cutoff": 0.02},
        {"top_h": 0.4},
        {"renormalize_logits": True, "temperature": 1.7, "top_p": 0.8},
    ],
)
@pytest.mark.parametrize("kind", ["t5", "gpt2"])
def test_a_way_to_sample_of_the_checkpoint_is_that_of_generate(
    kind, own, bench_of, folder_of, tmp_path
):
    folder = tmp_path / kind
    shutil.copytree(folder_of(kind), folder)
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | own))
    bench, alone = bench_of(kind, checkpoint=str(folder)), Alone(kind, folder)
    how = {"max_new_tokens": 12, "do_sample": True}
    requests = [
        request(at, text, params=Params(seed=at, **how))
        for at, text in enumerate(checkpoints.sentences(5))
    ]
    outputs = bench.answers(requests)
    assert not any(each.runs_to_completion for each in seen_by(bench))
    for each in requests:
        (expected,) = alone.generate(each.text, seed=each.id, **how)
        assert list(outputs[each.id].choices[0].token_ids) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_by_plain_torch_every_answer_is_the_same(kind, bench_of, asked_of):
    bench = bench_of(kind, cpu_kernels=False)
    assert_plain(bench)
    outputs = bench.answers(one for one, _ in asked_of(kind))
    for one, expected in asked_of(kind):
        assert [list(each.token_ids) for each in outputs[one.id].choices] == expected


def assert_plain(bench) -> None:
    """Every part that a step runs is torch's or the model's own."""
    runner = bench.loop.engine.in_flight.runner
    assert type(runner.executor) is EagerExecutor  # nothing is captured or fused
    assert isinstance(runner.attention, TorchAttentionBackend)
    assert isinstance(getattr(runner, "cross_attention", runner.attention), TorchAttentionBackend)
    ours = [
        type(each).__name__
        for each in runner.model.modules()
        if type(each).__module__.startswith("engine.cpu")
    ]
    assert ours == []


def test_the_environment_variable_switches_every_kernel_off(folder_of):
    """In a process of its own, where nothing is compiled or even imported that compiles."""
    script = """
import sys
from engine.process import load_engine
from engine.protocol.engine_spec import EngineSpec

load_engine(EngineSpec(alias="a", checkpoint=sys.argv[1], device="cpu"))
print(*(name for name in sys.modules if name == "numba" or name.startswith("engine.cpu.kernels.")))
"""

    def imported(environment: dict[str, str]) -> list[str]:
        command = [sys.executable, "-c", script, str(folder_of("llama"))]
        done = subprocess.run(
            command, env=os.environ | environment, check=True, capture_output=True, text=True
        )
        return done.stdout.split()

    assert imported({"TIDEMILL_CPU_KERNELS": "0"}) == []
    assert "numba" in imported({"TIDEMILL_CPU_KERNELS": "1"})


@pytest.mark.parametrize("quantization", ["int8", "bfloat16"])
def test_rounded_weights_are_multiplied_by_plain_torch_too(quantization, bench_of, asked_of):
    """And a row's answer is the same alone and in company."""
    asked = [one for one, _ in asked_of("gpt2")][:12]
    company = bench_of("gpt2", quantization=quantization, cpu_kernels=False).answers(asked)
    alone = bench_of("gpt2", quantization=quantization, cpu_kernels=False)
    for one in asked[::4]:
        assert alone.answers([one])[one.id].choices == company[one.id].choices


@pytest.mark.parametrize("quantization", ["int8", "bfloat16"])
@pytest.mark.parametrize("kind", ["t5", "bart", "gpt2", "llama"])
def test_rounded_weights_answer_alone_as_in_company(
    kind, quantization, bench_of, asked_of, monkeypatch
):
    # All linear modules of so small a model, not only those that gain by it.
    monkeypatch.setattr(pack, "__defaults__", (0,))
    asked = [one for one, _ in asked_of(kind)]
    together = bench_of(kind, quantization=quantization)
    company = together.answers(asked)
    assert_captured_or_fused(together)
    alone = bench_of(kind, quantization=quantization)
    for one in asked[::3]:
        assert alone.answers([one])[one.id].choices == company[one.id].choices
    same = sum(
        [list(each.token_ids) for each in company[one.id].choices] == expected
        for one, expected in asked_of(kind)
    )
    assert same < len(asked), "nothing was rounded"


@pytest.mark.parametrize("make", [fastest_linear(), PackedLinear])
@pytest.mark.parametrize("kind", ["t5", "bart", "gpt2", "llama"])
def test_packed_weights_change_no_answer(kind, make, bench_of, asked_of, monkeypatch):
    num_packed = []

    def pack_all(model, _):
        num_packed.append(pack(model, make, min_weights=0))

    monkeypatch.setattr(weight_layout, "pack", pack_all)
    bench = bench_of(kind)
    assert num_packed[0] >= 9
    model = bench.loop.engine.checkpoint.model
    assert any(isinstance(each, make) for each in model.modules())
    outputs = bench.answers(one for one, _ in asked_of(kind))
    assert_captured_or_fused(bench)
    for one, expected in asked_of(kind):
        assert [list(each.token_ids) for each in outputs[one.id].choices] == expected


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
        [request(0, "the mill", params=Params(max_new_tokens=100, do_sample=False))]
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
    engine.in_flight.runner.kv_cache.buffer_pool.put(cache.kv)
    with pytest.raises(InvariantBroken, match="2 sequences and pooled buffers have 1 tensors"):
        engine.check(bench.scheduler.running.values())


# When a step fails

CULPRIT = 3


def prompts() -> list[Request]:
    return [request(at, f"{at} {text}") for at, text in enumerate(checkpoints.sentences(2) * 4)]


def break_when(bench, name: str, fails) -> None:
    """Make a forward pass raise for which `fails` returns an error; it is given the ids."""
    runner = bench.loop.engine.in_flight.runner
    whole = getattr(runner, name)

    def run(first, *rest):
        running_sequences = bench.loop.engine.in_flight.running_sequences
        ids = {each.sequence.id for each in running_sequences.values() if each.cache in first}
        ids |= {each.id for each in first if hasattr(each, "prompt_ids")}
        result = whole(first, *rest)
        if (error := fails(ids)) is not None:
            raise error
        return result

    setattr(runner, name, run)


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
    # Who comes later is let in by the bound that was found.
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


# Which engine


def test_the_backend_is_in_flight_unless_another_is_named(folder_of):
    def engine(name: str) -> object:
        folder = str(folder_of("llama"))
        return load(EngineSpec(alias="a", checkpoint=folder, device="cpu", engine=name))

    assert isinstance(engine("inflight"), RouterBackend)
    assert isinstance(engine("auto"), RouterBackend)
    assert isinstance(engine("exact"), GenerateBackend)


@pytest.mark.parametrize(
    ("kind", "said"), [("nllb_moe", "rows compete"), ("rwkv", "generate raised")]
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

        def prefill_and_decode(sequences, caches, tokens):
            result = whole(sequences, caches, tokens)
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
