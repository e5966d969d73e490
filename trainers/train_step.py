"""The part that learns: the task around the net with optimizer, precision and average, in one or several processes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel

from artifacts.checkpoint import Checkpoint
from configs.schema import OWN_AVERAGE, Config
from data_loader.epoch_plan import Step
from trainers.optim.optimizer import (
    AveragedNet,
    build_optimizer,
    hold_frozen_in_eval,
    hold_norms_in_eval,
    set_learning_rate,
)
from trainers.runtime.depthwise import use_float32_gradients
from trainers.runtime.device import Runtime, autocast, compile_net, forward_errors_reported, memory_layout
from trainers.tasks.base import Batch, Task


@dataclass(frozen=True)
class StepLosses:
    """The losses of a step, still on the device: its terms' names, their sums over its images, which images they were.

    The first term is the loss. `sums` (terms,) and `indices` (images,) are this process's part.
    """

    terms: tuple[str, ...]
    sums: torch.Tensor
    indices: torch.Tensor


class Learner:
    """Does the steps; what happens between them is the Trainer's. `rate` is the learning rate to begin with."""

    def __init__(self, config: Config, task: Task, runtime: Runtime, rate: float) -> None:
        self.device, self.precision, self.world = runtime.device, runtime.precision, runtime.world
        device, precision = self.device, self.precision
        self.clip_grad_norm, self.freezes_norms = config.clip_grad_norm, config.freeze_norm_statistics
        self.layout = memory_layout(config)
        self.task = task.to(device=device, memory_format=self.layout)  # type: ignore[call-overload]
        self.parts = [task.net] if task.companion is None else [task.net, task.companion]
        self.optimizer = build_optimizer(
            task.net,
            config.optimizer,
            learning_rate=rate,
            weight_decay=config.weight_decay,
            momentum=config.momentum,
            nesterov=config.nesterov,
            decay_norm_and_bias=config.decay_norm_and_bias,
            layer_decay=config.layer_decay,
            fused=precision != "fp16",
            companion=task.companion,
        )
        self.ema = AveragedNet(task.net, config.ema_decay) if config.ema_decay else None
        if self.ema is not None and task.teachers is not None and OWN_AVERAGE in config.distill_from:
            task.teachers.add_average(self.ema.net)
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        if config.compile:
            compile_net(task.net, config.compile)
        elif device.type == "cpu" and precision == "bf16":
            use_float32_gradients(task.net)
        self.model: torch.nn.Module = task
        if self.world.size > 1:
            devices = [device] if device.type == "cuda" else None
            self.model = DistributedDataParallel(task, device_ids=devices)

    def deployed_net(self) -> torch.nn.Module:
        """Return the net that is validated and deployed: the averaged one where there is one."""
        return self.task.net if self.ema is None else self.ema.net

    def get_ready(self) -> None:
        """Put the net into training mode, but for what is frozen."""
        self.task.train()
        for part in self.parts:
            hold_frozen_in_eval(part)
            if self.freezes_norms and isinstance(part, type(self.task.net)):  # what is new has no statistics yet
                hold_norms_in_eval(part)

    def step(self, step: Step, batches: Iterator[Batch], *, number: int, rate: float, seed: int) -> StepLosses:
        """Do a step over its batches, which are on the device; the gradient is the mean over all its images.

        `number` counts the training's steps. Everything random in the step follows from `seed`.
        """
        torch.manual_seed(seed)
        generator = np.random.default_rng(seed)
        set_learning_rate(self.optimizer, rate)
        self.task.rate, self.task.step = rate, number
        total: torch.Tensor | float = 0.0
        indices = []
        for number_in_step in range(len(step.batches)):
            batch = next(batches)
            share = len(batch["index"]) * self.world.size / step.num_samples
            with self._no_sync_unless(number_in_step == len(step.batches) - 1), forward_errors_reported():
                terms = self._accumulate(batch, generator, share)
            total = total + torch.stack([term.detach().float() for term in terms.values()]) * len(batch["index"])
            indices.append(batch["index"])
        if self.clip_grad_norm:
            self.scaler.unscale_(self.optimizer)
            for part in self.parts:
                if parameters := list(part.parameters()):
                    torch.nn.utils.clip_grad_norm_(parameters, self.clip_grad_norm)
        self._update()
        if self.ema is not None:
            self.ema.update(self.task.net, number)
        assert isinstance(total, torch.Tensor)
        return StepLosses(tuple(terms), total, torch.cat(indices))

    def loss(self, batch: Batch, seed: int) -> torch.Tensor:
        """Return the loss of a batch, a scalar as the scaler scales it, without waiting for any other process."""
        torch.manual_seed(seed)
        with autocast(self.device, self.precision):
            terms = self.task(batch, np.random.default_rng(seed))
        scaled: torch.Tensor = self.scaler.scale(terms["loss"])
        return scaled

    def try_step(self, batch: Batch) -> None:
        """Do a step, with all the memory that one takes: activations, gradients, the optimizer's state."""
        self.task.train()
        self.loss(batch, seed=0).backward()
        self._update()

    def is_finite(self) -> bool:
        """Return whether no parameter is NaN or infinite."""
        return all(bool(value.isfinite().all()) for value in self.task.net.parameters())

    def drop_gradients(self) -> None:
        """Free the gradients' memory."""
        self.optimizer.zero_grad(set_to_none=True)

    def load(self, checkpoint: Checkpoint) -> None:
        """Go on where a checkpoint stands, with the config's settings. Raises torch's errors where it does not fit."""
        self.task.net.load_state_dict(checkpoint.net)
        if self.ema is not None:
            self.ema.net.load_state_dict(checkpoint.ema or checkpoint.net)
        if self.task.companion is not None:
            self.task.companion.load_state_dict(checkpoint.companion or {})
        if checkpoint.optimizer is not None:
            settings = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
            self.optimizer.load_state_dict(checkpoint.optimizer)
            for group, values in zip(self.optimizer.param_groups, settings, strict=True):
                group.update(values)  # the config's settings, not the checkpoint's
        if checkpoint.scaler:
            self.scaler.load_state_dict(checkpoint.scaler)

    def state(self, *, with_training_state: bool) -> dict[str, Any]:
        """Return the fields of a Checkpoint that hold tensors."""
        companion = self.task.companion if with_training_state else None
        return {
            "net": self.task.net.state_dict(),
            "companion": None if companion is None else companion.state_dict(),
            "ema": None if self.ema is None else self.ema.net.state_dict(),
            "optimizer": self.optimizer.state_dict() if with_training_state else None,
            "scaler": self.scaler.state_dict() if with_training_state else None,
        }

    def _accumulate(self, batch: Batch, generator: np.random.Generator, share: float) -> dict[str, torch.Tensor]:
        """Add a batch's gradient to the step's, by its share of the images; return the batch's terms."""
        with autocast(self.device, self.precision):
            terms: dict[str, torch.Tensor] = self.model(batch, generator)
        loss = terms["loss"]
        self.scaler.scale(loss * share if share != 1 else loss).backward()
        return terms

    def _update(self) -> None:
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.drop_gradients()

    def _no_sync_unless(self, last: bool) -> contextlib.AbstractContextManager[None]:
        if isinstance(self.model, DistributedDataParallel) and not last:
            return self.model.no_sync()
        return contextlib.nullcontext()
