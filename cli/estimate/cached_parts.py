"""CachedParts: counts the requests of each document that the content cache can answer.

Most jobs have one request, which their recipe makes first. The parts of a longer document only the
engine can cut, so for these the cache stores the list of the last run. Keys are computed for the
model as it was loaded last.
"""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import UUID

from sqlalchemy.orm import Session

from db.queries import cache as cache_queries
from db.queries import throughput
from db.session import Database
from tasks.configuration.catalog import Catalog, Model
from tasks.configuration.masking import masking_of
from tasks.contracts.contract import Contract

if TYPE_CHECKING:
    from engine.protocol.model_card import ModelCard
    from engine.protocol.request import Request

KEYS_AT_ONCE = 1_000  # of one statement
DOCUMENTS_AT_ONCE = 500
KEY_BYTES = 32
NOBODY = UUID(int=0)
# Of all documents: to find the sentences of more takes longer than an estimate should.
MAX_CUT_CHARACTERS = 20_000_000


@dataclass(frozen=True, slots=True)
class _DocumentKeys:
    num_characters: int
    document: bytes | None  # what its parts are kept by; None: it shares nothing
    first: tuple[bytes, ...]  # the requests that the recipe begins with


class CachedParts:
    """Counts for the documents of one model and task, as they are added."""

    def __init__(self, database: Database, catalog: Catalog, model: Model) -> None:
        # Imported here: of all commands only this one asks a recipe.
        from worker.cache.content_cache import ContentCache
        from worker.cache.content_key import model_digest
        from worker.cache.settings import CacheSettings
        from worker.engines.fleet import engine_spec
        from worker.masking.masker import Maskers

        self._database = database
        self._model = model
        self._settings = CacheSettings.of(catalog.cache)
        keys = database.keys
        self._cache = ContentCache(
            self._settings, lambda finished: None, fingerprint=keys.fingerprint if keys else None
        )
        self._maskers = Maskers(masking_of(catalog.masking))
        self._card = loaded_card(database, model)
        self._digest = b""
        if self._card is not None:
            self._digest = model_digest(engine_spec(model, 1), self._card)
        self._num_cut_characters = 0
        self._pending: list[_DocumentKeys] = []
        self.num_documents = 0  # all of whose requests are answered
        self.num_parts = 0  # answered requests, of these and of others
        self.num_characters = 0  # about how much of the sources that is

    @property
    def is_known(self) -> bool:
        """Whether there is a cache at all."""
        return self._settings.enabled

    def add(self, contract: Contract) -> None:
        if not self.is_known or self._card is None:
            return
        self._pending.append(self._keys_of(contract))
        if len(self._pending) >= DOCUMENTS_AT_ONCE:
            self.look_up()

    def _keys_of(self, contract: Contract) -> _DocumentKeys:
        work = contract.work()
        num_characters = contract.num_characters
        has_seed = contract.seed is not None
        sharing = self._cache.sharing(contract.tenant, has_seed)
        if sharing is None or contract.use_cache is False or _continues(contract):
            return _DocumentKeys(num_characters, None, ())
        document = self._cache.document_key(contract.task, work, sharing, self._digest)
        first: list[bytes] = []
        if contract.task != "translate" or self._num_cut_characters < MAX_CUT_CHARACTERS:
            self._num_cut_characters += num_characters
            for request in self._first_requests(contract):
                key = self._cache.key(request, sharing, self._digest)
                if key is None:
                    return _DocumentKeys(num_characters, document, ())
                first.append(key.digest)
        return _DocumentKeys(num_characters, document, tuple(first))

    def _first_requests(self, contract: Contract) -> Iterator["Request"]:
        from worker.recipes import steps_of
        from worker.recipes.recipe import Work

        assert self._card is not None
        work = Work(
            NOBODY,
            contract.task,
            contract.work(),
            self._card,
            itertools.count(),
            languages=self._model.languages,
            tenant=contract.tenant,
            masker=self._maskers.masker_for(contract.task, contract.tenant),
        )
        try:
            yield from next(steps_of(work))
        except Exception:  # it will fail, or asks for nothing: an estimate can be made without
            return

    def look_up(self) -> None:
        """Look up the documents that were added since the last call."""
        pending, self._pending = self._pending, []
        if not pending:
            return
        with self._database.read() as session:
            documents = dict(
                row
                for some in _chunks([each.document for each in pending if each.document])
                for row in session.execute(
                    cache_queries.outputs_of(some, self._settings.ttl_seconds)
                ).all()
            )
            parts = [
                _keys_in(documents[each.document]) if each.document in documents else each.first
                for each in pending
            ]
            existing = self._existing(session, {key for each in parts for key in each})
        for each, keys in zip(pending, parts, strict=True):
            num_cached = sum(key in existing for key in keys)
            self.num_parts += num_cached
            if keys:
                self.num_documents += num_cached == len(keys)
                self.num_characters += round(each.num_characters * num_cached / len(keys))

    def _existing(self, session: Session, keys: Iterable[bytes]) -> set[bytes]:
        return {
            key
            for some in _chunks(sorted(keys))
            for key in session.scalars(cache_queries.keys_among(some, self._settings.ttl_seconds))
        }


def loaded_card(database: Database, model: Model) -> "ModelCard | None":
    """The card of the model in a live worker, or else of its newest result."""
    from engine.protocol.model_card import ModelCard

    with database.read() as session:
        live = [
            engine["card"]
            for engines in session.scalars(throughput.live_engines())
            for engine in engines or ()
            if engine["model"] == model.alias
        ]
        newest = session.scalars(throughput.newest_model_card(model.alias)).first()
    card = live[0] if live else newest
    try:
        return None if card is None else ModelCard.from_json(card)
    except (TypeError, KeyError):  # of another version of Tidemill
        return None


def _continues(contract: Contract) -> bool:
    """Whether the answer depends on another job's dialogue."""
    return getattr(contract, "previous_job_id", None) is not None


def _keys_in(joined: bytes) -> tuple[bytes, ...]:
    return tuple(joined[start : start + KEY_BYTES] for start in range(0, len(joined), KEY_BYTES))


def _chunks(keys: list[bytes]) -> Iterator[list[bytes]]:
    return (keys[start : start + KEYS_AT_ONCE] for start in range(0, len(keys), KEYS_AT_ONCE))
