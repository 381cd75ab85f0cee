"""Writers: write jobs as a table, JSON lines, CSV or Parquet, while they are read."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import IO, Any, Protocol

from cli.output.escaping import json_text
from cli.output.job_json import COLUMNS, FIELDS, record
from cli.output.terminal import one_line, table
from db.reading.found_job import FoundJob

MAX_GROUP_ROWS = 5000
MAX_GROUP_CHARACTERS = 32_000_000  # of what the rows of a Parquet row group hold
CELL_CHARACTERS = 90  # of a text in a table
NAME_CHARACTERS = 40
# With the order in which a table does without them where it does not fit.
TABLE_COLUMNS = (
    "id",
    "custom_id",
    "task",
    "state",
    "tenant",
    "language",
    "run_seconds",
    "input",
    "output",
)
DISPENSABLE = ("run seconds", "language", "tenant", "state", "task")
USUAL = {"tenant": "default"}  # what says nothing when every job has it

_SPECIAL = re.compile('[,"\r\n]')
_FORMULA = re.compile("'*[=+\\-@\t\r\n＝＋－＠]")


class TextSink(Protocol):
    def write(self, text: str, /) -> object: ...


def write_jsonl(
    jobs: Iterable[FoundJob],
    to: TextSink,
    columns: Sequence[str] | None = None,
    encoding: str = "utf-8",
) -> None:
    """Write an object a line; in another encoding than UTF-8 as ASCII with escapes."""
    for job in jobs:
        to.write(json_text(record(job, columns), encoding) + "\n")


def write_csv(
    jobs: Iterable[FoundJob],
    to: TextSink,
    columns: Sequence[str] | None = None,
    *,
    raw: bool = False,
) -> None:
    """Write a header and a row for each job; `error`, `metadata` and `alternatives` are JSON.

    A text that a spreadsheet would run as a formula gets a `'` in front, unless raw.
    """
    named = columns or (*FIELDS, "alternatives")
    to.write(_csv_row(named))
    for job in jobs:
        to.write(_csv_row([_csv_cell(value, raw) for value in record(job, named).values()]))


def _csv_row(cells: Sequence[str]) -> str:
    # Not the csv module's: before Python 3.13 it leaves a lone carriage return unquoted,
    # and every reader takes that for the end of the row.
    if list(cells) == [""]:
        return '""\n'  # an empty line would be none
    quoted = (
        '"' + cell.replace('"', '""') + '"' if _SPECIAL.search(cell) else cell for cell in cells
    )
    return ",".join(quoted) + "\n"


def _csv_cell(value: Any, raw: bool) -> str:
    if value is None:
        return ""
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False) if value else ""
    return guarded(value) if isinstance(value, str) and not raw else str(value)


def guarded(text: str) -> str:
    """The text in a form that no spreadsheet runs as a formula.

    It gets one more `'` if it begins with a formula, even after other `'`: removing one from such a
    cell always gives the original text.
    """
    return f"'{text}" if _FORMULA.match(text) else text


def write_parquet(
    jobs: Iterable[FoundJob], to: IO[bytes], columns: Sequence[str] | None = None
) -> None:
    """Write a row for each job; `error` is a struct, `metadata` a map, instants are in UTC."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    text, count, instant = pa.string(), pa.int64(), pa.timestamp("us", tz="UTC")
    types: Mapping[str, Any] = {
        "prompt_tokens": count,
        "completion_tokens": count,
        "left_out_characters": count,
        "cached_parts": count,
        "suspicions": pa.list_(text),
        "reasons": pa.list_(text),
        "length_ratio": pa.float64(),
        "repetition": pa.float64(),
        "untranslated_share": pa.float64(),
        "num_empty_parts": count,
        "num_cut_parts": count,
        "num_missed_placeholders": count,
        "num_missed_terms": count,
        "reasoning_tokens": count,
        "attempt": count,
        "error": pa.struct([("code", text), ("message", text)]),
        "metadata": pa.map_(text, text),
        "created_at": instant,
        "started_at": instant,
        "finished_at": instant,
        "pruned_at": instant,
        "erased_at": instant,
        "wait_seconds": pa.float64(),
        "run_seconds": pa.float64(),
        "alternatives": pa.list_(text),
    }
    as_parquet: Mapping[str, Callable[[FoundJob], Any]] = {
        "alternatives": lambda job: list(job.alternatives) or None,
        "metadata": lambda job: list(job.metadata.items()),
        "created_at": lambda job: job.created_at,
        "started_at": lambda job: job.started_at,
        "finished_at": lambda job: job.finished_at,
        "pruned_at": lambda job: job.pruned_at,
        "erased_at": lambda job: job.erased_at,
    }
    named = columns or (*FIELDS, "alternatives")
    read = {name: as_parquet.get(name, COLUMNS[name]) for name in named}
    schema = pa.schema([(name, types.get(name, text)) for name in named])
    with pq.ParquetWriter(to, schema) as writer:
        for group in _groups(jobs):
            rows = [{name: value(job) for name, value in read.items()} for job in group]
            writer.write_table(pa.Table.from_pylist(rows, schema))


def _groups(jobs: Iterable[FoundJob]) -> Iterator[list[FoundJob]]:
    """Groups of jobs that fit into memory, however long their texts are."""
    group: list[FoundJob] = []
    num_characters = 0
    for job in jobs:
        group.append(job)
        num_characters += sum(
            map(len, filter(None, (job.input, job.output, job.reasoning, *job.alternatives)))
        )
        if len(group) == MAX_GROUP_ROWS or num_characters > MAX_GROUP_CHARACTERS:
            yield group
            group, num_characters = [], 0
    if group:
        yield group


def results_table(jobs: Sequence[FoundJob], columns: Sequence[str] | None = None) -> Any:
    """A table for people; a failed job shows its error in place of the output.

    If the user chose no columns, those that are empty for all jobs are left out.
    """
    named = columns or [
        name
        for name in TABLE_COLUMNS
        if any(COLUMNS[name](job) not in (None, USUAL.get(name)) for job in jobs)
        or name == "output"
    ]
    listing = table(*(name.replace("_", " ") for name in named))
    for job in jobs:
        listing.add_row(*(_table_cell(name, job) for name in named))
    return listing


def _table_cell(name: str, job: FoundJob) -> Any:
    if name == "output" and job.output is None and job.error is not None:
        return one_line(f"{job.error.code}: {job.error.message}", CELL_CHARACTERS)
    if name == "output" and job.output_pruned_at is not None:
        return "(erased)" if job.erased_at else f"(pruned {job.output_pruned_at:%Y-%m-%d})"
    if name == "input" and job.input_pruned_at is not None:
        return "(erased)" if job.erased_at else f"(pruned {job.input_pruned_at:%Y-%m-%d})"
    if name.endswith("_at"):
        at: datetime | None = getattr(job, name)
        return f"{at.astimezone():%Y-%m-%d %H:%M:%S}" if at else ""
    value = COLUMNS[name](job)
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.3f}"
    if isinstance(value, dict):
        value = ", ".join(f"{key}={each}" for key, each in value.items())
    if isinstance(value, list):
        value = " | ".join(value)
    is_text = name in (
        "input",
        "output",
        "alternatives",
        "error",
        "error_message",
        "reasons",
        "reasoning",
    )
    return one_line(str(value), CELL_CHARACTERS if is_text else NAME_CHARACTERS)
