"""The projects of a folder: `NAME.json`, and each state before it in `NAME.history.jsonl`.

One command at a time changes a project. The state before is in the history, on the disk, before the new one takes its
place: a kill between any two writes loses nothing.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from common.atomic_io import sync_folder, write_atomic, writing
from common.file_lock import lock_file
from common.formatting import did_you_mean, is_utf8, parse_json, short_json
from data_loader.image_files import natural_sorted
from projects.errors import ProjectError
from projects.models import Project

HOME = Path("runs/projects")
HISTORY = ".history.jsonl"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
WAIT_S = 10.0  # for another command, which writes a few kilobytes
SHOWN = 20  # mistakes


class Book:
    """The projects of a folder, which need not be there yet."""

    def __init__(self, home: Path = HOME) -> None:
        self.home = home

    def names(self) -> list[str]:
        """Return the projects' names in natural order."""
        return natural_sorted(path.stem for path in self.home.glob("*.json") if NAME.fullmatch(path.stem))

    def name_of(self, name: str | None) -> str:
        """Return the name of a project that is there; the only one's where none is named. Raises ProjectError."""
        names = self.names()
        if name is None:
            if len(names) == 1:
                return names[0]
            found = f"there are {', '.join(names)}" if names else "there is none yet: create project --git URL"
            raise ProjectError(f"{self.home}: name a project with --project; {found}")
        if name not in names:
            hint = did_you_mean(name, names) or (f"; there are {', '.join(names)}" if names else "; there is none yet")
            raise ProjectError(f'{self.home}: no project "{name}"{hint}')
        return name

    def read(self, name: str) -> Project:
        """Return a project that is there. Raises ProjectError."""
        return self._parsed(name, _read(self._path(name)))

    def create(self, project: Project) -> Path:
        """Write a new project; return its path. Raises ProjectError, ResultsError."""
        path = self._path(project.name)
        with self._alone(project.name):
            if path.exists():
                raise ProjectError(f"{path}: the project is there already; choose another --name")
            with writing(path):
                write_atomic(path, _text(project))
        return path

    @contextmanager
    def changing(self, name: str) -> Iterator[Project]:
        """Yield a project, and write what became of it when the block ends without an error.

        Raises ProjectError, ResultsError.
        """
        path = self._path(name)
        with self._alone(name):
            before = _read(path)
            project = self._parsed(name, before)
            yield project
            after = _text(project)
            if after != before:
                with writing(path):
                    append_state(self._history(name), before)
                    write_atomic(path, after)

    def history(self, name: str) -> list[dict[str, Any]]:
        """Return the states before the present one, the oldest first. Raises OSError."""
        path = self._history(name)
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith(b"\n")]

    def _path(self, name: str) -> Path:
        return self.home / f"{name}.json"

    def _history(self, name: str) -> Path:
        return self.home / f"{name}{HISTORY}"

    def _parsed(self, name: str, text: str) -> Project:
        """Return the project of its file's text. Raises ProjectError, which says where the state before is."""
        try:
            return parse_project(self._path(name), text)
        except ProjectError as error:
            if not self._history(name).exists():
                raise
            raise ProjectError(f"{error}\nthe last line of {self._history(name)} is the state before") from error

    @contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        if not NAME.fullmatch(name):
            hint = 'use letters, digits, ".", "-" and "_", and begin with a letter or digit'
            raise ProjectError(f'"{name}" can be no project\'s name; {hint}')
        with writing(self.home):
            self.home.mkdir(parents=True, exist_ok=True)
        end = time.monotonic() + WAIT_S
        with ExitStack() as stack:
            while True:
                try:
                    stack.enter_context(lock_file(self.home / f".{name}.lock"))
                    break
                except BlockingIOError:
                    if time.monotonic() > end:
                        raise ProjectError(f"{self._path(name)}: another command is writing it; try again") from None
                time.sleep(0.05)
            yield


def parse_project(path: Path, text: str) -> Project:
    """Return the project of a file's text. Raises ProjectError with the file's mistakes, the first 20."""
    try:
        return Project.model_validate(parse_json(text))
    except ValidationError as error:
        raise ProjectError(mistakes(str(path), error)) from error
    except (ValueError, RecursionError) as error:
        raise ProjectError(f"{path}: not JSON: {error}") from error


def mistakes(where: str, error: ValidationError) -> str:
    """Return what is wrong with a file's values, a sentence a line."""
    found = error.errors()
    lines = [
        f"{where}: {'.'.join(map(str, row['loc']))}: {row['msg'].lower()}, got {short_json(row['input'])}"
        for row in found[:SHOWN]
    ]
    return "\n".join([*lines, *([f"... and {len(found) - SHOWN} more"] if len(found) > SHOWN else [])])


def append_state(path: Path, text: str) -> None:
    """Append a state as one line, through to the disk, unless it is the last one already. Raises OSError.

    A line that a killed command has left half written is cut off.
    """
    line = json.dumps(json.loads(text), ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
    is_new = not path.exists()
    with path.open("ab") as file:
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        os.ftruncate(file.fileno(), len(whole))
        if whole[whole[:-1].rfind(b"\n") + 1 :] != line:  # else a command was killed before it wrote the new state
            file.write(line)
            file.flush()
        os.fsync(file.fileno())
    if is_new:
        sync_folder(path.parent)


def check_known(name: str, known: Sequence[str], what: str, where: str) -> str:
    """Return a name that is among those known. Raises ProjectError, which names the nearest."""
    if name not in known:
        hint = did_you_mean(name, known) or (f"; there are {', '.join(known)}" if known else "; there is none yet")
        raise ProjectError(f'{where}: no {what} "{name}"{hint}')
    return name


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ProjectError(f"{path}: cannot read it: {getattr(error, 'strerror', None) or 'not UTF-8'}") from error


def _text(project: Project) -> str:
    """Return the text of a project's file. Raises ProjectError for a value that UTF-8 does not have."""
    text = json.dumps(project.values(), ensure_ascii=False, indent=1) + "\n"
    if not is_utf8(text):
        raise ProjectError(f"{project.name}: a name or address is not UTF-8; give it in UTF-8")
    return text
