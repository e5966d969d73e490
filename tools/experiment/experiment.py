"""What an experiment's main program hands over: where it lies, and the functions of its own files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from data_loader.samples import SampleList

if TYPE_CHECKING:
    from trainers.evaluation.validation import Validation
    from trainers.trainer import Trainer


@dataclass(frozen=True)
class Experiment:
    """An experiment's main program and the three functions of its own."""

    file: Path
    sample_lists: Callable[[SampleList, SampleList], tuple[SampleList, SampleList]]
    further_numbers: Callable[[Validation], dict[str, float]]
    epoch_ended: Callable[[Trainer, Validation], None]

    @property
    def folder(self) -> Path:
        """Return the experiment's folder."""
        return self.file.parent
