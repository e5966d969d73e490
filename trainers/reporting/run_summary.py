"""What is left of a training: the report of it, and the few lines that say what came of it and where it lies."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from artifacts.metadata import library_versions
from common.paths import ROOT
from configs.schema import Config
from trainers.reporting.heatmaps import best_heat_maps
from trainers.reporting.report import TrainingReport, write_report
from trainers.runtime.device import describe_device
from trainers.trainer import Trainer

ENDED = ("finished", "stopped early")
HPARAMS = {  # the columns of TensorBoard's table of runs: what people tune
    *("model_net_name", "img_height", "img_width", "num_epochs", "batch_size", "accumulation_steps", "optimizer"),
    *("learning_rate", "learning_rate_schedule", "warmup_epochs", "weight_decay", "label_smoothing", "mixup_alpha"),
    *("cutmix_alpha", "ema_decay", "train_mode", "data_aug", "precision", "seed"),
}

Skipped = list[dict[str, str]]


def build_report(config: Config, trainer: Trainer, skipped: Skipped, status: str, earlier: str = "") -> TrainingReport:
    """Gather what report.json and report.html say."""
    progress = trainer.progress
    best = progress.best_result
    val_curve = progress.curves["val"]
    return TrainingReport(
        title=config.best_checkpoint().stem,
        net=f"{config.model_module_name}.{config.model_net_name}",
        status=status,
        class_names=list(trainer.metadata.class_names),
        best=progress.best,
        final=val_curve[-1] if val_curve else {},
        per_class=best.get("per_class", []),
        confusion=best["confusion"].tolist() if best else [],
        worst=best.get("worst", []),
        curves=progress.curves,
        num_train=len(trainer.train_data),
        num_val=len(trainer.val_data),
        images_per_second=progress.pictures_trained / progress.train_seconds if progress.train_seconds else None,
        train_seconds=progress.train_seconds,
        validation_seconds=progress.validation_seconds,
        device=describe_device(trainer.device),
        precision=trainer.precision,
        versions=library_versions(),
        seed=config.seed,
        git_commit=git_commit(),
        config=config.model_dump(),
        skipped_images=skipped,
        measure=trainer.task.measure,
        head=best.get("head", ""),
        differing_gradients=trainer.differing_gradients,
        conclusions=trainer.validated.conclusions(config.num_classes) if status in ENDED else {},
        earlier=_summary(earlier) if earlier else {},
    )


def finish(report: TrainingReport, config: Config, trainer: Trainer, log: Callable[[str], None]) -> None:
    """Write the report, and say in a few lines what came of the run and where it lies."""
    heat_maps = {}
    if trainer.task.output == "logits" and not report.status.startswith("interrupted"):  # who stops it will not wait
        worst = [(row["path"], row["answer"]) for row in report.worst]
        heat_maps = best_heat_maps(config.best_checkpoint(), worst, trainer.device)
    page = write_report(report.to_dict(), config.save_path, images=trainer.load_image, heat_maps=heat_maps)
    if report.status in ENDED and (embedded := trainer.validated.embedded()) is not None:
        samples, rows = trainer.val_data.samples.samples, embedded.indices.tolist()
        trainer.logger.embedding(
            embedded.features.cpu().numpy(),
            embedded.labels.cpu().numpy(),
            trainer.metadata.class_names,
            lambda row: trainer.load_image(samples[rows[row]].path),
            trainer.progress.step,
        )
    if report.best:
        trainer.logger.hparams(
            config.model_dump(include=HPARAMS), {"top1": report.best["top1"], "loss": report.best["loss"]}
        )
        log(f"{report.status}: best {report.measure} {report.best['top1']:.2%} in epoch {report.best['epoch']}")
        for name, share in report.conclusions.items():
            log(f"  {name:<16} {share:.2%}, on the features of the last epoch")
        if before := report.earlier:
            log(f"  stage before     best {before['measure']} {before['top1']:.2%}, {before['report']}")
        if head := trainer.progress.best_result.get("head"):
            log(f"  head that answers {head}, the best on the validation images")
        log(f"  best checkpoint  {config.best_checkpoint()}")
    else:
        log(f"{report.status} before the first validation")
    if trainer.saver.has_last:
        hint = "" if report.status in ENDED else "  (go on with train.py --resume)"
        log(f"  last checkpoint  {config.last_checkpoint()}{hint}")
    log(f"  report           {page}")
    if config.is_tensorboard:
        log(f"  curves           tensorboard --logdir {config.log_path}")


def _summary(folder: str) -> dict[str, Any]:
    """Give what the report of the stage before says, or nothing where it cannot be read."""
    try:
        report = json.loads((Path(folder) / "report.json").read_text(encoding="utf-8"))
        return {
            **{key: report[key] for key in ("title", "measure", "conclusions")},
            "top1": report["best"]["top1"],
            "report": str(Path(folder) / "report.html"),
        }
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def git_commit() -> str | None:
    """Give the project's commit, with "+" where files are changed; None outside a git checkout."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
