import csv
import io
import json
from datetime import UTC, datetime
from uuid import UUID

import pyarrow.parquet as pq

from cli.output.job_json import FIELDS, record
from cli.output.terminal import inert, one_line, plural
from cli.output.writers import write_csv, write_jsonl, write_parquet
from db.reading import FoundJob, JobError
from db.states import JobState

AT = datetime(2026, 1, 31, 2, 0, tzinfo=UTC)


def job(**changed: object) -> FoundJob:
    fields: dict[str, object] = {
        "id": UUID(int=1),
        "batch": "night",
        "custom_id": "a",
        "task": "summarize",
        "model": "parrot",
        "state": JobState.SUCCEEDED,
        "output": 'übel, "gut"\nzwei',
        "alternatives": (),
        "finish_reason": "stop",
        "prompt_tokens": 3,
        "completion_tokens": 2,
        "error": None,
        "metadata": {"station": "north"},
        "language": None,
        "tenant": "default",
        "attempt": 1,
        "created_at": AT,
        "started_at": AT,
        "finished_at": AT,
    }
    return FoundJob(**{**fields, **changed})  # type: ignore[arg-type]


FAILED = job(
    state=JobState.FAILED,
    output=None,
    finish_reason=None,
    prompt_tokens=None,
    completion_tokens=None,
    error=JobError("prompt_too_long", "too long"),
    metadata={},
    finished_at=None,
)
SEVERAL = job(alternatives=("second", "third"))


def test_a_record_has_exactly_its_fields_in_order() -> None:
    assert tuple(record(job())) == FIELDS
    assert tuple(record(SEVERAL)) == (*FIELDS, "alternatives")
    assert record(FAILED)["error"] == {"code": "prompt_too_long", "message": "too long"}


def test_json_lines_are_one_object_a_line() -> None:
    to = io.StringIO()

    write_jsonl([job(), FAILED], to)

    first, second = to.getvalue().splitlines()
    assert json.loads(first) == record(job())
    assert "übel" in first
    assert json.loads(second)["output"] is None


def test_csv_gives_back_what_was_put_in() -> None:
    to = io.StringIO()

    write_csv([job(), FAILED, SEVERAL], to)

    first, failed, several = csv.DictReader(io.StringIO(to.getvalue()))
    assert first["output"] == job().output
    assert json.loads(first["metadata"]) == {"station": "north"}
    assert first["error"] == first["alternatives"] == failed["metadata"] == failed["output"] == ""
    assert json.loads(failed["error"])["code"] == "prompt_too_long"
    assert json.loads(several["alternatives"]) == ["second", "third"]


def test_parquet_keeps_types() -> None:
    to = io.BytesIO()

    write_parquet([job(), FAILED, SEVERAL], to)

    first, failed, several = pq.read_table(io.BytesIO(to.getvalue())).to_pylist()
    assert first["created_at"] == AT
    assert dict(first["metadata"]) == {"station": "north"}
    assert first["alternatives"] is None
    assert failed["error"] == {"code": "prompt_too_long", "message": "too long"}
    assert failed["prompt_tokens"] is None
    assert several["alternatives"] == ["second", "third"]


def test_parquet_of_nothing_is_a_table_without_rows() -> None:
    to = io.BytesIO()

    write_parquet([], to)

    assert pq.read_table(io.BytesIO(to.getvalue())).num_rows == 0


def test_an_escape_sequence_in_an_output_stays_on_the_page() -> None:
    assert "\x1b" not in inert("\x1b[2Jgone").plain
    assert one_line("a\n  b\tc", 10).plain == "a b c"
    assert one_line("x" * 50, 10).plain == "x" * 9 + "…"


def test_numbers_go_with_their_nouns() -> None:
    assert [plural(1, "job"), plural(1000, "job"), plural(2, "batch")] == [
        "1 job",
        "1,000 jobs",
        "2 batches",
    ]
