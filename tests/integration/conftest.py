"""Commands in a folder with a configuration, with or without a database beside them."""

from pathlib import Path

import pytest

from db.session import Database
from tests.running.commands import CONFIG, CommandLine
from tests.running.workers import AS_STARTED, Cluster
from tests.services.databases import make_tables


@pytest.fixture
def tidemill(tmp_path: Path) -> CommandLine:
    """Commands in a folder with a configuration, and nothing running."""
    (tmp_path / "tidemill.toml").write_text(CONFIG)
    return CommandLine(tmp_path)


@pytest.fixture
def stored(tidemill: CommandLine, database_url: str) -> CommandLine:
    """Commands beside a migrated database, once on each, and no Redis that answers."""
    tidemill.environment = {
        "TIDEMILL_DATABASE_URL": database_url,
        "TIDEMILL_REDIS_URL": "redis://127.0.0.1:1/0",
        "COLUMNS": "200",
    }
    database = Database(database_url)
    make_tables(database, is_recorded=True)
    database.close()
    return tidemill


@pytest.fixture
def as_started(cluster: Cluster) -> None:
    """The cluster's workers start as an operator's would, in a new interpreter."""
    cluster.program = AS_STARTED
