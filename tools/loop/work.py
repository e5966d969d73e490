"""What every task of the loop works with: the project, the folders, what the server was asked for, and a result."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.atomic_io import writing
from common.formatting import counted
from common.paths import ROOT
from data_loader.packs import find_pack
from data_loader.remote_packs import local_pattern
from datasets.files import ANNOTATION
from datasets.unpacking import Unpacked, pack_key, unpack
from projects.book import Book
from projects.data import pattern_of
from projects.errors import ProjectError
from projects.models import Data, Project, Run
from projects.round_folder import CLASSES, write_list
from tools.child_programs import run_logged

IMAGES, LIST, LOG = "images", "list.txt", "log.txt"
LABELS = "annotation_label"  # what label/start writes, with a number where there are several
CPU = "-1"  # of --gpu-id


@dataclass(frozen=True)
class Options:
    """What the server was asked for."""

    root: Path
    target_risk: float
    gate: str
    gpu_id: str = ""


@dataclass(frozen=True)
class Done:
    """What a task did and why; `values` go into its decision, `change` changes the project together with it."""

    did: str
    because: str
    values: dict[str, Any] = field(default_factory=dict)
    change: Callable[[Project], None] = lambda project: None


@dataclass(frozen=True)
class Work:
    """A project under the loop."""

    book: Book
    name: str
    options: Options

    @property
    def folder(self) -> Path:
        """Return the project's folder in root."""
        return self.options.root.absolute() / self.name

    @property
    def device(self) -> tuple[str, ...]:
        """Return the flags by which our programs are told where to run."""
        return ("--device", "cpu") if self.options.gpu_id == CPU else ()

    def project(self) -> Project:
        """Return the project as it is now. Raises ProjectError."""
        return self.book.read(self.name)

    def batch(self, data: Data) -> Path:
        """Return the folder of a batch without labels."""
        key = hashlib.sha256(data.address.encode()).hexdigest()[:8]
        return self.folder / "dataset" / "unlabel" / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', data.tag)}-{key}"

    def label_file(self, task: str) -> Path | None:
        """Return the newest file of labels that a person has finished in a task, None where there is none."""
        places = [self.folder / "label" / task, self.folder / "activelearning" / task]
        files = [file for place in places for file in place.glob(f"{LABELS}*.json")]
        return max(files, key=lambda file: (file.stat().st_mtime_ns, file.name), default=None)

    def finished(self) -> set[str]:
        """Return the label tasks that people have finished."""
        tasks = {path.parent.name for path in (self.folder / "activelearning").glob(f"*/{ANNOTATION}")}
        return {task for task in tasks if self.label_file(task) is not None}

    def run(self, log: Path, *arguments: object, may_end_with: tuple[int, ...] = (0,)) -> tuple[int, str]:
        """Run one of our programs, as `run_logged`."""
        with writing(log):
            log.parent.mkdir(parents=True, exist_ok=True)
        return run_logged(log, *arguments, may_end_with=may_end_with)

    def main_of(self, run: Run) -> Path:
        """Return the program of a run's experiment, which lies in the current folder. Raises ProjectError."""
        main = Path(run.exp) / "main.py"
        if not main.is_file():
            raise ProjectError(f"{main}: the experiment is not here (current folder {Path.cwd()})")
        return main

    def pattern(self, data: Data) -> str:
        """Return the pattern of data on the disk; those at an address are fetched. Raises ListError."""
        return local_pattern(pattern_of(data.address), str(self.folder / "dataset"))

    def listed(self, kind: str, data: Data) -> Path:
        """Return a list of labelled images of the project, unpacked where they are not yet. Raises UserError."""
        pattern = self.pattern(data)
        folder = self.folder / "dataset" / kind / pack_key(find_pack(pattern))
        if not (folder / LIST).is_file():
            with writing(folder):
                found = unpack(pattern, folder / IMAGES, needs_label=True)
                check_whole(found, data.address)
                (folder / CLASSES).write_text("".join(f"{name}\n" for name in found.category), encoding="utf-8")
            labels = {f"{IMAGES}/{image}": found.category[label] for image, label in found.labels.items()}
            write_list(folder / LIST, labels, found.category)
        return folder / LIST

    def known(self, apart: Path) -> set[str]:
        """Return the checksums of all images that the loop has seen, without those of one folder."""
        places = [path for path in (self.folder / "dataset").glob(f"*/*/{IMAGES}") if path.parent != apart]
        return {file.stem for place in places for file in place.iterdir()}


def check_whole(found: Unpacked, address: str) -> None:
    """Raise ProjectError for labelled data with images that cannot be read, or without class names."""
    if found.unreadable:
        what = counted(len(found.unreadable), "image")
        raise ProjectError(f"{address}: {what} cannot be read, the first: {found.unreadable[0]}")
    if not found.category:
        raise ProjectError(f"{address}: its meta.json names no classes; pack it with package/tfrecord")


def program(name: str) -> Path:
    """Return one of the programs of the project's root."""
    return ROOT / name
