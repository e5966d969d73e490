"""An ONNX file that another tool changed: refused, or with --accept_changed used, and every result says so."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import onnx
import pytest
import torch

import inference
import inference_uncertain
from artifacts.errors import ArtifactError
from artifacts.metadata_reader import read_metadata
from deploy.backends.loading import load_backend
from deploy.inference.predictor import Predictor
from deploy.service.request_parser import CONTENT
from tests.helpers.exported import TinyNet, build_metadata, export_onnx, paint
from tests.helpers.serving import GatedBackend, RunningService, base64_of, flags, running, write_page

NOTE = "the weights file was changed after its export"


@pytest.fixture
def changed(tmp_path: Path) -> Path:
    """Export a net, and rename a tensor in the file as a simplifier does."""
    path = tmp_path / "model.onnx"
    export_onnx(TinyNet().eval(), torch.randn(2, 3, 16, 16), path, build_metadata(16))
    model = onnx.load(path)
    model.graph.doc_string = "simplified"
    onnx.save(model, path)
    for number in range(3):
        paint(tmp_path / f"images/{number}.png", number, number)
    return path


def run(program: object, path: Path, *more: object) -> int:
    images = path.parent / "images"
    code: int = program.main([str(flag) for flag in ("--weights", path, "--image_dir", images, "--quiet", *more)])
    return code


def test_without_the_flag_it_is_refused_with_the_flags_name(changed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(inference, changed, "--output", changed.with_name("a.csv")) == 2
    assert "--accept_changed uses it all the same, though it does not match its sha256\n" in capsys.readouterr().err
    with pytest.raises(ArtifactError, match="does not match its sha256"):
        read_metadata(changed)


@pytest.mark.parametrize("ending", [".csv", ".json", ".jsonl"])
def test_every_result_says_so(changed: Path, ending: str, capsys: pytest.CaptureFixture[str]) -> None:
    output = changed.with_name(f"a{ending}")
    (changed.parent / "images/bad.png").write_bytes(b"x")
    assert run(inference, changed, "--output", output, "--accept_changed") == 1
    assert capsys.readouterr().err == f"inference.py: warning: {changed}: {NOTE}\n"
    text = output.read_text(encoding="utf-8-sig")
    if ending == ".csv":
        rows = list(csv.DictReader(text.splitlines()))
    else:
        rows = json.loads(text) if ending == ".json" else [json.loads(line) for line in text.splitlines()]
    assert sorted((row.get("note", ""), bool(row.get("error"))) for row in rows) == [("", True), *[(NOTE, False)] * 3]


def test_the_services_responses_say_so(changed: Path, tmp_path: Path) -> None:
    predictor = Predictor(*load_backend(changed, device="cpu", accept_changed=True))
    image = (changed.parent / "images/0.png").read_bytes()
    with running(predictor, flags(), page=write_page(tmp_path)) as port:
        service = RunningService(port, GatedBackend())
        (entry,) = service.send("/predict", {CONTENT: [base64_of(image)]})[1]["data"]
    assert entry["note"] == NOTE


def test_an_unchanged_file_has_no_note(changed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export_onnx(TinyNet().eval(), torch.randn(2, 3, 16, 16), changed, build_metadata(16))
    output = changed.with_name("a.csv")
    assert run(inference, changed, "--output", output, "--accept_changed") == 0
    assert capsys.readouterr().err == "" and "note" not in output.read_text(encoding="utf-8-sig")


def test_a_calibration_does_not_seal_a_change(changed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = changed.parent / "images"
    arguments = ("--weights", changed, "--calibrate", images, "--accept_changed")
    assert inference_uncertain.main([str(argument) for argument in arguments]) == 2
    assert capsys.readouterr().err == (
        "inference_uncertain.py: a calibration would seal a file that was changed: leave out --accept_changed\n"
    )
