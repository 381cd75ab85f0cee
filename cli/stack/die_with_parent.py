"""`python die_with_parent.py PARENT COMMAND...` becomes the command, and ends with its parent.

On Linux the kernel sends the command SIGTERM when the process that started it dies in any way;
elsewhere this is only an exec. It is a program of its own because in a process with threads no
Python can run safely between fork and exec.
"""

import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(parent: int, command: list[str]) -> None:
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before it could be watched
            sys.exit(1)
    os.execv(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
