"""Limits of a container's control group: memory and cores.

Loads no torch; the worker uses it too.
"""

from __future__ import annotations

from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def free_memory_bytes(cgroup: Path = CGROUP) -> int | None:
    """The memory that the container may still take; None without a limit."""
    try:
        limit = (cgroup / "memory.max").read_text().strip()
        used = int((cgroup / "memory.current").read_text())
    except (OSError, ValueError):
        return None
    return None if limit == "max" else max(int(limit) - used, 0)


def quota_cores(cgroup: Path = CGROUP) -> int | None:
    """The number of whole cores in the CPU quota, at least 1; None without a quota."""
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
        return None if quota == "max" else max(int(quota) // int(period), 1)
    except (OSError, ValueError):
        return None
