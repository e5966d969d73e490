"""Accuracy against the number of labels, for several ways to choose them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from visualization import fonts

SIZE_INCHES, DPI = (9.0, 5.4), 110
COLOURS = ("#cf222e", "#bc4c00", "#8250df", "#0952a5", "#1a7f37", "#bf3989", "#9a6700")
RANDOM = "#656d76"


def label_curves_image(
    curves: Mapping[str, np.ndarray], counts: Sequence[int], title: str, band: str = "random"
) -> np.ndarray:
    """Draw the mean of each curve, (draws, counts) from 0 to 1; of `band` the range of its draws, too.

    Returns (H, W, 3) uint8.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    parameters: Any = fonts.use_fonts()  # a plain dict; matplotlib's own type lists every key it knows
    with rc_context(parameters):
        figure = Figure(SIZE_INCHES, DPI, layout="constrained")
        axes = figure.add_subplot()
        colours = dict(zip((name for name in curves if name != band), COLOURS * len(curves), strict=False))
        for name, values in curves.items():
            colour = colours.get(name, RANDOM)
            if name == band:
                low, high = 100 * values.min(axis=0), 100 * values.max(axis=0)
                axes.fill_between(counts, low, high, color=colour, alpha=0.18, linewidth=0, label=f"{name}: all draws")
            width = 2.4 if name == band else 1.6
            axes.plot(counts, 100 * values.mean(axis=0), color=colour, linewidth=width, marker="o", ms=4, label=name)
        axes.set_xscale("log")
        axes.set_xticks(counts, [f"{count:,}" for count in counts])
        axes.minorticks_off()
        axes.set_xlabel("images with labels")
        axes.set_ylabel("accuracy in %, mean of the draws")
        axes.set_title(title, fontsize=11)
        axes.grid(color="#d0d7de", linewidth=0.6)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        axes.legend(loc="lower right", frameon=False)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., :3].copy()
