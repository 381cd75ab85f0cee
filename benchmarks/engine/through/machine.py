"""Measures the peaks of the machine: operations per second, and bytes read per second."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from benchmarks.engine.job import Job, Measured, answer

SIZES = (1024, 2048)  # the widths of square matrices
READ_BYTES = 256 * 1024**2  # far more than the caches can hold


def run(job: Job) -> Measured:
    """Return the peaks in the field `versions`, since they are no measurements of the workload."""
    torch.set_num_threads(job.threads)
    flops = max(peak_flops(size, getattr(torch, job.dtype), job.device) for size in SIZES)
    bandwidth = peak_bytes_read(job.device)
    return Measured(
        seconds=0.0,
        cpu_seconds=0.0,
        num_tokens=0,
        num_requests=0,
        first_seconds=0.0,
        versions={"flops": f"{flops:.4g}", "bytes_per_second": f"{bandwidth:.4g}"},
    )


def peak_flops(size: int, dtype: torch.dtype, device: str) -> float:
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(left)
    return 2 * size**3 / seconds_of(lambda: torch.matmul(left, right, out=out), device)


def peak_bytes_read(device: str) -> float:
    numbers = torch.ones(READ_BYTES // 4, device=device)
    return READ_BYTES / seconds_of(lambda: numbers.sum(), device)


def seconds_of(call: Callable[[], object], device: str, num_times: int = 9) -> float:
    """Return the shortest time of some calls, which is the time of an undisturbed machine."""
    seconds = []
    for _ in range(num_times + 2):
        started_at = time.perf_counter()
        call()
        if device != "cpu":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started_at)
    return min(seconds)


if __name__ == "__main__":
    answer(run)
