"""A name on the command line of `submit`: a path is never summarized as a text unasked."""

import json
import os
import pty
import re
import signal
import subprocess
from pathlib import Path

import pytest

from db.session import Database
from tests.running.commands import CommandLine, ids
from tests.running.workers import until
from tests.samples.jobs import states

EVERYTHING = ("results", "--state", "all", "--format", "jsonl")


@pytest.fixture
def files(stored: CommandLine) -> CommandLine:
    stored.write("a.jsonl", {"text": "of a", "custom_id": "a1"}, {"text": "unnamed of a"})
    stored.write("b.csv", "custom_id,text,seed", "b1,of b,7")
    (stored.folder / "txts").mkdir()
    (stored.folder / "txts" / "t1").write_text("of t")
    return stored


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("txts", "`--file txts` submits what is in it; `--text txts` submits it as the text"),
        ("nosuch.txt", "the name of a file or folder, and there is none; `--text nosuch.txt`"),
        ("*.txt", "a pattern, to which no file fits"),
        ("https://example.com/a", "an address, from which nothing is fetched"),
        ("~/nosuch-at-all", "there is none"),
    ],
)
def test_a_text_that_looks_like_a_path_is_refused_with_the_option_to_insist(
    files: CommandLine, name: str, fault: str
) -> None:
    refused = files("submit", "summarize", name)

    assert refused.status == 1
    assert fault in refused.err
    assert files(*EVERYTHING).out == ""

    assert files("submit", "summarize", "--text", name, "--batch", "b").status == 0
    [record] = files(*EVERYTHING).out.splitlines()
    assert files("show", json.loads(record)["id"], "--json").json["contract"]["text"] == name


def test_a_folder_is_submitted_whole(files: CommandLine) -> None:
    assert files("submit", "summarize", "--file", "txts").status == 0
    assert files("submit", "summarize", "txts/").status == 0

    assert ids(files(*EVERYTHING)) == ["t1", "t1"]


def test_several_files_and_folders_are_one_batch(files: CommandLine) -> None:
    arguments = ("submit", "generate", "a.jsonl", "b.csv", "txts", "--run-key", "k", "--json")
    ended, again = files(*arguments), files(*arguments)

    assert (ended.status, ended.json["num_new"], again.json["num_known"]) == (0, 4, 4)
    assert ids(files(*EVERYTHING)) == ["a1", None, "b1", "t1"]


def test_one_custom_id_for_two_files_is_refused(files: CommandLine) -> None:
    files.write("c.jsonl", {"text": "of c", "custom_id": "a1"}, {"text": "unnamed of c"})
    for key in ((), ("--run-key", "k")):
        ended = files("submit", "generate", "a.jsonl", "c.jsonl", *key, "--json")

        assert (ended.status, ended.json["num_new"], ended.json["num_bad"]) == (1, 3, 1)
        assert "c.jsonl, line 1: custom_id: is that of a.jsonl, line 1 too" in ended.err


@pytest.mark.parametrize(
    "words", [("two", "words"), ("a.jsonl", "words"), ("a.jsonl", "b.csv", "--file", "a.jsonl")]
)
def test_several_words_are_wrong_usage(files: CommandLine, words: tuple[str, ...]) -> None:
    assert files("submit", "generate", *words).status == 2
    assert files(*EVERYTHING).out == ""


def on_a_terminal(command: CommandLine, answers: str, *arguments: str) -> tuple[int, str]:
    """Run a command on a terminal of its own and type answers; its status and what it showed."""
    ours, theirs = pty.openpty()
    whole_environment = {**command.whole_environment, "TERM": "dumb"}
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), theirs)
    process = command.start(*arguments, env=whole_environment, **streams)
    os.close(theirs)
    os.write(ours, answers.encode())
    shown = b""
    try:
        while piece := os.read(ours, 4096):
            shown += piece
    except OSError:  # the terminal has no other end
        pass
    os.close(ours)
    return process.wait(60), shown.decode()


@pytest.mark.parametrize(
    ("answers", "name", "status", "found"),
    [
        ("y\n", "txts", 0, ["t1"]),
        ("n\ny\n", "txts", 0, [None]),
        ("n\nn\n", "txts", 1, []),
        ("n\n", "nosuch.txt", 1, []),
        ("y\n", "nosuch.txt", 0, [None]),
    ],
)
def test_an_ambiguous_argument_is_asked_about_on_a_terminal(
    files: CommandLine, answers: str, name: str, status: int, found: list[str | None]
) -> None:
    ended, shown = on_a_terminal(files, answers, "submit", "summarize", name, "--batch", "b")

    assert "?" in shown
    assert ("There is no file or folder nosuch.txt here" in shown) == (name == "nosuch.txt")
    assert ended == status, shown
    assert ids(files(*EVERYTHING)) == found


def test_an_interrupt_in_the_middle_says_what_is_kept_and_how_to_go_on(
    stored: CommandLine, database_url: str
) -> None:
    """Two thousand lines of three thousand, and Ctrl-C."""
    lines = [json.dumps({"text": "x", "custom_id": str(n)}) + "\n" for n in range(3000)]
    arguments = ("submit", "summarize", "--file", "-", "--run-key", "k")
    process = stored.start(*arguments, stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.writelines(lines[:2100])
    process.stdin.flush()
    wait_for_jobs(database_url, 2000)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)

    assert process.returncode == 130
    # The second thousand may be kept and not told yet.
    kept = r"what is enqueued stays, at least [12],000 jobs; the same command goes on where this"
    assert re.search(kept, err)
    again = stored(*arguments, "--json", given="".join(lines))
    assert (again.status, again.json["num_new"], again.json["num_known"]) == (0, 1000, 2000)


def test_an_interrupt_before_anything_is_kept_says_so(stored: CommandLine) -> None:
    fifo = stored.folder / "a.jsonl"
    os.mkfifo(fifo)
    process = stored.start("submit", "summarize", "--file", "a.jsonl", "--strict")
    with fifo.open("w"):  # once it reads
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)

    assert process.returncode == 130
    assert "nothing was enqueued" in err


def wait_for_jobs(url: str, number: int) -> None:
    database = Database(url)
    until(lambda: sum(states(database).values()) == number, f"{number} jobs")
    database.close()


def test_a_tilde_that_the_shell_left_alone_is_expanded(
    files: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(files.folder))

    assert files("submit", "summarize", "--file", "~/b.csv").status == 0
    assert ids(files(*EVERYTHING)) == ["b1"]


def test_help_shows_a_text_and_a_file(tidemill: CommandLine) -> None:
    shown = " ".join(tidemill("submit", "--help").out.split())

    assert "Example: tidemill submit summarize --file reports.jsonl" in shown
    for option in ("--text", "--errors", "--file"):
        assert option in shown


def test_errors_are_not_written_over_the_source(files: CommandLine, tmp_path: Path) -> None:
    before = (files.folder / "a.jsonl").read_bytes()

    ended = files("submit", "summarize", "a.jsonl", "--errors", "./a.jsonl")

    assert ended.status == 1
    assert "is the source itself" in ended.err
    assert (files.folder / "a.jsonl").read_bytes() == before
    assert files(*EVERYTHING).out == ""
