"""The libraries of the extra `files`, loaded when the first file needs one."""

from importlib import import_module
from typing import Any

from cli.documents.document import UnreadableDocument


def require(module: str, suffix: str) -> Any:
    """The module; raises UnreadableDocument, saying what to install, where it is missing."""
    try:
        return import_module(module)
    except ImportError:
        raise UnreadableDocument(
            "extra_missing",
            f"is a {suffix} file, which the extra `files` reads: pip install 'tidemill[files]'",
        ) from None
