"""What a net takes images without labels for: its answer, its score, and whether that is enough to learn from."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.atomic_io import write_atomic
from common.formatting import csv_cell
from data_loader.samples import SampleList
from trainers.evaluation.validation import evaluating
from trainers.runtime.distributed import World

FILE = "pseudo_labels.csv"


@dataclass(frozen=True)
class PseudoLabel:
    """An image's index in its list, the class that it is taken for, the score (0 to 1), and whether that is enough."""

    index: int
    label: int
    score: float
    is_learnt: bool


@torch.inference_mode()
def find_pseudo_labels(
    net: nn.Module, batches: Iterable[dict[str, Tensor]], least_scores: Tensor, world: World
) -> list[PseudoLabel]:
    """Return the pseudo-labels of all processes' images in the order of their list; `least_scores` (K,) are enough."""
    found: list[PseudoLabel] = []
    with evaluating(net):
        for batch in batches:
            score, label = net(batch["image"]).float().softmax(dim=1).max(dim=1)
            learnt = score >= least_scores[label]
            rows = zip(batch["index"].tolist(), label.tolist(), score.tolist(), learnt.tolist(), strict=True)
            found += [PseudoLabel(*row) for row in rows]
    return sorted(world.gather(found), key=lambda one: one.index)


def write_pseudo_labels(found: Sequence[PseudoLabel], samples: SampleList, folder: str) -> Path:
    """Write pseudo_labels.csv: path, class, score and whether it is learnt (1 or 0) of each image; return its path."""
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(("path", "class", "score", "is_learnt"))
    for one in found:
        path, name = samples.samples[one.index].path, samples.class_names[one.label]
        table.writerow((csv_cell(path), csv_cell(name), f"{one.score:.6f}", int(one.is_learnt)))
    file = Path(folder) / FILE
    write_atomic(file, "\ufeff" + text.getvalue())
    return file


def counts_of(found: Sequence[PseudoLabel], class_names: Sequence[str]) -> dict[str, Any]:
    """Return how many images there are, how many have a pseudo-label that is learnt, and that by class."""
    learnt = [one.label for one in found if one.is_learnt]
    of_classes = {name: learnt.count(label) for label, name in enumerate(class_names)}
    return {"images": len(found), "learnt": len(learnt), "of_classes": of_classes, "file": FILE}
