"""Flower shows a worker as it is."""

import json
import subprocess
import urllib.request
from typing import Any

from db import JobState
from tasks import generate
from tests.running.workers import BIN, Cluster, on_sqlite, until
from tests.services.servers import free_port

pytestmark = on_sqlite


def ask(port: int, path: str) -> Any:
    """What Flower's API answers; None while it does not."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/{path}", timeout=20) as answer:
            return json.load(answer)
    except OSError:
        return None


def test_flower_shows_the_worker_its_engines_and_its_messages(producer: Cluster) -> None:
    port = free_port()
    with (
        producer.worker("--task-events") as worker,
        subprocess.Popen(
            [
                *(BIN / "celery", "-A", "tasks", "flower"),
                *(f"--port={port}", "--address=127.0.0.1", "--max-tasks=100"),
            ],
            cwd=producer.folder,
            env={**producer.environment, "FLOWER_UNAUTHENTICATED_API": "true"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as flower,
    ):
        try:
            until(lambda: worker.name in (ask(port, "workers?refresh=1") or {}), "Flower knows it")
            job = generate.submit(text="a b c", max_new_tokens=3)
            producer.wait_for(JobState.SUCCEEDED, 1)

            shown = until(lambda: ask(port, "tasks?limit=10"), "Flower shows the message")
            stats = ask(port, f"workers?refresh=1&workername={worker.name}")[worker.name]["stats"]
        finally:
            flower.kill()
    assert [each["name"] for each in shown.values()] == ["tasks.run_jobs"]
    assert stats["pool"]["tidemill"]["engines"][0]["num_completion_tokens"] == 3
    assert str(job.id) not in json.dumps(shown)  # job ids of a message are not shown
