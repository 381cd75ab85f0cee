"""With a paged KV cache, as on a GPU, every answer equals that of `generate` alone.

Steps that a GPU would record run eagerly here, in the same shapes.
"""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from engine.attention.hf_plugin import install
from engine.backends.router import runner_of
from engine.checkpoint.loader import Checkpoint
from engine.errors import InvariantBroken, Unloadable
from engine.kv_cache.paged import PagedKVCache
from engine.kv_cache.planning.kv_shape import probe_kv_shape
from engine.kv_cache.planning.memory_planner import (
    DeviceMemory,
    max_paged_tokens,
    refuse_beyond_memory,
)
from engine.protocol.engine_spec import EngineSpec
from engine.runners.graph_executor import StepInputs, StepShape
from tests.parity.trials.alone import Alone
from tests.parity.trials.coming_and_going import (
    CULPRIT,
    GREEDY,
    break_when,
    let_come_and_go,
    prompts,
    request,
)
from tests.parity.trials.every_setting import alone_of, assert_varied, requests_of

FAMILIES = (
    "t5", "mt5", "bart", "pegasus", "marian", "m2m100", "mbart",
    "gpt2", "llama", "mistral", "qwen2", "qwen3", "opt", "gpt_neox",
)  # fmt: skip


@pytest.fixture(scope="module")
def engine_name() -> str:
    return "paged"


def kv_cache_of(bench):
    return bench.loop.engine.in_flight.runner.kv_cache


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_answer_from_a_paged_cache_is_the_answer_alone(kind, answered_alone_of, bench_of):
    answered, bench = answered_alone_of(kind), bench_of(kind, max_sequences=12)
    # Some requests of every setting, and those with long answers.
    asked = [
        each for at, each in enumerate(requests_of(kind)) if at % 3 == 0 or each[0] == "max_length"
    ]

    outputs = bench.answers(one for _, one, _ in asked)

    wrong, said = [], []
    for name, one, how in asked:
        expected = answered.answers(one, how)
        said += expected
        if [list(each.token_ids) for each in outputs[one.id].choices] != expected:
            wrong.append((name, outputs[one.id], expected))
    assert wrong == []
    assert_varied(said)
    shapes = bench.loop.engine.in_flight.runner.executor.inputs
    # Rows were padded, and longer than a page.
    assert {each.num_rows for each in shapes} <= {1, 2, 4, 8, 16}
    assert max(each.num_tokens for each in shapes) > 64


@pytest.mark.parametrize("kind", ["t5", "marian", "llama"])
def test_requests_that_come_and_go_in_a_paged_cache_answer_as_alone(
    kind, answered_alone_of, bench_of
):
    answered, draw = answered_alone_of(kind), random.Random(kind)
    asked = [
        (one, answered.answers(one, how)) for _, one, how in draw.sample(requests_of(kind), 12)
    ]
    bench = bench_of(kind, max_sequences=6, max_step_tokens=500)
    for _ in range(4):
        let_come_and_go(
            bench,
            asked,
            [
                (draw.randint(0, 4), draw.randrange(len(asked)), draw.choice([None, None, 0, 3, 9]))
                for _ in range(12)
            ],
        )


@pytest.mark.parametrize("name", ["prefill", "decode"])
@pytest.mark.parametrize("kind", ["bart", "gpt2"])
def test_a_step_that_fails_leaves_no_pages_owned(kind, name, bench_of):
    expected = bench_of(kind).answers(prompts())
    bench = bench_of(kind)
    break_when(bench, name, lambda ids: ValueError() if CULPRIT in ids else None)
    outputs = bench.answers(prompts())  # the cache is checked after every step
    assert outputs.pop(CULPRIT).failure.code == "generation_failed"
    expected.pop(CULPRIT)
    assert outputs == expected
    kv_cache_of(bench).check([])


def test_a_paged_cache_of_the_size_that_the_scheduler_counts_is_large_enough(bench_of):
    # Prompts and answers that end one column after a page, in the maximum number of rows.
    bench = bench_of("llama", max_sequences=6, max_cache_tokens=700)
    beams = replace(GREEDY, max_new_tokens=66, num_beams=3)
    bench.answers(request(at, "the mill", params=beams) for at in range(6))
    assert max(len(plan.sequences) for plan in bench.plans) == 2
    kv_cache_of(bench).check([])


def test_pages_of_sequences_that_do_not_run_are_noticed(bench_of):
    bench = bench_of("gpt2")
    bench.submit(request(0, "the mill"))
    bench.advance()
    kv_cache = kv_cache_of(bench)
    stray = kv_cache.new_sequence(2)
    with pytest.raises(InvariantBroken, match="rows are free"):
        bench.advance()
    stray.clear()
    bench.advance()
    kv_cache.kv[0, 0, 0, 0, 0] = 1.0
    with pytest.raises(InvariantBroken, match="blank"):
        bench.advance()


@pytest.mark.parametrize("kind", ["bart", "llama"])
def test_a_step_that_would_gather_too_many_keys_is_split_by_length(kind, folder_of, bench_of):
    """Long rows run apart from short ones; each answer is unchanged and goes to its own request."""
    alone, bench = Alone(kind, folder_of(kind)), bench_of(kind, max_sequences=12)
    step = bench.loop.engine.in_flight.runner.executor
    step.max_gathered_tokens = 8 * 64
    asked = requests_of(kind)[::4]
    texts = [
        replace(one, text=(one.text or "") + " river" * (90 * (one.id % 2))) for _, one, _ in asked
    ]
    outputs = bench.answers(texts)
    for one, (_, _, how) in zip(texts, asked, strict=True):
        got = [list(each.token_ids) for each in outputs[one.id].choices]
        assert got == alone_of(alone, one, how)
    shapes = step.inputs
    assert max(max(each.num_tokens, each.num_encoded_tokens) for each in shapes) > 64
    assert all(each.num_rows <= 4 or each.num_gathered_tokens <= 8 * 64 for each in shapes)


@pytest.mark.parametrize("kind", ["t5", "bart", "gpt2", "llama"])
def test_a_short_prompt_beside_a_long_one_is_computed_as_it_is_alone(kind, bench_of):
    """Prompts of similar length are padded to one call; a long one among short ones is not."""
    texts = ["the mill " * 40, *("river keeper " * at for at in range(1, 9))]
    bench = bench_of(kind, max_sequences=16)
    together = bench.answers(request(at, text) for at, text in enumerate(texts))
    for at, text in enumerate(texts):
        (alone,) = bench.answers([request(100 + at, text)]).values()
        assert alone.choices == together[at].choices


class OnlyOn(TorchDispatchMode):
    """Records every operation that touches another device."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device
        self.others: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for each in tree_leaves((args, kwargs, result)):
            if isinstance(each, torch.Tensor) and each.device.type != self.device:
                self.others.append(str(func))
        return result


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_recorded_step_reads_no_number_back_and_copies_none(kind, folder_of):
    """Tensors on `meta` have no values, so that reading one fails, and no operation may copy from
    the host. Both would end the capture of a CUDA graph."""
    spec = EngineSpec(alias=kind, checkpoint=str(folder_of(kind)), device="cpu")
    checkpoint = Checkpoint.load(spec)
    install(checkpoint.model)
    shape = replace(probe_kv_shape(checkpoint.model), device=torch.device("meta"))
    checkpoint.model.to("meta")
    kv_cache = PagedKVCache(shape, max_rows=8, max_tokens=1000)
    runner = runner_of(checkpoint, kv_cache)
    num_encoded_tokens = 64 if checkpoint.config.is_encoder_decoder else 0
    inputs = StepInputs(StepShape(4, 128, num_encoded_tokens), kv_cache)
    with torch.inference_mode(), OnlyOn("meta") as watched:
        logits = runner.executor.forward(inputs)
    assert logits.shape[0] == 4
    assert watched.others == []


def test_more_cache_tokens_than_fit_a_gpu_are_refused_with_the_number_that_fits(folder_of):
    spec = EngineSpec(
        alias="mill",
        checkpoint=str(folder_of("gpt2")),
        device="cpu",
        max_sequences=32,
        max_step_tokens=8192,
    )
    checkpoint = Checkpoint.load(spec)
    shape = probe_kv_shape(checkpoint.model)
    memory = DeviceMemory(free_bytes=2**30, total_bytes=2**30)
    room = max_paged_tokens(spec, checkpoint, shape, memory)
    assert 0 < room * shape.bytes_per_token < 2**30
    refuse_beyond_memory(replace(spec, max_cache_tokens=room), room)
    with pytest.raises(Unloadable, match=f"'mill' is to hold {room + 1} .* room for {room} "):
        refuse_beyond_memory(replace(spec, max_cache_tokens=room + 1), room)


def test_a_paged_cache_larger_than_memory_is_refused_in_words(bench_of):
    with pytest.raises(Unloadable, match="no room for the 1000000000000 tokens that model 'gpt2'"):
        bench_of("gpt2", max_cache_tokens=10**12)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", FAMILIES)
def test_every_answer_of_a_gpu_is_the_answer_alone(kind, folder_of, bench_of):
    alone = Alone(kind, folder_of(kind), device="cuda")
    bench = bench_of(kind, device="cuda", dtype="float32", max_sequences=12)
    asked = requests_of(kind)
    outputs = bench.answers(one for _, one, _ in asked)
    graphs = bench.loop.engine.in_flight.runner.executor.graphs
    assert graphs.record is not None  # recording was never given up
    assert graphs.recorded
    wrong = [
        (name, outputs[one.id])
        for name, one, how in asked
        if [list(each.token_ids) for each in outputs[one.id].choices] != alone_of(alone, one, how)
    ]
    assert wrong == []
