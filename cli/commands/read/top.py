"""`tidemill top`: workers, rows, tokens a second and the backlog, as they are now."""

import time
from typing import Annotated

import typer

from cli import options
from cli.output.terminal import out, write_json


def top(
    json: options.Json = False,
    seconds: Annotated[
        float, typer.Option(min=0.2, max=3600, help="Between two looks, of which rates are made.")
    ] = 2.0,
) -> None:
    """Show what the workers do and what waits, again and again; Ctrl-C ends it.

    Without a terminal, or with --json, it looks twice and shows one snapshot.
    """
    from cli.output.top_screen import screen
    from cli.stack.ready import require_ready
    from cli.stack.top_figures import snapshot_of, top_figures

    database = require_ready()
    before = top_figures(database)
    try:
        if json or not out.is_terminal or out.is_dumb_terminal:
            time.sleep(seconds)
            snapshot = snapshot_of(before, top_figures(database))
            if json:
                write_json(snapshot.to_json())
            else:
                out.print(screen(snapshot, out.width))
            return

        from rich.live import Live

        first = screen(snapshot_of(before, before), out.width)
        with Live(first, console=out, auto_refresh=False) as live:
            while True:
                time.sleep(seconds)
                now = top_figures(database)
                live.update(screen(snapshot_of(before, now), out.width), refresh=True)
                before = now
    except KeyboardInterrupt:
        return  # the way out
