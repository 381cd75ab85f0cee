"""Fixtures for all tests: servers of their own, started once and only on use."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, settings

from db.session import Database
from tests.running.producers import producing
from tests.running.workers import Cluster
from tests.services.databases import make_tables
from tests.services.servers import PostgresServer, ValkeyServer

TESTS = Path(__file__).parent
# Until everything is imported, since imports make no garbage.
gc.disable()
# Verdicts of one run must not be reused by another; child processes inherit this.
os.environ["TIDEMILL_CACHE"] = ""
# torch's threads spin before they sleep. Beside other test processes they take each other's cores:
# three quarters of the CPU of a test with a model.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Processes buffer their output, as by default.
os.environ.pop("PYTHONUNBUFFERED", None)

# The same examples in every run, so that results are reproducible. No deadline: none of these tests
# is about the time of an example.
settings.register_profile(
    "repeatable",
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
# pytest --hypothesis-profile wide: new examples in every run, to find more faults.
settings.register_profile(
    "wide", max_examples=2000, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("repeatable")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Spread the files of each tier evenly over the run, for `-n 3 --dist loadfile`.

    Files of some tiers mostly wait, those of others mostly compute. Side by side they keep the
    cores busy. The tests of a file stay together, because they share servers and models.
    """
    by_tier: dict[str, list[Path]] = {}
    for path in dict.fromkeys(item.path for item in items):
        by_tier.setdefault(tier(path), []).append(path)
    place = {
        path: (number + 0.5) / len(paths)
        for paths in by_tier.values()
        for number, path in enumerate(paths)
    }
    items.sort(key=lambda item: (place[item.path], item.path))


def pytest_collection_finish() -> None:
    """Imported objects stay; freezing them saves the repeated time of the garbage collector."""
    gc.freeze()
    gc.enable()


def tier(path: Path) -> str:
    return path.relative_to(TESTS).parts[0]


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyServer]:
    """A Valkey server of this run's own."""
    with ValkeyServer.started(tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server of this run's own."""
    # Not in pytest's folder: another pytest closes it to all other users at its start, and
    # PostgreSQL runs as another user if root runs the tests.
    with TemporaryDirectory() as folder, PostgresServer.started(Path(folder)) as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database, once on each of the two systems that Tidemill supports."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/tidemill.db"
        return
    postgres: PostgresServer = request.getfixturevalue("postgres")
    url = postgres.new_database()
    yield url
    postgres.take_back(url)


@pytest.fixture
def empty_database(database_url: str) -> Iterator[Database]:
    """A database without tables."""
    database = Database(database_url)
    yield database
    database.close()


@pytest.fixture
def database(empty_database: Database) -> Database:
    """A database with our tables.

    They are created without migrations; tests/unit/db/test_schema.py shows that these give the
    same.
    """
    make_tables(empty_database)
    return empty_database


@pytest.fixture
def cluster(
    database: Database, valkey: ValkeyServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """Real workers on an empty database and a Redis of this test's own; none is started yet."""
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
