"""Measure the cost of proving a model at load, and of reading its weights.

    python -m benchmarks.proof [--models phi3-1b,t5gemma-300m] [--dtypes bfloat16] [--threads 2]

Weights are random. Times are CPU seconds of this process, divided by its threads, so that other
processes have little effect. A pass is one forward pass of a decoder or an encoder.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.engine.models import Shape, write
from engine.backends import loader
from engine.checkpoint.loader import Checkpoint
from engine.proof.batch_probe import compute_seconds
from engine.proof.verdicts import ENVIRONMENT_VARIABLE
from engine.protocol.engine_spec import EngineSpec

SHAPES = {
    "phi3": Shape(family="phi3", width=512, layers=12, heads=8, inner=1536, vocab_size=32_000),
    "phi3-1b": Shape(family="phi3", width=2048, layers=16, heads=16, inner=8192, vocab_size=32_000),
    "t5gemma-300m": Shape(
        family="t5gemma", width=1024, layers=10, heads=16, inner=2816, vocab_size=32_000
    ),
}


def measure(name: str, folder: Path, dtype: str, threads: int) -> str:
    """Return a line of the table."""
    spec = EngineSpec(alias="m", checkpoint=str(folder), device="cpu", dtype=dtype, threads=threads)
    seconds: list[float] = []
    passes: list[nn.Module] = []
    read = Checkpoint.load

    def timed(spec: EngineSpec) -> Checkpoint:
        begun = compute_seconds()
        checkpoint = read(spec)
        seconds.append(compute_seconds() - begun)
        return checkpoint

    def count(module: nn.Module, _: Any) -> None:
        if isinstance(module, nn.Embedding):
            passes.append(module)

    Checkpoint.load = timed  # for this load alone
    hook = nn.modules.module.register_module_forward_pre_hook(count)
    begun = compute_seconds()
    try:
        engine = loader.load(spec)
    finally:
        Checkpoint.load = read
        hook.remove()
    proof = compute_seconds() - begun - seconds[0]
    num_millions = json.loads((folder / "sizes.json").read_text())["num_parameters"] / 1e6
    return (
        f"| {name}, {num_millions:.0f}M, {dtype} | {seconds[0]:.1f} | {proof:.1f} | {len(passes)} "
        f"| {engine.card.engine_reason} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default="phi3,phi3-1b,t5gemma-300m")
    parser.add_argument("--dtypes", default="bfloat16,float32")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    os.environ[ENVIRONMENT_VARIABLE] = ""  # store no verdict
    torch.set_num_threads(options.threads)
    print(
        "| Model | seconds to read it | to prove it | passes | |\n| --- | --- | --- | --- | --- |"
    )
    for name in options.models.split(","):
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder), SHAPES[name])
            for dtype in options.dtypes.split(","):
                print(measure(name, Path(folder), dtype, options.threads), flush=True)


if __name__ == "__main__":
    main()
