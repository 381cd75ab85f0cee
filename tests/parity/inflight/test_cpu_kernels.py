"""With packed weights, with rounded ones, and by plain torch."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from engine.attention.torch_backend import TorchAttentionBackend
from engine.checkpoint.weights import layout
from engine.cpu.linear import PackedLinear, pack
from engine.cpu.packed_gemm import PackedGemmLinear
from engine.runners.step_executor import EagerExecutor
from tests.parity.trials.coming_and_going import (
    KINDS,
)
from tests.parity.trials.every_setting import assert_captured_or_fused
from tests.processors import NEEDS_BFLOAT16

ROUNDED = ["int8", pytest.param("bfloat16", marks=NEEDS_BFLOAT16)]


@pytest.fixture(scope="module")
def engine_name() -> str:
    return "inflight"


@pytest.mark.parametrize("kind", KINDS)
def test_plain_torch_gives_the_same_answers_as_the_kernels(kind, bench_of, asked_of):
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


@pytest.mark.parametrize("quantization", ROUNDED)
def test_rounded_weights_are_multiplied_by_plain_torch_too(quantization, bench_of, asked_of):
    """And a row's answer is the same alone and in company."""
    asked = [one for one, _ in asked_of("gpt2")][:12]
    company = bench_of("gpt2", quantization=quantization, cpu_kernels=False).answers(asked)
    alone = bench_of("gpt2", quantization=quantization, cpu_kernels=False)
    for one in asked[::4]:
        assert alone.answers([one])[one.id].choices == company[one.id].choices


@pytest.mark.parametrize("quantization", ROUNDED)
@pytest.mark.parametrize("kind", ["t5", "bart", "gpt2", "llama"])
def test_rounded_weights_answer_alone_as_in_a_batch(
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


@pytest.mark.parametrize("make", [PackedGemmLinear, PackedLinear])
@pytest.mark.parametrize("kind", ["t5", "bart", "gpt2", "llama"])
def test_packed_weights_change_no_answer(kind, make, bench_of, asked_of, monkeypatch):
    num_packed = []

    def pack_all(model, _):
        num_packed.append(pack(model, make, min_weights=0))

    monkeypatch.setattr(layout, "pack", pack_all)
    bench = bench_of(kind)
    assert num_packed[0] >= 9
    model = bench.loop.engine.checkpoint.model
    assert any(isinstance(each, make) for each in model.modules())
    outputs = bench.answers(one for one, _ in asked_of(kind))
    assert_captured_or_fused(bench)
    for one, expected in asked_of(kind):
        assert [list(each.token_ids) for each in outputs[one.id].choices] == expected
