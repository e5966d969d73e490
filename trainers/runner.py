"""From a config to a finished training: stages, processes, data, net, and the report."""

from __future__ import annotations

import datetime
import functools
import itertools
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import torch
from tqdm import tqdm

from artifacts.checkpoint import Checkpoint
from artifacts.errors import CheckpointError
from artifacts.weights_packages import start_weights_of
from common.console import printable_lines
from common.errors import ProgramError
from common.file_lock import lock_file
from common.paths import ROOT
from configs.schema import Config
from data_loader.decode_guard import GUARD
from data_loader.samples import ListError, SampleList
from trainers.builder import build_start_net, build_trainer
from trainers.data.band_ranges import with_measured_bands
from trainers.data.reading import Skipped, read_data, read_unlabelled_data
from trainers.data.sample_lists import read_lists
from trainers.head_fitting import fit_new_head
from trainers.hooks import TrainingHooks
from trainers.reporting.mlflow_tracker import MlflowTracker, check_installed
from trainers.reporting.reporter import Reporter, log_nothing
from trainers.reporting.run_summary import build_report, finish
from trainers.reporting.tensorboard_logger import TrainingLogger
from trainers.resuming import (
    check_classes,
    checkpoint_to_resume,
    continued,
    first_step_to_log,
    goes_on,
    start_sha256,
    warn_of_overwriting,
)
from trainers.runtime.device import Runtime, choose_device, choose_precision
from trainers.runtime.distributed import World, joined, launch, lost_peers_reported, world_from_environment
from trainers.tasks.table import task_of_config
from trainers.train_state import Progress
from trainers.trainer import Trainer

LOCK = ".training.lock"  # in save_path, while a training runs
Log = Callable[[str], None]


def run_stages(config: Config, *, resume: bool = False, stage: int = 0) -> int:
    """Train what a config names and then its `next_stage`, or only one of them (1 or 2); return the exit code."""
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
        log = log_line if world.is_main else log_nothing
        if world.is_main:
            log_line(f"next stage: {following.model_module_name}.{following.model_net_name}")
        return run(following, resume=resume and goes_on(following, config, log), earlier=config.save_path)


def run(config: Config, *, resume: bool = False, earlier: str = "") -> int:
    """Train what a config names, on as many processes as it asks for, and return the program's exit code.

    `earlier` is where the report of the stage before this one lies. Raises UserError for the user's mistakes.
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
    """Return the number of processes on this machine: `num_processes`, else one for each GPU of `gpu_id`."""
    if config.num_processes:
        return config.num_processes
    return max(1, len(config.gpu_ids())) if torch.cuda.is_available() else 1


def run_rank(
    config: Config, world: World, *, resume: bool, earlier: str = "", hooks: TrainingHooks | None = None
) -> int:
    """Be one process of a training; return its exit code. `hooks` are what the program around it adds."""
    log = log_line if world.is_main else log_nothing
    GUARD.timeout_s = config.decode_timeout_s
    runtime = _choose_runtime(config, world, log)
    checkpoint = checkpoint_to_resume(config, log) if resume else None
    if checkpoint is not None:
        config = continued(config, checkpoint, log)
    if world.is_main:
        check_installed(config)
        check_writable(config.save_path, *([config.log_path] if config.is_tensorboard else []))
    with alone(config.save_path) if world.is_main else nullcontext():
        return _train(config, runtime, checkpoint, log, earlier, hooks or TrainingHooks())


def _train(
    config: Config, runtime: Runtime, checkpoint: Checkpoint | None, log: Log, earlier: str, hooks: TrainingHooks
) -> int:
    """Read the data, train, and return the exit code of this process."""
    world = runtime.world
    if world.is_main and checkpoint is None:
        warn_of_overwriting(config, log)
    with joined(world, runtime.device):
        try:
            with lost_peers_reported():
                config = with_measured_bands(config, world, log)
                train, val, skipped = read_data(config, world, log, hooks.lists_read)
                unlabelled, more_skipped = read_unlabelled_data(config, train, val, world, log)
        except ProgramError as error:
            _print_failure(error, world)
            return error.exit_code
        if checkpoint is not None:
            check_classes(checkpoint, train.class_names, config, log)
        lists = train, val, unlabelled
        trainer = _prepare_trainer(config, lists, runtime, checkpoint, log, hooks)
        status = fit_and_report(config, trainer, skipped + more_skipped, log, earlier)
    if trainer.stop.received is not None:  # at the very end too: whoever stops a training wants no second stage
        return 128 + trainer.stop.received  # as shells count
    return 1 if status == "failed" else 0


def fit_and_report(config: Config, trainer: Trainer, skipped: Skipped, log: Log, earlier: str = "") -> str:
    """Train, and whatever happens leave the report; return the status, "failed" where the message is printed."""
    status, world = "failed", trainer.runtime.world
    try:
        status = trainer.fit()
    except KeyboardInterrupt:  # a second signal
        status = f"interrupted by {(trainer.stop.received or signal.SIGINT).name}"
        raise
    except ProgramError as error:
        _print_failure(error, world)
    finally:
        if world.is_main:
            with trainer.stop:
                report = build_report(config, trainer, skipped, status, earlier)
                try:
                    finish(report, config, trainer, log)
                except OSError as error:
                    print(f"train.py: {config.save_path}: cannot write the report: {error.strerror}", file=sys.stderr)
                trainer.reporter.tracker.end(config, report.status, trainer.state.metadata.to_dict())
        trainer.reporter.logger.close()
    if status != "failed":
        world.barrier()  # nobody leaves while rank 0 writes: leaving early looks like a failure
    return status


@contextmanager
def alone(save_path: str) -> Iterator[None]:
    """Keep other trainings out of a folder for the length of this one. Raises CheckpointError where one is running."""
    try:
        with lock_file(Path(save_path) / LOCK):
            yield
    except BlockingIOError as error:
        hint = "wait for it, or choose another save_path"
        raise CheckpointError(f"{save_path}: another training is running in this folder; {hint}") from error


def check_writable(*folders: str) -> None:
    """Raise CheckpointError for a folder that cannot be written into: now, and not after the first epoch."""
    for folder in folders:
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise CheckpointError(f"{folder}: cannot write into this folder: {error.strerror}") from error


def log_line(text: str) -> None:
    """Print a line above the progress bars."""
    tqdm.write(printable_lines(text), file=sys.stdout)
    sys.stdout.flush()


def _choose_runtime(config: Config, world: World, log: Log) -> Runtime:
    """Return this process's device and precision. Raises HardwareError."""
    if world.local_size > 1 and not torch.distributed.is_initialized():  # else a stage before has done it
        torch.set_num_threads(max(1, torch.get_num_threads() // world.local_size))
    device, line = choose_device(config.gpu_ids(), world.local_rank, world.local_size)
    precision = choose_precision(config.precision, device)
    log(f"{line}, {precision}" + (f", {world.size} processes" if world.size > 1 else ""))
    return Runtime(device, precision, world)


def _prepare_trainer(
    config: Config,
    lists: tuple[SampleList, SampleList, SampleList | None],
    runtime: Runtime,
    checkpoint: Checkpoint | None,
    log: Log,
    hooks: TrainingHooks,
) -> Trainer:
    """Return the trainer of labelled and unlabelled lists, for a training that begins or goes on from a checkpoint.

    Raises NetError, ListError, FreezeError, CheckpointError.
    """
    begins = checkpoint is None
    train, val, unlabelled = lists
    net = build_start_net(config, log if begins else log_nothing, train.class_names, with_weights=begins)
    hooks.net_built(net, log)
    if begins and config.fit_head:
        fit_new_head(net, config, train, runtime, log)
    if checkpoint is None:
        folder = _log_dir(config, is_made=config.is_tensorboard and runtime.world.is_main)
        progress = Progress(log_dir=folder, start_sha256=start_sha256(config))
    else:
        progress = Progress.from_dict(checkpoint.progress)
    logger = TrainingLogger(
        progress.log_dir,
        enabled=config.is_tensorboard and runtime.world.is_main,
        purge_step=None if begins else first_step_to_log(progress),
        log=log,
    )
    reporter = Reporter(log, logger, show_progress=True, tracker=_begin_tracking(config, progress, runtime.world, log))
    trainer = build_trainer(
        config,
        net,
        train,
        val,
        runtime=runtime,
        reporter=reporter,
        progress=progress,
        unlabelled=unlabelled,
        start_weights=checkpoint.metadata.start_weights if checkpoint else start_weights_of(config),
    )
    if checkpoint is not None:
        _load(trainer, checkpoint, log)
    logger.config_text(config.model_dump())
    trainer.further_numbers = hooks.further_numbers
    hooks.training_ready(trainer)
    trainer.epoch_ended = functools.partial(hooks.epoch_ended, trainer)
    return trainer


def _begin_tracking(config: Config, progress: Progress, world: World, log: Log) -> MlflowTracker:
    """Return the tracker of a training, whose run goes on where the progress names one."""
    tracker = MlflowTracker(bool(config.mlflow_tracking_uri) and world.is_main, log, progress.mlflow_run)
    tracker.begin(config, Path(progress.log_dir).name)
    progress.mlflow_run = tracker.run_id
    return tracker


def _load(trainer: Trainer, checkpoint: Checkpoint, log: Log) -> None:
    """Let a trainer go on from a checkpoint, and log where. Raises CheckpointError."""
    trainer.load(checkpoint)
    progress = trainer.progress
    is_over = progress.epoch >= trainer.config.num_epochs
    where = f"after epoch {progress.epoch}, the last," if is_over else f"in epoch {progress.epoch + 1}"
    log(f"resuming {where} at step {progress.step}")


def _try_out(following: Config) -> None:
    """Find a second stage's mistakes before hours are spent on the first.

    Raises ListError, NetError, FreezeError, CheckpointError.
    """
    check_writable(following.save_path)
    try:
        read_lists(following, task_of_config(following).target(following))
    except ListError as error:
        raise ListError([f"next_stage: {problem}" for problem in error.problems], error.more) from error
    build_start_net(following, log_nothing, with_weights=False)


def _print_failure(error: ProgramError, world: World) -> None:
    """Print why a training cannot go on: on rank 0, or where one process alone knows."""
    if world.is_main or getattr(error, "one_process", False):
        print(printable_lines(f"train.py: {error}"), file=sys.stderr)


def _log_dir(config: Config, *, is_made: bool = True) -> str:
    """Return a training's own folder for TensorBoard, made at once: another one may start in the same second."""
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    first = Path(config.log_path) / "tensorboard" / f"{config.best_checkpoint().stem}-{stamp}"
    if not is_made:
        return str(first)
    first.parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        folder = first if number == 1 else first.with_name(f"{first.name}-{number}")
        with suppress(FileExistsError):
            folder.mkdir()
            break
    return str(folder)
