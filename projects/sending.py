"""What a job is sent, planned without doing anything: its code, its files, and how it is submitted."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.formatting import counted, size_text
from projects.code_archive import Code, archive
from projects.engines import launch_words
from projects.errors import ProjectError
from projects.jobs import (
    CHANGES,
    CODE,
    CONFIG,
    FILE,
    MANIFEST,
    RECORD,
    SCRIPT,
    SETUP,
    SLURM,
    START,
    TRAINER,
    Job,
    job_script,
    launch_command,
    slurm_script,
)
from projects.manifests import sky_task, train_job
from projects.submitters import INSTALL, Registered


@dataclass(frozen=True)
class Sent:
    """A job with what it is sent; `files` are those beside the code, by name."""

    job: Job
    code: Code
    trainer: Code
    files: dict[str, bytes] = field(default_factory=dict)

    def pack(self) -> bytes:
        """Return the archive, a tar.gz. Raises ProjectError, OSError."""
        return archive({CODE: self.code, TRAINER: self.trainer}, self.files)

    def record(self) -> dict[str, bytes]:
        """Return the files that are kept here, too."""
        return {name: content for name, content in self.files.items() if name not in (SETUP, START)}


def plan(
    job: Job, code: Code, trainer: Code, registered: Registered, state: tuple[str, str], files: dict[str, Path]
) -> Sent:
    """Return what a job is sent: `state` is branch and commit of the code, `files` are those of --config and such.

    Raises ProjectError for a file that cannot be read, and a method that is not registered.
    """
    record = {
        **{"branch": state[0], "commit": state[1], "changed": list(code.changed)},
        **{"files": len(code.files), "bytes": code.size()},
    }
    shared = job.method in ("local", "slurm", "script")
    texts = {
        FILE: job.text(),
        RECORD: json.dumps(record, ensure_ascii=False, indent=1) + "\n",
        SCRIPT: job_script(sys.executable if shared else "python3"),
    }
    if job.method == "slurm":
        texts[SLURM] = slurm_script(job)
    elif job.method == "kubernetes" and registered.kubernetes:
        texts[MANIFEST] = yaml_text(train_job(job, registered.kubernetes))
    elif job.method == "skypilot" and registered.skypilot:
        texts[MANIFEST] = yaml_text(sky_task(job, registered.skypilot))
    contents = {name: text.encode() for name, text in texts.items()} | ({CHANGES: code.changes} if code.changes else {})
    for name, path in files.items():
        try:
            contents[name] = path.read_bytes()
        except OSError as error:
            raise ProjectError(f"{path}: cannot read it: {error.strerror}") from error
    return Sent(job, code, trainer, contents)


def yaml_text(content: dict[str, Any]) -> str:
    """Return a manifest as YAML. Raises ProjectError where pyyaml is not installed."""
    try:
        import yaml
    except ImportError as error:
        raise ProjectError(f"a manifest needs the package pyyaml: {INSTALL}") from error
    return str(yaml.safe_dump(content, sort_keys=False))


def shown(sent: Sent, registered: Registered) -> str:
    """Return what would be done, for people. Raises ProjectError for a method that is not registered."""
    job, code = sent.job, sent.code
    where = job.address.name if job.address and job.method == "ssh" else "this machine"
    parts = [
        f"{job.project}: {job.exp}.{job.id} by {job.method}, in {where}:{job.folder}",
        f"code: {counted(len(code.files), 'file')} of {code.folder}, {size_text(code.size())}"
        + (f", {counted(len(code.changed), 'file')} not as committed" if code.changed else ""),
        *(f"  {name}{' (changed)' if name in code.changed else ''}" for name in code.files),
        f"trainer: {counted(len(sent.trainer.files), 'file')}, {size_text(sent.trainer.size())}",
    ]
    for name, content in sent.files.items():
        text = "" if name in (CHANGES, CONFIG, START) else "\n" + content.decode(errors="replace").rstrip()
        parts.append(f"--- {name}, {size_text(len(content))}{text}")
    run = launch_command(job) if job.method in ("ssh", "local") else shlex.join(launch_words(job, registered.own))
    return "\n".join([*parts, f"--- then: {run}"])
