"""A job's folder on its machine: placed, started, looked at, stopped, and its results brought back."""

from __future__ import annotations

import json
import shlex
import tarfile
import tempfile
import time
from pathlib import Path, PurePosixPath
from typing import Any

from common.atomic_io import move_into_place, writing
from projects.errors import ProjectError
from projects.jobs import LOCK, LOG, Job, launch_command
from projects.models import FINISHED, STOPPED
from projects.run_state import FILE, MARKS
from projects.shell import Shell

RUNNER = "tools.projects.runner"  # in the arguments of its process
GRACE_S = 120


def place(shell: Shell, folder: str, content: bytes) -> None:
    """Unpack what a job is sent into its folder, which gets its name when it is whole. Raises ProjectError."""
    path = PurePosixPath(folder)
    folder, parent = shlex.quote(folder), shlex.quote(str(path.parent))
    temporary = shlex.quote(str(path.with_name(f".{path.name}.tmp")))
    shell.run(
        f"""set -e
if [ -e {folder} ]; then echo {folder} "is there already" >&2; exit 1; fi
mkdir -p {parent}
rm -rf {temporary}
mkdir {temporary}
tar -xzf - -C {temporary} || {{ rm -rf {temporary}; exit 1; }}
mv {temporary} {folder}""",
        content,
    )


def start(shell: Shell, job: Job) -> None:
    """Start a job whose folder is placed; it goes on when this program and ssh have ended.

    Raises ProjectError, also where a training of it still runs, of a runner that was killed.
    """
    before = f"{FILE} {MARKS[FINISHED]} {MARKS[STOPPED]}"  # of the run before, if it is started again
    shell.run(f"""cd {shlex.quote(job.folder)} || exit 1
if command -v flock > /dev/null && ! flock -w 5 {LOCK} true; then  # it ends just after its state says so
    echo {shlex.quote(job.folder)}": a training of this job is still running" >&2
    exit 1
fi
rm -f {before}
nohup {launch_command(job)} >> {LOG} 2>&1 < /dev/null &""")


def read_remote_state(shell: Shell, job: Job) -> dict[str, Any] | None:
    """Return the content of a job's state.json by the clock of this machine, None where there is none yet.

    Raises ProjectError.
    """
    folder = shlex.quote(job.folder)
    output = shell.run(f"date +%s; [ ! -f {folder}/{FILE} ] || cat {folder}/{FILE}").decode()
    now, _, text = output.partition("\n")
    if not text:
        return None
    try:
        content: dict[str, Any] = json.loads(text)
        content["time"] += time.time() - int(now)
        known = content["state"] in MARKS and isinstance(content["pid"], int)
    except (ValueError, TypeError, KeyError):
        known = False
    if not known:
        raise ProjectError(f"{shell.name}: {job.folder}/{FILE}: it is no job's state")
    return content


def bring_back(shell: Shell, job: Job, folder: Path) -> None:
    """Copy a job's log and results into its folder here, each file whole or not at all.

    Raises ProjectError, ResultsError.
    """
    with writing(folder), tempfile.TemporaryDirectory(dir=folder, prefix=".fetched-") as temporary:
        packed = Path(temporary, "results.tar")
        with packed.open("wb") as file:
            names = f"{LOG} $([ ! -d {shlex.quote(job.exp)}/output ] || echo {shlex.quote(job.exp)}/output)"
            shell.run(f"cd {shlex.quote(job.folder)} && tar -cf - {names}", stdout=file)
        unpacked = Path(temporary, "results")
        try:
            with tarfile.open(packed) as tar:
                tar.extractall(unpacked, filter="data")
        except tarfile.TarError as error:
            raise ProjectError(f"{shell.name}: {job.folder}: its results cannot be unpacked: {error}") from error
        for path in sorted(unpacked.rglob("*")):
            target = folder / path.relative_to(unpacked)
            if path.is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                move_into_place(path, target)


def stop(shell: Shell, job: Job, pid: int) -> None:
    """Send SIGTERM to a job's runner, which saves and leaves; nothing where it runs no more. Raises ProjectError."""
    if job.image and job.method != "skypilot":
        shell.run(f"docker stop --time {GRACE_S} {shlex.quote(job.name)} > /dev/null")
        return
    shell.run(f'case "$(ps -p {pid} -o args=)" in *{RUNNER}*) kill -TERM {pid};; esac')


def follow(shell: Shell, job: Job) -> int:
    """Print a job's log, and what is added to it until it ends; return the exit code."""
    return shell.follow(
        f"""cd {shlex.quote(job.folder)} || exit 1
tail -n +1 -F {LOG} 2>/dev/null & tail=$!
while [ ! -e {MARKS[FINISHED]} ] && [ ! -e {MARKS[STOPPED]} ] && kill -0 $tail 2>/dev/null; do sleep 1; done
sleep 1
kill $tail 2>/dev/null
exit 0"""
    )
