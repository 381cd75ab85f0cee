"""Three ways in lead to the same job: our code, Celery alone, a batch."""

import json
import subprocess
import sys
from pathlib import Path
from uuid import UUID, uuid4

import celery

from db import JobState
from tests.running.workers import PATIENCE_SECONDS, Cluster, on_sqlite

SITE_PACKAGES = Path(celery.__file__).parent.parent

FOREIGN = """
import sys
sys.path.append({site_packages!r})
import importlib.util
assert not any(map(importlib.util.find_spec, ("tasks", "db", "worker"))), "it has our code"
import json
from celery import Celery
app = Celery(broker={broker!r})
for name, task_id, kwargs in json.loads(sys.argv[1]):
    print(app.send_task(name, kwargs=kwargs, task_id=task_id).id)
"""


def send_from_elsewhere(
    cluster: Cluster, folder: Path, *sent: tuple[str, str | None, dict[str, object]]
) -> list[UUID]:
    """Send from a process that has celery and redis and nothing of ours; returns the ids."""
    code = FOREIGN.format(site_packages=str(SITE_PACKAGES), broker=cluster.redis_url)
    # -S: an editable install would put our code on the path.
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, json.dumps(sent)],
        cwd=folder,
        env={},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
    )
    assert done.returncode == 0, done.stderr
    return [UUID(line) for line in done.stdout.split()]


def test_a_job_submitted_in_python_is_run_and_found(cluster: Cluster) -> None:
    with cluster.worker():
        printed = cluster.python(
            "from tasks import summarize\n"
            "from db import find_results\n"
            "job = summarize.submit(text='one two three', custom_id='d1', max_new_tokens=4)\n"
            "job.wait(60)\n"
            "(found,) = find_results(custom_id='d1')\n"
            "print(found.id == job.id, found.state, len(found.output.split()))"
        )
    assert printed.split() == ["True", "succeeded", "4"]


@on_sqlite
def test_every_task_can_be_submitted_in_each_way(producer: Cluster) -> None:
    from tasks import chat, generate, summarize, translate

    submitted = [
        summarize.submit(text="one two three"),
        generate.submit(text="one two three", num_return_sequences=3, temperature=0.5),
        translate.submit(text="one two three", source_language="en", target_language="fr"),
        chat.submit(messages=[{"role": "user", "content": "one two three"}]),
    ]
    with producer.worker():
        found = [job.wait(PATIENCE_SECONDS) for job in submitted]
    assert [job.state for job in found] == [JobState.SUCCEEDED] * 4
    assert [job.task for job in found] == ["summarize", "generate", "translate", "chat"]
    assert all(set((job.output or "").split()) <= {"one", "two", "three"} for job in found)
    assert [len(job.alternatives) for job in found] == [0, 2, 0, 0]
    assert found[2].language == "fr"


def test_a_producer_with_celery_alone_names_no_queue_and_knows_its_job_by_the_message(
    cluster: Cluster, tmp_path: Path
) -> None:
    with cluster.worker():
        good, refused = send_from_elsewhere(
            cluster,
            tmp_path,
            ("tasks.summarize", None, {"text": "one two three", "custom_id": "d1"}),
            ("tasks.summarize", None, {"txt": "one two three", "custom_id": "d2"}),
        )
        cluster.wait_until_finished(2)
    row = cluster.job(good)
    assert (row.state, row.custom_id) == (JobState.SUCCEEDED, "d1")
    row = cluster.job(refused)
    assert (row.state, row.custom_id, row.attempt) == (JobState.FAILED, "d2", 0)
    assert row.error_code == "invalid_contract"
    assert (
        row.error_message
        == "summarize: text: is missing; txt: is not a field of summarize; did you mean text?"
    )
    assert cluster.results_per_job() == {good: 1, refused: 0}


@on_sqlite
def test_a_contract_refused_by_message_becomes_a_failed_job(
    cluster: Cluster, tmp_path: Path
) -> None:
    text = {"text": "one two three"}
    wrong = {
        "unknown_model": ("tasks.summarize", {**text, "model": "none"}),
        "invalid_contract": ("tasks.chat", {"messages": []}),
        "idempotency_conflict": ("tasks.generate", {"text": "other", "idempotency_key": "k"}),
    }
    with cluster.worker():
        first = ("tasks.generate", None, {**text, "idempotency_key": "k"})
        (good,) = send_from_elsewhere(cluster, tmp_path, first)
        cluster.wait_for(JobState.SUCCEEDED)
        ids = send_from_elsewhere(
            cluster, tmp_path, *((name, None, fields) for name, fields in wrong.values())
        )
        cluster.wait_until_finished(4)
    assert [cluster.job(each).error_code for each in ids] == list(wrong)
    assert cluster.job(good).state == JobState.SUCCEEDED


@on_sqlite
def test_a_message_that_comes_twice_makes_one_job(cluster: Cluster, tmp_path: Path) -> None:
    message_id = str(uuid4())
    again = ("tasks.summarize", message_id, {"text": "one two three"})
    with cluster.worker():
        send_from_elsewhere(cluster, tmp_path, again, again, again)
        (last,) = send_from_elsewhere(cluster, tmp_path, ("tasks.summarize", None, {"text": "x"}))
        cluster.wait_until_finished(2)
    assert cluster.results_per_job() == {UUID(message_id): 1, last: 1}
    assert cluster.job(UUID(message_id)).attempt == 1
