"""Who may import whom, read from the imports themselves, and what the tree must not hold."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
from pathlib import Path

import pytest

from common.paths import ROOT

DATA = tuple(  # what a package without torch's loaders may have of them
    f"data_loader.{name}"
    for name in (
        *(
            "band_image",
            "bands",
            "box_geometry",
            "box_target",
            "decode_guard",
            "decoder_process",
            "decoding",
            "image_files",
            "list_reader",
            "mask_classes",
            "mask_folders",
            "mask_target",
            "masks",
            "pack_list",
            "packed_images",
            "packs",
            "preprocess",
            "remote_files",
            "remote_packs",
        ),
        *("samples", "shard_fetching", "streamed_packs", "targets"),
    )
)
ALLOWED = {  # what a package's files may import of ours, by prefix; `common` for all
    "common": (),
    "configs": (),
    "visualization": (),
    "nets": (),
    "pytorch2json": (),
    "data_loader": ("configs",),
    "artifacts": ("configs", *DATA),
    "trainers": ("artifacts", "configs", "data_loader", "nets", "visualization"),
    "deploy.backends": ("artifacts", "configs", *DATA, "nets", "pytorch2json", "visualization"),
    "deploy.inference": ("artifacts", "configs", *DATA, "deploy.backends", "visualization"),
    "deploy.uncertainty": ("artifacts", "configs", *DATA, "deploy.backends", "deploy.inference", "visualization"),
    "deploy.service": ("artifacts", *DATA, "deploy.backends", "deploy.inference", "visualization"),
    "deploy.export": ("artifacts", "configs", *DATA, "deploy.backends", "pytorch2json"),
}

ALLOWED["deploy.batch"] = (*ALLOWED["deploy.inference"], "datasets.studio_writer", "deploy.inference", "inference")
DATASETS = tuple(  # of data_loader, what the data set tools read with
    f"data_loader.{name}"
    for name in ("coco", "box_annotations", "box_folders", "box_classes", "errors", "problems", "examples")
)
ALLOWED["datasets"] = (*DATA, *DATASETS)
SERVER = tuple(  # of the service, what every server of a page has
    f"deploy.service.{name}" for name in ("http_protocol", "limits", "listener", "origins", "page_headers")
)
ALLOWED["review"] = (
    "artifacts",
    "datasets",
    *DATA,
    "data_loader.errors",
    "deploy.backends",
    "deploy.inference",
    *SERVER,
)

ALLOWED["projects"] = (*DATA, "data_loader.errors", "review", *SERVER, "visualization")

MOST_LINES = 50  # of a function


def sources() -> list[Path]:
    others = {".venv", "build", "logs", "tests"}
    return [path for path in sorted(ROOT.rglob("*.py")) if not set(path.relative_to(ROOT).parts) & others]


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in sources()}


@functools.cache
def imports(path: Path) -> frozenset[str]:
    """Return the modules of ours that a file imports, early or late; a package stands for itself."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            of_package = [f"{node.module}.{name.name}" for name in node.names]
            found |= {name if name in MODULES else node.module for name in of_package}
    return frozenset(name for name in found if name in MODULES)


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_follow_the_layers(path: Path) -> None:
    name = module_of(path)
    own = next((package for package in ALLOWED if name == package or name.startswith(f"{package}.")), "")
    if not own:
        forbidden = () if "." not in name else ("platforms",) if name.startswith("tools") else ("tools",)
        assert not {item for item in imports(path) if item.startswith(forbidden or "-")}
        return
    allowed = (own, "common", *ALLOWED[own])
    wrong = {item for item in imports(path) if not any(item == a or item.startswith(f"{a}.") for a in allowed)}
    assert not wrong, f"{name} imports {wrong}; allowed: {allowed}"


def test_no_import_circle() -> None:
    """Late imports count: a circle that waits for a function to be called is one."""
    graph = {name: imports(path) - {name} for name, path in MODULES.items()}
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join([*way[way.index(name) :], name])
        if name not in done:
            for item in sorted(graph[name]):
                visit(item, (*way, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_flags_belong_to_their_own_command() -> None:
    """A command's flags are its own; what another command needs of them is no flag, and lies elsewhere."""
    sisters = {"deploy.uncertainty": "deploy.inference"}  # inference_uncertain.py takes inference.py's flags too
    for path in sources():
        package = module_of(path).rpartition(".")[0]
        if not package or path.name == "cli.py":  # the programs themselves
            continue
        for item in imports(path):
            owner = item.removesuffix(".cli_args")
            assert owner == item or owner in (package, sisters.get(package)), f"{path} imports {item}"


def renames(code: str) -> set[str]:
    """Return how a module renames files, or makes temporary ones in order to."""
    found = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and node.module in ("os", "shutil", "tempfile"):
            found |= {name.name for name in node.names} & {"replace", "rename", "move", "mkstemp"}
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        name, owner = node.func.attr, ast.unparse(node.func.value)
        of_path = name in ("replace", "rename") and len(node.args) == 1 and not node.keywords  # a text's takes two
        of_module = f"{owner}.{name}" in ("os.replace", "os.rename", "shutil.move", "tempfile.mkstemp")
        found |= {name} if of_path or of_module else set()
    return found


def test_what_renames_a_file() -> None:
    for code in (
        "Path(a).replace(b)",
        "a.rename(b)",
        "os.replace(a, b)",
        "tempfile.mkstemp()",
        "from os import rename",
    ):
        assert len(renames(code)) == 1, code
    assert not renames("a.replace('x', 'y'); dataclasses.replace(a, x=1); date.replace(tzinfo=None); a.mkstemp()")


def test_files_are_renamed_by_atomic_io_alone() -> None:
    found = {str(path.relative_to(ROOT)): renames(path.read_text(encoding="utf-8")) for path in sources()}
    assert {name: how for name, how in found.items() if how} == {
        "common/atomic_io.py": {"replace"},
        "data_loader/cache_builder.py": {"mkstemp"},  # a file that several processes write, and that may get no name
        "deploy/export/staging.py": {"rename"},  # a folder that is found only when it is locked
    }


def test_private_names_stay_in_their_module() -> None:
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module in MODULES:
                assert not [name.name for name in node.names if name.name.startswith("_")], path


def long_functions(code: str) -> dict[str, int]:
    """Return the functions of a module, nested ones too, that are longer than MOST_LINES, with their length."""
    nodes = ast.walk(ast.parse(code))
    functions = [node for node in nodes if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    lengths = {f"{node.name}:{node.lineno}": (node.end_lineno or 0) - node.lineno + 1 for node in functions}
    return {name: length for name, length in lengths.items() if length > MOST_LINES}


def test_functions_are_short() -> None:
    assert long_functions("async def f():\n" + "    x\n" * MOST_LINES) == {"f:1": MOST_LINES + 1}
    found = {str(path.relative_to(ROOT)): long_functions(path.read_text(encoding="utf-8")) for path in sources()}
    assert not {name: long for name, long in found.items() if long}


def test_configs_come_without_torch() -> None:
    for path in (ROOT / "configs").glob("*.py"):
        assert "import torch" not in path.read_text(encoding="utf-8"), path


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


def test_what_tests_share_lies_in_helpers() -> None:
    """No test module imports another: what two need lies in tests/helpers or in a conftest."""
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                assert not re.search(r"^tests\..*\btest_\w+$", node.module), f"{path} imports from {node.module}"
