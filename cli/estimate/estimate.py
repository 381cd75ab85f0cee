"""Estimate: documents, parts, tokens, cached requests, and the expected time."""

import json
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

from cli.estimate.cached_parts import CachedParts
from cli.estimate.measured_rate import MeasuredRate
from cli.estimate.token_counter import TokenCounter
from db.queries import throughput
from db.session import Database
from tasks.configuration.catalog import Catalog, Model
from tasks.contracts.contract import Contract

SENTENCE_END = re.compile(r"[.!?…]+[\"'”’»)]*\s|[。！？।]|\n")
HEADING = re.compile(r"^#{1,6}[ \t]+\S", re.MULTILINE)
CONTEXT_SETTINGS = ("n_positions", "max_position_embeddings", "n_ctx", "max_source_positions")


@dataclass(slots=True, kw_only=True)
class Share:
    """The part of an estimate for one model and task."""

    model: str
    task: str
    measured: MeasuredRate | None
    tokens_by: str = ""
    num_documents: int = 0
    num_parts: int = 0
    num_characters: int = 0
    num_tokens: int = 0  # of the sources
    num_cached_documents: int | None = None  # whole; None: there is no content cache
    num_cached_parts: int | None = None  # of these and of others
    num_characters_to_do: int = 0
    num_waiting: int = 0  # jobs that were there before
    num_waiting_characters: int = 0

    @property
    def seconds(self) -> float | None:
        """Seconds at the measured rate; None without a measurement."""
        return self._seconds_of(self.num_characters_to_do)

    @property
    def seconds_before(self) -> float:
        """Seconds of the jobs that wait before, as far as is known."""
        return self._seconds_of(self.num_waiting_characters) or 0.0

    def _seconds_of(self, num_characters: int) -> float | None:
        if self.measured is None or self.measured.tokens_per_second is None:
            return None
        return self.measured.tokens_of(num_characters) / self.measured.tokens_per_second

    @property
    def as_json(self) -> dict[str, Any]:
        measured = self.measured
        rate = measured.tokens_per_second if measured else None
        return {
            "model": self.model,
            "task": self.task,
            "documents": self.num_documents,
            "parts": self.num_parts,
            "characters": self.num_characters,
            "tokens": self.num_tokens,
            "tokens_by": self.tokens_by,
            "cached_documents": self.num_cached_documents,
            "cached_parts": self.num_cached_parts,
            "tokens_per_second": None if rate is None else round(rate, 1),
            "measured_results": measured.num_results if measured else 0,
            "seconds": _rounded(self.seconds),
            "waiting_jobs": self.num_waiting,
            "waiting_seconds": _rounded(self.seconds_before),
        }


@dataclass(frozen=True, slots=True)
class Estimate:
    """The total. Models run in parallel, so it takes as long as the slowest of them."""

    shares: tuple[Share, ...]

    @property
    def seconds(self) -> float | None:
        """Seconds of the slowest model; None if one has no measurement."""
        return self._slowest(lambda share: share.seconds)

    @property
    def seconds_with_waiting(self) -> float | None:
        """Seconds including the jobs that wait before; None if one has no measurement."""
        return self._slowest(
            lambda share: None if share.seconds is None else share.seconds + share.seconds_before
        )

    def _slowest(self, seconds_of: Callable[[Share], float | None]) -> float | None:
        by_model: dict[str, float] = {}
        for share in self.shares:
            seconds = seconds_of(share)
            if seconds is None:
                return None
            by_model[share.model] = by_model.get(share.model, 0.0) + seconds
        return max(by_model.values(), default=0.0)

    @property
    def as_json(self) -> dict[str, Any]:
        return {
            "documents": sum(share.num_documents for share in self.shares),
            "parts": sum(share.num_parts for share in self.shares),
            "characters": sum(share.num_characters for share in self.shares),
            "tokens": sum(share.num_tokens for share in self.shares),
            "cached_documents": _sum(share.num_cached_documents for share in self.shares),
            "cached_parts": _sum(share.num_cached_parts for share in self.shares),
            "seconds": _rounded(self.seconds),
            "seconds_with_waiting": _rounded(self.seconds_with_waiting),
            "models": [share.as_json for share in self.shares],
        }


def estimated(database: Database, catalog: Catalog, contracts: Iterable[Contract]) -> Estimate:
    """Estimate these contracts; each is read once and none is stored."""
    gatherings: dict[tuple[str, str], _Gathering] = {}
    for contract in contracts:
        source = getattr(contract, "source_language", None)
        model = catalog.route(contract.task, contract.model, source, contract.language_of_output)
        key = (model.alias, contract.task)
        if key not in gatherings:
            gatherings[key] = _Gathering(database, catalog, model, contract.task)
        gatherings[key].add(contract)
    shares = {key: each.share() for key, each in gatherings.items()}
    with database.read() as session:
        waiting = session.execute(throughput.waiting_characters([model for model, _ in shares]))
        for model_name, task, num_jobs, num_characters in waiting:
            if (share := shares.get((model_name, task))) is not None:
                share.num_waiting, share.num_waiting_characters = num_jobs, num_characters
    return Estimate(tuple(shares.values()))


class _Gathering:
    """Collects the documents of one model and task while they are read."""

    def __init__(self, database: Database, catalog: Catalog, model: Model, task: str) -> None:
        self._measured = MeasuredRate.of(database, model.alias, task)
        measured = self._measured.characters_per_token if self._measured else None
        self._counter = TokenCounter(model, measured)
        self._room = _room_tokens(database, model)
        self._share = Share(model=model.alias, task=task, measured=self._measured)
        self._cached = CachedParts(database, catalog, model)

    def add(self, contract: Contract) -> None:
        work = contract.work()
        text = work.get("text") or "\n".join(each["content"] for each in work["messages"])
        num_tokens = self._counter.add(text)
        share = self._share
        share.num_documents += 1
        share.num_characters += contract.num_characters
        share.num_tokens += num_tokens
        num_parts = self._parts_of(text, num_tokens)
        if work.get("by_section"):
            num_parts = max(num_parts, len(HEADING.findall(text)))
        share.num_parts += num_parts
        self._cached.add(contract)

    def _parts_of(self, text: str, num_tokens: int) -> int:
        """The sentences of a translation, the parts of a long text to summarize, else one."""
        if self._share.task == "translate":
            pieces = SENTENCE_END.split(text.strip())
            return max(sum(bool(piece.strip()) for piece in pieces), 1)
        if self._share.task != "summarize" or self._room is None or num_tokens <= self._room:
            return 1
        if self._measured is not None and self._measured.characters_per_part is not None:
            return ceil(len(text) / self._measured.characters_per_part)
        return ceil(num_tokens / self._room)

    def share(self) -> Share:
        share, cached = self._share, self._cached
        share.tokens_by = self._counter.method
        share.num_characters_to_do = share.num_characters
        if cached.is_known:
            cached.look_up()
            share.num_cached_documents = cached.num_documents
            share.num_cached_parts = cached.num_parts
            share.num_characters_to_do -= cached.num_characters
        return share


def _room_tokens(database: Database, model: Model) -> int | None:
    """The most tokens of a request of a model; None if unknown."""
    limits = [model.max_input_tokens]
    with database.read() as session:
        card = session.scalars(throughput.newest_model_card(model.alias)).first()
    limits.append((card or {}).get("max_context_tokens"))
    with suppress(OSError, ValueError):
        config = json.loads((Path(model.checkpoint) / "config.json").read_text(encoding="utf-8"))
        limits += [config.get(name) for name in CONTEXT_SETTINGS]
    return min((each for each in limits if isinstance(each, int) and each > 0), default=None)


def _sum(numbers: Iterable[int | None]) -> int | None:
    """The sum of the numbers; None if there are none."""
    known = [each for each in numbers if each is not None]
    return sum(known) if known else None


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)
