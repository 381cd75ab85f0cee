"""`tidemill up` and what works in its folder: commands, workers, the demo; and how it ends."""

import json
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from db.queries import worker_registry
from db.session import Database
from tests.running.commands import CONFIG, ROOT, CommandLine, ids
from tests.running.workers import PATIENCE_SECONDS, until


def wait_for(
    condition: Any, process: subprocess.Popen[str], seconds: float = PATIENCE_SECONDS
) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None:
            raise AssertionError(f"ended with {process.returncode}: {process.communicate()}")
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    """Commands in the folder of a running `tidemill up`, with no settings at all."""
    folder = tmp_path_factory.mktemp("up")
    (folder / "tidemill.toml").write_text(CONFIG)
    tidemill = CommandLine(folder)
    up = tidemill.start("up")
    try:
        wait_for((folder / ".tidemill" / "run.json").exists, up)
        yield tidemill
    finally:
        up.send_signal(signal.SIGTERM)
        up.communicate(timeout=PATIENCE_SECONDS)


def test_submit_with_wait_prints_the_answer_of_a_text_and_of_a_chat(running: CommandLine) -> None:
    plain = running("submit", "summarize", "one two three", "--wait", "--param", "max_new_tokens=4")
    record = running("submit", "chat", "one two three", "--wait", "--json").json

    assert plain.status == 0
    assert len(plain.out.split()) == 4
    assert record["state"] == "succeeded"
    assert record["output"]
    shown = running("show", record["id"], "--json").json
    assert shown["attempt"] == 1
    assert shown["provenance"]


def test_a_file_is_waited_for_and_its_results_are_found(running: CommandLine) -> None:
    rows = [{"text": f"text number {number}", "custom_id": f"w{number}"} for number in range(40)]
    running.write("a.jsonl", *rows)

    submitted = running("submit", "summarize", "a.jsonl", "--run-key", "w", "--wait", "--json")
    watched = running("watch", "w")
    found = running("results", "--batch", "w", "--format", "jsonl")

    assert submitted.status == 0
    assert submitted.json["states"] == {"succeeded": 40}
    assert watched.status == 0
    assert "w: 40 succeeded" in watched.out
    assert sorted(ids(found)) == sorted(row["custom_id"] for row in rows)


def test_a_job_that_fails_is_the_status_of_waiting_for_it(running: CommandLine) -> None:
    running.write("b.jsonl", {"text": "one two"}, {"text": "one two three four five"})

    one = running("submit", "generate", "one two three four", "--model", "terse", "--wait")
    many = running("submit", "generate", "b.jsonl", "--model", "terse", "--wait", "--batch", "b")
    watched = running("watch", "b")
    failed = running("results", "--batch", "b", "--state", "failed", "--format", "jsonl")

    assert (one.status, many.status, watched.status) == (1, 1, 1)
    assert one.out == ""
    assert "the job is failed: " in one.err
    assert "b: 1 succeeded, 1 failed" in many.out
    assert json.loads(failed.out)["error"]["code"] == "prompt_too_long"


def test_a_worker_started_beside_up_joins_and_leaves(running: CommandLine) -> None:
    written = json.loads((running.folder / ".tidemill" / "run.json").read_text())
    database = Database(written["database_url"])

    def num_workers() -> int:
        with database.read() as session:
            return len(session.scalars(worker_registry.live_workers()).all())

    worker = running.start("worker", "--models", "parrot", "--name", "second")
    try:
        wait_for(lambda: num_workers() == 2, worker)
    finally:
        worker.send_signal(signal.SIGTERM)
        worker.communicate(timeout=PATIENCE_SECONDS)

    assert worker.returncode == 0
    assert num_workers() == 1
    database.close()
    refused = running("worker", "--models", "ghost")
    assert refused.status == 1
    assert "there is no model 'ghost'" in refused.err


def test_the_doctor_finds_nothing_wrong(running: CommandLine) -> None:
    ended = running("doctor", "--json")
    status = running("status", "--json").json

    assert ended.status == 0, ended.out
    assert len(status["workers"]) == 1
    assert status["redis"]["maxmemory_policy"] == "noeviction"
    assert "***" in status["redis"]["url"]


def test_a_second_up_says_that_one_runs_and_leaves_it_alone(running: CommandLine) -> None:
    second = running("up")

    assert second.status == 1
    assert "already runs in" in second.err
    assert running("doctor").status == 0


def test_files_of_up_are_private_to_its_user(running: CommandLine) -> None:
    assert (running.folder / ".tidemill" / "run.json").stat().st_mode & 0o077 == 0


def tree_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_however_up_ends_no_process_is_left(tidemill: CommandLine, how: signal.Signals) -> None:
    up = tidemill.start("up", is_forked=False)  # the parent of its parts, as a fork is not
    wait_for((tidemill.folder / ".tidemill" / "run.json").exists, up)
    children = tree_of(up)
    assert len(children) >= 3  # Valkey, the worker, its engine

    up.send_signal(how)
    out, err = up.communicate(timeout=PATIENCE_SECONDS)
    _, left = psutil.wait_procs(children, timeout=PATIENCE_SECONDS)

    assert left == []
    assert (tidemill.folder / ".tidemill" / "run.json").exists() == (how is signal.SIGKILL)
    if how is not signal.SIGKILL:
        assert up.returncode == 0, (out, err)


def test_modules_of_the_folder_do_not_stand_in_for_ours(tidemill: CommandLine) -> None:
    """Many folders that use Celery have a tasks.py, and a worker is easily one, too."""
    for name in ("tasks.py", "worker.py", "db.py", "cli.py"):
        tidemill.write(name, "raise SystemExit('the wrong one')")
    up = tidemill.start("up")
    try:
        wait_for((tidemill.folder / ".tidemill" / "run.json").exists, up)
        assert tidemill("submit", "generate", "one two", "--wait").status == 0
    finally:
        up.send_signal(signal.SIGTERM)
        up.communicate(timeout=PATIENCE_SECONDS)
    assert up.returncode == 0


def test_up_starts_again_after_it_was_killed(tidemill: CommandLine) -> None:
    run_file = tidemill.folder / ".tidemill" / "run.json"
    first = tidemill.start("up")
    wait_for(run_file.exists, first)
    written = run_file.read_text()
    first.kill()
    first.communicate()
    assert "was killed; start it again" in tidemill("doctor").out
    kept = tidemill("submit", "generate", "one two")
    assert "was killed; no job is run until you start it again" in kept.err
    assert "a worker finds it in the database" in kept.err
    status = until(
        lambda: "start one with `tidemill up`" in (shown := tidemill("status").out) and shown,
        "the end of its worker, which it did not see",
    )
    assert re.search(r"parrot +1 .*unknown", status), "of a Redis that does not answer"

    second = tidemill.start("up")
    try:
        wait_for(lambda: run_file.exists() and run_file.read_text() != written, second)
        assert tidemill("submit", "generate", "still here", "--wait").status == 0
    finally:
        second.send_signal(signal.SIGINT)
        second.communicate(timeout=PATIENCE_SECONDS)


def test_up_ends_with_the_reason_when_a_model_cannot_be_loaded(tidemill: CommandLine) -> None:
    (tidemill.folder / "nothing").mkdir()
    (tidemill.folder / "tidemill.toml").write_text(
        '[models.ghost]\ncheckpoint = "nothing"\ntasks = ["generate"]\n'
    )

    ended = tidemill("up")

    assert ended.status == 1
    assert "the worker ended (status 1): the checkpoint" in ended.err
    assert "nothing" in ended.err
    assert "[queues]" not in ended.err, "a banner tells nobody why"
    assert not (tidemill.folder / ".tidemill" / "run.json").exists()


def test_the_demo_runs_a_whole_night_and_finds_its_batch_again(tidemill: CommandLine) -> None:
    examples = tidemill.folder / "examples"
    (examples / "nightly").mkdir(parents=True)
    shutil.copy(ROOT / "examples" / "nightly.toml", examples)
    texts = [{"text": f"text {number}", "custom_id": f"{number}"} for number in range(5)]
    for name in ("reports", "sentences", "stories", "questions"):
        tidemill.write(f"examples/nightly/{name}.jsonl", *texts)
    for name in ("yearbook", "letter"):
        (examples / "nightly" / f"{name}.md").write_text("# Head\n\nOne. Two.\n\n- Three.\n")

    first = tidemill("demo")
    second = tidemill("demo")

    assert first.status == 0, first.err
    assert "enqueued 22 jobs as batch demo-" in first.out
    for task in ("summarize", "translate", "generate", "chat"):
        assert f"\n{task}" in first.out
    assert "Try next:" in first.out
    assert re.search(r"^loaded parrot, terse in [\d.]+ s$", first.out, re.M)
    assert re.search(r"^load  [\d.]+ s, once, before the first job was submitted$", first.out, re.M)
    assert re.search(r"^work  22 jobs in [\d.]+ s: \S+ jobs/s, \S+ tokens/s$", first.out, re.M)
    assert "yearbook.md, summarize: read\n  28 of 28 characters" in first.out
    assert "letter.md, translate: 4 of 4 sentences translated" in first.out
    head = next(line for line in first.out.splitlines() if "wait p50/p95" in line)
    assert "run p50/p95" in head
    of_all = next(line for line in first.out.splitlines() if line.startswith("all "))
    assert len(re.findall(r"[\d.]+/[\d.]+ s", of_all)) == 2, "a wait and a run"
    assert "load  " not in second.out, "nothing was loaded for a batch that is finished"
    assert second.status == 0
    assert "already enqueued under run key demo-" in second.out
    assert "22 jobs (22 succeeded)" in second.out
