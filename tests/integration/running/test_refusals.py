"""A worker that cannot serve reports why in a sentence, ends, and has taken no message."""

from collections.abc import Callable

import pytest
from sqlalchemy import text

from db import JobState
from db.schema import migrate
from tasks import generate
from tests.running.workers import BIN, Cluster


def a_newer_database(cluster: Cluster) -> dict[str, str]:
    with cluster.database.write() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    return {}


def an_empty_database(cluster: Cluster) -> dict[str, str]:
    migrate(cluster.database, "base")
    return {}


def a_missing_checkpoint(cluster: Cluster) -> dict[str, str]:
    cluster.configure(engine="auto", checkpoint="./no-such-checkpoint")
    return {}


def an_unknown_model(cluster: Cluster) -> dict[str, str]:
    return {"TIDEMILL_MODELS": "fake,nobody"}


def a_broken_configuration(cluster: Cluster) -> dict[str, str]:
    (cluster.folder / "tidemill.toml").write_text("[models.fake\n")
    return {}


def an_unknown_setting(cluster: Cluster) -> dict[str, str]:
    cluster.configure(worker={"lease_second": 5})
    return {}


def no_configuration(cluster: Cluster) -> dict[str, str]:
    (cluster.folder / "tidemill.toml").unlink()
    return {}


def a_missing_folder(cluster: Cluster) -> dict[str, str]:
    return {"TIDEMILL_DATABASE_URL": f"sqlite:///{cluster.folder}/nowhere/tidemill.db"}


def an_absent_database(cluster: Cluster) -> dict[str, str]:
    return {"TIDEMILL_DATABASE_URL": "postgresql://someone:hidden@127.0.0.1:1/none"}


def a_malformed_redis_url(cluster: Cluster) -> dict[str, str]:
    return {"TIDEMILL_REDIS_URL": "redis://:hidden@127.0.0.1:port/0"}


def an_ambiguous_redis_url(cluster: Cluster) -> dict[str, str]:
    return {"TIDEMILL_REDIS_URL": "redis://:hidden/den@127.0.0.1:6379/0"}


SENTENCES: dict[Callable[[Cluster], dict[str, str]], str] = {
    a_newer_database: "is at revision 9999, which this Tidemill does not know",
    an_empty_database: "has no Tidemill tables; run `tidemill migrate`",
    a_missing_checkpoint: "no-such-checkpoint",
    an_unknown_model: "there is no model 'nobody'; known models: fake",
    a_broken_configuration: "tidemill.toml is not valid TOML",
    an_unknown_setting: "worker.lease_second is not a setting; known: ",
    no_configuration: "a configuration names the models",
    a_missing_folder: "nowhere' does not exist; make it first",
    an_absent_database: "postgresql://someone:***@127.0.0.1:1/none cannot be reached",
    a_malformed_redis_url: "has no usable port: it is a number from 1 to 65535",
    an_ambiguous_redis_url: "is ambiguous; write / ? # @ : and % of a password as",
}


@pytest.mark.parametrize("command", [("status",), ("inspect", "stats"), ("purge", "-f")])
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_celerys_commands_refuse_a_malformed_redis_url_with_a_sentence(
    cluster: Cluster, command: tuple[str, ...]
) -> None:
    cluster.configure()
    cluster.redis_url = "redis://:hidden@127.0.0.1:port/0"
    done = cluster.run(str(BIN / "celery"), "-A", "tasks", *command)
    assert done.returncode != 0
    assert "has no usable port" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert "hidden" not in done.stdout + done.stderr


@pytest.mark.usefixtures("as_started")
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("wrong", SENTENCES, ids=lambda each: each.__name__)
def test_a_worker_that_cannot_serve_ends_with_a_sentence(
    producer: Cluster, wrong: Callable[[Cluster], dict[str, str]]
) -> None:
    job = generate.submit(text="a b c")
    environment = wrong(producer)

    worker = producer.start_worker(**environment)

    assert worker.wait() not in (0, None), worker.log
    assert SENTENCES[wrong] in worker.log
    assert "Traceback" not in worker.log
    assert "hidden" not in worker.log
    if wrong is not an_empty_database:
        assert producer.job(job.id).state == JobState.QUEUED
        assert producer.job(job.id).attempt == 0
