"""Keeps a number of workers running, as systemd or Kubernetes would."""

import signal
import threading
import time
from dataclasses import dataclass, field

import psutil

from tests.chaos.run import Run
from tests.running.workers import WorkerProcess

STOP_SECONDS = 30.0  # the longest wait for a planned stop


@dataclass
class Supervisor:
    """A thread restarts workers that end; `stop` ends the thread, and the workers as planned."""

    run: Run
    num_workers: int
    arguments: tuple[str, ...] = ()  # of `celery worker`
    workers: list[WorkerProcess] = field(default_factory=list)
    _terminated: dict[int, float] = field(default_factory=dict)  # pid -> since when
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _stopping: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        for _ in range(self.num_workers):
            self.workers.append(self.run.cluster.start_worker(*self.arguments))
        for worker in self.workers:
            worker.wait_until_ready()
        self._thread = threading.Thread(target=self._look_after, name="supervisor", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Raises AssertionError unless every worker exits with status 0 and leaves nothing
        behind."""
        self.leave()
        for worker in self.workers:
            if worker.process.poll() is None:
                worker.wait_until_ready()  # a signal before that ends it at once
                worker.stop()

    def leave(self) -> None:
        """Stop restarting workers; may be called twice."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()

    def alive(self) -> list[WorkerProcess]:
        """The workers that are ready and are not being stopped."""
        with self._lock:
            return [
                worker
                for worker in self.workers
                if worker.process.poll() is None
                and worker.pid not in self._terminated
                and " ready." in worker.log
            ]

    def terminate(self, worker: WorkerProcess) -> None:
        """Stop a worker as planned."""
        with self._lock:
            self._terminated[worker.pid] = time.monotonic()
        worker.process.send_signal(signal.SIGTERM)

    def _look_after(self) -> None:
        while not self._stopping.wait(0.1):
            for place, worker in enumerate(self.workers):
                self._end_if_stubborn(worker)
                if worker.process.poll() is None:
                    continue
                status = self.run.bury(worker)
                since = self._terminated.get(worker.pid)
                if since is not None:
                    seconds = time.monotonic() - since
                    self.run.history.write("stopped", pid=worker.pid, status=status, took=seconds)
                with self._lock:
                    self.workers[place] = self.run.cluster.start_worker(*self.arguments)

    def _end_if_stubborn(self, worker: WorkerProcess) -> None:
        since = self._terminated.get(worker.pid)
        if since is not None and time.monotonic() - since > STOP_SECONDS:
            self.run.history.write("stubborn", pid=worker.pid, log=worker.log[-2000:])
            # Its engines notice by themselves.
            psutil.Process(worker.pid).kill()
            worker.wait()
