"""`tidemill keys`: manages the encryption keys."""

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from cli import options
from cli.output.terminal import note, plural, print_table, say, table, write_json
from cli.usage import Command

keys = typer.Typer(
    help="Make, list and rotate the keys that texts are encrypted with.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@keys.command(cls=Command, epilog="Example: tidemill keys generate --file tidemill.keys")
def generate(
    file: Annotated[
        Path | None,
        typer.Option(help="Put it before the keys in this file, so that it encrypts new texts."),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="The name of the key; default by the time.")
    ] = None,
) -> None:
    """Make a new random key, and write it to standard output or into a file.

    If a key is lost, its texts are lost. Keep the keys apart from the database's backups.
    """
    from cli.errors import CommandError
    from db.encryption.key_ring import NAME, KeyRing, new_key

    name = name or f"k{datetime.now(UTC):%Y%m%d%H%M%S}"
    if not NAME.fullmatch(name):
        raise typer.BadParameter("letters, digits, - and _, at most 32", param_hint="--name")
    line = new_key(name)
    if file is None:
        say(line)
        return
    before = file.read_text() if file.exists() else ""
    if before and name in KeyRing.parse(before, str(file)).keys:
        raise CommandError(f"{file} has a key {name}; a name is used once")
    part = file.with_name(file.name + ".part")
    with open(os.open(part, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600), "w") as to:
        to.write(f"{line}\n{before}")
        to.flush()
        os.fsync(to.fileno())
    part.replace(file)
    note(f"{name} is the first key of {file}; restart the workers, then `tidemill keys rotate`")


@keys.command("list", cls=Command, epilog="Example: tidemill keys list --json")
def list_(json: options.Json = False) -> None:
    """List the keys of this process, and how many texts each has encrypted."""
    from cli.stack.ready import require_ready
    from db.encryption.rotation import values_by_key

    database = require_ready()
    ring = database.keys
    by_column = values_by_key(database, ring)
    names = [*(ring.keys if ring else ()), "", "?"]
    totals = {name: sum(counts.get(name, 0) for counts in by_column.values()) for name in names}
    if json:
        write_json(
            {
                "first": ring.primary if ring else None,
                "keys": {name: totals[name] for name in names[:-2]},
                "not_encrypted": totals[""],
                "unknown_keys": totals["?"],
                "columns": by_column,
            }
        )
        return
    listing = table("key", "seals", "texts")
    for name in names[:-2]:
        listing.add_row(name, "yes" if ring and name == ring.primary else "", f"{totals[name]:,}")
    listing.add_row("(not encrypted)", "" if ring else "yes", f"{totals['']:,}")
    if totals["?"]:
        listing.add_row("(keys not here)", "", f"{totals['?']:,}")
    print_table(listing)


@keys.command(cls=Command, epilog="Example: tidemill keys rotate")
def rotate(json: options.Json = False) -> None:
    """Encrypt all texts of other keys, and plain ones, with the first key, while jobs run.

    First give the new ring to every producer and worker and restart them. Afterwards, once
    `tidemill keys list` counts no texts for the old key, remove it from the ring.
    """
    from cli.stack.interrupts import Interrupts
    from cli.stack.ready import require_ready
    from db.encryption.rotation import rotate as rotate_values
    from db.encryption.rotation import values_by_key

    database = require_ready()
    with Interrupts() as interrupts:
        sealed = rotate_values(database, is_ended=interrupts.any, pause=interrupts.wait)
    ring = database.keys
    assert ring is not None
    counts = values_by_key(database, ring)
    num_left = sum(
        num for of in counts.values() for name, num in of.items() if name != ring.primary
    )
    if json:
        write_json({"key": ring.primary, "sealed": sealed, "left": num_left})
    else:
        say(f"{plural(sum(sealed.values()), 'text')} sealed with {ring.primary}")
        if num_left:
            note(
                f"{plural(num_left, 'text')} not yet: a process has another ring, or somebody "
                "changed them and they do not open; run this again"
            )
    interrupts.raise_if_any()
    if num_left:
        raise typer.Exit(1)
