"""`tidemill show`: shows everything about one job."""

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import options
from cli.output.coverage import coverage_lines
from cli.output.escaping import json_text, visible
from cli.output.terminal import inert, out, say, warn, write_json

if TYPE_CHECKING:
    from db.reading.job_details import JobDetails


def show(
    job: Annotated[str, typer.Argument(metavar="JOB", help="A job's id.")],
    json: options.Json = False,
) -> None:
    """Show one job: its input, its result, its attempts and its origin."""
    from cli.lookup import found_job
    from cli.stack.ready import require_ready
    from tasks.quarantine import Reason

    [job_id] = options.job_ids([job])
    require_ready()
    details = found_job(job_id)
    if json:
        write_json(_as_json(details))
        return
    facts = _facts(details)
    width = max(len(name) for name, _ in facts)
    for name, value in facts:
        say(f"{name:<{width}}  {visible(value, out.encoding, one_line=True)}")
    for message in details.messages:
        warn(
            f"a message that came by this id was set aside: {Reason(message.reason).sentence} "  # type: ignore[call-arg]
            f"({message.reason}); `tidemill messages {message.id}` shows it"
        )
    if details.coverage is not None:
        for line in coverage_lines(details.coverage, max(min(out.width, 80) - width - 2, 10)):
            say(f"{'coverage':<{width}}  {line}")
    for name, value in details.contract.items():
        _section(name, value)
    if details.job.reasoning is not None:
        _section("reasoning", details.job.reasoning)
    if details.job.output is not None:
        _section("output", details.job.output)
    if details.refused_output is not None:
        _section("refused output", details.refused_output)
    for number, alternative in enumerate(details.job.alternatives, start=2):
        _section(f"output {number}", alternative)
    if details.provenance is not None:
        for name, value in details.provenance.items():
            _section(name, value)


def _facts(details: "JobDetails") -> list[tuple[str, str]]:
    from db.suspicion import in_words

    job = details.job
    facts: list[tuple[str, Any]] = [
        ("id", job.id),
        ("batch", job.batch),
        ("custom id", job.custom_id),
        ("task", job.task),
        ("model", job.model),
        ("state", job.state),
        ("error", f"{job.error.message} ({job.error.code})" if job.error else None),
        ("lane", f"{details.lane}, priority {details.priority}"),
        ("tenant", job.tenant),
        ("metadata", ", ".join(f"{key}={value}" for key, value in job.metadata.items())),
        ("idempotency key", details.idempotency_key),
        ("attempt", f"{job.attempt}, {details.failures} failed" if job.attempt else None),
        ("worker", details.owner),
        ("lease until", _instant(details.lease_until)),
        ("created", _instant(job.created_at)),
        ("published", _instant(details.published_at)),
        ("not before", _instant(details.not_before)),
        ("deadline", _instant(details.deadline)),
        ("started", _instant(job.started_at)),
        ("finished", _instant(job.finished_at)),
        ("input", _gone(job.input_pruned_at, job.erased_at)),
        ("output", _gone(job.output_pruned_at, job.erased_at)),
    ]
    if job.started_at and job.finished_at and job.finish_reason:
        facts.append(
            ("took", f"{(job.finished_at - job.started_at).total_seconds():.3f} s running")
        )
        thought = "" if job.reasoning is None else f", {job.reasoning_tokens} of them thought"
        facts.append(
            (
                "tokens",
                f"{job.prompt_tokens} in, {job.completion_tokens} out{thought} "
                f"({job.finish_reason})",
            )
        )
    facts.append(
        ("suspicious", "; ".join(f"{each} ({in_words(each, job)})" for each in job.suspicions))
    )
    return [(name, str(value)) for name, value in facts if value not in (None, "")]


def _gone(pruned_at: datetime | None, erased_at: datetime | None) -> str | None:
    """The reason that a text is no longer stored; None if it is."""
    if pruned_at is None:
        return None
    if erased_at is not None:
        return f"erased for a person who asked, {_instant(erased_at)}"
    return f"pruned {_instant(pruned_at)}, for it was as old as [retention] allows"


def _instant(at: datetime | None) -> str | None:
    return f"{at.astimezone():%Y-%m-%d %H:%M:%S %Z}" if at else None


def _section(name: str, value: Any) -> None:
    text = value if isinstance(value, str) else json_text(value, out.encoding, indent=2)
    if "\n" not in text and len(text) < 60:
        out.print(inert(f"{name}: {text}"), soft_wrap=True)
        return
    out.print(f"\n{name}:", style="bold")
    out.print(inert(text), soft_wrap=True)


def _as_json(details: "JobDetails") -> dict[str, Any]:
    from cli.output.job_json import FIELDS, SIGNAL_FIELDS, record

    alternatives = (
        {"alternatives": list(details.job.alternatives)} if (details.job.alternatives) else {}
    )
    return {
        **record(details.job, (*FIELDS, *SIGNAL_FIELDS)),
        **alternatives,
        "tenant": details.job.tenant,
        "language": details.job.language,
        "lane": details.lane.value,
        "priority": details.priority,
        "idempotency_key": details.idempotency_key,
        "batch_id": str(details.batch_id) if details.batch_id else None,
        "attempt": details.job.attempt,
        "failures": details.failures,
        "owner": details.owner,
        "contract": dict(details.contract),
        "provenance": details.provenance,
        "refused_output": details.refused_output,
        "reasoning": details.job.reasoning,
        "reasoning_tokens": details.job.reasoning_tokens,
        "messages": [{"id": str(each.id), "reason": each.reason} for each in details.messages],
        "coverage": details.coverage,
        **{
            name: at.isoformat() if at else None
            for name, at in (
                ("lease_until", details.lease_until),
                ("published_at", details.published_at),
                ("not_before", details.not_before),
                ("deadline", details.deadline),
                ("started_at", details.job.started_at),
                ("input_pruned_at", details.job.input_pruned_at),
                ("output_pruned_at", details.job.output_pruned_at),
                ("pruned_at", details.job.pruned_at),
                ("erased_at", details.job.erased_at),
            )
        },
    }
