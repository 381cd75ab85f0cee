"""`tidemill erase`: deletes every text that is stored for a person or a tenant."""

import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from cli import options
from cli.output.terminal import ask, note, plural, say, warn, write_json
from cli.person_selection import Metadata, Tenant

if TYPE_CHECKING:
    from db.upkeep.erasure import Erased


def erase(
    tenant: Tenant = None,
    metadata: Metadata = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Change nothing; print how much there is.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask first.")] = False,
    json: options.Json = False,
) -> None:
    """Erase every text that is stored for a tenant, or for a person by metadata, for good.

    Waiting and running jobs are cancelled and write no result. The jobs stay as rows without texts,
    names or metadata, so that counts stay true. An entry in the audit has their ids. On SQLite the
    file is rewritten, so that no text is left in it; docs/privacy.md says what remains on
    PostgreSQL, in backups and in Redis.
    """
    from cli.errors import CommandError
    from cli.person_selection import person_of
    from cli.stack.ready import require_ready
    from db.upkeep import erasure

    person = person_of(tenant, metadata)
    database = require_ready()
    if dry_run:
        _report(erasure.count(database, person), "would be erased", json)
        return
    if not yes:
        if not sys.stdin.isatty():
            raise CommandError("to erase is for good; say --yes, or run it where it can ask")
        _describe(erasure.count(database, person), "would be erased", note)
        if not ask("Erase them for good?"):
            raise typer.Exit(1)
    erased = erasure.erase(database, person)
    is_clean = erasure.scrub(database)
    _report(erased, "erased", json)
    if not is_clean:
        warn("a reader holds on to what the file was before; run this again when it has ended")
        raise typer.Exit(1)


def _report(counts: "Erased", verb: str, json: bool) -> None:
    if json:
        write_json({"done": verb == "erased", **asdict(counts)})
        return
    _describe(counts, verb, say)


def _describe(counts: "Erased", verb: str, to: Callable[[str], None]) -> None:
    to(
        f"{verb}: {plural(counts.jobs, 'job')} ({counts.cancelled:,} of them unfinished), "
        f"{plural(counts.messages, 'message')}, "
        f"the metadata of {plural(counts.batches, 'batch')}"
    )
    if counts.unreadable_messages:
        note(
            f"{plural(counts.unreadable_messages, 'message')} in the quarantine cannot be read, "
            "and may be anybody's: `tidemill messages` lists them"
        )
