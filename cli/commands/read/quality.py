"""`tidemill quality`: whether the newest results are like those of before."""

from datetime import timedelta
from typing import Annotated

import typer

from cli import options
from cli.output.terminal import note, print_table, say, table, write_json


def quality(
    hours: Annotated[float, typer.Option(min=0.01, help="The newest period.")] = 24.0,
    reference_days: Annotated[
        float, typer.Option(min=0.01, help="The time before it, which it is held against.")
    ] = 28.0,
    model: Annotated[str | None, typer.Option(help="Only of this model.")] = None,
    check: Annotated[
        bool, typer.Option("--check", help="End with status 1 if a signal has changed.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Compare the results of the last day with those of the weeks before, by model and task.

    Each signal (failures, answers cut by length, suspicious ones, lengths, repetition, ...) has a
    population stability index: below 0.1 it is stable, above 0.25 it has changed. Signals with
    fewer than 50 results in either period are left out.
    """
    from cli.stack.ready import require_ready
    from db.reading.quality import find_drift

    database = require_ready()
    with database.read() as session:
        drifts = find_drift(
            session, period=timedelta(hours=hours), reference=timedelta(days=reference_days)
        )
    drifts = [each for each in drifts if model in (None, each.model)]
    if json:
        write_json(
            [
                {
                    "model": each.model,
                    "task": each.task,
                    "signal": each.signal,
                    "reference": each.reference,
                    "current": each.current,
                    "num_reference": each.num_reference,
                    "num_current": each.num_current,
                    "index": each.index,
                    "verdict": each.verdict,
                }
                for each in drifts
            ]
        )
    elif not drifts:
        say("nothing to compare")
        note("a model needs 50 results in the newest period and 50 before it")
    else:
        shown = table("model", "task", "signal", "before", "now", "index", "verdict")
        for each in drifts:
            shown.add_row(
                each.model,
                each.task,
                each.signal.replace("_", " "),
                f"{each.reference:,.3g}",
                f"{each.current:,.3g}",
                f"{each.index:.2f}",
                each.verdict,
            )
        print_table(shown)
    if check and any(each.verdict == "changed" for each in drifts):
        raise typer.Exit(1)
