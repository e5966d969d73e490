"""The end of a training: its report, and a few lines with its results and their places."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from artifacts.metadata import library_versions
from common.paths import ROOT
from configs.schema import Config
from trainers.data.reading import Skipped
from trainers.evaluation.classification_metrics import TOP1
from trainers.evaluation.pseudo_labels import counts_of, write_pseudo_labels
from trainers.evaluation.validation import Measure, Validation
from trainers.reporting.report import PSEUDO_LABELS, START_WEIGHTS, TrainingReport, write_report
from trainers.runtime.device import describe_device
from trainers.trainer import Trainer

ENDED = ("finished", "stopped early")
HPARAMS = {  # the columns of TensorBoard's table of runs: what people tune
    *("model_net_name", "img_height", "img_width", "num_epochs", "batch_size", "accumulation_steps", "optimizer"),
    *("learning_rate", "learning_rate_schedule", "warmup_epochs", "weight_decay", "label_smoothing", "mixup_alpha"),
    *("cutmix_alpha", "ema_decay", "train_mode", "data_aug", "precision", "seed"),
}


def build_report(config: Config, trainer: Trainer, skipped: Skipped, status: str, earlier: str = "") -> TrainingReport:
    """Return the content of report.json and report.html."""
    progress, batches, task = trainer.progress, trainer.batches, trainer.task
    best = best_validation(trainer)
    start = trainer.state.metadata.start_weights
    val_curve = progress.curves["val"]
    guesses = counts_of(trainer.pseudo_labels, trainer.state.metadata.class_names) if trainer.pseudo_labels else {}
    return TrainingReport(
        title=config.best_checkpoint().stem,
        net=f"{config.model_module_name}.{config.model_net_name}",
        status=status,
        class_names=list(trainer.state.metadata.class_names),
        best=progress.best,
        final=val_curve[-1] if val_curve else {},
        rows=[
            *(best.report_rows() if best else ()),
            *((name, f"{value:.4f}") for name, value in progress.further_numbers().items()),
            *([(START_WEIGHTS, f"{start['package']}, {start['licence']}")] if start else []),
            *([(PSEUDO_LABELS, f"{guesses['learnt']} of {guesses['images']} images")] if guesses else []),
        ],
        pseudo_labels=guesses,
        **(best.report_fields() if best else {}),
        curves=progress.curves,
        num_train=batches.num_train,
        num_val=len(batches.val_data),
        images_per_second=progress.pictures_trained / progress.train_seconds if progress.train_seconds else None,
        train_seconds=progress.train_seconds,
        validation_seconds=progress.validation_seconds,
        device=describe_device(trainer.runtime.device),
        precision=trainer.runtime.precision,
        versions=library_versions(),
        seed=config.seed,
        git_commit=git_commit(),
        config=config.model_dump(),
        skipped_images=skipped,
        task=task.name,
        measure=task.measure.name,
        primary_measure=asdict(task.measure),
        differing_gradients=trainer.differing_gradients,
        conclusions=trainer.validator.task.conclusions(batches.val_data.samples) if status in ENDED else {},
        earlier=_read_earlier(earlier) if earlier else {},
    )


def best_validation(trainer: Trainer) -> Validation | None:
    """Return the validation of the best net so far."""
    result = trainer.progress.best_result
    return trainer.task.validation.from_dict(result) if result else None


def finish(report: TrainingReport, config: Config, trainer: Trainer, log: Callable[[str], None]) -> None:
    """Write the report, and log a few lines with the results and their places. Raises OSError."""
    metadata, best = trainer.state.metadata, best_validation(trainer)
    heat_maps = {}
    if best is not None and not report.status.startswith("interrupted"):  # who stops it will not wait
        heat_maps = trainer.task.report_images(config.best_checkpoint(), best, trainer.runtime.device)
    page = write_report(report.to_dict(), config.save_path, images=metadata.preprocess.load, heat_maps=heat_maps)
    if trainer.pseudo_labels and trainer.batches.unlabelled is not None:
        samples = trainer.batches.unlabelled.data.samples
        log(f"  pseudo-labels    {write_pseudo_labels(trainer.pseudo_labels, samples, config.save_path)}")
    logger, step = trainer.reporter.logger, trainer.progress.step
    if report.status in ENDED:
        trainer.validator.task.log_end(logger, trainer.batches.val_data.samples, metadata, step)
    if report.best:
        key = trainer.task.measure.key
        logger.hparams(config.model_dump(include=HPARAMS), {key: report.best[key], "loss": report.best["loss"]})
        _log_results(report, config, trainer, log)
    else:
        log(f"{report.status} before the first validation")
    if trainer.saver.has_last and not (trainer.saver.last_is_removed and report.status in ENDED):
        hint = "" if report.status in ENDED else "  (go on with train.py --resume)"
        log(f"  last checkpoint  {config.last_checkpoint()}{hint}")
    log(f"  report           {page}")
    if config.is_tensorboard:
        log(f"  curves           tensorboard --logdir {config.log_path}")


def _log_results(report: TrainingReport, config: Config, trainer: Trainer, log: Callable[[str], None]) -> None:
    measure = trainer.task.measure
    value, epoch = measure.text(report.best[measure.key]), report.best["epoch"]
    log(f"{report.status}: best {measure.name} {value} in epoch {epoch}")
    for name, share in report.conclusions.items():
        log(f"  {name:<16} {share:.2%}, on the features of the last epoch")
    for name, text in report.rows:
        log(f"  {name:<16} {text}")
    if before := report.earlier:
        log(f"  stage before     best {before['measure']} {before['text']}, {before['report']}")
    if report.head:
        log(f"  head that predicts {report.head}, the best on the validation images")
    log(f"  best checkpoint  {config.best_checkpoint()}")


def _read_earlier(folder: str) -> dict[str, Any]:
    """Return the results in the report of the stage before; {} where it cannot be read."""
    try:
        report = json.loads((Path(folder) / "report.json").read_text(encoding="utf-8"))
        measure = Measure(**report.get("primary_measure", asdict(TOP1)))  # not in older reports
        value = report["best"][measure.key]
        return {
            **{key: report[key] for key in ("title", "measure", "conclusions")},
            **{measure.key: value, "text": measure.text(value)},
            "report": str(Path(folder) / "report.html"),
        }
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def git_commit() -> str | None:
    """Return the project's commit, with "+" where files are changed; None outside a git checkout."""
    if not (ROOT / ".git").exists():  # installed, maybe inside a checkout of something else
        return None
    command = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
