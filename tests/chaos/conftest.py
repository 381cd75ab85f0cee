"""A run on each database, with a witness in the database."""

from pathlib import Path

import pytest

from tests.chaos import witness
from tests.chaos.history import History
from tests.chaos.run import SHORT, Run
from tests.running.workers import Cluster


@pytest.fixture
def run(producer: Cluster, tmp_path: Path) -> Run:
    """A run without workers; leases and other times are short."""
    witness.install(producer.database)
    producer.configure(worker=SHORT, fake_step_seconds=0.01, max_sequences=8)
    return Run(producer, History(tmp_path / "history.jsonl"))
