"""Enqueues the contracts of a row parser as a batch, once, with a progress bar."""

import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Self

from cli.ingest.errors_file import ErrorsFile
from cli.ingest.row_parsing import Refusal, RowParser, SourcePart
from cli.output.progress import EnqueueProgress, states_in_words
from cli.output.terminal import note, plural, warn
from db.reading.batches import FoundBatch, find_batches
from tasks.configuration import settings
from tasks.contracts.contract import Contract
from tasks.submission.batch import submit_batch
from tasks.submission.submitted import SubmittedBatch

MAX_REPORTED = 20  # a file in which every line is wrong says so soon enough


@dataclass(frozen=True, slots=True, kw_only=True)
class Enqueued:
    """The batch, and the numbers of jobs."""

    batch: FoundBatch | None  # None: nothing was enqueued
    num_new: int
    num_known: int  # there before, under the same run key
    num_bad: int
    num_partial: int = 0  # documents parts of which gave no text
    was_complete: bool = False  # the run key's batch had been enqueued to the end before
    empty: tuple[str, ...] = ()  # sources that should have had rows
    failures: tuple[str, ...] = ()  # what other sources could not be read for

    @property
    def sentence(self) -> str:
        if self.batch is None:
            return "nothing was enqueued"
        if self.was_complete:
            num_jobs = plural(self.batch.num_jobs, "job")
            return (
                f"already enqueued under run key {self.batch.run_key} as batch "
                f"{self.batch.name}: {num_jobs} ({states_in_words(self.batch)})"
            )
        known = f", {plural(self.num_known, 'job')} there before" if self.num_known else ""
        bad = f", {plural(self.num_bad, 'row')} left out" if self.num_bad else ""
        partial = f", {self.num_partial:,} with parts without text" if self.num_partial else ""
        jobs = plural(self.num_new, "job")
        return f"enqueued {jobs} as batch {self.batch.name}{known}{bad}{partial}"

    @property
    def as_json(self) -> dict[str, object]:
        return {
            "batch": self.batch.name if self.batch else None,
            "batch_id": str(self.batch.id) if self.batch else None,
            "run_key": self.batch.run_key if self.batch else None,
            "num_new": self.num_new,
            "num_known": self.num_known,
            "num_bad": self.num_bad,
            "num_partial": self.num_partial,
            "empty_sources": list(self.empty),
            "failed_sources": list(self.failures),
        }


class Complaints:
    """Reports bad rows, the first few on the terminal; a file gets all."""

    def __init__(self, errors: Path | None = None) -> None:
        self.num_held_back = 0
        self._num_reported = 0
        self._file = ErrorsFile(errors) if errors is not None else None

    @contextmanager
    def opened(self, parts: Sequence[SourcePart]) -> Iterator[Self]:
        """Open the file before anything is enqueued; raises CommandError if that fails."""
        if self._file is not None:
            self._file.require_apart_from(parts)
            self._file.open()
        try:
            yield self
        finally:
            self.close()

    def report(self, sentence: str) -> None:
        if self._num_reported < MAX_REPORTED:
            self._num_reported += 1
            warn(sentence)
        else:
            self.num_held_back += 1

    def keep(self, refusal: Refusal) -> None:
        if self._file is not None:
            self._file.write(refusal)

    def close(self) -> None:
        if self.num_held_back:
            place = self._file.path if self._file is not None else "`--errors FILE` keeps them"
            warn(f"... and {plural(self.num_held_back, 'more row')}: {place}")
            self.num_held_back = 0
        if self._file is not None:
            self._file.close()


def complete_batch(run_key: str | None) -> FoundBatch | None:
    """The complete batch of a run key; None if there is none."""
    if run_key is None:
        return None
    batches = find_batches(run_key, database=settings.database())
    return next(
        (batch for batch in batches if batch.run_key == run_key and batch.closed_at is not None),
        None,
    )


def enqueue(
    parser: RowParser,
    complaints: Complaints,
    *,
    name: str,
    run_key: str | None,
    tenant: str = "default",
    metadata: dict[str, str] | None = None,
    strict: bool = False,
) -> Enqueued:
    """Enqueue every contract of the row parser.

    strict: enqueue nothing if a single row is bad, or a source empty or unreadable; this reads the
            source twice. Otherwise a batch with such a source stays open: the same run key adds to
            it
    """
    if (batch := complete_batch(run_key)) is not None:
        return Enqueued(
            batch=batch, num_new=0, num_known=batch.num_jobs, num_bad=0, was_complete=True
        )
    with complaints.opened(parser.parts), _saying_what_is_kept(name, run_key) as on_kept:
        if strict:
            parser.check()
            if parser.num_bad or not parser.is_complete:
                return _enqueued(parser, None)
        with EnqueueProgress(name) as progress:
            contracts = _unless_empty(parser.contracts())
            if contracts is None:
                return _enqueued(parser, None)

            def tell(num_kept: int) -> None:
                on_kept(num_kept)
                progress.show(num_kept, parser.fraction)

            on_kept(0)
            submitted = submit_batch(
                contracts,
                name=name,
                run_key=run_key,
                tenant=tenant,
                metadata=metadata,
                on_progress=tell,
                is_complete=lambda: run_key is None or parser.is_complete,
            )
    return _enqueued(parser, submitted)


def _enqueued(parser: RowParser, submitted: SubmittedBatch | None) -> Enqueued:
    batches = find_batches(submitted.id, database=settings.database()) if submitted else []
    return Enqueued(
        batch=batches[0] if batches else None,
        num_new=submitted.num_new if submitted else 0,
        num_known=submitted.num_known if submitted else 0,
        num_bad=parser.num_bad,
        num_partial=parser.num_partial,
        empty=tuple(parser.empty),
        failures=tuple(parser.failures),
    )


@contextmanager
def _saying_what_is_kept(name: str, run_key: str | None) -> Iterator[Callable[[int], None]]:
    """On an error in the middle, report how many jobs are enqueued and how to continue.

    Yields a callback that takes the number of stored jobs.
    """
    num_kept: int | None = None  # None: submitting has not begun

    def tell(number: int) -> None:
        nonlocal num_kept
        num_kept = number

    try:
        yield tell
    except BaseException:
        if num_kept is None:
            note("nothing was enqueued")
        else:
            # What was committed last may not have been told.
            number = f", at least {plural(num_kept, 'job')}" if num_kept else ""
            go_on = (
                f"`tidemill cancel --batch {shlex.quote(name)}` takes it back"
                if run_key is None
                else "the same command goes on where this ended"
            )
            note(f"what is enqueued stays{number}; {go_on}")
        raise


def _unless_empty(contracts: Iterator[Contract]) -> Iterator[Contract] | None:
    """The same contracts; None if there is none, so that no empty batch is stored."""
    first = next(contracts, None)
    return None if first is None else chain([first], contracts)
