"""`tidemill audit`: lists who did what, and verifies that record."""

import re
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import options
from cli.output.terminal import note, out, plural, print_table, say, table, warn, write_json
from cli.usage import Command

if TYPE_CHECKING:
    from db.models import AuditEntry

audit = typer.Typer(
    help="List who did what to which jobs, and verify that record.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Act = Annotated[str | None, typer.Option(help="Only this act, such as submit or erase.")]
Actor = Annotated[str | None, typer.Option(help="A part of the actor's name.")]
Since = Annotated[str | None, typer.Option(metavar="TIME", help="At this time or later.")]
Until = Annotated[str | None, typer.Option(metavar="TIME", help="Before this time.")]
NUM_SHOWN = 3  # ids in a row of the table


@audit.command(
    "list", cls=Command, epilog="Example: tidemill audit list --act erase --since 2026-01-31"
)
def list_(
    act: Act = None,
    actor: Actor = None,
    since: Since = None,
    until: Until = None,
    limit: Annotated[int, typer.Option(min=1, help="The most entries to list.")] = 50,
    json: options.Json = False,
) -> None:
    """List who did what, newest first. The list contains no text of a user."""
    rows = _entries(act, actor, since, until, newest_first=True, limit=limit)
    if json:
        write_json([_as_json(entry) for entry in rows])
        return
    listing = table("entry", "at", "by", "act", "objects")
    for entry in rows:
        at = f"{entry.at.astimezone():%Y-%m-%d %H:%M:%S}"
        listing.add_row(str(entry.sequence), at, entry.actor, entry.act, _short(entry.objects))
    if not rows:
        say("no entry matches")
        return
    print_table(listing)
    if len(rows) == limit:
        note(f"the newest {limit:,}; --limit shows more")


@audit.command(cls=Command, epilog="Example: tidemill audit verify --head 5e88…")
def verify(
    head: Annotated[
        str | None,
        typer.Option(
            metavar="HASH", help="A hash that a worker logged; the chain must contain it."
        ),
    ] = None,
    json: options.Json = False,
) -> None:
    """Recompute the chain of hashes; status 1 if an entry was changed or is missing.

    Anyone who can write to the database can make a whole new chain, but cannot change a hash that
    was logged elsewhere: pass it as --head.
    """
    from cli.stack.ready import require_ready
    from db import audit as chain

    if head is not None and not re.fullmatch("[0-9a-f]{64}", head := head.strip().lower()):
        raise typer.BadParameter("a hash is 64 hexadecimal digits", param_hint="--head")
    verified = chain.verify(require_ready(), head)
    if json:
        write_json(
            {
                "sound": not verified.faults,
                "num_entries": verified.num_entries,
                "first": verified.first,
                "head": {"sequence": verified.head.sequence, "hash": verified.head.hash},
                "faults": list(verified.faults),
            }
        )
    else:
        for fault in verified.faults:
            warn(fault)
        if not verified.faults:
            say(f"{plural(verified.num_entries, 'entry')}, none changed and none missing")
            say(f"head {verified.head.sequence}: {verified.head.hash}")
    if verified.faults:
        raise typer.Exit(1)


@audit.command(cls=Command, epilog="Example: tidemill audit export -o audit.jsonl")
def export(
    act: Act = None,
    actor: Actor = None,
    since: Since = None,
    until: Until = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="A file, which appears only when it is complete."),
    ] = None,
) -> None:
    """Write entries with their hashes as JSON lines, oldest first."""
    from cli.output.escaping import json_text
    from cli.output.files.output_file import opened

    with opened(output) as to:
        for entry in _entries(act, actor, since, until):
            encoding = out.encoding if output is None else "utf-8"
            to.write((json_text(_as_json(entry), encoding) + "\n").encode())


def _entries(
    act: str | None,
    actor: str | None,
    since: str | None,
    until: str | None,
    newest_first: bool = False,
    limit: int | None = None,
) -> "list[AuditEntry]":
    from cli.stack.ready import require_ready
    from db.audit import Act, entries

    if act is not None and act not in list(Act):
        known = ", ".join(Act)
        raise typer.BadParameter(f"{act!r} is none of {known}", param_hint="--act")
    first, last = options.instant("--since", since), options.instant("--until", until)
    return list(
        entries(
            require_ready(),
            act=act,
            actor=actor,
            since=first,
            until=last,
            newest_first=newest_first,
            limit=limit,
        )
    )


def _as_json(entry: "AuditEntry") -> dict[str, Any]:
    at: datetime = entry.at
    return {
        "sequence": entry.sequence,
        "at": at.isoformat(),
        "actor": entry.actor,
        "act": entry.act,
        "objects": entry.objects,
        "previous_hash": entry.previous_hash,
        "hash": entry.hash,
    }


def _short(objects: dict[str, Any]) -> str:
    return ", ".join(f"{name} {_shown(value)}" for name, value in objects.items())


def _shown(value: Any) -> str:
    if not isinstance(value, list):
        return str(value)
    more = f" and {len(value) - NUM_SHOWN:,} more" if len(value) > NUM_SHOWN else ""
    return " ".join(map(str, value[:NUM_SHOWN])) + more
