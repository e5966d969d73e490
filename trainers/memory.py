"""When the memory is too small: is that what went wrong, and what batch size would have fitted."""

from __future__ import annotations

import gc
from collections.abc import Callable

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether torch found no memory, on a GPU or on the CPU."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def largest_that_fits(attempt: Callable[[int], None], size: int, smallest: int) -> int:
    """Halve a batch size that did not fit until `attempt` finds the memory for it; 0 where not even `smallest` fits.

    Any other error of the attempt's is raised.
    """
    while size > smallest:
        size = max(size // 2, smallest)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        try:
            attempt(size)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            continue  # outside the except block, whose traceback keeps what the attempt had allocated
        return size
    return 0


def advice(key: str, batch_size: int, fits: int, accumulation_steps: int) -> str:
    """Say which batch size to take in place of one that is too large for the memory."""
    if not fits:
        return "not even the smallest batch fits: lower img_height and img_width, or set gradient_checkpointing"
    if key != "batch_size":
        return f"{key} {fits} fits"
    steps = -(-batch_size * accumulation_steps // fits)
    return f"batch_size {fits} fits, and with accumulation_steps {steps} a step has as many pictures as before"
