"""Canaries: configured jobs that run every night and whose answers must not change.

[[canaries]]
name = "gate"
task = "translate"
expected = "Le meunier ouvre le portail."   # left out: the answer of the night before
text = "The miller opens the gate."
source_language = "en"
target_language = "fr"
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from uuid_utils.compat import uuid7

from db.reading.batches import find_batches
from db.reading.found_job import FoundJob
from db.reading.results import find_results
from db.session import Database, database_from_environment
from db.states import FINISHED, JobState
from engine.protocol.task_names import TASK_NAMES
from tasks.configuration import settings
from tasks.contracts.by_task import CONTRACTS
from tasks.contracts.contract import Contract
from tasks.errors import ContractError, Refused, SettingsError
from tasks.submission.batch import submit_batch
from tasks.submission.rows import job_row
from tasks.submission.submitted import SubmittedBatch

BATCH = "canaries"  # the name of all their batches
MAX_BATCHES = 20  # batches that are searched for the last answer of each canary


@dataclass(frozen=True, slots=True)
class Canary:
    name: str
    contract: Contract
    expected: str | None  # None: the answer of the time before


@dataclass(frozen=True, slots=True)
class CanaryOutcome:
    """The latest outcome of a canary."""

    name: str
    job: FoundJob | None  # None: it has never finished
    expected: str | None  # None: there is no answer yet to compare with
    is_missing: bool = False  # an earlier run had a job of it, the last run had none

    @property
    def verdict(self) -> str:
        if self.job is None:
            return "unknown"
        if self.is_missing:
            return "missing"
        if self.job.state is not JobState.SUCCEEDED:
            return "failed"
        if self.expected is None:
            return "first"
        return "same" if self.job.output == self.expected else "changed"

    @property
    def is_alarming(self) -> bool:
        return self.verdict in ("failed", "changed", "missing")


def canaries_of(tables: Any) -> tuple[Canary, ...]:
    """Parse the [[canaries]] tables; raises SettingsError with the fault."""
    if not isinstance(tables, list):
        raise SettingsError("canaries is a list; write [[canaries]]")
    canaries = tuple(_canary(number, table) for number, table in enumerate(tables, start=1))
    names = [each.name for each in canaries]
    if len(set(names)) < len(names):
        raise SettingsError("canaries: each has a name of its own")
    return canaries


def _canary(number: int, table: Any) -> Canary:
    if not isinstance(table, dict):
        raise SettingsError(f"canary {number} is not a table; write [[canaries]]")
    fields = dict(table)
    name, task = fields.pop("name", None), fields.pop("task", None)
    expected = fields.pop("expected", None)
    if not isinstance(name, str) or not 0 < len(name) <= 128:
        raise SettingsError(f"canary {number} needs a name of at most 128 characters")
    if task not in TASK_NAMES:
        raise SettingsError(f"canary {name}: task is one of {', '.join(TASK_NAMES)}")
    if expected is not None and not isinstance(expected, str):
        raise SettingsError(f"canary {name}: expected is a text")
    contract = CONTRACTS[task]
    # A cached answer would say nothing about the model.
    fresh = {"use_cache": False} if "use_cache" in contract.model_fields else {}
    try:
        contract_of_canary = contract.parse({**fields, **fresh, "custom_id": name})
    except ContractError as error:
        raise SettingsError(f"canary {name}: {error}") from None
    return Canary(name, contract_of_canary, expected)


def submit_canaries(canaries: Sequence[Canary], run_key: str) -> SubmittedBatch:
    """Submit every canary, once for a run key.

    A canary with an unknown model raises Refused after the others are submitted.
    """
    catalog = settings.catalog()
    taken: list[Contract] = []
    refusals: list[Refused] = []
    for canary in canaries:
        try:
            job_row(catalog, canary.contract, uuid7(), None, None)
        except Refused as refusal:
            refusals.append(refusal)
        else:
            taken.append(canary.contract)
    submitted = submit_batch(taken, name=BATCH, run_key=run_key)
    if refusals:
        raise refusals[0]
    return submitted


def canary_outcomes(
    canaries: Sequence[Canary], database: Database | None = None
) -> list[CanaryOutcome]:
    """Each canary's latest answer and the expected one."""
    database = database or database_from_environment()
    finished: dict[str, list[FoundJob]] = {each.name: [] for each in canaries}  # the newest first
    in_last_run: set[str | None] = set()
    for number, batch in enumerate(find_batches(BATCH, limit=MAX_BATCHES, database=database)):
        for job in find_results(batch=batch.id, state=None, database=database):
            if number == 0:
                in_last_run.add(job.custom_id)
            if job.state in FINISHED and job.custom_id in finished:
                finished[job.custom_id].append(job)
    outcomes = []
    for canary in canaries:
        jobs = finished[canary.name]
        before = (job.output for job in jobs[1:] if job.state is JobState.SUCCEEDED)
        expected = next(before, None) if canary.expected is None else canary.expected
        is_missing = canary.name not in in_last_run
        outcomes.append(CanaryOutcome(canary.name, jobs[0] if jobs else None, expected, is_missing))
    return outcomes
