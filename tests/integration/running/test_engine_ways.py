"""`models` and `status` report how the requests of a model are run, and why."""

import json

import pytest

from db.queries import worker_registry
from db.session import Database
from tasks import generate
from tests import checkpoints
from tests.parity.trials.made_up import made_up
from tests.running.commands import CommandLine
from tests.running.workers import PATIENCE_SECONDS, Cluster, on_sqlite

REASON = "one by one: a request leaves the model changed (Encoder.attention_type)"
CARD = {"model_type": "bigbird", "num_parameters": 10, "dtype": "float32", "device": "cpu"}


def engine(num_in_flight: int, num_by_generate: int) -> dict[str, object]:
    """A worker's report of one engine."""
    return {
        "model": "reports",
        "card": {**CARD, "engine_reason": REASON},
        "settings": {"engine": {"value": "exact", "reason": "it is not proved"}},
        "requests": {"in_flight": num_in_flight, "by_generate": num_by_generate},
    }


@pytest.fixture
def beside_a_worker(tidemill: CommandLine) -> CommandLine:
    """Commands beside a database in which a worker with two replicas is alive."""
    url = f"sqlite:///{tidemill.folder}/tidemill.db"
    tidemill.environment = {
        "TIDEMILL_DATABASE_URL": url,
        "TIDEMILL_REDIS_URL": "redis://127.0.0.1:1/0",
        "COLUMNS": "300",
    }
    assert tidemill("migrate").status == 0
    database = Database(url)
    with database.write() as session:
        worker_registry.report_worker(
            session, "one", {"reports": 64}, 0, 3600, [engine(3, 1200), engine(4, 34)]
        )
    database.close()
    return tidemill


def test_models_shows_why_and_how_many_requests_went_which_way(beside_a_worker) -> None:
    ended = beside_a_worker("models")
    assert ended.status == 0, ended.err
    assert "1,241 requests so far: 7 in flight, 1,234 by generate" in ended.out
    assert REASON in ended.out


def test_status_shows_why_and_how_many_requests_went_which_way(beside_a_worker) -> None:
    ended = beside_a_worker("status")
    assert f"reports: 1,203 requests so far: 3 in flight, 1,200 by generate ({REASON})" in ended.out
    (worker,) = json.loads(beside_a_worker("status", "--json").out)["workers"]
    assert [each["requests"]["by_generate"] for each in worker["engines"]] == [1200, 34]
    assert {each["reason"] for each in worker["engines"]} == {REASON}


@on_sqlite
def test_a_worker_proves_a_model_at_its_start_and_says_why_another_failed(
    producer: Cluster,
) -> None:
    gpt2 = producer.folder / "gpt2"
    checkpoints.build("gpt2", gpt2)
    flaw = "position_ids = position_ids + (input_ids.shape[0] > 1)"
    made_up(producer.folder / "whole", gpt2, "pass")
    made_up(producer.folder / "flawed", gpt2, flaw)
    options = {
        "tasks": ["generate"], "device": "cpu", "threads": 1, "trust_remote_code": True
    }  # fmt: skip
    producer.configure_models(
        {name: {"checkpoint": name, **options} for name in ("whole", "flawed")}
    )
    with producer.worker() as worker:
        jobs = {
            name: generate.submit(text="the mill", model=name, max_new_tokens=4)
            for name in ("whole", "flawed")
        }
        for job in jobs.values():
            assert job.wait(timeout_seconds=PATIENCE_SECONDS).state == "succeeded"
        (said,) = producer.tidemill("status", "--json").json["workers"]
        shown = producer.tidemill("models").out
    reasons = {each["model"]: each["reason"] for each in said["engines"]}
    assert reasons["whole"].startswith("proved at load: ")
    assert reasons["flawed"].startswith("one by one: its logits are others in company")
    assert "and was not proved at load: " in reasons["flawed"]
    assert "proved at load:" in shown
    assert "not in flight" in worker.log
    assert "logits" in worker.log.partition("not in flight")[2]
