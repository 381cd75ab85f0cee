"""`tidemill canaries`: compares the answers of canaries with the expected ones."""

from datetime import datetime
from typing import Annotated

import typer

from cli import options
from cli.output.terminal import note, one_line, print_table, say, table, write_json


def canaries(
    run: Annotated[
        bool, typer.Option("--run", help="Run them now instead of at night, and wait.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Show the latest answer of each canary of tidemill.toml, beside the expected one.

    The workers run them in their nightly pass. The exit status is 1 if a canary failed or has
    another answer.
    """
    from cli.lookup import found_batch
    from cli.output.progress import watch
    from cli.stack.ready import require_ready, say_if_nobody_works
    from tasks.canaries import canaries_of, canary_outcomes, submit_canaries
    from tasks.configuration import settings

    configured = canaries_of(settings.catalog().canaries)
    database = require_ready()
    if run and configured:
        batch = submit_canaries(configured, f"canaries-{datetime.now():%Y-%m-%d-%H%M%S-%f}")
        say_if_nobody_works()
        watch(found_batch(str(batch.id)))
    outcomes = canary_outcomes(configured, database)
    if json:
        write_json(
            [
                {
                    "name": each.name,
                    "verdict": each.verdict,
                    "job": str(each.job.id) if each.job else None,
                    "expected": each.expected,
                    "output": each.job.output if each.job else None,
                }
                for each in outcomes
            ]
        )
    elif not outcomes:
        say("there are no canaries")
        note("add some as [[canaries]] in tidemill.toml; docs/accountability.md has an example")
    else:
        shown = table("canary", "verdict", "finished", "answer", "expected")
        for each in outcomes:
            at = each.job.finished_at if each.job else None
            shown.add_row(
                each.name,
                each.verdict,
                f"{at.astimezone():%Y-%m-%d %H:%M}" if at else "",
                one_line((each.job.output or "") if each.job else "", 60),
                one_line(each.expected or "", 60),
            )
        print_table(shown)
    if any(each.is_alarming for each in outcomes):
        raise typer.Exit(1)
