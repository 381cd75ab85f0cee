"""Cores: how many of this machine's the engines of a worker may use."""

import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def threads_of_an_engine(num_engines: int) -> int:
    """An equal share. More threads than cores would spin against each other, and every
    product would take many times as long."""
    return max(usable_cores(CGROUP) // num_engines, 1)


def usable_cores(cgroup: Path) -> int:
    """Those that this process may run on, or as many as a container's quota is worth."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quota = quota_cores(cgroup)
    return max(min(cores or 1, quota or cores or 1), 1)


def quota_cores(cgroup: Path) -> int | None:
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
        return None if quota == "max" else max(int(quota) // int(period), 1)
    except (OSError, ValueError):
        return None
