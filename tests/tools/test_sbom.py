"""The bill of materials: every package of the lock, the same bytes each time, and what a smaller file asks for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.paths import ROOT
from common.version import VERSION
from tools.sbom import main

LOCK = f"""\
anyio==4.16.0 \\
    --hash=sha256:{"a" * 64} \\
    --hash=sha256:{"b" * 64}
    # via starlette
fastapi==0.165.0 \\
    --hash=sha256:{"c" * 64}
    # via -r requirements.txt
idna==3.20 \\
    --hash=sha256:{"d" * 64}
    # via
    #   anyio
    #   yarl
starlette==1.10.0 \\
    --hash=sha256:{"e" * 64}
    # via fastapi
yarl==1.25.1 \\
    --hash=sha256:{"f" * 64}
    # via -r requirements.txt
"""


def written(folder: Path, *arguments: object) -> bytes:
    (folder / "lock").write_text(LOCK, encoding="utf-8")
    output = folder / "sbom.json"
    assert main([str(value) for value in ("--lock", folder / "lock", "--output", output, *arguments)]) == 0
    return output.read_bytes()


def test_a_bill_has_every_package_with_its_hashes_and_needs(tmp_path: Path) -> None:
    content = written(tmp_path)
    assert written(tmp_path) == content
    bill = json.loads(content)
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    assert bill["metadata"]["component"]["version"] == VERSION
    assert bill["components"][0] == {
        "type": "library",
        "bom-ref": "pkg:pypi/anyio@4.16.0",
        "name": "anyio",
        "version": "4.16.0",
        "purl": "pkg:pypi/anyio@4.16.0",
        "hashes": [{"alg": "SHA-256", "content": "a" * 64}, {"alg": "SHA-256", "content": "b" * 64}],
    }
    needs = {entry["ref"]: entry["dependsOn"] for entry in bill["dependencies"]}
    assert needs["pkg:pypi/anyio@4.16.0"] == needs["pkg:pypi/yarl@1.25.1"] == ["pkg:pypi/idna@3.20"]
    assert needs["pkg:pypi/idna@3.20"] == []
    assert len(needs[f"pkg:generic/classic-trainer@{VERSION}"]) == 5


def test_a_smaller_file_has_what_it_needs(tmp_path: Path) -> None:
    (tmp_path / "small.txt").write_text("# the service\nFastAPI==0.165.0  # routes\n", encoding="utf-8")
    bill = json.loads(written(tmp_path, "--requirements", tmp_path / "small.txt"))
    assert [part["name"] for part in bill["components"]] == ["anyio", "fastapi", "idna", "starlette"]


def test_our_lock_is_read_whole(tmp_path: Path) -> None:
    assert main(["--output", str(tmp_path / "all.json")]) == 0
    bill = json.loads((tmp_path / "all.json").read_text(encoding="utf-8"))
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    assert len(bill["components"]) == sum("==" in line for line in lines) > 100
    hashes = sum(len(part["hashes"]) for part in bill["components"])
    assert hashes == sum("--hash=sha256:" in line for line in lines)


def test_mistakes_are_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lock, output = tmp_path / "lock", tmp_path / "out.json"
    lock.write_text(LOCK, encoding="utf-8")
    (tmp_path / "more.txt").write_text("torch==2.15.0\n", encoding="utf-8")
    (tmp_path / "empty").write_text("numpy==2.4.6\n", encoding="utf-8")
    for arguments, message in (
        (("--lock", tmp_path / "none"), f"{tmp_path / 'none'}: cannot read it: No such file or directory"),
        (("--lock", tmp_path / "empty"), f"{tmp_path / 'empty'}: it is no lock with hashes, as `make lock` writes it"),
        (
            ("--lock", lock, "--requirements", tmp_path / "more.txt"),
            f"{tmp_path / 'more.txt'}: torch is not in the lock",
        ),
    ):
        assert main([str(value) for value in (*arguments, "--output", output)]) == 2
        assert capsys.readouterr().err == f"python -m tools.sbom: {message}\n"
    assert not output.exists()
