"""The folder of a loop: its images, its lists, the results of its rounds' steps, and its decisions.

Each result is a file that is there whole or not at all, and holds its own decision. decisions.jsonl has the same
decisions, a line each: what a killed process has not written there is added at the next start.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from common.atomic_io import sync_file, write_atomic, writing
from common.formatting import parse_json
from projects.errors import ProjectError
from projects.rounds import Step

SETTINGS, DECISIONS, SERVED = "loop.json", "decisions.jsonl", "served.pth"
CLASSES, LABELLED, VALIDATION, HELD_OUT = "classes.txt", "labelled.txt", "val.txt", "held_out.txt"
TO_LABEL = "to_label"  # of a round: the images that a person is to label
SEPARATOR = "----"
RECALIBRATION = "recalibration"  # of the served net on another list; not a step of a round
OF_DECISION = ("time", "event", "did", "because")

Result = dict[str, Any]


class RoundFolder:
    """The folder of a loop, and the results of its rounds by number."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.images, self.lists, self.served = root / "images", root / "lists", root / SERVED

    @property
    def has_begun(self) -> bool:
        """Whether the settings are there, which are written last of what the loop begins with."""
        return (self.root / SETTINGS).exists()

    def settings(self) -> Result:
        """Return the settings. Raises ProjectError."""
        return read_result(self.root / SETTINGS)

    def write_settings(self, settings: Mapping[str, Any]) -> None:
        """Write the settings. Raises ResultsError."""
        write_result(self.root / SETTINGS, settings)

    def round(self, number: int) -> Path:
        """Return the folder of a round."""
        return self.root / "rounds" / f"{number:03d}"

    def last_round(self) -> int:
        """Return the number of the newest round, 0 at the beginning."""
        folders = (self.root / "rounds").glob("[0-9]*") if self.has_begun else ()
        return max((int(folder.name) for folder in folders if folder.name.isdecimal()), default=0)

    def results(self, number: int) -> dict[Step, Result]:
        """Return the results of a round's steps. Raises ProjectError."""
        files = {step: self.round(number) / f"{step}.json" for step in Step}
        found = {step: read_result(file) for step, file in files.items() if file.exists()}
        for step, result in found.items():
            if missing := [key for key in OF_DECISION if not isinstance(result.get(key), str)]:
                raise ProjectError(f"{files[step]}: it has no {missing[0]}; bring back what the loop wrote")
        return found

    def finish(self, number: int, step: Step | str, event: str, did: str, because: str, **values: Any) -> Result:
        """Write a step's result with its decision, then the decision's line; return it. Raises ResultsError."""
        time = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        result = {"time": time, "event": event, "did": did, "because": because, **values}
        with writing(self.round(number)):
            self.round(number).mkdir(parents=True, exist_ok=True)
        write_result(self.round(number) / f"{step}.json", result)
        self.complete_decisions()
        return result

    def complete_decisions(self) -> None:
        """Write the decisions of all results that have no line yet. Raises ProjectError, ResultsError."""
        file = self.root / DECISIONS
        content = file.read_bytes() if file.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]  # without what a killed process left half written
        known = {(line.get("round"), line.get("step")) for line in map(_parsed_line, whole.splitlines())}
        lines = [
            {"round": number, "step": name} | {key: result[key] for key in OF_DECISION}
            for number in range(self.last_round() + 1)
            for name, result in self._decided(number)
            if (number, name) not in known
        ]
        if not lines and whole == content:
            return
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        with writing(file), file.open("r+b" if content else "wb") as opened:
            opened.truncate(len(whole))
            opened.seek(len(whole))
            opened.write(text.encode())
        with writing(file):
            sync_file(file)

    def _decided(self, number: int) -> list[tuple[str, Result]]:
        """Return the results of a round with their names, the steps in their order."""
        others = sorted(self.round(number).glob(f"{RECALIBRATION}-*.json"))
        steps = [(str(step), result) for step, result in self.results(number).items()]
        return steps + [(file.stem, read_result(file)) for file in others]


def read_result(path: Path) -> Result:
    """Return a JSON object. Raises ProjectError."""
    try:
        found = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ProjectError(f"{path}: it cannot be read ({error}); bring back what the loop wrote") from error
    if not isinstance(found, dict):
        raise ProjectError(f"{path}: expected a JSON object; bring back what the loop wrote")
    return found


def write_result(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON object, whole or not at all. Raises ResultsError."""
    with writing(path):
        write_atomic(path, json.dumps(values, ensure_ascii=False, allow_nan=False, indent=1) + "\n")


def write_list(path: Path, labels: Mapping[str, str], class_names: Iterable[str]) -> None:
    """Write a list of images with their classes, as the trainer reads it. Raises ResultsError."""
    numbers = {name: label for label, name in enumerate(class_names)}
    text = "".join(f"{image}{SEPARATOR}{numbers[name]}\n" for image, name in labels.items())
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, text)


def _parsed_line(line: bytes) -> Mapping[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
