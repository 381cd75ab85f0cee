"""What others of this machine may see of a running worker and its engines: no password, no key."""

import os
import sys
from collections.abc import Iterator

import psutil
import pytest
from sqlalchemy import make_url

from db.child_environment import without_secrets
from db.encryption.key_ring import new_key
from db.session import Database
from tests.running.workers import CELERY_MAIN, Cluster

PASSWORD = "s3cretOfTheDatabase"


@pytest.fixture
def database(database: Database) -> Iterator[Database]:
    """One whose URL has a password in it; the server of the tests asks for none."""
    secret = Database(make_url(database.url).set(password=PASSWORD))
    yield secret
    secret.close()


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_an_engine_gets_no_address_and_no_key(cluster: Cluster) -> None:
    """A checkpoint's own code ran with the keys of all texts in its environment."""
    keys = new_key("k1")
    config = cluster.configure()
    config.write_text(f'{config.read_text()}\n[encryption]\nkeys_variable = "OUR_KEYS"\n')
    cluster.program = (sys.executable, "-P", "-m", CELERY_MAIN)
    with cluster.worker(OUR_KEYS=keys) as worker:
        own = psutil.Process(worker.pid)
        assert PASSWORD in own.environ()["TIDEMILL_DATABASE_URL"]
        engines = [each for each in worker.children if "engine" in each.cmdline()]
        assert engines
        for engine in engines:
            seen = str(engine.environ())
            assert keys not in seen
            assert PASSWORD not in seen
            assert cluster.redis_url not in seen
        lines = str([each.cmdline() for each in (own, *worker.children)])
        assert PASSWORD not in lines
        assert keys not in lines


def test_an_engine_gets_all_other_environment_variables() -> None:
    given = {"PATH": "/bin", "HF_TOKEN": "for the hub", "TIDEMILL_CACHE": "/c", "PGPASSWORD": "x"}
    assert without_secrets(given) == {
        name: value for name, value in given.items() if name != "PGPASSWORD"
    }
    assert without_secrets().keys() <= os.environ.keys()
