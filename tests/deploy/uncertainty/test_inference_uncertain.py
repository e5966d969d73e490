"""The program as it is used: calibrated once, then the same decision from every file exported from the net."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score

import inference
import inference_uncertain
from artifacts.calibration import SCORES
from artifacts.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from artifacts.metadata import ModelMetadata
from artifacts.metadata_reader import read_metadata
from datasets.files import read_annotations
from deploy.backends.loading import load_backend, load_torch
from deploy.export.sample_images import find_images
from deploy.export.writers import Source, write_int8, write_json
from deploy.inference.prediction import Prediction
from deploy.inference.predictor import Predictor
from deploy.service.request_parser import CONTENT
from deploy.uncertainty.calibrate_command import _warn_of_worse_scores
from deploy.uncertainty.calibration import for_temperature
from deploy.uncertainty.outputs import Outputs, config_of
from pytorch2json import engine
from tests.conftest import CLASSES
from tests.helpers.calibrated import metadata_with
from tests.helpers.exported import ENVIRONMENT, paint, train_net, write_list
from tests.helpers.serving import GatedBackend, RunningService, base64_of, running, write_page
from tests.helpers.serving import flags as service_flags

PROGRAM = Path(inference_uncertain.__file__)


def mix(path: Path, share: float, seed: int) -> None:
    """Write noise between class 0 and class 1: red by `share`, green by the rest."""
    pixels = np.random.default_rng(seed).integers(0, 160, (24, 28, 3)).astype(float)
    pixels[..., 0] += 60 * share
    pixels[..., 1] += 60 * (1 - share)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def run(*arguments: object) -> int:
    return inference_uncertain.main([str(argument) for argument in arguments])


def mistake(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run with a mistake in it, and return the message."""
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    return captured.err.removeprefix("inference_uncertain.py: ").rstrip()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a net, and make 200 images to calibrate it on, every fourth of which shows two classes."""
    folder = tmp_path_factory.mktemp("net")
    path = train_net(folder)
    lines = Path(write_list(folder, "held", 150, 1000)).read_text(encoding="utf-8").splitlines()
    for number in range(50):
        mix(folder / f"images/held/mixed{number}.png", 0.42 + 0.16 * number / 49, number)
        lines.insert(4 * number, f"held/mixed{number}.png----{number % 2}")
    (folder / "held.txt").write_text("\n".join(lines), encoding="utf-8")
    for number in range(12):
        mix(folder / f"asked/mixed{number}.png", 0.42 + 0.16 * number / 11, 500 + number)
        paint(folder / f"asked/deeper/{number}.png", number % 3, 600 + number)
    (folder / "asked/cut.png").write_bytes(b"\x89PNG")
    return path


@pytest.fixture(scope="module")
def printed(plain: Path) -> list[str]:
    """Calibrate a copy of the net, calibrated.pth, and return the lines printed."""
    checkpoint = load_checkpoint(plain)
    save_checkpoint(checkpoint, plain.with_name("calibrated.pth"))
    out = io.StringIO()
    target = ("--target_risk", 0.06, "--confidence", 0.9, "--conformal", 0.04)
    with contextlib.redirect_stdout(out):
        assert (
            run("--weights", plain.with_name("calibrated.pth"), "--calibrate", plain.with_name("held.txt"), *target)
            == 0
        )
    return out.getvalue().splitlines()


@pytest.fixture(scope="module")
def weights(plain: Path, printed: list[str]) -> Path:
    return plain.with_name("calibrated.pth")


@pytest.fixture(scope="module")
def exported(weights: Path) -> Path:
    """Make what `deploy.export` makes, which test_export.py verifies: float.onnx, model.int8.onnx, model.json."""
    folder = weights.parent / "out"
    folder.mkdir()
    backend, metadata = load_torch(weights, "cpu", None)
    images = find_images(weights.with_name("held.txt"), config_of(weights), metadata, 30)
    source = Source(backend.net, metadata, images, images, "fp32", "float32 NCHW")
    write_int8(source, folder / "model.int8.onnx")  # and float.onnx, which it is made from
    write_json(source, folder / "model.json")
    return folder


def asked(weights: Path) -> list[str]:
    return [str(path) for path in sorted((weights.parent / "asked").rglob("*.png")) if path.name != "cut.png"]


def predictions(weights: Path, paths: list[str], **options: Any) -> list[Prediction]:
    return list(Predictor(*load_backend(weights, device="cpu", **options)).predict_files(paths, workers=1))


# --- calibration


def test_calibration_prints_what_it_found_and_changes_nothing_else(
    plain: Path, weights: Path, printed: list[str]
) -> None:
    metadata = read_metadata(weights)
    assert metadata.calibration is not None and metadata.temperature is not None
    assert replace(metadata, calibration=None, temperature=None, thresholds={}) == read_metadata(plain)
    before, after = load_checkpoint(plain), load_checkpoint(weights)
    assert after.config == before.config and all(torch.equal(after.net[name], before.net[name]) for name in before.net)
    held = plain.with_name("held.txt")
    kept = metadata.calibration
    assert (kept.target_risk, kept.confidence, kept.conformal_risk, kept.pictures) == (0.06, 0.9, 0.04, 160)
    assert printed[0] == f"{held}: 200 images; 40 fit the temperature, 160 the thresholds"
    assert re.fullmatch(
        r"accuracy 0\.\d{4}; temperature [\d.]+(?: \(it stays 1: no fitted one is better on other images than those "
        r"that it was fitted to\))?; negative log likelihood [\d.]+ before, [\d.]+ after",
        printed[1],
    )
    assert printed[2] == (
        f"accept where least_confidence <= {metadata.thresholds['accept']:.6g}: {kept.accepted} of 160 "
        f"({kept.accepted / 160:.1%}), {kept.wrong} of them wrong"
    )
    assert printed[3] == f"so the risk among the accepted is at most {kept.risk_bound:.4f}, with confidence 0.9"
    assert printed[4].endswith("it misses the true class in at most 4.0% of the images")
    assert printed[5] == (
        f"fitted to the outputs of fp32, and written into {weights}; files exported from it before do not have it: "
        "export them again"
    )


def test_what_was_calibrated_is_what_decides_on_that_list(weights: Path) -> None:
    lines = [line.split("----") for line in weights.with_name("held.txt").read_text(encoding="utf-8").splitlines()]
    kept = [line for line, fits_temperature in zip(lines, for_temperature(200), strict=True) if not fits_temperature]
    decided = predictions(weights, [str(weights.parent / "images" / name) for name, _ in kept])
    accepted = [
        (prediction, int(label))
        for prediction, (_, label) in zip(decided, kept, strict=True)
        if prediction.decision == "accept"
    ]
    calibration = read_metadata(weights).calibration
    assert calibration is not None and 0 < calibration.accepted < 160
    assert len(accepted) == calibration.accepted
    assert sum(prediction.label != label for prediction, label in accepted) == calibration.wrong
    covered = sum(
        CLASSES[int(label)] in prediction.conformal_set for prediction, (_, label) in zip(decided, kept, strict=True)
    )
    assert covered == 155  # ceil(161 * 0.96)


def test_a_net_better_than_its_sets_is_reported(
    plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_checkpoint(load_checkpoint(plain), tmp_path / "net.pth")
    lines = [
        line for line in plain.with_name("held.txt").read_text(encoding="utf-8").splitlines() if "mixed" not in line
    ]
    (tmp_path / "easy.txt").write_text("\n".join(lines), encoding="utf-8")
    where = ("--calibrate", tmp_path / "easy.txt", "--list_root", plain.parent / "images")
    assert run("--weights", tmp_path / "net.pth", *where, "--target_risk", 0.1, "--score", "entropy") == 0
    assert re.search(
        r"the net is wrong on [\d.]+% of the images, and conformal sets may miss 5.00%: those of uncertain images "
        r"will be empty; a --conformal below the net's own error gives sets that name candidates\n",
        capsys.readouterr().err,
    )
    calibration = read_metadata(tmp_path / "net.pth").calibration
    assert calibration is not None and calibration.score == "entropy"


# --- the same decision everywhere


@pytest.mark.parametrize(
    ("name", "options"),
    [("float.onnx", {"runtime": "onnxruntime"}), ("model.json", {})],  # OpenVINO: as `auto` in the tests below
)
def test_every_float_file_decides_as_the_net(name: str, options: dict[str, Any], weights: Path, exported: Path) -> None:
    paths = asked(weights)
    expected, got = predictions(weights, paths), predictions(exported / name, paths, **options)
    assert {prediction.decision for prediction in expected} == {"accept", "set_aside"}
    assert [prediction.decision for prediction in got] == [prediction.decision for prediction in expected]
    assert [prediction.conformal_set for prediction in got] == [prediction.conformal_set for prediction in expected]
    np.testing.assert_allclose([a.uncertainty for a in got], [a.uncertainty for a in expected], rtol=1e-3, atol=1e-6)


def test_int8_decides_as_the_net_but_near_the_threshold(weights: Path, exported: Path) -> None:
    """Scores move by 0.016 at the most and 1 decision in 224 differs where this was written; twice that may be."""
    paths = [*asked(weights), *map(str, sorted((weights.parent / "images/held").iterdir()))]
    expected, got = predictions(weights, paths), predictions(exported / "model.int8.onnx", paths)
    assert max(abs(a.uncertainty - b.uncertainty) for a, b in zip(expected, got, strict=True)) < 0.032
    assert sum(a.decision != b.decision for a, b in zip(expected, got, strict=True)) <= 0.02 * len(paths)
    decided = [prediction.decision for prediction in expected]
    assert min(decided.count("accept"), decided.count("set_aside")) > 0.2 * len(paths)  # both are common


def test_int8_has_thresholds_of_its_own_or_says_whose_they_are(
    weights: Path, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The rest of the file stays, and its own outputs on the list are what its thresholds were counted on."""
    own, held = tmp_path / "own.onnx", weights.with_name("held.txt")
    shutil.copyfile(exported / "model.int8.onnx", own)
    foreign = (
        f"warning: {own}: its thresholds were fitted to the outputs of fp32, and the target risk is that of those; "
        "int8 on onnxruntime decides a little differently\n"
    )
    runtime = ("--runtime", "onnxruntime")
    one_image = (*runtime, "--image", weights.parent / "asked/mixed6.png", "--output", tmp_path / "one.csv")
    assert run("--weights", own, *one_image) == 0
    assert capsys.readouterr().err == f"inference_uncertain.py: {foreign}"
    assert inference.main([str(flag) for flag in ("--weights", own, *one_image)]) == 0
    assert capsys.readouterr().err == f"inference.py: {foreign}"
    target = ("--target_risk", 0.06, "--confidence", 0.9, "--conformal", 0.04)
    assert run("--weights", own, "--calibrate", held, "--list_root", weights.parent / "images", *runtime, *target) == 0
    captured = capsys.readouterr()
    written = captured.out.splitlines()[-2]  # the last line names the folder that was read
    assert written == f"fitted to the outputs of int8 on onnxruntime, and written into {own}"
    metadata = read_metadata(own)
    calibration = metadata.calibration
    assert calibration is not None and calibration.fitted_to == "int8 on onnxruntime"
    before, after = (onnx.load(path).graph.SerializeToString() for path in (exported / "model.int8.onnx", own))
    assert after == before
    assert run("--weights", own, *one_image) == 0 and capsys.readouterr().err == ""
    lines = [line.split("----") for line in held.read_text(encoding="utf-8").splitlines()]
    kept = [line for line, fits_temperature in zip(lines, for_temperature(200), strict=True) if not fits_temperature]
    decided = predictions(own, [str(weights.parent / "images" / name) for name, _ in kept], runtime="onnxruntime")
    accepted = [(p.label, int(label)) for p, (_, label) in zip(decided, kept, strict=True) if p.decision == "accept"]
    assert (len(accepted), sum(a != b for a, b in accepted)) == (calibration.accepted, calibration.wrong)


def test_a_checkpoint_calibrated_in_bf16_says_so(
    plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_checkpoint(load_checkpoint(plain), tmp_path / "net.pth")
    where = ("--calibrate", plain.with_name("held.txt"), "--target_risk", 0.1, "--conformal", 0.1)
    assert run("--weights", tmp_path / "net.pth", *where, "--precision", "bf16") == 0
    calibration = read_metadata(tmp_path / "net.pth").calibration
    assert calibration is not None and calibration.fitted_to == "bf16"
    image = ("--image", plain.parent / "asked/mixed6.png", "--output", tmp_path / "one.csv")
    capsys.readouterr()
    assert run("--weights", tmp_path / "net.pth", *image) == 0
    assert "were fitted to the outputs of bf16, and the target risk is that of those; fp32 " in capsys.readouterr().err
    assert run("--weights", tmp_path / "net.pth", *image, "--precision", "bf16") == 0
    assert capsys.readouterr().err == ""


def test_an_int8_file_serves_and_is_evaluated_with_a_note(
    weights: Path, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = (
        "--evaluate",
        weights.with_name("held.txt"),
        "--list_root",
        weights.parent / "images",
        "--report",
        tmp_path,
    )
    assert run("--weights", exported / "model.int8.onnx", *where) == 0
    notes = json.loads((tmp_path / "uncertainty.json").read_text(encoding="utf-8"))["notes"]
    assert any(
        note.startswith("Its thresholds were fitted to the outputs of fp32, and the target risk") for note in notes
    )


def test_a_write_protected_folder_is_named_before_the_net_runs(
    plain: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inference_uncertain, "load_net", lambda *_: pytest.fail("the net was loaded"))
    monkeypatch.setattr("os.access", lambda path, mode: False)  # these tests may run as root, who may write anywhere
    assert mistake(capsys, "--weights", plain, "--calibrate", plain.with_name("held.txt")) == (
        f"{plain.parent}: no permission to write there"
    )


def test_worse_scores_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    """Half of the scores are 0.9 and right for 0.9 of the images: any other temperature is worse."""
    logits = np.tile(np.array([[np.log(9.0), 0.0]], np.float32), (500, 1))
    labels = (np.arange(500) % 10 == 0).astype(int)
    outputs = Outputs(logits, labels, ("a",) * 500)
    _warn_of_worse_scores(outputs, replace(metadata_with(), temperature=1.0))
    assert capsys.readouterr().err == ""
    _warn_of_worse_scores(outputs, replace(metadata_with(), temperature=0.5))
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith(
        "inference_uncertain.py: the temperature 0.5000 makes the negative log likelihood of the 400 images that it "
        "was not fitted to worse: "
    )
    right = np.mean(labels[~for_temperature(500)] == 0)
    assert second.endswith(
        f"expected calibration error of the 400 images that it was not fitted to worse: {81 / 82 - right:.4f} "
        f"instead of {abs(0.9 - right):.4f}; a longer list fits it better"
    )


def test_every_export_carries_the_calibration(weights: Path, exported: Path) -> None:
    own = read_metadata(weights)
    description = json.loads((exported / "model.json").read_text(encoding="utf-8"))["facts"]
    assert ModelMetadata.from_dict(description).calibration == own.calibration
    for name in ("float.onnx", "model.int8.onnx", "model.json"):
        metadata = read_metadata(exported / name)
        assert (metadata.calibration, metadata.temperature, metadata.thresholds) == (
            own.calibration,
            own.temperature,
            own.thresholds,
        )


def test_an_engine_carries_the_calibration(weights: Path, exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The builder is replaced, which takes long and copies no metadata; the file beside the engine is the real one."""
    monkeypatch.setattr(engine, "build_engine", lambda *_, **__: b"plan")
    monkeypatch.setattr(engine, "load_library", lambda: SimpleNamespace(__name__="tensorrt", __version__="1.0"))
    target = exported / "model.engine"
    engine.write_engine(exported / "model.json", target)
    own, beside = read_metadata(weights), read_metadata(target)
    assert own.calibration is not None
    assert (beside.calibration, beside.temperature, beside.thresholds) == (
        own.calibration,
        own.temperature,
        own.thresholds,
    )


def test_the_service_decides_as_the_net(weights: Path, tmp_path: Path) -> None:
    paths = asked(weights)[:14]
    expected = predictions(weights, paths)
    assert {prediction.decision for prediction in expected} == {"accept", "set_aside"}
    responses = served(
        Predictor(*load_backend(weights, device="cpu")), tmp_path, [Path(path).read_bytes() for path in paths]
    )
    for row, prediction in zip(responses, expected, strict=True):
        assert (row["class"], row["decision"]) == (prediction.class_name, prediction.decision)
        assert row["conformal_set"] == list(prediction.conformal_set)
        assert row["uncertainty"] == pytest.approx(prediction.uncertainty, rel=1e-3, abs=1e-6)


def served(predictor: Predictor, page: Path, images: list[bytes]) -> list[dict[str, Any]]:
    """Return the entries of images in a service's response."""
    with running(predictor, service_flags(), page=write_page(page)) as port:
        body = {CONTENT: [base64_of(image) for image in images]}
        entries: list[dict[str, Any]] = RunningService(port, GatedBackend()).send("/predict", body)[1]["data"]
    return entries


# --- evaluation


def test_an_evaluation_measures_the_nets_predictions(
    weights: Path, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held, ood = weights.with_name("some.txt"), weights.parent / "asked"
    held.write_text("".join(weights.with_name("held.txt").read_text(encoding="utf-8").splitlines(True)[:80]), "utf-8")
    values, lines_of = {}, {}
    for file in (weights, exported / "float.onnx"):
        where = ("--list_root", weights.parent / "images", "--report", tmp_path / file.suffix)
        assert run("--weights", file, "--evaluate", held, "--ood", ood, *where) == 0
        lines_of[file] = capsys.readouterr().out
        values[file] = json.loads((tmp_path / file.suffix / "uncertainty.json").read_text(encoding="utf-8"))
    own, other = values.values()
    lines = [line.split("----") for line in held.read_text(encoding="utf-8").splitlines()]
    labels = [int(label) for _, label in lines]
    known = predictions(weights, [str(weights.parent / "images" / name) for name, _ in lines])
    wrong = [prediction.label != label for prediction, label in zip(known, labels, strict=True)]
    accepted = [prediction.decision == "accept" for prediction in known]
    assert own["accuracy"] == pytest.approx(1 - sum(wrong) / 80) and own["pictures"] == 80
    assert own["decided"]["accepted"] == sum(accepted)
    assert own["decided"]["wrong"] == sum(is_wrong for is_wrong, is_in in zip(wrong, accepted, strict=True) if is_in)
    assert list(own["scores"]) == [*SCORES, "distance"] and list(other["scores"]) == list(SCORES)
    others = predictions(weights, asked(weights))
    assert own["strange"]["pictures"] == 24  # one image is bad
    assert own["strange"]["accepted"] == sum(prediction.decision == "accept" for prediction in others)
    scores = [prediction.uncertainty for prediction in (*known, *others)]
    area = roc_auc_score([0] * 80 + [1] * 24, scores)
    assert own["scores"]["least_confidence"]["auroc"] == pytest.approx(area, abs=1e-6)
    (note,) = own["notes"]
    assert note.startswith(f"Images that cannot be read and were left out: 1; the first: {ood}/cut.png: ")
    assert other["notes"][0] == "The distance to the class means is left out: an exported file gives no features."
    for name in ("accuracy", "decided", "strange", "mistakes"):
        assert json.dumps(other[name])[:60] == json.dumps(own[name])[:60]
    assert f"{tmp_path}/.pth/uncertainty.html and uncertainty.json beside it\n" in lines_of[weights]
    assert "least_confidence *" in lines_of[weights] and "\ndistance" not in lines_of[exported / "float.onnx"]


def test_an_evaluation_of_repeated_passes(weights: Path, tmp_path: Path) -> None:
    few = weights.with_name("few.txt")
    few.write_text("".join(f"held/mixed{number}.png----{number % 2}\n" for number in range(20)), encoding="utf-8")
    repeat = ("--repeat", "views", "--views", "shift")
    means = ("--means", few)
    assert run("--weights", weights, "--evaluate", few, *repeat, *means, "--report", tmp_path) == 0
    values = json.loads((tmp_path / "uncertainty.json").read_text(encoding="utf-8"))
    assert list(values["scores"])[5:] == ["distance", "predictive_entropy", "expected_entropy", "mutual_information"]
    assert values["passes"]["count"] == 5 and values["strange"] is None and values["notes"] == []


# --- predictions


def test_a_folder_is_classified_decided_and_its_uncertain_images_set_aside(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = weights.parent / "asked"
    where = ("--output", tmp_path / "a.csv", "--set_aside", tmp_path / "aside")
    assert run("--weights", weights, "-idir", folder, *where) == 1  # one image is bad
    *lines, sums = capsys.readouterr().out.splitlines()
    with (tmp_path / "a.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert ",".join(rows[0]) == "file,label,class,score,uncertainty,decision,conformal_set,error"
    good = [row for row in rows if not row["error"]]
    assert len(rows) == 25 and len(good) == 24
    expected = {prediction.file: prediction for prediction in predictions(weights, asked(weights))}
    for row in good:
        prediction = expected[row["file"]]
        assert (row["class"], row["decision"]) == (prediction.class_name, prediction.decision)
        assert float(row["uncertainty"]) == pytest.approx(prediction.uncertainty, rel=1e-4)
        assert json.loads(row["conformal_set"]) == list(prediction.conformal_set)
    uncertain = sorted(
        (row for row in good if row["decision"] == "set_aside"), key=lambda row: -expected[row["file"]].uncertainty
    )
    names = [f"{rank:04d}_{Path(row['file']).name}" for rank, row in enumerate(uncertain, 1)]
    assert 0 < len(names) < 24
    made = sorted(path.name for path in (tmp_path / "aside").iterdir())
    beside = ["annotation.json", "classes.txt", "contact_sheet.png", "meta.json", "to_label.txt"]
    assert made == sorted([*names, *beside])
    annotated = read_annotations(tmp_path / "aside/annotation.json")
    assert [record["image_file"] for record in annotated.records] == names and annotated.category == CLASSES
    for record, row in zip(annotated.records, uncertain, strict=True):
        prediction = expected[row["file"]]
        assert record["tag"] == row["file"] and "image_label" not in record
        assert record["predictions"] == {
            **{"image_label": prediction.label, "image_label_name": prediction.class_name, "decision": "set_aside"},
            "score": pytest.approx(prediction.score, abs=1e-5),
            "uncertainty": pytest.approx(prediction.uncertainty, abs=1e-5),
            "weights_sha256": load_checkpoint(weights).metadata.weights_sha256,
        }
    assert (tmp_path / "aside/to_label.txt").read_text() == "".join(f"{name}----?\n" for name in names)
    for row, name in zip(uncertain, names, strict=True):
        assert (tmp_path / "aside" / name).read_bytes() == Path(row["file"]).read_bytes()
    assert sum(line.endswith("  set_aside") for line in lines) == len(names)
    assert sum(bool(re.search(r"  0\.\d{4}  [\d.e-]+ +accept$", line)) for line in lines) == 24 - len(names)
    assert re.fullmatch(
        rf"{24 - len(names)} accepted, {len(names)} set aside, 1 failed, [\d.]+ images/s on torch cpu; "
        rf"results in {tmp_path}/a\.csv and {tmp_path}/aside",
        sums,
    )


def test_one_image_from_an_exported_file(weights: Path, exported: Path, tmp_path: Path) -> None:
    image = weights.parent / "asked/mixed6.png"
    for file in (weights, exported / "float.onnx"):
        assert run("--weights", file, "-image", image, "--output", tmp_path / f"{file.stem}.json") == 0
    first, second = (json.loads((tmp_path / f"{name}.json").read_text())[0] for name in ("calibrated", "float"))
    assert list(first) == ["file", "label", "class", "score", "top_k", "uncertainty", "decision", "conformal_set"]
    assert second | {"score": 0, "top_k": 0, "uncertainty": 0} == first | {"score": 0, "top_k": 0, "uncertainty": 0}


def test_inference_writes_the_decision_of_a_calibrated_net_and_prints_as_ever(
    plain: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = weights.parent / "asked/deeper"
    columns = {}
    for file in (plain, weights):
        output = tmp_path / f"{file.stem}.csv"
        flags = ["--weights", file, "--image_dir", folder, "--output", output, "--topk", 2]
        assert inference.main([str(flag) for flag in flags]) == 0
        columns[file] = output.read_text(encoding="utf-8-sig").splitlines()[0]
    assert columns[plain] == "file,label,class,score,class_2,score_2,error"
    assert columns[weights] == "file,label,class,score,class_2,score_2,uncertainty,decision,conformal_set,error"
    assert "accept" not in capsys.readouterr().out


def test_quiet_still_shows_what_was_set_aside(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--weights", weights, "-idir", weights.parent / "asked", "--output", tmp_path / "a.csv", "--quiet") == 1
    *lines, sums = capsys.readouterr().out.splitlines()
    assert len(lines) == int(sums.split(", ")[1].split()[0]) + 1 and not any("accept" in line for line in lines)


def test_an_ensemble_adds_columns_and_leaves_the_predictions(plain: Path, weights: Path, tmp_path: Path) -> None:
    where = ("-idir", weights.parent / "asked/deeper", "--output", tmp_path / "a.jsonl")
    assert run("--weights", weights, plain, *where) == 0
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    expected = predictions(weights, [row["file"] for row in rows])
    for row, prediction in zip(rows, expected, strict=True):
        total = row.pop("expected_entropy") + row.pop("mutual_information")
        assert row.pop("predictive_entropy") == pytest.approx(total, abs=1e-9) and total > 0
        assert row["decision"] == prediction.decision and row["score"] == pytest.approx(prediction.score, abs=1e-5)
        assert list(row) == ["file", "label", "class", "score", "top_k", "uncertainty", "decision", "conformal_set"]


# --- mistakes


def test_mistakes_are_sentences(
    plain: Path, weights: Path, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, held = weights.parent / "asked", weights.with_name("held.txt")
    before = plain.read_bytes()
    bare = tmp_path / "bare.pth"
    torch.save(load_checkpoint(plain).net, bare)
    ask, fit = ("--image_dir", folder), ("--calibrate", held)
    image, one_image = folder / "mixed0.png", "it is one image; name a list or a folder of images with "
    sentences = {
        (
            "--weights",
            plain,
            *ask,
        ): f"{plain}: it is not calibrated, so it has no thresholds; calibrate it with: python "
        "inference_uncertain.py --weights CHECKPOINT --calibrate LIST; then export it again if this was exported",
        (
            "--weights",
            exported / "model.json",
            *fit,
        ): f"{exported}/model.json: this network description cannot be changed; "
        "calibrate the checkpoint (.pth) that it was made from, and export it again",
        ("--weights", plain, *fit): "200 images are too few for a risk under 0.01 with confidence 0.95 and "
        "conformal sets that miss 0.05: at least 387 are needed, all of them predicted correctly; a higher "
        "--target_risk needs fewer",
        ("--weights", plain, "--calibrate", weights.with_name("train.txt"), "--target_risk", 0.4): f"{plain.parent}/"
        "train.txt: 30 of its 30 images were trained on, and a net is overconfident on those; name a list of others, "
        "such as the validation list",
        ("--weights", plain, *fit, *ask): "--calibrate fits one net's single pass, and predicts for no images: leave "
        "out --image_dir",
        ("--weights", plain, weights, *fit): "--calibrate fits one net's single pass, and predicts for no images: "
        "leave out --weights of several nets",
        ("--weights", plain, "--calibrate", "none.txt"): f"none.txt: no such list or folder (relative paths start from "
        f"{Path.cwd()})",
        ("--weights", plain, "--calibrate", image): f"{image}: {one_image}--calibrate",
        ("--weights", weights, "--evaluate", image): f"{image}: {one_image}--evaluate",
        ("--weights", weights, "--evaluate", held, "--means", image): f"{image}: {one_image}--means",
        ("--weights", weights, *ask, "--ood", folder): "--ood goes with --evaluate LIST",
        ("--weights", weights, *fit, "--evaluate", held): "--calibrate fits one net's single pass, and predicts for no "
        "images: leave out --evaluate",
        ("--weights", weights, *ask, "--evaluate", held): "--evaluate writes a report, and predicts for no images: "
        "leave out --image_dir",
        ("--weights", weights, "--evaluate", held, "--ood", "none"): f"none: no such folder (relative paths start from "
        f"{Path.cwd()})",
        ("--weights", exported / "float.onnx", "--evaluate", held, "--means", held): "--means goes with a checkpoint: "
        "an exported file gives no features",
        ("--weights", weights, "--evaluate", weights.with_name("train.txt")): f"{weights.parent}/train.txt: 30 of its "
        "30 images were trained on, and a net is overconfident on those; name a list of others, such as the validation "
        "list",
        ("--weights", weights, *ask, "--score", "energy"): "--score goes with --calibrate LIST; the net's own "
        "calibration decides",
        ("--weights", weights, *ask, "--passes", 5): "--passes goes with --repeat dropout",
        ("--weights", weights, *ask, "--views", "flip"): "--views goes with --repeat views",
        ("--weights", weights, weights, *ask, "--repeat", "views"): "several --weights run once each: leave out "
        "--repeat",
        ("--weights", weights, *ask, "--repeat", "dropout"): "GeM_ResNet_AVP was trained without dropout, so there is "
        "none to keep on; use --repeat views",
        ("--weights", weights, *ask, "--set_aside", held.parent): f"{held.parent}: it is not empty; name a new folder "
        "with --set_aside",
        ("--weights", weights, tmp_path / "none.pth", *ask): f"{tmp_path}/none.pth: no such file (relative paths start "
        f"from {Path.cwd()})",
        ("--weights", bare, *ask): f"{bare}: bare weights do not name their net; inference.py, inference_uncertain.py, "
        "deploy.export and tools.embed take their config with --config",
    }
    for flags, sentence in sentences.items():
        assert mistake(capsys, *flags) == sentence
    assert plain.read_bytes() == before


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--target_risk", "0"), 'argument --target_risk: must be a number between 0 and 1, got "0"'),
        (
            ("--conformal", "1e-320"),
            'argument --conformal: must be 1e-06 away from 0 and from 1 at least, got "1e-320"',
        ),
        (("--confidence", "x"), 'argument --confidence: must be a number between 0 and 1, got "x"'),
        (("--views", "flip,turn"), 'argument --views: must be of flip,shift,scale, got "turn"'),
    ],
)
def test_mistakes_in_flags(flags: tuple[str, str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(*flags)
    assert stopped.value.code == 2 and sentence in capsys.readouterr().err


def test_without_the_training_list_there_is_a_warning(
    plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = load_checkpoint(plain)
    config = checkpoint.config | {"train_data_file": str(tmp_path / "gone.txt")}
    save_checkpoint(Checkpoint(config, checkpoint.metadata, checkpoint.net), tmp_path / "net.pth")
    held = plain.with_name("held.txt")
    assert run("--weights", tmp_path / "net.pth", "--calibrate", held, "--target_risk", 0.2) == 0
    err = capsys.readouterr().err
    assert f"the training images of {tmp_path}/net.pth are not on this machine: take care that {held} has none\n" in err


def test_help_and_mistakes_come_without_torch() -> None:
    code = (
        "import sys, inference_uncertain as program\n"
        "assert program.main(['--weights', 'none.pth', '-idir', '/']) == 2\n"
        "try: program.main(['--help'])\n"
        "except SystemExit as stop: assert not stop.code\n"
        "assert 'torch' not in sys.modules and 'matplotlib' not in sys.modules\n"
    )
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, cwd=PROGRAM.parent, timeout=600)
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80
