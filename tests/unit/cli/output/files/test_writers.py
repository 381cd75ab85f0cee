import csv
import io
import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pyarrow.parquet as pq
import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from cli import options
from cli.output.files import writers
from cli.output.files.writers import guarded, results_table, write_csv, write_jsonl, write_parquet
from cli.output.job_json import COLUMNS, FIELDS, record
from cli.output.terminal import plural
from db.reading.found_job import FoundJob, JobFailure
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
    error=JobFailure("prompt_too_long", "too long"),
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


def test_numbers_go_with_their_nouns() -> None:
    assert [plural(1, "job"), plural(1000, "job"), plural(2, "batch")] == [
        "1 job",
        "1,000 jobs",
        "2 batches",
    ]


def rows_of(jobs: list[FoundJob], columns: list[str], **how: bool) -> list[list[str]]:
    to = io.StringIO(newline="")
    write_csv(jobs, to, columns, **how)
    return list(csv.reader(io.StringIO(to.getvalue(), newline="")))


def test_the_columns_are_those_that_the_command_line_names() -> None:
    assert tuple(COLUMNS) == options.COLUMNS
    assert set(FIELDS) < set(COLUMNS)


def test_columns_are_chosen_and_a_wrong_one_is_refused_with_the_right_ones() -> None:
    assert options.columns(" id,run_seconds ") == ["id", "run_seconds"]
    with pytest.raises(typer.BadParameter, match="'idd' is no column; there are id, batch,"):
        options.columns("id,idd")
    with pytest.raises(typer.BadParameter, match="'' is no column"):
        options.columns("")
    with pytest.raises(typer.BadParameter, match="id is named twice"):
        options.columns("id,task,id")


def test_every_format_has_the_chosen_columns_in_their_order() -> None:
    chosen = list(reversed(COLUMNS))
    one = job(input="a text", started_at=AT, finished_at=AT + timedelta(seconds=1.5))
    lines, parquet = io.StringIO(), io.BytesIO()

    write_jsonl([one, FAILED], lines, chosen)
    write_parquet([one, FAILED], parquet, chosen)

    for line, each in zip(lines.getvalue().splitlines(), (one, FAILED), strict=True):
        assert list(json.loads(line).items()) == list(record(each, chosen).items())
    head, first, _ = rows_of([one, FAILED], chosen)
    assert head == chosen
    assert first[head.index("run_seconds")] == "1.5"
    assert first[head.index("input")] == "a text"
    read = pq.read_table(io.BytesIO(parquet.getvalue()))
    assert read.column_names == chosen
    assert read.to_pylist()[0]["run_seconds"] == 1.5
    assert read.to_pylist()[1]["error_code"] == "prompt_too_long"
    shown = results_table([one, FAILED], chosen)
    assert [column.header for column in shown.columns] == [
        name.replace("_", " ") for name in chosen
    ]


def test_a_table_shows_what_tells_jobs_apart() -> None:
    plain = results_table([job(custom_id=None)])
    told = results_table([job(custom_id=None), job(tenant="press", language="fr", input="asked")])

    def headers(of: Any) -> list[str]:
        return [str(column.header) for column in of.columns]

    assert headers(plain) == ["id", "task", "state", "run seconds", "output"]
    assert set(headers(told)) - set(headers(plain)) == {"custom id", "tenant", "language", "input"}


@pytest.mark.parametrize("first", [*"=+-@\t\r\n", "＝", "＋", "－", "＠"])
def test_a_formula_is_a_text_to_a_spreadsheet_unless_raw(first: str) -> None:
    text = f"{first}cmd|' /C calc'!A0"
    one = job(output=text, custom_id=text, batch=text, tenant=text, input=text)
    columns = ["output", "custom_id", "batch", "tenant", "input"]

    assert rows_of([one], columns)[1] == ["'" + text] * 5
    assert rows_of([one], columns, raw=True)[1] == [text] * 5


def test_a_text_that_is_no_formula_is_unchanged() -> None:
    for text in ("", "a=b", "the keeper's", "'quoted'", " - a list", "3-4", '"'):
        assert guarded(text) == text
    assert rows_of([job()], ["prompt_tokens"])[1] == ["3"]


@given(st.text(st.sampled_from("'=+-@\t\r\n＝ ab,\";")))
def test_csv_can_be_undone_and_raw_csv_loses_nothing(text: str) -> None:
    (_, [shown]) = rows_of([job(output=text)], ["output"])
    (_, [raw]) = rows_of([job(output=text)], ["output"], raw=True)

    assert raw == text
    assert re.sub("^'(?='*[=+\\-@\t\r\n＝＋－＠])", "", shown) == text
    assert not re.match("[=+\\-@\t\r\n＝＋－＠]", shown)


def test_json_lines_are_ascii_where_the_encoding_is_not_utf_8() -> None:
    to = io.StringIO()

    write_jsonl([job(output="übel\x9b\u202e")], to, encoding="latin-1")

    assert to.getvalue().isascii()
    assert json.loads(to.getvalue())["output"] == "übel\x9b\u202e"


def test_parquet_holds_no_more_at_once_than_there_is_room_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(writers, "MAX_GROUP_CHARACTERS", 25)
    to = io.BytesIO()

    write_parquet([job(input="i" * 5, output="o" * 5)] * 7, to)

    written = pq.ParquetFile(io.BytesIO(to.getvalue())).metadata
    assert [written.row_group(each).num_rows for each in range(written.num_row_groups)] == [3, 3, 1]
