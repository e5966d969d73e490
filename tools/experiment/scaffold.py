"""A new experiment: a folder to change, with a main program of a few lines, and the files beside it."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from string import Template

from common.atomic_io import move_into_place, temporary_path, write_atomic, writing
from common.errors import UserError
from common.paths import ROOT

TREE = Path(__file__).with_name("tree")
FOLDER, TEMPLATE = "experiment", ".in"  # the experiment's own folder in TREE; the ending of what has $names
RECIPE, NET = ROOT / "configs/cifar10_wrn_config.json", ROOT / "nets/wide_resnet_module.py"
MODULE = "wideres"
DATA = "cifar-10-binary"  # where the archive of that name is unpacked
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")


class ScaffoldError(UserError):
    """An experiment that cannot be created; the message is one sentence for the user."""


def check_name(name: str, flag: str = "--name") -> str:
    """Return the name of an experiment. Raises ScaffoldError for one that could not be a folder's everywhere."""
    if not NAME.fullmatch(name):
        raise ScaffoldError(f'{flag} must begin with a letter and have letters, digits, - and _ only, got "{name}"')
    return name


def create_experiment(name: str, target: Path) -> list[Path]:
    """Write the experiment's folder and the files beside it that are not there yet; return what was written.

    The folder gets its name when it is whole. Raises ScaffoldError, ResultsError.
    """
    folder = target / check_name(name)
    if folder.exists():
        raise ScaffoldError(f"{folder}: it is there already; choose another --name or --tgt")
    values = {"name": name, "trainer": repr(str(ROOT)), "trainer_sh": shlex.quote(str(ROOT))}
    temporary, written = temporary_path(folder), [folder]
    with writing(folder):
        try:
            for source in sorted(path for path in TREE.rglob("*") if path.suffix in (".in", ".py", ".txt")):
                inside, *rest = source.relative_to(TREE).parts
                place = temporary.joinpath(*rest) if inside == FOLDER else target / inside
                text = source.read_text(encoding="utf-8")
                if source.suffix == TEMPLATE:
                    place, text = place.with_suffix(""), Template(text).substitute(values)
                if inside != FOLDER and place.exists():
                    continue
                place.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(place, text)
                place.chmod(0o755 if place.suffix == ".sh" else 0o644)
                written += [] if inside == FOLDER else [place]
            _write_recipe(temporary)
            move_into_place(temporary, folder, durable=False)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return written


def _write_recipe(folder: Path) -> None:
    """Write the config of CIFAR-10 with the net of its own, and that net."""
    values = json.loads(RECIPE.read_text(encoding="utf-8"))
    for key in ("$schema", "save_path", "save_name", "gpu_id"):  # the program's flags say them
        values.pop(key)
    values["model_module_name"] = MODULE
    values |= {f"{split}_data_root_dir": f"{DATA}/{part}" for split, part in (("train", "train"), ("val", "test"))}
    for name, text in (
        ("configs/config.json", json.dumps(values, indent=2) + "\n"),
        (f"models/{MODULE}.py", NET.read_text(encoding="utf-8")),
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        write_atomic(folder / name, text)
