"""JobEngines: the engines of one attempt's requests, behind the content cache."""

from collections.abc import Callable, Iterable

from db.outcome import Fence
from engine.protocol.request import Request
from worker.attempts.step import PendingRequest
from worker.cache.content_cache import ContentCache, Receive
from worker.engines.engine_client import EngineClient


class JobEngines:
    """Finds the engine of each request: that of its model, or of the job's model by default."""

    def __init__(
        self,
        client: EngineClient,
        client_of: Callable[[str], EngineClient | None],
        cache: ContentCache | None,
    ) -> None:
        """client_of: returns the engine of another model; None if this worker does not serve it"""
        self._client = client
        self._client_of = client_of
        self._cache = cache
        self._clients: dict[str, EngineClient | None] = {client.spec.alias: client}

    def engine_for(self, request: Request) -> EngineClient | None:
        """The engine of the request's model; None if this worker does not serve it."""
        if request.model is None:
            return self._client
        if request.model not in self._clients:
            self._clients[request.model] = self._client_of(request.model)
        return self._clients[request.model]

    def submit(self, pending: Iterable[PendingRequest], fence: Fence, on_output: Receive) -> None:
        for client, of_client in self._by_engine(pending):
            if self._cache is None:
                client.submit([each.request for each in of_client], on_output)
            else:
                requests = [(each.request, each.key) for each in of_client]
                self._cache.submit(client, fence, requests, on_output)

    def cancel(self, pending: Iterable[PendingRequest]) -> None:
        for client, of_client in self._by_engine(pending):
            ids = [each.request.id for each in of_client]
            if self._cache is None:
                client.cancel(ids)
            else:
                self._cache.cancel(client, ids)

    def _by_engine(
        self, pending: Iterable[PendingRequest]
    ) -> Iterable[tuple[EngineClient, list[PendingRequest]]]:
        by_engine: dict[EngineClient, list[PendingRequest]] = {}
        for each in pending:
            client = self.engine_for(each.request)
            assert client is not None
            by_engine.setdefault(client, []).append(each)
        return by_engine.items()
