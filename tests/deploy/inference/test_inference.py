"""The program as it is used: flags, lines, files, exit codes, and what it must never do."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import inference
from artifacts.checkpoint import Checkpoint, save_checkpoint
from artifacts.metadata import ModelMetadata
from data_loader.preprocess import Preprocess
from deploy.backends.base import BackendError
from deploy.backends.torch_backend import TorchBackend
from deploy.export.request import ExportRequest
from deploy.inference import cli_inputs
from deploy.inference.cli_loop import with_places
from nets.net_interface import build_net
from pytorch2json.converter import convert
from pytorch2json.description_file import write_description
from tests.helpers.exported import WRITERS, example_of

PROGRAM = Path(inference.__file__)
NAMES = ("猫/cat", "dog", "..")
NET = {"module": "resnet_module", "name": "resnet18", "args": {}}
GOOD = ["img2.png", "img10.png", "a/same.png", "b/same.png", "b/苹果 1.jpg", 'b/say "hi", you.png']
HANG_S = 600  # a process that has not ended by then hangs
BAD = {"cut.jpg": "it is damaged: ", "empty.png": "it is empty", "text.jpg": "not an image"}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    net = build_net("resnet_module", "resnet18", num_classes=3, img_height=32, img_width=32, model_args={})
    path = tmp_path_factory.mktemp("weights") / "net.pth"
    save_checkpoint(Checkpoint({}, ModelMetadata(NAMES, Preprocess(32, 32), NET), net.state_dict()), path)
    return path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    for seed, name in enumerate(GOOD):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    (folder / "cut.jpg").write_bytes((folder / "b/苹果 1.jpg").read_bytes()[:500])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_text("hello")
    return folder


@pytest.fixture
def good(images: Path) -> Path:
    for name in BAD:
        (images / name).unlink()
    return images


def run(*arguments: object, cwd: Path | None = None) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-W", "error", str(PROGRAM), *map(str, arguments)]
    environment = os.environ | {"PYTHONIOENCODING": "utf-8", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, encoding="utf-8", cwd=cwd, env=environment, timeout=HANG_S)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def main(*arguments: object) -> int:
    return inference.main([str(argument) for argument in arguments])


def mistake(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run with a mistake in it, and return the message."""
    assert main(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("inference.py: ")
    assert "Traceback" not in captured.err
    return captured.err.removeprefix("inference.py: ").strip()


# --- predictions, lines and files


def test_bf16_predicts_nearly_the_same(good: Path, weights: Path) -> None:
    scores = []
    for precision in ("auto", "bf16"):
        file = good.parent / f"{precision}.csv"
        flags = ("--precision", precision, "--device", "cpu", "--quiet")
        assert main("--weights", weights, "--image_dir", good, "--output", file, *flags) == 0
        scores.append([float(row["score"]) for row in csv.DictReader(file.read_text(encoding="utf-8").splitlines())])
    assert scores[0] != scores[1] and scores[0] == pytest.approx(scores[1], abs=0.01)


def test_a_line_an_image_in_natural_order(images: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main("--weights", weights, "--image_dir", images, "--output", images.parent / "r.csv") == 1
    *lines, summary = capsys.readouterr().out.splitlines()
    order = ["cut.jpg", "empty.png", "img2.png", "img10.png", "text.jpg", "a/same.png", "b/same.png"]
    order += ['b/say "hi", you.png', "b/苹果 1.jpg"]
    assert len(lines) == len(order)
    for line, name in zip(lines, order, strict=True):
        assert line.startswith(f"{images}/{name}  ")
        rest = line.removeprefix(f"{images}/{name}")
        if name in BAD:
            assert re.fullmatch(rf" +error: .*{BAD[name]}.*", rest)
        else:
            assert re.fullmatch(r" +(猫/cat|dog|\.\.) +0\.\d{4}", rest)
    assert re.fullmatch(
        rf"6 answered, 3 failed, [\d.]+ images/s on torch (cpu|cuda); results in {images.parent}/r\.csv", summary
    )


def test_a_csv_that_excel_and_python_read(images: Path, weights: Path) -> None:
    output = images.parent / "deeper" / "r.csv"
    assert main("--weights", weights, "--image_dir", images, "--output", output, "--topk", 2) == 1
    assert output.read_bytes().startswith(b"\xef\xbb\xbf")
    with output.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["file", "label", "class", "score", "class_2", "score_2", "error"]
    assert {row["file"] for row in rows} == {f"{images}/{name}" for name in [*GOOD, *BAD]}
    for row in rows:
        if row["error"]:
            assert row["label"] == row["class"] == row["score"] == row["class_2"] == ""
        else:
            assert row["class"] == NAMES[int(row["label"])]
            assert 1 >= float(row["score"]) >= float(row["score_2"]) > 0
    assert [path.name for path in output.parent.iterdir()] == ["r.csv"]


def test_json_and_jsonl_hold_the_same(images: Path, weights: Path) -> None:
    for suffix in ("json", "jsonl"):
        assert main("--weights", weights, "-idir", images, "--output", images.parent / f"r.{suffix}") == 1
    text = (images.parent / "r.json").read_text(encoding="utf-8")
    array = json.loads(text)
    lines = (images.parent / "r.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == array
    assert "苹果" in text
    assert {frozenset(item) for item in array} == {
        frozenset({"file", "error"}),
        frozenset({"file", "label", "class", "score", "top_k"}),
    }
    assert all(len(item["top_k"]) == 3 for item in array if "top_k" in item)  # of 5 asked, 3 classes


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux allows such file names")
def test_names_with_line_feeds_and_foreign_bytes(
    good: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = (good / "img2.png").read_bytes()
    odd = ["new\nline.png", os.fsdecode(b"gbk \xc6\xbb\xb9\xfb.png")]
    (tmp_path / "odd").mkdir()
    for name in odd:
        (tmp_path / "odd" / name).write_bytes(data)
    arguments = ("--weights", weights, "-idir", tmp_path / "odd", "--save_images", tmp_path / "out")
    for suffix in ("csv", "json", "jsonl"):
        assert main(*arguments, "--output", tmp_path / f"r.{suffix}") == 0
        assert len(capsys.readouterr().out.splitlines()) == 3
    files = [f"{tmp_path}/odd/{name}" for name in sorted(odd)]
    with (tmp_path / "r.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.reader(file))
    assert [row[0] for row in rows[1:]] == [files[0].encode("utf-8", "backslashreplace").decode(), files[1]]
    assert [item["file"] for item in json.loads((tmp_path / "r.json").read_text())] == files
    assert sorted(path.name for path in (tmp_path / "out").rglob("*.png")) == sorted(odd)


def test_one_image(good: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for flag in ("-image", "--image"):
        assert main("--weights", weights, flag, good / "img2.png", "--output", tmp_path / "r.json") == 0
        assert len(capsys.readouterr().out.splitlines()) == 2
        assert [item["file"] for item in json.loads((tmp_path / "r.json").read_text())] == [f"{good}/img2.png"]


def test_quiet_still_prints_what_failed(images: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main("--weights", weights, "-idir", images, "--output", images.parent / "r.csv", "--quiet") == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(BAD) + 1
    assert all("error: " in line for line in lines[:-1])


def test_the_batch_size_changes_no_prediction(good: Path, weights: Path, tmp_path: Path) -> None:
    for size in (1, 4):
        main("--weights", weights, "-idir", good, "--output", tmp_path / f"{size}.json", "--batch_size", size)
    one, four = (json.loads((tmp_path / f"{size}.json").read_text(encoding="utf-8")) for size in (1, 4))
    assert [item["label"] for item in one] == [item["label"] for item in four]
    np.testing.assert_allclose([item["score"] for item in one], [item["score"] for item in four], rtol=1e-4)


# --- other formats


@pytest.fixture(scope="module")
def artefacts(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the net of `weights` as TorchScript, torch.export's, ONNX and description files into one folder."""
    folder = tmp_path_factory.mktemp("artefacts")
    net = build_net("resnet_module", "resnet18", num_classes=3, img_height=32, img_width=32, model_args={}).eval()
    net.load_state_dict(torch.load(weights, weights_only=True)["net"])
    metadata = ModelMetadata(NAMES, Preprocess(32, 32), NET)
    for ending, write in WRITERS.items():
        write(net, folder / f"model.{ending}", metadata, example_of(metadata))
    write_description(folder / "model.json", *convert(net, example_of(metadata), metadata=metadata.to_dict()))
    return folder


@pytest.mark.parametrize(
    ("ending", "runtime", "name"),
    [
        ("pt", "auto", "jit"),
        ("pt2", "auto", "pt2"),
        ("json", "auto", "json"),
        ("onnx", "auto", "(openvino|onnxruntime)"),
        ("onnx", "onnxruntime", "onnxruntime"),
        ("onnx", "openvino", "openvino"),
    ],
)
def test_every_format_gives_the_same_lines_without_a_config(
    ending: str,
    runtime: str,
    name: str,
    images: Path,
    weights: Path,
    artefacts: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(images.parent)  # where no config is
    arguments = ("--image_dir", images, "--output", "r.json", "--runtime", runtime)
    lines, predictions = [], []
    for path in (weights, artefacts / f"model.{ending}"):
        flags = arguments if path != weights else arguments[:4]
        assert main("--weights", path, *flags) == 1
        lines.append(capsys.readouterr().out.splitlines())
        predictions.append(json.loads(Path("r.json").read_text(encoding="utf-8")))
    pattern = r"(?<=0\.)\d{4}$"
    assert [re.sub(pattern, "", line) for line in lines[0][:-1]] == [
        re.sub(pattern, "", line) for line in lines[1][:-1]
    ]
    assert re.fullmatch(
        rf"6 answered, 3 failed, [\d.]+ images/s on {name} (cpu|cuda); results in r\.json", lines[1][-1]
    )
    scores = [[item["score"] for item in found if "score" in item] for found in predictions]
    np.testing.assert_allclose(scores[0], scores[1], atol=5e-6)


def test_an_onnx_file_as_a_process(good: Path, artefacts: Path, tmp_path: Path) -> None:
    for runtime in ("onnxruntime", "openvino"):
        flags = ("--weights", artefacts / "model.onnx", "-idir", good, "--output", tmp_path / "r.csv")
        done = run(*flags, "--runtime", runtime)
        assert (done.returncode, done.stderr) == (0, "")
        assert len(done.stdout.splitlines()) == len(GOOD) + 1


def test_mistakes_with_other_formats(
    good: Path, weights: Path, artefacts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cut.onnx").write_bytes((artefacts / "model.onnx").read_bytes()[:-1000])
    (tmp_path / "foreign.json").write_text("{}")
    flags = ("-idir", good, "--output", tmp_path / "r.csv")
    onnx = ("--weights", artefacts / "model.onnx")
    cases: list[tuple[tuple[object, ...], str]] = [
        (("--weights", tmp_path / "cut.onnx"), r"cut\.onnx: it is damaged, or no ONNX file$"),
        (("--weights", tmp_path / "foreign.json"), r"foreign\.json: this network description carries no metadata"),
        (("--weights", weights, "--runtime", "openvino"), "a runtime is chosen for ONNX files"),
        ((*onnx, "--device", "cuda:7", "--runtime", "openvino"), "openvino has no CUDA"),
        ((*onnx, "--cls", "5"), "with 3 classes at 32x32, which contradicts --cls 5"),
    ]
    for arguments, text in cases:
        assert re.search(text, mistake(capsys, *arguments, *flags)), arguments
    assert not (tmp_path / "r.csv").exists()


def test_an_older_results_file_outlives_a_net_without_predictions(
    good: Path, artefacts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """TorchScript declares no shapes, so that its contradiction is only found by the first batch."""
    net = build_net("resnet_module", "resnet18", num_classes=3, img_height=32, img_width=32, model_args={}).eval()
    metadata = ModelMetadata((*NAMES, "one more"), Preprocess(32, 32), NET)
    output = tmp_path / "r.csv"
    output.write_text("precious")
    for ending, text in (
        ("onnx", r"model\.onnx: its net returns logits \(N, 3\), its metadata says \(N, 4\)"),
        ("pt", r"the jit net gives \(6, 3\) instead of \(6, 4\): not its metadata"),
    ):
        path = WRITERS[ending](net, tmp_path / f"model.{ending}", metadata, example_of(metadata))
        assert re.search(text, mistake(capsys, "--weights", path, "-idir", good, "--output", output))
        assert output.read_text() == "precious"
        assert not list(tmp_path.glob(".*"))


def test_on_a_narrow_terminal_the_places_have_their_own_line(monkeypatch: pytest.MonkeyPatch) -> None:
    sums = "1234 answered, 0 failed, 1234.5 images/s on onnxruntime cpu"
    assert with_places(sums, "data_example/result") == f"{sums}; results in data_example/result"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr(shutil, "get_terminal_size", lambda: os.terminal_size((80, 24)))
    assert with_places(sums, "data_example/result") == f"{sums}\nresults in data_example/result"
    assert with_places(sums, "r.csv") == f"{sums}; results in r.csv"
    assert with_places(sums, "") == sums


# --- conversions


class FakeExport:
    """An export that records its requests and returns `exit_code`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, exit_code: int = 0) -> None:
        self.calls: list[tuple[Any, ...]] = []

        def export_formats(request: ExportRequest) -> int:
            names = ("weights", "formats", "output_dir", "samples", "config", "device")
            self.calls.append(tuple(getattr(request, name) for name in names))
            return exit_code

        monkeypatch.setitem(sys.modules, "deploy.export.exporter", SimpleNamespace(export_formats=export_formats))


def test_the_classic_switches_convert_beside_the_weights(
    good: Path, weights: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeExport(monkeypatch)
    assert main("--weights", weights, "--pytorch2jit") == 0
    assert main("--weights", weights, "--pytorch2onnx", "--pytorch2json", "-idir", good, "--device", "cpu") == 0
    assert fake.calls == [
        (weights, ["jit"], weights.parent, None, None, "auto"),
        (weights, ["json", "onnx"], weights.parent, good, None, "cpu"),
    ]
    fake.calls.clear()
    assert main("--weights", weights, "--pytorch2json", "True", "--pytorch2jit", "False") == 0  # as old scripts have it
    assert [call[1] for call in fake.calls] == [["json"]]
    assert FakeExport(monkeypatch, exit_code=3).calls == []
    assert main("--weights", weights, "--pytorch2json") == 3
    assert capsys.readouterr().out == ""  # nothing is classified


def test_a_conversion_of_the_configs_net(
    classic: Callable[..., None], monkeypatch: pytest.MonkeyPatch, weights: Path
) -> None:
    fake = FakeExport(monkeypatch)
    classic(state=torch.load(weights, weights_only=True)["net"], num_classes=9)
    assert main("--pytorch2onnx", "--cls", "3") == 0
    path, formats, folder, samples, config, _ = fake.calls[0]
    assert (path, formats, folder, samples) == (Path("logs/weights/digits.pth"), ["onnx"], Path("logs/weights"), None)
    assert (config.num_classes, config.model_net_name) == (3, "resnet18")


def test_files_of_the_switches_predict_as_the_net(
    good: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "net.pth"
    own.write_bytes(weights.read_bytes())
    assert main("--weights", own, "-idir", good, "--pytorch2json", "--pytorch2jit", "--pytorch2onnx") == 0
    found = {}
    for name in ("net.pth", "model.json", "model.pt", "model.onnx"):
        assert main("--weights", tmp_path / name, "-idir", good, "--output", tmp_path / "r.json") == 0
        found[name] = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    capsys.readouterr()
    for predictions in found.values():
        assert [item["class"] for item in predictions] == [item["class"] for item in found["net.pth"]]
        got, expected = ([item["score"] for item in items] for items in (predictions, found["net.pth"]))
        np.testing.assert_allclose(got, expected, atol=5e-5)


def test_mistakes_of_a_conversion(
    good: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeExport(monkeypatch)
    cases: list[tuple[tuple[object, ...], str]] = [
        (("--output", "r.csv"), "a conversion goes beside the weights and classifies nothing: leave out --output"),
        (("--save_images", "out"), "leave out --output and --save_images"),
        (("--image", good / "img2.png"), r"img2\.png: one image verifies no conversion; name a folder with"),
        (("-idir", tmp_path / "none"), "none: no such folder"),
        (("--cls", "5"), r"net\.pth: it holds resnet_module\.resnet18 with 3 classes .* contradicts --cls 5"),
        (("--weights", "none.pth"), r"none\.pth: no such file"),
    ]
    for flags, text in cases:
        assert re.search(text, mistake(capsys, "--weights", weights, *flags, "--pytorch2onnx")), flags
    assert fake.calls == []


# --- copies


def test_copies_are_sorted_into_class_folders(images: Path, weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    before = snapshot(images)
    main("--weights", weights, "-idir", images, "--save_images", out, "--output", tmp_path / "r.json")
    predictions = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    folders = {"猫/cat": "猫_cat", "dog": "dog", "..": "class_2"}
    expected = {}
    for item in predictions:
        if "class" in item:
            relative = Path(item["file"]).relative_to(images).as_posix()
            expected[f"{folders[item['class']]}/{relative}"] = before[relative]
    assert snapshot(out) == expected
    assert len(expected) == len(GOOD)  # a/same.png and b/same.png both
    assert snapshot(images) == before


def test_annotated_copies(images: Path, weights: Path, tmp_path: Path) -> None:
    before = snapshot(images)
    assert main("--weights", weights, "-idir", images, "--save_images", tmp_path / "out", "--save_as", "annotated") == 1
    assert set(snapshot(tmp_path / "out")) == {f"{name}.answer.jpg" for name in GOOD}
    assert snapshot(images) == before


@pytest.mark.parametrize("save_as", ["folders", "annotated"])
def test_results_below_the_image_folder_are_not_classified_again(good: Path, weights: Path, save_as: str) -> None:
    arguments = ("--weights", weights, "-idir", good, "--save_images", good / "b" / "out", "--save_as", save_as)
    for _ in range(2):
        assert main(*arguments, "--output", good / "r.json") == 0
        assert len(json.loads((good / "r.json").read_text(encoding="utf-8"))) == len(GOOD)
        assert len(snapshot(good)) == 2 * len(GOOD) + 1


def test_images_inside_the_results_are_refused(good: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = snapshot(good)
    for flags in (("-idir", good), ("-idir", good / "b"), ("-image", good / "img2.png")):
        text = mistake(capsys, "--weights", weights, *flags, "--save_images", good)
        assert re.search(rf"it lies inside {good}, where the copies go; choose another folder", text)
    assert snapshot(good) == before


# --- the classic start


@pytest.fixture
def classic(good: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Lay out a checkout: configs/config.json, data_example/images, logs/weights; values change the config."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data_example").mkdir()
    good.rename(tmp_path / "data_example" / "images")

    def make(state: Any = None, **changes: Any) -> None:
        values = {
            "model_module_name": "resnet_module",
            "model_net_name": "resnet18",
            "img_height": 32,
            "img_width": 32,
            "num_classes": 3,
            "train_data_root_dir": "not/there",
            "val_data_root_dir": "not/there",
            "save_path": "logs/weights",
            "save_name": "digits.pth",
        }
        for folder in ("configs", "logs/weights"):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / "configs/config.json").write_text(json.dumps(values | changes))
        target = tmp_path / "logs/weights/digits.pth"
        if state is None:
            target.write_bytes(weights.read_bytes())
        else:
            torch.save(state, target)

    return make


def test_the_classic_start(classic: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    classic()
    for _ in range(2):
        assert main() == 0
        *lines, summary = capsys.readouterr().out.splitlines()
        assert len(lines) == len(GOOD)
        assert summary.endswith("results in data_example/result")
        found = set(snapshot(Path("data_example/result")))
        assert len(found) == len(GOOD) + 1
        assert "results.csv" in found


def test_the_classic_start_with_bare_weights(
    classic: Callable[..., None], weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net = torch.load(weights, weights_only=True)["net"]
    classic(state=net)
    assert main("--output", "r.json", "-idir", "data_example") == 0
    predictions = json.loads(Path("r.json").read_text(encoding="utf-8"))
    assert {item["class"] for item in predictions} <= {"0", "1", "2"}
    assert capsys.readouterr().err == (
        "inference.py: logs/weights/digits.pth holds bare weights; taken from the config: mean 0.485, 0.456, 0.406, "
        "std 0.229, 0.224, 0.225, 3 classes (0, ...)\n"
    )
    assert "--model names a module of nets/, --weights a file" in mistake(capsys, "--model", "logs/weights/digits.pth")


def test_flags_override_the_config_of_bare_weights(classic: Callable[..., None], weights: Path) -> None:
    net = torch.load(weights, weights_only=True)["net"]
    classic(state=net, model_net_name="resnet34", model_module_name="vgg_module", num_classes=9, img_height=64)
    flags = ("-net", "resnet18", "-model", "resnet_module", "-cls", "3", "-size", "32")
    assert main(*flags, "-cfg", "configs/config.json", "--output", "r.json") == 0


def test_flags_that_contradict_a_checkpoint(
    classic: Callable[..., None], capsys: pytest.CaptureFixture[str], weights: Path
) -> None:
    classic()
    flags = {"-net": "resnet34", "--model": "vgg_module", "--cls": "5", "-size": "64"}
    own = r"it holds resnet_module\.resnet18 with 3 classes at 32x32, which contradicts "
    for flag, value in flags.items():
        assert re.search(rf"net\.pth: {own}--\w+ {value};", mistake(capsys, "--weights", weights, flag, value))
        assert re.search(rf"digits\.pth: {own}--\w+ {value};", mistake(capsys, flag, value))
    agreeing = ("-net", "resnet18", "-model", "resnet_module", "-cls", "3", "-size", "32")
    assert main("--weights", weights, *agreeing, "--output", "r.csv") == 0


def test_a_config_that_differs_from_the_file(
    classic: Callable[..., None], capsys: pytest.CaptureFixture[str], weights: Path, artefacts: Path
) -> None:
    flags = ("-cfg", "configs/config.json", "--output", "r.csv", "--quiet")
    files = [("--weights", weights), ("--weights", artefacts / "model.onnx"), ()]
    classic()
    for given in files:
        assert main(*given, *flags) == 0
        assert capsys.readouterr().err == ""
    classic(img_height=64, resize="crop", mean=[0.5, 0.5, 0.5], model_net_name="resnet34")
    for given in files:
        path = given[1] if given else "logs/weights/digits.pth"
        assert main(*given, *flags) == 0
        assert capsys.readouterr().err == (
            f"inference.py: {path} has its own model_net_name, img_height, resize, mean; the values in "
            "configs/config.json are not used\n"
        )
    classic(num_classes=5)
    Path("r.csv").unlink()
    for given in files:
        text = mistake(capsys, *given, *flags)
        assert "it has 3 classes, and configs/config.json has num_classes 5; name the config that it was tr" in text
    assert not Path("r.csv").exists()


# --- mistakes


def test_mistakes_end_in_a_sentence(
    good: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hollow").mkdir()
    (tmp_path / "x.pth").write_text("not weights")
    net = ("--weights", weights)
    cases: list[tuple[tuple[object, ...], str]] = [
        ((*net,), r"^data_example/images: no such folder \(current folder .*\); name one with --image_dir$"),
        ((*net, "-idir", "nowhere"), "^nowhere: no such folder"),
        ((*net, "-idir", good / "img2.png"), "img2.png: no such folder"),
        ((*net, "-idir", "hollow"), r"^hollow: no images in it or below it; endings known: \.jpg"),
        ((*net, "-image", "none.jpg"), "^none.jpg: no such file"),
        ((*net, "-image", good), "it is a folder; name it with --image_dir"),
        ((*net, "-idir", good, "--output", "r.xls"), r'results are written as \.csv, \.json, \.jsonl, got "\.xls"'),
        ((*net, "-idir", good, "--output", good / "b"), "results are written as"),
        ((*net, "-idir", good, "--save_images", good / "img2.png"), "img2.png is a file, not a folder"),
        (("-idir", good), "^configs/config.json: cannot read the config: No such file"),
        (("-idir", good, "-cfg", "other.json"), "^other.json: cannot read the config"),
        (("-idir", good, "--weights", "none.pth"), r"^none\.pth: no such file"),
        (("-idir", good, "--weights", "x.pth"), r"^x\.pth: "),
        (("-idir", good, "--weights", good / "img2.png"), 'no backend for the ending ".png"'),
        ((*net, "-idir", good, "--device", "tpu"), "device must be auto, cpu, cuda or cuda:N"),
    ]
    before = snapshot(good)
    for arguments, text in cases:
        assert re.search(text, mistake(capsys, *arguments)), arguments
    assert snapshot(good) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hollow", "images", "x.pth"]


def test_folders_that_are_links_to_nothing(
    good: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    for flags in (("--output", tmp_path / "link" / "r.csv"), ("--save_images", tmp_path / "link" / "a" / "b")):
        text = mistake(capsys, "--weights", weights, "-idir", good, *flags)
        assert text == f"{tmp_path}/link: it is a link to {tmp_path}/gone, which is not there"


def test_a_folder_that_may_not_be_entered(
    good: Path, weights: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    is_dir = Path.is_dir

    def refuse(path: Path) -> bool:
        if "locked" in path.parts:
            raise PermissionError(13, "Permission denied", str(path))
        return is_dir(path)

    monkeypatch.setattr(Path, "is_dir", refuse)
    for flags in (("-image", "locked/x.png"), ("-idir", "locked/x"), ("-idir", good, "--output", "locked/x.csv")):
        assert mistake(capsys, "--weights", weights, *flags) == f"{flags[-1]}: Permission denied"


def test_an_untrained_config_and_a_precious_file(
    classic: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    classic()
    named = mistake(capsys, "--output", "configs/config.json")
    assert "it is read here, and would be written over; choose another file" in named
    Path("logs/weights/digits.pth").unlink()
    text = mistake(capsys)
    assert re.search(r"^logs/weights/digits\.pth: the net of configs/config\.json is not there", text)
    assert "train first (python train.py --config configs/config.json), or name a weights file" in text


def test_a_value_that_the_config_refuses_names_its_flag(
    classic: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    classic()
    assert mistake(capsys, "--cls", 10**7) == "--cls 10000000: num_classes must be at most 1e+06, got 10000000"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--topk", "0"], 'must be a whole number from 1 to 1000000000, got "0"'),
        (["--heatmap", ""], "argument --heatmap: must be a path, got an empty text"),
        (["--save_images", ""], "argument --save_images: must be a path, got an empty text"),
        (["--batch_size", "many"], 'must be a whole number from 1 to 65536, got "many"'),
        (["-cls", "1"], "from 2"),
        (["-image", "a", "-idir", "b"], "not allowed with"),
        (["--save_as", "pdf"], "invalid choice"),
        (["--bogus"], "unrecognized arguments: --bogus"),
        (["--image_dri", "x"], 'unrecognized arguments: --image_dri x; did you mean "--image_dir"?'),
        (["--runtim=openvino"], 'did you mean "--runtime"?'),
    ],
)
def test_wrong_flags(arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(*arguments)
    assert caught.value.code == 2
    assert text in capsys.readouterr().err


def test_a_failing_net_keeps_the_results_so_far(
    good: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0
    prediction = TorchBackend.__call__

    def fail_later(backend: TorchBackend, batch: np.ndarray) -> np.ndarray:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise BackendError("the net failed on cpu: device lost")
        return prediction(backend, batch)

    monkeypatch.setattr(TorchBackend, "__call__", fail_later)
    arguments = ("--weights", weights, "-idir", good, "--output", tmp_path / "r.json", "--batch_size", 2)
    assert main(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.err == "inference.py: the net failed on cpu: device lost\n"
    assert "4 answered, 0 failed" in captured.out
    assert len(json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))) == 4


def test_an_unreadable_folder_ends_the_walk_but_keeps_the_predictions(
    good: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def walk(_: Path) -> Iterator[str]:
        yield f"{good}/img2.png"
        raise PermissionError(13, "Permission denied", f"{good}/secret")

    monkeypatch.setattr(cli_inputs, "walk_images", walk)
    assert main("--weights", weights, "-idir", good, "--output", tmp_path / "r.jsonl") == 2
    captured = capsys.readouterr()
    assert captured.err == f"inference.py: {good}/secret: cannot read the folder: Permission denied\n"
    assert len((tmp_path / "r.jsonl").read_text().splitlines()) == 1


# --- as a process


def test_help_and_early_mistakes_need_no_torch(tmp_path: Path) -> None:
    heavy = "{'torch', 'torchvision', 'matplotlib', 'numpy', 'tqdm'} & set(sys.modules)"
    code = f"""
import sys
sys.path.insert(0, {str(PROGRAM.parent)!r})
import inference
try:
    inference.main(["--help"])
except SystemExit:
    pass
assert not {heavy}, {heavy}
assert inference.main(["-idir", "nowhere", "--weights", "x.pth"]) == 2
assert inference.main(["-idir", {str(tmp_path)!r}, "--weights", "x.pth", "--output", "x.xls"]) == 2
assert inference.main(["-image", {str(PROGRAM)!r}, "--weights", "x.pth", "--output", {str(tmp_path / "x.csv")!r}]) == 2
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=HANG_S)
    assert done.returncode == 0, done.stderr


def test_the_program_itself(images: Path, weights: Path, tmp_path: Path) -> None:
    done = run("--weights", weights, "-idir", images, "--output", tmp_path / "r.csv")
    assert done.returncode == 1
    assert done.stderr == ""  # no bar where stderr is no terminal
    assert len(done.stdout.splitlines()) == len(GOOD) + len(BAD) + 1


SLOW_START = """
import sys, time
sys.path.insert(0, sys.argv.pop(1))
import inference
from deploy.inference import predictor

prepare = predictor._prepared_files
def slowly(*args):
    time.sleep(0.2)
    return prepare(*args)
predictor._prepared_files = slowly
raise SystemExit(inference.main(sys.argv[1:]))
"""


@pytest.mark.skipif(os.name != "posix", reason="signals are sent the POSIX way")
@pytest.mark.parametrize(("number", "suffix"), [(signal.SIGINT, "json"), (signal.SIGTERM, "csv")])
def test_stopped_with_results_so_far(
    number: signal.Signals, suffix: str, good: Path, weights: Path, tmp_path: Path
) -> None:
    many = tmp_path / "many"
    many.mkdir()
    for i in range(200):
        os.link(good / "img2.png", many / f"{i}.png")
    output = tmp_path / f"r.{suffix}"
    arguments = [str(PROGRAM.parent), "--weights", weights, "-idir", many, "--output", output]
    arguments += ["--batch_size", "1", "--workers", "1"]
    command = [sys.executable, "-u", "-c", SLOW_START, *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        lines = [process.stdout.readline()]
        process.send_signal(number)
        lines += process.stdout.readlines()
        errors = process.stderr.read()
        assert process.wait() == 128 + number
    assert errors == ""
    answered = len(lines) - 1
    assert 1 <= answered < 200
    assert lines[-1].startswith(f"{answered} answered, 0 failed")
    text = output.read_text(encoding="utf-8-sig")
    assert (len(json.loads(text)) if suffix == "json" else len(text.splitlines()) - 1) == answered
    assert [path.name for path in tmp_path.glob("*r.*")] == [output.name]


@pytest.mark.skipif(os.name != "posix", reason="pipes break the POSIX way")
def test_a_closed_pipe_ends_it_quietly(good: Path, weights: Path, tmp_path: Path) -> None:
    arguments = ["--weights", weights, "-idir", good, "--output", tmp_path / "r.json", "--batch_size", "1"]
    command = [sys.executable, "-u", str(PROGRAM), *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait() == 141
    assert len(json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))) >= 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is always full")
@pytest.mark.parametrize("buffered", [True, False])
def test_a_full_disk_behind_stdout(buffered: bool, good: Path, weights: Path, tmp_path: Path) -> None:
    arguments = ["--weights", weights, "-idir", good, "--output", tmp_path / "r.json", "--batch_size", "1"]
    command = [sys.executable, *([] if buffered else ["-u"]), str(PROGRAM), *map(str, arguments)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=environment, timeout=HANG_S)
    assert (done.returncode, done.stderr) == (2, "inference.py: stdout: No space left on device\n")
    assert len(json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))) == (len(GOOD) if buffered else 1)


@pytest.mark.skipif(os.name != "posix", reason="stdout is closed the POSIX way")
def test_a_closed_stdout_keeps_no_results_back(good: Path, weights: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(PROGRAM), "--weights", weights, "-idir", good, "--output", tmp_path / "r.json"]
    closed = ["sh", "-c", 'exec "$@" >&-', "sh", *map(str, command)]
    done = subprocess.run(closed, stderr=subprocess.PIPE, text=True, timeout=HANG_S)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))) == len(GOOD)
