"""Rounds of all sides in turn, and their statistics: medians, spreads, ratios with their intervals."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from common.paths import ROOT
from tools.benchmark.protocol import RATE, Round
from tools.benchmark.runners import Side

RESAMPLES = 10_000
LEVEL = 95  # percent
BUSY = 0.1  # share of the machine used by others from which a measurement is marked
PROBE_S = 0.25
PACKAGES = ("torch", "torchvision", "pillow", "onnxruntime", "openvino")
EXTRAS = ("amx_bf16", "amx_int8", "avx512_bf16", "avx512_vnni")  # the instructions that decide a CPU's speed
SUMMARIES: dict[str, Callable[[Sequence[float]], float]] = {  # of a figure's rounds; else the median
    "errors": sum,
    "MB at start": lambda values: values[0],
    "MB at end": lambda values: values[-1],
}


@dataclass(frozen=True)
class Ratio:
    """The ratio of two sides' rates: the median over the rounds, and its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Figure:
    """One side: the median and the range of its rates, its other figures, and its ratios to others by their names."""

    name: str
    median: float
    low: float
    high: float
    extras: dict[str, float]
    ratios: dict[str, Ratio]
    rounds: list[Round]


@dataclass(frozen=True)
class Measured:
    """A set of sides that were measured in turn; `busy` is the share of the machine that other processes used."""

    title: str
    unit: str
    busy: float
    figures: list[Figure]
    versions: dict[str, str] = field(default_factory=dict)


def measure(
    title: str, unit: str, sides: Sequence[Side], against: Sequence[str], rounds: int, warmups: int = 1
) -> Measured:
    """Let every side do one round, then every side the next, after `warmups` rounds; return their figures.

    Ratios are to the sides named in `against`. Raises BenchmarkError.
    """
    played: dict[str, list[Round]] = {side.name: [] for side in sides}
    others = []
    for number in range(warmups + rounds):
        for side in sides:
            others.append(share_of_others(PROBE_S))
            figures = side.play()
            if number >= warmups:
                played[side.name].append(figures)
    figures_of = [summarise(side.name, played, [name for name in against if name != side.name]) for side in sides]
    versions = {package: number for side in sides for package, number in side.versions.items()}
    return Measured(title, unit, statistics.median(others), figures_of, versions)


def summarise(name: str, played: Mapping[str, Sequence[Round]], against: Sequence[str]) -> Figure:
    """Return a side's figure from the rounds of all sides."""
    own = played[name]
    rates = [figures[RATE] for figures in own]
    extras = {
        key: SUMMARIES.get(key, statistics.median)([figures[key] for figures in own]) for key in own[0] if key != RATE
    }
    ratios = {base: paired_ratio(rates, [figures[RATE] for figures in played[base]]) for base in against}
    return Figure(name, statistics.median(rates), min(rates), max(rates), extras, ratios, list(own))


def paired_ratio(rates: Sequence[float], base: Sequence[float]) -> Ratio:
    """Return the median of the rounds' ratios, and its 95 % interval by the bootstrap over rounds.

    Percentile bootstrap (Efron & Tibshirani 1993, ch. 13): rounds are drawn with replacement 10,000 times, the two
    sides of a round together. Of fewer than five rounds it is little more than their range.
    """
    ratios = np.array(rates) / np.array(base)
    draws = np.random.default_rng(0).integers(0, len(ratios), (RESAMPLES, len(ratios)))
    medians = np.median(ratios[draws], axis=1)
    low, high = np.percentile(medians, [(100 - LEVEL) / 2, (100 + LEVEL) / 2])
    return Ratio(float(np.median(ratios)), float(low), float(high))


def share_of_others(seconds: float) -> float:
    """Return the share of all processor time in use while no side works, measured for `seconds`; 0 off Linux."""
    file = Path("/proc/stat")
    if not file.is_file():
        return 0.0
    counts = []
    for pause in (seconds, 0.0):
        ticks = [int(text) for text in file.read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]]
        counts.append((sum(ticks), ticks[3] + ticks[4]))  # all; idle and waiting for a disk
        time.sleep(pause)
    (before, idle_before), (after, idle_after) = counts
    return 1 - (idle_after - idle_before) / max(1, after - before)


def describe_environment() -> dict[str, object]:
    """Return hardware, threads, versions, commit and day."""
    import torch

    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=ROOT).stdout
    return {
        "hardware": torch.cuda.get_device_name() if torch.cuda.is_available() else _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), **found},
        "commit": commit.strip() or "unknown",
        "day": time.strftime("%Y-%m-%d"),
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return platform.processor()
    lines = info.read_text(encoding="utf-8").splitlines()
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    found = [flag for flag in EXTRAS if flag in flags]
    return f"{name} ({', '.join(found)})" if found else name
