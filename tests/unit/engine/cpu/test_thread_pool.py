"""Compiled functions give torch's results, whatever the layout of their tensors."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaConfig, LlamaMLP

from engine.cpu.fusion import fuse
from engine.cpu.kernels.activation import GELU, SILU, GatedMLP, gated
from engine.cpu.kernels.gemm_microkernel import TILE_ROWS
from engine.cpu.kernels.llvm_ir import LANES
from engine.cpu.kernels.prefill_attention import multiply
from engine.cpu.kernels.softmax import softmax
from engine.cpu.kernels.transpose import PANEL_WIDTH


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.mark.parametrize("shape", [(1, 24), (16, 1, 1000), (1, 300, 72)])
@pytest.mark.parametrize(
    ("kind", "activation"),
    [(SILU, nn.functional.silu), (GELU, nn.GELU(approximate="tanh"))],
)
def test_an_activation_is_that_of_torch(kind, activation, shape):
    both = 20 * torch.randn(*shape[:-1], 2 * shape[-1])
    gate, up = both.chunk(2, dim=-1)
    torch.testing.assert_close(gated(gate, up, kind), activation(gate) * up)
    assert gated(gate, up, kind).shape == shape
    far = torch.tensor([[-1e4, -90.0, 0.0, 90.0, 1e4]])
    torch.testing.assert_close(gated(far, torch.ones(1, 5), kind), activation(far))


def test_the_mlp_of_llama_is_replaced_if_its_activation_is_silu():
    sizes = {"hidden_size": 16, "intermediate_size": 40, "num_attention_heads": 2}
    x = torch.randn(5, 16)
    mlp = LlamaMLP(LlamaConfig(**sizes))
    model: Any = nn.Sequential(mlp)
    assert fuse(model) == 1
    assert type(model[0]) is GatedMLP
    torch.testing.assert_close(model(x), mlp(x))
    model = nn.Sequential(LlamaMLP(LlamaConfig(**sizes, hidden_act="gelu")))
    assert fuse(model) == 0


def test_the_softmax_is_that_of_torch_for_any_length():
    for length in (1, 2, LANES, 63, 64, 65, 5003):
        scores = 30 * torch.randn(length)
        expected = torch.softmax(scores, dim=0)
        softmax(scores.data_ptr(), length)
        torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("num_columns", [LANES, 2 * LANES, 5 * LANES])
@pytest.mark.parametrize("depth", [1, 2, 37])
@pytest.mark.parametrize("num_rows", range(1, TILE_ROWS + 1))
def test_the_microkernel_multiplies_and_writes_no_further(
    num_rows: int, depth: int, num_columns: int
) -> None:
    left, right = torch.randn(num_rows, depth + 3), torch.randn(depth, num_columns + 5)
    padded = nn.functional.pad(right[:, :num_columns], (0, -num_columns % PANEL_WIDTH))
    panels = padded.view(depth, -1, PANEL_WIDTH).transpose(0, 1).contiguous()
    expected = left[:, :depth] @ right[:, :num_columns]
    for columns, stride, panel_stride in (
        (right, right.stride(0), PANEL_WIDTH),  # panels beside each other in each row
        (panels, PANEL_WIDTH, depth * PANEL_WIDTH),
    ):
        out = torch.full((num_rows + 1, num_columns + 1), torch.nan)
        multiply(
            num_rows, left.data_ptr(), left.stride(0), columns.data_ptr(), stride, panel_stride,
            depth, out.data_ptr(), out.stride(0), num_columns,
        )  # fmt: skip
        torch.testing.assert_close(out[:num_rows, :num_columns], expected)
        assert out[num_rows].isnan().all()
        assert out[:, num_columns].isnan().all()


SILU_OF_MINUS_ONE = """
import torch
from engine.cpu.kernels.activation import SILU, gated
print(float(gated(-torch.ones(1, 1), torch.ones(1, 1), SILU)))
"""


def test_a_cached_function_is_recompiled_when_a_file_it_calls_changes(tmp_path: Path) -> None:
    root = Path(__file__).parents[4]
    copied = shutil.copytree(
        root / "engine", tmp_path / "engine", ignore=shutil.ignore_patterns("__pycache__")
    )

    def said() -> float:
        command = [sys.executable, "-c", SILU_OF_MINUS_ONE]
        return float(subprocess.check_output(command, cwd=tmp_path, text=True))

    assert said() == pytest.approx(-1 / (1 + math.e), abs=1e-6)
    kernel = copied / "cpu" / "kernels" / "softmax.py"  # the gate calls its exponential
    text = kernel.read_text()
    kernel.write_text(text.replace("    x = max(x, np.float32(-87.0))", "    x = np.float32(0)"))
    assert said() == pytest.approx(-1 / 2, abs=1e-6)


def test_processes_that_start_together_compile_once(tmp_path: Path) -> None:
    told = {"NUMBA_CACHE_DIR": str(tmp_path), "NUMBA_DEBUG_CACHE": "1"}
    starting = [
        subprocess.Popen(
            [sys.executable, "-c", "import engine.cpu.kernels.activation"],
            env={**os.environ, **told}, stdout=subprocess.PIPE, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    printed = [each.communicate()[0] for each in starting]
    assert [each.returncode for each in starting] == [0, 0]
    # Each process reports what it stored on disk and what it found. The first to compile may find
    # what another has compiled since.
    kept = [line for each in printed for line in each.splitlines() if "data saved to" in line]
    assert len(kept) == len(set(kept)) > 0
