"""All programs behind one name: `trainer train`, `trainer infer`, ..., where `pip install .` has installed it."""

from __future__ import annotations

import pkgutil
import sys
from collections.abc import Sequence
from pathlib import Path

PROGRAMS = {  # by name: the function that takes the arguments and returns the exit code, and what it does
    "train": ("train:main", "train a config"),
    "infer": ("inference:main", "predict for an image or a folder"),
    "batch": (
        "deploy.batch.__main__:main",
        "the same in parts, which go on when they are killed",
    ),
    "merge": ("deploy.batch.merge:main", "merge the parts that infer --shard I/N left"),
    "uncertain": ("inference_uncertain:main", "the same with uncertainty; calibrate, and evaluate a calibration"),
    "export": ("deploy.export.__main__:main", "write a net in other formats, each verified"),
    "serve": ("deploy.service.launcher:main", "predict over HTTP"),
    "doctor": ("tools.doctor.__main__:main", "examine a training's data and config before it begins"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one of PROGRAMS with the arguments behind its name, and return its exit code; 2 for any other name."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments[0] if arguments else ""
    folder = str(Path(__file__).resolve().parent)
    if folder not in sys.path:  # first, as for a script: of packages with our names only ours are meant
        sys.path.insert(0, folder)
    if name in PROGRAMS:
        code: int = pkgutil.resolve_name(PROGRAMS[name][0])(arguments[1:])
        return code
    if name == "--version":
        from common.version import VERSION

        print(VERSION)
        return 0
    is_help = name in ("", "-h", "--help")
    lines = (f"  {name:<10} {text}" for name, (_, text) in PROGRAMS.items())
    usage = "\n".join(("usage: trainer PROGRAM [ARGUMENTS], or trainer --version", "", *lines))
    if is_help:
        print(usage)
        return 0
    print(f'trainer: there is no program "{name}": {", ".join(PROGRAMS)}', file=sys.stderr)
    return 2


if __name__ == "__main__":
    raise SystemExit(main())
