"""The classes' curves on TensorBoard: their tags, and how many there are at most."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

MAX_CLASS_CURVES = 50  # more curves than that make TensorBoard slow and help nobody
log = logging.getLogger(__name__)


def class_curves(per_class: Sequence[Mapping[str, Any]], key: str) -> dict[str, float]:
    """Return a score of the first MAX_CLASS_CURVES classes by their tags; of one without the score there is none.

    A row holds the name as "class" and the score by its key; both may be of any task.
    """
    if len(per_class) > MAX_CLASS_CURVES:
        _note_cap(len(per_class))
    shown = per_class[:MAX_CLASS_CURVES]
    tags = class_tags([str(row["class"]) for row in shown])
    return {tag: row[key] for tag, row in zip(tags, shown, strict=True) if row[key] is not None}


def class_tags(class_names: Sequence[str]) -> list[str]:
    """Return class names as tags TensorBoard takes; names that become alike get their label behind them."""
    tags = [re.sub(r"[^-\w.]", "_", name) or "_" for name in class_names]
    return [f"{tag}_{label}" if tags.count(tag) > 1 else tag for label, tag in enumerate(tags)]


@functools.cache
def _note_cap(count: int) -> None:
    """Note the cap in the log, once."""
    log.info("TensorBoard gets curves of the first %d of %d classes; report.json has them all", MAX_CLASS_CURVES, count)
