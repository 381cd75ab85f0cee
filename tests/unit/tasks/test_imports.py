"""A producer and a worker start without model libraries and other slow imports."""

import subprocess
import sys

import pytest

from tests.running.workers import ROOT

UNNEEDED = {
    *("torch", "transformers", "tokenizers", "numpy", "pyarrow", "alembic", "flower"),
    # Modules that only some jobs, settings or commands need.
    *("prometheus_client", "semantic_text_splitter", "py3langid", "rich", "typer"),
}


@pytest.mark.parametrize(
    "module",
    [
        "tasks",
        "tasks.submit",
        "db",
        "db.schema",
        "worker.celery.pool",
        "worker.celery.run_jobs",
        "worker.engines.engine_client",
    ],
)
def test_no_heavy_library_is_loaded_outside_the_engine_process(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"import sys, {module}; print(*sys.modules)"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    loaded = set(done.stdout.split())
    assert module in loaded
    assert not UNNEEDED & loaded


def test_db_loads_nothing_of_the_queue() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import sys, db; print(*sys.modules)"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    assert not {"celery", "kombu", "pydantic", "tasks", "worker"} & set(done.stdout.split())
