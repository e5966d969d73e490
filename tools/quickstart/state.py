"""What a quickstart has done in its folder: a second run goes on with it, and never writes over another one's."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.atomic_io import write_atomic
from common.errors import UserError
from tools.datasets.make_lists import Images

FILE = "quickstart.json"
LOCK = ".quickstart.lock"
ELSEWHERE = "choose another --out"
WHAT = {"images": "of other images", "files": "of other files in this folder", "config": "by another recipe", "set": ""}


class QuickstartError(UserError):
    """What keeps a quickstart from going on; the message is one sentence for the user."""


@dataclass
class State:
    """The folder's inputs, by name, and the results of the steps that are done, by step."""

    folder: Path
    inputs: dict[str, Any]
    done: dict[str, dict[str, Any]] = field(default_factory=dict)

    def finish(self, step: str, results: dict[str, Any]) -> None:
        """Note a step's results, in the file too. Raises OSError."""
        self.done[step] = results
        self._write()

    def begin(self) -> None:
        """Write the file unless it is there: by it the folder is known as a quickstart's. Raises OSError."""
        if not (self.folder / FILE).exists():
            self._write()

    def _write(self) -> None:
        text = json.dumps({"inputs": self.inputs, "done": self.done}, ensure_ascii=False, indent=1)
        write_atomic(self.folder / FILE, text + "\n")


def inputs_of(folder: str, images: Images, config: str, overrides: list[str]) -> dict[str, Any]:
    """Return what decides the results: the images by a checksum of their names, the recipe, and its overrides."""
    names = json.dumps([images.class_names, images.entries], ensure_ascii=False)
    return {
        "images": str(Path(folder).resolve()),
        "files": hashlib.sha256(names.encode()).hexdigest(),
        "config": config,
        "set": overrides,
    }


def open_state(folder: Path, inputs: dict[str, Any]) -> State:
    """Return what was done in a folder; nothing in a new or empty one.

    Raises QuickstartError for a folder of anything else, or of other inputs.
    """
    file = folder / FILE
    if not file.exists():
        if folder.exists() and (not folder.is_dir() or any(path.name != LOCK for path in folder.iterdir())):
            raise QuickstartError(f"{folder}: it is not empty, and not a quickstart's; {ELSEWHERE}")
        return State(folder, inputs)
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        before, done = dict(values["inputs"]), dict(values["done"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise QuickstartError(f"{file}: it cannot be read; {ELSEWHERE}, or remove this folder") from error
    for name, what in WHAT.items():
        if before.get(name) != inputs[name]:
            shown = "" if name == "files" else f" ({_text(before.get(name))}, now {_text(inputs[name])})"
            raise QuickstartError(f"{folder}: it holds the results {what or 'with other --set'}{shown}; {ELSEWHERE}")
    return State(folder, inputs, done)


def _text(value: Any) -> str:
    return (" ".join(value) or "none") if isinstance(value, list) else str(value)
