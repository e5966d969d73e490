"""What every step of a round works with: the folder, its settings, and what the command asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from projects.errors import ProjectError
from projects.round_folder import CLASSES, HELD_OUT, LABELLED, SEPARATOR, TO_LABEL, VALIDATION, RoundFolder, read_result
from projects.rounds import RoundState, Step
from tools.child_programs import run_logged

NET, LOG, LABELS = "net", "log.txt", "annotation_label"
WEIGHTS, CONFIG, CALIBRATION = "net.pth", "config.json", "calibration.txt"


@dataclass(frozen=True)
class Options:
    """What a command asks of a round: the flags of tools.rounds."""

    incoming: tuple[Path, ...] = ()
    num: int = 0  # images to label; 0: all that were set aside
    strategy: str = ""  # of tools.select; "": the most doubtful first
    uses_pseudo_labels: bool = False
    labels_from: Path | None = None
    list_root: Path | None = None
    device: str = "auto"


@dataclass(frozen=True)
class Loop:
    """A loop that has begun."""

    folder: RoundFolder
    settings: Mapping[str, Any]
    options: Options

    @property
    def class_names(self) -> tuple[str, ...]:
        """Return the classes in the order of the labels."""
        return tuple(self.settings["class_names"])

    @property
    def calibration_list(self) -> Path:
        """Return the list that nets are calibrated on."""
        number = self.settings["recalibrations"]
        return self.folder.lists / (f"calibration-{number}.txt" if number else CALIBRATION)

    def state(self, number: int) -> RoundState:
        """Return what is known of a round. Raises ProjectError."""
        is_labelled = self.options.labels_from is not None or self.label_file(number) is not None
        return RoundState(number, self.folder.results(number), is_labelled, self.options.uses_pseudo_labels)

    def label_file(self, number: int) -> Path | None:
        """Return the newest file of labels that a person has finished in a round, None where there is none."""
        files = (self.folder.round(number) / TO_LABEL).glob(f"{LABELS}*.json")
        return max(files, key=lambda file: (file.stat().st_mtime_ns, file.name), default=None)

    def read_labels(self, name: str) -> dict[str, str]:
        """Return the class of each image of one of the loop's lists, in its order. Raises ProjectError."""
        return read_list(self.folder.lists / name, self.class_names)

    def net_file(self, number: int) -> Path:
        """Return the net that a round trains."""
        return self.folder.round(number) / NET / WEIGHTS

    def run(self, number: int, *arguments: object, may_end_with: tuple[int, ...] = (0,)) -> tuple[int, str]:
        """Run one of our programs, which prints into the round's log; return its exit code and the log's last line.

        Raises ChildError for another code than `may_end_with`, Stopped, OSError.
        """
        return run_logged(self.folder.round(number) / LOG, *arguments, may_end_with=may_end_with)


def training_values(loop: Loop, number: int, train_list: Path) -> dict[str, Any]:
    """Return the config of a round's training: the loop's, on a list of its images, from the served net.

    Round 0 starts as the config says. Where the config fits the head, it is fitted anew on the served net's features.
    """
    values = read_result(loop.folder.root / CONFIG)
    root = loop.folder.root.resolve()
    images, lists = (root / folder.name for folder in (loop.folder.images, loop.folder.lists))
    net = loop.net_file(number).parent.resolve()
    values |= {
        "num_classes": len(loop.class_names),
        "class_names_file": (lists / CLASSES).as_posix(),
        "train_data_root_dir": images.as_posix(),
        "train_data_file": train_list.resolve().as_posix(),
        "val_data_root_dir": images.as_posix(),
        "val_data_file": (lists / VALIDATION).as_posix(),
        "file_label_separator": SEPARATOR,
        "save_path": net.as_posix(),
        "save_name": WEIGHTS,
        "log_path": net.as_posix(),
    }
    if number:
        mode = "finetune" if values.get("fit_head") else "update"
        values |= {"train_mode": mode, "pretrained_path": root.as_posix(), "pretrained_file": loop.folder.served.name}
    return values


def read_list(file: Path, class_names: tuple[str, ...]) -> dict[str, str]:
    """Return the class of each image of a list of the loop's, in its order. Raises ProjectError."""
    found = {}
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ProjectError(f"{file}: it cannot be read ({error}); bring back what the loop wrote") from error
    for number, line in enumerate(lines, 1):
        image, separator, label = line.rpartition(SEPARATOR)
        if not separator or not label.strip().isdecimal() or int(label) >= len(class_names):
            hint = f"write IMAGE{SEPARATOR}LABEL with a label from 0 to {len(class_names) - 1}"
            raise ProjectError(f'{file}:{number}: "{line}" is no image with its label; {hint}')
        found[image] = class_names[int(label)]
    return found


def held_back(loop: Loop) -> set[str]:
    """Return the images that judge nets: none of them is ever trained on. Raises ProjectError."""
    lists = [HELD_OUT, VALIDATION, *(file.name for file in loop.folder.lists.glob("calibration*.txt"))]
    return {image for name in lists for image in loop.read_labels(name)}


def unlabelled(loop: Loop, number: int) -> list[str]:
    """Return the images that came in up to a round and have no label, nor were passed over by a person."""
    came: dict[str, None] = {}
    known = held_back(loop) | set(loop.read_labels(LABELLED))
    for each in range(1, number + 1):
        results = loop.folder.results(each)
        came |= dict.fromkeys(results.get(Step.TAKE_IN, {}).get("images", ()))
        known |= set(results.get(Step.LABEL, {}).get("without_label", ()))
    return [image for image in came if image not in known]
