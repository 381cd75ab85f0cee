"""Runs functions compiled by numba on torch's own thread pool.

A second pool would compete with torch's OpenMP threads. Importing this raises ImportError,
AttributeError or OSError where numba or that pool is missing.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from hashlib import sha256
from pathlib import Path
from struct import Struct
from typing import Any

import numpy as np
import torch
from llvmlite import binding
from numba import cfunc, njit, types
from numba.extending import intrinsic
from torch import Tensor

FLOAT_BYTES, INT_BYTES, LONG_BYTES = 4, 4, 8

_process = ctypes.CDLL(None)  # its symbols, torch's OpenMP among them
_in_parallel = _process.GOMP_parallel
_in_parallel.restype = None
_in_parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
for _name in ("omp_get_thread_num", "omp_get_num_threads", "GOMP_barrier"):
    binding.add_symbol(_name, ctypes.cast(getattr(_process, _name), ctypes.c_void_p).value)
thread_number = types.ExternalFunction("omp_get_thread_num", types.int32())
thread_count = types.ExternalFunction("omp_get_num_threads", types.int32())
wait_for_all = types.ExternalFunction("GOMP_barrier", types.void())

fast = partial(njit, fastmath=True, error_model="numpy")


def sources_digest() -> str:
    """Return a digest of every source file of this package, part of the cache folder's name.

    numba invalidates a cached function when its own file changes, but ignores the files of
    functions that are compiled into it.
    """
    digest = sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


SOURCES = sources_digest()


@fast
def own_share(num_items: Any) -> Any:
    """Return [begin, end): the items for the calling thread."""
    thread, num_threads = np.int64(thread_number()), np.int64(thread_count())
    return thread * num_items // num_threads, (thread + 1) * num_items // num_threads


def threads_for(num_values: int, min_values: int) -> int:
    """Return how many threads to wake.

    min_values: the work of one thread; with less, waking it costs more than it saves
    """
    return min(torch.get_num_threads(), num_values // min_values + 1)


def as_rows(x: Tensor) -> Tensor:
    """Return x, (..., width), as (rows, width) with contiguous rows."""
    rows = x[None] if x.dim() == 1 else x.flatten(0, -2)
    return rows if rows.stride(1) == 1 else rows.contiguous()


@contextmanager
def one_process_at_a_time() -> Iterator[None]:
    """Let only one of several starting engines compile; the others then load its result."""
    path = Path(tempfile.gettempdir(), f"tidemill-{os.getuid()}-{SOURCES}.lock")
    file = None
    with suppress(OSError):  # without a lock each compiles for itself
        file = os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o600)
        fcntl.flock(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if file is not None:
            os.close(file)


class ParallelFunction:
    """A compiled function that all threads of the pool run at once."""

    def __init__(self, address: int, layout: str) -> None:
        self.address = address
        self.pack = Struct(layout).pack

    def __call__(self, num_threads: int, *arguments: float) -> None:
        _in_parallel(self.address, self.pack(*arguments), num_threads, 0)


def compile_parallel(body: Callable[[Any], None], layout: str) -> ParallelFunction:
    """Compile `body`, which takes the address of its arguments.

    layout: the types of the arguments, as in `struct`: int64 (q), or float64 (d), whose bits `body`
            reads
    """
    signature = types.void(types.CPointer(types.int64))
    body.__qualname__ = f"{body.__name__}_{SOURCES}"  # the name in numba's cache on disk
    try:
        with one_process_at_a_time():
            address = cfunc(signature, cache=True)(body).address
    except RuntimeError:  # there is no folder for the cache
        address = cfunc(signature)(body).address
    return ParallelFunction(address, layout)


def cast(to: Any, source: Any, instruction: str) -> Any:
    """Return a function that converts a value by the LLVM instruction of that name."""

    @intrinsic
    def converted(typing_context: Any, value: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return getattr(builder, instruction)(args[0], context.get_value_type(to))

        return to(source), generate

    return converted


floats_at = cast(types.CPointer(types.float32), types.int64, "inttoptr")
longs_at = cast(types.CPointer(types.int64), types.int64, "inttoptr")
ints_at = cast(types.CPointer(types.int32), types.int64, "inttoptr")
bytes_at = cast(types.CPointer(types.uint8), types.int64, "inttoptr")
float_of_bits = cast(types.float32, types.int32, "bitcast")
double_of_bits = cast(types.float64, types.int64, "bitcast")
