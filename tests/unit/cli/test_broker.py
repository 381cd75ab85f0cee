"""Commands' queries of Redis, and how long they wait if it does not answer."""

import socket
import threading

import pytest

from cli.errors import BrokerUnreachable
from cli.stack.broker import read_broker


def test_a_redis_that_hangs_up_is_asked_once() -> None:
    num_asked = 0
    with socket.create_server(("127.0.0.1", 0)) as server:

        def hang_up() -> None:
            nonlocal num_asked
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return  # the test is over
                num_asked += 1
                connection.close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        port = server.getsockname()[1]
        with pytest.raises(BrokerUnreachable, match="cannot be reached"):
            read_broker(f"redis://127.0.0.1:{port}/0")
        server.shutdown(socket.SHUT_RDWR)
    thread.join()
    assert num_asked == 1
