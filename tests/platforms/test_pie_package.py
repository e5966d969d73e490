"""The package for the platform works by itself, in another folder and without this project."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from platforms.pie_engine import cli

IMPORTS = (
    "import platforms.pie_engine.hooks, trainers.runner, deploy.export.exporter, trainers.reporting.report; "
    "import train; from aiUtils import aiUtils; print(aiUtils.s3GetImg.__module__, trainers.runner.__file__)"
)


def without_this_project() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def test_a_package_works_by_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "package"
    assert cli.main(["--make_package", str(folder)]) == 0
    assert "python train.py in it reads traincfg.json" in capsys.readouterr().out
    names = {path.name for path in folder.iterdir()}
    assert {"train.py", "requirements.txt", "platforms", "trainers"} <= names and not names & {"tests", "tools", "docs"}
    requirements = (folder / "requirements.txt").read_text(encoding="utf-8")
    assert "boto3==" in requirements and "torch==" in requirements and "pytest" not in requirements
    assert not list(folder.rglob("*.pyc"))

    (folder / "traincfg.json").write_text(json.dumps({"training_id": "7", "epochs": 0}), encoding="utf-8")
    result = subprocess.run(
        [sys.executable, "train.py"], cwd=folder, env=without_this_project(), capture_output=True, text=True
    )
    assert result.returncode == 2 and result.stdout == "" and "epochs must be a whole number" in result.stderr
    assert json.loads((folder / "output/trainlog.json").read_text(encoding="utf-8"))["training_id"] == "7"
    assert cli.main(["--make_package", str(folder)]) == 2
    assert "the folder is not empty; name a new one" in capsys.readouterr().err


@pytest.mark.slow
def test_a_package_holds_all_that_is_imported(tmp_path: Path) -> None:
    folder = tmp_path / "package"
    assert cli.main(["--make_package", str(folder)]) == 0
    command, env = [sys.executable, "-c", IMPORTS], without_this_project()
    result = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert result.stdout == f"platforms.pie_engine.access {folder}/trainers/runner.py\n", result.stderr
