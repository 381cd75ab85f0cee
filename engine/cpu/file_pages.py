"""Mapped: pages of files that this process has read and may forget.

They count as its memory for as long as they are mapped, though the system has them anyway.
A page that is forgotten is mapped again when it is read, with what the file holds: so only
pages that nobody wrote to are, and never one that is of no file.
"""

from __future__ import annotations

import ctypes
import mmap
from array import array
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

MAPS = Path("/proc/self/maps")
PAGEMAP = Path("/proc/self/pagemap")
ENTRY_BYTES = 8  # of the page map, for each page; its bits are in the kernel's pagemap.rst
IS_PRESENT, IS_SWAPPED, IS_OF_FILE = 1 << 63, 1 << 62, 1 << 61


def release_tensor_pages(tensor: Tensor) -> None:
    """If it is a view of a mapped file, as the tensors of a checkpoint are."""
    if tensor.device.type == "cpu":
        begin = tensor.data_ptr()
        forget(begin, begin + tensor.numel() * tensor.element_size())


def release_library_pages() -> None:
    """What loading needed of them, LLVM's most of all, is more than what a step does."""
    try:
        lines = MAPS.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        addresses, rights, _, _, inode, *_ = line.split()
        if rights in ("r-xp", "r--p") and inode != "0":
            begin, end = (int(each, 16) for each in addresses.split("-"))
            forget(begin, end)


def forget(begin: int, end: int) -> None:
    """The whole pages between two addresses, if all of them are as a file has them."""
    begin = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE
    end = end // mmap.PAGESIZE * mmap.PAGESIZE
    if begin < end and are_as_in_file(begin, end):
        # It may refuse, as it does for locked memory: then they stay, and nothing is lost.
        _madvise(begin, end - begin, mmap.MADV_DONTNEED)


def are_as_in_file(begin: int, end: int) -> bool:
    """A private mapping has a page of no file wherever it was written to."""
    pages = array("Q")
    try:
        with PAGEMAP.open("rb", buffering=0) as file:
            file.seek(begin // mmap.PAGESIZE * ENTRY_BYTES)
            pages.frombytes(file.read((end - begin) // mmap.PAGESIZE * ENTRY_BYTES))
    except (OSError, ValueError):  # the system does not say
        return False
    if len(pages) != (end - begin) // mmap.PAGESIZE:
        return False
    return all(
        not page & IS_SWAPPED and (not page & IS_PRESENT or page & IS_OF_FILE) for page in pages
    )


_madvise = ctypes.CDLL(None).madvise
_madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_madvise.restype = ctypes.c_int
