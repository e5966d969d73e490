"""The charts of uncertainty.html as SVG text, in the colours of the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from visualization.svg_axes import Axes, Ticks, clipped, round_ticks

MARGINS = (58, 22, 10, 44)  # left, right, top, bottom
UNSTEADY = 0.05  # share of the images below which a risk is of too few to scale a chart by
HIGHEST = 1.5  # times the risk of all images: a score whose risks are above that is of no use


def reliability_chart(bins: Sequence[Mapping[str, Any]], label: str) -> str:
    """Draw the accuracy by score, against the diagonal where both are the same."""
    ticks = [(i / 5, f"{i / 5:g}") for i in range(6)]
    axes = Axes((0, 1), (0, 1), (340, 320), MARGINS)
    total, count = sum(part["count"] for part in bins), len(bins)
    parts = []
    for i, part in enumerate(bins):
        if not part["count"]:
            continue
        images = f"{part['count']:,} images ({part['count'] / total:.1%})"
        title = f"{images}: mean score {part['score']:.4f}, {part['accuracy']:.4f} right"
        sides = (i / count, (i + 1) / count)
        gap = "too_sure" if part["score"] > part["accuracy"] else "not_sure"
        parts.append(axes.column(*sides, max(part["score"], part["accuracy"]), gap, title))
        parts.append(axes.column(*sides, min(part["score"], part["accuracy"]), "right", title))
    parts.append(axes.line([(0, 0), (1, 1)], "diagonal", "score and accuracy the same"))
    return _chart(axes, label, (ticks, "score"), (ticks, "accuracy"), parts)


def risk_chart(curves: Mapping[str, Sequence[Sequence[float]]], styles: Mapping[str, str], coverage: float) -> str:
    """Draw the share that is wrong among the least uncertain, by their share of all, for every score."""
    steady = [risk for points in curves.values() for share, risk in points if share >= UNSTEADY]
    overall = max(points[-1][1] for points in curves.values())
    y_ticks = _ticks_to(max(min(max(steady), HIGHEST * overall), 1e-6), lambda value: f"{value * 100:.4g}%")
    x_ticks = [(i / 5, f"{i * 20}%") for i in range(6)]
    axes = Axes((0, 1), (0, y_ticks[-1][0]), (1080, 380), MARGINS)
    parts = [axes.upright(coverage, "threshold", f"the threshold accepts {coverage:.1%}")]
    parts += [axes.line(points, styles[name], name) for name, points in reversed(list(curves.items()))]
    return _chart(axes, "Risk by coverage", (x_ticks, "accepted"), (y_ticks, "wrong among the accepted"), parts)


def histogram_chart(histogram: Mapping[str, Any], score: str) -> str:
    """Draw the distribution of an uncertainty over known and, where given, out-of-distribution images, as shares."""
    edges = histogram["edges"]
    sides = (("known", histogram["known"]), ("ood", histogram["strange"]))
    shares = {name: [count / sum(counts) for count in counts] for name, counts in sides if sum(counts)}
    highest = max(share for values in shares.values() for share in values)
    y_ticks = _ticks_to(highest, lambda value: f"{value * 100:.3g}%")
    axes = Axes((edges[0], edges[-1]), (0, y_ticks[-1][0]), (1080, 320), MARGINS)
    parts = []
    for name, values in shares.items():
        images = f"of the {'in-distribution' if name == 'known' else 'out-of-distribution'} images"
        for low, high, share in zip(edges, edges[1:], values, strict=False):
            if share:
                parts.append(axes.column(low, high, share, name, f"{share:.2%} {images}"))
    parts.append(axes.upright(histogram["threshold"], "threshold", "set aside right of it"))
    x_ticks = _histogram_ticks(edges[0], edges[-1], histogram["is_log"])
    return _chart(axes, "Uncertainty", (x_ticks, score), (y_ticks, "share of the images"), parts)


def _chart(axes: Axes, label: str, x: tuple[Ticks, str], y: tuple[Ticks, str], parts: Sequence[str]) -> str:
    """Put what was drawn, cut off at the axes, into axes with ticks and titles."""
    left, top, right, bottom = axes.box
    plane = clipped(left, top, right - left, bottom - top + 1, parts)
    return axes.chart(label, [*axes.y_axis(*y), *axes.x_axis(*x, marks=True), plane])


def _histogram_ticks(low: float, high: float, is_log: bool) -> Ticks:
    """Return the decades between two logarithms where there are several, else six values evenly apart."""
    decades = [(float(i), f"1e{i}" if i else "1") for i in range(math.ceil(low), math.floor(high) + 1)]
    if is_log and len(decades) > 1:
        return decades
    values = [low + (high - low) * i / 5 for i in range(6)]
    return [(value, f"{10**value if is_log else value:.3g}") for value in values]


def _ticks_to(top: float, text: Callable[[float], str]) -> Ticks:
    """Return round numbers with their texts from 0 to `top` or a little more."""
    return [(value, text(value)) for value in round_ticks(0, top, count=4)]
