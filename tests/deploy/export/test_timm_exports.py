"""timm's nets in the formats of an export, as the table in docs/nets.md has it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from common.paths import ROOT
from tests.conftest import slow_but
from tests.helpers.exported import export, report_of, train_net

pytest.importorskip("timm", reason="timm is not installed: requirements-timm.txt")
pytestmark = pytest.mark.usefixtures("one_thread")

FORMATS = ("jit", "pt2", "onnx", "int8", "json")


def documented() -> dict[str, list[tuple[str, str]]]:
    """Read the table of docs/nets.md: for each net the formats, and why one is refused, or "" where it is written."""
    text = (ROOT / "docs/nets.md").read_text(encoding="utf-8")
    reasons = dict(re.findall(r"^- \((\w)\) `(.+?)`", text, re.MULTILINE))
    rows = re.findall(r"^\| `(\w+)` \| ((?:[^|\n]+ \| ){4}[^|\n]+) \|$", text, re.MULTILINE)
    marks = {net: [re.search(r"\((\w)\)", cell) for cell in line.split(" | ")] for net, line in rows}
    return {
        net: [(form, reasons[mark[1]] if mark else "") for form, mark in zip(FORMATS, found, strict=True)]
        for net, found in marks.items()
    }


def test_the_table_has_its_nets() -> None:
    assert len(documented()) >= 20


@pytest.mark.parametrize("name", slow_but([], documented()))
def test_a_trained_net_is_verified_in_every_format_of_the_table(name: str, tmp_path: Path) -> None:
    net = {"module": "timm_module", "name": "timm_net", "args": {"model_type": name}}
    export(train_net(tmp_path, net, 64, (24, 24)), FORMATS, tmp_path / "out", device="cpu")
    outcomes = {entry["format"]: entry for entry in report_of(tmp_path / "out")["formats"]}
    table = documented()
    losses = {row[FORMATS.index("int8")][1] for row in table.values()} - {""}
    for form, expected in table[name]:
        status, reason = outcomes[form]["status"], outcomes[form]["reason"]
        if form == "int8":  # after eight steps a net is near the limits, on either side on another CPU
            assert status == "written" or any(loss in reason for loss in losses), (form, status, reason)
        elif expected:
            assert status == "refused" and expected in reason, (form, status, reason)
        else:
            assert (status, reason) == ("written", ""), (form, reason)
