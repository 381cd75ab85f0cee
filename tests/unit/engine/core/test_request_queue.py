from engine.core.request_queue import Requests
from engine.protocol.messages import Request


def test_interactive_requests_are_encoded_before_bulk_ones_that_came_earlier():
    requests = Requests()
    for id_, is_interactive in enumerate([False, False, True, False, True]):
        requests.put(Request(id=id_, task="generate", text="x", is_interactive=is_interactive))
    assert [requests.get().id for _ in range(5)] == [2, 4, 0, 1, 3]
