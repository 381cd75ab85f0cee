"""Commands as their users have them, without a worker: what is taken, refused and shown."""

import csv
import json
import shlex
from pathlib import Path
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cli.commands.enqueue.submit import EXAMPLES
from tests.running.commands import CommandLine, ids


def test_a_bad_line_is_reported_with_its_number_and_the_rest_goes_through(
    stored: CommandLine,
) -> None:
    stored.write("a.jsonl", {"text": "x", "custom_id": "1"}, "{broken", {"text": "y"}, {"txt": "z"})

    ended = stored("submit", "summarize", "--file", "a.jsonl", "--batch", "b", "--json")

    assert ended.status == 1
    assert (ended.json["num_new"], ended.json["num_bad"]) == (2, 2)
    assert "a.jsonl, line 2 is not valid JSON" in ended.err
    assert "txt: is not a field of summarize; did you mean text?" in ended.err.splitlines()[1]
    assert ids(stored("results", "--state", "all", "--format", "jsonl")) == ["1", None]


def test_strict_enqueues_nothing_if_a_single_line_is_bad(stored: CommandLine) -> None:
    stored.write("a.jsonl", {"text": "x"}, "{broken")

    ended = stored("submit", "summarize", "--file", "a.jsonl", "--strict")

    assert ended.status == 1
    assert ended.err.count("line 2") == 1
    assert stored("batches", "--json").json == []


def test_a_run_key_makes_a_second_submit_harmless(stored: CommandLine) -> None:
    stored.write("a.jsonl", {"text": "x"}, {"text": "y"})
    arguments = ("submit", "summarize", "--file", "a.jsonl", "--run-key", "k")
    assert stored(*arguments).status == 0

    again = stored(*arguments)

    assert again.status == 0
    assert "already enqueued under run key k as batch k: 2 jobs (2 queued)" in again.out
    [batch] = stored("batches", "--json").json
    assert (batch["name"], batch["num_jobs"], batch["states"]) == ("k", 2, {"queued": 2})


@pytest.mark.parametrize("text", ["", "\n\n"])
def test_an_empty_file_is_no_batch(stored: CommandLine, text: str) -> None:
    (stored.folder / "a.jsonl").write_text(text)

    ended = stored("submit", "summarize", "--file", "a.jsonl", "--run-key", "k")

    assert ended.status == 1
    assert "a.jsonl has no rows; nothing was enqueued" in ended.err
    assert "allow_empty" not in ended.err, "that is a night's setting"
    assert stored("batches", "--json").json == []


def test_an_empty_folder_is_no_batch(stored: CommandLine) -> None:
    (stored.folder / "reports").mkdir()
    (stored.folder / "reports" / ".hidden.txt").write_text("The sea was calm.")

    for arguments in (("reports/",), ("reports/", "--estimate")):
        ended = stored("submit", "summarize", *arguments)

        assert ended.status == 1
        assert "reports has no rows: the folder has no files in it, hidden ones aside" in ended.err
        assert "allow_empty" not in ended.err
    assert stored("batches", "--json").json == []


def test_every_kind_of_source_is_taken(stored: CommandLine) -> None:
    stored.write("a.jsonl", {"text": "from json lines", "custom_id": "jsonl"})
    stored.write("a.csv", "custom_id,text,metadata.station", "csv,from csv,north")
    pq.write_table(
        pa.table({"id": ["parquet"], "body": ["from parquet"], "more": [1]}),
        stored.folder / "a.parquet",
    )
    (stored.folder / "texts").mkdir()
    (stored.folder / "texts" / "file.txt").write_text("from a file")

    for arguments in (
        ("a.jsonl",),
        ("a.csv",),
        ("a.parquet", "--field", "text=body", "--field", "custom_id=id"),
        ("texts/",),
    ):
        assert stored("submit", "generate", *arguments).status == 0
    ended = stored("submit", "generate", "--file", "-", given='{"text": "x", "custom_id": "-"}\n')
    assert ended.status == 0

    found = ids(stored("results", "--state", "queued", "--format", "jsonl"))
    assert found == ["jsonl", "csv", "parquet", "file.txt", "-"]
    north = stored("results", "--state", "all", "--metadata", "station=north", "--format", "jsonl")
    assert ids(north) == ["csv"]


def test_a_parquet_file_without_the_column_is_refused_at_once(stored: CommandLine) -> None:
    pq.write_table(pa.table({"custom_id": ["1"]}), stored.folder / "a.parquet")

    ended = stored("submit", "summarize", "--file", "a.parquet")

    assert ended.status == 1
    assert "a.parquet has no column 'text', which summarize needs; its columns: custom_id" in (
        ended.err
    )
    assert stored("batches", "--json").json == []


def test_results_are_written_in_every_format_and_page_by_cursor(stored: CommandLine) -> None:
    rows = [{"text": "x", "custom_id": str(number)} for number in range(5)]
    stored.write("a.jsonl", *rows)
    stored("submit", "summarize", "--file", "a.jsonl")
    everything = ("results", "--state", "all")

    assert stored(*everything, "--format", "csv", "-o", "r.csv").status == 0
    assert stored(*everything, "-o", "r.parquet").status == 0  # its name says how
    table = stored(*everything, "--limit", "3")
    cursor = table.err.split("--after ")[1].strip()
    rest = stored(*everything, "--after", cursor, "--format", "jsonl")

    with (stored.folder / "r.csv").open(newline="") as file:
        assert [row["custom_id"] for row in csv.DictReader(file)] == ["0", "1", "2", "3", "4"]
    columns = pq.read_table(stored.folder / "r.parquet").to_pydict()
    assert columns["custom_id"] == ["0", "1", "2", "3", "4"]
    assert ids(rest) == ["3", "4"]
    assert not list(stored.folder.glob("*.part"))


def test_cancelled_jobs_can_be_retried_and_are_counted(stored: CommandLine) -> None:
    stored.write("a.jsonl", {"text": "x"}, {"text": "y"})
    stored("submit", "summarize", "--file", "a.jsonl", "--batch", "b")
    first = json.loads(
        stored("results", "--state", "all", "--format", "jsonl", "--limit", "1").out
    )["id"]

    one = stored("cancel", first, "--json").json
    again = stored("cancel", first, str(uuid4()), "--json")
    rest = stored("cancel", "--batch", "b")
    none = stored("retry", "--batch", "b")
    back = stored("retry", "--batch", "b", "--state", "cancelled")

    assert one == {"changed": [first], "unchanged": {}, "unknown": []}
    assert again.status == 1
    assert again.json["unchanged"] == {first: "cancelled"}
    assert len(again.json["unknown"]) == 1
    assert rest.out == "1 job cancelled\n"
    assert none.out == "0 jobs queued again; in the batch: 2 cancelled\n"
    assert back.out == "2 jobs queued again\n"
    [batch] = stored("batches", "--json").json
    assert batch["states"] == {"queued": 2}


def test_show_prints_the_input(stored: CommandLine) -> None:
    pair = ("--source-language", "en", "--target-language", "fr")
    more = ("--param", "seed=7", "--metadata", "gate=2", "--priority", "5", "--batch", "b")
    assert stored("submit", "translate", "\x1b[2Jx", *pair, *more).status == 0
    [record] = stored("results", "--state", "all", "--format", "jsonl").out.splitlines()
    job_id = json.loads(record)["id"]

    shown = stored("show", job_id)
    details = stored("show", job_id, "--json").json

    assert details["contract"] == {
        "text": "\x1b[2Jx",
        "source_language": "en",
        "target_language": "fr",
        "seed": 7,
    }
    assert (details["lane"], details["priority"]) == ("bulk", 5)
    assert details["metadata"] == {"gate": "2"}
    assert details["provenance"] is None
    assert "\x1b" not in shown.out
    assert stored("show", str(uuid4())).status == 1


def test_without_redis_a_job_is_kept_and_the_doctor_says_what_is_wrong(
    stored: CommandLine,
) -> None:
    submitted = stored("submit", "summarize", "a text")
    status = stored("status", "--json")
    doctor = stored("doctor", "--json")

    assert submitted.status == 0
    assert "job kept, not published yet" in submitted.err
    assert status.status == 1
    assert status.json["redis"]["reachable"] is False
    assert status.json["jobs"] == {"parrot": {"queued": 1}}
    assert doctor.status == 1
    wrong = {finding["subject"] for finding in doctor.json if not finding["ok"]}
    assert wrong == {"redis", "workers"}
    assert stored("worker").status == 1


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ("", "text: is empty"),
        (" \n", "text: is empty"),
        ("a\x00b", "text: holds a NUL byte at position 1"),
        ("a\udcffb", "standard input is not UTF-8 text (byte 0xff at 1)"),
    ],
)
def test_a_wrong_text_is_refused_with_the_fault(
    tidemill: CommandLine, given: str, fault: str
) -> None:
    tidemill.environment["TIDEMILL_DATABASE_URL"] = f"sqlite:///{tidemill.folder}/tidemill.db"
    tidemill("migrate")

    ended = tidemill("submit", "summarize", "-", given=given)

    assert ended.status == 1
    assert fault in ended.err
    assert tidemill("results", "--state", "all", "--format", "jsonl").out == ""


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("notes.log", "notes.log is none of the known kinds: .jsonl"),
        ("reprots.jsonl", "there is no file or folder reprots.jsonl"),
    ],
)
def test_the_name_of_a_file_is_not_submitted_as_a_text(
    stored: CommandLine, name: str, fault: str
) -> None:
    stored.write("notes.log", "What the keeper wrote.")

    ended = stored("submit", "summarize", name)

    assert ended.status == 1
    assert fault in ended.err
    assert stored("results", "--state", "all", "--format", "jsonl").out == ""


def test_an_unknown_model_is_refused_with_the_known_ones(stored: CommandLine) -> None:
    ended = stored("submit", "summarize", "x", "--model", "ghost")

    assert ended.status == 1
    assert "there is no model 'ghost'; known models: parrot" in ended.err


def test_a_database_without_tables_or_at_another_revision_is_refused(
    stored: CommandLine,
) -> None:
    assert stored("migrate", "--check").status == 0
    assert stored("migrate", "--to", "base").status == 0

    for command in (("status",), ("submit", "summarize", "x"), ("migrate", "--check")):
        ended = stored(*command)
        assert ended.status == 1
        assert "run `tidemill migrate`" in ended.err
    assert stored("migrate", "--to", "nowhere").status == 1
    assert stored("migrate").status == 0
    assert stored("migrate", "--check").status == 0


def test_a_folder_without_configuration_is_refused_with_an_example(tmp_path: Path) -> None:
    ended = CommandLine(tmp_path)("up")

    assert ended.status == 1
    assert "[models.reports]" in ended.err


@pytest.mark.parametrize("task", ["summarize", "translate", "generate", "chat"])
def test_the_help_of_submit_has_an_example_of_each_task_that_runs(
    stored: CommandLine, task: str
) -> None:
    """All but --wait, for which a worker would be needed."""
    stored.write("reports.jsonl", {"text": "a report"})
    shown = " ".join(stored("submit", "--help").out.split())
    (example,) = [each for each in EXAMPLES if each.startswith(f"tidemill submit {task} ")]
    assert example in shown

    _, *arguments = [each for each in shlex.split(example) if each != "--wait"]

    ended = stored(*arguments)
    assert ended.status == 0, ended.err
    [row] = stored("results", "--state", "all", "--format", "jsonl").out.splitlines()
    assert (json.loads(row)["task"], json.loads(row)["state"]) == (task, "queued")


def test_a_glossary_comes_from_a_file_and_a_clash_is_refused(stored: CommandLine) -> None:
    (stored.folder / "terms.csv").write_text("term,translation\nharbour,port\nTidemill,\n")
    (stored.folder / "clash.json").write_text('{"bank": "banque", "Bank": "rive"}')
    command = ("submit", "translate", "The harbour.", "--source-language", "en")
    command += ("--target-language", "fr")

    ended = stored(*command, "--glossary", "terms.csv", "--batch", "b", "--json")
    assert ended.status == 0, ended.err
    (line,) = stored("results", "--state", "all", "--format", "jsonl").out.splitlines()
    shown = stored("show", json.loads(line)["id"], "--json").json
    assert shown["contract"]["glossary"] == {"harbour": "port", "Tidemill": None}

    refused = stored(*command, "--glossary", "clash.json")
    assert refused.status == 1
    assert "has two translations for one term, in entries 1 and 2" in " ".join(refused.err.split())
    assert "cannot be read" in stored(*command, "--glossary", "none.csv").err
    other = stored("submit", "summarize", "A text.", "--glossary", "terms.csv")
    assert other.status == 1
    assert "glossary: is not a field of summarize" in " ".join(other.err.split())
