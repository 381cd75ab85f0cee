"""Forked children: in the tests, an EngineClient has its process forked, and `up` its worker.

Importing this has it so, in the process of the tests and in the workers that they fork.
"""

import os
import subprocess
from collections.abc import Sequence
from typing import Any

from cli.stack import child_process
from engine.protocol.engine_spec import EngineSpec
from tests.forking.forked import MODULE, ROOT, ForkedProcess, is_module
from worker.engines.engine_client import EngineClient


def name_of_engines(parent: int) -> str:
    """The parent of a fork is the fork server, so its name says whose it is."""
    return f"engine/{parent}"


def fork_engine(spec: EngineSpec, fd: int, **arguments: Any) -> ForkedProcess:
    """`python -P -m engine FD`, forked for this process."""
    return ForkedProcess(
        [*MODULE, "engine", str(fd)],
        pass_fds=[fd],
        stdin=subprocess.DEVNULL,
        # As the server's: the folder that an EngineClient puts there is the same.
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        needs_model=spec.engine != "fake",
        name=name_of_engines(os.getpid()),
        **arguments,
    )


def _start_process(client: EngineClient, fd: int) -> ForkedProcess:
    return fork_engine(client.spec, fd)


AS_STARTED = child_process.start


def _start(command: Sequence[str], **others: Any) -> "subprocess.Popen[bytes]":
    if not is_module(command):
        return AS_STARTED(command, **others)
    return ForkedProcess(command, ends_with_parent=True, **others)


child_process.start = _start
EngineClient._start_process = _start_process  # type: ignore[method-assign]
