"""What learns: the task around the net with its optimizer, precision and average, in one process or one of several."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel

from artifacts.checkpoint import Checkpoint
from configs.schema import Config
from data_loader.loaders import Step
from trainers.optim.optimizer import AveragedNet, build_optimizer, hold_frozen_in_eval, set_learning_rate
from trainers.runtime.device import autocast, compile_net
from trainers.runtime.distributed import World
from trainers.tasks.classification import Batch, ClassifyTask


@dataclass(frozen=True)
class StepLosses:
    """What a step gave, still on the device: its terms' names, their sums over its images, which images they were.

    The first term is the loss. `sums` (terms,) and `indices` (images,) are this process's part.
    """

    terms: tuple[str, ...]
    sums: torch.Tensor
    indices: torch.Tensor


class Learner:
    """Does the steps; what happens between them is the Trainer's. `rate` is the learning rate to begin with."""

    def __init__(
        self, config: Config, task: ClassifyTask, *, device: torch.device, precision: str, world: World, rate: float
    ) -> None:
        self.device, self.precision, self.world = device, precision, world
        self.clip_grad_norm = config.clip_grad_norm
        self.layout = torch.channels_last if config.channels_last else torch.contiguous_format
        self.task = task.to(device=device, memory_format=self.layout)  # type: ignore[call-overload]
        self.optimizer = build_optimizer(
            task.net,
            config.optimizer,
            learning_rate=rate,
            weight_decay=config.weight_decay,
            momentum=config.momentum,
            nesterov=config.nesterov,
            decay_norm_and_bias=config.decay_norm_and_bias,
            fused=precision != "fp16",
        )
        self.ema = AveragedNet(task.net, config.ema_decay) if config.ema_decay else None
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        if config.compile:
            compile_net(task.net, config.compile)
        self.model: torch.nn.Module = task
        if world.size > 1:
            devices = [device] if device.type == "cuda" else None
            self.model = DistributedDataParallel(task, device_ids=devices)

    def deployed_net(self) -> torch.nn.Module:
        """Give the net that is validated and deployed: the averaged one where there is one."""
        return self.task.net if self.ema is None else self.ema.net

    def get_ready(self) -> None:
        """Put the net into training mode, but for what is frozen."""
        self.task.train()
        hold_frozen_in_eval(self.task.net)

    def step(self, step: Step, batches: Iterator[Batch], *, number: int, rate: float, seed: int) -> StepLosses:
        """Do a step over its batches, which are on the device; the gradient is the mean over all its images.

        `number` counts the training's steps. Everything random in the step follows from `seed`.
        """
        torch.manual_seed(seed)
        generator = np.random.default_rng(seed)
        set_learning_rate(self.optimizer, rate)
        total: torch.Tensor | float = 0.0
        indices = []
        for part in range(len(step.batches)):
            batch = next(batches)
            count = len(batch["label"])
            last = part == len(step.batches) - 1
            with self._no_sync_unless(last), autocast(self.device, self.precision):
                terms = self.model(batch, generator)
            loss = terms["loss"]
            weight = count * self.world.size / step.num_samples
            with self._no_sync_unless(last):
                self.scaler.scale(loss * weight if weight != 1 else loss).backward()
            total = total + torch.stack([term.detach().float() for term in terms.values()]) * count  # (terms,)
            indices.append(batch["index"])
        if self.clip_grad_norm:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.task.parameters(), self.clip_grad_norm)
        self._update()
        if self.ema is not None:
            self.ema.update(self.task.net, number)
        assert isinstance(total, torch.Tensor)
        return StepLosses(tuple(terms), total, torch.cat(indices))

    def loss(self, batch: Batch, seed: int) -> torch.Tensor:
        """Give the loss of a batch, a scalar as the scaler scales it, by itself: no other process is waited for."""
        torch.manual_seed(seed)
        with autocast(self.device, self.precision):
            terms = self.task(batch, np.random.default_rng(seed))
        scaled: torch.Tensor = self.scaler.scale(terms["loss"])
        return scaled

    def try_step(self, batch: Batch) -> None:
        """Do a step with all the memory that one takes: activations, gradients, the optimizer's state."""
        self.task.train()
        self.loss(batch, seed=0).backward()
        self._update()

    def drop_gradients(self) -> None:
        """Free the gradients' memory."""
        self.optimizer.zero_grad(set_to_none=True)

    def load(self, checkpoint: Checkpoint) -> None:
        """Go on where a checkpoint stands, with the config's settings. Raises torch's errors where it does not fit."""
        self.task.net.load_state_dict(checkpoint.net)
        if self.ema is not None:
            self.ema.net.load_state_dict(checkpoint.ema or checkpoint.net)
        if checkpoint.optimizer is not None:
            settings = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
            self.optimizer.load_state_dict(checkpoint.optimizer)
            for group, values in zip(self.optimizer.param_groups, settings, strict=True):
                group.update(values)  # the config's settings, not the checkpoint's
        if checkpoint.scaler:
            self.scaler.load_state_dict(checkpoint.scaler)

    def state(self, *, with_training_state: bool) -> dict[str, Any]:
        """Give the fields of a Checkpoint that hold tensors."""
        return {
            "net": self.task.net.state_dict(),
            "ema": None if self.ema is None else self.ema.net.state_dict(),
            "optimizer": self.optimizer.state_dict() if with_training_state else None,
            "scaler": self.scaler.state_dict() if with_training_state else None,
        }

    def _update(self) -> None:
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.drop_gradients()

    def _no_sync_unless(self, last: bool) -> contextlib.AbstractContextManager[None]:
        if isinstance(self.model, DistributedDataParallel) and not last:
            return self.model.no_sync()
        return contextlib.nullcontext()
