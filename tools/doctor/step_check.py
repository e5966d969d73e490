"""Judges a few training steps of a config, tried in a process of their own, and the disk for its checkpoints."""

from __future__ import annotations

import math
import multiprocessing
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from common.formatting import size_text
from configs.schema import Config
from data_loader.samples import SampleList
from tools.doctor.checks import NOTE, PROBLEM, WARNING, Finding
from tools.doctor.types import Step
from trainers.config_checks import net_problems

ENOUGH_STEPS = 5  # to believe the mean of
CLOSE = 0.9  # of the free memory, from which a step is told to be near the limit
Lists = tuple[SampleList, SampleList, set[int], set[int]]  # training, validation, and the bad images' places


def try_steps(
    config: Config,
    train: SampleList,
    val: SampleList,
    bad_train: set[int],
    bad_val: set[int],
    *,
    compiles_too: bool = False,
) -> Step:
    """Train a few steps without the bad images and give what was measured; {"error": sentence} where they fail.

    Where the memory is too small, halved batches are tried: "fitting_batch_size" is the first that went. `compiles_too`
    tries the compiled net as well: "compiled" is what was measured of it.
    """
    lists = (train, val, bad_train, bad_val)
    step = _in_own_process(config.model_copy(update={"compile": False}) if compiles_too else config, lists)
    smaller = config.batch_size
    while step.get("out_of_memory") and "fitting_batch_size" not in step and smaller > 1:
        smaller //= 2
        again = _in_own_process(config.model_copy(update={"batch_size": smaller}), lists)
        if not again.get("out_of_memory"):
            step["fitting_batch_size"] = smaller
    if compiles_too and "error" not in step:
        step["compiled"] = _compiled_step(config, lists)
    return step


def judge_compiling(config: Config, step: Step) -> Iterator[Finding]:
    """Say whether compiling the net pays back within the training, from what both ways took."""
    compiled = step.get("compiled")
    if compiled is None:
        return
    if "error" in compiled:
        yield Finding(NOTE, "compile", f"the compiled net cannot be trained: {compiled['error']}")
        return
    before, after = step["seconds_a_whole_step"], compiled["seconds_a_whole_step"]
    fewest = min(step["whole_steps_measured"], compiled["whole_steps_measured"])
    cost = max(0.0, compiled["seconds_of_the_others"] - step["seconds_of_the_others"])
    gained = (before - after) * step["steps_an_epoch"]  # seconds an epoch
    few = f", but these are few steps ({fewest}) to tell by" if fewest < ENOUGH_STEPS else ""
    what = f"compiled, a step takes {after:.3g} s instead of {before:.3g}, and compiling {cost:.0f} s"
    if gained <= 0 or cost > gained * config.num_epochs:
        yield Finding(NOTE, "compile", f"{what}: it does not pay back in {config.num_epochs} epochs{few}")
    else:
        epochs = max(1, math.ceil(cost / gained))
        yield Finding(NOTE, "compile", f'{what}: "compile": true pays back after {epochs} epochs{few}')


def judge_step(step: Step) -> Iterator[Finding]:
    """Give what the steps show."""
    if fitting := step.get("fitting_batch_size"):
        advice = f"; batch_size {fitting} fits, accumulation_steps makes up for it"
        yield Finding(PROBLEM, "training step", step["error"] + advice)
    elif "error" in step:
        yield Finding(PROBLEM, "training step", f"a training step fails: {step['error']}")
    elif odd := [(number, loss) for number, loss in enumerate(step["losses"]) if not math.isfinite(loss)]:
        number, loss = odd[0]
        when = f"after {number} steps: a smaller learning_rate may help" if number else "in the first step"
        yield Finding(PROBLEM, "training step", f"the loss is {loss} {when}")
    elif step["memory_free"] and step["memory_peak"] > CLOSE * step["memory_free"]:
        peak, free = size_text(step["memory_peak"]), size_text(step["memory_free"])
        yield Finding(WARNING, "training step", f"a step takes {peak} of memory, and {free} were free")
    for sentence in step.get("notes", []):
        yield Finding(NOTE, "training step", sentence)


def judge_disk(config: Config, step: Step) -> tuple[dict[str, Any], list[Finding]]:
    """Give the free disk, what the checkpoints want of it, and the findings about it.

    Wanted are the best checkpoint, the last ones that are kept, and one more: a new one is complete before an old one
    goes.
    """
    folder = Path(config.save_path).absolute()
    there = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
    disk: dict[str, Any] = {"folder": str(folder), "free": shutil.disk_usage(there).free}
    if "checkpoint_best" not in step:
        return disk, []
    disk["needed"] = step["checkpoint_best"] + (config.keep_checkpoints + 1) * step["checkpoint_last"]
    has, wants = f"{config.save_path} has {size_text(disk['free'])} free", size_text(disk["needed"])
    if disk["free"] < disk["needed"]:
        return disk, [Finding(PROBLEM, "disk", f"{has}, and the checkpoints need {wants}")]
    if disk["free"] < 2 * disk["needed"]:
        return disk, [Finding(WARNING, "disk", f"{has}, and the checkpoints need {wants}: hardly more than enough")]
    return disk, []


def _compiled_step(config: Config, lists: Lists) -> Step:
    compiled = config.model_copy(update={"compile": True})
    problems = net_problems(compiled)
    return {"error": problems[0]} if problems else _in_own_process(compiled, lists)


def _in_own_process(config: Config, lists: Lists) -> Step:
    """Measure in a fresh process: its peak is the training's alone, and when it is killed for memory we are not."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(_measure, config, lists).result()
        except BrokenProcessPool:
            sentence = "the process was killed, most likely because the memory is too small for the batch"
            return {"error": sentence, "out_of_memory": True}


def _measure(config: Config, lists: Lists) -> Step:
    from tools.doctor.trial_run import measure  # late: only the process of its own needs torch

    return measure(config, *lists)
