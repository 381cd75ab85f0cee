"""Options that several commands share, and parsers for their values."""

import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import UUID

import typer

from engine.protocol.task_names import TaskName as TaskName

LaneName = Literal["interactive", "bulk"]
FinishReason = Literal["stop", "length"]
# As in `db.suspicion.Suspicion`, without loading the database: a test compares.
SuspicionName = Literal[
    "empty",
    "cut_by_length",
    "too_short",
    "too_long",
    "repetition",
    "wrong_language",
    "untranslated",
    "placeholders_missed",
    "terms_missed",
    "refused",
]
StateName = Literal["queued", "running", "succeeded", "failed", "cancelled", "expired", "all"]

# As in `cli.output.job_json`, for the same reason.
COLUMNS = (
    *("id", "batch", "custom_id", "task", "model", "state", "input", "output", "alternatives"),
    *("finish_reason", "prompt_tokens", "completion_tokens", "left_out_characters", "cached_parts"),
    *(
        "reasoning",
        "reasoning_tokens",
        "error",
        "error_code",
        "error_message",
        "metadata",
        "tenant",
        "language",
        "attempt",
        "created_at",
        "started_at",
    ),
    *("finished_at", "wait_seconds", "run_seconds"),
    *("suspicions", "reasons", "length_ratio", "repetition", "detected_language"),
    *("untranslated_share", "num_empty_parts", "num_cut_parts", "num_missed_placeholders"),
    *("num_missed_terms", "pruned_at", "erased_at"),
)

MAX_SECONDS = 10**9  # as in db.reading.results

Json = Annotated[bool, typer.Option("--json", help="Answer in JSON, for programs.")]
Errors = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Write a JSON line for each row that is left out, with its place and the reason, and "
        "for each document of which a part has no text.",
    ),
]
MetricsPort = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=65535,
        metavar="PORT",
        help="Port for Prometheus metrics; default metrics_port of the worker table.",
    ),
]
Wait = Annotated[bool, typer.Option("--wait", help="Wait until it is finished.")]
Strict = Annotated[bool, typer.Option("--strict", help="Enqueue nothing if a single row is bad.")]
Estimate = Annotated[
    bool,
    typer.Option(
        "--estimate",
        help="Enqueue nothing; print the number of documents, parts and tokens, what the cache "
        "already has, and the expected time at the rate of recent results.",
    ),
]
Models = Annotated[
    str | None,
    typer.Option(metavar="A,B", help="Serve only these models of tidemill.toml; default all."),
]


def pairs(option: str, texts: Iterable[str]) -> dict[str, str]:
    """Parse `key=value` texts; a usage error names an invalid one."""
    values = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise typer.BadParameter(f"{text!r} must be KEY=VALUE", param_hint=option)
        values[key] = value
    return values


def params(texts: Iterable[str]) -> dict[str, Any]:
    """Parse `--param` values as JSON if possible (60, 0.7, true, ["."]), else as texts."""
    texts_by_name: Mapping[str, str] = pairs("--param", texts)
    return {key: _json_or_text(value) for key, value in texts_by_name.items()}


def json_file(path: Path) -> Any:
    """The content of a JSON file; a usage error names one that cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        fault = f"{path} cannot be read: {error.strerror}"
    except (RecursionError, ValueError):
        fault = f"{path} holds no JSON"
    raise typer.BadParameter(fault, param_hint="--json-schema")


def instant(option: str, text: str | None) -> datetime | None:
    """Parse an ISO date or time: local without a time zone, midnight without a time."""
    if text is None:
        return None
    try:
        return datetime.fromisoformat(text).astimezone()
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is no date; write 2026-01-31 or 2026-01-31T02:00:00+01:00",
            param_hint=option,
        ) from None


def columns(text: str | None) -> list[str] | None:
    """Parse comma-separated column names; a usage error names an unknown one."""
    if text is None:
        return None
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in COLUMNS:
            fault = f"{name!r} is no column; there are {', '.join(COLUMNS)}"
        elif names.count(name) > 1:
            fault = f"{name} is named twice"
        else:
            continue
        raise typer.BadParameter(fault, param_hint="--columns")
    return names


def seconds(option: str, value: float | None) -> float | None:
    """Check a length of time; raises a usage error for an invalid one."""
    if value is not None and not 0 <= value <= MAX_SECONDS:
        raise typer.BadParameter(
            f"{value} must be seconds, from 0 to {MAX_SECONDS:,}", param_hint=option
        )
    return value


def job_ids(texts: Iterable[str]) -> list[UUID]:
    ids = []
    for text in texts:
        try:
            ids.append(UUID(text))
        except ValueError:
            raise typer.BadParameter(
                f"{text!r} is no job id, which looks like 01a20a9c-8646-70ad-ab14-32e4e2328b4c; "
                "`tidemill results --custom-id ...` finds a job by its custom id",
                param_hint="JOB",
            ) from None
    return ids


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
