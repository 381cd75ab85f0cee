"""Worker settings: the [worker] table of `tidemill.toml`."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from engine.logging import LOG_FORMAT_VARIABLE, LOG_FORMATS
from tasks.errors import SettingsError
from tasks.queues import JOBS_PER_MESSAGE


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    lease_seconds: float = 60.0  # how long an attempt may write without renewing
    renew_seconds: float = 15.0  # between two renewals
    watch_seconds: float = 1.0  # between two polls for cancelled jobs and limits
    stall_seconds: float = 600.0  # an engine that answers nothing for so long is ended
    consumer_stall_seconds: float = 60.0  # messages wait and none arrives: the worker ends
    drain_seconds: float = 30.0  # a planned stop waits this long for what runs
    flush_outcomes: int = 64  # written in one transaction
    flush_seconds: float = 0.25  # longest one of the bulk lane waits for company
    max_unwritten_outcomes: int = 4096  # held while the database is away; then nothing is claimed
    claim_seconds: float = 0.005  # longest a delivery waits for company
    dispatch_seconds: float = 0.5  # between two polls for what is due
    lead_seconds: float = 10.0  # a leader's term: another leads so long after its death
    lost_seconds: float = 30.0  # published this long ago, yet the queue is empty: sent again
    jobs_per_message: int = JOBS_PER_MESSAGE  # of the bulk lane
    max_failures: int = 3  # then a job has failed
    retry_seconds: float = 5.0  # before the second attempt; doubles with each failure
    metrics_port: int | None = None  # where Prometheus finds this worker's figures; None: nowhere
    metrics_host: str = "127.0.0.1"  # the address it listens on
    log_format: str = "text"  # or "json": an object a line

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int | float) and value <= 0:
                raise SettingsError(f"worker.{field.name} must be more than 0")
        if self.metrics_port is not None and self.metrics_port >= 2**16:
            raise SettingsError("worker.metrics_port must be a port, up to 65535")
        if self.log_format not in LOG_FORMATS:
            raise SettingsError(
                f"worker.log_format must be one of {', '.join(LOG_FORMATS)}, "
                f"not {self.log_format!r}"
            )
        if self.renew_seconds * 2 > self.lease_seconds:
            raise SettingsError(
                f"worker.renew_seconds is {self.renew_seconds:g} and worker.lease_seconds "
                f"{self.lease_seconds:g}: a lease must outlast two renewals"
            )
        if self.dispatch_seconds * 2 > self.lead_seconds:
            raise SettingsError(
                f"worker.dispatch_seconds is {self.dispatch_seconds:g} and worker.lead_seconds "
                f"{self.lead_seconds:g}: a leadership must outlast two polls for what is due"
            )

    @classmethod
    def of(cls, table: Mapping[str, Any]) -> Self:
        """Read the table; raises SettingsError with the name of a faulty setting."""
        types = {field.name: field.type for field in fields(cls)}
        for name, value in table.items():
            if name not in types:
                raise SettingsError(
                    f"worker.{name} is not a setting; known: {', '.join(sorted(types))}"
                )
            if types[name] is str:
                if not isinstance(value, str):
                    raise SettingsError(f"worker.{name} must be a text, not {value!r}")
                continue
            whole = types[name] in (int, int | None)
            if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
                kind = "a whole number" if whole else "a number"
                raise SettingsError(f"worker.{name} must be {kind}, not {value!r}")
        return cls(**table)

    @classmethod
    def from_environment(cls, table: Mapping[str, Any], environment: Mapping[str, str]) -> Self:
        """Read the table, overridden by this worker's environment."""
        own: dict[str, Any] = dict(table)
        if port := environment.get("TIDEMILL_METRICS_PORT"):
            if not port.isdecimal():
                raise SettingsError(f"TIDEMILL_METRICS_PORT must be a port, not {port!r}")
            own["metrics_port"] = int(port)
        if log_format := environment.get(LOG_FORMAT_VARIABLE):
            own["log_format"] = log_format
        return cls.of(own)
