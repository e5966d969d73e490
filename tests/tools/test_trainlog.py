"""The page of a trainlog.json: its curves, tables and pictures, escaped, and a sentence for other files."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from common.paths import ROOT
from tools.trainlog.__main__ import main


def rows(iou: float, loss: float) -> list[dict[str, Any]]:
    of_all = {"class": "all", "values": {"IoU": iou, "loss": loss}}
    return [of_all, {"class": "<b>道路</b>", "values": {"IoU": iou / 2}}]


LOG: dict[str, Any] = {
    "training_id": "<script>alert(1)</script>",
    "description": {"IoU": "IoU", "loss": "损失率"},
    "create_time": "2021-05-14 09:10:38",
    "epochs": [
        {"epoch": "1", "train": rows(0.25, 2.0), "valid": rows(0.5, 1.5)},
        {"epoch": "2", "train": rows(0.75, 1.0), "valid": rows(0.25, 1.75)},
    ],
    "best": {"IoU": 0.5},
    "end_time": "2021-05-14 10:51:20",
}


def write(folder: Path, log: Any = LOG) -> Path:
    (folder / "output/picture").mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30), (9, 8, 7)).save(folder / "output/picture/pred.png")
    file = folder / "output/trainlog.json"
    file.write_text(json.dumps(log, ensure_ascii=False), encoding="utf-8")
    return file


def test_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([str(write(tmp_path))]) == 0 and capsys.readouterr().out == "trainlog.html\n"
    page = Path("trainlog.html").read_text(encoding="utf-8")
    assert "<script>" not in page and "&lt;script&gt;" in page and "&lt;b&gt;道路&lt;/b&gt;" in page
    assert "epochs: 2, best: 1" in page and "http-equiv" not in page
    assert page.count('<div class="legend">') == 2 and page.count("data:image/png;base64") == 1
    for text in ("train 25.00% at epoch 1", "valid 25.00% at epoch 2", "train 1 at epoch 2", "损失率 (loss)"):
        assert text in page
    tables = re.findall(r"<h2>valid, (\w+) epoch</h2>.*?</table>", page, re.DOTALL)
    assert tables == ["best", "last"]
    assert re.findall(r'<td class="num">(.*?)</td>', page) == [
        *("50.00 %", "1.5000", "25.00 %", "–"),
        *("25.00 %", "1.7500", "12.50 %", "–"),
    ]


def test_a_page_before_the_first_epoch(tmp_path: Path) -> None:
    log = {**LOG, "epochs": [], "best": "", "end_time": ""}
    page = tmp_path / "page.html"
    assert main([str(write(tmp_path, log)), "--output", str(page)]) == 0
    assert "epochs: 0" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "trainlog.json: it cannot be read: No such file or directory"),
        ("{", "trainlog.json: it is no JSON: Expecting property name"),
        ("[]", "trainlog.json: it is no trainlog.json, as trainings write it into output/: its values are of other"),
        ('{"epochs": [{"epoch": "x"}]}', "it is no trainlog.json, as trainings write it into output/: its values are"),
        ('{"title": "net"}', 'it is no trainlog.json, as trainings write it into output/: key "epochs" is missing'),
    ],
)
def test_other_files(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None, sentence: str) -> None:
    file = tmp_path / "trainlog.json"
    if text is not None:
        file.write_text(text)
    assert main([str(file), "--output", str(tmp_path / "page.html")]) == 2
    assert sentence in capsys.readouterr().err and not (tmp_path / "page.html").exists()


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_page_that_follows(tmp_path: Path) -> None:
    page, file = tmp_path / "page.html", tmp_path / "output/trainlog.json"
    command = [sys.executable, "-m", "tools.trainlog", str(file), "--output", str(page), "--follow", "3"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        write(tmp_path, {**LOG, "epochs": LOG["epochs"][:1]})
        assert process.stdout is not None and process.stdout.readline() == f"{page}\n"
        assert 'content="3"' in page.read_text(encoding="utf-8") and "epochs: 1" in page.read_text(encoding="utf-8")
        write(tmp_path)
        for _ in range(600):
            if "epochs: 2" in page.read_text(encoding="utf-8"):
                break
            time.sleep(0.1)
        assert "epochs: 2" in page.read_text(encoding="utf-8")
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
