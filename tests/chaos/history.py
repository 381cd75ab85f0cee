"""The events of a run, one per line, each with its time and its cause."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID


@dataclass
class History:
    """A JSONL file; any thread may write. Instants are the machine's clock, in seconds."""

    path: Path
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def write(self, event: str, **fields: Any) -> None:
        line = json.dumps({"at": time.time(), "event": event, **fields}, default=_plain)
        with self._lock, self.path.open("a") as file:
            file.write(line + "\n")

    @contextmanager
    def fault(self, kind: str, **fields: Any) -> Iterator[None]:
        """A fault that lasts as long as the block."""
        self.write("fault", kind=kind, **fields)
        yield
        self.write("over", kind=kind, **fields)

    def read(self, *events: str) -> Iterator[dict[str, Any]]:
        with self.path.open() as file:
            for line in file:
                event: dict[str, Any] = json.loads(line)
                if not events or event["event"] in events:
                    yield event


def _plain(value: Any) -> str:
    assert isinstance(value, UUID), value
    return str(value)
