"""Result names: file names of outputs, valid on every system and unique."""

import re
import unicodedata
from collections.abc import Iterator
from hashlib import sha256
from itertools import count
from pathlib import PurePath, PurePosixPath
from uuid import UUID

TEXT = frozenset({".txt", ".text", ".md", ".markdown", ".rst", ".adoc", ".org", ".log"})
SUBTITLES = frozenset({".srt", ".vtt"})  # a summary of subtitles is none
READ_AS_MARKDOWN = frozenset({".html", ".htm", ".xhtml", ".docx", ".epub"})

MAX_NAME_BYTES = 200  # of the 255 that a system has, so that there is room for a suffix
# What Windows forbids in a name, what moves a terminal, and what turns its writing around.
_UNSAFE = re.compile(
    '[<>:"|?*\\\\\x00-\x1f\x7f-\x9f\u200b\u2028-\u202e\u2066-\u206f\ufeff\ud800-\udfff]'
)
_RESERVED = re.compile(r"(?:con|prn|aux|nul|conin\$|conout\$|(?:com|lpt)[0-9¹²³]) *(?:\.|$)", re.I)


def result_name(custom_id: str | None, job_id: UUID, task: str) -> PurePosixPath:
    """The relative name of a job's file: that of its source if that has the same format.

    If only the text of a source was read, the name gets another suffix: `report.pdf.txt`.
    """
    parts = [_safe(part) for part in (custom_id or "").split("/") if part not in ("", ".")]
    if not parts:
        return PurePosixPath(f"{job_id}.txt")
    suffix = PurePath(parts[-1]).suffix.lower()
    if suffix not in TEXT and not (suffix in SUBTITLES and task == "translate"):
        parts[-1] += ".md" if suffix in READ_AS_MARKDOWN and task == "translate" else ".txt"
    return PurePosixPath(*parts)


def _safe(part: str) -> str:
    """A name part as a valid file name; a changed name stays recognisable."""
    safe = _UNSAFE.sub("_", part)
    if safe.startswith("."):  # hidden, or `..`
        safe = "_" + safe[1:]
    if safe.endswith((".", " ")):  # which Windows would drop
        safe = safe[:-1] + "_"
    if _RESERVED.match(safe):
        safe = "_" + safe
    if len(safe.encode()) > MAX_NAME_BYTES:
        suffix = PurePath(safe).suffix
        suffix = suffix if len(suffix.encode()) < MAX_NAME_BYTES // 4 else ""
        mark = f"~{sha256(part.encode()).hexdigest()[:8]}{suffix}"
        safe = safe.encode()[: MAX_NAME_BYTES - len(mark.encode())].decode(errors="ignore") + mark
    return safe


class TakenNames:
    """The names in use, so that no two jobs share a file.

    Names that differ only in case or in the encoding of accents are equal on some systems.
    """

    def __init__(self) -> None:
        self._files: set[str] = set()
        self._folders: set[str] = set()

    def take(self, name: PurePosixPath) -> PurePosixPath:
        """The name, or the next free one like it: `a.txt`, `a (2).txt`."""
        folder = PurePosixPath()
        for part in name.parts[:-1]:
            folder = next(
                each for each in _variants(folder / part) if _key(each) not in self._files
            )
            self._folders.add(_key(folder))
        free = next(
            each
            for each in _variants(folder / name.name)
            if _key(each) not in self._files and _key(each) not in self._folders
        )
        self._files.add(_key(free))
        return free


def _variants(name: PurePosixPath) -> Iterator[PurePosixPath]:
    yield name
    for number in count(2):
        yield name.with_name(f"{name.stem} ({number}){name.suffix}")


def _key(name: PurePosixPath) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", str(name)).casefold())
