"""`tidemill watch`: shows the progress of a batch until it is finished."""

import shlex
from typing import Annotated

import typer

from cli.output.escaping import visible
from cli.output.terminal import note, out, say


def watch(
    batch: Annotated[str, typer.Argument(metavar="BATCH", help="A batch's name, run key or id.")],
) -> None:
    """Show the progress of a batch: states, rate and ETA. Ends when the batch is finished.

    The exit status is 1 if a job did not succeed.
    """
    from cli.lookup import found_batch
    from cli.output.progress import is_finished, states_in_words
    from cli.output.progress import watch as watch_batch
    from cli.stack.ready import require_ready
    from db.states import JobState

    require_ready()
    batch_row = found_batch(batch)
    try:
        finished = watch_batch(batch_row, console=out)
    except KeyboardInterrupt:
        note(f"the batch goes on; `tidemill watch {shlex.quote(batch)}` comes back to it")
        raise typer.Exit(130) from None
    say(f"{visible(finished.name, one_line=True)}: {states_in_words(finished)}")
    if not is_finished(finished):
        note("it was never enqueued to its end; start that again under the same run key")
        raise typer.Exit(1)
    if finished.states.get(JobState.FAILED):
        note(f"`tidemill results --batch {shlex.quote(batch)} --state failed` says why")
    if finished.states.get(JobState.SUCCEEDED, 0) < finished.num_jobs:
        raise typer.Exit(1)
