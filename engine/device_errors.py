"""Device faults: classifies torch's errors into out of memory, broken device and others."""

from __future__ import annotations

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error means that memory ran out, on a CPU or a GPU."""
    # torch has a type for it on a GPU only.
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def is_beyond_repair(error: BaseException) -> bool:
    """Whether every later call on the device would fail too, as after a fault inside a kernel."""
    fault = getattr(torch, "AcceleratorError", ())  # older versions have no type for it
    return isinstance(error, fault) and not is_out_of_memory(error)


def release_memory(device: torch.device) -> None:
    """Free the blocks that torch caches on a GPU, so that a smaller call may fit."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
