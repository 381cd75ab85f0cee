"""Forked children: in the tests, an EngineClient forks its process, and `up` its worker.

Importing this switches forking on, in the tests' process and in the workers that they fork.
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
    """The name of an engine's process, which tells its worker; its parent is the fork server."""
    return f"engine/{parent}"


def fork_engine(spec: EngineSpec, fd: int, **arguments: Any) -> ForkedProcess:
    """`python -P -m engine FD`, forked for this process."""
    return ForkedProcess(
        [*MODULE, "engine", str(fd)],
        pass_fds=[fd],
        stdin=subprocess.DEVNULL,
        # Equal to the server's; an EngineClient would put the same folder there.
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
