"""The folder that is uploaded to the platform as a script package."""

from __future__ import annotations

import shutil
from pathlib import Path

from common.atomic_io import ResultsError, check_folder
from common.paths import ROOT
from platforms.base import PlatformError, write_text

PACKAGES = (
    *("artifacts", "common", "configs", "data_loader", "deploy", "nets", "platforms", "pytorch2json", "trainers"),
    "visualization",
)
LEFT_OUT = ("__pycache__", "*.pyc", ".*", "*.tmp")
CHECKS = "# Checks"  # where the packages begin that tests need
PROGRAM = '''"""Train as the PIE-Engine platform asks for it: traincfg.json in this folder, output/ beside it."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent / "platforms" / "compat"))  # aiUtils, where the platform has none

from platforms.pie_engine.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
'''


def make_package(folder: Path) -> int:
    """Write the package into a new or empty folder; return 0. Raises PlatformError, ResultsError."""
    check_folder(folder)
    if folder.is_dir() and any(folder.iterdir()):
        raise PlatformError(f"--make_package {folder}: the folder is not empty; name a new one")
    try:
        for name in PACKAGES:
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns(*LEFT_OUT))
        for name in ("LICENSE", "README.md"):
            if (ROOT / name).is_file():
                shutil.copyfile(ROOT / name, folder / name)
    except OSError as error:
        raise ResultsError(f"{error.filename or folder}: cannot write it: {error.strerror or error}") from error
    needed, extra = (ROOT / name for name in ("requirements.txt", "requirements-pie.txt"))
    lines = needed.read_text(encoding="utf-8").partition(CHECKS)[0].rstrip()
    write_text(folder / "requirements.txt", f"{lines}\n{extra.read_text(encoding='utf-8')}")
    write_text(folder / "train.py", PROGRAM)
    files = sum(path.is_file() for path in folder.rglob("*"))
    print(f"{folder}: {files} files; python train.py in it reads traincfg.json and writes output/")
    return 0
