"""Writers: jobs as a table, JSON lines, CSV or Parquet, each written as it is read."""

import csv
import json
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import IO, Any, TextIO

from cli.output.job_json import FIELDS, record
from cli.output.terminal import one_line, table
from db.reading import FoundJob

ROWS_AT_ONCE = 5000
OUTPUT_CHARACTERS = 90  # of an output in a table


def write_jsonl(jobs: Iterable[FoundJob], to: TextIO) -> None:
    for job in jobs:
        to.write(json.dumps(record(job), ensure_ascii=False) + "\n")


def write_csv(jobs: Iterable[FoundJob], to: TextIO) -> None:
    """A header and a row a job; `error` and `metadata` are JSON in their cells."""
    writer = csv.DictWriter(to, (*FIELDS, "alternatives"), restval="", lineterminator="\n")
    writer.writeheader()
    for job in jobs:
        cells = record(job)
        for name in ("error", "metadata", "alternatives"):
            if cells.get(name):
                cells[name] = json.dumps(cells[name], ensure_ascii=False)
            elif name in cells:
                cells[name] = ""
        writer.writerow(cells)


def write_parquet(jobs: Iterable[FoundJob], to: IO[bytes]) -> None:
    """One row a job; `error` is a struct, `metadata` a map, the instants are in UTC."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    text, count = pa.string(), pa.int64()
    types: Mapping[str, Any] = {
        "prompt_tokens": count,
        "completion_tokens": count,
        "error": pa.struct([("code", text), ("message", text)]),
        "metadata": pa.map_(text, text),
        "created_at": pa.timestamp("us", tz="UTC"),
        "finished_at": pa.timestamp("us", tz="UTC"),
        "alternatives": pa.list_(text),
    }
    schema = pa.schema([(name, types.get(name, text)) for name in (*FIELDS, "alternatives")])
    left = iter(jobs)
    with pq.ParquetWriter(to, schema) as writer:
        while chunk := list(islice(left, ROWS_AT_ONCE)):
            rows = [
                {
                    **record(job),
                    "metadata": list(job.metadata.items()),
                    "created_at": job.created_at,
                    "finished_at": job.finished_at,
                }
                for job in chunk
            ]
            writer.write_table(pa.Table.from_pylist(rows, schema))


def results_table(jobs: Iterable[FoundJob]) -> Any:
    """A Rich table for people; a failed job shows its error where others show their output."""
    made = table("id", "custom id", "task", "state", "output")
    for job in jobs:
        if job.error is not None and job.output is None:
            answer = one_line(f"{job.error.code}: {job.error.message}", OUTPUT_CHARACTERS)
        else:
            answer = one_line(job.output or "", OUTPUT_CHARACTERS)
        made.add_row(
            str(job.id),
            one_line(job.custom_id or "", 40),
            job.task,
            job.state.value,
            answer,
        )
    return made


TEXT_WRITERS: Mapping[str, Callable[[Iterable[FoundJob], TextIO], None]] = {
    "jsonl": write_jsonl,
    "csv": write_csv,
}
