"""BufferPool: the memory of sequences that ended, for those that come."""

from __future__ import annotations

import mmap

import torch
from torch import Tensor

# A tensor that may become as large has pages of the operating system from the start, which are
# returned to it. On the heap, tensors of all sizes leave holes that nothing fits, as much again
# as they are; and pages that were never written cost nothing, while growing copies.
LARGE_BYTES = 2**20
MAX_POOLED_BUFFERS = 4
MAX_POOLED_BYTES = 48 * 2**20


class BufferPool:
    """Memory of sequences that ended, for those that come: the operating system fills its pages
    with zeros first, which is a twentieth of a small model's step. It holds at most `max_bytes`,
    for a large model has other things to wait for, of at most MAX_POOLED_BUFFERS sequences, for
    few end in one step."""

    def __init__(self, max_bytes: int = 0) -> None:
        self.max_bytes = max_bytes
        self.buffers: list[torch.UntypedStorage] = []  # the newest is the last

    def put(self, tensor: Tensor) -> None:
        """Take a tensor's memory over; the oldest is freed if there is too much."""
        storage = tensor.untyped_storage()
        if storage.nbytes():
            self.buffers.append(storage)
        del self.buffers[:-MAX_POOLED_BUFFERS]
        while sum(each.nbytes() for each in self.buffers) > self.max_bytes:
            del self.buffers[0]

    def take(self, num_bytes: int) -> Tensor | None:
        """(num_bytes,) uint8 in the smallest buffer that has as many; None if none has."""
        large = [at for at, each in enumerate(self.buffers) if each.nbytes() >= num_bytes]
        if not num_bytes or not large:
            return None
        storage = self.buffers.pop(min(large, key=lambda at: self.buffers[at].nbytes()))
        return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)[:num_bytes]

    def clear(self) -> None:
        self.buffers.clear()


def new_pages(num_bytes: int) -> Tensor:
    """(num_bytes,) uint8 in pages of the operating system, off the heap. Raises MemoryError."""
    try:
        pages = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"no {num_bytes} bytes for the keys of a sequence") from error
    return torch.frombuffer(pages, dtype=torch.uint8)
