"""The separate environment of the peers, made on request, with the project's own torch."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import venv
from pathlib import Path

from common.errors import BenchmarkError
from common.paths import ROOT

REQUIREMENTS = ROOT / "tools" / "peers.txt"
DEFAULT_PEERS = "logs/peers"
MARK = "project.pth"


def make_peers(folder: Path) -> None:
    """Make the environment, about 100 MB. Raises BenchmarkError.

    A .pth file adds the project's packages: both sides then run on the same torch, and 5 GB are saved. Its own packages
    come first, are pinned, and are installed without their requirements, so that nothing replaces the project's.
    """
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        raise BenchmarkError("torch is not installed here: make setup")
    if folder.exists() and any(folder.iterdir()) and not (folder / "pyvenv.cfg").is_file():
        raise BenchmarkError(f"{folder}: the folder holds other files; choose another one for the peers")
    venv.create(folder, with_pip=True, clear=True, symlinks=sys.platform != "win32")
    python = str(_python_in(folder))
    query = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = subprocess.run([python, "-c", query], capture_output=True, text=True, check=True).stdout.strip()
    Path(packages, MARK).write_text(f"{Path(found.origin).parent.parent}\n", encoding="utf-8")
    command = [python, "-m", "pip", "install", "--disable-pip-version-check", "-q", "--no-deps"]
    if subprocess.run([*command, "-r", str(REQUIREMENTS)]).returncode:
        name = REQUIREMENTS.relative_to(ROOT)
        raise BenchmarkError(f"{folder}: pip could not install {name}; see its messages above")


def peer_python(folder: Path) -> str:
    """Return the Python of the peers' environment. Raises BenchmarkError."""
    python = _python_in(folder)
    if not python.exists():
        hint = f"make it with python -m tools.benchmark --make_peers {folder}"
        raise BenchmarkError(f"{folder}: no environment of the peers there; {hint}")
    return str(python)


def peer_versions(python: str, package: str) -> dict[str, str]:
    """Return the version of one of the peers, by its name."""
    query = f"from importlib.metadata import version; print(version('{package}'))"
    output = subprocess.run([python, "-c", query], capture_output=True, text=True, check=True).stdout
    return {package: output.strip()}


def _python_in(folder: Path) -> Path:
    return folder / "Scripts" / "python.exe" if sys.platform == "win32" else folder / "bin" / "python"
