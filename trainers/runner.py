"""From a config to a finished training: data, net, start weights, processes, and the report."""

from __future__ import annotations

import datetime
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from artifacts.checkpoint import Checkpoint, load_checkpoint, newest_complete_checkpoint
from artifacts.errors import CheckpointError
from artifacts.metadata import build_metadata
from common.formatting import first_line
from common.paths import ROOT
from configs.schema import Config
from data_loader.cache import CachedSamples
from data_loader.loaders import (
    BadImageError,
    bad_image_sentence,
    find_bad_images,
    without,
)
from data_loader.preprocess import Preprocess
from data_loader.samples import ListError, SampleList
from trainers.builder import build_start_net, build_trainer
from trainers.data.image_cache import with_caches
from trainers.data.sample_lists import read_lists
from trainers.errors import TrainingError
from trainers.reporting.run_summary import Skipped, build_report, finish
from trainers.reporting.tensorboard_logger import TrainingLogger
from trainers.runtime.device import choose_device, choose_precision
from trainers.runtime.distributed import World, joined, launch, world_from_environment
from trainers.train_state import Progress
from trainers.trainer import Trainer

LOST = (ConnectionResetError, ConnectionRefusedError, EOFError)  # what a loader process leaves that dies while it sends
FIXED_ON_RESUME = (
    *("model_module_name", "model_net_name", "model_type", "model_args", "num_classes", "num_channels"),
    *("optimizer", "freeze", "decay_norm_and_bias"),
)


def run_stages(config: Config, *, resume: bool = False, stage: int = 0) -> int:
    """Train what a config names and then its `next_stage`, or only one of them (1 or 2); give the exit code."""
    following = config.next_config()
    if following is None or stage == 1:
        return run(config, resume=resume)
    if stage == 2:
        start = following.start_weights()
        if following.train_mode == "finetune" and start == config.best_checkpoint() and not start.is_file():
            raise CheckpointError(f"{start}: the net of the first stage is not there; train it with --stage 1")
        return run(following, resume=resume, earlier=config.save_path)
    _try_out(following)
    world = world_from_environment()
    device, _ = choose_device(config.gpu_ids(), world.local_rank, world.local_size)
    with joined(world, device):  # torchrun's processes: one group for both, whose addresses are exchanged once
        exit_code = run(config, resume=resume)
        if exit_code:
            return exit_code
        if world.is_main:
            _log(f"next stage: {following.model_module_name}.{following.model_net_name}")
        return run(following, resume=resume and _is_newer(following, config), earlier=config.save_path)


def run(config: Config, *, resume: bool = False, earlier: str = "") -> int:
    """Train what a config names, on as many processes as it asks for, and give the program's exit code.

    `earlier` is where the report of the stage before this one lies. The user's mistakes are ValueErrors whose message
    is the sentence to show; a TrainingError is the training's own.
    """
    world = world_from_environment()
    wanted = processes_wanted(config)
    if "RANK" in os.environ or wanted == 1:
        return run_rank(config, world, resume=resume, earlier=earlier)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.json"
        file.write_text(config.model_dump_json(), encoding="utf-8")
        command = [str(ROOT / "train.py"), "--config", str(file), "--stage", "1", *(["--resume"] if resume else [])]
        return launch([*command, *(["--earlier", earlier] if earlier else [])], wanted)


def processes_wanted(config: Config) -> int:
    """Give the number of processes on this machine: `num_processes`, else one for each GPU of `gpu_id`."""
    if config.num_processes:
        return config.num_processes
    return max(1, len(config.gpu_ids())) if torch.cuda.is_available() else 1


def run_rank(config: Config, world: World, *, resume: bool, earlier: str = "") -> int:
    """Be one process of a training; give its exit code."""
    log = _log if world.is_main else _log_nothing
    if world.local_size > 1 and not torch.distributed.is_initialized():  # else a stage before has done it
        torch.set_num_threads(max(1, torch.get_num_threads() // world.local_size))
    device, line = choose_device(config.gpu_ids(), world.local_rank, world.local_size)
    precision = choose_precision(config.precision, device)
    log(f"{line}, {precision}" + (f", {world.size} processes" if world.size > 1 else ""))
    checkpoint = _checkpoint_to_resume(config, log) if resume else None
    if world.is_main:
        if checkpoint is None:
            _tell_of_unfinished(config.last_checkpoint(), log)
        if checkpoint is None and config.best_checkpoint().is_file() and config.train_mode != "update":
            log(f"an earlier {config.best_checkpoint()} stays until this training has a best epoch of its own")
        _check_writable(config.save_path, *([config.log_path] if config.is_tensorboard else []))
    with joined(world, device):
        try:
            train, val, skipped = read_data(config, world, log)
        except (RuntimeError, *LOST) as error:  # a ValueError is a mistake of the user's
            _tell_known_failure(error)
            return 1
        net = build_start_net(config, log if checkpoint is None else _log_nothing, with_weights=checkpoint is None)
        progress = Progress.from_dict(checkpoint.progress) if checkpoint else Progress(log_dir=_log_dir(config))
        trainer = build_trainer(
            config,
            net,
            train,
            val,
            device=device,
            world=world,
            logger=TrainingLogger(
                progress.log_dir,
                enabled=config.is_tensorboard and world.is_main,
                purge_step=_first_step_to_come(progress) if checkpoint else None,
                log=log,
            ),
            progress=progress,
            log=log,
            show_progress=True,
        )
        if checkpoint is not None:
            trainer.load(checkpoint)
            is_over = progress.epoch >= config.num_epochs
            where = f"after epoch {progress.epoch}, the last," if is_over else f"in epoch {progress.epoch + 1}"
            log(f"resuming {where} at step {progress.step}")
        trainer.logger.config_text(config.model_dump())
        status = fit_and_report(config, trainer, skipped, log, earlier)
    if trainer.stop.received is not None:  # at the very end too: whoever stops a training wants no second stage
        return 128 + trainer.stop.received  # as shells count
    return 1 if status == "failed" else 0


def fit_and_report(
    config: Config, trainer: Trainer, skipped: Skipped, log: Callable[[str], None], earlier: str = ""
) -> str:
    """Train, and whatever happens leave the report; give the status, "failed" where a sentence says why."""
    status = "failed"
    try:
        status = trainer.fit()
    except KeyboardInterrupt:  # a second Ctrl-C
        status = "interrupted by SIGINT"
        raise
    except TrainingError as error:
        if trainer.world.is_main or error.one_process:
            print(f"train.py: {error}", file=sys.stderr)
    except (RuntimeError, ValueError, *LOST) as error:
        _tell_known_failure(error)
    finally:
        if trainer.world.is_main:
            with trainer.stop:
                report = build_report(config, trainer, skipped, status, earlier)
                try:
                    finish(report, config, trainer, log)
                except OSError as error:
                    print(f"train.py: {config.save_path}: cannot write the report: {error.strerror}", file=sys.stderr)
        trainer.logger.close()
    if status != "failed":
        trainer.world.barrier()  # nobody leaves while the first one writes: leaving early looks like a failure
    return status


def read_data(config: Config, world: World, log: Callable[[str], None]) -> tuple[SampleList, SampleList, Skipped]:
    """Read and check both lists. Raises ListError; BadPictureError where more images are bad than allowed."""
    train, val = read_lists(config)
    if train.origin == val.origin:
        log(f"warning: training and validation read the same images ({val.origin}); the accuracy will say little")
    log(f"{len(train.samples)} training and {len(val.samples)} validation images, {config.num_classes} classes")
    skipped: Skipped = []
    preprocess = build_metadata(config, train.class_names).preprocess
    if config.data_cache != "none":
        train, val = with_caches(config, train, val, preprocess, world, log)
    if config.bad_images == "skip":
        train, of_train = _without_bad(config, train, preprocess, world, log)
        val, of_val = _without_bad(config, val, preprocess, world, log)
        skipped = of_train + of_val
    if len(train.samples) < 2 * world.size or not val.samples:
        counts = f"{len(train.samples)} training and {len(val.samples)} validation images"
        raise ListError([f"{train.origin}: {counts} are too few for {world.size} process(es): two and one at least"])
    return train, val, skipped


def changed_since(before: dict[str, Any], config: Config) -> list[str]:
    """Say which keys differ between a checkpoint's config and the one it goes on with."""
    now = config.model_dump()
    changed = [key for key in now if key in before and before[key] != now[key]]
    lines = []
    for key in changed:
        was, is_now = before[key], now[key]
        if isinstance(was, dict) and isinstance(is_now, dict):  # only what differs in it
            inner = [name for name in {**was, **is_now} if was.get(name) != is_now.get(name)]
            was, is_now = ({name: values[name] for name in inner if name in values} for values in (was, is_now))
        lines.append(f"resuming with another {key}: {was!r} before, {is_now!r} now")
    return lines


def _checkpoint_to_resume(config: Config, log: Callable[[str], None]) -> Checkpoint:
    checkpoint = newest_complete_checkpoint(config.last_checkpoint(), log)
    if checkpoint.optimizer is None:
        raise CheckpointError(f"{config.last_checkpoint()}: holds no training state, --resume cannot go on with it")
    fixed = [key for key in FIXED_ON_RESUME if checkpoint.config.get(key) != getattr(config, key)]
    if fixed:
        pairs = ", ".join(f"{key} was {checkpoint.config.get(key)!r}, is {getattr(config, key)!r}" for key in fixed)
        raise CheckpointError(
            f"{config.last_checkpoint()}: --resume cannot go on with another net or optimizer: {pairs}"
        )
    for line in changed_since(checkpoint.config, config):
        log(line)
    return checkpoint


def _try_out(following: Config) -> None:
    """Find a second stage's mistakes before hours are spent on the first.

    Raises ListError, NetError, FreezeError, CheckpointError.
    """
    _check_writable(following.save_path)
    try:
        read_lists(following)
    except ListError as error:
        raise ListError([f"next_stage: {problem}" for problem in error.problems]) from error
    build_start_net(following, _log_nothing, with_weights=False)


def _tell_of_unfinished(last: Path, log: Callable[[str], None]) -> None:
    """Say what a training that starts anew will write over, while there is time to stop it."""
    try:
        before = load_checkpoint(last)
        epoch, epochs = Progress.from_dict(before.progress).epoch, before.config["num_epochs"]
    except (CheckpointError, KeyError):  # nothing that could be gone on with
        return
    if epoch < epochs:
        whole = f"{last} holds a training that stopped after {epoch} of {epochs} epochs"
        log(f"warning: {whole}; --resume goes on with it, this one writes over it with its first save")


def _is_newer(following: Config, config: Config) -> bool:
    """Say whether the second stage went on from the first one's present result, not from an earlier one."""
    state, start = following.last_checkpoint(), config.best_checkpoint()
    return state.is_file() and state.stat().st_mtime >= start.stat().st_mtime


def _check_writable(*folders: str) -> None:
    """Find out now, and not after the first epoch. Raises CheckpointError."""
    for folder in folders:
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise CheckpointError(f"{folder}: cannot write into this folder: {error.strerror}") from error


def _first_step_to_come(progress: Progress) -> int:
    """Give the step from which a resumed run logs again: an epoch's validation stands at the step after its last."""
    return progress.step + (1 if progress.step and not progress.consumed else 0)


def _tell_known_failure(error: Exception) -> None:
    """Say what torch reports of the machine in a sentence; raise the error again where it is none of that."""
    sentence = _known_failure(error)
    if sentence is None:
        raise error
    print(f"train.py: {sentence}", file=sys.stderr)


def _known_failure(error: Exception) -> str | None:
    """Put what torch reports of the machine into a sentence; None for what it does not know."""
    text = first_line(error)
    if isinstance(error, torch.OutOfMemoryError):
        return f"the GPU's memory is too small: lower batch_size and raise accumulation_steps ({text})"
    if isinstance(error, LOST) or text == "received 0 items of ancdata" or "DataLoader worker" in str(error):
        advice = "lower dataloader_workers, or give the machine more memory or shared memory (docker: --shm-size)"
        told = str(error).rstrip().splitlines()[-1] if text.startswith("Caught") else text  # the last line is the why
        return f"a loader process died: {advice} ({told})"
    if isinstance(error, torch.distributed.DistError) or "by peer" in text or "Broken pipe" in text:
        return "another process of this training has left"
    if type(error).__module__.startswith(("torch._inductor", "torch._dynamo")):
        return f'"compile" fails here: {text}; "compile": false trains without it'
    if "more than 1 value per channel" in text:
        return "batch norm cannot normalise one value: raise batch_size, or img_height and img_width"
    return None


def _without_bad(
    config: Config, samples: SampleList, preprocess: Preprocess, world: World, log: Callable[[str], None]
) -> tuple[SampleList, Skipped]:
    """Leave out the images that cannot be read, found by decoding every one before training."""
    if isinstance(samples, CachedSamples):  # every image has been decoded for it
        reasons = sorted(samples.cache.bad.items())
        bad = [(index, bad_image_sentence(samples, index, reason)) for index, reason in reasons]
    else:
        mine = range(world.rank, len(samples.samples), world.size)
        looks = find_bad_images(samples, preprocess, config.dataloader_workers, mine)
        hidden = None if world.is_main else True
        bar = tqdm(looks, desc="checking images", total=len(mine), leave=False, disable=hidden)
        bad = sorted(world.gather([look for look in bar if look]))
    share = len(bad) / len(samples.samples)
    if bad:
        log(f"{samples.origin}: {len(bad)} of {len(samples.samples)} images cannot be read and are skipped")
    if share > config.max_bad_share:
        most = f"max_bad_share allows {config.max_bad_share:.2%}"
        lines = [sentence for _, sentence in bad[:20]]
        raise BadImageError("\n".join([f"{samples.origin}: {share:.2%} of the images are bad, {most}:", *lines]))
    skipped = []
    for index, sentence in bad:
        path, where = samples.samples[index].path, samples.where(index)
        skipped.append({"path": path, "where": where, "reason": sentence.removeprefix(f"{where}: {path}: ")})
    return without(samples, {index for index, _ in bad}), skipped


def _log_dir(config: Config) -> str:
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    return str(Path(config.log_path) / "tensorboard" / f"{config.best_checkpoint().stem}-{stamp}")


def _log(text: str) -> None:
    tqdm.write(text, file=sys.stdout)
    sys.stdout.flush()


def _log_nothing(text: str) -> None:
    """Stay silent: another process speaks for all."""
