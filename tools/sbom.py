"""Write the bill of materials of requirements.lock, CycloneDX 1.6 in JSON: `python -m tools.sbom --output sbom.json`.

The same lock gives the same bytes: there is no time and no random number in it. Source: https://cyclonedx.org/docs/1.6/json/.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifacts.metadata import PRODUCER
from common.atomic_io import check_spares, write_atomic, writing
from common.cli import FlagParser, named_path, run_program
from common.errors import UserError
from common.paths import ROOT
from common.version import VERSION

PROGRAM = "tools.sbom"
LOCK = ROOT / "requirements.lock"
ENTRY = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==(\S+) \\\n((?:    \S.*\n?)*)", re.MULTILINE)
HASH, VIA = re.compile(r"--hash=sha256:([0-9a-f]{64})"), re.compile(r"^    #(?: via)? +(\S+)$", re.MULTILINE)
REQUIREMENT = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)", re.MULTILINE)


class SbomError(UserError):
    """A lock or a file of requirements that cannot be read; the message is one sentence for the user."""


@dataclass(frozen=True)
class Package:
    """One package of a lock: its version, the sha256 of each of its files, and the packages that need it."""

    name: str
    version: str
    hashes: tuple[str, ...]
    needed_by: tuple[str, ...]

    @property
    def url(self) -> str:
        """The package URL (purl), which identifies it in the bill."""
        return f"pkg:pypi/{self.name}@{self.version}"


def main(argv: Sequence[str] | None = None) -> int:
    """Write the bill; return the exit code: 0, or 2 for a mistake of the user's."""
    args = _parser().parse_args(argv)
    return run_program(f"python -m {PROGRAM}", lambda: _run(args))


def read_lock(file: Path) -> list[Package]:
    """Return the packages of a lock that uv or pip-compile wrote with hashes. Raises SbomError."""
    found = [
        Package(canonical(name), version, tuple(HASH.findall(rest)), tuple(map(canonical, VIA.findall(rest))))
        for name, version, rest in ENTRY.findall(_text(file))
    ]
    if not found or any(not package.hashes for package in found):
        raise SbomError(f"{file}: it is no lock with hashes, as `make lock` writes it")
    return found


def chosen(packages: Sequence[Package], requirements: Path) -> list[Package]:
    """Return what a file of requirements asks for, and what that needs, in the lock's order. Raises SbomError."""
    names = {package.name for package in packages}
    waiting = [canonical(name) for name in REQUIREMENT.findall(_text(requirements))]
    if missing := sorted(set(waiting) - names):
        raise SbomError(f"{requirements}: {', '.join(missing)} is not in the lock")
    needs, wanted = needs_of(packages), set[str]()
    while waiting:
        name = waiting.pop()
        if name not in wanted:
            wanted.add(name)
            waiting += needs[name]
    return [package for package in packages if package.name in wanted]


def bill(packages: Sequence[Package]) -> dict[str, Any]:
    """Return the bill of materials: each package with its hashes, and which needs which."""
    needs, urls = needs_of(packages), {package.name: package.url for package in packages}
    root = f"pkg:generic/{PRODUCER}@{VERSION}"
    dependencies = [{"ref": root, "dependsOn": sorted(urls.values())}]
    dependencies += [{"ref": urls[name], "dependsOn": sorted(urls[other] for other in needs[name])} for name in urls]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": root,
                "name": PRODUCER,
                "version": VERSION,
                "licenses": [{"license": {"id": "Apache-2.0"}}],
            },
        },
        "components": [_component(package) for package in packages],
        "dependencies": dependencies,
    }


def needs_of(packages: Iterable[Package]) -> Mapping[str, list[str]]:
    """Return the packages that each one needs, by the lock's "via"."""
    packages = list(packages)
    needs: dict[str, list[str]] = {package.name: [] for package in packages}
    for package in packages:
        for name in package.needed_by:
            if name in needs:  # "-r requirements.txt" is none
                needs[name].append(package.name)
    return needs


def canonical(name: str) -> str:
    """Return a package's name as the lock and its purl have it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _component(package: Package) -> dict[str, Any]:
    return {
        "type": "library",
        "bom-ref": package.url,
        "name": package.name,
        "version": package.version,
        "purl": package.url,
        "hashes": [{"alg": "SHA-256", "content": content} for content in package.hashes],
    }


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SbomError(f"{file}: cannot read it: {getattr(error, 'strerror', None) or 'it is no text'}") from error


def _run(args: argparse.Namespace) -> int:
    check_spares(args.output, args.lock, args.requirements)
    packages = read_lock(args.lock)
    if args.requirements is not None:
        packages = chosen(packages, args.requirements)
    with writing(args.output):
        write_atomic(args.output, json.dumps(bill(packages), indent=1) + "\n")
    print(f"{args.output}: {len(packages)} packages")
    return 0


def _parser() -> argparse.ArgumentParser:
    description = "Write the bill of materials (CycloneDX 1.6, JSON) of the packages that a lock pins."
    parser = FlagParser(prog=f"python -m {PROGRAM}", description=description, allow_abbrev=False)
    add = parser.add_argument
    add("--lock", metavar="F", type=named_path, default=LOCK, help="default: requirements.lock")
    add(
        "--requirements",
        metavar="F",
        type=named_path,
        help="only what this file asks for and what that needs, such as requirements-serve.txt (default: all)",
    )
    add("--output", metavar="F", type=named_path, required=True, help="the JSON file to write")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
