"""Core counts: how many cores the engines of a worker may use."""

import os
from collections.abc import Iterable
from pathlib import Path

from engine.protocol.cgroup import CGROUP, quota_cores

CPUS = Path("/sys/devices/system/cpu")


def threads_of_an_engine(num_engines: int) -> int:
    """An equal share of the cores.

    More threads than cores would compete, and every matrix product would take many times as long.
    """
    return max(usable_cores(CGROUP, CPUS) // num_engines, 1)


def usable_cores(cgroup: Path, cpus: Path) -> int:
    """The number of cores for this process, by its affinity and its container's quota."""
    if hasattr(os, "sched_getaffinity"):
        cores = whole_cores(os.sched_getaffinity(0), cpus)
    else:
        cores = os.cpu_count() or 1
    quota = quota_cores(cgroup)
    return max(min(cores, quota or cores), 1)


def whole_cores(numbers: Iterable[int], cpus: Path) -> int:
    """The number of physical cores behind these hardware threads.

    Two threads of one core share its multipliers, which one thread keeps busy. If both wait for
    each other after every product, nothing is left for the rest of the machine.
    """
    return len({core_of(number, cpus) for number in numbers})


def core_of(number: int, cpus: Path) -> str:
    """The hardware threads of a thread's core; the thread itself if the system does not tell."""
    try:
        return (cpus / f"cpu{number}/topology/thread_siblings_list").read_text().strip()
    except OSError:
        return str(number)
