"""The results of an earlier training: the checkpoint to resume from, or files that would be overwritten."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from artifacts.checkpoint import (
    Checkpoint,
    load_checkpoint,
    load_weights_file,
    newest_complete_checkpoint,
    weights_sha256,
)
from artifacts.class_names import are_numbers, compared, listed
from artifacts.errors import CheckpointError
from artifacts.outputs import WITH_CLASSES
from configs.schema import Config
from trainers.train_state import Progress

FIXED_ON_RESUME = (
    *("model_module_name", "model_net_name", "model_type", "model_args", "num_classes", "num_channels"),
    *("optimizer", "freeze", "decay_norm_and_bias", "layer_decay"),
)
MEASURED = ("band_type", "mean", "std")  # beside band_range, where a config leaves them out
BEFORE_THE_KEY = {  # what a training did before there was a key for it
    "icc_profiles": "ignore",
    "layer_decay": 1.0,
    "batch_norm_momentum": "net",
}


def checkpoint_to_resume(config: Config, log: Callable[[str], None]) -> Checkpoint:
    """Return the newest complete checkpoint of a training; log the keys of the config that have changed.

    Raises CheckpointError, also for another net or optimizer.
    """
    checkpoint = newest_complete_checkpoint(config.last_checkpoint(), log)
    if checkpoint.optimizer is None:
        raise CheckpointError(f"{config.last_checkpoint()}: holds no training state, --resume cannot go on with it")
    before = {**BEFORE_THE_KEY, **checkpoint.config}
    fixed = [key for key in FIXED_ON_RESUME if before.get(key) != getattr(config, key)]
    if fixed:
        pairs = ", ".join(f"{key} was {before.get(key)!r}, is {getattr(config, key)!r}" for key in fixed)
        raise CheckpointError(
            f"{config.last_checkpoint()}: --resume cannot go on with another net or optimizer: {pairs}"
        )
    for line in changed_since(checkpoint.config, _with_its_bands(config, checkpoint)):
        log(line)
    return checkpoint


def check_classes(
    checkpoint: Checkpoint, class_names: Sequence[str], config: Config, log: Callable[[str], None]
) -> None:
    """Raise CheckpointError where the lists name other classes than a checkpoint to resume from, or in another order.

    Classes that were only numbers before may have got names since, which is logged.
    """
    before = checkpoint.metadata.class_names
    if tuple(class_names) == before or checkpoint.metadata.output not in WITH_CLASSES:
        return
    if are_numbers(before) and len(class_names) == len(before) and set(class_names) != set(before):
        log(f"the classes of {config.last_checkpoint()} had no names; they are called {listed(class_names)} now")
        return
    raise CheckpointError(
        f"{config.last_checkpoint()}: --resume cannot go on with other classes: {compared(class_names, before)}; name "
        'them as before (the folders, or class_names_file), or start with train_mode "update" or "finetune" from it'
    )


def continued(config: Config, checkpoint: Checkpoint, log: Callable[[str], None]) -> Config:
    """Return the config with the old behaviour in the keys that are newer than a checkpoint."""
    old = {key: value for key, value in BEFORE_THE_KEY.items() if key not in checkpoint.config}
    for key, value in old.items():
        if getattr(config, key) != value:
            log(f'resuming with {key} "{value}": this training began before there was this key')
    return _with_its_bands(config, checkpoint).model_copy(update=old)


def _with_its_bands(config: Config, checkpoint: Checkpoint) -> Config:
    """Return the config with what a training measured of its bands, where the config leaves it to be measured."""
    if not config.has_bands() or not isinstance(config.band_range, str):
        return config
    kept = {key: checkpoint.config[key] for key in MEASURED if key in checkpoint.config and not getattr(config, key)}
    return config.model_copy(update={**kept, "band_range": checkpoint.config.get("band_range", config.band_range)})


def changed_since(before: dict[str, Any], config: Config) -> list[str]:
    """Return a line for each key that differs between a checkpoint's config and the one it goes on with."""
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


def warn_of_overwriting(config: Config, log: Callable[[str], None]) -> None:
    """Log which earlier results a training that starts anew will write over, while there is time to stop it."""
    _warn_of_unfinished(config.last_checkpoint(), log)
    if config.best_checkpoint().is_file() and config.train_mode != "update":
        log(f"an earlier {config.best_checkpoint()} stays until this training has a best epoch of its own")


def _warn_of_unfinished(last: Path, log: Callable[[str], None]) -> None:
    try:
        before = load_checkpoint(last)
        epoch, epochs = Progress.from_dict(before.progress).epoch, before.config["num_epochs"]
    except (CheckpointError, KeyError):  # no training that could be resumed
        return
    if epoch < epochs:
        unfinished = f"{last} holds a training that stopped after {epoch} of {epochs} epochs"
        log(f"warning: {unfinished}; --resume goes on with it, this one writes over it with its first save")


def start_sha256(config: Config) -> str:
    """Return the sha256 of the weights that a training starts from, "" where they are random or published."""
    if not config.starts_from_file():
        return ""
    file = load_weights_file(config.start_weights())
    return file.metadata.weights_sha256 if file.metadata else weights_sha256(file.weights)


def goes_on(following: Config, config: Config, log: Callable[[str], None]) -> bool:
    """Return whether a second stage goes on where it stopped: it started from the first stage's present result.

    What its checkpoint holds decides, never the files' times, which a copied folder does not keep. One of an older
    version does not say what it started from, and goes on. Raises CheckpointError.
    """
    last = following.last_checkpoint()
    if not last.is_file():
        return False
    if following.train_mode == "fromscratch" or following.start_weights() != config.best_checkpoint():
        return True
    started = newest_complete_checkpoint(last, lambda text: None).progress.get("start_sha256", "")
    if not started:
        log(f"warning: {last} does not say which weights the second stage started from; it goes on")
        return True
    if started != start_sha256(following):
        log(f"{last}: the second stage started from other weights than {config.best_checkpoint()}; it begins anew")
        return False
    return True


def first_step_to_log(progress: Progress) -> int:
    """Return the step from which a resumed run logs again: an epoch's validation stands at the step after its last."""
    return progress.step + (1 if progress.step and not progress.consumed else 0)
