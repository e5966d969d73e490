"""What the doctor's parts pass to each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from data_loader.samples import SampleList

Step = dict[str, Any]  # what was measured of the trial steps, as doctor.json holds it


@dataclass(frozen=True)
class TrialData:
    """The lists of a training, and the indices of the images in each that cannot be read."""

    train: SampleList
    val: SampleList
    bad_train: set[int]
    bad_val: set[int]
