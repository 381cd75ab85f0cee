"""An archive: the ZIP file that a .docx or .epub is, its members within bounds."""

import io
import zipfile
import zlib
from types import TracebackType
from typing import Self

from cli.documents.document import UnreadableDocument

MAX_MEMBER_BYTES = 64 * 2**20  # unpacked: what is called so small may be anything


class Archive:
    """Raises UnreadableDocument for whatever cannot be read; `kind` is what it should be."""

    def __init__(self, content: bytes, kind: str) -> None:
        self._kind = kind
        try:
            self._file = zipfile.ZipFile(io.BytesIO(content))
        except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError):
            raise self._broken() from None
        self.names = frozenset(self._file.namelist())
        for member in self._file.infolist():
            if member.filename.endswith((".xml", ".rels", ".xhtml", ".html", ".htm", ".opf")):
                self._require_bounded(member)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def require(self, *names: str) -> None:
        for name in names:
            if name not in self.names:
                raise UnreadableDocument("broken_file", f"is no {self._kind}: it has no {name}")

    def read(self, name: str) -> bytes:
        self.require(name)
        member = self._file.getinfo(name)
        self._require_bounded(member)
        try:
            with self._file.open(member) as file:
                return file.read(MAX_MEMBER_BYTES + 1)[:MAX_MEMBER_BYTES]
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError):
            raise self._broken() from None
        except RuntimeError:  # how zipfile says that a password is needed
            raise UnreadableDocument("encrypted", "is encrypted; save it without") from None

    def _require_bounded(self, member: zipfile.ZipInfo) -> None:
        if member.file_size > MAX_MEMBER_BYTES:
            fault = f"unpacks to {member.file_size:,} bytes, more than any job may hold"
            raise UnreadableDocument("file_too_large", fault)

    def _broken(self) -> UnreadableDocument:
        return UnreadableDocument("broken_file", f"is no {self._kind} that can be read")
