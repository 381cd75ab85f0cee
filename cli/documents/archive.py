"""Archive: the ZIP file inside a .docx or .epub, with bounds on its members."""

import io
import zipfile
import zlib
from types import TracebackType
from typing import Self

from cli.documents.document import UnreadableDocument

MAX_TEXT_BYTES = 64 * 2**20  # of all texts together, unpacked
# Pictures may have more, but hardly shrink; what does is no picture.
MAX_SHRINKAGE = 100
TEXTS = (".xml", ".rels", ".xhtml", ".html", ".htm", ".opf")


class Archive:
    """Reads members; raises UnreadableDocument for anything invalid.

    `kind` is the expected kind.
    """

    def __init__(self, content: bytes, kind: str) -> None:
        self._kind = kind
        try:
            self._file = zipfile.ZipFile(io.BytesIO(content))
        except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError):
            raise self._broken() from None
        self.names = frozenset(self._file.namelist())
        self._num_read = 0
        self._require_bounded(
            sum(
                member.file_size
                for member in self._file.infolist()
                if member.filename.lower().endswith(TEXTS)
                or member.file_size > MAX_SHRINKAGE * member.compress_size
            )
        )

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
        self._num_read += member.file_size
        self._require_bounded(self._num_read)
        try:
            with self._file.open(member) as file:
                return file.read(member.file_size)
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError):
            raise self._broken() from None
        except RuntimeError:  # how zipfile says that a password is needed
            raise UnreadableDocument("encrypted", "is encrypted; save it without") from None

    def _require_bounded(self, num_bytes: int) -> None:
        if num_bytes > MAX_TEXT_BYTES:
            fault = f"unpacks to {num_bytes:,} bytes of text, more than any job may hold"
            raise UnreadableDocument("file_too_large", fault)

    def _broken(self) -> UnreadableDocument:
        return UnreadableDocument("broken_file", f"is no {self._kind} that can be read")
