"""Where an experiment's run leaves what: the tree that antgo's programs leave, too."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.atomic_io import write_atomic
from configs.schema import Config
from datasets.pictures import place_file

OUR_NAMES = {"top1": "top_1", "top5": "top_5"}  # ours to antgo's
NO_SCORES = {"epoch", "step", "loss", "train_loss"}
BEST = "best.pth"


@dataclass(frozen=True)
class Places:
    """The files of a run below `root`: `checkpoint/`, `metric/` and `export/`."""

    root: Path

    @property
    def metric(self) -> Path:
        """Return the folder of the best net, its score and the report."""
        return self.root / "metric"

    @property
    def best(self) -> Path:
        """Return the best net's checkpoint."""
        return self.metric / BEST

    @property
    def latest(self) -> Path:
        """Return the newest checkpoint, from which a training goes on."""
        return self.root / "checkpoint" / "latest.pth"

    @property
    def export(self) -> Path:
        """Return the folder of what is exported."""
        return self.root / "export"

    def config_keys(self) -> dict[str, str]:
        """Return the keys of a config that say where a training writes."""
        return {"save_path": str(self.metric), "save_name": BEST, "log_path": str(self.root)}

    def keep_last(self, config: Config, epoch: int) -> None:
        """Give the training's last checkpoint its names, and remove that of the epoch before. Raises OSError."""
        for path in (self.latest, self.latest.with_name(f"epoch_{epoch}.pth")):
            place_file(config.last_checkpoint(), path, overwrite=True)
        for path in self.latest.parent.glob("epoch_*.pth"):
            if path.name != f"epoch_{epoch}.pth":
                path.unlink(missing_ok=True)

    def write_score(self, best: Mapping[str, Any], further: Mapping[str, float]) -> None:
        """Write best.json: the numbers of the best validation and its epoch. Raises OSError."""
        content = {"score": score({**best, **further}), "current": f"epoch_{best['epoch']}"}
        write_atomic(self.metric / "best.json", json.dumps(content, indent=1) + "\n")


def score(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """Return the numbers of a validation by antgo's names."""
    return {OUR_NAMES.get(key, key): value for key, value in numbers.items() if key not in NO_SCORES}
