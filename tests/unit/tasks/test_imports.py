"""Submitting a job needs no model library, and none is loaded."""

import subprocess
import sys

import pytest

from tests.workers import ROOT

MODEL_LIBRARIES = {"torch", "transformers", "tokenizers", "numpy"}


@pytest.mark.parametrize(
    "module", ["tasks", "tasks.submit", "db", "worker.celery.pool", "worker.engine_client"]
)
def test_no_model_library_is_loaded_outside_the_engine_process(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"import sys, {module}; print(*sys.modules)"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    loaded = set(done.stdout.split())
    assert module in loaded
    assert not MODEL_LIBRARIES & loaded


def test_db_loads_nothing_of_the_queue() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import sys, db; print(*sys.modules)"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    assert not {"celery", "kombu", "pydantic", "tasks", "worker"} & set(done.stdout.split())
