"""Faults, each a function that causes the fault and, if it lasts, ends it again."""

import random
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import psutil
import redis
from sqlalchemy import text

from db.session import Database
from tests.chaos.disk import SmallDisk
from tests.chaos.history import History
from tests.chaos.postgres import ChaosPostgres
from tests.chaos.proxy import Proxy
from tests.chaos.run import Run
from tests.chaos.supervisor import Supervisor
from tests.running.workers import WorkerProcess
from tests.samples.hostile import CANARY, ENTRIES, WITHOUT_A_JOB
from tests.services.servers import ValkeyServer

DELAY_SECONDS = 0.3
QUEUES = ("celery", "tidemill.fake.interactive", "tidemill.fake.bulk")
STALL_SECONDS = 5.0  # of the workers in the loop


@dataclass
class Scene:
    """Everything that can fail; None for what a database lacks."""

    run: Run
    supervisor: Supervisor
    valkey: ValkeyServer
    to_valkey: Proxy
    postgres: ChaosPostgres | None
    to_postgres: Proxy | None
    disk: SmallDisk | None  # of the database; None if this user may not mount one
    lock_seconds: float  # how long a transaction may lock the jobs
    chance: random.Random
    wait: Callable[[float], object]  # for a fault to last

    @property
    def history(self) -> History:
        return self.run.history

    def __post_init__(self) -> None:
        of_database = SQLITE_FAULTS if self.postgres is None else POSTGRES_FAULTS
        if self.disk is not None:
            of_database = (*of_database, fill_disk)
        # Two faults of a kind undo each other; workers may die while one is suspended.
        self._targets = [
            (threading.BoundedSemaphore(2), WORKER_FAULTS),
            (threading.BoundedSemaphore(), VALKEY_FAULTS),
            (threading.BoundedSemaphore(), of_database),
        ]

    def strike(self) -> None:
        """Cause one random fault on a part that has none, until the run is over."""
        for free, faults in self.chance.sample(self._targets, len(self._targets)):
            if free.acquire(blocking=False):
                try:
                    self.chance.choice(faults)(self)
                finally:
                    free.release()
                return

    def victim(self) -> WorkerProcess | None:
        """A random working worker, unless only one is left."""
        alive = self.supervisor.alive()
        return self.chance.choice(alive) if len(alive) > 1 else None

    @contextmanager
    def valkey_client(self) -> Iterator[redis.Redis]:
        with redis.Redis(port=self.valkey.port) as client:
            yield client

    def last(self, seconds: float) -> None:
        """Let a fault last."""
        self.wait(seconds)


# --- workers ---------------------------------------------------------------------------------


def kill_worker(scene: Scene) -> None:
    if worker := scene.victim():
        with scene.history.fault("worker killed", pid=worker.pid):
            worker.process.kill()


def stop_worker_beyond_its_lease(scene: Scene) -> None:
    if worker := scene.victim():
        with scene.history.fault("worker asleep beyond its lease", pid=worker.pid):
            worker.process.send_signal(signal.SIGSTOP)
            scene.last(4)
            worker.process.send_signal(signal.SIGCONT)


def terminate_worker(scene: Scene) -> None:
    if worker := scene.victim():
        with scene.history.fault("worker told to stop", pid=worker.pid):
            scene.supervisor.terminate(worker)


def kill_engine(scene: Scene) -> None:
    if worker := scene.victim():
        # Another fault may already have killed the worker.
        with suppress(psutil.NoSuchProcess):
            for engine in worker.children:
                engine.kill()
                with scene.history.fault("engine killed", pid=engine.pid):
                    pass


def hang_engine(scene: Scene) -> None:
    """The engine lives and takes no step, until its worker kills it."""
    if worker := scene.victim():
        # Another fault may already have killed the worker.
        with suppress(psutil.NoSuchProcess):
            for engine in worker.children:
                with scene.history.fault("engine hangs", pid=engine.pid), suppress(psutil.Error):
                    engine.suspend()
                    scene.last(STALL_SECONDS + 2)
                    # If its worker is dead by now, the engine must be able to notice.
                    engine.resume()


# --- Valkey ----------------------------------------------------------------------------------


def restart_valkey(scene: Scene) -> None:
    with scene.history.fault("Valkey killed and started again", outage=True):
        scene.valkey.stop()
        scene.last(scene.chance.uniform(0, 3))
        scene.valkey.start()


def hang_valkey(scene: Scene) -> None:
    assert scene.valkey.process is not None
    with scene.history.fault("Valkey hangs", outage=True):
        scene.valkey.process.send_signal(signal.SIGSTOP)
        scene.last(3)
        scene.valkey.process.send_signal(signal.SIGCONT)


def flush_valkey(scene: Scene) -> None:
    with scene.history.fault("Valkey loses its data"), scene.valkey_client() as client:
        client.flushall()


def kill_clients(scene: Scene) -> None:
    with scene.history.fault("Valkey drops its clients"), scene.valkey_client() as client:
        client.client_kill_filter(_type="normal", skipme=True)


def fill_valkey(scene: Scene) -> None:
    with scene.history.fault("Valkey is full", outage=True), scene.valkey_client() as client:
        client.config_set("maxmemory", 1)
        scene.last(3)
        client.config_set("maxmemory", 0)


def demote_valkey(scene: Scene) -> None:
    """A failover: the server that the workers use is now a replica and refuses writes."""
    with scene.history.fault("Valkey is a replica", outage=True), scene.valkey_client() as client:
        client.replicaof("127.0.0.1", "1")
        scene.last(3)
        client.replicaof("NO", "ONE")


def cut_off_valkey(scene: Scene) -> None:
    with scene.history.fault("Valkey's network cut", outage=True):
        scene.to_valkey.cut()
        scene.last(2)
        scene.to_valkey.heal()


def delay_valkey(scene: Scene) -> None:
    with scene.history.fault("Valkey's network slow", outage=True):
        scene.to_valkey.delay(DELAY_SECONDS)
        scene.last(3)
        scene.to_valkey.heal()


def swallow_valkey(scene: Scene) -> None:
    with scene.history.fault("Valkey's network swallows", outage=True):
        scene.to_valkey.swallow()
        scene.last(4)
        scene.to_valkey.heal()


def push_garbage(scene: Scene) -> None:
    """Push invalid messages into every list, and into kombu's own keys."""
    entries = [make() for make in (ENTRIES[name] for name in WITHOUT_A_JOB)]
    with (
        scene.history.fault("garbage"),
        suppress(redis.RedisError),
        scene.valkey_client() as client,
    ):
        for entry in entries:
            client.lpush(scene.chance.choice(QUEUES), entry)
        client.hset("unacked", CANARY, entries[0])
        client.zadd("unacked_index", {CANARY: 1})


# --- the database ----------------------------------------------------------------------------


def restart_postgres(scene: Scene) -> None:
    assert scene.postgres is not None
    with scene.history.fault("PostgreSQL killed and started again", outage=True):
        scene.postgres.stop()
        scene.last(scene.chance.uniform(0, 2))
        scene.postgres.start()


def hang_postgres(scene: Scene) -> None:
    assert scene.postgres is not None
    with (
        scene.history.fault("PostgreSQL hangs", outage=True),
        scene.postgres.hanging(),
    ):
        scene.last(3)


def demote_postgres(scene: Scene) -> None:
    assert scene.postgres is not None
    with (
        scene.history.fault("PostgreSQL is a standby", outage=True),
        scene.postgres.refusing_writes(),
    ):
        scene.last(3)


def drop_connections(scene: Scene) -> None:
    assert scene.postgres is not None
    with scene.history.fault("PostgreSQL drops its connections"):
        scene.postgres.drop_connections()


def cut_off_postgres(scene: Scene) -> None:
    assert scene.to_postgres is not None
    with scene.history.fault("PostgreSQL's network cut", outage=True):
        scene.to_postgres.cut()
        scene.last(2)
        scene.to_postgres.heal()


def delay_postgres(scene: Scene) -> None:
    assert scene.to_postgres is not None
    with scene.history.fault("PostgreSQL's network slow", outage=True):
        scene.to_postgres.delay(DELAY_SECONDS)
        scene.last(3)
        scene.to_postgres.heal()


def swallow_postgres(scene: Scene) -> None:
    assert scene.to_postgres is not None
    with scene.history.fault("PostgreSQL's network swallows", outage=True):
        scene.to_postgres.swallow()
        scene.last(4)
        scene.to_postgres.heal()


@contextmanager
def jobs_locked(database: Database) -> Iterator[None]:
    """Within this context, another transaction locks the table, or on SQLite the file."""
    with database.write() as session:
        session.connection()  # begins the transaction, which is enough for SQLite
        if database.dialect == "postgresql":
            session.execute(text("LOCK TABLE jobs IN SHARE ROW EXCLUSIVE MODE"))
        yield


def lock_jobs(scene: Scene) -> None:
    with (
        scene.history.fault("jobs locked", outage=True),
        jobs_locked(scene.run.cluster.database),
    ):
        scene.last(scene.lock_seconds)


def fill_disk(scene: Scene) -> None:
    assert scene.disk is not None
    with scene.history.fault("the database's disk is full", outage=True):
        with scene.disk.full():
            scene.last(3)
        if scene.postgres is not None:
            scene.postgres.start_if_ended()


Fault = Callable[[Scene], None]
WORKER_FAULTS: tuple[Fault, ...] = (
    kill_worker,
    stop_worker_beyond_its_lease,
    terminate_worker,
    kill_engine,
    hang_engine,
)
VALKEY_FAULTS: tuple[Fault, ...] = (
    restart_valkey,
    hang_valkey,
    flush_valkey,
    kill_clients,
    fill_valkey,
    demote_valkey,
    cut_off_valkey,
    delay_valkey,
    swallow_valkey,
    push_garbage,
)
POSTGRES_FAULTS: tuple[Fault, ...] = (
    restart_postgres,
    hang_postgres,
    demote_postgres,
    drop_connections,
    cut_off_postgres,
    delay_postgres,
    swallow_postgres,
    lock_jobs,
)
SQLITE_FAULTS: tuple[Fault, ...] = (lock_jobs,)
