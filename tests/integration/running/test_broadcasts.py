"""Remote control uses a connection of its own, whose end blocks nothing."""

import redis

from db import JobState
from tasks import generate
from tasks.app import app
from tests.running.workers import Cluster, on_sqlite, until


@on_sqlite
def test_a_worker_whose_broadcast_connection_ends_goes_on_and_stops(producer: Cluster) -> None:
    with (
        redis.Redis.from_url(producer.redis_url) as client,
        producer.worker() as worker,
        app.connection_for_write() as connection,
    ):

        def ping() -> list[dict[str, object]]:
            return app.control.ping(timeout=0.5, connection=connection)

        assert ping()
        for num_jobs in (1, 2, 3):
            assert client.execute_command("CLIENT", "KILL", "TYPE", "pubsub") >= 1
            generate.submit(text="a b", max_new_tokens=2)
            producer.wait_until_finished(num_jobs)
        until(ping, "an answer to a ping")
        worker.stop()
    assert producer.states() == {JobState.SUCCEEDED: 3}
