"""Where jobs are submitted to: `python -m tools.antgo submitter update --ssh --config F`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from common.atomic_io import write_atomic, writing
from common.cli import named_path
from projects.book import check_known
from projects.errors import ProjectError
from projects.shell import Shell
from projects.submitters import (
    TEMPLATES,
    Kubernetes,
    Script,
    Skypilot,
    Ssh,
    read_registered,
    read_submitter,
    template_text,
    write_registered,
)
from tools.projects.flags import add_home, print_text
from tools.projects.words import Words


def write_template(args: argparse.Namespace) -> int:
    """Write a method's config to fill in; return 0. Raises UserError."""
    path = args.tgt / TEMPLATES[args.method][0]
    if path.exists():
        raise ProjectError(f"{path}: it is there already")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, template_text(args.method))
    return print_text(f"{path}: fill it in; submitter update registers it")


def update(args: argparse.Namespace) -> int:
    """Register a method's config; a machine is logged in to once. Return 0. Raises UserError."""
    found = read_submitter(args.config, args.method)
    script = getattr(found, "script", "")
    place = Path(found.folder, script) if isinstance(found, Script) else Path(script)
    if script and not place.is_file():
        raise ProjectError(f"{args.config}: script: {place}: no such file")
    if isinstance(found, Ssh):
        Shell(found.config).run("exit 0")
    registered = read_registered(args.home)
    told = args.method
    if isinstance(found, Ssh):
        others = [each for each in registered.ssh if each.config.ip != found.config.ip]
        registered.ssh, registered.selected = [*others, found], found.config.ip
        told = f"ssh {found.config.name}"
    elif isinstance(found, Script):
        registered.own, told = found, f"script {place}"
    elif isinstance(found, Kubernetes):
        registered.kubernetes = found
    elif isinstance(found, Skypilot):
        registered.skypilot = found
    write_registered(args.home, registered)
    return print_text(f"registered: {told}")


def list_all(args: argparse.Namespace) -> int:
    """List what is registered, with "*" at the address in use; return 0. Raises ProjectError."""
    registered = read_registered(args.home)
    lines = [
        f"{'*' if each.config.ip == registered.selected else ' '} {each.config.name} port {each.config.port}, "
        f"folder {each.config.folder or '~'}"
        for each in registered.ssh
    ]
    if args.method != "ssh":
        lines += [f"  script {Path(registered.own.folder, registered.own.script)}"] if registered.own else []
        lines += [f"  {name}" for name in ("kubernetes", "skypilot") if getattr(registered, name)]
    return print_text("\n".join(lines) or "nothing is registered; submitter template writes a config to fill in")


def select(args: argparse.Namespace) -> int:
    """Use another address; return 0. Raises UserError."""
    registered = read_registered(args.home)
    known = [each.config.ip for each in registered.ssh]
    registered.selected = check_known(args.ip, known, "address", "submitter")
    write_registered(args.home, registered)
    return print_text(f"in use: {registered.selected_ssh().config.name}")


def add_method(parser: argparse.ArgumentParser) -> None:
    """Add --home, and a flag for each method; without one it is the script of one's own."""
    methods = parser.add_mutually_exclusive_group()
    for name, what in (
        ("ssh", "a machine that ssh reaches"),
        ("kubernetes", "a cluster with Kubeflow Trainer"),
        ("skypilot", "machines that SkyPilot rents"),
    ):
        methods.add_argument(f"--{name}", dest="method", action="store_const", const=name, default="own", help=what)
    add_home(parser)


def add_template_flags(parser: argparse.ArgumentParser) -> None:
    """Add the method and --tgt."""
    add_method(parser)
    parser.add_argument("--tgt", type=named_path, default=Path(), metavar="DIR", help="where to write it (here)")


def add_update_flags(parser: argparse.ArgumentParser) -> None:
    """Add the method and --config."""
    add_method(parser)
    parser.add_argument("--config", type=named_path, required=True, metavar="F", help="the filled in YAML or JSON")


def add_select_flags(parser: argparse.ArgumentParser) -> None:
    """Add the method and --ip."""
    add_method(parser)
    parser.add_argument("--ip", required=True, metavar="A", help="the address, as `submitter ls` has it")


class Submitter(Words):
    """The words of `submitter`: alone it writes the template of one's own script, with --config it registers it."""

    def main(self, argv: Sequence[str] | None = None) -> int:
        """Run a command by its second word; return its exit code."""
        words = list(sys.argv[1:] if argv is None else argv)
        if not words:
            words = ["template"]
        elif words[0].startswith("--") and words[0] != "--help":
            words = ["update", *words]
        return super().main(words)


VERB = Submitter(
    "submitter",
    {
        "template": ("A config to fill in.", add_template_flags, write_template),
        "update": ("Register a config.", add_update_flags, update),
        "ls": ("What is registered.", add_method, list_all),
        "select": ("Use another address.", add_select_flags, select),
        "activate": ("The same, by antgo's name.", add_select_flags, select),
    },
)
main = VERB.main

if __name__ == "__main__":
    raise SystemExit(main())
