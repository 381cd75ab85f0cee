"""BufferPool: reuses the memory of finished sequences for new ones."""

from __future__ import annotations

import mmap

import torch
from torch import Tensor

# A tensor that may become this large is allocated outside of the heap from the start. Its pages
# return to the operating system, while tensors of all sizes would fragment the heap to twice its
# size. Unwritten pages cost nothing, while growing a tensor copies it.
LARGE_BYTES = 2**20
MAX_POOLED_BUFFERS = 4
MAX_POOLED_BYTES = 48 * 2**20


class BufferPool:
    """Keeps the memory of finished sequences for reuse.

    The operating system fills new pages with zeros, which takes a twentieth of a small model's
    step. The pool holds at most `max_bytes`, since the gain is small for a large model, in at most
    MAX_POOLED_BUFFERS buffers, since few sequences end in one step.
    """

    def __init__(self, max_bytes: int = 0) -> None:
        self.max_bytes = max_bytes
        self.buffers: list[torch.UntypedStorage] = []  # the newest is the last

    def put(self, tensor: Tensor) -> None:
        """Keep a tensor's memory; if there is too much, the oldest is freed."""
        storage = tensor.untyped_storage()
        if storage.nbytes():
            self.buffers.append(storage)
        del self.buffers[:-MAX_POOLED_BUFFERS]
        while sum(each.nbytes() for each in self.buffers) > self.max_bytes:
            del self.buffers[0]

    def take(self, num_bytes: int) -> Tensor | None:
        """Return (num_bytes,) uint8 from the smallest sufficient buffer; None without one."""
        large = [at for at, each in enumerate(self.buffers) if each.nbytes() >= num_bytes]
        if not num_bytes or not large:
            return None
        storage = self.buffers.pop(min(large, key=lambda at: self.buffers[at].nbytes()))
        return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)[:num_bytes]

    def clear(self) -> None:
        self.buffers.clear()


def new_pages(num_bytes: int) -> Tensor:
    """Return (num_bytes,) uint8 in new pages outside of the heap. Raises MemoryError."""
    try:
        pages = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"no {num_bytes} bytes for the keys of a sequence") from error
    return torch.frombuffer(pages, dtype=torch.uint8)
