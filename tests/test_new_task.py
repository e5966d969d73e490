"""A task that the project does not have, written as a new one would be: one number from an image.

Its net, target, loss, measure and prediction type lie here; nothing else of the project knows of them.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import inference
import nets
import train
from artifacts.checkpoint import load_checkpoint, weights_sha256
from artifacts.metadata import ModelMetadata
from configs.schema import Config
from data_loader.samples import SampleList
from data_loader.targets import Target, TargetError
from deploy.backends.loading import load_backend
from deploy.inference.prediction import NOT_FINITE, Prediction
from deploy.inference.prediction_types import PREDICTION_TYPES
from nets import net_interface
from tests.helpers.breaking import dying_after_save
from tests.helpers.exported import export, report_of
from trainers.evaluation.validation import Measure, Validation, evaluating
from trainers.runtime.distributed import sum_over_processes
from trainers.tasks.base import Batch, BatchSource, Setup, Task
from trainers.tasks.table import TASKS

# --- nets/brightness_module.py ---

NET = '''
"""A net that estimates how bright an image is."""

from torch import Tensor, nn


class Brightness(nn.Module):
    """Images (N, C, H, W) to values (N, 1)."""

    task = "regression"
    output = "value"

    def __init__(self, num_channels: int = 3) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(num_channels, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 1)
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)
'''


# --- trainers/tasks/regression.py ---


class Number(Target):
    """A finite number."""

    noun = "number"

    def parse(self, text: str, root: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not np.isfinite(value):
            raise TargetError(f'"{text}" is no finite number')
        return value

    def collate(self, values: Sequence[float]) -> np.ndarray:
        return np.array(values, dtype=np.float32)[:, None]  # (N, 1)


@dataclass(frozen=True)
class RegressionValidation(Validation):
    """The mean absolute error, and the largest one."""

    mean_error: float
    largest_error: float

    def scalars(self) -> dict[str, float]:
        return {"mae": self.mean_error, "largest": self.largest_error}

    def report_rows(self) -> Sequence[tuple[str, str]]:
        return [("largest error", f"{self.largest_error:.4f}")]


class RegressionTask(Task):
    """Mean squared error; the net of the lowest mean absolute error is the best."""

    name = "regression"
    output = "value"
    validation = RegressionValidation
    measure = Measure("mae", "mean absolute error", higher_is_better=False)

    @classmethod
    def target(cls, config: Config) -> Number:
        return Number()

    @classmethod
    def from_setup(cls, net: nn.Module, setup: Setup) -> Self:
        return cls(net)

    def with_net(self, net: nn.Module) -> RegressionTask:
        return RegressionTask(net)

    def training_step(self, batch: Batch, generator: np.random.Generator) -> dict[str, torch.Tensor]:
        return {"loss": nn.functional.mse_loss(self.net(batch["image"]), batch["target"])}

    @torch.inference_mode()
    def validate(self, batches: BatchSource, samples: SampleList) -> RegressionValidation:
        with evaluating(self.net):
            found = [(self.predict(batch["image"]) - batch["target"]).double() for batch in batches()]
        errors = torch.cat(found).abs()  # (N, 1)
        sums = sum_over_processes(torch.stack([errors.sum(), errors.square().sum()])) / len(samples.samples)
        return RegressionValidation(loss=float(sums[1]), mean_error=float(sums[0]), largest_error=float(errors.max()))


# --- deploy/inference/number_prediction.py ---


@dataclass(frozen=True)
class NumberPrediction(Prediction):
    """A number."""

    value: float = 0.0

    @classmethod
    def decode(
        cls, outputs: np.ndarray, metadata: ModelMetadata, topk: int, sizes: Sequence[tuple[int, int]]
    ) -> Iterator[NumberPrediction]:
        for (value,) in outputs:
            yield cls("", value=float(value)) if np.isfinite(value) else cls("", error=NOT_FINITE)

    def values(self) -> dict[str, Any]:
        return {"value": self.value}

    @classmethod
    def csv_columns(cls, metadata: ModelMetadata, topk: int) -> tuple[str, ...]:
        return ("value",)

    def csv_row(self) -> list[str | int]:
        return [f"{self.value:.6f}"]

    @classmethod
    def text_widths(cls, metadata: ModelMetadata) -> tuple[int, ...]:
        return (9,)

    def texts(self) -> tuple[str, ...]:
        return (f"{self.value:.4f}",)


# --- what comes of it ---


@pytest.fixture(autouse=True)
def new_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Register the files above where a new task registers its own."""
    (tmp_path / "nets").mkdir()
    (tmp_path / "nets/brightness_module.py").write_text(NET, encoding="utf-8")
    monkeypatch.setattr(nets, "__path__", [*nets.__path__, str(tmp_path / "nets")])
    monkeypatch.setattr(net_interface, "NETS_DIR", tmp_path / "nets")
    monkeypatch.setitem(TASKS, RegressionTask.name, RegressionTask)
    monkeypatch.setitem(PREDICTION_TYPES, RegressionTask.output, NumberPrediction)
    yield
    sys.modules.pop("nets.brightness_module", None)


@pytest.fixture
def make_config(tmp_path: Path) -> Callable[..., Path]:
    """Write grey images, each with its brightness from 0 to 1 in the list, and return a function that makes configs."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 24), ("val", 9)):
        lines = []
        for number in range(count):
            name, brightness = f"{split}/{number:02d}.png", generator.uniform()
            pixels = np.clip(255 * brightness + generator.normal(0, 9, (24, 24, 3)), 0, 255).astype(np.uint8)
            (tmp_path / "images" / split).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / "images" / name)
            lines.append(f"{name}----{brightness:.4f}\n")
        (tmp_path / f"{split}.txt").write_text("".join(lines), encoding="utf-8")

    def make(**changes: Any) -> Path:
        values = {
            "model_module_name": "brightness_module",
            "model_net_name": "Brightness",
            "num_classes": 2,  # which every config has, and this task ignores
            "img_height": 24,
            "img_width": 24,
            "train_data_root_dir": str(tmp_path / "images"),
            "val_data_root_dir": str(tmp_path / "images"),
            "train_data_file": str(tmp_path / "train.txt"),
            "val_data_file": str(tmp_path / "val.txt"),
            "dataloader_workers": 0,
            "num_epochs": 6,
            "batch_size": 4,
            "learning_rate": 0.02,
            "clip_grad_norm": 1.0,
            "color_jitter": [0.0, 0.0, 0.0, 0.0],  # which would change the brightness
            "gpu_id": "cpu",
            "precision": "fp32",
            "is_tensorboard": False,
            "save_path": str(tmp_path / "weights"),
            "log_path": str(tmp_path / "logs"),
        }
        file = tmp_path / "config.json"
        file.write_text(json.dumps(values | changes), encoding="utf-8")
        return file

    return make


def run_train(config: Path, *args: str) -> int:
    return train.main(["--config", str(config), *args])


def curve(checkpoint: Path) -> list[Mapping[str, float]]:
    points: list[Mapping[str, float]] = load_checkpoint(checkpoint).progress["curves"]["val"]
    return points


def test_it_trains_and_keeps_the_net_of_the_lowest_error(
    make_config: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_train(make_config(is_tensorboard=True, ema_decay=0.5, early_stopping_epochs=6)) == 0
    out = capsys.readouterr().out
    best = load_checkpoint(tmp_path / "weights/net.pth")
    errors = [point["mae"] for point in curve(tmp_path / "weights/net_last.pth")]
    assert best.progress["best"]["mae"] == min(errors) < errors[0]
    assert (best.metadata.task, best.metadata.output, best.metadata.class_names) == ("regression", "value", ())
    assert "24 training and 9 validation images\n" in out
    assert f"best mean absolute error {min(errors):.4f} in epoch" in out and "largest error" in out
    assert "top" not in out
    report = json.loads((tmp_path / "weights/report.json").read_text(encoding="utf-8"))
    assert report["task"] == "regression" and report["measure"] == "mean absolute error"
    assert report["best"]["mae"] == min(errors) and report["rows"][0][0] == "largest error"
    page = (tmp_path / "weights/report.html").read_text(encoding="utf-8")
    assert f"<span>Mean absolute error</span><b>{min(errors):.4f}</b>" in page
    assert f"<span>Largest error</span><b>{report['rows'][0][1]}</b>" in page
    assert "accuracy" not in page.lower() and "Confusion" not in page and '"line val"' in page


def test_interrupted_and_resumed_equals_uninterrupted(make_config: Callable[..., Path], tmp_path: Path) -> None:
    changes = {"num_epochs": 3, "log_interval": 1, "augment_on": "device", "data_cache": "ram"}
    assert run_train(make_config(**changes, save_path=str(tmp_path / "whole"))) == 0
    config = make_config(**changes, save_path=str(tmp_path / "resumed"), save_interval_steps=1)
    with dying_after_save(8, KeyboardInterrupt):
        assert run_train(config) == 130
    assert run_train(config, "--resume") == 0
    ends = [load_checkpoint(tmp_path / name / "net_last.pth") for name in ("whole", "resumed")]
    assert weights_sha256(ends[0].net) == weights_sha256(ends[1].net)
    assert ends[0].progress["curves"] == ends[1].progress["curves"]


def test_mistakes_are_sentences(
    make_config: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config()
    assert run_train(config, "--set", "balanced_sampling=true") == 2
    assert "balanced_sampling needs classes, and a number is none" in capsys.readouterr().err
    assert run_train(config, "--set", "train_data_file=") == 2
    assert "a folder names no number; set train_data_file" in capsys.readouterr().err
    lines = (tmp_path / "train.txt").read_text(encoding="utf-8").splitlines()
    (tmp_path / "train.txt").write_text("\n".join([*lines, "train/00.png----0.5", "train/01.png----bright"]))
    assert run_train(config) == 2
    err = capsys.readouterr().err
    assert 'train.txt:26: "bright" is no finite number' in err
    assert 'train.txt:25: path "train/00.png" has number 0.5 here but number ' in err


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_it_predicts(make_config: Callable[..., Path], tmp_path: Path, ending: str) -> None:
    assert run_train(make_config()) == 0
    output = tmp_path / f"results.{ending}"
    flags = ["--weights", str(tmp_path / "weights/net.pth"), "--image_dir", str(tmp_path / "images/val")]
    assert inference.main([*flags, "--output", str(output), "--device", "cpu"]) == 0
    text = output.read_text(encoding="utf-8-sig")
    if ending == "csv":
        rows = [(row["file"], float(row["value"])) for row in csv.DictReader(text.splitlines())]
    else:
        rows = [(row["file"], row["value"]) for row in map(json.loads, text.splitlines())]
    assert len(rows) == 9
    lines = (tmp_path / "val.txt").read_text(encoding="utf-8").splitlines()
    truth = dict(line.removeprefix("val/").split("----") for line in lines)
    error = np.mean([abs(value - float(truth[Path(file).name])) for file, value in rows])
    assert error == pytest.approx(load_checkpoint(tmp_path / "weights/net.pth").progress["best"]["mae"], abs=1e-4)


def test_it_exports(make_config: Callable[..., Path], tmp_path: Path) -> None:
    assert run_train(make_config(num_epochs=1)) == 0
    weights, out = tmp_path / "weights/net.pth", tmp_path / "exported"
    assert export(weights, ["jit", "onnx"], out, device="cpu") == 0
    report = report_of(out)
    samples = report["samples"]
    assert (samples["used"], samples["labelled"], samples["accuracy"]) == (9, False, None)  # of the config's list
    for entry in report["formats"]:
        assert entry["status"] == "written" and entry["runs"]
        assert all(run["worst_difference"] < 1e-4 and run["top1_agreement"] is None for run in entry["runs"])
    images = np.random.default_rng(0).normal(size=(3, 3, 24, 24)).astype(np.float32)
    expected = load_backend(weights, device="cpu")[0](images)
    for name in ("model.pt", "model.onnx"):
        backend, metadata = load_backend(out / name, device="cpu")
        assert (metadata.task, metadata.output) == ("regression", "value")
        np.testing.assert_allclose(backend(images), expected, atol=1e-5)
