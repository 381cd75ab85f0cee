"""Device faults: what an error of torch says about memory and about the device itself."""

from __future__ import annotations

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error says that memory ran out, on a CPU or a GPU."""
    # torch has a type for it on a GPU only.
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def is_beyond_repair(error: BaseException) -> bool:
    """Whether every later call on the device fails too, as after a fault inside a kernel."""
    fault = getattr(torch, "AcceleratorError", ())  # older versions have no type for it
    return isinstance(error, fault) and not is_out_of_memory(error)


def release_memory(device: torch.device) -> None:
    """Give the blocks that torch keeps cached on a GPU back, so that a smaller call may fit."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
