"""Compare the speed of matrix products: by torch, by oneDNN with packed weights, by our gemm.

    python -m benchmarks.engine.products [--threads 2] [--rows 1,8,16,152,512]

It runs the four products of a layer of the 15M, the 60M and the T5 model, for more layers than the
caches can hold, as in a step. The kinds take turns. The output is the median GFLOP/s of 15 passes.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.engine.models import SHAPES
from engine.cpu.linear import PackedLinear, fastest_linear, plain_linear

MIN_BYTES = 60_000_000  # the weights of a pass
NUM_PASSES = 15
KINDS: dict[str, Callable[[Tensor, Tensor | None], nn.Module]] = {
    "torch": plain_linear,
    "oneDNN": PackedLinear,
}
if fastest_linear() is not PackedLinear:
    KINDS["packed gemm"] = fastest_linear()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", default="1,8,16,152,512")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"| model | rows | {' | '.join(KINDS)} |\n|{'---|' * (len(KINDS) + 2)}")
    for name in ("llama-15m", "llama-60m", "t5-small"):
        for num_rows in map(int, arguments.rows.split(",")):
            speeds = measured(sizes_of(name), num_rows)
            shown = " | ".join(f"{each:.0f}" for each in speeds)
            print(f"| {name} | {num_rows} | {shown} |", flush=True)


def sizes_of(name: str) -> list[tuple[int, int]]:
    """Return (in, out) of the products of a layer, merged as the engine merges them."""
    shape = SHAPES[name]
    gates = 2 if shape.family == "llama" else 1
    return [
        (shape.width, 3 * shape.width),
        (shape.width, shape.width),
        (shape.width, gates * shape.inner),
        (shape.inner, shape.width),
    ]


@torch.inference_mode()
def measured(sizes: list[tuple[int, int]], num_rows: int) -> list[float]:
    """Return the GFLOP/s of each kind."""
    num_weights = sum(num_in * num_out for num_in, num_out in sizes)
    num_layers = -(-MIN_BYTES // (4 * num_weights))
    weights = [torch.randn(num_out, num_in) for num_in, num_out in sizes] * num_layers
    rows = {num_in: torch.randn(num_rows, num_in) for num_in, _ in sizes}
    kinds = [[make(weight.clone(), None) for weight in weights] for make in KINDS.values()]
    seconds: list[list[float]] = [[] for _ in kinds]
    for _ in range(NUM_PASSES):
        for linears, own in zip(kinds, seconds, strict=True):
            one_pass(linears, rows)
            begun = time.perf_counter()
            one_pass(linears, rows)
            own.append(time.perf_counter() - begun)
    operations = 2 * num_rows * num_weights * num_layers
    return [operations / statistics.median(own) / 1e9 for own in seconds]


def one_pass(linears: list[nn.Module], rows: dict[int, Tensor]) -> None:
    for linear in linears:
        linear(rows[int(linear.in_features)])  # type: ignore[arg-type]  # the stubs say a module


if __name__ == "__main__":
    main()
