"""Workers under a rain of faults: whatever happens, every job ends once.

make chaos MINUTES=5         for longer, on each database
TIDEMILL_CHAOS_SEED=...      the same faults again, as far as chance goes
TIDEMILL_CHAOS_SABOTAGE=...  without a safeguard: it must fail
"""

import json
import os
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from alembic import command

from db.models import Base
from db.schema import config
from db.session import Database
from db.states import JobState
from tests.chaos import checker, witness
from tests.chaos.disk import SmallDisk, may_mount
from tests.chaos.faults import STALL_SECONDS, Scene
from tests.chaos.history import History
from tests.chaos.postgres import ChaosPostgres
from tests.chaos.proxy import Proxy
from tests.chaos.run import SHORT, Run
from tests.chaos.supervisor import Supervisor
from tests.running.producers import producing
from tests.running.workers import Cluster
from tests.samples.hostile import CANARY
from tests.services.servers import ValkeyServer

MINUTES = os.environ.get("TIDEMILL_CHAOS_MINUTES")
SECONDS = {"postgresql": 30.0, "sqlite": 10.0}
# A module of this folder that removes a safeguard: no_fence, no_recovery.
SABOTAGE = tuple(
    f"--include=tests.chaos.{name}"
    for name in filter(None, [os.environ.get("TIDEMILL_CHAOS_SABOTAGE")])
)
BACKLOG = 300  # minimum number of jobs that wait or run while faults happen


class BehindProxies(Cluster):
    """A cluster whose workers reach the servers through proxies; the test connects directly."""

    def behind(self, to_valkey: Proxy, to_database: str | None) -> None:
        self.proxied = {
            "TIDEMILL_REDIS_URL": f"redis://127.0.0.1:{to_valkey.port}/0",
            "TIDEMILL_DATABASE_URL": to_database or self.database_url,
        }

    @property
    def environment(self) -> dict[str, str]:
        return {**super().environment, **self.proxied}


@pytest.fixture(params=["postgresql", "sqlite"])
def scene(
    request: pytest.FixtureRequest, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Scene]:
    with ExitStack() as stack:
        valkey = stack.enter_context(ValkeyServer.started(tmp_path_factory.mktemp("valkey")))
        to_valkey = stack.enter_context(Proxy.started(valkey.port))
        postgres = to_postgres = to_database = None
        disk = stack.enter_context(SmallDisk.mounted()) if may_mount() else None
        folder = tmp_path if disk is None else disk.folder
        url = f"sqlite:///{folder}/tidemill.db"
        if request.param == "postgresql":
            postgres = stack.enter_context(
                ChaosPostgres.started(None if disk is None else disk.folder)
            )
            to_postgres = stack.enter_context(Proxy.started(postgres.port))
            name = postgres.new_database()
            url, to_database = postgres.url(name), postgres.url(name, to_postgres.port)
        database = Database(url)
        stack.callback(database.close)
        Base.metadata.create_all(database.engine)
        with database.engine.begin() as connection:
            command.stamp(config(connection), "head")
        witness.install(database)

        cluster = BehindProxies(tmp_path, database, f"redis://127.0.0.1:{valkey.port}/0")
        stack.callback(cluster.end)
        cluster.behind(to_valkey, to_database)
        worker = {
            **SHORT,
            "drain_seconds": 2.0,
            "consumer_stall_seconds": 10.0,
            "stall_seconds": STALL_SECONDS,
        }
        path = cluster.configure(
            worker=worker, fake_step_seconds=0.02, max_sequences=16, max_input_tokens=32
        )
        stack.enter_context(producing(url, cluster.redis_url, path))

        seed = int(os.environ.get("TIDEMILL_CHAOS_SEED", random.randrange(2**32)))
        print(f"TIDEMILL_CHAOS_SEED={seed}")  # noqa: T201  (to run it again)
        run = Run(cluster, History(tmp_path / "history.jsonl"))
        run.history.write("started", seed=seed, database=request.param)
        supervisor = Supervisor(run, num_workers=3, arguments=SABOTAGE)
        # After a failed test it would restart workers that the cluster ends.
        stack.callback(supervisor.leave)
        over = threading.Event()
        yield Scene(
            run=run,
            supervisor=supervisor,
            valkey=valkey,
            to_valkey=to_valkey,
            postgres=postgres,
            to_postgres=to_postgres,
            disk=disk,
            lock_seconds=31.0 if MINUTES else 4.0,
            chance=random.Random(seed),
            wait=over.wait,
        )
        figures = checker.summary(run.history, database)
        print(json.dumps(figures, indent=1))  # noqa: T201  (for docs/reliability.md)


@pytest.mark.timeout(int(float(MINUTES or 0) * 60) + 400)
def test_every_job_ends_once_whatever_dies(scene: Scene) -> None:
    database = "postgresql" if scene.postgres is not None else "sqlite"
    seconds = float(MINUTES) * 60 if MINUTES else SECONDS[database]
    scene.supervisor.start()
    over = threading.Event()
    timer = threading.Timer(seconds, over.set)
    timer.start()
    with ThreadPoolExecutor(max_workers=8) as pool:
        working = pool.submit(keep_busy, scene, over)
        faults = []
        while not over.wait(scene.chance.uniform(1, 3)):
            faults.append(pool.submit(scene.strike))
        for each in (working, *faults):
            each.result()
    scene.run.wait_until_finished()
    scene.supervisor.stop()
    assert scene.run.cluster.states().keys() <= {JobState.SUCCEEDED, JobState.CANCELLED}
    assert scene.run.complaints() == []
    for worker in scene.run.cluster.started:
        assert CANARY not in worker.log
        assert "word job" not in worker.log


def keep_busy(scene: Scene, over: threading.Event) -> None:
    """Submit jobs, and now and then cancel some, until the run is over."""
    run, chance = scene.run, random.Random(scene.chance.random())
    while not over.wait(0.2):
        run.submit_one()
        if chance.random() < 0.2:
            run.submit_document()
        if run.num_unfinished() < BACKLOG:
            batch = run.submit(200, num_tokens=20)
            run.cancel(chance.sample(batch, 5))
