"""The lines that run a job: in a container as asked, on any path, and what a job says that cannot start."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from projects.errors import ProjectError
from projects.jobs import Job, job_script, launch_command, read_job
from tests.helpers.jobs import write_program


def job(**changes: Any) -> Job:
    values = {"project": "birds", "exp": "small", "id": "1", "method": "ssh", "place": ".", "words": [], "folder": "f"}
    return Job.model_validate({**values, **changes})


def test_a_container_gets_what_is_asked_and_no_more(tmp_path: Path) -> None:
    folder = tmp_path / "my jobs/birds/1"
    folder.mkdir(parents=True)
    write_program(tmp_path / "bin/docker", f'printf "%s\\n" "$@" > {tmp_path}/asked')
    environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    line = launch_command(job(image="t:1", gpus=2, cpus=4, memory=8000))
    subprocess.run(["sh", "-c", line], cwd=folder, env=environment, check=True)
    asked = (tmp_path / "asked").read_text(encoding="utf-8").splitlines()
    base, user = tmp_path / "my jobs", f"{os.getuid()}:{os.getgid()}"
    limits = ["--gpus", "2", "--cpus", "4", "--memory", "8000m"]
    assert asked == [
        *["run", "--rm", "--init", "--name", "small-1", "--shm-size", "8g", *limits],
        *["--user", user, "--env", f"HOME={folder}", "--volume", f"{base}:{base}", "--workdir", str(folder)],
        *["t:1", "sh", "job.sh"],
    ]
    assert launch_command(job()) == "sh job.sh" == launch_command(job(image="t:1", method="kubernetes"))


@pytest.mark.parametrize("setup", ["", "export PYTHON=false\n"])
def test_a_job_that_cannot_start_has_stopped(tmp_path: Path, setup: str) -> None:
    (tmp_path / "job.sh").write_text(job_script("false" if not setup else "python3"), encoding="utf-8")
    if setup:
        (tmp_path / "setup.sh").write_text(setup, encoding="utf-8")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHON"}
    done = subprocess.run(["sh", "job.sh"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and "job.sh: false cannot run the trainer; set PYTHON or activate" in done.stderr
    state = json.loads((tmp_path / "state.json").read_text(encoding="utf-8"))
    assert (state["state"], state["exit_code"]) == ("stop", 1) and (tmp_path / "STOP").is_file()


def test_a_jobs_file_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text('{"project": 1}', encoding="utf-8")
    with pytest.raises(ProjectError, match="it is no job's file: "):
        read_job(tmp_path)
    (tmp_path / "job.json").write_text(job().text(), encoding="utf-8")
    assert read_job(tmp_path) == job()
