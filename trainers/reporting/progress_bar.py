"""The training's progress bars."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

from tqdm import tqdm

T = TypeVar("T")


class Bars:
    """Bars on the terminal, where they are shown."""

    def __init__(self, num_epochs: int, *, are_shown: bool) -> None:
        self._num_epochs = num_epochs
        self._disable = None if are_shown else True  # None: where there is no terminal

    def epoch(self, epoch: int, steps: int, done: int) -> tqdm[Any]:
        """Return the bar of an epoch, counted from 0, of so many steps, some of which are done."""
        return tqdm(
            total=steps,
            initial=done,
            desc=f"epoch {epoch + 1}/{self._num_epochs}",
            bar_format="{desc} {bar} {n_fmt}/{total_fmt}{postfix}",
            dynamic_ncols=True,
            leave=False,
            disable=self._disable,
        )

    def validation(self, batches: Iterable[T], total: int) -> Iterable[T]:
        """Yield the batches, and show how many of them are done."""
        bar: Iterable[T] = tqdm(
            batches, desc="validation", total=total, leave=False, dynamic_ncols=True, disable=self._disable
        )
        return bar


def show_speed(bar: tqdm[Any], *, loss: float, rate: float, speed: float, images_left: float) -> None:
    """Write loss, learning rate, speed (images a second) and the time left beside a bar."""
    left = tqdm.format_interval(images_left / max(speed, 1e-9))
    bar.set_postfix_str(f"loss {loss:.3f} lr {rate:.2g} {speed:.0f} img/s {left} left", refresh=False)
