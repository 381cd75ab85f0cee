"""A producer's errors, each with a sentence that says what to do instead.

TidemillError
├── SettingsError            tidemill.toml or the environment
└── Refused                  this job is not taken
    ├── ContractError        a field is wrong
    ├── UnknownModel         no model by that name, or none for that task
    ├── UnknownLanguage      no model for that pair of languages
    ├── DuplicateId          another job of the same batch goes by that id
    ├── UnknownPreviousJob   the tenant has no job by that id to continue
    ├── PreviousJobUnfinished  the job to continue has no answer yet
    ├── PreviousJobUnusable  the job to continue is no chat, or has not succeeded
    └── IdempotencyConflict  the key was used for another job
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from uuid import UUID


class TidemillError(Exception):
    """Base of the errors whose message is for a user."""


class SettingsError(TidemillError):
    """A setting is missing or cannot be used."""


class Refused(TidemillError):
    """The job is not taken; `code` is for programs, the message for people."""

    code: str


@dataclass(frozen=True, slots=True)
class Problem:
    """A field and its fault."""

    field: str
    fault: str

    def __str__(self) -> str:
        return f"{self.field}: {self.fault}"


class ContractError(Refused):
    code = "invalid_contract"

    def __init__(self, task: str, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__(f"{task}: " + "; ".join(map(str, problems)))


class UnknownModel(Refused):
    code = "unknown_model"

    def __init__(self, name: str, models: Iterable[str]) -> None:
        names = ", ".join(models) or "none; name one in tidemill.toml"
        super().__init__(f"{name}; known models: {names}")


class UnknownLanguagePair(Refused):
    code = "unknown_language"

    def __init__(self, source: str, target: str, served_pairs: Iterable[str]) -> None:
        pairs = ", ".join(served_pairs) or "none"
        super().__init__(f"no model translates from {source!r} to {target!r}; known: {pairs}")


class DuplicateId(Refused):
    """Two jobs have the same `field`, custom_id or idempotency_key; the places say which."""

    code = "duplicate_id"

    def __init__(self, field: str, place: str, first_place: str) -> None:
        self.field, self.place, self.first_place = field, place, first_place
        self.fault = f"{field}: is that of {first_place} too; each job of a batch needs its own"
        super().__init__(f"{place}: {self.fault}")


class UnknownPreviousJob(Refused):
    """The previous job is unknown or another tenant's; the message does not tell which."""

    code = "unknown_previous_job"

    def __init__(self, job_id: UUID, tenant: str) -> None:
        super().__init__(f"previous_job_id: the tenant {tenant!r} has no job {job_id}")


class PreviousJobUnfinished(Refused):
    code = "previous_job_unfinished"

    def __init__(self, job_id: UUID, state: str) -> None:
        super().__init__(
            f"previous_job_id: the job {job_id} is still {state}; "
            "submit what follows its answer when that is there"
        )


class PreviousJobUnusable(Refused):
    code = "previous_job_unusable"

    def __init__(self, job_id: UUID, reason: str) -> None:
        super().__init__(f"previous_job_id: the job {job_id} cannot be continued: {reason}")


class IdempotencyConflict(Refused):
    code = "idempotency_conflict"

    def __init__(self, key: str) -> None:
        super().__init__(
            f"the idempotency key {key!r} was used before for a job with other contents; "
            "use a new key for a new job"
        )
