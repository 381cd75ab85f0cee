"""Enqueuing: an intake becomes a batch, with a progress bar, once."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

from cli.ingest.row_parsing import Intake
from cli.output.progress import EnqueueProgress, states_in_words
from cli.output.terminal import note, plural, warn
from db.reading import FoundBatch, find_batches
from tasks import settings
from tasks.contract import Contract
from tasks.submit import submit_batch

MAX_REPORTED = 20  # a file in which every line is wrong says so soon enough


@dataclass(frozen=True, slots=True, kw_only=True)
class Enqueued:
    """What came of enqueuing."""

    batch: FoundBatch | None  # None: nothing was enqueued
    num_new: int
    num_known: int  # there before, under the same run key
    num_bad: int
    was_complete: bool = False  # the run key's batch had been enqueued to the end before

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
        return f"enqueued {plural(self.num_new, 'job')} as batch {self.batch.name}{known}{bad}"

    @property
    def as_json(self) -> dict[str, object]:
        return {
            "batch": self.batch.name if self.batch else None,
            "batch_id": str(self.batch.id) if self.batch else None,
            "run_key": self.batch.run_key if self.batch else None,
            "num_new": self.num_new,
            "num_known": self.num_known,
            "num_bad": self.num_bad,
        }


class Complaints:
    """Reports bad rows, and stops repeating itself."""

    def __init__(self) -> None:
        self.num_held_back = 0
        self._num_reported = 0

    def report(self, sentence: str) -> None:
        if self._num_reported < MAX_REPORTED:
            self._num_reported += 1
            warn(sentence)
        else:
            self.num_held_back += 1

    def close(self) -> None:
        if self.num_held_back:
            warn(f"... and {plural(self.num_held_back, 'more row')}")


def complete_batch(run_key: str | None) -> FoundBatch | None:
    """The batch that a run key was enqueued as, if that came to its end."""
    if run_key is None:
        return None
    found = find_batches(run_key, database=settings.database())
    return next(
        (batch for batch in found if batch.run_key == run_key and batch.closed_at is not None),
        None,
    )


def enqueue(
    intake: Intake,
    complaints: Complaints,
    *,
    name: str,
    run_key: str | None,
    tenant: str = "default",
    metadata: dict[str, str] | None = None,
    strict: bool = False,
) -> Enqueued:
    """Enqueue everything that the intake takes.

    strict: nothing at all when a single row is bad; reads the source twice
    """
    if (batch := complete_batch(run_key)) is not None:
        return Enqueued(
            batch=batch, num_new=0, num_known=batch.num_jobs, num_bad=0, was_complete=True
        )
    if strict:
        intake.check()
        complaints.close()
        if intake.num_bad:
            return Enqueued(batch=None, num_new=0, num_known=0, num_bad=intake.num_bad)
    with EnqueueProgress(name) as progress:
        contracts = _unless_empty(intake.contracts())
        if contracts is None:
            complaints.close()
            return Enqueued(batch=None, num_new=0, num_known=0, num_bad=intake.num_bad)
        try:
            submitted = submit_batch(
                contracts,
                name=name,
                run_key=run_key,
                tenant=tenant,
                metadata=metadata,
                on_progress=lambda num_kept: progress.show(num_kept, intake.fraction),
            )
        except KeyboardInterrupt:
            if run_key is None:
                note(f"what is enqueued stays; `tidemill cancel --batch {name}` takes it back")
            else:
                note("what is enqueued stays; the same command goes on where this ended")
            raise
    complaints.close()
    [batch] = find_batches(submitted.id, database=settings.database())
    return Enqueued(
        batch=batch,
        num_new=submitted.num_new,
        num_known=submitted.num_known,
        num_bad=intake.num_bad,
    )


def _unless_empty(contracts: Iterator[Contract]) -> Iterator[Contract] | None:
    """The same contracts; None when there is not one, so that no empty batch is kept."""
    first = next(contracts, None)
    return None if first is None else chain([first], contracts)
