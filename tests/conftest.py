"""What every test may use: servers of their own, started once and only when asked for."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from alembic import command

from db.models import Base
from db.schema import config
from db.session import Database
from tests.producers import producing
from tests.servers import PostgresServer, ValkeyServer
from tests.workers import Cluster


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyServer]:
    """A Valkey server of this run's own."""
    with ValkeyServer.started(tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server of this run's own."""
    # Not in pytest's folder: another pytest that starts closes that to all other
    # users, and PostgreSQL is one when it is root who runs the tests.
    with TemporaryDirectory() as folder, PostgresServer.started(Path(folder)) as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database, once on each of the two that Tidemill runs on."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/tidemill.db"
    postgres: PostgresServer = request.getfixturevalue("postgres")
    return postgres.new_database()


@pytest.fixture
def empty_database(database_url: str) -> Iterator[Database]:
    """A database without tables."""
    database = Database(database_url)
    yield database
    database.close()


@pytest.fixture
def database(empty_database: Database) -> Database:
    """A database with our tables.

    Made at one stroke: tests/unit/db/test_schema.py says that migrations lead there.
    """
    Base.metadata.create_all(empty_database.engine)
    with empty_database.engine.begin() as connection:
        command.stamp(config(connection), "head")
    return empty_database


@pytest.fixture
def cluster(
    database: Database, valkey: ValkeyServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """Real workers on an empty database and a Redis of this test's own; none runs yet."""
    cluster = Cluster(tmp_path_factory.mktemp("cluster"), database, valkey.new_database())
    cluster.configure()
    yield cluster
    cluster.end()


@pytest.fixture
def producer(cluster: Cluster) -> Iterator[Cluster]:
    """The cluster, with the test's own process as one of its producers."""
    config = cluster.folder / "tidemill.toml"
    with producing(cluster.database_url, cluster.redis_url, config):
        yield cluster
