"""Where jobs can be submitted to: what is registered, by method, in `HOME/submitters/submitters.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from common.atomic_io import write_atomic, writing
from common.formatting import did_you_mean, parse_json
from data_loader.samples import current_folder
from projects.book import mistakes
from projects.errors import ProjectError
from projects.models import Part

FILE = Path("submitters/submitters.json")
INSTALL = "pip install -r requirements-jobs.txt"


class Address(Part):
    """A machine that ssh reaches, by name, address or an entry of ssh's own config, and a folder there for jobs."""

    username: str = ""
    password: str = ""
    ip: str = Field(pattern=r"^[A-Za-z0-9_.:%\[\]][A-Za-z0-9_.:%\[\]-]*$")
    port: int = Field(default=22, ge=1, le=65535)
    folder: str = ""

    @property
    def name(self) -> str:
        """Return how ssh is given it."""
        return f"{self.username}@{self.ip}" if self.username else self.ip


class Ssh(Part):
    """A machine reached through ssh; `script` is a local file of sh lines that set up its environment."""

    config: Address
    script: str = ""
    image: str = ""


class Script(Part):
    """A script of the user's own in `folder`, with further ones that are given the handle that it prints."""

    folder: str = Field(min_length=1)
    script: str = Field(min_length=1)
    status: str = ""
    log: str = ""
    stop: str = ""


class Kubernetes(Part):
    """A cluster with Kubeflow Trainer; the claim `volume` is mounted as `folder` in its pods, and here."""

    image: str = Field(min_length=1)
    folder: str = Field(pattern="^/.*")
    volume: str = Field(min_length=1)
    queue: str = ""
    namespace: str = "default"
    runtime: str = "torch-distributed"
    script: str = ""


class Skypilot(Part):
    """Machines that SkyPilot rents; `accelerators` is a kind of GPU, such as H100.

    They stop when they were idle for `idle_minutes`, 0 for never, and keep their disks.
    """

    accelerators: str = ""
    infra: str = ""
    use_spot: bool = False
    idle_minutes: int = Field(default=60, ge=0)
    image: str = ""
    script: str = ""


class Registered(Part):
    """What is registered; `selected` is the address of `ssh` that is in use."""

    ssh: list[Ssh] = Field(default_factory=list)
    selected: str = ""
    own: Script | None = None
    kubernetes: Kubernetes | None = None
    skypilot: Skypilot | None = None

    def selected_ssh(self) -> Ssh:
        """Return the machine in use. Raises ProjectError where none is registered."""
        found = next((each for each in self.ssh if each.config.ip == self.selected), None)
        if found is None:
            raise ProjectError("no address is registered: submitter template --ssh, then submitter update --ssh")
        return found


SSH = {"config": {"username": "", "password": "", "ip": "", "port": 22, "folder": ""}, "script": "", "image": ""}
TEMPLATES: dict[str, tuple[str, type[Part], Mapping[str, Any]]] = {  # by method: file, model, keys
    "own": ("submit-config.yaml", Script, {"folder": "", "script": "", "status": "", "log": "", "stop": ""}),
    "ssh": ("ssh-submit-config.yaml", Ssh, SSH),
    "kubernetes": (
        "kubernetes-submit-config.yaml",
        Kubernetes,
        {
            **{"image": "", "folder": "", "volume": "", "queue": "", "namespace": "default"},
            **{"runtime": "torch-distributed", "script": ""},
        },
    ),
    "skypilot": (
        "skypilot-submit-config.yaml",
        Skypilot,
        {"accelerators": "", "infra": "", "use_spot": False, "idle_minutes": 60, "image": "", "script": ""},
    ),
}


def template_text(method: str) -> str:
    """Return the template of a method's config, YAML."""
    lines = []
    for key, value in TEMPLATES[method][2].items():
        nested = value if isinstance(value, Mapping) else {}
        lines.append(f"{key}:" if nested else f"{key}: {json.dumps(value)}")
        lines += [f"  {name}: {json.dumps(each)}" for name, each in nested.items()]
    return "\n".join(lines) + "\n"


def read_submitter(path: Path, method: str) -> Part:
    """Return a method's config out of a YAML or JSON file. Raises ProjectError."""
    try:
        import yaml
    except ImportError as error:
        raise ProjectError(f"a submitter's config needs the package pyyaml: {INSTALL}") from error
    _, model, known = TEMPLATES[method]
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        found = model.model_validate(values)
    except OSError as error:
        raise ProjectError(f"{path}: cannot read it: {error.strerror}{current_folder(str(path))}") from error
    except ValidationError as error:
        raise ProjectError(mistakes(str(path), error)) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ProjectError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    unknown = found.model_extra or (found.config.model_extra if isinstance(found, Ssh) else None)
    if unknown:
        keys = [*known, *(SSH["config"] if method == "ssh" else ())]
        key = next(iter(unknown))
        raise ProjectError(f'{path}: unknown key "{key}"{did_you_mean(key, keys) or "; known: " + ", ".join(keys)}')
    if isinstance(found, Ssh) and found.config.password:
        hint = "ssh-copy-id puts your key there, and ssh-agent keeps its passphrase"
        raise ProjectError(f'{path}: password must be "": jobs log in with keys only; {hint}')
    return found


def read_registered(home: Path) -> Registered:
    """Return what is registered, nothing where there is no file. Raises ProjectError."""
    path = home / FILE
    try:
        return (
            Registered.model_validate(parse_json(path.read_text(encoding="utf-8"))) if path.exists() else Registered()
        )
    except ValidationError as error:
        raise ProjectError(mistakes(str(path), error)) from error
    except (OSError, ValueError, RecursionError) as error:
        raise ProjectError(f"{path}: cannot read it: {error}") from error


def write_registered(home: Path, registered: Registered) -> None:
    """Write what is registered. Raises ResultsError."""
    path = home / FILE
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(registered.model_dump(), ensure_ascii=False, indent=1) + "\n")
