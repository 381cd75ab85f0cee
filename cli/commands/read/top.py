"""`tidemill top`: shows workers, rows, tokens per second and the backlog, live."""

import time
from typing import Annotated

import typer

from cli import options
from cli.output.terminal import out, write_json


def top(
    json: options.Json = False,
    seconds: Annotated[
        float, typer.Option(min=0.2, max=3600, help="The interval over which rates are measured.")
    ] = 2.0,
) -> None:
    """Show live figures of the workers and the backlog; Ctrl-C ends it.

    Without a terminal, or with --json, it prints one snapshot, measured over one interval.
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
