"""Exports: the files, the verification that refuses wrong ones, the table, the report, the mistakes."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import pkgutil
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import scipy.stats
import torch
from onnx import numpy_helper

from artifacts.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from artifacts.metadata import ModelMetadata
from artifacts.metadata_reader import read_metadata
from configs.schema import Config
from data_loader.preprocess import Preprocess, as_array
from deploy.backends import torch_backend
from deploy.backends.base import BackendError, failure
from deploy.backends.loading import load_backend
from deploy.backends.torch_backend import CheckpointBackend
from deploy.export import request, timing, verification, writers
from deploy.export.__main__ import main as export_main
from deploy.export.errors import ExportError
from deploy.export.formats import EXPORT_FORMATS, MISSING, REFUSED, WRITTEN, LateFunction
from deploy.export.layer_diff import Call, first_diverging, first_noisy, record_calls
from deploy.export.parity import compare_outputs
from deploy.export.parity_rule import ParityResult, is_chance
from deploy.export.preparation import share_for_int8
from deploy.export.reference import TOLERANCES, Reference
from deploy.export.report import COLUMNS, ExportReport, Outcome
from deploy.export.request import ExportRequest
from deploy.export.sample_images import SampleImages, find_images, net_input
from deploy.export.timing import BestPrecision, best_precision, time_in_turn
from deploy.export.verification import verify_backend
from deploy.inference.predictor import Predictor
from nets.net_interface import build_net
from tests.conftest import CLASSES
from tests.helpers.exported import (
    ENVIRONMENT,
    NET,
    export,
    metadata_and_config,
    mistake,
    names_in,
    paint,
    report_of,
    train_net,
)

CPU_FORMATS = ["jit", "pt2", "onnx", "int8", "json"]
FILES = {name: row.files for name, row in EXPORT_FORMATS.items()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_net(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def exported(trained: Path) -> Path:
    """Export to all that a CPU runs; return the folder, beside which table.txt holds what was printed."""
    folder, table = trained.parent / "out", io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(table):
        patch.chdir(trained.parent)
        assert export(Path("net.pth"), CPU_FORMATS, Path("out"), device="cpu") == 0
    (trained.parent / "table.txt").write_text(table.getvalue())
    return folder


def load_torch_net(weights: Path) -> torch.nn.Module:
    net = build_net(
        NET["module"], NET["name"], num_classes=3, img_height=32, img_width=32, model_args={"model_type": "resnet18"}
    )
    net.load_state_dict(load_checkpoint(weights).net)
    return net.eval()


def validation(trained: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the validation images as the net takes them, made by the preprocessing itself, and their labels."""
    config = load_checkpoint(trained).config
    rows = [line.split("----") for line in Path(config["val_data_file"]).read_text().split()]
    preprocess = Preprocess(32, 32)
    images = [preprocess(as_array(preprocess.decode(Path(config["val_data_root_dir"], name)))) for name, _ in rows]
    return np.stack(images), np.array([int(label) for _, label in rows])


# --- the files


def test_every_format_is_written_with_its_report_and_nothing_else(exported: Path) -> None:
    files = [name for name in CPU_FORMATS for name in FILES[name]]
    assert names_in(exported) == sorted([*files, "export_report.json"])


def test_every_file_predicts_as_the_net_to_four_decimals(exported: Path, trained: Path) -> None:
    paths = [str(path) for path in sorted((trained.parent / "images/val").iterdir())]

    def predictions(weights: Path, **options: Any) -> list[tuple[str, float]]:
        predictor = Predictor(*load_backend(weights, device="cpu", **options))
        return [(prediction.class_name, prediction.score) for prediction in predictor.predict_files(paths, workers=1)]

    expected = predictions(trained)
    assert {name for name, _ in expected} == set(CLASSES)
    for name in ("model.pt", "model.pt2", "model.onnx", "model.json"):
        for options in [{"runtime": "onnxruntime"}, {"runtime": "openvino"}] if name == "model.onnx" else [{}]:
            got = predictions(exported / name, **options)
            assert [label for label, _ in got] == [label for label, _ in expected]
            np.testing.assert_allclose([s for _, s in got], [s for _, s in expected], rtol=0, atol=5e-5)
    assert [label for label, _ in predictions(exported / "model.int8.onnx")] == [label for label, _ in expected]


def test_every_file_carries_the_checkpoints_metadata(exported: Path, trained: Path) -> None:
    own = load_checkpoint(trained).metadata
    for name in ("model.pt", "model.pt2", "model.onnx", "model.int8.onnx", "model.json"):
        metadata = read_metadata(exported / name)
        assert metadata.versions["torch"] == torch.__version__
        precision = "int8" if "int8" in name else "fp32"
        assert replace(metadata, versions={}) == replace(own, versions={}, precision=precision)


def test_the_report_has_what_was_measured(exported: Path, trained: Path) -> None:
    report = report_of(exported)
    images, labels = validation(trained)
    net, _ = load_backend(trained, device="cpu")
    expected = net(images)
    assert report["samples"]["used"] == len(images) == 40
    assert report["samples"]["source"].endswith("val.txt")
    assert report["samples"]["accuracy"] == (expected.argmax(1) == labels).mean() > 0.9
    assert report["calibration"] == {"source": str(trained.parent / "train.txt"), "used": 30}
    assert report["weights_sha256"] == load_checkpoint(trained).metadata.weights_sha256
    assert {"torch", "onnx", "onnxruntime"} <= set(report["versions"])
    assert report["machine"]["torch_threads"] == torch.get_num_threads()
    formats = {entry["format"]: entry for entry in report["formats"]}
    assert list(formats) == CPU_FORMATS
    assert [run["runtime"] for run in formats["onnx"]["runs"]] == ["openvino", "onnxruntime"]
    for name, entry in formats.items():
        assert entry["status"] == "written"
        assert entry["bytes"] == sum((exported / file).stat().st_size for file in entry["files"])
        for run in entry["runs"]:
            options = {"runtime": run["runtime"]} if name in ("onnx", "int8") else {}
            got = load_backend(exported / entry["files"][0], device="cpu", **options)[0](images)
            worst = np.abs(got - expected).max() / np.abs(expected).max()
            np.testing.assert_allclose(run["worst_difference"], worst, rtol=0.2, atol=1e-6)
            assert run["top1_agreement"] == 1 - run["changed_count"] / 40
            assert run["batch_ms"] > 0 and run["eager_batch_ms"] > 0
            np.testing.assert_allclose(run["speed"], run["eager_batch_ms"] / run["batch_ms"], rtol=1e-9)


def test_the_table_fits_80_columns(exported: Path, trained: Path) -> None:
    text = (trained.parent / "table.txt").read_text()
    lines = [line for line in text.splitlines() if str(trained.parent) not in line]  # a path is not broken
    assert max(map(len, lines)) <= COLUMNS < 80
    rows = [line.split() for line in lines[2:9]]
    assert [row[0] for row in rows] == ["jit", "pt2", "onnx", "onnxruntime", "int8", "onnxruntime", "json"]
    jit = report_of(exported)["formats"][0]
    run = jit["runs"][0]
    assert rows[0][:4] == ["jit", "model.pt", "jit", f"{jit['bytes'] / 1e6:.1f}"]
    assert rows[0][4] == f"{run['worst_difference']:.1e}"
    assert rows[0][6:] == ["100.00", f"{run['batch_ms']:.1f}", f"{run['speed']:.2f}x"]
    flat = " ".join(text.split())
    assert "top-1 accuracy" in flat
    assert f"int8 was calibrated on 30 images of {trained.parent}/train.txt" in flat


@pytest.mark.parametrize(
    ("order", "kind", "formats"),
    [("rgb", "uint8 NHWC RGB", ["jit"]), ("bgr", "uint8 NHWC BGR", ["pt2", "onnx", "json"])],
)
def test_with_preprocessing_the_file_takes_the_image_itself(
    order: str, kind: str, formats: list[str], trained: Path, tmp_path: Path
) -> None:
    assert export(trained, formats, tmp_path, with_preprocess=order, device="cpu") == 0
    files = sorted((trained.parent / "images/val").iterdir())
    preprocess = Preprocess(32, 32)
    pixels = np.stack([preprocess.fit(preprocess.decode(file)) for file in files])
    net, _ = load_backend(trained, device="cpu")
    expected = net(np.stack([preprocess(image) for image in pixels]))
    for file_format in formats:
        backend, metadata = load_backend(tmp_path / FILES[file_format][0], device="cpu")
        assert metadata.input == kind
        right = pixels if order == "rgb" else pixels[..., ::-1]
        np.testing.assert_allclose(backend(np.ascontiguousarray(right)), expected, atol=1e-5 * np.abs(expected).max())
        wrong = backend(np.ascontiguousarray(right[..., ::-1]))
        assert np.abs(wrong - expected).max() > 1e-2 * np.abs(expected).max()  # the channels' order counts


@pytest.mark.parametrize(("precision", "formats"), [("fp16", ["jit"]), ("bf16", ["pt2", "json"])])
def test_half_precision_takes_and_gives_float32(
    precision: str, formats: list[str], trained: Path, tmp_path: Path
) -> None:
    assert export(trained, formats, tmp_path, precision=precision, device="cpu") == 0
    images, _ = validation(trained)
    expected = load_backend(trained, device="cpu")[0](images)
    for file_format in formats:
        path = tmp_path / FILES[file_format][-1]
        assert path.stat().st_size < 0.6 * trained.stat().st_size
        backend, metadata = load_backend(tmp_path / FILES[file_format][0], device="cpu")
        assert metadata.precision == precision
        error = np.abs(backend(images) - expected).max() / np.abs(expected).max()
        assert 1e-5 < error < TOLERANCES[precision]


def test_bare_weights_are_described_by_a_config(trained: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(trained)
    torch.save(checkpoint.net, tmp_path / "bare.pth")
    config = Config.model_validate(checkpoint.config)
    assert export(tmp_path / "bare.pth", ["jit"], tmp_path, config=config, device="cpu") == 0
    assert read_metadata(tmp_path / "model.pt").weights_sha256 == checkpoint.metadata.weights_sha256


class Ripeness(torch.nn.Module):
    """A net without classes: float32 (N, 3, 16, 16) -> (N,)."""

    task = "regression"

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = torch.nn.Conv2d(3, 4, 3, stride=2), torch.nn.Linear(4, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        score: torch.Tensor = self.head(self.conv(images).relu().mean((2, 3))).flatten()
        return score


def test_a_task_that_the_export_does_not_know(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net = Ripeness().eval()
    metadata = ModelMetadata((), Preprocess(16, 16), NET, task="regression", output="ripeness")
    save_checkpoint(Checkpoint({}, metadata, net.state_dict()), tmp_path / "net.pth")
    monkeypatch.setattr("deploy.backends.loading._net_of", lambda *_: net)
    for number in range(16):
        paint(tmp_path / f"images/{number}.png", number % 3, number)
    options: dict[str, Any] = {"samples": tmp_path / "images", "device": "cpu"}
    table = io.StringIO()
    with contextlib.redirect_stdout(table):
        assert export(tmp_path / "net.pth", CPU_FORMATS, tmp_path / "out", **options) == 0
    report = report_of(tmp_path / "out")
    assert report["samples"]["accuracy"] is None
    for entry in report["formats"]:
        assert (entry["status"], entry["reason"]) == ("written", "")
        for run in entry["runs"]:
            assert run["top1_agreement"] is None and run["changed"] == [] and run["worst_difference"] < 0.2
    assert "top-1:" not in table.getvalue() and "difference of a value from the net's" in table.getvalue()
    assert onnx.load(tmp_path / "out/model.onnx").graph.output[0].name == "ripeness"
    images = torch.rand(3, 3, 16, 16)
    with torch.no_grad():
        expected = net(images).numpy()
    for name in ("model.pt", "model.pt2", "model.onnx", "model.json"):
        backend, own = load_backend(tmp_path / "out" / name, device="cpu")
        assert (own.task, own.output, own.class_names) == ("regression", "ripeness", ())
        np.testing.assert_allclose(backend(images.numpy()), expected, atol=1e-5)


# --- the verification


def spoil_jit(path: Path, layer: str) -> None:
    extra = {"facts.json": b""}
    net = torch.jit.load(path, _extra_files=extra)
    with torch.no_grad():
        dict(net.named_parameters())[f"{layer}.weight"].mul_(1.5)
    torch.jit.save(net, path, _extra_files=extra)


def spoil_pt2(path: Path, layer: str) -> None:
    extra = {"facts.json": ""}
    program = torch.export.load(path, extra_files=extra)
    with torch.no_grad():
        program.state_dict[f"{layer}.weight"].mul_(1.5)
    torch.export.save(program, path, extra_files=extra)


def spoil_onnx(path: Path, layer: str) -> None:
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.name == f"{layer}.weight":
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.5), tensor.name))
    onnx.save(model, path)


def spoil_int8(path: Path, layer: str) -> None:
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.name == f"{layer}.weight_scale":
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(40), tensor.name))
    onnx.save(model, path)


def spoil_json(path: Path, layer: str) -> None:
    from pytorch2json.description_file import read_description, write_description

    network, weights = read_description(path)
    [name] = {layer.weights["kernel"] for layer in network.layers if layer.name == LAYER}
    weights[name] = weights[name] * 1.5
    write_description(path, network, weights)


LAYER = "layer2.0.downsample.0"  # on the path of the shortcut, which every later layer follows
SPOILERS = {"jit": spoil_jit, "pt2": spoil_pt2, "onnx": spoil_onnx, "int8": spoil_int8, "json": spoil_json}
NAMED = {  # in ONNX and the description a convolution holds the norm after it, whose output is what can be compared
    **dict.fromkeys(("jit", "pt2"), LAYER),
    **dict.fromkeys(("onnx", "int8", "json"), "layer2.0.downsample.1"),
}


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
@pytest.mark.parametrize("file_format", CPU_FORMATS)
def test_a_spoilt_file_is_refused_and_its_layer_named(
    file_format: str,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write = getattr(writers, f"write_{file_format}")

    def write_and_spoil(source: writers.Source, path: Path) -> None:
        write(source, path)
        SPOILERS[file_format](path, LAYER)

    monkeypatch.setattr(writers, f"write_{file_format}", write_and_spoil)
    older = tmp_path / FILES[file_format][0]
    older.write_bytes(b"of an earlier export")
    assert export(trained, [file_format], tmp_path, device="cpu") == 3
    assert older.read_bytes() == b"of an earlier export"
    assert names_in(tmp_path) == sorted([older.name, "export_report.json"])
    [entry] = report_of(tmp_path)["formats"]
    assert entry["status"] == "refused"
    assert entry["older_file_kept"]
    assert entry["first_departing_layer"].startswith(f"{NAMED[file_format]} (")
    text = " ".join(capsys.readouterr().out.split())
    assert f"{file_format} refused: {entry['reason']}" in text
    assert f"the first diverging layer: {NAMED[file_format]}" in text
    assert "of an earlier export still there, untouched" in text


def test_a_file_whose_metadata_changed_on_the_way_is_refused(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def metadata_in(self: writers.Source, precision: str) -> ModelMetadata:
        return replace(self.metadata, precision=precision, class_names=CLASSES[::-1])

    write = writers.write_jit

    def write_with_wrong_names(source: writers.Source, path: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(writers.Source, "metadata_in", metadata_in)
            write(source, path)

    monkeypatch.setattr(writers, "write_jit", write_with_wrong_names)
    assert export(trained, ["jit"], tmp_path, device="cpu") == 3
    assert report_of(tmp_path)["formats"][0]["reason"] == "the metadata in it is not what was written"
    assert names_in(tmp_path) == ["export_report.json"]


def test_a_format_that_cannot_be_made_is_refused_and_the_others_are_written(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(source: writers.Source, path: Path) -> None:
        path.write_bytes(b"half")
        raise RuntimeError("no rule for aten::odd\nand a page more")

    monkeypatch.setattr(writers, "write_onnx", fail)
    assert export(trained, ["onnx", "jit"], tmp_path, device="cpu") == 3
    assert names_in(tmp_path) == ["export_report.json", "model.pt"]
    reasons = {entry["format"]: entry["reason"] for entry in report_of(tmp_path)["formats"]}
    assert reasons == {"jit": "", "onnx": "no rule for aten::odd"}


def test_the_other_runtime_only_warns(exported: Path, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong:
        """A runtime whose integer kernels are wrong, as some releases' were on AMX."""

        def __init__(self, name: str) -> None:
            self.name, self.device = name, "cpu"

        def __call__(self, images: np.ndarray) -> np.ndarray:
            return -np.asarray(net(images)) / 10

    metadata, config = metadata_and_config(trained)
    metadata = replace(metadata, weights_sha256=read_metadata(exported / "model.onnx").weights_sha256)
    samples = find_images(None, config, metadata, 40)
    net, _ = load_backend(trained, device="cpu")
    reference = Reference.of(net, samples, metadata)
    source = writers.Source(load_torch_net(trained), metadata, samples, samples, "fp32", metadata.input)
    load = load_backend
    for wrong, is_refused in (("onnxruntime", False), ("openvino", True)):

        def load_wrong(path: Path, *, device: str, runtime: str, wrong: str = wrong) -> Any:
            backend, metadata = load(path, device=device, runtime=runtime)
            return (Wrong(wrong) if runtime == wrong else backend), metadata

        monkeypatch.setattr(verification, "load_backend", load_wrong)
        row = EXPORT_FORMATS["int8"]
        verified = verification.verify_file(row, exported / "model.int8.onnx", source, reference, "cpu")
        problems = {runtime: run.problem for runtime, run in verified.runs}
        assert problems.pop(wrong).startswith("the logits differ by")
        assert list(problems.values()) == [""]
        assert bool(verified.problem) is is_refused
        outcome = Outcome(row, REFUSED if is_refused else WRITTEN, runs=verified.runs)
        assert (f"warning: int8 on {wrong}: the logits" in report_text(reference, [outcome])) is not is_refused


class Recorded:
    """A backend with recorded logits, by position in the images; `fault` changes those of a batch."""

    name, device = "fake", "cpu"

    def __init__(self, logits: np.ndarray, fault: Callable[[np.ndarray], np.ndarray] = lambda batch: batch) -> None:
        self.logits, self.fault = logits, fault

    def __call__(self, images: np.ndarray) -> np.ndarray:
        rows = np.rint(images[:, 0, 0, 0]).astype(int)  # each image is painted with its own number
        return self.fault(self.logits[rows])


FAKE_METADATA = ModelMetadata(("a", "b", "c"), Preprocess(4, 4, mean=(0, 0, 0), std=(1 / 255,) * 3), NET)


def reference_of(logits: np.ndarray, labels: np.ndarray | None = None) -> Reference:
    pixels = np.broadcast_to(np.arange(len(logits), dtype=np.uint8)[:, None, None, None], (len(logits), 4, 4, 3))
    files = tuple(f"{number}.png" for number in range(len(logits)))
    images = SampleImages(np.ascontiguousarray(pixels), labels, files, "fake", len(logits))
    return Reference.of(Recorded(logits), images, FAKE_METADATA)


def some_logits(count: int = 200) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, 3)).astype(np.float32)


@pytest.mark.parametrize(("share", "passes"), [(0.9e-4, True), (1.1e-4, False)])
def test_the_tolerance_is_of_the_largest_logit(share: float, passes: bool) -> None:
    logits = some_logits()
    logits[7] = (0, 0, 20)
    other = logits.copy()
    other[50, logits[50].argmax()] += 20 * share
    measured = compare_outputs(other, reference_of(logits), FAKE_METADATA)
    assert (measured.problem == "") is passes
    np.testing.assert_allclose(measured.worst, share, rtol=1e-2)
    np.testing.assert_allclose(measured.mean, share / 600, rtol=1e-2)
    if not passes:
        assert measured.problem == "a logit differs by 1.1e-04 of the largest; fp32 may differ by 1e-04"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_refused(value: float) -> None:
    other = some_logits()
    other[3:5] = value
    measured = compare_outputs(other, reference_of(some_logits()), FAKE_METADATA)
    assert measured.problem == "returns NaN or infinite logits for 2 of 200 images"


@pytest.mark.parametrize(("count", "changed", "passes"), [(200, 1, False), (255, 0, True)])
def test_under_999_in_1000_is_refused(count: int, changed: int, passes: bool) -> None:
    logits = some_logits(count) * np.float32(1e-4)
    logits[0] = (10, 0, 0)
    other = logits.copy()
    other[5 : 5 + changed] = other[5 : 5 + changed, ::-1]
    logits[5 : 5 + changed, 1] = 0
    measured = compare_outputs(other, reference_of(logits), FAKE_METADATA)
    assert (measured.problem == "") is passes
    if not passes:
        assert measured.problem.startswith("99.50 % of 200 images keep their class, under 99.9 %; the first: 5.png")


def test_ties_of_half_precision_are_reported_and_no_fault() -> None:
    """bfloat16 has 8 bits: at 10 two numbers beside each other are 2^-4 apart (Goldberg 1991, machine epsilon)."""
    logits = some_logits(100) / 100
    logits[0] = (10, 0, 0)
    logits[1], logits[2] = (5, 5.05, 0), (5, 5.5, 0)
    other = logits.copy()
    other[1] = (5.05, 5, 0)
    measured = compare_outputs(other, reference_of(logits), replace(FAKE_METADATA, precision="bf16"))
    assert (measured.problem, measured.ties, measured.agreement) == ("", 1, 0.99)
    assert measured.flips == [("1.png", "b", "a")]
    assert compare_outputs(other, reference_of(logits), FAKE_METADATA).problem  # float32 distinguishes them
    other[2] = (5.5, 5, 0)  # further apart than the precision: a flip
    measured = compare_outputs(other, reference_of(logits), replace(FAKE_METADATA, precision="bf16"))
    assert "keep their class" in measured.problem


@pytest.mark.parametrize(
    ("count", "lost", "interval"),  # of Agresti & Min's table: lost and gained, and half an image in each kind
    [(100, 1, None), (100, 4, None), (100, 5, "1.0 to 8.8"), (200, 2, None), (200, 6, "0.8 to 5.1")],
)
def test_int8_may_lose_as_many_as_show_no_loss_of_over_half_a_point(
    count: int, lost: int, interval: str | None
) -> None:
    """The interval is written another way: the variance of the difference of two multinomial shares, by its table."""
    logits = some_logits(count)
    other = logits * 1.1  # far over any float tolerance
    other[:lost] = -other[:lost]
    reference = reference_of(logits, logits.argmax(1))
    measured = compare_outputs(other, reference, replace(FAKE_METADATA, precision="int8"))
    assert measured.accuracy == (1.0, 1 - lost / count)
    kinds = np.array([lost + 0.5, 0.5, count - lost + 0.5, 0.5]) / (count + 2)  # lost, gained, right twice, wrong twice
    values = np.array([1, -1, 0, 0])
    mean = (kinds * values).sum()
    half = 1.6449 * np.sqrt((kinds * (values - mean) ** 2).sum() / (count + 2))
    np.testing.assert_allclose(measured.loss_interval, (mean - half, mean + half), rtol=1e-9)
    if interval is None:
        assert measured.problem == "" and mean - half <= 0.005
    else:
        assert measured.problem == (
            f"top-1 falls from 100.00 % to {100 * (1 - lost / count):.2f} % on {count} images, by {interval} points: "
            "over half a point"
        )


def test_a_loss_that_few_images_cannot_show_is_warned_of() -> None:
    logits = some_logits(100)
    other = logits.copy()
    other[0] = -other[0]
    reference = reference_of(logits, logits.argmax(1))
    run = compare_outputs(other, reference, replace(FAKE_METADATA, precision="int8"))
    text = report_text(reference, [Outcome(EXPORT_FORMATS["int8"], runs=[("x", run)])])
    expected = "int8 on x: top-1 accuracy 100.00 -> 99.00 % of 100 images: -1.3 to 3.3 points lost (90 % interval); "
    assert f"{expected}warning: over half a point" in text


@pytest.mark.parametrize(("share", "passes"), [(0.04, True), (0.06, False)])
def test_int8_may_differ_by_a_twentieth_in_the_mean(share: float, passes: bool) -> None:
    """Also where every class holds: a broken layer shows in the scores first."""
    logits = some_logits(200)
    logits[0] = (0, 0, 10)
    other = logits + np.float32(10 * share)
    measured = compare_outputs(other, reference_of(logits, logits.argmax(1)), replace(FAKE_METADATA, precision="int8"))
    assert measured.accuracy == (1.0, 1.0)
    assert (measured.problem == "") is passes
    if not passes:
        assert measured.problem == "the logits differ by 6.0e-02 of the largest in the mean; int8 may differ by 5e-02"


@pytest.mark.parametrize(
    ("count", "lost", "passes"), [(100, 3, True), (100, 4, False), (200, 4, True), (200, 5, True), (200, 6, False)]
)
def test_int8_without_labels_may_change_what_shows_no_more_than_one_class_in_a_hundred(
    count: int, lost: int, passes: bool
) -> None:
    logits = some_logits(count)
    assert bool(scipy.stats.binomtest(lost, count, 0.01, alternative="greater").pvalue > 0.05) is passes
    other = logits.copy()
    other[:lost] = -other[:lost]
    measured = compare_outputs(other, reference_of(logits), replace(FAKE_METADATA, precision="int8"))
    assert (measured.problem == "") is passes


@pytest.mark.parametrize(("right", "passes"), [(80, False), (110, True)])
def test_int8_must_keep_its_classes_where_the_net_is_no_better_than_chance(right: int, passes: bool) -> None:
    """Chance among 3 gets 200/3 = 66.7 of 200 right, with a deviation of sqrt(200 * 1/3 * 2/3) = 6.7."""
    logits = some_logits(200)
    other = logits.copy()
    other[-10:] = -other[-10:]  # wrong before and after
    labels = logits.argmax(1)
    labels[right:] = np.argsort(logits[right:], axis=1)[:, 1]  # the second best, which is so in -logits too
    measured = compare_outputs(other, reference_of(logits, labels), replace(FAKE_METADATA, precision="int8"))
    assert measured.accuracy == (right / 200, right / 200)
    assert (measured.problem == "") is passes
    if not passes:
        assert measured.problem == (
            "95.00 % of 200 images keep their class, under 99 %; the net's own accuracy of 40.00 % could be "
            "chance, and verifies nothing"
        )


def test_chance_is_within_three_deviations() -> None:
    """Of a binomial distribution: for 10 classes and 900 images 0.1 and sqrt(0.1 * 0.9 / 900) = 0.01."""
    assert is_chance(0.1299, 10, 900) and not is_chance(0.1301, 10, 900)
    assert is_chance(0.0, 2, 50) and not is_chance(1.0, 2, 50)


def report_text(reference: Reference, outcomes: list[Outcome]) -> str:
    asked = ExportRequest(weights=Path("net.pth"), formats=(), output_dir=Path("out"))
    return " ".join(ExportReport(asked, reference, outcomes, None, ("model.pt",)).text().split())


@pytest.mark.parametrize(("count", "right", "is_warned"), [(60, 20, True), (40, 13, False), (60, 40, False)])
def test_labels_that_look_wrong_are_warned_of(count: int, right: int, is_warned: bool) -> None:
    logits = some_logits(count)
    labels = logits.argmax(1)
    labels[right:] = (labels[right:] + 1) % 3
    text = report_text(reference_of(logits, labels), [Outcome(EXPORT_FORMATS["jit"])])
    assert f"the net itself gets {100 * right / count:.2f} % of {count} labelled images right" in text
    warning = "warning: that is no better than chance among 3 classes: are these labels the net's own?"
    assert (warning in text) is is_warned


@pytest.mark.parametrize(("count", "is_few"), [(20, True), (60, False)])
def test_few_images_of_int8s_own_are_warned_of(count: int, is_few: bool) -> None:
    run = ParityResult(count=count, accuracy=(1.0, 1.0), agreement=1.0)
    text = report_text(reference_of(some_logits(120)), [Outcome(EXPORT_FORMATS["int8"], runs=[("x", run)])])
    assert ("warning: int8 was verified on 20 images, of which each is 5.0 points" in text) is is_few


def test_the_last_line_names_the_files_and_what_was_left_out() -> None:
    outcomes = [Outcome(EXPORT_FORMATS["jit"]), Outcome(EXPORT_FORMATS["engine"], MISSING, "no library")]
    reference = reference_of(some_logits(10))
    assert report_text(reference, outcomes).endswith(
        "written to out: model.pt; left out, for the reason above: engine (not made)"
    )
    assert report_text(reference, outcomes[:1]).endswith("written to out: model.pt")


def test_a_net_that_is_not_finite_is_no_reference() -> None:
    logits = some_logits(40)
    logits[7, 1] = np.inf
    logits[9] = np.nan
    message = "the net itself returns NaN or infinite logits for 2 of 40 images, the first 7.png; no file can be"
    with pytest.raises(ExportError, match=message):
        reference_of(logits)


def test_an_export_suggests_no_flag_that_it_lacks() -> None:
    class Full:
        name, device = "fake", "cpu"

        def __call__(self, images: np.ndarray) -> np.ndarray:
            raise failure(self, len(images), MemoryError())

    reference = reference_of(some_logits(40))
    with pytest.raises(BackendError, match=r"^cpu has too little memory for 32 images at once$"):
        verify_backend(Full(), reference, FAKE_METADATA)


@pytest.mark.parametrize("size", [1, 3])
def test_other_batch_sizes_must_have_the_same_outputs(size: int) -> None:
    logits = some_logits(40)
    wrong = Recorded(logits, lambda rows: rows + 1 if len(rows) == size else rows)
    problem = verify_backend(wrong, reference_of(logits), FAKE_METADATA).problem
    assert problem.startswith("an image's logits differ by ")
    assert problem.endswith(f" of the largest between batches of {size} and 32")
    fixed = Recorded(logits, lambda rows: rows[:2])
    assert "returns (2, 3) instead of" in verify_backend(fixed, reference_of(logits[:2]), FAKE_METADATA).problem
    assert verify_backend(Recorded(logits), reference_of(logits), FAKE_METADATA).problem == ""


def test_a_program_for_any_size_that_differs_from_that_for_one_is_found() -> None:
    """OpenVINO 2026.4 with a swin_t in int8; the first batch alone hides in the mean of 200 images."""

    class AnySizeFirst(Recorded):
        last = 0

        def __call__(self, images: np.ndarray) -> np.ndarray:
            is_new, self.last = len(images) != self.last, len(images)
            return super().__call__(images) + np.float32(0.2 * scale * is_new)

    logits = some_logits(200)
    reference = reference_of(logits)
    scale = reference.scale
    problem = verify_backend(AnySizeFirst(logits), reference, replace(FAKE_METADATA, precision="int8")).problem
    assert problem == "an image's logits differ by 2.0e-01 of the largest between batches of 1 and 32"


def test_a_batch_size_that_fails_is_reported(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Fixed:
        """A file that takes 32 images only."""

        name, device = "fixed", "cpu"

        def __init__(self, inner: Any) -> None:
            self.inner = inner

        def __call__(self, images: np.ndarray) -> np.ndarray:
            if len(images) != 32:
                raise BackendError(f"a batch of {len(images)}: expected 32")
            return np.asarray(self.inner(images))

    load = load_backend

    def load_fixed(path: Path, *, device: str, runtime: str) -> Any:
        backend, metadata = load(path, device=device, runtime=runtime)
        return Fixed(backend), metadata

    monkeypatch.setattr(verification, "load_backend", load_fixed)
    assert export(trained, ["jit"], tmp_path, device="cpu") == 3
    assert report_of(tmp_path)["formats"][0]["reason"] == "a batch of 1: expected 32"


def test_timing_takes_turns() -> None:
    order: list[str] = []
    first, second = time_in_turn(lambda: order.append("a"), lambda: order.append("b"))
    assert order == ["a", "a", "b", "b"] * (len(order) // 4)  # an untimed call of its own before each
    assert len(first) == len(second) == len(order) // 4


def test_timing_ends_early_where_the_rounds_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "LEAST_ROUNDS", 3)  # a session's other exports have one
    monkeypatch.setattr(timing, "ROUNDS", 9)

    def rounds(*lengths: float) -> int:
        """Count the rounds with a clock by which the first side takes these seconds in turn, the second always one."""
        now, taken = [0.0], itertools.cycle(lengths)
        calls: list[float] = []
        monkeypatch.setattr("deploy.export.timing.time.perf_counter", lambda: now[0])

        def first() -> None:
            calls.append(next(taken) if len(calls) % 2 else 0.0)  # the untimed call before each takes none
            now[0] += calls[-1]

        def second() -> None:
            now[0] += 0.1

        return len(time_in_turn(first, second)[0])

    assert rounds(0.1, 0.102) == 3
    assert rounds(0.1, 0.11) == 9
    assert rounds(5.0, 6.0) == 3  # the seconds are used up


# --- the first diverging layer


def test_the_first_layer_over_the_tolerance_is_named_in_execution_order() -> None:
    calls = [Call((name, number), None, np.ones(3)) for name, number in [("b", 0), ("relu", 0), ("a", 0), ("relu", 1)]]
    values = {call.key: call.output.copy() for call in calls}
    assert first_diverging(calls, values, 0.1).startswith("none alone is over 1e-01")
    values["relu", 1] += 0.5
    values["a", 0] += 0.2
    assert first_diverging(calls, values, 0.1) == "a (relative error 2.0e-01)"
    assert first_diverging(calls, values, 0.3) == "relu (call 2) (relative error 5.0e-01)"
    values["b", 0] = np.full(3, np.nan)
    assert first_diverging(calls, values, 0.3) == "b (relative error inf)"
    assert first_diverging(calls, {}, 0.3) == "no layer of it can be compared"


def test_the_first_noisy_layer_is_where_the_ratio_falls_most() -> None:
    """A signal of 1 and noise of 10^-k have a ratio of 20 k dB."""
    calls = [Call((name, 0), None, np.ones(4)) for name in "abcd"]
    noise = {"a": 1e-3, "b": 1e-2, "c": 1e-1 * 0.5, "d": 1e-2}
    values = {(name, 0): np.ones(4) + amount for name, amount in noise.items()}
    assert first_noisy(calls, values) == "b (signal to noise falls from 60 dB to 40)"
    values["c", 0] = np.zeros(4)
    assert first_noisy(calls, values) == "c (signal to noise falls from 40 dB to 0)"


def test_calls_keep_what_in_place_layers_change() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(inplace=True), torch.nn.Linear(4, 2))
    images = torch.randn(5, 4)
    calls = {call.key[0]: call for call in record_calls(net, images)}
    expected = images @ net[0].weight.T + net[0].bias
    np.testing.assert_allclose(calls["0"].output, expected.detach(), atol=1e-6)
    np.testing.assert_allclose(calls["1"].inputs[0], expected.detach(), atol=1e-6)
    assert (calls["1"].output >= 0).all() and (calls["0"].output < 0).any()
    assert not net[0]._forward_hooks


# --- the images


def test_int8_is_calibrated_on_training_images_or_else_on_every_second(trained: Path, tmp_path: Path) -> None:
    metadata, config = metadata_and_config(trained)
    reference = reference_of(some_logits(40), np.arange(40) % 3)
    images, kept = share_for_int8(reference, config, metadata)
    assert (images.source, len(images)) == (config.train_data_file, 30)
    assert kept is reference
    gone = config.model_copy(update={"train_data_file": str(tmp_path / "gone.txt")})
    images, kept = share_for_int8(reference, gone, metadata)
    assert images.files == reference.images.files[1::2]
    assert kept.images.files == reference.images.files[::2]
    np.testing.assert_array_equal(kept.outputs, reference.outputs[::2])
    few = reference_of(some_logits(15))
    assert share_for_int8(few, None, metadata) == (few.images, few)


def test_few_images_are_warned_of(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paint(tmp_path / "p/1.png", 0, 0)
    assert export(trained, ["jit"], tmp_path, samples=tmp_path / "p", device="cpu") == 0
    out = capsys.readouterr().out
    assert "warning: 1 image can verify little; name more with --samples of deploy.export" in out
    assert " ".join(out.split()).endswith(f"written to {tmp_path}: model.pt, export_report.json")


# --- mistakes


def test_mistakes_are_one_sentence(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ("--output_dir", tmp_path / "out", "--device", "cpu")
    known = "known are jit, pt2, onnx, nms, int8, json, engine, all"
    flags = ("--weights", trained, *out)
    assert mistake(capsys, *flags, "--formats", "onx") == f'unknown format "onx"; did you mean "onnx"?; {known}'
    assert mistake(capsys, *flags, "--formats", ",") == f"no format was requested; {known}"
    gone = tmp_path / "gone.pth"
    assert mistake(capsys, "--weights", gone, *out, "--formats", "jit").startswith(f"{gone}: no such file")
    (tmp_path / "m.onnx").write_bytes(b"x")
    sentence = mistake(capsys, "--weights", tmp_path / "m.onnx", *out, "--formats", "jit")
    assert sentence == f"{tmp_path}/m.onnx: an export starts from a checkpoint (got: ONNX file)"
    (tmp_path / "file").write_bytes(b"x")
    sentence = mistake(capsys, "--weights", trained, "--output_dir", tmp_path / "file/out", "--formats", "jit")
    assert sentence == f"{tmp_path}/file/out: cannot make this folder for the files: Not a directory"
    assert not (tmp_path / "out").exists()  # nothing was made for what cannot be


@pytest.mark.parametrize("formats", [["engine"], ["all"]])
def test_without_tensorrt_only_an_engine_asked_for_by_name_is_a_mistake(
    formats: list[str],
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("pytorch2json.tensorrt_library.LIBRARIES", ())
    some = {name: EXPORT_FORMATS[name] for name in ("jit", "json", "engine")}
    monkeypatch.setattr(request, "EXPORT_FORMATS", some)  # what "all" is
    assert export(trained, formats, tmp_path, device="cpu") == (2 if formats == ["engine"] else 0)
    assert (tmp_path / "model.json").is_file()  # what an engine is built from is there all the same
    assert "engine not made: neither tensorrt nor tensorrt_rtx can be imported" in capsys.readouterr().out
    assert not (tmp_path / "model.engine").exists()


def test_the_batch_profile_and_tensorrtx_weights_are_written_on_demand(trained: Path, tmp_path: Path) -> None:
    flags = ("--batch_profile", "2,4,16", "--wts", "--max_samples", "8")
    assert export_main(["--weights", str(trained), "--formats", "engine", "--output_dir", str(tmp_path), *flags]) == 0
    for name in ("model.json", "model.engine"):
        assert read_metadata(tmp_path / name).batch_profile == (2, 4, 16)
    assert json.loads((tmp_path / "model.json").read_text("utf-8"))["profile"] == {"min": 2, "best": 4, "max": 16}
    state = load_checkpoint(trained).deployed()
    lines = (tmp_path / "model.wts").read_text("utf-8").splitlines()
    assert lines[0] == str(len(state))
    assert [line.split()[0] for line in lines[1:]] == list(state)


def test_an_export_spares_the_checkpoint_that_it_is_made_from(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "model.pt"  # a checkpoint by its content
    shutil.copyfile(trained, own)
    assert "would be written over its own checkpoint" in mistake(capsys, "--weights", own, "--formats", "onnx,jit")
    assert own.read_bytes() == trained.read_bytes()


def test_one_grey_channel_as_bgr() -> None:
    pixels = np.arange(32, dtype=np.uint8).reshape(2, 4, 4, 1)
    given = net_input(pixels, Preprocess(4, 4, 1), "uint8 NHWC BGR")
    assert torch.equal(torch.from_numpy(given), torch.from_numpy(pixels))


def test_an_engine_has_the_profile_it_was_built_for(trained: Path, tmp_path: Path) -> None:
    from pytorch2json.engine import write_engine

    assert export(trained, ["json"], tmp_path, max_samples=8) == 0
    text = (tmp_path / "model.json").read_text("utf-8")
    (tmp_path / "model.json").write_text(text.replace('"best": 8, "max": 64', '"best": 2, "max": 4'), "utf-8")
    write_engine(tmp_path / "model.json", tmp_path / "model.engine")
    assert read_metadata(tmp_path / "model.engine").batch_profile == (1, 2, 4)


def test_an_engine_is_built_and_where_none_runs_not_verified(trained: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt_rtx, which builds without a GPU")
    assert export(trained, ["engine"], tmp_path, device="cpu") == 0
    assert {"model.engine", "model.engine.facts.json", "model.json"} <= set(names_in(tmp_path))
    entry = report_of(tmp_path)["formats"][-1]
    assert (entry["format"], entry["status"], entry["runs"]) == ("engine", "not proved", [])
    assert entry["reason"].startswith("no engine runs here (--device cpu)")
    assert read_metadata(tmp_path / "model.engine") == read_metadata(tmp_path / "model.json")


def test_help_and_mistakes_come_without_torch() -> None:
    code = """
import sys
from deploy.export.__main__ import main
try:
    main(["--help"])
except SystemExit:
    assert main(["--weights", "net.pth", "--formats", "onx"]) == 2
    assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT, timeout=60)
    assert done.returncode == 0, done.stderr
    assert 'did you mean "onnx"?' in done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_every_function_of_the_table_is_there() -> None:
    late = [value for row in EXPORT_FORMATS.values() for value in vars(row).values() if isinstance(value, LateFunction)]
    assert len(late) == 2 * len(EXPORT_FORMATS) - 1 + 2  # an engine shows no layers; it has a library and a device
    assert all(callable(pkgutil.resolve_name(function.name)) for function in late)


def test_times_that_vary_are_warned_of() -> None:
    reference = reference_of(some_logits(40))
    for fastest, slowest, is_busy in ((10.0, 19.0, False), (10.0, 25.0, True)):
        run = ParityResult(batch_ms=12, batch_ms_spread=(fastest, slowest), eager_ms=30)
        text = report_text(reference, [Outcome(EXPORT_FORMATS["jit"], runs=[("jit", run)])])
        assert ("warning: the same batch took from 10 to 25 ms: this machine does other" in text) is is_busy


def test_files_slower_than_the_checkpoint_in_its_best_precision_are_named() -> None:
    reference = reference_of(some_logits(40))
    asked = ExportRequest(weights=Path("net.pth"), formats=(), output_dir=Path("out"))
    outcomes = [
        Outcome(EXPORT_FORMATS[name], runs=[(runtime, ParityResult(batch_ms=30 / speed, eager_ms=30))])
        for name, runtime, speed in (("pt2", "pt2", 0.9), ("onnx", "openvino", 1.9), ("int8", "onnxruntime", 0.97))
    ]
    outcomes.append(Outcome(EXPORT_FORMATS["json"], REFUSED, runs=[("json", ParityResult(problem="x"))]))
    for best, slower in (
        (BestPrecision(), "slower than the checkpoint in fp32: pt2 (0.90x) "),
        (
            BestPrecision("bf16", 2.5),
            "slower than the checkpoint in bf16 (2.50x): pt2 (0.90x), onnx on openvino (1.90x), int8 on onnxruntime "
            "(0.97x) ",
        ),
    ):
        report = ExportReport(asked, reference, outcomes, None, (), best)
        assert slower in " ".join(report.text().split())
        assert report.to_dict()["checkpoint"] == {"best_precision": best.name, "speed": best.speed}


def test_the_best_precision_is_timed_where_the_processor_multiplies_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = CheckpointBackend(torch.nn.Flatten(), torch.device("cpu"))
    times = {"fp32": [0.3, 0.2, 0.25], "bf16": [0.11, 0.1, 0.09]}

    def timed(first: Callable[[], object], second: Callable[[], object]) -> tuple[list[float], list[float]]:
        assert first() is not None and second() is not None
        return times["bf16"], times["fp32"]

    monkeypatch.setattr(timing, "time_in_turn", timed)
    images = np.zeros((2, 3, 4, 4), np.float32)
    for has_bf16, best in ((False, BestPrecision()), (True, BestPrecision("bf16", 2.5))):
        monkeypatch.setattr(torch_backend, "multiplies_bf16", lambda found=has_bf16: found)
        assert best_precision(backend, images) == best
    times["bf16"] = times["fp32"]  # a small net's time goes elsewhere
    assert best_precision(backend, images) == BestPrecision()
    monkeypatch.undo()
    monkeypatch.setattr(torch_backend, "multiplies_bf16", lambda: True)
    none_in_bf16 = CheckpointBackend(Inverse(), torch.device("cpu"))
    assert none_in_bf16(images).shape == images.shape and best_precision(none_in_bf16, images) == BestPrecision()


class Inverse(torch.nn.Module):
    """An operator that has no bf16, as autocast gives it one."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        rows = torch.eye(4, dtype=torch.bfloat16 if torch.is_autocast_enabled("cpu") else torch.float32)
        return images @ torch.linalg.inv_ex(rows, check_errors=True).inverse


def test_a_file_that_did_not_run_has_a_row_of_blanks_and_a_report_of_nulls() -> None:
    run = ParityResult(problem="x")
    outcome = Outcome(EXPORT_FORMATS["onnx"], REFUSED, "cannot load", runs=[("openvino", run)])
    asked = ExportRequest(weights=Path("net.pth"), formats=(), output_dir=Path("out"))
    report = ExportReport(asked, reference_of(some_logits(10)), [outcome], None, ())
    assert "onnx   refused         openvino" in report.text().splitlines()
    assert json.loads(json.dumps(report.to_dict()))["formats"][0]["runs"][0]["worst_difference"] is None
