"""Users' inputs and outputs never reach a log."""

import json
import signal
from functools import partial
from pathlib import Path

import redis
from sqlalchemy import select

from db import JobState
from db.models import AttemptRow, Job
from tasks import chat, generate, submit_batch, summarize, translate
from tasks.summarize import SummarizeContract
from tests.integration.submitting.test_ways_in import send_from_elsewhere
from tests.running.scrapes import Scrape
from tests.running.workers import Cluster, WorkerProcess, on_sqlite, until
from tests.samples.hostile import CANARY, ENTRIES
from tests.services.servers import free_port

USERS = "xyzzy-4711"


def test_no_text_of_a_user_is_in_a_log(producer: Cluster, tmp_path: Path) -> None:
    producer.configure(fake_crash_on="crash", max_input_tokens=50)
    with producer.worker() as worker:
        generate.submit(text=f"{USERS} {USERS}")
        chat.submit(messages=[{"role": "user", "content": USERS}])
        translate.submit(text=USERS, source_language="en", target_language="fr")
        summarize.submit(text=f"{USERS} " * 60, strategy="fail")  # too long
        generate.submit(text=f"{USERS} crash")
        submit_batch([SummarizeContract.parse({"text": USERS})], name="one")
        send_from_elsewhere(
            producer,
            tmp_path,
            ("tasks.summarize", None, {"text": f"elsewhere {USERS}"}),
            ("tasks.summarize", None, {"text": f"{USERS}\x00", "custom_id": USERS}),
            ("tasks.summarize", None, {"text": [USERS]}),
        )
        producer.wait_until_finished(9)
    assert producer.states() == {JobState.SUCCEEDED: 5, JobState.FAILED: 4}
    assert USERS not in worker.log
    assert "job refused" in worker.log, "the log has what it should have"


def has_stacks(worker: WorkerProcess, number: int) -> bool:
    return worker.log.count("Current thread") >= number


def test_the_stacks_that_a_signal_shows_hold_no_text(producer: Cluster) -> None:
    producer.configure(fake_step_seconds=0.02)
    with producer.worker() as worker:
        generate.submit(text=f"{USERS} {USERS}", max_new_tokens=200)
        producer.wait_for(JobState.RUNNING, 1)
        for number in range(1, 21):  # at any state of the other threads
            worker.process.send_signal(signal.SIGUSR1)
            until(partial(has_stacks, worker, number), "the stacks")
        producer.wait_until_finished(1)
    assert producer.states() == {JobState.SUCCEEDED: 1}
    assert "engine_client.py" in worker.log
    assert USERS not in worker.log


@on_sqlite
def test_a_log_in_json_is_an_object_a_line_and_says_whose_doing_it_is(producer: Cluster) -> None:
    """After hostile messages and failures no text is in the log, in a metric or in an error."""
    port = free_port()
    producer.configure(
        worker={"log_format": "json", "metrics_port": port},
        fake_crash_on="crash",
        fake_fail_on="broken",
    )
    with producer.worker("--loglevel", "DEBUG") as worker:
        alone = generate.submit(text=f"{CANARY} a").id
        broken = SummarizeContract.parse({"text": f"{CANARY} broken", "custom_id": CANARY})
        batch = submit_batch([broken], name=CANARY, tenant=CANARY, metadata={CANARY: CANARY})
        crashing = generate.submit(text=f"{CANARY} crash").id
        with redis.Redis.from_url(producer.redis_url) as client:
            for make in ENTRIES.values():
                client.lpush("celery", make())
            until(lambda: not client.exists("celery", "unacked"), "every message taken")
        until(lambda: str(crashing) in worker.log, "the last that ended")
        until(lambda: JobState.RUNNING not in producer.states(), "nothing runs")
        scrape = Scrape.of(port)
    lines = [json.loads(line) for line in worker.log.splitlines()]
    assert all({"time", "level", "logger", "event"} <= line.keys() for line in lines)
    assert {line["logger"] for line in lines} >= {"engine.process", "worker.worker", "celery"}
    ended = {line["job_id"]: line for line in lines if line["event"] == "attempt ended"}
    assert ended[str(alone)]["next_state"] == "succeeded"
    assert "batch_id" not in ended[str(alone)]
    (of_batch,) = [line for line in ended.values() if line.get("batch_id") == str(batch.id)]
    assert (of_batch["next_state"], of_batch["error_code"]) == ("failed", "generation_failed")
    assert CANARY not in worker.log
    assert scrape.total("tidemill_messages_set_aside_total") > 0
    assert CANARY not in scrape.text
    with producer.database.read() as session:
        errors = [*session.scalars(select(Job.error_message))]
        errors += session.scalars(select(AttemptRow.error_message))
    assert len(list(filter(None, errors))) > 3
    assert not [error for error in errors if error and CANARY in error]
