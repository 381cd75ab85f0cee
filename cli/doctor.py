"""`tidemill doctor`: says in words what is wrong, and what to do about it."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from cli import options
from cli.terminal import out, write_json

if TYPE_CHECKING:
    from db.session import Database
    from tasks.catalog import Catalog, Model


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    subject: str
    is_well: bool
    sentence: str


def doctor(json: options.Json = False) -> None:
    """Check the configuration, Redis, the database, the checkpoints and the workers.

    The exit status is 1 if anything is wrong.
    """
    findings = examine()
    if json:
        write_json(
            [
                {"subject": finding.subject, "ok": finding.is_well, "sentence": finding.sentence}
                for finding in findings
            ]
        )
    else:
        width = max(len(finding.subject) for finding in findings)
        for finding in findings:
            out.print(
                f"{'ok   ' if finding.is_well else 'WRONG'}  {finding.subject:<{width}}  "
                f"{finding.sentence}",
                soft_wrap=True,
                style="" if finding.is_well else "red",
            )
    if not all(finding.is_well for finding in findings):
        raise typer.Exit(1)


def examine() -> list[Finding]:
    """Look at everything, whatever is found on the way."""
    from db.session import DatabaseError
    from tasks import settings
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
        findings.append(_look_at_database(database))
    except (SettingsError, DatabaseError) as error:
        findings.append(Finding("database", False, str(error)))
    if catalog is not None:
        findings += [_look_at_checkpoint(catalog, model) for model in catalog.models.values()]
        if database is not None and findings_of(findings, "database"):
            findings += _look_at_workers(catalog, database)
    return findings


def findings_of(findings: list[Finding], subject: str) -> bool:
    """Whether what was found of a subject is well."""
    return all(finding.is_well for finding in findings if finding.subject == subject)


def _look_at_up() -> list[Finding]:
    from db.address import data_dir, running_up

    written = running_up(os.environ, Path.cwd())
    if not written:
        return []
    folder = data_dir(os.environ, Path.cwd())
    pid = written.get("pid", "")
    if pid.isdigit() and Path(f"/proc/{pid}").exists():
        return [Finding("up", True, f"`tidemill up` runs in {folder} (process {pid})")]
    if not Path("/proc").exists():
        return []
    return [
        Finding(
            "up",
            False,
            f"the `tidemill up` of {folder} (process {pid}) is gone and could not say so; "
            "start it again",
        )
    ]


def _look_at_redis() -> list[Finding]:
    from cli.broker import look_at_broker, shown
    from cli.errors import BrokerUnreachable
    from tasks import settings

    url = settings.broker_url()
    try:
        look = look_at_broker(url)
    except BrokerUnreachable as error:
        return [Finding("redis", False, str(error))]
    findings = [Finding("redis", True, f"{shown(url)} answers, version {look.version}")]
    if look.eviction != "noeviction":
        findings.append(
            Finding(
                "redis",
                False,
                f"its maxmemory-policy is {look.eviction}, under which it drops messages when "
                "memory is short; set `maxmemory-policy noeviction`",
            )
        )
    return findings


def _look_at_database(database: "Database") -> Finding:
    from db.schema import require_current, revision

    require_current(database)
    return Finding("database", True, f"{database.shown_url} is at revision {revision(database)}")


def _look_at_checkpoint(catalog: "Catalog", model: "Model") -> Finding:
    """A folder must be there; a name on a hub cannot be checked from here."""
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


def _look_at_workers(catalog: "Catalog", database: "Database") -> list[Finding]:
    from db import queries

    with database.read() as session:
        workers = session.scalars(queries.live_workers()).all()
    served = {model for worker in workers for model in worker.room}
    unserved = [alias for alias in catalog.models if alias not in served]
    if not workers:
        return [Finding("workers", False, "none is running; start one with `tidemill worker`")]
    if unserved:
        return [
            Finding(
                "workers",
                False,
                f"no worker serves {', '.join(unserved)}; start one with "
                f"`tidemill worker --models {','.join(unserved)}`",
            )
        ]
    return [Finding("workers", True, f"{len(workers)} running, and every model is served")]
