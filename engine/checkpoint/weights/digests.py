"""The files that a checkpoint's weights were read from: their SHA-256, and its licence."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# transformers reads the first kind of which there is a file.
KINDS = ("*.safetensors", "*.bin")
NOT_WEIGHTS = frozenset({"training_args.bin", "optimizer.bin", "scheduler.bin"})
SHA256 = re.compile(r"[0-9a-f]{64}")
LICENCE = re.compile(r"^licen[cs]e:[ \t]*[\"']?([^\s\"'#]+)", re.MULTILINE)


def weight_digests(folder: Path) -> dict[str, str]:
    """The SHA-256 of each weight file of a folder, by name; empty where there is none.

    In the hub's cache a file of weights is a link to a blob that is named by its SHA-256, so
    nothing is read there. Otherwise it takes about a second for a gigabyte and a core.
    """
    files = next(filter(None, (sorted(folder.glob(kind)) for kind in KINDS)), [])
    files = [path for path in files if path.name not in NOT_WEIGHTS]
    with ThreadPoolExecutor(2) as pool:
        return dict(zip([path.name for path in files], pool.map(sha256_of, files), strict=True))


def sha256_of(path: Path) -> str:
    blob = path.resolve().name
    if path.is_symlink() and SHA256.fullmatch(blob):
        return blob
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_revision(folder: Path, digests: Mapping[str, str]) -> str:
    """A short hash of a folder's configuration and weights, byte for byte."""
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for name, sha256 in sorted(digests.items()):
        digest.update(f"{name} {sha256}\n".encode())
    return digest.hexdigest()[:12]


def licence_of(folder: Path) -> str | None:
    """The licence that the front matter of a checkpoint's README names; None without one."""
    try:
        readme = (folder / "README.md").read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    if not readme.startswith("---\n"):
        return None
    licence = LICENCE.search(readme[4:].partition("\n---")[0])
    return licence[1] if licence else None
