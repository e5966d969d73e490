"""Picks in several stages, as a project's active learning has them: each picks from what the one before picked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from tools.select.strategies import STRATEGIES, Pool, SelectError, Strategy

USUAL_NUM = 1000  # antgo's sampling_num
USUAL_TYPE = "doubt"
ANTGO = {"samplingbyuniform": "uniform", "samplingbykcenter": "kcenter", "samplingbyentropy": "entropy"}
COMPOSER = "samplingbycomposer"
KEYS = frozenset({"sampling_num", "sampling_count", "sampling_fn"})


@dataclass(frozen=True)
class Stage:
    """A stage by its type, and how many images it picks, 0 for as many as are asked for in all."""

    kind: str
    num: int


def read_stages(config: Mapping[str, Any], where: str = "activelearning") -> tuple[list[Stage], int]:
    """Return the stages of a project's settings of active learning, and how many images they pick in all.

    `where` is what mistakes name: a project's key, or a file. Raises SelectError.
    """
    try:
        return _read_stages(config)
    except SelectError as error:
        raise SelectError(f"{where}: {error}") from error


def chain(stages: Sequence[Stage]) -> Strategy:
    """Return the strategy that picks in stages."""
    needs = frozenset[str]().union(*(KINDS[stage.kind].needs for stage in stages))
    return Strategy(partial(_pick, stages), needs, ", then ".join(KINDS[stage.kind].text for stage in stages))


def pick_doubt(pool: Pool, count: int, generator: np.random.Generator) -> np.ndarray:
    """Return the rows whose highest scores are the lowest (Lewis & Gale 1994)."""
    return np.argsort(pool.scores.max(axis=1), kind="stable")[:count]


def _read_stages(config: Mapping[str, Any]) -> tuple[list[Stage], int]:
    if unknown := [key for key in config if key not in KEYS]:
        raise SelectError(f'unknown key "{unknown[0]}"; known: {", ".join(sorted(KEYS))}')
    if config.get("sampling_count", 1) != 1:
        raise SelectError("sampling_count must be 1: all passes of a net give the same")
    total = _number(config, "sampling_num", USUAL_NUM)
    found = config.get("sampling_fn", [{"type": USUAL_TYPE}])
    if isinstance(found, Mapping) and str(found.get("type", "")).lower() == COMPOSER:
        found = found.get("sampling_cfgs", [])
    rows = [found] if isinstance(found, Mapping) else found
    if not isinstance(rows, Sequence) or not rows or not all(isinstance(row, Mapping) for row in rows):
        raise SelectError("sampling_fn must be a list of stages, each with a type and a sampling_num")
    return [_stage(row) for row in rows], total


def _pick(stages: Sequence[Stage], pool: Pool, count: int, generator: np.random.Generator) -> np.ndarray:
    rows = np.arange(len(pool.features))
    for number, stage in enumerate(stages, 1):
        wanted = min(stage.num or count, len(rows))
        wanted = min(wanted, count) if number == len(stages) else wanted
        part = Pool(pool.scores[rows], pool.passes, pool.features[rows], pool.labelled)
        rows = rows[KINDS[stage.kind].pick(part, wanted, generator)]
    return rows


def _stage(row: Mapping[str, Any]) -> Stage:
    text = str(row.get("type", ""))
    kind = ANTGO.get(text.lower(), text)
    if kind not in KINDS:
        raise SelectError(f'no sampling of type "{text}"; known: {", ".join(KINDS)}')
    return Stage(kind, _number(row, "sampling_num", 0))


def _number(values: Mapping[str, Any], key: str, usual: int) -> int:
    found = values.get(key, usual)
    if isinstance(found, bool) or not isinstance(found, int) or found < (1 if key in values else 0):
        raise SelectError(f"{key} must be a whole number from 1, got {found!r}")
    return found


KINDS = {  # by the names of a project's settings
    "doubt": Strategy(pick_doubt, frozenset({"scores"}), "the lowest highest scores"),
    "uniform": STRATEGIES["random"],
    "kcenter": STRATEGIES["coreset"],
    "entropy": STRATEGIES["entropy"],
}
