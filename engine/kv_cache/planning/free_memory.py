"""The memory that is free for keys and values, and the settings of the heap."""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path

import torch

from engine.protocol import cgroup

MEMINFO = Path("/proc/meminfo")
UNKNOWN_BYTES = 4 * 2**30  # where the system has no figure

# glibc's options. By default it adapts these bounds to the last freed sizes.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT_BYTES = 8 * 2**20  # at the top of the heap
HEAP_BYTES = 32 * 2**20  # what is larger is not in the heap; glibc allows no more


def free_bytes(device: torch.device) -> int:
    """The free memory of a device; on a CPU, within the container's limit."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    in_container = cgroup.free_memory_bytes()
    on_machine = available_bytes(MEMINFO)
    return on_machine if in_container is None else min(on_machine, in_container)


def available_bytes(meminfo: Path) -> int:
    """The memory that the system can provide without swapping."""
    try:
        lines = meminfo.read_text().splitlines()
    except OSError:
        return UNKNOWN_BYTES
    kilobytes = (int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    return 1024 * next(kilobytes, UNKNOWN_BYTES // 1024)


def trim_heap() -> None:
    """Return the memory that loading freed to the system; from now on keep what steps free.

    New pages are filled with zeros first, so a step should reuse memory. Only glibc has these
    calls.

    All objects that exist now are frozen in Python's garbage collector: a collection that visits
    them takes as long as several steps.
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
