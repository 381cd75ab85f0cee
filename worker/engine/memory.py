"""Memory: how much of it is free for keys and values, and what need not be held."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")
UNKNOWN_BYTES = 4 * 2**30  # where the system does not say


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


def give_back_heap() -> None:
    """What was freed, and kept by the C library for later: a hundred megabytes after loading.
    Other libraries than glibc have no such call."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(ctypes.c_size_t(0))
