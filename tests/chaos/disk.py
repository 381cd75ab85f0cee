"""A small disk that can be filled: a file system in memory, if this user may mount one."""

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Self

NUM_BYTES = 2**30  # occupied only as far as it is written


@cache
def may_mount() -> bool:
    """Whether this user may mount; even root may not in most containers."""
    try:
        with SmallDisk.mounted():
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


@dataclass
class SmallDisk:
    folder: Path

    @classmethod
    @contextmanager
    def mounted(cls) -> Iterator[Self]:
        folder = Path(tempfile.mkdtemp())
        try:
            options = f"size={NUM_BYTES},mode=755"
            _run("mount", "-t", "tmpfs", "-o", options, "tidemill", str(folder))
            try:
                yield cls(folder)
            finally:
                _run("umount", "--lazy", str(folder))
        finally:
            folder.rmdir()

    @contextmanager
    def full(self) -> Iterator[None]:
        """Within this context the disk has no room for another page."""
        self._resize(shutil.disk_usage(self.folder).used)
        try:
            yield
        finally:
            self._resize(NUM_BYTES)

    def _resize(self, num_bytes: int) -> None:
        # Refused if more is in use by now.
        for _ in range(100):
            try:
                _run("mount", "-o", f"remount,size={num_bytes}", str(self.folder))
                return
            except subprocess.CalledProcessError:
                num_bytes = shutil.disk_usage(self.folder).used + 2**16
        raise AssertionError("the disk cannot be filled")


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
