"""`tidemill doctor`: finds faults of the installation, and says how to mend each."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from cli import options
from cli.output.terminal import out, plural, write_json

if TYPE_CHECKING:
    from db.reading.health import Overdue, WorkerHealth
    from db.session import Database
    from tasks.configuration.catalog import Catalog, Model


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check."""

    subject: str
    is_well: bool
    sentence: str
    is_warning: bool = False  # does not affect the exit status

    @property
    def word(self) -> str:
        return "WARN" if self.is_warning else "ok" if self.is_well else "WRONG"

    @property
    def style(self) -> str:
        return "yellow" if self.is_warning else "" if self.is_well else "red"


def doctor(json: options.Json = False) -> None:
    """Check the configuration, Redis, the database, the checkpoints and the workers.

    The exit status is 1 if anything is wrong; warnings do not change it.
    """
    findings = examine()
    if json:
        write_json(
            [
                {
                    "subject": finding.subject,
                    "ok": finding.is_well,
                    "warning": finding.is_warning,
                    "sentence": finding.sentence,
                }
                for finding in findings
            ]
        )
    else:
        width = max(len(finding.subject) for finding in findings)
        for finding in findings:
            out.print(
                f"{finding.word:<5}  {finding.subject:<{width}}  {finding.sentence}",
                soft_wrap=True,
                style=finding.style,
            )
    if not all(finding.is_well for finding in findings):
        raise typer.Exit(1)


def examine() -> list[Finding]:
    """Run all checks, even after one has found a fault."""
    from sqlalchemy.exc import SQLAlchemyError

    from cli.failure import sentence_of
    from db.errors import DatabaseError
    from tasks.configuration import settings
    from tasks.errors import SettingsError

    findings = _look_at_up()
    catalog = None
    try:
        catalog = settings.catalog()
        names = ", ".join(catalog.models)
        findings.append(Finding("configuration", True, f"{catalog.path} names {names}"))
    except SettingsError as error:
        findings.append(Finding("configuration", False, str(error)))
    findings += _look_at_redis()
    database = None
    try:
        database = settings.database()
        findings += _look_at_database(database)
        findings += _look_at_keys(database)
    except (SettingsError, DatabaseError, SQLAlchemyError) as error:
        findings.append(Finding("database", False, sentence_of(error)))
    findings += _look_at_disks(database)
    if catalog is not None:
        findings += [_look_at_checkpoint(catalog, model) for model in catalog.models.values()]
        if database is not None and findings_of(findings, "database"):
            findings.append(_look_at_messages(database))
            findings += _look_at_workers(catalog, database)
    return findings


def findings_of(findings: list[Finding], subject: str) -> bool:
    """Whether all findings on a subject are well."""
    return all(finding.is_well for finding in findings if finding.subject == subject)


def _look_at_up() -> list[Finding]:
    from db.connection.address import data_dir, killed_up, running_up

    place = os.environ, Path.cwd()
    folder = data_dir(*place)
    if running := running_up(*place):
        pid = running.get("pid", "unknown")
        return [Finding("up", True, f"`tidemill up` runs in {folder} (process {pid})")]
    if killed := killed_up(*place):
        fault = (
            f"the `tidemill up` of {folder} (process {killed['pid']}) was killed; start it again"
        )
        return [Finding("up", False, fault)]
    return []


def _look_at_redis() -> list[Finding]:
    from cli.errors import BrokerUnreachable
    from cli.stack.broker import read_broker
    from cli.stack.exposure import redis_exposure
    from db.connection.url_redaction import masked
    from tasks.configuration import settings
    from tasks.errors import SettingsError

    try:
        url = settings.broker_url()
        broker = read_broker(url)
    except (BrokerUnreachable, SettingsError) as error:
        return [Finding("redis", False, str(error))]
    findings = [Finding("redis", True, f"{masked(url)} answers, version {broker.version}")]
    if broker.eviction != "noeviction":
        findings.append(
            Finding(
                "redis",
                False,
                f"its maxmemory-policy is {broker.eviction}, under which it drops messages when "
                "memory is short; set `maxmemory-policy noeviction`",
            )
        )
    if (exposure := redis_exposure(url, broker.access)) is not None:
        findings.append(Finding("access", False, f"Redis: {exposure}"))
    return findings + [Finding("redis", False, fault) for fault in broker.faults]


def _look_at_database(database: "Database") -> list[Finding]:
    from cli.stack.exposure import database_exposure, database_tls_weakness
    from cli.stack.write_trial import write_fault
    from db.schema import head, require_current

    require_current(database)
    findings = [Finding("database", True, f"{database.shown_url} is at revision {head()}")]
    if (exposure := database_exposure(database.url)) is not None:
        findings.append(Finding("access", False, f"the database: {exposure}"))
    if (weakness := database_tls_weakness(database.url)) is not None:
        # Only a warning: it is common in a private network, such as that of docker-compose.yml,
        # and this command is the health check of the containers.
        findings.append(Finding("access", True, f"the database: {weakness}", is_warning=True))
    if (fault := write_fault(database)) is not None:
        findings.append(Finding("database", False, f"it takes no write: {fault}"))
    return findings


def _look_at_keys(database: "Database") -> list[Finding]:
    """Report whether texts are encrypted, and whether others on this machine can read the keys."""
    from db.encryption.key_check import require_keys
    from db.encryption.key_ring import KeysUnusable
    from db.encryption.settings import keys_file

    keys = database.keys
    try:
        require_keys(database)
    except KeysUnusable as error:
        return [Finding("keys", False, str(error))]
    if keys is None:
        return []
    others = f" (and {plural(len(keys.keys) - 1, 'older key')} that open)" * (len(keys.keys) > 1)
    findings = [Finding("keys", True, f"texts are encrypted with {keys.primary}{others}")]
    file = keys_file(os.environ, Path.cwd())
    if file is not None and file.stat().st_mode & 0o077:
        findings.append(
            Finding("access", False, f"others can read the keys in {file}; `chmod 600 {file}`")
        )
    return findings


def _look_at_disks(database: "Database | None") -> list[Finding]:
    """Report the free space of each disk of this machine that holds Tidemill's data."""
    from cli.stack.write_trial import rooms_of
    from db.connection.address import data_dir

    folders = [data_dir(os.environ, Path.cwd())]
    if database is not None and database.file is not None:
        folders.append(database.file.parent)
    folders += [Path(folder) for folder in _redis_folders()]
    return [Finding("disk", not room.is_short, room.sentence) for room in rooms_of(folders)]


def _redis_folders() -> list[str]:
    """Return the folder of a Redis on this machine; empty if it is elsewhere or does not answer."""
    from urllib.parse import urlsplit

    from cli.errors import BrokerUnreachable
    from cli.stack.broker import read_broker
    from tasks.configuration import settings
    from tasks.errors import SettingsError

    try:
        url = settings.broker_url()
        if urlsplit(url).hostname not in ("localhost", "127.0.0.1", "::1"):
            return []
        folder = read_broker(url).folder
    except (BrokerUnreachable, SettingsError):
        return []
    return [folder] if folder else []


def _look_at_checkpoint(catalog: "Catalog", model: "Model") -> Finding:
    """Check that a folder exists; a name on a hub cannot be checked from here."""
    subject = f"model {model.alias}"
    if model.engine == "fake":
        return Finding(subject, True, "is a fake: its answers are words of the question")
    folder = Path(model.checkpoint)
    if folder.is_dir():
        if (folder / "config.json").is_file():
            return Finding(subject, True, f"its checkpoint is {folder}")
        return Finding(
            subject, False, f"{folder} holds no config.json, so it is no checkpoint; look there"
        )
    looks_local = model.checkpoint.startswith((".", "/", "~")) or model.checkpoint.count("/") > 1
    if looks_local:
        return Finding(
            subject,
            False,
            f"there is no folder {catalog.path.parent / model.checkpoint}; put the checkpoint "
            f"there, or change models.{model.alias}.checkpoint in {catalog.path}",
        )
    return Finding(
        subject,
        True,
        f"{model.checkpoint} is no folder here, so the worker will ask the hub for it",
    )


def _look_at_messages(database: "Database") -> Finding:
    from cli.commands.look_after.messages import num_set_aside

    num = num_set_aside(database)
    if not num:
        return Finding("messages", True, "every one was taken")
    return Finding(
        "messages",
        False,
        f"{plural(num, 'message')} could not be taken; `tidemill messages` says why, and "
        "`tidemill messages --delete` forgets them",
    )


def _look_at_workers(catalog: "Catalog", database: "Database") -> list[Finding]:
    """Report the live workers, the jobs that they hold, and overdue jobs."""
    from cli.stack.ready import start_command
    from db.reading.health import health

    report = health(database)
    findings = []
    served = {model for worker in report.alive for model in worker.models}
    unserved = [alias for alias in catalog.models if alias not in served]
    if not report.alive:
        findings.append(
            Finding("workers", False, f"none is running; start one with {start_command()}")
        )
    elif unserved:
        findings.append(
            Finding(
                "workers",
                False,
                f"no worker serves {', '.join(unserved)}; start one with "
                f"`tidemill worker --models {','.join(unserved)}`",
            )
        )
    else:
        findings.append(
            Finding("workers", True, f"{len(report.alive)} running, and every model is served")
        )
    findings += [_finding_of_worker(worker) for worker in report.workers]
    findings.append(_finding_of_overdue(report.overdue))
    return findings


def _finding_of_worker(worker: "WorkerHealth") -> Finding:
    holds = f"holds {plural(worker.num_held, 'job')}"
    if worker.oldest_seconds is not None:
        holds += f", the first since {worker.oldest_seconds:,.0f} s"
    if not worker.lives:
        return Finding(
            f"worker {worker.name}",
            False,
            f"is silent and {holds}; they go back in line when their leases end",
        )
    leads = "; it sends out what is due" if worker.leads else ""
    return Finding(
        f"worker {worker.name}", True, f"serves {', '.join(worker.models)}, {holds}{leads}"
    )


def _finding_of_overdue(overdue: "Overdue") -> Finding:
    if not overdue:
        return Finding("overdue", True, "nothing is")
    parts = {
        "left by dead workers": overdue.num_left,
        "past their deadline": overdue.num_past_deadline,
        "that somebody has waited for since a minute": overdue.num_waiting,
    }
    counts = ", ".join(f"{plural(num, 'job')} {kind}" for kind, num in parts.items() if num)
    return Finding(
        "overdue",
        False,
        f"{counts}; some worker should have seen to it: look for warnings in their logs",
    )
