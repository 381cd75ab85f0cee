"""A TCP proxy that a test can make cut, delay or swallow connections."""

import asyncio
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Self, TypeVar

CHUNK_BYTES = 65536
Returned = TypeVar("Returned")


class Proxy:
    """Forwards connections to a port of this machine; its event loop runs in a thread of its own.

    A fault lasts until `heal`. Swallowed bytes are lost for good, so `heal` closes their
    connections, as a gateway that forgot them would.
    """

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._server: asyncio.Server | None = None
        self._delay_seconds = 0.0
        self._refusing = False
        self._swallowing = False
        self._open: dict[asyncio.StreamWriter, asyncio.Task[None]] = {}
        self._broken: set[asyncio.StreamWriter] = set()  # connections that lost bytes

    @classmethod
    @contextmanager
    def started(cls, target_port: int) -> Iterator[Self]:
        proxy = cls(target_port)
        proxy._thread.start()
        proxy._server = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(proxy._serve, "127.0.0.1", 0), proxy._loop
        ).result()
        try:
            yield proxy
        finally:
            asyncio.run_coroutine_threadsafe(proxy._close(), proxy._loop).result()
            proxy._loop.call_soon_threadsafe(proxy._loop.stop)
            proxy._thread.join()
            proxy._loop.close()

    @property
    def port(self) -> int:
        assert self._server is not None
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    # --- faults ------------------------------------------------------------------------------

    def cut(self) -> None:
        """Break every connection, and those that are made from now on."""

        def act() -> None:
            self._refusing = True
            self._abort(self._open)

        self._call(act)

    def delay(self, seconds: float) -> None:
        """Delay all bytes in both directions."""
        self._call(lambda: setattr(self, "_delay_seconds", seconds))

    def swallow(self) -> None:
        """Receive bytes and forward none: a black hole."""
        self._call(lambda: setattr(self, "_swallowing", True))

    def heal(self) -> None:
        def act() -> None:
            self._refusing = self._swallowing = False
            self._delay_seconds = 0.0
            self._abort(self._broken)

        self._call(act)

    def _call(self, act: Callable[[], Returned]) -> Returned:
        async def call() -> Returned:
            return act()

        return asyncio.run_coroutine_threadsafe(call(), self._loop).result()

    def _abort(self, writers: Iterable[asyncio.StreamWriter]) -> None:
        for writer in list(writers):
            writer.transport.abort()

    # --- connections ---------------------------------------------------------------------------

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refusing:
            writer.transport.abort()
            return
        if self._swallowing:
            # Accepted, and never answered.
            self._broken.add(writer)
            await self._until_closed(reader, writer)
            return
        try:
            upstream = await asyncio.open_connection("127.0.0.1", self._target_port)
        except OSError:
            writer.transport.abort()
            return
        await asyncio.gather(
            self._forward(reader, upstream[1], writer),
            self._forward(upstream[0], writer, upstream[1]),
        )

    async def _until_closed(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        with suppress(OSError):
            while await reader.read(CHUNK_BYTES):
                pass
        self._broken.discard(writer)
        writer.transport.abort()

    async def _forward(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        back: asyncio.StreamWriter,
    ) -> None:
        """One direction of a connection; when it ends, both do."""
        task = asyncio.current_task()
        assert task is not None
        self._open[writer] = task
        try:
            while data := await reader.read(CHUNK_BYTES):
                if self._delay_seconds:
                    await asyncio.sleep(self._delay_seconds)
                if self._swallowing:
                    self._broken |= {writer, back}
                    continue
                writer.write(data)
                await writer.drain()
        except OSError:
            pass  # cut, by either end or by the proxy
        finally:
            del self._open[writer]
            self._broken.discard(writer)
            # Closed, not aborted: what was forwarded still arrives.
            writer.close()

    async def _close(self) -> None:
        assert self._server is not None
        self._server.close()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        self._abort(self._open)
        self._abort(self._broken)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
