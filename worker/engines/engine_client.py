"""EngineClient: the parent's end of an engine process. It sends requests and hands out outputs,
restarts the process after a crash and finds the request at fault.

When the process ends by itself, one of its requests was fatal. They are run again in halves until
one is fatal alone, twice; it fails, and no other does. Unsent requests wait meanwhile.
"""

import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import worker
from db.child_environment import without_secrets
from engine.protocol.engine_spec import EngineSpec
from engine.protocol.limits import Sized
from engine.protocol.messages import (
    Cancel,
    Frame,
    Load,
    LoadFailed,
    Outputs,
    Ready,
    Run,
    Stop,
    from_bytes,
    to_bytes,
)
from engine.protocol.model_card import ModelCard
from engine.protocol.output import Output, RequestFailure
from engine.protocol.progress import Progress
from engine.protocol.request import Request
from worker.backoff import backoff_seconds
from worker.bisection import halves
from worker.cache.content_key import model_digest
from worker.errors import EngineCrashed, EngineUnusable
from worker.failpoints import passing
from worker.metrics.figures import EngineFigures

log = logging.getLogger(__name__)

FIRST_RESTART_SECONDS = 0.1
MAX_RESTART_SECONDS = 30.0
STOP_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class _HeldRequest:
    request: Request
    on_output: Callable[[Output], None]


class EngineClient:
    """An engine process and its unanswered requests.

    Each submitted request gets exactly one call of its `on_output`, on the reader thread, unless
    the client is stopped first.

    Always: held = sent + unsent + those in trials; each request is in one of them.
    """

    def __init__(self, spec: EngineSpec) -> None:
        self.spec = spec
        self.progress = Progress()
        self.num_restarts = 0
        self.model_digest = b""  # of what is loaded; see `worker.cache.content_key`
        self._card: ModelCard | None = None
        self._sized: Sized | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        # Reentrant: a signal handler that releases jobs may run on the thread that holds it.
        self._lock = threading.RLock()
        self._wake = threading.Condition(self._lock)
        self._held: dict[int, _HeldRequest] = {}
        self._sent: dict[int, None] = {}  # ordered
        self._unsent: deque[int] = deque()
        self._trials: deque[Sequence[int]] = deque()
        self._on_trial = False  # the sent requests are a trial, and no others are sent
        self._alone: int | None = None  # the request that was alone when the process last ended
        self._cancelled: set[int] = set()  # until their output arrives, from whichever process
        self._cancelled_there: set[int] = set()  # those that the present process knows of
        # Since when the reader has waited for a frame. None: it is handing one out, and frames that
        # arrive meanwhile are not yet seen.
        self._silent_since: float | None = None
        self._ready = False
        self._stopping = False
        self._threads: list[threading.Thread] = []

    # --- life ------------------------------------------------------------------------------

    def start(self) -> ModelCard:
        """Load the model; returns its card, or raises EngineUnusable."""
        self._spawn()
        card = self._load()
        for name, body in (("reader", self._read), ("sender", self._send)):
            thread = threading.Thread(target=body, name=f"{self.spec.alias}-{name}", daemon=True)
            thread.start()
            self._threads.append(thread)
        return card

    def stop(self) -> None:
        """End the process; unanswered requests get no output. May be called twice."""
        with self._lock:
            self._stopping = True
            unwanted = bool(self._held)
            self._wake.notify_all()
        process, connection = self._process, self._connection
        if process is None:
            return
        if unwanted:
            process.kill()  # the step that it is in is not waited for
        try:
            if connection is not None:
                connection.send_bytes(to_bytes(Stop()))
        except OSError:
            pass  # it has ended by itself
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(STOP_SECONDS)

    @property
    def card(self) -> ModelCard:
        assert self._card is not None, "the engine was not started"
        return self._card

    @property
    def sized(self) -> Sized:
        """The limits of the engine and the reason for each."""
        assert self._sized is not None, "the engine was not started"
        return self._sized

    @property
    def figures(self) -> EngineFigures:
        """The present figures of the process, even before its model is loaded."""
        spec = self._sized.spec if self._sized is not None else self.spec
        return EngineFigures(
            model=spec.alias,
            replica=spec.replica,
            is_ready=self._ready,
            num_held=self.num_held,
            num_restarts=self.num_restarts,
            max_rows=spec.max_sequences,
            max_cache_tokens=spec.max_cache_tokens,
            progress=self.progress,
        )

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    @property
    def num_held(self) -> int:
        with self._lock:
            return len(self._held)

    # --- requests --------------------------------------------------------------------------

    def submit(self, requests: Iterable[Request], on_output: Callable[[Output], None]) -> None:
        with self._lock:
            if not self._unsent:  # otherwise the sender is awake already and takes these too
                self._wake.notify_all()
            for request in requests:
                self._held[request.id] = _HeldRequest(request, on_output)
                self._unsent.append(request.id)

    def cancel(self, request_ids: Iterable[int]) -> None:
        """Cancel requests at the next step; each still gets its one output."""
        with self._lock:
            self._cancelled.update(id for id in request_ids if id in self._held)
            self._wake.notify_all()

    def kill_if_stalled(self, now: float, stall_seconds: float) -> None:
        """Kill a process without output for so long; its requests are run again in halves."""
        with self._lock:
            if self._silent_since is None:
                return
            if not self._sent or not self._ready:
                self._silent_since = now
            stalled = now - self._silent_since > stall_seconds
            if stalled:
                self._silent_since = now
        if stalled and self._process is not None:
            log.error("engine stalled", extra={"model": self.spec.alias, "pid": self.pid})
            self._process.kill()

    # --- the process -------------------------------------------------------------------------

    def _spawn(self) -> None:
        parent_end, child_end = socket.socketpair()
        with child_end:
            self._process = self._start_process(child_end.fileno())
        self._connection = Connection(parent_end.detach())

    def _start_process(self, fd: int) -> subprocess.Popen[bytes]:
        """Start an engine process that serves at one end of a socket pair."""
        # The child imports the package of this process, wherever it is installed; -P, because the
        # current folder may have its own `worker`.
        root = str(Path(worker.__file__).parent.parent)
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "engine", str(fd)],
            pass_fds=[fd],
            stdin=subprocess.DEVNULL,
            env={**without_secrets(), "PYTHONPATH": path},
        )

    def _load(self) -> ModelCard:
        assert self._connection is not None
        try:
            self._connection.send_bytes(to_bytes(Load(self.spec)))
            answer = from_bytes(self._connection.recv_bytes())
        except (EOFError, OSError) as error:
            raise EngineUnusable(
                f"the engine of model {self.spec.alias!r} ended with status {self._status()} "
                "before it was ready"
            ) from error
        if isinstance(answer, LoadFailed):
            raise EngineUnusable(answer.message)
        assert isinstance(answer, Ready), answer
        with self._lock:
            self._card = answer.card
            self.model_digest = model_digest(self.spec, answer.card)
            self._sized = answer.sized
            self._ready = True
            self._wake.notify_all()
        return answer.card

    def _status(self) -> int | None:
        assert self._process is not None
        try:
            return self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def _read(self) -> None:
        """The reader thread: hands out outputs and restarts the process when it ends."""
        assert self._connection is not None
        while True:
            with self._lock:
                self._silent_since = time.monotonic()
            try:
                frame = from_bytes(self._connection.recv_bytes())
            except (EOFError, OSError):
                if not self._revive():
                    return
                continue
            assert isinstance(frame, Outputs), frame
            with self._lock:
                self._silent_since = None
            self.progress = frame.progress
            if frame.progress.num_running or frame.progress.num_waiting:
                passing("stepped")
            self._hand_out(frame.outputs)

    def _hand_out(self, outputs: Iterable[Output]) -> None:
        handed_out = []
        with self._lock:
            for output in outputs:
                held = self._held.pop(output.request_id, None)
                if held is not None:
                    handed_out.append((held, output))
                self._sent.pop(output.request_id, None)
                self._cancelled.discard(output.request_id)
                self._cancelled_there.discard(output.request_id)
            if not self._sent:
                self._on_trial = False
                self._wake.notify_all()  # the next trial, if there is one
        for held, output in handed_out:
            held.on_output(output)

    # --- when the process has ended ------------------------------------------------------------

    def _revive(self) -> bool:
        """Choose the suspects and start the process again; False when stopping."""
        with self._lock:
            self._ready = False
            if self._stopping:
                return False
        status = self._status()
        culprit = self._suspect()
        log.error(
            "engine process ended",
            extra={"model": self.spec.alias, "status": status, "culprit_found": bool(culprit)},
        )
        if culprit is not None:
            crashed = EngineCrashed(status)
            failure = RequestFailure(crashed.code, str(crashed), crashed.retryable)
            culprit.on_output(Output(request_id=culprit.request.id, failure=failure))
        return self._restart()

    def _suspect(self) -> _HeldRequest | None:
        """Put the process's requests on trial; returns a request that was fatal alone twice."""
        with self._lock:
            suspects = list(self._sent)
            self._sent.clear()
            self._cancelled_there.clear()
            self._on_trial = False
            alone = suspects[0] if len(suspects) == 1 else None
            if alone is not None and alone == self._alone:
                self._cancelled.discard(alone)
                return self._held.pop(alone)
            # Once may be chance: the process was killed, or the machine was short of memory, while
            # only this request ran.
            self._alone = alone
            self._trials.extendleft(reversed(halves(suspects)))
            return None

    def _restart(self) -> bool:
        num_tries = 0
        while True:
            with self._lock:
                if self._stopping:
                    return False
            self.num_restarts += 1
            try:
                self._spawn()
                self._load()
                return True
            except EngineUnusable as error:
                log.error(
                    "engine process did not start again",
                    extra={"model": self.spec.alias, "reason": str(error)},
                )
            num_tries += 1
            pause_seconds = backoff_seconds(num_tries, FIRST_RESTART_SECONDS, MAX_RESTART_SECONDS)
            with self._lock:
                self._wake.wait_for(lambda: self._stopping, pause_seconds)

    # --- the sender thread -------------------------------------------------------------------

    def _send(self) -> None:
        while True:
            with self._lock:
                self._wake.wait_for(lambda: self._stopping or self._has_frames())
                if self._stopping:
                    return
                frames = self._next_frames()
                connection = self._connection
            assert connection is not None
            try:
                for frame in frames:
                    connection.send_bytes(to_bytes(frame))
            except OSError:
                # The process has ended: the reader notices too, and puts the sent requests on
                # trial.
                time.sleep(0)

    def _has_frames(self) -> bool:
        if not self._ready:
            return False
        return self._may_send() or bool(self._leaving())

    def _leaving(self) -> set[int]:
        return (self._cancelled & self._sent.keys()) - self._cancelled_there

    def _may_send(self) -> bool:
        if self._trials or self._on_trial:
            return not self._sent
        return bool(self._unsent)

    def _next_frames(self) -> list[Frame]:
        frames: list[Frame] = []
        if self._may_send():
            if self._trials:
                ids = self._trials.popleft()
                self._on_trial = True
            else:
                ids = list(self._unsent)
                self._unsent.clear()
            self._sent.update(dict.fromkeys(ids))
            frames.append(Run(tuple(self._held[id].request for id in ids)))
        leaving = self._leaving()
        if leaving:
            self._cancelled_there |= leaving
            frames.append(Cancel(tuple(sorted(leaving))))
        return frames

    def check(self) -> None:
        """Raise AssertionError unless every held request is in exactly one place."""
        with self._lock:
            places = [*self._sent, *self._unsent, *(id for trial in self._trials for id in trial)]
            assert len(places) == len(set(places)), "a request is in two places"
            assert set(places) == set(self._held), "a request is nowhere"
