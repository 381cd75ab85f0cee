"""ResultFolder: a file for each job's output, written once and never over another file."""

import errno
import fcntl
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import BinaryIO, Self
from uuid import UUID

from cli.errors import CommandError
from cli.output.files.result_names import TakenNames, result_name
from db.reading.found_job import FoundJob
from db.states import UNFINISHED, JobState

RECORD = ".tidemill-results"  # no output has such a name
DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


@dataclass(slots=True)
class Written:
    """The result of writing; the lists are (name, reason) pairs in order of submission."""

    num_written: int = 0
    num_there_before: int = 0
    num_unfinished: int = 0
    partial: list[str] = field(default_factory=list)  # made from a part of their source
    renamed: list[str] = field(default_factory=list)  # of several jobs by one name
    without_output: list[tuple[str, str]] = field(default_factory=list)
    unwritable: list[tuple[str, str]] = field(default_factory=list)


class ResultFolder:
    """Writes outputs into a folder, and skips those that an earlier run has written.

    A hidden file records each output before it gets its name, so a recorded file is ours, and any
    other one is never overwritten. Use it as a context manager; one process at a time.
    """

    def __init__(self, path: Path) -> None:
        self._root = path
        self._names: dict[UUID, PurePosixPath] = {}
        self._taken = TakenNames()
        self._record: BinaryIO | None = None
        self.written = Written()

    def __enter__(self) -> Self:
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            self._root = self._root.resolve()
            self._record = (self._root / RECORD).open("a+b")
        except OSError as error:
            raise CommandError(
                f"--to-folder {self._root} cannot be written: {error.strerror}"
            ) from error
        try:
            fcntl.flock(self._record, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._record.close()
            raise CommandError(f"another command is writing to {self._root} now") from None
        self._read_record(self._record)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._record is not None
        self._record.close()

    def _read_record(self, record: BinaryIO) -> None:
        record.seek(0)
        line = b"\n"
        for line in record:
            with suppress(ValueError, KeyError, TypeError):  # a line that a crash has cut
                entry = json.loads(line)
                self._names[UUID(entry["job"])] = self._taken.take(PurePosixPath(entry["file"]))
        if not line.endswith(b"\n"):
            record.write(b"\n")

    def write(self, jobs: Iterable[FoundJob]) -> None:
        """Write the missing outputs, job by job, always in the same order.

        Raises OSError if nothing more can be written.
        """
        for job in jobs:
            # A job without an output takes its name, too: it may have one in the next start.
            is_recorded = job.id in self._names
            plain = result_name(job.custom_id, job.id, job.task)
            name = self._names[job.id] if is_recorded else self._taken.take(plain)
            if name != plain:
                self.written.renamed.append(str(name))
            if job.state is not JobState.SUCCEEDED:
                self._keep_without_output(job, name)
                continue
            if job.left_out_characters or "without_text" in job.metadata:
                self.written.partial.append(str(name))
            try:
                self._write(job, name, (job.output or "").encode(), is_recorded)
            except OSError as error:
                if error.errno in DISK_IS_FULL:
                    raise
                self.written.unwritable.append((str(name), error.strerror or str(error)))

    def _keep_without_output(self, job: FoundJob, name: PurePosixPath) -> None:
        if job.state in UNFINISHED:
            self.written.num_unfinished += 1
            return
        reason = f"{job.error.code}: {job.error.message}" if job.error else str(job.state)
        self.written.without_output.append((job.custom_id or str(name), reason))

    def _write(self, job: FoundJob, name: PurePosixPath, output: bytes, is_recorded: bool) -> None:
        path = self._root / name
        if not path.parent.resolve().is_relative_to(self._root):
            self.written.unwritable.append((str(name), "a link leads out of the folder"))
            return
        if os.path.lexists(path) and not (is_recorded and _is_torn(path, output)):
            if not is_recorded and not _holds(path, output):
                fault = "a file of that name is there already, with something else in it"
                self.written.unwritable.append((str(name), fault))
                return
            if not is_recorded:
                self._remember(job, name)
            self.written.num_there_before += 1
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".tidemill-{job.id}.part")
        try:
            part.write_bytes(output)
            if not is_recorded:
                self._remember(job, name)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        self.written.num_written += 1

    def _remember(self, job: FoundJob, name: PurePosixPath) -> None:
        assert self._record is not None
        entry = {"job": str(job.id), "file": str(name)}
        self._record.write(json.dumps(entry).encode() + b"\n")
        self._record.flush()


def _is_torn(path: Path, output: bytes) -> bool:
    """Whether a power cut destroyed the content of a file."""
    return bool(output) and path.is_file() and path.stat().st_size == 0


def _holds(path: Path, output: bytes) -> bool:
    return path.is_file() and path.stat().st_size == len(output) and path.read_bytes() == output
