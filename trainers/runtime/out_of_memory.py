"""When the memory is too small: is that what went wrong, and what batch size would have fitted."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class AtHand:
    """The batch that was on the device last: the config's key for its size, its images, and its images' shape."""

    key: str = "batch_size"
    count: int = 0
    shape: tuple[int, ...] = ()

    def images(self, count: int, device: torch.device, layout: torch.memory_format) -> torch.Tensor:
        """Make images of zeros for a batch of `count` images, which may have several views each."""
        views = self.shape[0] // self.count
        return torch.zeros(count * views, *self.shape[1:], device=device).contiguous(memory_format=layout)


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether torch found no memory, on a GPU or on the CPU."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def too_small(
    at_hand: AtHand, attempt: Callable[[int], None], *, accumulation_steps: int, last: Path, reason: str
) -> str:
    """Say that the memory was too small for a batch and what would fit, found by attempts with halves of it.

    `last` is the checkpoint to go on from, where it is there; `reason` is torch's word.
    """
    safe = f"; go on from {last} with train.py --resume" if last.is_file() else ""
    if not at_hand.count:  # not even a batch has reached the device
        return f"the memory is too small: lower batch_size and raise accumulation_steps{safe} ({reason})"
    smallest = 2 if at_hand.key == "batch_size" else 1  # batch norm cannot normalise one value
    fits = largest_that_fits(attempt, at_hand.count, smallest)
    proposal = advice(at_hand.key, at_hand.count, fits, accumulation_steps)
    return f"the memory is too small for {at_hand.key} {at_hand.count}: {proposal}{safe} ({reason})"


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
    return f"batch_size {fits} fits, and with accumulation_steps {steps} a step has as many images as before"
