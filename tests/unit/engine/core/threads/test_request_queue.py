from engine.core.threads.request_queue import RequestQueue
from engine.protocol.request import Request


def test_interactive_requests_leave_the_queue_before_bulk_ones_that_came_earlier():
    requests = RequestQueue()
    for id_, is_interactive in enumerate([False, False, True, False, True]):
        requests.put(Request(id=id_, task="generate", text="x", is_interactive=is_interactive))
    assert [requests.get().id for _ in range(5)] == [2, 4, 0, 1, 3]


def test_get_interactive_takes_no_bulk_request():
    requests = RequestQueue()
    for id_, is_interactive in enumerate([False, True]):
        requests.put(Request(id=id_, task="generate", text="x", is_interactive=is_interactive))
    taken = requests.get_interactive()
    assert taken is not None
    assert taken.id == 1
    assert requests.get_interactive() is None
    assert requests.get().id == 0
