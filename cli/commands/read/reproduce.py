"""`tidemill reproduce`: runs a finished job again with its recorded settings, and compares."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import options
from cli.output.terminal import note, say, warn, write_json

if TYPE_CHECKING:
    from db.reading.job_details import JobDetails
    from tasks.contracts.contract import Contract

# Lengths in words come to settings that each request works out for itself.
BY_REQUEST = frozenset({"max_words", "min_words", "ratio", "strategy"})
# What names a model and how it ran; of the rest (the worker's device, say) it is only told.
RECORD = (
    "checkpoint",
    "revision",
    "weight_files",
    "dtype",
    "engine",
    "device",
    "versions",
    "settings",
)


def reproduce(
    job: Annotated[str, typer.Argument(metavar="JOB", help="The id of a job that succeeded.")],
    json: options.Json = False,
) -> None:
    """Run a job again with its recorded settings, and compare the answers.

    The second run is a new job without a cache, with the first one's id in its metadata as
    `reproduces`. Status 0: the answers are identical. Status 1: they differ, and the differences
    between the two records (the model's files, versions, settings) are listed. In float32 the
    answers are identical if the records are.
    """
    from cli.errors import NotReproducible
    from cli.lookup import found_job
    from cli.stack.ready import require_ready, say_if_nobody_works
    from db.states import JobState
    from tasks.submit import submit_contract

    [job_id] = options.job_ids([job])
    require_ready()
    first = found_job(job_id)
    if first.job.state is not JobState.SUCCEEDED:
        raise NotReproducible(f"the job {job_id} is {first.job.state}; only one that succeeded is")
    if first.job.pruned_at is not None:
        raise NotReproducible(f"the texts of job {job_id} were pruned or erased")
    again = submit_contract(contract_again(first))
    if not json:
        note(f"{again.id}, waiting; Ctrl-C leaves it running")
    say_if_nobody_works()
    try:
        finished = again.wait()
    except KeyboardInterrupt:
        note(f"no longer waiting; `tidemill show {again.id}` has the result when it is there")
        raise typer.Exit(130) from None
    if finished.state is not JobState.SUCCEEDED:
        reason = f": {finished.error.message} ({finished.error.code})" if finished.error else ""
        raise NotReproducible(f"the second run, {again.id}, is {finished.state}{reason}")
    second = found_job(again.id)
    differences = differing(first.provenance or {}, second.provenance or {})
    is_identical = answers(first) == answers(second)
    if json:
        write_json(
            {
                "job": str(job_id),
                "again": str(again.id),
                "identical": is_identical,
                "first_difference": None if is_identical else first_difference(first, second),
                "records": {
                    name: {"first": before, "again": after}
                    for name, (before, after) in differences.items()
                },
            }
        )
    else:
        for name, (before, after) in differences.items():
            warn(f"the records differ in {name}: {before} then, {after} now")
        if is_identical:
            say("identical")
        else:
            at = first_difference(first, second)
            say(f"different from character {at:,} on; `tidemill show {again.id}` has the answer")
    if not is_identical:
        raise typer.Exit(1)


def contract_again(first: "JobDetails") -> "Contract":
    """The contract of a job, with the values that its model chose for open fields."""
    from tasks.contracts.by_task import CONTRACTS

    contract = CONTRACTS[first.job.task]
    # A way through several models is found again.
    fields = {name: value for name, value in first.contract.items() if name != "route"}
    settings = dict((first.provenance or {}).get("settings", {}))
    # A job that draws and names no seed has one by its id.
    fields["seed"] = settings.get("seed", first.job.id.int & (2**63 - 1))
    if first.job.task != "translate" and not BY_REQUEST & fields.keys():
        fields.pop("max_length", None)  # it came to max_new_tokens
        field_names = contract.own_fields()
        settled = {name: value for name, value in settings.items() if name in field_names}
        if isinstance(settled.get("early_stopping"), str):  # "never", which only a model says
            del settled["early_stopping"]
        if first.job.finish_reason == "stop":
            # It ended by itself, and the fake engine ends otherwise where a length is named.
            settled.pop("max_new_tokens", None)
        fields = {**settled, **fields}
    return contract.parse(
        {
            **fields,
            **({"use_cache": False} if "use_cache" in contract.model_fields else {}),
            **({} if "route" in first.contract else {"model": first.job.model}),
            "tenant": first.job.tenant,
            # Its own as well: whoever erases a person finds both by them.
            "metadata": {**first.job.metadata, "reproduces": str(first.job.id)},
        }
    )


def answers(details: "JobDetails") -> tuple[str, ...]:
    return (details.job.output or "", *details.job.alternatives)


def first_difference(first: "JobDetails", second: "JobDetails") -> int:
    """The offset of the first different character, over all answers concatenated."""
    one, other = "".join(answers(first)), "".join(answers(second))
    pairs = zip(one, other, strict=False)
    return next(
        (at for at, (mine, yours) in enumerate(pairs) if mine != yours), min(len(one), len(other))
    )


def differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The values that differ between two records of model and settings, by name."""
    pairs = {name: (first.get(name), second.get(name)) for name in RECORD}
    # A record of before a field was kept says nothing of it.
    return {
        name: (before, after)
        for name, (before, after) in pairs.items()
        if before != after and before is not None
    }
