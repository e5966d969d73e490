"""Change a project's settings: `python -m tools.antgo update project/submitter --project P --gpu 2`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from common.cli import number
from projects.book import mistakes
from projects.errors import ProjectError
from projects.literals import read_settings
from projects.models import Label, Method, Project
from tools.projects.add import changes
from tools.projects.flags import add_project
from tools.projects.words import Words

METHODS = {  # by setting; the contract's names
    "semi": ("mpl",),
    "distillation": ("reviewkd", "logits"),
    "activelearning": ("ac",),
}
FOR_DETECTORS = ("dense", "detmpl")


def update_submitter(project: Project, args: argparse.Namespace) -> str:
    """Set what is given, and leave the rest. Raises ProjectError."""
    wanted = {"gpu_num": args.gpu, "cpu_num": args.cpu, "memory": args.memory, "method": "ssh" if args.ssh else None}
    given = {key: value for key, value in wanted.items() if value is not None}
    if not given:
        raise ProjectError("name what to set: --ssh, --gpu, --cpu or --memory")
    for key, value in given.items():
        setattr(project.submitter, key, value)
    return "submitter " + ", ".join(f"{key} {value}" for key, value in given.items())


def update_label(project: Project, args: argparse.Namespace) -> str:
    """Set what people label. Raises ProjectError."""
    try:
        label = Label.model_validate(read_settings(args.config))
    except ValidationError as error:
        raise ProjectError(mistakes(str(args.config), error)) from error
    if label.model_extra:
        raise ProjectError(f'{args.config}: unknown key "{next(iter(label.model_extra))}"; known: type, category, meta')
    if label.type == "SKELETON" and not label.meta.get("skeleton"):
        raise ProjectError(f"{args.config}: SKELETON needs meta.skeleton, the pairs of joints that are joined")
    project.tool.label = label
    return f"label {label.type}, {len(label.category)} classes"


def updates_method(setting: str) -> Callable[[Project, argparse.Namespace], str]:
    """Return what sets a method by name, with the settings of a file, or clears it."""

    def update(project: Project, args: argparse.Namespace) -> str:
        if args.name is None and args.config is None:
            raise ProjectError("name a method with --name, or its settings with --config; --name= --config= clears")
        found = read_settings(Path(args.config)) if args.config else {}
        name = args.name if args.name is not None else found.pop("method", getattr(project.tool, setting).method)
        known = METHODS[setting]
        if name in FOR_DETECTORS:
            raise ProjectError(f'"{name}" is for detectors, of which there is no {setting}; known: {", ".join(known)}')
        if name and name not in known:
            raise ProjectError(f'{setting}: no method "{name}"; known: {", ".join(known)}')
        if found and not name:
            raise ProjectError(f"{setting}: settings without a method; add --name, one of {', '.join(known)}")
        settings = found.get("config", found) if args.config is not None else getattr(project.tool, setting).config
        setattr(project.tool, setting, Method(method=name, config=settings if name else {}))
        return f"{setting} {name or 'cleared'}"

    return update


def add_submitter_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `update project/submitter`."""
    add_project(parser)
    parser.add_argument("--ssh", action="store_true", help="submit over ssh")
    parser.add_argument("--gpu", type=number(0, 4096), metavar="N", help="GPUs of a job")
    parser.add_argument("--cpu", type=number(0, 65536), metavar="N", help="CPUs of a job")
    parser.add_argument("--memory", type=number(0, 10**9), metavar="M", help="memory of a job, MB")


def add_label_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `update project/label`."""
    add_project(parser)
    parser.add_argument("--config", type=Path, required=True, metavar="F", help="JSON or .py: type, category, meta")


def add_method_flags(parser: argparse.ArgumentParser) -> None:
    """Add --name and --config."""
    add_project(parser)
    parser.add_argument("--name", metavar="METHOD", help="the method")
    parser.add_argument("--config", metavar="F", help="its settings, JSON or .py; --name= --config= clears")


VERB = Words(
    "update",
    {
        "project/submitter": ("How its jobs run.", add_submitter_flags, changes(update_submitter)),
        "project/label": ("What people label.", add_label_flags, changes(update_label)),
        **{
            f"project/{setting}": (f"The method of {setting}.", add_method_flags, changes(updates_method(setting)))
            for setting in METHODS
        },
    },
)
main = VERB.main

if __name__ == "__main__":
    raise SystemExit(main())
