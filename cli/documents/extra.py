"""The libraries of the extra `files`, loaded when a file first needs one."""

from importlib import import_module
from typing import Any

from cli.documents.document import UnreadableDocument


def require(module: str, suffix: str) -> Any:
    """Import a module; raises UnreadableDocument with the package to install if it is missing."""
    try:
        return import_module(module)
    except ImportError:
        raise UnreadableDocument(
            "extra_missing",
            f"is a {suffix} file, which the extra `files` reads: pip install 'tidemill[files]'",
        ) from None
