"""A job: a run of an experiment somewhere else, and the files that it is sent beside the code."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from common.formatting import parse_json
from projects.errors import ProjectError
from projects.models import Part
from projects.submitters import Address

FILE, SCRIPT, SETUP, LOG = "job.json", "job.sh", "setup.sh", "log.txt"
CONFIG, START = "config.json", "start.pth"  # of --config and --checkpoint
SLURM, MANIFEST = "slurm.sh", "job.yaml"
LOCK = ".runner.lock"  # held by the training
RECORD, CHANGES = "code.json", "changes.patch"
CODE, TRAINER = "code", "trainer"  # folders of a job: the user's repository, and what it runs on
LATEST = "output/checkpoint/latest.pth"  # of the experiment's folder in the job's
Method = Literal["ssh", "local", "slurm", "script", "kubernetes", "skypilot"]


class Job(Part):
    """A run somewhere else; `folder` is its folder there, `words` the flags of the experiment's main.py.

    `place` is the experiment's folder in the code; `memory` is in MB, 0 for what is not asked for.
    """

    project: str
    exp: str
    id: str
    method: Method
    place: str
    words: list[str]
    folder: str
    gpus: int = Field(default=0, ge=0)
    cpus: int = Field(default=0, ge=0)
    memory: int = Field(default=0, ge=0)
    image: str = ""
    address: Address | None = None
    handle: str = ""

    @property
    def name(self) -> str:
        """Return a name for container, SLURM, cluster and manifest: lower case letters, digits and "-", at most 43."""
        text = f"{self.exp[:20]}-{self.id[:22]}".lower()
        return "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in text).strip("-")

    def text(self) -> str:
        """Return the job as JSON."""
        return json.dumps(self.model_dump(), ensure_ascii=False, indent=1) + "\n"


def read_job(folder: Path) -> Job:
    """Return the job of a run's folder. Raises ProjectError."""
    try:
        return Job.model_validate(parse_json((folder / FILE).read_text(encoding="utf-8")))
    except OSError as error:
        raise ProjectError(f"{folder / FILE}: cannot read it: {error.strerror}") from error
    except (ValidationError, ValueError, RecursionError) as error:
        raise ProjectError(f"{folder / FILE}: it is no job's file: {error}") from error


def job_script(python: str = "python3") -> str:
    """Return the script that runs a job where its folder lies: `sh job.sh`."""
    return f"""#!/bin/sh
# Runs the job of this folder, and goes on from its last checkpoint where there is one: sh {SCRIPT}
folder=$(cd "$(dirname "$0")" && pwd) || exit 1
[ ! -f "$folder/{SETUP}" ] || . "$folder/{SETUP}"
cd "$folder" || exit 1
PYTHONPATH="$folder/{TRAINER}${{PYTHONPATH:+:$PYTHONPATH}}"
export PYTHONPATH
: "${{PYTHON:={python}}}"
if ! "$PYTHON" -m tools.projects.runner --help > /dev/null; then
    echo "{SCRIPT}: $PYTHON cannot run the trainer; set PYTHON or activate an environment in the submitter's script" >&2
    printf '{{"state": "stop", "exit_code": 1, "host": "", "pid": 0, "time": %s}}\\n' "$(date +%s)" > state.json
    touch STOP
    exit 1
fi
exec "$PYTHON" -m tools.projects.runner "$folder"
"""


def launch_command(job: Job) -> str:
    """Return the line of sh that runs a job in its folder: unprivileged in a container, where it has an image.

    The container sees the folder two levels above by its own path, and so data beside the projects.
    """
    if not job.image or job.method not in ("ssh", "local", "slurm"):
        return f"sh {SCRIPT}"
    asked = {"gpus": job.gpus, "cpus": job.cpus, "memory": f"{job.memory}m" if job.memory else 0}
    limits = "".join(f" --{flag} {value}" for flag, value in asked.items() if value)
    seen = '--user "$(id -u):$(id -g)" --env HOME="$PWD" --volume "$(cd ../.. && pwd):$(cd ../.. && pwd)"'
    return (
        f"docker run --rm --init --name {job.name} --shm-size 8g{limits} {seen} "
        f'--workdir "$PWD" {shlex.quote(job.image)} sh {SCRIPT}'
    )


def slurm_script(job: Job) -> str:
    """Return what sbatch is given: a job that saves before its time ends, queues itself again, and goes on."""
    asked = {"gpus-per-node": job.gpus, "cpus-per-task": job.cpus, "mem": f"{job.memory}M" if job.memory else 0}
    lines = [f"#SBATCH --{name}={value}" for name, value in asked.items() if value]
    limits = "".join(f"{line}\n" for line in lines)
    return f"""#!/bin/bash
#SBATCH --job-name={job.name}
#SBATCH --nodes=1
#SBATCH --ntasks=1
{limits}#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm.txt
cd {shlex.quote(job.folder)} || exit 1
warned=
trap 'warned=yes; kill -USR1 "$job"' USR1    # two minutes before the end: the training saves and leaves
trap 'kill -TERM "$job"' TERM
{launch_command(job)} &
job=$!
while :; do    # a signal ends wait, too
    wait "$job"; code=$?
    kill -0 "$job" 2>/dev/null || break
done
if [ -n "$warned" ] && [ "$code" -ne 0 ]; then    # 0: it finished just then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""
