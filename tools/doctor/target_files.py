"""Targets that are files, label images and annotations of boxes: each is read once, as train.py reads it."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from configs.schema import Config
from data_loader.bad_images import without
from data_loader.mask_target import MaskScan
from data_loader.preprocess import ImageError
from data_loader.samples import ListError, SampleList
from data_loader.targets import Target
from tools.doctor.checks import NOTE, PROBLEM, WARNING, Finding, count_text

UNITS = {"mask": "pixel", "annotation": "object"}  # what a class is counted in, by the target's noun


@dataclass
class TargetFiles:
    """The lists of training and validation without the samples that cannot be used, and what was found.

    `first` is the row of a list's first sample in a Study.
    """

    lists: list[SampleList] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    is_usable: bool = True

    def class_counts(self) -> tuple[list[int], list[int]]:
        """Return what each class has in training and in validation; nothing where a list as a whole is unusable."""
        train, val = (
            samples.class_counts() if self.is_usable else [0] * len(samples.class_names) for samples in self.lists
        )
        return train, val

    def add(self, name: str, samples: SampleList, first: int, scans: Sequence[Any], target: Target) -> None:
        """Add a list with its samples' scans: a sentence where one cannot be used, None where its image cannot."""
        good = [scan for scan in scans if scan is not None and not isinstance(scan, str)]
        kept = without(samples, {i for i, scan in enumerate(scans) if scan is None or isinstance(scan, str)})
        try:
            kept, lines = target.scanned(kept, good) if good else (kept, [])
        except ListError as error:
            self.is_usable, lines = False, []
            self.findings += [Finding(PROBLEM, f"{target.noun}s of {name}", text) for text in error.problems]
        self.lists.append(kept)
        for line in lines:
            level = WARNING if line.startswith("warning: ") else NOTE
            text = line.removeprefix("warning: ").removeprefix(f"{samples.origin}: ")
            self.findings.append(Finding(level, f"{target.noun}s of {name}", f"{name}: {text}"))
        alone = [
            first + i for i, scan in enumerate(scans) if isinstance(scan, MaskScan) and (scan.pixels > 0).sum() < 2
        ]
        if alone:
            text = f"{count_text(len(alone), f'{name} mask')} of {len(scans):,} with one class alone, or none"
            self.findings.append(Finding(NOTE, "one class alone", text, [[row] for row in alone]))


def read_target_files(
    config: Config, target: Target, train: SampleList, val: SampleList, unreadable: set[int], workers: int
) -> TargetFiles:
    """Look at the targets of all images but the `unreadable` rows, training first."""
    found = TargetFiles()
    for name, samples, first in (("training", train, 0), ("validation", val, len(train.samples))):

        def look(index: int, samples: SampleList = samples, first: int = first) -> Any:
            try:
                return None if first + index in unreadable else target.scan(samples.samples[index])
            except ImageError as error:
                return str(error)

        total = len(samples.samples)
        with ThreadPoolExecutor(max(1, workers)) as pool:
            looks = pool.map(look, range(total))
            scans = list(tqdm(looks, desc=f"reading {target.noun}s", total=total, leave=False, disable=None))
        bad = {first + index: scan for index, scan in enumerate(scans) if isinstance(scan, str)}
        if bad:
            found.findings.append(_unusable(config, f"{name} {target.noun}", bad, total))
        found.add(name, samples, first, scans, target)
    return found


def _unusable(config: Config, what: str, bad: dict[int, str], total: int) -> Finding:
    text, level = f"{len(bad):,} of {count_text(total, what)} cannot be used", WARNING
    if config.bad_images == "error":
        level, text = PROBLEM, f'{text}; bad_images is "error": the training stops there'
    elif len(bad) / total > config.max_bad_share:
        level, text = PROBLEM, f"{text}; max_bad_share allows {config.max_bad_share:.2%}"
    return Finding(level, f"unusable {what}s", text, [[row] for row in bad], bad)
