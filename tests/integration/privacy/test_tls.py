"""TLS to Redis and to PostgreSQL, by their URLs alone, with certificates of the test's own."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest
import redis
from sqlalchemy import make_url, text

from cli.errors import BrokerUnreachable
from cli.stack.broker import read_broker
from db import JobState
from db.errors import DatabaseError
from db.schema import migrate, require_current
from db.session import Database
from tasks import generate
from tests.running.producers import producing
from tests.running.workers import Cluster
from tests.services.servers import PostgresServer, ValkeyServer
from tests.services.tls import Certificates, in_front_of


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates.made(tmp_path_factory.mktemp("ours"))


@pytest.fixture(scope="module")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates.made(tmp_path_factory.mktemp("theirs"))


@pytest.fixture
def redis_port(valkey: ValkeyServer, certificates: Certificates) -> Iterator[int]:
    with in_front_of(("127.0.0.1", valkey.port), certificates) as port:
        yield port


def redis_url(port: int, number: str, authority: Path, host: str = "localhost") -> str:
    return f"rediss://{host}:{port}/{number}?ssl_cert_reqs=required&ssl_ca_certs={quote(str(authority))}"


@pytest.fixture
def postgres_url(postgres: PostgresServer, certificates: Certificates) -> Iterator[str]:
    """Through the proxy, and with the whole check."""
    url = make_url(postgres.new_database())
    folder = str(url.query["host"])
    with in_front_of(f"{folder}/.s.PGSQL.{url.port or 5432}", certificates, postgres=True) as port:
        secured = url.set(
            host="localhost",
            port=port,
            query={"sslmode": "verify-full", "sslrootcert": str(certificates.authority)},
        )
        yield secured.render_as_string(hide_password=False)


def test_a_job_runs_with_tls_to_redis_and_to_the_database(
    valkey: ValkeyServer,
    redis_port: int,
    postgres_url: str,
    certificates: Certificates,
    tmp_path: Path,
) -> None:
    number = urlsplit(valkey.new_database()).path.strip("/")
    database = Database(postgres_url)
    migrate(database)
    url = redis_url(redis_port, number, certificates.authority)
    cluster = Cluster(tmp_path, database, url)
    config = cluster.configure()
    try:
        with producing(postgres_url, url, config), cluster.worker() as worker:
            assert generate.submit(text="a b c").wait(90).state is JobState.SUCCEEDED
        assert "certificate" not in worker.log.lower()
        with database.read() as session:
            # The server behind the proxy sees a socket: what is asked is our own end.
            session.execute(text("SELECT 1"))
            driver = session.connection().connection.driver_connection
            assert driver is not None
            assert driver.pgconn.ssl_in_use
    finally:
        cluster.end()
        database.close()


def test_a_certificate_of_another_authority_is_refused(
    redis_port: int, postgres_url: str, strangers: Certificates
) -> None:
    with pytest.raises(BrokerUnreachable, match=r"certificate .* file of its authority"):
        read_broker(redis_url(redis_port, "0", strangers.authority))
    url = make_url(postgres_url).update_query_dict({"sslrootcert": str(strangers.authority)})
    database = Database(url)
    with pytest.raises(DatabaseError, match="certificate"):
        require_current(database)
    database.close()


def test_a_certificate_is_checked_where_the_url_says_nothing_of_it(
    valkey: ValkeyServer, redis_port: int, database: Database, tmp_path: Path
) -> None:
    """kombu checked none then: a producer gave its password to whoever stood between."""
    number = urlsplit(valkey.new_database()).path.strip("/")
    cluster = Cluster(tmp_path, database, f"rediss://localhost:{redis_port}/{number}")
    config = cluster.configure()
    script = "from tasks import generate; generate.submit(text='a')"
    ended = subprocess.run(
        [sys.executable, "-c", script],
        env={**cluster.environment, "TIDEMILL_CONFIG": str(config)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "job kept, not published" in ended.stderr
    with redis.Redis(port=valkey.port, db=int(number)) as client:
        assert client.keys() == []
    cluster.end()


def test_a_certificate_for_another_name_is_refused(
    redis_port: int, postgres_url: str, certificates: Certificates
) -> None:
    named = redis_url(redis_port, "0", certificates.authority, host="127.0.0.1")
    with pytest.raises(BrokerUnreachable, match="certificate"):
        read_broker(named)
    database = Database(make_url(postgres_url).set(host="127.0.0.1"))
    with pytest.raises(DatabaseError, match="certificate"):
        require_current(database)
    database.close()


def test_a_certificate_that_has_expired_is_refused_in_words(
    valkey: ValkeyServer, postgres: PostgresServer, tmp_path: Path
) -> None:
    expired = Certificates.made(tmp_path, days_valid=-0.5)
    with (
        in_front_of(("127.0.0.1", valkey.port), expired) as port,
        pytest.raises(BrokerUnreachable, match=r"has expired.* renew the certificate"),
    ):
        read_broker(redis_url(port, "0", expired.authority))
    url = make_url(postgres.new_database())
    socket = f"{url.query['host']}/.s.PGSQL.{url.port or 5432}"
    with in_front_of(socket, expired, postgres=True) as port:
        query = {"sslmode": "verify-full", "sslrootcert": str(expired.authority)}
        database = Database(url.set(host="localhost", port=port, query=query))
        with pytest.raises(DatabaseError, match=r"certificate verify failed.* has expired"):
            require_current(database)
        database.close()
