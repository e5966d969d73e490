"""A training's TensorBoard files; a logger that is not enabled does nothing and imports nothing."""

from __future__ import annotations

import functools
import json
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Concatenate, ParamSpec

import numpy as np

from visualization import raster

MAX_PROJECTED = 1000  # points of the projector: 512 features each are 10 MB of text
SPRITE_PX = 64  # of a thumbnail; 32 x 32 of them make 2048 px, and TensorBoard takes up to 8192
UNKNOWN = "unknown"  # TensorBoard drops an empty line of metadata, and every later point would get another's label
P = ParamSpec("P")
Method = Callable[Concatenate["TrainingLogger", P], None]


def _while_writable(method: Method[P]) -> Method[P]:
    """Skip a method where nothing is logged, and end the logging where its files cannot be written."""

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
    """Writes event files into `log_dir` if `enabled`; the caller enables it in the main process only.

    `purge_step` is the first step after the checkpoint of a resumed run: TensorBoard drops what an interrupted run
    had logged from there on. A full disk ends the logging, with a warning to `log`, and not the training.
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
        if enabled:
            from torch.utils.tensorboard import SummaryWriter

            _pass_writer_errors_to_the_caller()
            self._writer = SummaryWriter(log_dir=str(log_dir), purge_step=purge_step)

    def give_up(self, error: OSError) -> None:
        """Log nothing more, with a warning that says why."""
        self.enabled = False
        why = error.strerror or str(error)
        self._log(f"warning: {self._log_dir}: nothing more is logged for TensorBoard: {why}; the training goes on")

    @_while_writable
    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Add one point to each curve, {tag: value}."""
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, step)

    @_while_writable
    def image(self, tag: str, pixels: np.ndarray, step: int) -> None:
        """Show an image, uint8 (H, W, C)."""
        self._writer.add_image(tag, pixels, step, dataformats="HWC")

    def image_grid(self, tag: str, images: np.ndarray, captions: Sequence[str], step: int) -> None:
        """Show a batch as the net sees it, images (N, H, W, C) uint8, no longer normalised, with a caption each."""
        if self.enabled:
            self.image(tag, raster.image_grid(images, captions, columns=8), step)

    @_while_writable
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
        sprites = np.stack([_sprite(load_or_grey(load_image, int(row))) for row in rows])  # (n, 64, 64, 3)
        shutil.rmtree(Path(self._writer.log_dir, f"{step:05d}", "embedding"), ignore_errors=True)
        self._writer.add_embedding(
            features[rows],
            metadata=[names.get(int(labels[row]), UNKNOWN) for row in rows],
            label_img=torch.from_numpy(sprites).permute(0, 3, 1, 2) / 255,  # (n, 3, 64, 64)
            global_step=step,
            tag="embedding",
        )

    @_while_writable
    def config_text(self, values: Mapping[str, Any]) -> None:
        """Show the effective config as a table under TEXT."""
        rows = [f"| {_cell(key)} | {_cell(_text(value))} |" for key, value in values.items()]
        self._writer.add_text("config", "\n".join(["| key | value |", "| --- | --- |", *rows]))

    @_while_writable
    def hparams(self, values: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Put this run into the HPARAMS table; a metric "top1" stands there as "hparam/top1".

        It has a tag of its own, because its single point must not be appended to the curve "val/top1".
        """
        plain = {key: v if isinstance(v, (bool, int, float, str)) else _text(v) for key, v in values.items()}
        tagged = {f"hparam/{name}": value for name, value in metrics.items()}
        self._writer.add_hparams(plain, tagged, run_name=".")  # "." is this run, not one below it

    @_while_writable
    def flush(self) -> None:
        """Write out what is still in memory."""
        self._writer.flush()

    @_while_writable
    def close(self) -> None:
        """Write out and close the event file."""
        self._writer.close()


def _pass_writer_errors_to_the_caller() -> None:
    """Keep TensorBoard's thread from printing an OSError: the next call of the writer raises it."""
    before = threading.excepthook

    def report(failure: threading.ExceptHookArgs) -> None:
        of_writer = type(failure.thread).__module__.startswith("tensorboard.")
        if not (of_writer and issubclass(failure.exc_type, OSError)):
            before(failure)

    threading.excepthook = report


def load_or_grey(load_image: Callable[[Any], np.ndarray], key: str | int) -> np.ndarray:
    """Return an image uint8 (H, W, C), grey where it cannot be read."""
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


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _cell(text: str) -> str:
    """Keep a value from ending its cell of the markdown table."""
    return text.replace("|", "\\|").replace("\n", " ")
