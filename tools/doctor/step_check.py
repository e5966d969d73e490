"""Runs a few training steps of a config in a process of their own, and judges them and the disk space."""

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
from tools.doctor.checks import NOTE, PROBLEM, WARNING, Finding
from tools.doctor.types import Step, TrialData
from trainers.config_checks import net_problems

ENOUGH_STEPS = 5  # for a reliable mean
NEARLY_FULL = 0.9  # share of the free memory from which a step is near the limit


def try_steps(config: Config, data: TrialData, *, compiles_too: bool = False) -> Step:
    """Train a few steps without the bad images and return the measurements; {"error": sentence} where they fail.

    Where the memory is too small, halved batches are tried: "fitting_batch_size" is the first that fits. `compiles_too`
    tries the compiled net as well: "compiled" holds its measurements.
    """
    step = measure_in_process(config.model_copy(update={"compile": False}) if compiles_too else config, data)
    smaller = config.batch_size
    while step.get("out_of_memory") and "fitting_batch_size" not in step and smaller > 1:
        smaller //= 2
        again = measure_in_process(config.model_copy(update={"batch_size": smaller}), data)
        if not again.get("out_of_memory"):
            step["fitting_batch_size"] = smaller
    if compiles_too and "error" not in step:
        step["compiled"] = _compiled_step(config, data)
    return step


def measure_in_process(config: Config, data: TrialData) -> Step:
    """Measure in a fresh process: its peak memory is the training's alone, and it may be killed for memory."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(_measure, config, data).result()
        except BrokenProcessPool:
            sentence = "the process was killed, most likely because the memory is too small for the batch"
            return {"error": sentence, "out_of_memory": True}


def judge_compiling(config: Config, step: Step) -> Iterator[Finding]:
    """Yield whether compiling the net pays back within the training, from the times with and without it."""
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
    few = f", measured on {fewest} steps only" if fewest < ENOUGH_STEPS else ""
    what = f"compiled, a step takes {after:.3g} s instead of {before:.3g}, and compiling {cost:.0f} s"
    if gained <= 0 or cost > gained * config.num_epochs:
        yield Finding(NOTE, "compile", f"{what}: it does not pay back in {config.num_epochs} epochs{few}")
    else:
        epochs = max(1, math.ceil(cost / gained))
        yield Finding(NOTE, "compile", f'{what}: "compile": true pays back after {epochs} epochs{few}')


def judge_step(step: Step) -> Iterator[Finding]:
    """Yield the findings about the steps."""
    if fitting := step.get("fitting_batch_size"):
        advice = f"; batch_size {fitting} fits, accumulation_steps compensates for it"
        yield Finding(PROBLEM, "training step", step["error"] + advice)
    elif "error" in step:
        yield Finding(PROBLEM, "training step", f"a training step fails: {step['error']}")
    elif odd := [(number, loss) for number, loss in enumerate(step["losses"]) if not math.isfinite(loss)]:
        number, loss = odd[0]
        when = f"after {number} steps: a smaller learning_rate may help" if number else "in the first step"
        yield Finding(PROBLEM, "training step", f"the loss is {loss} {when}")
    elif step["memory_free"] and step["memory_peak"] > NEARLY_FULL * step["memory_free"]:
        peak, free = size_text(step["memory_peak"]), size_text(step["memory_free"])
        yield Finding(WARNING, "training step", f"a step takes {peak} of memory, and {free} were free")
    for sentence in step.get("notes", []):
        yield Finding(NOTE, "training step", sentence)


def judge_disk(config: Config, step: Step) -> tuple[dict[str, Any], list[Finding]]:
    """Return the free disk space, what the checkpoints need of it, and the findings about it.

    They need the best checkpoint, the last ones that are kept, and one more: a new one is complete before an old one is
    removed.
    """
    folder = Path(config.save_path).absolute()
    existing = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
    disk: dict[str, Any] = {"folder": str(folder), "free": shutil.disk_usage(existing).free}
    if "checkpoint_best" not in step:
        return disk, []
    disk["needed"] = step["checkpoint_best"] + (config.keep_checkpoints + 1) * step["checkpoint_last"]
    text = f"{config.save_path} has {size_text(disk['free'])} free, the checkpoints need {size_text(disk['needed'])}"
    if disk["free"] < disk["needed"]:
        return disk, [Finding(PROBLEM, "disk", text)]
    if disk["free"] < 2 * disk["needed"]:
        return disk, [Finding(WARNING, "disk", f"{text}: barely enough")]
    return disk, []


def _compiled_step(config: Config, data: TrialData) -> Step:
    compiled = config.model_copy(update={"compile": True})
    problems = net_problems(compiled)
    return {"error": problems[0].sentence} if problems else measure_in_process(compiled, data)


def _measure(config: Config, data: TrialData) -> Step:
    from tools.doctor.trial_run import measure  # late: only the new process needs torch

    return measure(config, data)
