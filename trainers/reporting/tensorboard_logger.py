"""What TensorBoard shows of a training; a logger that is not enabled does nothing and imports nothing."""

from __future__ import annotations

import functools
import json
import logging
import re
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec

import numpy as np

from visualization import raster

if TYPE_CHECKING:
    from trainers.evaluation.classification_metrics import ValidationResult, WorstImage

MAX_CLASS_CURVES = 50  # more curves than that make TensorBoard slow and help nobody
MAX_PROJECTED = 1000  # points of the projector: 512 features each are 10 MB of text
SPRITE_PX = 64  # of a thumbnail; 32 x 32 of them make 2048 px, and TensorBoard takes up to 8192
UNKNOWN = "unknown"  # TensorBoard drops an empty line of metadata, and every later point would get another's label
logger = logging.getLogger(__name__)
P = ParamSpec("P")
Method = Callable[Concatenate["TrainingLogger", P], None]


def _as_long_as_it_can(method: Method[P]) -> Method[P]:
    """Let a method do nothing where nothing is logged, and end the logging where its files cannot be written."""

    @functools.wraps(method)
    def logged(self: TrainingLogger, *args: P.args, **kwargs: P.kwargs) -> None:
        if not self.enabled:
            return
        try:
            method(self, *args, **kwargs)
        except OSError as error:
            self.give_up(error)

    return logged


class TrainingLogger:
    """Writes event files into `log_dir` if `enabled`; the caller enables it in the first process only.

    `purge_step` is the first step after the checkpoint of a resumed run: TensorBoard drops what an interrupted run
    had logged from there on. A disk that is full ends the logging, with a warning to `say`, and not the training.
    """

    def __init__(
        self,
        log_dir: str | Path,
        enabled: bool,
        purge_step: int | None = None,
        log: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.enabled = enabled
        self._log_dir, self._log = log_dir, log
        self._said_cap = False
        if enabled:
            from torch.utils.tensorboard import SummaryWriter

            _leave_writers_errors_to_the_caller()
            self._writer = SummaryWriter(log_dir=str(log_dir), purge_step=purge_step)

    def give_up(self, error: OSError) -> None:
        """Log nothing more, and say why."""
        self.enabled = False
        why = error.strerror or str(error)
        self._log(f"warning: {self._log_dir}: nothing more is logged for TensorBoard: {why}; the training goes on")

    @_as_long_as_it_can
    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Add one point to each curve, {tag: value}."""
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, step)

    @_as_long_as_it_can
    def train_images(self, images: np.ndarray, captions: Sequence[str], step: int) -> None:
        """Show a batch as the net sees it: images (N, H, W, C) uint8, no longer normalised."""
        grid = raster.image_grid(images, captions, columns=8)
        self._writer.add_image("train/pictures", grid, step, dataformats="HWC")

    @_as_long_as_it_can
    def validation(
        self,
        result: ValidationResult,
        class_names: Sequence[str],
        load_image: Callable[[str], np.ndarray],
        step: int,
        heat_maps: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Show a validation: its numbers, the confusion matrix, the worst images, each class's precision and recall.

        `load_image` gives a path's image as uint8 (H, W, C); one it cannot give (OSError, ValueError) shows grey.
        `heat_maps` holds, by path, the same images under the heat map of their answer, as many as there are.
        """
        self.scalars({"val/top1": result.top1, "val/top5": result.top5, "val/loss": result.loss}, step)
        self.scalars({f"val/top1_{head}": top1 for head, top1 in result.head_top1.items()}, step)
        matrix = raster.confusion_matrix_image(result.confusion, class_names)
        self._writer.add_image("val/confusion_matrix", matrix, step, dataformats="HWC")
        if result.worst:
            images = [_loaded(load_image, image.path) for image in result.worst]
            captions = [_caption(image, class_names) for image in result.worst]
            grid = raster.image_grid(images, captions, columns=6, right=[False] * len(images))
            self._writer.add_image("val/worst", grid, step, dataformats="HWC")
        with_map = [image for image in result.worst if image.path in (heat_maps or {})]
        if heat_maps and with_map:
            images = [heat_maps[image.path] for image in with_map]
            captions = [_caption(image, class_names) for image in with_map]
            grid = raster.image_grid(images, captions, columns=6, right=[False] * len(images))
            self._writer.add_image("val/worst_heatmaps", grid, step, dataformats="HWC")
        self._class_scalars(result, class_names, step)

    @_as_long_as_it_can
    def embedding(
        self,
        features: np.ndarray,
        labels: Sequence[int],
        class_names: Sequence[str],
        load_image: Callable[[int], np.ndarray],
        step: int,
    ) -> None:
        """Show features (N, D) in the projector, each with its image and class; at most 1,000, evenly spread.

        A label that is none of the classes', such as NO_LABEL, is shown as "unknown". `load_image` gives the image of
        a row as uint8 (H, W, C); one it cannot give (OSError, ValueError) shows grey. A row that is not finite is left
        out. A step shown again replaces the earlier showing.
        """
        rows = np.flatnonzero(np.isfinite(features).all(axis=1))
        if not len(rows):
            return
        import torch

        rows = rows[np.linspace(0, len(rows) - 1, min(len(rows), MAX_PROJECTED)).round().astype(int)]
        names = {label: " ".join(name.split()) or UNKNOWN for label, name in enumerate(class_names)}
        sprites = np.stack([_sprite(_loaded(load_image, int(row))) for row in rows])  # (n, 64, 64, 3)
        shutil.rmtree(Path(self._writer.log_dir, f"{step:05d}", "embedding"), ignore_errors=True)
        self._writer.add_embedding(
            features[rows],
            metadata=[names.get(int(labels[row]), UNKNOWN) for row in rows],
            label_img=torch.from_numpy(sprites).permute(0, 3, 1, 2) / 255,  # (n, 3, 64, 64)
            global_step=step,
            tag="embedding",
        )

    @_as_long_as_it_can
    def config_text(self, values: Mapping[str, Any]) -> None:
        """Show the effective config as a table under TEXT."""
        rows = [f"| {_cell(key)} | {_cell(_text(value))} |" for key, value in values.items()]
        self._writer.add_text("config", "\n".join(["| key | value |", "| --- | --- |", *rows]))

    @_as_long_as_it_can
    def hparams(self, values: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Put this run into the HPARAMS table; a metric "top1" stands there as "hparam/top1".

        It has a tag of its own, because its single point must not be appended to the curve "val/top1".
        """
        plain = {key: v if isinstance(v, (bool, int, float, str)) else _text(v) for key, v in values.items()}
        tagged = {f"hparam/{name}": value for name, value in metrics.items()}
        self._writer.add_hparams(plain, tagged, run_name=".")  # "." is this run, not one below it

    @_as_long_as_it_can
    def flush(self) -> None:
        """Write out what is still in memory."""
        self._writer.flush()

    @_as_long_as_it_can
    def close(self) -> None:
        """Write out and close the event file."""
        self._writer.close()

    def _class_scalars(self, result: ValidationResult, class_names: Sequence[str], step: int) -> None:
        if len(class_names) > MAX_CLASS_CURVES and not self._said_cap:
            self._said_cap = True
            logger.info(
                "TensorBoard gets precision and recall of the first %d of %d classes; report.html has them all",
                MAX_CLASS_CURVES,
                len(class_names),
            )
        tags = class_tags(class_names[:MAX_CLASS_CURVES])
        for tag, scores in zip(tags, result.per_class, strict=False):  # per_class goes on beyond the cap
            self.scalars({f"val_precision/{tag}": scores["precision"], f"val_recall/{tag}": scores["recall"]}, step)


def class_tags(class_names: Sequence[str]) -> list[str]:
    """Turn class names into tags TensorBoard takes; names that become alike get their label behind them."""
    tags = [re.sub(r"[^-\w.]", "_", name) or "_" for name in class_names]
    return [f"{tag}_{label}" if tags.count(tag) > 1 else tag for label, tag in enumerate(tags)]


def _leave_writers_errors_to_the_caller() -> None:
    """Keep TensorBoard's thread from printing an OSError: the next call of the writer raises it."""
    before = threading.excepthook

    def tell(failure: threading.ExceptHookArgs) -> None:
        of_writer = type(failure.thread).__module__.startswith("tensorboard.")
        if not (of_writer and issubclass(failure.exc_type, OSError)):
            before(failure)

    threading.excepthook = tell


def _loaded(load_image: Callable[[Any], np.ndarray], key: str | int) -> np.ndarray:
    try:
        return load_image(key)
    except (OSError, ValueError):  # it was read a moment ago; the image is an ornament, training goes on
        return np.full((64, 64, 3), 200, dtype=np.uint8)


def _sprite(image: np.ndarray) -> np.ndarray:
    """Fit an image into a white square, (64, 64, 3)."""
    small = raster.thumbnail(image, SPRITE_PX)
    square = np.full((SPRITE_PX, SPRITE_PX, 3), 255, np.uint8)
    top, left = (SPRITE_PX - small.height) // 2, (SPRITE_PX - small.width) // 2
    square[top : top + small.height, left : left + small.width] = np.asarray(small)
    return square


def _caption(image: WorstImage, class_names: Sequence[str]) -> str:
    # A name's own line breaks would make further lines of the caption.
    label, answer = (class_names[i].replace("\n", " ") for i in (image.label, image.answer))
    return f"{label}\n→ {answer} {image.score:.1%}"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _cell(text: str) -> str:
    """Keep a value from ending its cell of the markdown table."""
    return text.replace("|", "\\|").replace("\n", " ")
