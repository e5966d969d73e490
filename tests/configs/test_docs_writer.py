"""The JSON schema and docs/config.md are those of the keys as they stand."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from common.paths import ROOT
from configs.docs_writer import SCHEMA_FILE, TABLE_FILE, config_schema, config_table


def test_the_schema_and_its_table_are_current() -> None:
    assert json.loads(SCHEMA_FILE.read_text(encoding="utf-8")) == config_schema(), "run python -m configs.schema"
    assert TABLE_FILE.read_text(encoding="utf-8") == config_table(), "run python -m configs.schema"


@pytest.mark.parametrize("module", ["schema", "docs_writer"])
def test_either_module_writes_both(module: str, tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    for folder in ("common", "configs"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("*.json", "__pycache__"))
    done = subprocess.run([sys.executable, "-m", f"configs.{module}"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    for file in (SCHEMA_FILE, TABLE_FILE):
        assert (tmp_path / file.relative_to(ROOT)).read_bytes() == file.read_bytes()
