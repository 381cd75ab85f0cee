"""`tidemill top`, beside a worker that works and beside none."""

import io

import pytest
from rich.console import Console

from cli.output.top_screen import screen
from cli.stack.top_figures import EngineNow, Snapshot, WorkerNow
from db.reading.figures import LaneBacklog, OpenBatches
from tasks import generate, submit_batch
from tasks.generate import GenerateContract
from tests.running.commands import CommandLine
from tests.running.workers import Cluster, on_sqlite, until


@on_sqlite
def test_a_snapshot_has_workers_rows_rates_and_the_backlog(producer: Cluster) -> None:
    producer.configure(fake_step_seconds=0.05, max_sequences=4)
    tidemill = CommandLine(producer.folder, producer.environment)
    with producer.worker():
        until(lambda: generate.submit(text="a b").wait(90), "a first job")
        # Each of its own: equal ones would be computed once.
        texts = (f"a b {number}" for number in range(60))
        contracts = [GenerateContract.parse({"text": text, "max_new_tokens": 40}) for text in texts]
        submit_batch(contracts, name="many")
        producer.wait_for("running", 4)
        snapshot = tidemill("top", "--json", "--seconds", "3").json
        shown = tidemill("top", "--seconds", "0.2")
    (worker,) = snapshot["workers"]
    assert worker["answers"]
    assert worker["leads"]
    (engine,) = worker["engines"]
    assert (engine["model"], engine["num_rows"], engine["max_rows"]) == ("fake", 4, 4)
    assert snapshot["tokens_per_second"] == engine["tokens_per_second"] > 0
    (bulk,) = [each for each in snapshot["backlog"] if each["lane"] == "bulk"]
    assert 0 < bulk["num_queued"] + bulk["num_running"] <= 60
    assert snapshot["eta_seconds"] == (
        sum(each["num_tokens"] for each in snapshot["backlog"]) / snapshot["tokens_per_second"]
    )
    assert snapshot["batches"]["num"] == 1
    assert shown.status == 0
    assert "4 of 4" in shown.out
    assert "tokens/s" in shown.out


def test_top_reports_missing_workers_and_a_missing_redis(stored: CommandLine) -> None:
    shown = stored("top", "--seconds", "0.2")
    assert shown.status == 0
    assert "0 workers, 0 running, 0 queued, 0 tokens/s, ETA 0:00:00" in shown.out
    assert "Redis does not answer" in shown.out
    assert "none is running" in shown.out
    snapshot = stored("top", "--json", "--seconds", "0.2").json
    assert snapshot["workers"] == snapshot["backlog"] == []
    assert not snapshot["redis_answers"]


@pytest.mark.parametrize("width", [200, 80, 60, 40, 20, 12])
def test_no_number_is_cut_however_narrow_the_terminal(width: int) -> None:
    engine = EngineNow("summarizer-large", 12, 32, 1000, 8000, 5, 98_765.4, 3)
    name = "a-host-with-a-long-name:12345:deadbeef"
    snapshot = Snapshot(
        (WorkerNow(name, True, True, 3, (engine,)), WorkerNow("b", False, False, 0, ())),
        True,
        (LaneBacklog("summarizer-large", "interactive", 12_345, 3, 87_654_321, 86_400.0),),
        OpenBatches(1, 5.0, None),
    )
    console = Console(width=width, height=5, file=io.StringIO())
    console.print(screen(snapshot, width))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, shown.splitlines())) <= width
    for whole in ("12,345", "87,654,321", "98,765"):
        assert whole in shown
    assert " ".join(shown.split()).replace(" ", "").count("deadbeef") == 1
