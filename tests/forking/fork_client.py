"""`python -I -S fork_client.py FD MODULE ...`: has a server fork a module, and exits with its
status.

For commands that a test runs in a shell.

FD: the socket of the server
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
    return int(number) if number >= 0 else 128 - int(number)  # a shell's status for signals


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2], sys.argv[3:]))
