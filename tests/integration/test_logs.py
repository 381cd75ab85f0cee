"""What users send and get never reaches a log."""

import signal
from pathlib import Path

from db import JobState
from tasks import chat, generate, submit_batch, summarize, translate
from tasks.summarize import SummarizeContract
from tests.integration.test_ways_in import send_from_elsewhere
from tests.workers import Cluster, until

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


def test_the_stacks_that_a_signal_shows_hold_no_text(producer: Cluster) -> None:
    producer.configure(fake_step_seconds=0.02)
    with producer.worker() as worker:
        generate.submit(text=f"{USERS} {USERS}", max_new_tokens=200)
        producer.wait_for(JobState.RUNNING, 1)
        worker.process.send_signal(signal.SIGUSR1)
        until(lambda: "Current thread" in worker.log, "the stacks")
        producer.wait_until_finished(1)
    assert producer.states() == {JobState.SUCCEEDED: 1}
    assert "engine_client.py" in worker.log
    assert USERS not in worker.log
