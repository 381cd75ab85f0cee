"""Output files, which appear only when they are complete."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def opened(output: Path | None) -> Iterator[BinaryIO]:
    """Standard output, or a file that gets its name when everything is written."""
    if output is None:
        yield sys.stdout.buffer
        return
    part = output.with_name(output.name + ".part")
    try:
        with part.open("wb") as to:
            yield to
        part.replace(output)
    except OSError as error:
        # Those of a write have no name with them.
        raise OSError(error.errno, error.strerror, str(output)) from error
    finally:
        part.unlink(missing_ok=True)
