"""Too little memory: whether that is what went wrong, and which batch size would have fitted."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from configs.schema import Config
from trainers.tasks.base import Task
from trainers.train_step import Learner

IMAGES = ("image", "unlabelled")  # of a batch


@dataclass(frozen=True)
class LastBatch:
    """The batch that was on the device last: the config's key for its size, its images, and its tensors' shapes."""

    key: str = "batch_size"
    count: int = 0
    shapes: dict[str, tuple[tuple[int, ...], torch.dtype]] = field(default_factory=dict)

    @classmethod
    def of(cls, key: str, batch: dict[str, torch.Tensor]) -> LastBatch:
        """Return the description of a batch."""
        shapes = {name: (tuple(value.shape), value.dtype) for name, value in batch.items()}
        return cls(key, len(batch["index"]), shapes)

    def zeros(self, count: int, device: torch.device, layout: torch.memory_format) -> dict[str, torch.Tensor]:
        """Return a batch of zeros for `count` images, which may have several views each."""
        batch = {
            name: torch.zeros(count * (shape[0] // self.count), *shape[1:], dtype=dtype, device=device)
            for name, (shape, dtype) in self.shapes.items()
        }
        images = {name: batch[name].contiguous(memory_format=layout) for name in IMAGES if name in batch}
        return {**batch, **images}


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether torch found no memory, on a GPU or on the CPU."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def propose_batch_size(config: Config, learner: Learner, validated: Task, last: LastBatch, reason: str) -> str:
    """Return the message that the memory is too small for a batch and what would fit, tried with halves of it.

    `validated` is the task around the net validated last; `reason` is torch's message. The weights are no longer the
    training's afterwards: what is safe is on the disk.
    """
    learner.drop_gradients()
    path, steps = config.last_checkpoint(), config.accumulation_steps
    safe = f"; go on from {path} with train.py --resume" if path.is_file() else ""
    if not last.count:  # not even a batch has reached the device
        return f"the memory is too small: lower batch_size and raise accumulation_steps{safe} ({reason})"
    smallest = 2 if last.key == "batch_size" else 1  # batch norm cannot normalise one value

    def attempt(size: int) -> None:
        batch = last.zeros(size, learner.device, learner.layout)
        if last.key == "batch_size":
            learner.try_step(batch)
        else:
            with torch.inference_mode():
                validated.predict(batch["image"])

    proposal = advice(last.key, last.count, largest_that_fits(attempt, last.count, smallest), steps)
    return f"the memory is too small for {last.key} {last.count}: {proposal}{safe} ({reason})"


def largest_that_fits(attempt: Callable[[int], None], size: int, smallest: int) -> int:
    """Return the first of a batch size's halves that `attempt` finds the memory for; 0 where not even `smallest` fits.

    Raises any other error of the attempt's.
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
    """Return which batch size to take in place of one that is too large for the memory."""
    if not fits:
        return "not even the smallest batch fits: lower img_height and img_width, or set gradient_checkpointing"
    if key != "batch_size":
        return f"{key} {fits} fits"
    steps = -(-batch_size * accumulation_steps // fits)
    return f"batch_size {fits} fits, and with accumulation_steps {steps} a step has as many images as before"
