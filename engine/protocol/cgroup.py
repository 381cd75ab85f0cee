"""Limits of a container's control group: memory and cores. Loads no torch, for the worker reads it,
too."""

from __future__ import annotations

from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def free_memory_bytes(cgroup: Path = CGROUP) -> int | None:
    """The memory that may still be taken; None where nothing bounds it."""
    try:
        limit = (cgroup / "memory.max").read_text().strip()
        used = int((cgroup / "memory.current").read_text())
    except (OSError, ValueError):
        return None
    return None if limit == "max" else max(int(limit) - used, 0)


def quota_cores(cgroup: Path = CGROUP) -> int | None:
    """The whole cores that the CPU quota is worth, at least 1; None where there is none."""
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
        return None if quota == "max" else max(int(quota) // int(period), 1)
    except (OSError, ValueError):
        return None
