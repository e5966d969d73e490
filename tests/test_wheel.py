"""The wheel: built from what git tracks, installed into a folder of its own, and run from yet another one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import trainer
from common.paths import ROOT
from common.version import VERSION
from tests.helpers.exported import TinyNet, build_metadata, example_of, paint, write_onnx

OFFLINE = ("--quiet", "--no-deps", "--no-index", "--disable-pip-version-check")


def tracked() -> list[str]:
    """Return the files that git tracks, or would."""
    command = ["git", "ls-files", "-co", "--exclude-standard"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listing.returncode:
        pytest.skip("not a git checkout")
    return [name for name in listing.stdout.splitlines() if (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    for name in tracked():
        target = folder / "source" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, target)
    pip = [sys.executable, "-m", "pip", "wheel", *OFFLINE, "--no-build-isolation", "-w", str(folder), "./source"]
    subprocess.run(pip, check=True, cwd=folder)
    (found,) = folder.glob("*.whl")
    return found


@pytest.mark.slow  # it builds and installs a wheel
def test_the_wheel_holds_every_program_and_data_file(wheel: Path) -> None:
    assert wheel.name == f"classic_trainer-{VERSION}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        info = f"classic_trainer-{VERSION}.dist-info"
        about = archive.read(f"{info}/METADATA").decode()
        assert archive.read(f"{info}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
    left_out = ("tests/", "docs/", "findings/", ".ci/")
    alone = {"setup.py", "pyproject.toml", "Makefile", "LICENSE", "requirements.lock", ".gitignore", ".dockerignore"}
    wanted = {
        f"classic_trainer/{name}"
        for name in tracked()
        if not name.startswith(left_out) and name not in alone and not name.endswith((".md", "Containerfile"))
    }
    assert wanted - names == set() and len(wanted) > 500
    assert {name.split("/")[0] for name in names} == {"classic_trainer", info}  # nothing else at the top
    assert "\nLicense-Expression: Apache-2.0\n" in about and "\nLicense-File: LICENSE\n" in about
    assert "\nRequires-Dist: torch==" in about and "Requires-Dist: pytest" not in about


@pytest.mark.slow  # it builds and installs a wheel
def test_trainer_runs_from_any_folder(wheel: Path, tmp_path: Path) -> None:
    site, images = tmp_path / "site", tmp_path / "images"
    subprocess.run([sys.executable, "-m", "pip", "install", *OFFLINE, "--target", str(site), str(wheel)], check=True)
    metadata = build_metadata()
    write_onnx(TinyNet().eval(), tmp_path / "tiny.onnx", metadata, example_of(metadata))
    paint(images / "a.png", 1, 0)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(site / "bin" / "trainer"), *arguments]
        return subprocess.run(
            command, cwd=tmp_path, env=environment | {"PYTHONPATH": str(site)}, capture_output=True, text=True
        )

    assert run("--version").stdout == f"{VERSION}\n"
    done = run("infer", "--weights", "tiny.onnx", "--image_dir", "images", "--output", "found.csv")
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert (tmp_path / "found.csv").read_text(encoding="utf-8").splitlines()[1].startswith("images/a.png,")
    for program in trainer.PROGRAMS:
        done = run(program, "--help")
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert run("serve", "--weights", "none.onnx").returncode == 2


def test_trainer_names_its_programs(capsys: pytest.CaptureFixture[str]) -> None:
    assert trainer.main([]) == trainer.main(["--help"]) == 0
    usage = capsys.readouterr().out
    assert all(f"  {name} " in usage for name in trainer.PROGRAMS)
    assert trainer.main(["tain"]) == 2
    assert capsys.readouterr().err == (
        'trainer: there is no program "tain": train, infer, batch, merge, uncertain, export, serve, doctor\n'
    )
