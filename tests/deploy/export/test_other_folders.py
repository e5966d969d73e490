"""deploy.export --triton and --hub: folders that Triton and the Hugging Face Hub take, whole or not at all."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from artifacts.calibration import Calibration
from artifacts.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from artifacts.hub_folder import hub_class_names, hub_config, hub_provenance, weights_file
from artifacts.metadata import ModelMetadata
from common import atomic_io
from data_loader.preprocess import Preprocess
from deploy.export import triton
from deploy.export.__main__ import main
from deploy.export.errors import ExportError
from deploy.export.model_card import model_card
from deploy.export.triton import model_config, write_model
from nets.net_interface import build_net
from tests.helpers.exported import (
    TinyNet,
    build_metadata,
    example_of,
    mistake,
    train_net,
    write_engine_metadata,
    write_onnx,
)
from trainers.reporting.report import TrainingReport

NAMES = ("猫", "dog|cat", "<b>bird</b>")
NET = {"module": "GeM_ResNet_module", "name": "GeM_ResNet_AVP", "args": {"model_type": "resnet18"}}
KINDS = {  # protobuf/model_config.proto (triton-inference-server/common): the fields that we write, by message
    "ModelConfig": {"name": str, "backend": str, "max_batch_size": int, "input": "ModelInput", "output": "ModelOutput"}
    | {"dynamic_batching": "ModelDynamicBatching", "parameters": "ParametersEntry"},
    "ModelInput": {"name": str, "data_type": re.compile(r"TYPE_(FP32|UINT8)"), "dims": [int]},
    "ModelOutput": {"name": str, "data_type": re.compile("TYPE_FP32"), "dims": [int], "label_filename": str},
    "ModelDynamicBatching": {"preferred_batch_size": [int]},
    "ParametersEntry": {"key": str, "value": "ModelParameter"},
    "ModelParameter": {"string_value": str},
}


def parsed(text: str) -> dict[str, Any]:
    """Return a config in protobuf's text format as plain values, each field checked against KINDS."""
    tokens = re.findall(r'"(?:[^"\\]|\\.)*"|[\w.-]+|[{}\[\]:,]', text)

    def value(kind: Any) -> Any:
        if isinstance(kind, list):
            assert tokens.pop(0) == "["
            found = []
            while tokens[0] != "]":
                found.append(value(kind[0]))
                assert tokens[0] in ",]" and (tokens[0] == "]" or tokens.pop(0))
            return tokens.pop(0) and found
        if isinstance(kind, re.Pattern):
            assert kind.fullmatch(tokens[0])
            return tokens.pop(0)
        if isinstance(kind, str):
            opening = tokens.pop(0)
            made = message(kind, "}")
            assert opening == "{" and tokens.pop(0) == "}"
            return made
        read = json.loads(tokens.pop(0))
        assert isinstance(read, kind)
        return read

    def message(name: str, end: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while tokens and tokens[0] != end:
            field = tokens.pop(0)
            kind = KINDS[name][field]
            if tokens[0] == ":":
                tokens.pop(0)
            is_list = isinstance(kind, str) and tokens[0] == "["  # of one message
            assert not is_list or tokens.pop(0)
            assert field not in found
            found[field] = value(kind)
            assert not is_list or tokens.pop(0) == "]"
        return found

    return message("ModelConfig", "")


def test_an_onnx_file_becomes_a_model_of_triton(tmp_path: Path) -> None:
    metadata = build_metadata(batch_profile=(1, 8, 32))
    file = write_onnx(TinyNet().eval(), tmp_path / "model.onnx", metadata, example_of(metadata))
    write_model(file, tmp_path / "models" / "flowers")
    folder = tmp_path / "models" / "flowers"
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) == [
        *("1", "1/model.onnx", "config.pbtxt", "labels.txt")
    ]
    assert (folder / "1" / "model.onnx").read_bytes() == file.read_bytes()
    assert (folder / "labels.txt").read_text(encoding="utf-8").splitlines() == list(metadata.class_names)
    config = parsed((folder / "config.pbtxt").read_text(encoding="utf-8"))
    facts = config.pop("parameters")
    assert config == {
        "name": "flowers",
        "backend": "onnxruntime",
        "max_batch_size": 32,
        "input": {"name": "images", "data_type": "TYPE_FP32", "dims": [3, 16, 16]},
        "output": {"name": "logits", "data_type": "TYPE_FP32", "dims": [3], "label_filename": "labels.txt"},
        "dynamic_batching": {},
    }
    assert ModelMetadata.from_dict(json.loads(facts["value"]["string_value"])) == metadata
    graph = onnx.load(file).graph  # names and sizes are the file's own
    for value, end in ((config["input"], graph.input[0]), (config["output"], graph.output[0])):
        sizes = [size.dim_value for size in end.type.tensor_type.shape.dim[1:]]
        assert (value["name"], value["dims"]) == (end.name, sizes)


def test_engines_masks_boxes_and_bytes(tmp_path: Path) -> None:
    file = write_engine_metadata(tmp_path / "model.engine", build_metadata(batch_profile=(1, 4, 16)))
    write_model(file, tmp_path / "net")
    assert (tmp_path / "net" / "1" / "model.plan").read_bytes() == b"engine"
    config = parsed((tmp_path / "net" / "config.pbtxt").read_text(encoding="utf-8"))
    assert (config["backend"], config["max_batch_size"]) == ("tensorrt", 16)
    assert config["dynamic_batching"] == {"preferred_batch_size": [4]}
    write_engine_metadata(file, build_metadata(batch_profile=(2, 4, 16)))
    with pytest.raises(ExportError, match="Triton asks for single images, and this engine takes 2 at least"):
        write_model(file, tmp_path / "other")
    masks = replace(build_metadata(size_step=8), task="segmentation", output="mask_logits")
    config = parsed(model_config(masks, "masks", "onnxruntime"))
    assert (config["input"]["dims"], config["output"]["dims"]) == ([3, -1, -1], [3, -1, -1])
    assert "label_filename" not in config["output"]
    boxes = replace(build_metadata(input="uint8 NHWC RGB"), task="detection", output="boxes")
    config = parsed(model_config(boxes, "boxes", "onnxruntime"))
    assert (config["input"]["data_type"], config["input"]["dims"]) == ("TYPE_UINT8", [16, 16, 3])
    assert config["output"] == {"name": "boxes", "data_type": "TYPE_FP32", "dims": [-1, 7]}


def test_a_folder_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metadata = build_metadata()
    file = write_onnx(TinyNet().eval(), tmp_path / "model.onnx", metadata, example_of(metadata))

    def fail(*_: object) -> str:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(triton, "model_config", fail)
        with pytest.raises(OSError, match="No space left"):
            write_model(file, tmp_path / "models" / "net")
    assert list((tmp_path / "models").iterdir()) == []
    dead = tmp_path / "models" / f".net.{atomic_io.temporary_ending().split('.')[1]}.999999999.tmp"
    shutil.copytree(tmp_path, dead, ignore=shutil.ignore_patterns("models"))  # what a killed export left
    atomic_io.remove_leftovers.cache_clear()
    write_model(file, tmp_path / "models" / "net")
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["net"]


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """Write a checkpoint of three classes and the report of its training."""
    torch.manual_seed(0)
    calibration = Calibration("margin", 0.05, 0.95, 0.1, 300, 250, 6, 0.04)
    metadata = ModelMetadata(
        NAMES,
        Preprocess(32, 32),
        NET,
        temperature=1.3,
        thresholds={"accept": 0.4, "conformal": 0.8},
        calibration=calibration,
        start_weights={
            "package": "weights 1.0",
            "sha256": "0" * 64,
            "licence": "BSD-3-Clause",
            "source": "torchvision",
        },
    )
    net = build_net(**metadata.net_arguments())
    averaged = {name: tensor + 1 for name, tensor in net.state_dict().items()}
    save_checkpoint(Checkpoint({}, metadata, net.state_dict(), averaged), tmp_path / "net.pth")
    (tmp_path / "report.json").write_text(json.dumps(report_of(), ensure_ascii=False), encoding="utf-8")
    return tmp_path / "net.pth"


def report_of() -> dict[str, Any]:
    """Return what a training's report.json holds, as far as the card needs it."""
    rows = [{"class": name, "precision": 0.5, "recall": 0.25, "f1": 1 / 3, "support": 4} for name in NAMES]
    values = {"title": 'my "flowers"', "best": {"epoch": 3, "step": 30, "loss": 0.5, "top1": 0.925, "top5": None}}
    made = TrainingReport(
        net="GeM_ResNet_module.GeM_ResNet_AVP",
        status="finished",
        class_names=list(NAMES),
        per_class=rows,
        num_train=1000,
        num_val=300,
        seed=7,
        versions={"torch": "2.15.0"},
        config={"val_data_file": "/home/someone/lists/val.txt"},
        **values,
    )
    return made.to_dict()


def test_a_folder_for_the_hub_is_what_our_trainings_start_from(trained: Path, tmp_path: Path) -> None:
    hub = tmp_path / "hub" / "flowers"
    assert main(["--weights", str(trained), "--hub", str(hub), "--licence", "apache-2.0"]) == 0
    assert sorted(path.name for path in hub.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    state, deployed = load_file(weights_file(hub)), load_checkpoint(trained).deployed()
    assert state.keys() == deployed.keys()
    assert all(torch.equal(state[name], deployed[name]) for name in state)  # the averaged weights
    assert hub_class_names(hub_config(hub)) == NAMES
    assert ModelMetadata.from_dict(hub_config(hub)["facts"]) == load_checkpoint(trained).metadata
    found = hub_provenance(hub)
    assert (found["package"], found["licence"]) == ("GeM_ResNet_AVP", "apache-2.0")


def test_a_full_disk_leaves_no_folder(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    message = mistake(capsys, "--weights", trained, "--hub", tmp_path / "hub")
    assert message == f"{tmp_path / 'hub' / 'model.safetensors'}: cannot write it: No space left on device"
    assert not (tmp_path / "hub").exists() and not list(tmp_path.glob(".hub*"))


def test_the_card_says_what_the_report_says(trained: Path) -> None:
    card = model_card(report_of(), load_checkpoint(trained).metadata, "apache-2.0")
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed: make extras")
    head, body = re.match(r"---\n(.*?)---\n(.*)", card, re.DOTALL).groups()
    values = yaml.safe_load(head)
    assert values["license"] == "apache-2.0" and values["pipeline_tag"] == "image-classification"
    (model,) = values["model-index"]
    assert model["name"] == 'my "flowers"'
    (result,) = model["results"]
    assert result["dataset"]["name"] == "val.txt" and "/home" not in card
    assert result["metrics"] == [{"type": "accuracy", "name": "top-1", "value": 0.925}]
    for line in (
        "On the 300 validation images, at epoch 3, the best by top-1:",
        "| top1 | 0.925 |",
        "| 0 | 猫 | 0.5 | 0.25 | 0.3333 | 4 |",
        "| 1 | dog\\|cat | 0.5 | 0.25 | 0.3333 | 4 |",
        "| 2 | &lt;b>bird&lt;/b> | 0.5 | 0.25 | 0.3333 | 4 |",
        "| training | 1000 |",
        "| mean | [0.485, 0.456, 0.406] |",
        "These weights: apache-2.0. The training started from others, whose licence holds too: weights 1.0, "
        "BSD-3-Clause, torchvision.",
    ):
        assert line in body, line
    assert "at most 5.00% are wrong, with probability 95%" in body and "| temperature | 1.3 |" in body


def test_mistakes_are_one_sentence(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = ("--weights", trained)
    assert mistake(capsys, *start, "--triton", tmp_path, "--formats", "jit") == (
        "--triton takes one of engine, onnx, int8; add it to --formats"
    )
    assert mistake(capsys, *start, "--licence", "mit", "--formats", "onnx") == (
        "--report and --licence are of the folder that --hub writes"
    )
    assert mistake(capsys, *start, "--hub", tmp_path).endswith(
        "it is there already; remove it, or choose another folder for --hub"
    )
    (tmp_path / "file").touch()
    for flag, more, folder in (("--triton", ("--formats", "onnx"), "file/net"), ("--hub", (), "file")):
        message = mistake(capsys, *start, flag, tmp_path / "file", *more)
        assert message == f"{tmp_path / folder}: {tmp_path / 'file'} is a file, not a folder"
    message = mistake(capsys, *start, "--hub", tmp_path / "hub", "--report", tmp_path / "none.json")
    assert message.endswith(
        "the model card needs the training's report: No such file or directory; name it with --report"
    )
    for content, reason in (
        ("[]", "it is no report.json of a training"),
        ("{", "it is no JSON; name it with --report"),
    ):
        (tmp_path / "report.json").write_text(content, encoding="utf-8")
        assert mistake(capsys, *start, "--hub", tmp_path / "hub").endswith(reason)
    other = json.dumps(report_of() | {"class_names": ["a", "b"]})
    (tmp_path / "report.json").write_text(other, encoding="utf-8")
    assert "it is of other classes than the weights'" in mistake(capsys, *start, "--hub", tmp_path / "hub")
    assert not (tmp_path / "hub").exists()


def test_an_engine_of_another_library_is_refused(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(triton, "find_spec", lambda name: name == "tensorrt_rtx")
    message = mistake(capsys, "--weights", trained, "--formats", "onnx,engine", "--triton", trained.parent / "models")
    assert (
        message
        == "--triton: Triton runs engines of tensorrt, and this one would be of tensorrt_rtx; ask for onnx instead"
    )


def test_export_writes_the_repository_behind_the_file(tmp_path: Path) -> None:
    out, weights = tmp_path / "out", train_net(tmp_path, counts=(12, 12))
    arguments = ["--weights", weights, "--formats", "onnx", "--output_dir", out, "--triton", tmp_path / "models"]
    assert main([*map(str, arguments), "--device", "cpu"]) == 0
    model = tmp_path / "models" / "net" / "1" / "model.onnx"
    assert model.read_bytes() == (out / "model.onnx").read_bytes()
