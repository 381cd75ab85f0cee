"""Paths with odd names: what is read, written and configured is found there, and only there."""

import csv
import json
import shlex
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tasks.configuration.catalog import Catalog
from tests.running.commands import CONFIG, CommandLine

NAMES = (
    "with space ",
    "100%41 %(here)s",
    "a#b?c=d&e",
    'it\'s "so" [x]*',
    "line\nbreak",
    "-ünï\\x41:@$HOME;",
)
BATCH = "it's 4"
pytestmark = [
    pytest.mark.parametrize("name", NAMES),
    # How names are read does not depend on the database.
    pytest.mark.parametrize("database_url", ["sqlite"], indirect=True),
]


def texts(stored: CommandLine) -> list[str]:
    found = stored("results", "--state", "all", "--input", "--format", "jsonl")
    return [json.loads(line)["input"] for line in found.out.splitlines()]


def test_rows_and_texts_are_read_from_a_folder_with_an_odd_name(
    stored: CommandLine, name: str
) -> None:
    folder = stored.folder / name
    (folder / name).mkdir(parents=True)
    (folder / f"{name}.jsonl").write_text(json.dumps({"text": "of JSON lines"}))
    (folder / f"{name}.csv").write_text("text\nof CSV\n")
    (folder / name / f"{name}.txt").write_text("of a folder")

    ended = [
        stored("submit", "summarize", "--file", f"{name}/{name}.jsonl", "--batch", "1"),
        stored("submit", "summarize", "--file", str(folder / f"{name}.csv"), "--batch", "2"),
        stored("submit", "summarize", f"./{name}/{name}", "--batch", "3"),
        stored("submit", "summarize", "--file", f"./{name}/{name}", "--batch", BATCH),
    ]

    assert [each.status for each in ended] == [0] * 4, [each.err for each in ended]
    watched = f"`tidemill watch {shlex.quote(BATCH)}`"
    assert watched in ended[3].err, "a line to copy into a shell"
    (folder / f"{name}.log").write_text("of no kind that is known")
    one_path = f"{name}/{name}.log"
    one = stored("submit", "summarize", f"./{one_path}")
    assert f"- < {shlex.quote(one_path)}`" in one.err
    assert texts(stored) == ["of JSON lines", "of CSV", "of a folder", "of a folder"]


def test_results_and_errors_are_written_to_a_folder_with_an_odd_name(
    stored: CommandLine, name: str
) -> None:
    folder = stored.folder / name
    folder.mkdir()
    stored.write("a.jsonl", {"text": "a text", "custom_id": "1"}, {"txt": "none"})
    bad = f"{name}/{name}.jsonl"
    assert stored("submit", "summarize", "--file", "a.jsonl", "--errors", bad).status == 1
    assert len((folder / f"{name}.jsonl").read_text().splitlines()) == 1

    for suffix in ("jsonl", "csv", "parquet"):
        ended = stored("results", "--state", "all", "-o", f"{name}/out-{name}.{suffix}")
        assert ended.status == 0, ended.err
    written = folder / f"out-{name}"
    assert json.loads(Path(f"{written}.jsonl").read_text())["custom_id"] == "1"
    with Path(f"{written}.csv").open(newline="") as file:
        assert [row["custom_id"] for row in csv.DictReader(file)] == ["1"]
    with Path(f"{written}.parquet").open("rb") as file:
        assert pq.read_table(file)["custom_id"].to_pylist() == ["1"]
    assert len(list(folder.iterdir())) == 4, "and nothing beside them"


def test_a_configuration_and_its_checkpoint_are_found_in_a_folder_with_an_odd_name(
    stored: CommandLine, name: str
) -> None:
    folder = stored.folder / name
    (folder / name).mkdir(parents=True)
    (folder / name / "config.json").write_text("{}")
    config = folder / f"{name}.toml"
    # A JSON string is a TOML string.
    config.write_text(
        f'[models.odd]\ncheckpoint = {json.dumps(name)}\ntasks = ["generate"]\n{CONFIG}'
    )
    (stored.folder / "tidemill.toml").unlink()
    stored.environment["TIDEMILL_CONFIG"] = str(config)

    assert Catalog.load(config).models["odd"].checkpoint == str(folder / name)
    doctor = {each["subject"]: each for each in stored("doctor", "--json").json}
    assert doctor["model odd"]["ok"], doctor["model odd"]
    assert str(folder / name) in doctor["model odd"]["sentence"]
    assert stored("submit", "generate", "one two", "--model", "odd").status == 0


def test_a_nightly_file_and_its_sources_are_found_in_a_folder_with_an_odd_name(
    stored: CommandLine, name: str
) -> None:
    folder = stored.folder / name
    folder.mkdir()
    (folder / f"{name}.jsonl").write_text(json.dumps({"text": "of the night"}))
    path = json.dumps(f"{name}.jsonl")
    (folder / f"{name}.toml").write_text(
        f'run_key = "night"\ntask = "summarize"\nsource = {{ path = {path} }}\n'
    )

    ended = stored("nightly", f"./{name}/{name}.toml")

    assert ended.status == 0, ended.err
    assert texts(stored) == ["of the night"]
