"""Memory: how much of it is free for keys and values, and what need not be held."""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path

import torch

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")
UNKNOWN_BYTES = 4 * 2**30  # where the system does not say

# Of glibc. Left to itself it moves these bounds by what was freed last.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT_BYTES = 8 * 2**20  # at the top of the heap
HEAP_BYTES = 32 * 2**20  # what is larger is not in the heap; glibc allows no more


def free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return min(available(MEMINFO), within_cgroup(CGROUP))


def available(meminfo: Path) -> int:
    """What the system could give without swapping."""
    try:
        lines = meminfo.read_text().splitlines()
    except OSError:
        return UNKNOWN_BYTES
    kilobytes = (int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    return 1024 * next(kilobytes, UNKNOWN_BYTES // 1024)


def within_cgroup(cgroup: Path) -> int:
    """What a container may still take; very much where nothing bounds it."""
    try:
        limit = (cgroup / "memory.max").read_text().strip()
        used = int((cgroup / "memory.current").read_text())
    except (OSError, ValueError):
        return 2**62
    return 2**62 if limit == "max" else max(int(limit) - used, 0)


def trim_heap() -> None:
    """Give back what loading a model left in it, a hundred megabytes, and keep from now on what a
    step takes and frees: new pages are filled with zeros first. Other libraries than glibc have
    no such calls.

    Python's collector leaves alone from now on what is there, and stays: to go through all of it
    is several steps' time.
    """
    gc.collect()
    gc.freeze()
    library = ctypes.CDLL(None)
    trim, option = getattr(library, "malloc_trim", None), getattr(library, "mallopt", None)
    if trim is None or option is None:
        return
    trim(ctypes.c_size_t(0))
    option(M_MMAP_THRESHOLD, HEAP_BYTES)
    option(M_TRIM_THRESHOLD, KEPT_BYTES)
