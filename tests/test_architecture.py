"""Who may import whom, read from the imports themselves, and what the tree must not hold."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

from common.paths import ROOT

ROOMS = {
    "configs",
    "data_loader",
    "nets",
    "trainers",
    "artifacts",
    "figures",
    "deploy",
    "pytorch2json",
    "platforms",
    "tools",
}
PREPROCESS = {"data_loader.preprocess", "data_loader.samples"}
ALLOCATION = "common.malloc"
ALLOWED = {  # what a room's files may import of ours, by prefix
    "configs": {"configs"},
    "figures": {"figures"},
    "nets": {"nets"},
    "data_loader": {"data_loader", "configs"},
    "artifacts": {"artifacts", "configs", *PREPROCESS},
    "pytorch2json": {"pytorch2json"},
    "trainers": {"trainers", "artifacts", "data_loader", "nets", "configs", "figures"},
    "deploy": {"deploy", "artifacts", "pytorch2json", "configs", "figures", "nets", ALLOCATION, *PREPROCESS},
}
ONLY_WITH_NETS = {"deploy/backends.py", "deploy/export.py"}  # the files of deploy that may touch nets


def sources() -> list[Path]:
    others = {".venv", "logs", "tests"}
    return [path for path in sorted(ROOT.rglob("*.py")) if not set(path.relative_to(ROOT).parts) & others]


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{name.name}" for name in node.names}
    return {name for name in found if name.partition(".")[0] in ROOMS}


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_follow_the_layers(path: Path) -> None:
    name = path.relative_to(ROOT)
    if len(name.parts) == 1:
        return  # a root program may import every room
    allowed = ALLOWED.get(name.parts[0], ROOMS - {"platforms", "tools"} | {name.parts[0]})
    if name.parts[0] == "deploy" and name.as_posix() not in ONLY_WITH_NETS:
        allowed = allowed - {"nets"}
    wrong = {item for item in imports(path) if not any(item == a or item.startswith(f"{a}.") for a in allowed)}
    assert not wrong, f"{name} imports {wrong}; allowed: {allowed}"


def test_configs_come_without_torch() -> None:
    text = (ROOT / "configs/schema.py").read_text(encoding="utf-8")
    assert "import torch" not in text


def test_no_unsafe_reading_anywhere() -> None:
    for path in sources():
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"(?<![\w.])(eval|exec)\(|pickle\.loads?\(|weights_only=False", text), path


def test_every_direct_dependency_is_pinned_with_a_reason() -> None:
    lines = [line for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines() if line]
    pins = [line for line in lines if not line.startswith("#")]
    assert pins and all(re.match(r"[\w-]+==\d[\w.]*(\s|;|$)", line) for line in pins)


def test_data_is_not_committed() -> None:
    listing = subprocess.run(["git", "ls-files", "-s"], cwd=ROOT, capture_output=True, text=True)
    if listing.returncode:
        pytest.skip("not a git checkout")
    files = [line.split("\t")[1] for line in listing.stdout.splitlines()]
    assert not [name for name in files if name.startswith(("data_example/", "logs/", "runs/"))]
    assert max((ROOT / name).stat().st_size for name in files if (ROOT / name).is_file()) < 1_000_000


@pytest.mark.parametrize("page", sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]), ids=lambda path: path.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).is_file(), target
