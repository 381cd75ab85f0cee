"""The argument of `tidemill submit`: a text, a source, or ambiguous."""

import os
import re
from pathlib import Path

from cli.ingest import looks_like_source

# A word with a suffix: letters first, so that 3.14 and v1.2 are words.
FILE_NAME = re.compile(r"[^\s]*[^\s.]\.[A-Za-z][A-Za-z0-9]{0,7}")
ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S+")
BEGINNINGS = ("/", "~/", "./", "../", "~\\", ".\\", "..\\")
DRIVE = re.compile(r"[A-Za-z]:[\\/]")


def what_it_looks_like(text: str) -> str | None:
    """The other reading of an argument, a path or a query; None if it is plainly a text.

    Not for a plain source. An existing file is a path whatever it looks like; otherwise only a
    single word that is written like a path.
    """
    if "\x00" in text or not text.strip():
        return None
    try:
        path = Path(text).expanduser()
        if path.is_dir():
            return "the name of a folder here"
        if path.exists():
            return "the name of a file here"
    except (OSError, RuntimeError):  # too long for a path; a home of nobody
        pass
    if len(text.split()) > 1 or text != text.strip():
        return None
    if ADDRESS.fullmatch(text):
        return "an address, from which nothing is fetched"
    is_path = (
        text.startswith(BEGINNINGS)
        or text.endswith(("/", "\\"))
        or DRIVE.match(text) is not None
        or FILE_NAME.fullmatch(text) is not None
        or _is_in_a_folder(text)
    )
    if "*" in text and (is_path or "/" in text):
        return "a pattern, to which no file fits"
    return "the name of a file or folder, and there is none" if is_path else None


def is_source(text: str) -> bool:
    """Whether an argument among several is opened: all that are not plainly texts."""
    return looks_like_source(text) or what_it_looks_like(text) is not None


def _is_in_a_folder(text: str) -> bool:
    """Whether it begins with an existing folder, which `and/or` does not."""
    first = text.split(os.sep)[0]
    return first != text and bool(first) and Path(first).is_dir()
