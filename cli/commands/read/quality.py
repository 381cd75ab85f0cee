"""`tidemill quality`: compares the newest results with earlier ones."""

from collections.abc import Container
from datetime import timedelta
from typing import Annotated

import typer

from cli import options
from cli.output.terminal import note, print_table, say, table, write_json

MAX_HOURS = 24.0 * 366


def quality(
    hours: Annotated[
        float, typer.Option(min=0.01, max=MAX_HOURS, help="The length of the newest period.")
    ] = 24.0,
    reference_days: Annotated[
        float,
        typer.Option(
            min=0.01, max=MAX_HOURS / 24, help="The length of the reference period before it."
        ),
    ] = 28.0,
    days: Annotated[
        int, typer.Option(min=1, max=366, help="Compare this many periods, each by itself.")
    ] = 1,
    model: Annotated[str | None, typer.Option(help="Only this model.")] = None,
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
    from sqlalchemy import exists, select

    from cli.stack.ready import require_ready
    from db.clock import now
    from db.models import Job
    from db.reading.quality import find_drift

    database = require_ready()
    period, reference = timedelta(hours=hours), timedelta(days=reference_days)
    drifts = []
    with database.read() as session:
        # A check of a name that nobody has would never raise an alarm.
        if (
            model is not None
            and model not in _configured()
            and not session.scalar(select(exists().where(Job.model == model)))
        ):
            raise typer.BadParameter(
                f"{model!r} is no model of the configuration, and no job is of it",
                param_hint="--model",
            )
        end = session.execute(select(now())).scalar_one()
        for number in reversed(range(days)):
            until = end - number * period
            found = find_drift(session, period=period, reference=reference, until=until)
            drifts += [(until, each) for each in found if model in (None, each.model)]
    if json:
        write_json(
            [
                {
                    "until": until.isoformat(),
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
                for until, each in drifts
            ]
        )
    elif not drifts:
        say("nothing to compare")
        note("a model needs 50 results in the newest period and 50 before it")
    else:
        shown = table("until", "model", "task", "signal", "before", "now", "index", "verdict")
        for until, each in drifts:
            shown.add_row(
                f"{until.astimezone():%Y-%m-%d %H:%M}",
                each.model,
                each.task,
                each.signal.replace("_", " "),
                f"{each.reference:,.3g}",
                f"{each.current:,.3g}",
                f"{each.index:.2f}",
                each.verdict,
            )
        print_table(shown)
    if check and any(each.verdict == "changed" for _, each in drifts):
        raise typer.Exit(1)


def _configured() -> Container[str]:
    """The models of the configuration; empty without one."""
    from tasks.configuration import settings
    from tasks.errors import SettingsError

    try:
        return settings.catalog().models
    except SettingsError:
        return ()
