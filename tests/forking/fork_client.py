"""`python -I -S fork_client.py FD MODULE ...`: has a server fork a module, and ends as it does.

For commands that a test has a shell run. FD: where the server is asked
"""

import json
import os
import socket
import struct
import sys

NUMBER = struct.Struct("i")


def main(fd: int, module: str, arguments: list[str]) -> int:
    request = {
        "module": module,
        "arguments": arguments,
        "folder": os.getcwd(),
        "environment": dict(os.environ),
        "descriptors": [],
        "needs_model": False,
        "name": "",
        "ends_with_parent": False,
        "starts_session": False,
    }
    reading, writing = os.pipe()
    with socket.socket(fileno=fd) as server:
        socket.send_fds(server, [json.dumps(request).encode()], [0, 1, 2, writing])
    os.close(writing)
    for _ in ("its id", "its end"):
        (number,) = NUMBER.unpack(os.read(reading, NUMBER.size))
    return int(number) if number >= 0 else 128 - int(number)  # as a shell counts signals


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2], sys.argv[3:]))
