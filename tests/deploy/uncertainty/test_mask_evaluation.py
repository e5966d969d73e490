"""Masks evaluated on images with label images: one file, several side by side, and classes read as others."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import inference
import inference_uncertain
from artifacts.calibration import FP32, MOST_MISSED, PIXEL_SCORE
from artifacts.checkpoint import Checkpoint, load_checkpoint, save_checkpoint, weights_sha256
from artifacts.metadata import ModelMetadata
from artifacts.pixel_confusion import class_ious, mean_iou, pixel_confusion
from data_loader.mask_classes import VOID, MaskClass, OtherClass, others_beside
from data_loader.preprocess import Preprocess
from deploy.backends.loading import load_backend
from deploy.export.__main__ import main as export_main
from deploy.inference.decision import foreign_calibration
from deploy.inference.predictor import Predictor
from nets.net_interface import build_net
from tests.helpers.calibrated import metadata_with
from tests.helpers.masks import CLASSES, VALUES, mask_nets, scene, trained_masks
from tests.helpers.serving import GatedBackend, RunningService, base64_of, running
from tests.helpers.serving import flags as served

UNCLEAR = {"name": "cloud", "value": 99, "color": "9,9,9", "read_as": None}
PAVED = {"name": "paved", "value": 50, "color": "8,8,8", "read_as": "road"}


def test_ious_are_counted_as_by_hand() -> None:
    """Of class 0 two right of 2 + 1 pixels, of 1 one of 2; 2 has neither a true nor a predicted pixel."""
    truth = np.array([[0, 0, 1], [1, VOID, VOID]], np.uint8)
    confusion = pixel_confusion(truth, np.array([[0, 0, 1], [0, 1, 2]]), 3)
    assert confusion.tolist() == [[2, 0, 0], [1, 1, 0], [0, 0, 0]]
    assert class_ious(confusion) == pytest.approx([2 / 3, 1 / 2, np.nan], nan_ok=True)
    assert mean_iou(confusion) == pytest.approx((2 / 3 + 1 / 2) / 2) and mean_iou(np.zeros((3, 3), int)) == 0


def test_what_thresholds_were_fitted_to_is_kept_and_compared() -> None:
    plain = metadata_with(calibration=None, thresholds={})
    assert plain.calibrated_outputs == "" and "fitted_to" not in plain.to_dict()
    for key in (PIXEL_SCORE, MOST_MISSED):
        older = replace(plain, thresholds={key: 0.5})  # before files said it
        assert older.calibrated_outputs == FP32 and foreign_calibration(older, "torch") == ""
        assert "fitted to the outputs of fp32" in foreign_calibration(replace(older, precision="int8"), "openvino")
    own = replace(plain, thresholds={PIXEL_SCORE: 0.5}, fitted_to="int8 on openvino", precision="int8")
    assert ModelMetadata.from_dict(own.to_dict()) == own and foreign_calibration(own, "openvino") == ""
    assert "int8 on onnxruntime decides a little differently" in foreign_calibration(own, "onnxruntime")
    with pytest.raises(ValueError, match="fitted_to cannot be 3"):
        ModelMetadata.from_dict({**own.to_dict(), "fitted_to": 3})


def test_others_are_those_of_the_same_classes(tmp_path: Path) -> None:
    classes = (MaskClass("ground", 0, (155, 155, 155), "地面"), MaskClass("road", 3, (110, 193, 228), "道路"))
    file, below = tmp_path / "classes.json", tmp_path / "valid"
    below.mkdir()
    assert others_beside(below, classes) == ()
    file.write_text(json.dumps([*CLASSES[:2], UNCLEAR, PAVED]), encoding="utf-8")
    cloud, paved = MaskClass("cloud", 99, (9, 9, 9), "cloud"), MaskClass("paved", 50, (8, 8, 8), "paved")
    assert others_beside(below, classes) == (OtherClass(cloud, VOID), OtherClass(paved, 1))
    assert others_beside(below, classes[:1]) == ()  # another net's
    file.write_text("[", encoding="utf-8")
    assert others_beside(below, classes) == ()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return the folder of a net of scenes, with 30 further images whose labels are partly wrong, paved or unclear."""
    folder = tmp_path_factory.mktemp("masks")
    with pytest.MonkeyPatch.context() as patch, mask_nets(folder, patch):
        trained_masks(folder)
        (folder / "classes.json").write_text(json.dumps([*CLASSES, UNCLEAR, PAVED]), encoding="utf-8")
        for number in range(30):
            pixels, indices = scene(900 + number, (33, 21))
            values = VALUES[indices]
            values[:, :11] = VALUES[(indices[:, :11] + 1) % 3] if number % 4 == 0 else values[:, :11]
            values[:9] = np.where(values[:9] == 3, 50, values[:9])
            values[-6:] = 99
            for name, content in (("images", pixels), ("labels", values)):
                (folder / "other" / name).mkdir(parents=True, exist_ok=True)
                Image.fromarray(content).save(folder / "other" / name / f"{number:02d}.png")
        yield folder


def counted(folder: Path, masks: Path) -> tuple[float, float]:
    """Return mean IoU and accuracy of mask files, counted as sets of pixels."""
    hits, unions, right, known = dict.fromkeys((0, 3, 7), 0), dict.fromkeys((0, 3, 7), 0), 0, 0
    for path in sorted((folder / "other/labels").iterdir()):
        truth, got = (np.array(Image.open(file)) for file in (path, masks / "images" / f"{path.name}.mask.png"))
        truth[truth == 50] = 3
        for value in hits:
            is_true, is_got = (truth == value), (got == value) & (truth != 99)
            hits[value] += int((is_true & is_got).sum())
            unions[value] += int((is_true | is_got).sum())
        right, known = right + int((truth == got).sum()), known + int((truth != 99).sum())
    return float(np.mean([hits[value] / unions[value] for value in hits])), right / known


@pytest.mark.slow
def test_files_side_by_side(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights, other = str(folder / "weights/net.pth"), str(folder / "other")
    assert inference.main(["--weights", weights, "--image_dir", other, "--save_images", str(tmp_path / "m")]) == 0
    assert inference_uncertain.main(["--weights", weights, "--calibrate", other, "--target_risk", "0.3"]) == 0
    assert load_checkpoint(Path(weights)).metadata.fitted_to == "fp32"
    export = ["--weights", weights, "--formats", "onnx,int8", "--output_dir", str(tmp_path)]
    assert export_main([*export, "--samples", f"{other}/images"]) == 0
    captured = " ".join(capsys.readouterr().out.split())
    assert "int8 (int8) carries thresholds that were fitted to the outputs of fp32" in captured
    assert "int8 on openvino: mean IoU" in captured
    files = [weights, str(tmp_path / "model.onnx"), str(tmp_path / "model.int8.onnx")]
    assert inference_uncertain.main(["--weights", *files, "--evaluate", other, "--report", str(tmp_path / "r")]) == 0
    captured = capsys.readouterr().out
    iou, accuracy = counted(folder, tmp_path / "m")
    found = json.loads((tmp_path / "r/mask_evaluation.json").read_text(encoding="utf-8"))["files"]
    assert [each["precision"] for each in found] == ["fp32", "fp32", "int8"]
    assert found[0]["mean_IoU"] == pytest.approx(iou) and found[0]["pixel_accuracy"] == pytest.approx(accuracy)
    assert found[1]["mean_IoU"] == pytest.approx(iou, abs=2e-3) and found[0]["images"] == 30
    assert sum(map(sum, found[0]["confusion"])) == 30 * 33 * 15  # six of 21 rows are of no class that counts
    assert 0 < found[0]["accepted"] <= 1 and 0 <= found[0]["wrong_among_the_accepted"] < 0.3
    assert f"{'mean IoU':30}{iou:10.2%}" in captured and "[3] against [1]: mean IoU" in captured
    foreign = "its thresholds were fitted to the outputs of fp32, and the target risk is that of those; int8 on "
    assert captured.count(foreign) == 1
    assert inference_uncertain.main(["--weights", files[2], "--calibrate", other, "--target_risk", "0.3"]) == 0
    assert inference_uncertain.main(["--weights", files[2], "--evaluate", other]) == 0
    assert "fitted to the outputs of fp32" not in capsys.readouterr().out


def test_a_loss_of_over_a_point_is_a_warning(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A net that has unlearnt a class loses a third of the mean IoU at least."""
    weights, other = str(folder / "weights/net.pth"), str(folder / "other")
    checkpoint = load_checkpoint(Path(weights))
    state = {name: value.clone() for name, value in checkpoint.net.items()}
    state["layers.3.bias"][2] = -1e4
    save_checkpoint(replace(checkpoint, net=state), folder / "worse.pth")
    assert inference_uncertain.main(["--weights", weights, str(folder / "worse.pth"), "--evaluate", other]) == 0
    captured = capsys.readouterr().out
    assert "[2] against [1]: mean IoU -" in captured and "points; warning: over a point is lost" in captured
    assert inference_uncertain.main(["--weights", weights, "--evaluate", str(folder / "train")]) == 2
    assert "10 of its 10 images were trained on" in capsys.readouterr().err
    assert inference_uncertain.main(["--weights", weights, "--evaluate", other, "--ood", other]) == 2
    assert "--ood is not for nets that give masks" in capsys.readouterr().err


def pair_net(folder: Path) -> Path:
    """Return a checkpoint of a net of pairs whose logit of change is 9 (d - 0.5), d the red that the later has more."""
    net = build_net(
        *("tiny_masks_module", "TinyChange"),
        num_classes=2,
        num_channels=6,
        img_height=24,
        img_width=24,
        model_args={"norm": False},
    )
    state = {name: torch.zeros_like(value) for name, value in net.state_dict().items()}
    state["layers.0.weight"][0, (0, 3), 1, 1] = torch.tensor([-1.0, 1.0])
    state["layers.2.weight"][1, 0], state["layers.2.bias"][1] = 9.0, -4.5
    preprocess = Preprocess(24, 24, channels=6, images=2, mean=(0,) * 6, std=(1,) * 6)
    described = {"module": "tiny_masks_module", "name": "TinyChange", "args": {"norm": False}}
    metadata = ModelMetadata(
        *(("same", "changed"), preprocess, described),
        task="change_detection",
        output="mask_logits",
        weights_sha256=weights_sha256(state),
    )
    save_checkpoint(Checkpoint({}, metadata, state), folder / "pairs.pth")
    return folder / "pairs.pth"


def test_pairs_are_calibrated_and_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The threshold sets aside what lies near the border of the two classes, where alone the net is wrong."""
    generator, other = np.random.default_rng(0), tmp_path / "other"
    for number in range(30):
        red = generator.random((24, 24))
        before, after = np.zeros((2, 24, 24, 3), np.uint8)
        after[..., 0] = np.rint(red * 255)
        truth = (red + generator.normal(0, 0.1, red.shape) > 0.5).astype(np.uint8) * 255
        for name, content in (("A", before), ("B", after), ("labels", truth)):
            (other / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(content).save(other / name / f"{number:02d}.png")
    with mask_nets(tmp_path, monkeypatch):
        weights = pair_net(tmp_path)
        flags = ["--weights", str(weights), "--device", "cpu"]
        assert inference_uncertain.main([*flags, "--calibrate", str(other)]) == 0
        found = load_checkpoint(weights).metadata
        assert found.fitted_to == "fp32" and 0.5 < found.thresholds[PIXEL_SCORE] < 1
        out = tmp_path / "out"
        assert inference_uncertain.main([*flags, "--image_dir", str(other), "--set_aside", str(out), "--quiet"]) == 0
        assert inference_uncertain.main([*flags, "--evaluate", str(other), "--report", str(out)]) == 0
        backend, metadata = load_backend(weights, device="cpu")
    values = json.loads((out / "mask_evaluation.json").read_text(encoding="utf-8"))["files"][0]
    assert 0.85 < values["pixel_accuracy"] < 0.97 and 0.5 < values["accepted"] < 1
    assert values["wrong_among_the_accepted"] <= 0.1 < 1 and "at most 10.00% wrong" in capsys.readouterr().out
    aside = np.asarray(Image.open(next(out.rglob("00.png.set_aside.png"))))
    with Image.open(other / "B/00.png") as image:
        distance = np.abs(np.asarray(image)[..., 0] / 255 - 0.5)
    assert aside.any() and distance[aside > 0].max() < distance[aside == 0].min()
    contents = [base64_of((other / name / "00.png").read_bytes()) for name in ("A", "B")]
    with running(Predictor(backend, metadata), served("--workers", 1), "") as port:
        status, body, _ = RunningService(port, GatedBackend()).send(body={"content": contents})
    assert status == 200
    png = base64.b64decode(body["data"][0]["set_aside"].removeprefix("data:image/png;base64,"))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(png))) > 0, aside > 0)
