"""A few training steps, run by the trainer itself, and their cost: memory, time, and bytes of checkpoints."""

from __future__ import annotations

import resource
import sys
import time
import traceback
from typing import Any

import torch

from common.formatting import first_line, size_text
from configs.schema import Config
from data_loader.bad_images import without
from data_loader.cache import Fitting
from data_loader.cache_builder import free_memory
from data_loader.epoch_plan import Step as PlannedStep
from data_loader.epoch_plan import plan_epoch
from data_loader.loaders import enlarged
from data_loader.preprocess import Preprocess
from data_loader.samples import ListError, SampleList
from tools.doctor.types import Step, TrialData
from trainers.builder import build_start_net, build_trainer
from trainers.data.sample_lists import read_unlabelled_list
from trainers.reporting.reporter import Reporter
from trainers.runner import processes_wanted
from trainers.runtime.device import Runtime, choose_device, choose_precision, describe_device
from trainers.tasks.table import task_of_config
from trainers.trainer import Trainer

MAX_STEPS, MAX_SECONDS = 25, 15.0  # after the first step, which is the warm-up


def measure(config: Config, data: TrialData) -> Step:
    """Train a few steps in this process, whose peak memory is reported; see `step_check.try_steps`."""
    too_small = f"the memory is too small for batch_size {config.batch_size}"
    try:
        return _measure(config, without(data.train, data.bad_train), without(data.val, data.bad_val))
    except (torch.OutOfMemoryError, MemoryError):
        return {"error": too_small, "out_of_memory": True}
    except (ValueError, RuntimeError) as error:
        if "can't allocate memory" in str(error):  # torch's message on the CPU
            return {"error": too_small, "out_of_memory": True}
        return {"error": first_line(error), "traceback": traceback.format_exc()}


def train_steps(trainer: Trainer, steps: list[PlannedStep], max_seconds: float) -> list[float]:
    """Train some steps of an epoch; return the seconds of each, the first with the loaders' start."""
    batches = trainer.start_epoch(steps)
    seconds: list[float] = []
    for step in steps:
        start = time.perf_counter()
        trainer.train_step(step, batches)
        if trainer.runtime.device.type == "cuda":
            torch.cuda.synchronize(trainer.runtime.device)
        seconds.append(time.perf_counter() - start)
        if sum(seconds[1:]) > max_seconds:
            break
    return seconds


def _measure(config: Config, train: SampleList, val: SampleList) -> Step:
    if len(train.samples) < 2 or not val.samples:
        raise ListError([f"{train.origin}: fewer than two training images, or no validation image, can be read"])
    device, _ = choose_device(config.gpu_ids())
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory()
    notes: list[str] = []
    net = build_start_net(config, notes.append, train.class_names)
    runtime = Runtime(device, choose_precision(config.precision, device))
    unlabelled = read_unlabelled_list(config, train.class_names)
    trainer = build_trainer(
        config, net, train, val, runtime=runtime, reporter=Reporter(notes.append), unlabelled=unlabelled
    )
    steps = trainer.batches.plan()[: MAX_STEPS + 1]
    seconds = train_steps(trainer, steps, MAX_SECONDS)
    full = [step.num_samples == steps[0].num_samples for step in steps]
    of_full = [a_step for a_step, is_full in zip(seconds, full, strict=False) if is_full][1:] or seconds
    processes = processes_wanted(config)
    epoch = plan_epoch(len(train.samples), config.batch_size, processes, config.accumulation_steps)
    warm = seconds[1:] or seconds
    a_step = sum(warm) / len(warm)
    if config.data_cache != "none":
        notes.append(_cache_note(config, train, val, trainer.state.metadata.preprocess))
    return {
        "device": describe_device(device),
        "precision": runtime.precision,
        "batch_size": config.batch_size,
        "processes": processes,
        "steps_measured": len(warm),
        "seconds_a_step": a_step,
        "whole_steps_measured": len(of_full),
        "seconds_a_whole_step": sum(of_full) / len(of_full),
        "seconds_of_the_others": sum(seconds) - sum(of_full),  # of the first and the smaller last step, new sizes
        "steps_an_epoch": len(epoch),
        "seconds_an_epoch": a_step * len(epoch),
        "losses": [float(losses.sums[0]) / len(losses.indices) for *_, losses in trainer.losses.pending],
        "memory_of": "GPU" if device.type == "cuda" else "main",
        "memory_peak": _peak_memory(device),
        "memory_free": free,
        "parameters": sum(parameter.numel() for parameter in trainer.task.net.parameters()),
        **_checkpoint_bytes(trainer),
        "notes": notes,
    }


def _peak_memory(device: torch.device) -> int:
    """Return the peak memory of this process in bytes: of the GPU where it trains on one, else of main memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _cache_note(config: Config, train: SampleList, val: SampleList, preprocess: Preprocess) -> str:
    source = enlarged(preprocess, config.fitted_scale) if config.data_aug else preprocess
    target = task_of_config(config).target(config)
    size = Fitting(source, target=target).num_bytes(train)
    size += 0 if config.val_tiles else Fitting(preprocess, target=target).num_bytes(val)
    where = "memory" if config.data_cache == "ram" else config.data_cache_dir
    return f'data_cache "{config.data_cache}" will take {size_text(size)} of {where}; the time is measured without it'


def _checkpoint_bytes(trainer: Trainer) -> dict[str, int]:
    """Return the bytes of the tensors of both checkpoints."""
    best, last = (trainer.state.checkpoint(with_training_state=state) for state in (False, True))
    return {"checkpoint_best": _tensor_bytes(vars(best)), "checkpoint_last": _tensor_bytes(vars(last))}


def _tensor_bytes(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    items = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return sum(map(_tensor_bytes, items))
