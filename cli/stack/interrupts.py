"""Interrupts: counts the requests to stop this process."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self


class Interrupts:
    """Counts SIGINT and SIGTERM within its context, instead of interrupting what runs."""

    def __init__(self) -> None:
        self.count = 0
        self._wake = threading.Event()
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def any(self) -> bool:
        return self.count > 0

    def several(self) -> bool:
        return self.count > 1

    def raise_if_any(self) -> None:
        """Raise KeyboardInterrupt at a point where stopping is safe."""
        if self.count:
            raise KeyboardInterrupt

    def wait(self, seconds: float) -> bool:
        """Wait for an interrupt. Returns whether one came in time."""
        return self._wake.wait(seconds)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        self._wake.set()
