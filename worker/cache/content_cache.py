"""ContentCache: equal requests are computed once.

    at the engine   an equal request waits for the running one's output
    in memory       recent outputs, before the database has them
    for good        `cache_entries`: written by the committer, read by `worker.cache.output_reader`

Invariants:

- A request that waits is sent itself if the running one fails, or samples without a seed. So a
  failure affects one job only, and no request waits for ever, since an engine client returns an
  output for every request.
- If the job of a running request is given up, the request goes on as long as others wait for it.
- An interactive request waits only for interactive ones, never for the bulk lane.
- An output is shared only if it is reproducible and came from the model that was asked: after a
  restart an engine may have loaded another.
"""

import json
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from db.outcome import Fence, FinishedRequest
from engine.protocol.output import Output
from engine.protocol.request import Request
from worker.cache.content_key import ContentKey, SharingScope, samples
from worker.cache.settings import CacheSettings
from worker.engines.engine_client import EngineClient
from worker.metrics.metrics import NO_METRICS, CacheResult, Metrics

# The age of answers in memory. They bridge the time until the database has them and no older
# look-up is running; they must not outlive an erasure from the database.
MAX_RECENT_CHARACTERS = 16 * 2**20
MAX_RECENT_SECONDS = 60.0


class Receive(Protocol):
    """Takes an output. is_shared: whether it was computed for another request"""

    def __call__(self, output: Output, is_shared: bool = False) -> None: ...


class Keep(Protocol):
    """Takes an entry to be written to the database; returns at once."""

    def __call__(self, finished: FinishedRequest, /) -> None: ...


Keyed = tuple[Request, ContentKey | None]  # None: it shares nothing


@dataclass(frozen=True, slots=True)
class Waiting:
    """A request that waits for an output, and its attempt."""

    request: Request
    receive: Receive
    fence: Fence


@dataclass(slots=True)
class Flight:
    """A request at an engine, and all requests that its output answers, by id."""

    leader: Request
    key: ContentKey
    client: EngineClient
    is_shared: bool = True  # False: the output is for the leader only
    waiting: dict[int, Waiting] = field(default_factory=dict)


class ContentCache:
    """Sits between the attempts of a worker and its engine clients. Any thread may call it.

    Outputs are handed out while no lock is held.

    Always: every flight is in `_sent`; those that other requests may join are also in `_open`; each
    request that waits for a flight is in `_joined`.
    """

    def __init__(
        self,
        settings: CacheSettings,
        keep: Keep,
        metrics: Metrics = NO_METRICS,
        fingerprint: Callable[[bytes], bytes] | None = None,
    ) -> None:
        """fingerprint: turns a digest into an HMAC under the encryption key; a plain digest would
        show whether a guessed text was asked
        """
        self._fingerprint = fingerprint
        self.settings = settings
        self._metrics = metrics
        self.num_hits = 0  # answers from the database or from memory
        self.num_shared = 0  # answers of requests that were already running
        self._keep = keep
        self._recent_seconds = min(settings.ttl_seconds, MAX_RECENT_SECONDS)
        # Reentrant, as in the engine client: a signal handler that releases jobs may hold it
        # already.
        self._lock = threading.RLock()
        self._open: dict[tuple[bytes, bool], Flight] = {}  # by key and whether interactive
        self._sent: dict[int, Flight] = {}  # by the id of the leader
        self._joined: dict[int, Flight] = {}  # by the id of each waiting request
        self._recent: OrderedDict[bytes, tuple[float, Output]] = OrderedDict()
        self._num_recent_characters = 0
        self._samplers: set[bytes] = set()  # models that sample by default
        self._used: set[bytes] = set()  # keys of database entries that were hit

    def sharing(self, tenant: str, has_seed: bool) -> SharingScope | None:
        """The scope in which a job shares answers; None if the cache is switched off."""
        if not self.settings.enabled:
            return None
        return SharingScope(None if self.settings.shared_between_tenants else tenant, has_seed)

    def key(self, request: Request, sharing: SharingScope, model: bytes) -> ContentKey | None:
        """A request's key; None if its answer may not be shared."""
        draws = model in self._samplers and samples(request.params) is None
        if draws and not sharing.has_seed:
            return None
        key = sharing.key(request, model)
        if key is None or self._fingerprint is None:
            return key
        return replace(key, digest=self._fingerprint(key.digest))

    def document_key(
        self, task: str, contract: Mapping[str, Any], sharing: SharingScope, model: bytes
    ) -> bytes:
        """The key of the entry that lists the keys of a job's requests; see `document_digest`."""
        digest = sharing.document_digest(task, contract, model)
        return digest if self._fingerprint is None else self._fingerprint(digest)

    def remember_document(self, fence: Fence, key: bytes, tenant: str | None, parts: bytes) -> None:
        """Store the keys of a job's requests, concatenated."""
        self._keep(FinishedRequest(fence, key, tenant, parts))

    def needs_database(self, key: ContentKey, is_interactive: bool) -> bool:
        """Whether an answer is neither in memory nor at the engine."""
        with self._lock:
            return self._find_recent(key) is None and self._flight(key, is_interactive) is None

    def read(
        self, client: EngineClient, request: Request, key: ContentKey, output: bytes
    ) -> Output | None:
        """Parse the stored output of a request; None if it cannot be read."""
        try:
            cached = Output.from_json(json.loads(output))
        except (ValueError, TypeError, LookupError):
            return None
        with self._lock:
            self.num_hits += 1
            self._used.add(key.digest)
        self._count(client, request, "hit")
        return cached

    def take_used(self) -> list[bytes]:
        """Take the keys of the database's entries that were used since the last call."""
        with self._lock:
            used, self._used = self._used, set()
        return sorted(used)

    # --- requests --------------------------------------------------------------------------

    def submit(
        self,
        client: EngineClient,
        fence: Fence,
        requests: Sequence[Keyed],
        on_output: Receive,
    ) -> None:
        """Answer an attempt's requests. Some outputs may arrive before this returns."""
        own: list[Request] = []  # not shared
        leaders: list[Request] = []
        answered: list[Output] = []
        with self._lock:
            for request, key in requests:
                if key is None:
                    own.append(request)
                elif (flight := self._flight(key, request.is_interactive)) is not None:
                    self._join(flight, Waiting(request, on_output, fence))
                    self._count(client, request, "joined")
                elif (output := self._find_recent(key)) is not None:
                    self.num_hits += 1
                    self._count(client, request, "hit")
                    answered.append(replace(output, request_id=request.id))
                else:
                    flight = Flight(request, key, client)
                    self._join(flight, Waiting(request, on_output, fence))
                    self._count(client, request, "miss")
                    self._send(flight)
                    leaders.append(request)
        if own:
            client.submit(own, on_output)
        if leaders:
            client.submit(leaders, self._receive)
        for output in answered:
            on_output(output, True)

    def cancel(self, client: EngineClient, request_ids: Iterable[int]) -> None:
        """Cancel requests; one that equal requests wait for keeps running."""
        unwanted: dict[EngineClient, list[int]] = {}
        with self._lock:
            for request_id in request_ids:
                flight = self._joined.pop(request_id, None)
                if flight is None:
                    unwanted.setdefault(client, []).append(request_id)
                    continue
                del flight.waiting[request_id]
                if not flight.waiting:
                    self._close(flight)  # a new request must not join a flight that is ending
                    unwanted.setdefault(flight.client, []).append(flight.leader.id)
        for its_client, ids in unwanted.items():
            its_client.cancel(ids)

    def _flight(self, key: ContentKey, is_interactive: bool) -> Flight | None:
        """The running request that an equal one may wait for."""
        interactive = self._open.get((key.digest, True))
        if interactive is not None or is_interactive:
            return interactive
        return self._open.get((key.digest, False))

    def _join(self, flight: Flight, waiting: Waiting) -> None:
        flight.waiting[waiting.request.id] = waiting
        self._joined[waiting.request.id] = flight

    def _send(self, flight: Flight) -> None:
        self._sent[flight.leader.id] = flight
        if flight.is_shared:
            self._open.setdefault((flight.key.digest, flight.leader.is_interactive), flight)

    def _close(self, flight: Flight) -> None:
        place = flight.key.digest, flight.leader.is_interactive
        if self._open.get(place) is flight:
            del self._open[place]

    # --- outputs ---------------------------------------------------------------------------

    def _receive(self, output: Output) -> None:
        """Hand a leader's output to all waiting requests, on its client's reader thread."""
        again: list[Flight] = []
        with self._lock:
            flight = self._sent.pop(output.request_id)
            self._close(flight)
            if self._may_share(flight, output):
                self._remember(flight, output)
                request_ids = list(flight.waiting)
            else:
                request_ids = [output.request_id] if output.request_id in flight.waiting else []
                again = self._without_leader(flight, has_failed=output.failure is not None)
            receivers = []
            for request_id in request_ids:
                del self._joined[request_id]
                receive = flight.waiting[request_id].receive
                is_shared = request_id != output.request_id
                self.num_shared += is_shared
                own = replace(output, request_id=request_id) if is_shared else output
                receivers.append((receive, own, is_shared))
            for each in again:
                self._send(each)
        for receive, own, is_shared in receivers:
            receive(own, is_shared)
        for each in again:
            each.client.submit([each.leader], self._receive)

    def _may_share(self, flight: Flight, output: Output) -> bool:
        """Whether the output also answers the equal requests that wait."""
        if not flight.is_shared or output.failure is not None or not output.choices:
            return False
        if any(choice.finish_reason == "cancelled" for choice in output.choices):
            return False
        if output.settings.get("do_sample") and not flight.key.sharing.has_seed:
            self._samplers.add(flight.key.model)
            return False
        return flight.key.model == flight.client.model_digest

    def _without_leader(self, flight: Flight, *, has_failed: bool) -> list[Flight]:
        """Let the waiting requests continue when their leader's output cannot be shared.

        After a failure one of them becomes the leader and the others wait for it, so that a fatal
        request is tried only once at a time. Otherwise each runs on its own.
        """
        waiting = [each for each in flight.waiting.values() if each.request is not flight.leader]
        if not waiting:
            return []
        flights = []
        if has_failed:
            first = next((each for each in waiting if each.request.is_interactive), waiting[0])
            following = Flight(first.request, flight.key, flight.client, flight.is_shared)
            flights.append(following)
            for each in waiting:
                self._join(following, each)
        else:
            for each in waiting:
                alone = Flight(each.request, flight.key, flight.client, is_shared=False)
                flights.append(alone)
                self._join(alone, each)
        return flights

    def _find_recent(self, key: ContentKey) -> Output | None:
        entry = self._recent.get(key.digest)
        if entry is None or time.monotonic() - entry[0] > self._recent_seconds:
            return None
        return entry[1]

    def forget_old(self) -> None:
        """Drop the answers in memory that are too old to be used."""
        with self._lock:
            while self._recent:
                at, output = next(iter(self._recent.values()))  # the oldest
                if time.monotonic() - at <= self._recent_seconds:
                    return
                self._recent.popitem(last=False)
                self._num_recent_characters -= num_characters(output)

    def _remember(self, flight: Flight, output: Output) -> None:
        key = flight.key
        before = self._recent.pop(key.digest, None)
        if before is not None:
            self._num_recent_characters -= num_characters(before[1])
        self._recent[key.digest] = time.monotonic(), output
        self._num_recent_characters += num_characters(output)
        while self._num_recent_characters > MAX_RECENT_CHARACTERS:
            _, (_, oldest) = self._recent.popitem(last=False)
            self._num_recent_characters -= num_characters(oldest)
        # If the leader's job was given up, the entry belongs to a job that waited.
        answered = flight.waiting.get(flight.leader.id) or next(iter(flight.waiting.values()), None)
        if answered is not None:
            entry = FinishedRequest(
                answered.fence, key.digest, key.sharing.tenant, to_bytes(output)
            )
            self._keep(entry)

    def _count(self, client: EngineClient, request: Request, result: CacheResult) -> None:
        self._metrics.count_cache(request.task, client.spec.alias, result)


def num_characters(output: Output) -> int:
    """The approximate memory of an output, in characters."""
    return 200 + sum(len(choice.text) for choice in output.choices)


def to_bytes(output: Output) -> bytes:
    fields: dict[str, Any] = {**output.to_json(), "request_id": 0}
    return _encode(fields).encode("utf-8", "surrogatepass")  # as json.loads reads it


_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
