"""MeasuredFile: a file that knows how much of it has been read."""

import io
from pathlib import Path

from cli.errors import SourceUnusable


class MeasuredFile(io.RawIOBase):
    """A file opened for reading in binary; `fraction` is 0 to 1.

    Raises SourceUnusable when it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        try:
            self._file = path.open("rb", buffering=0)
            self._size = path.stat().st_size
        except OSError as error:
            raise SourceUnusable(f"{path} cannot be read: {error.strerror}") from error
        self._num_read = 0

    @property
    def fraction(self) -> float | None:
        # A pipe has no size.
        return min(1.0, self._num_read / self._size) if self._size else None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # any buffer
        num_read = self._file.readinto(buffer) or 0
        self._num_read += num_read
        return num_read

    def close(self) -> None:
        self._file.close()
        super().close()
