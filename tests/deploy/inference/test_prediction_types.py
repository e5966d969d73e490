"""A prediction type that knows no classes goes through the Predictor, the program and all writers."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import inference
from artifacts.metadata import ModelMetadata
from data_loader.preprocess import Preprocess
from deploy.backends.base import BackendError
from deploy.backends.torch_backend import CheckpointBackend
from deploy.inference.class_prediction import ClassPrediction
from deploy.inference.heatmap_writer import HeatMapError, heat_map_copies
from deploy.inference.image_writers import SortedCopies
from deploy.inference.prediction import NOT_FINITE, Prediction
from deploy.inference.prediction_types import PREDICTION_TYPES
from deploy.inference.predictor import Predictor

METADATA = ModelMetadata((), Preprocess(8, 8), {"module": "m", "name": "n", "args": {}}, output="value")


@dataclass(frozen=True)
class ValuePrediction(Prediction):
    """One number of an image."""

    value: float = 0.0

    @classmethod
    def decode(
        cls, outputs: np.ndarray, metadata: ModelMetadata, topk: int, sizes: Sequence[tuple[int, int]]
    ) -> Iterator[Prediction]:
        for value in outputs[:, 0].tolist():
            yield cls("", value) if math.isfinite(value) else cls("", error=NOT_FINITE)

    def values(self) -> dict[str, Any]:
        return {"value": self.value}

    @classmethod
    def csv_columns(cls, metadata: ModelMetadata, topk: int) -> tuple[str, ...]:
        return ("value",)

    def csv_row(self) -> list[str | int]:
        return [f"{self.value:.3f}"]

    @classmethod
    def text_widths(cls, metadata: ModelMetadata) -> tuple[int, ...]:
        return (8,)

    def texts(self) -> tuple[str, ...]:
        return (f"{self.value:.2f}",)


class ValueBackend:
    """Outputs an image's mean, and NaN for a black one."""

    name, device = "fake", "cpu"

    def __call__(self, images: np.ndarray) -> np.ndarray:
        means = images.mean(axis=(1, 2, 3))
        return np.where(means > -1.7, means, np.nan)[:, None].astype(np.float32)


@pytest.fixture
def predictor(monkeypatch: pytest.MonkeyPatch) -> Predictor:
    monkeypatch.setitem(PREDICTION_TYPES, "value", ValuePrediction)
    return Predictor(ValueBackend(), METADATA)


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    folder = tmp_path / "images"
    folder.mkdir()
    for name, value in (("a", 100), ("b", 200), ("c", 0)):
        Image.new("RGB", (9, 9), (value,) * 3).save(folder / f"{name}.png")
    (folder / "d.png").write_bytes(b"")
    return [str(folder / f"{name}.png") for name in "abcd"]


def test_another_type_is_predicted(predictor: Predictor, images: list[str]) -> None:
    first, second, black, empty = predictor.predict_files(images)
    assert isinstance(first, ValuePrediction) and first.value < second.value
    assert first.to_dict() == {"file": images[0], "value": first.value}
    assert black.to_dict() == {"file": images[2], "error": NOT_FINITE}
    assert empty.to_dict() == {"file": images[3], "error": "it is empty (0 bytes)"}


def test_the_program_writes_another_type(
    predictor: Predictor, images: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setattr(inference, "load_net", lambda *_: (predictor.backend, METADATA))
    (tmp_path / "net.onnx").write_bytes(b"")
    flags = ["--weights", str(tmp_path / "net.onnx"), "-idir", str(tmp_path / "images"), "--save_images"]
    for suffix in ("csv", "jsonl"):
        assert inference.main([*flags, str(tmp_path / suffix), "--output", str(tmp_path / f"r.{suffix}")]) == 1
    values = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = list(csv.reader((tmp_path / "r.csv").read_text(encoding="utf-8-sig").splitlines()))
    assert rows[0] == ["file", "value", "error"]
    assert rows[1:] == [
        [row["file"], f"{row['value']:.3f}" if "value" in row else "", row.get("error", "")] for row in values
    ]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{images[0]:40}  {values[0]['value']:.2f}" and lines[4].startswith("2 answered, 2 failed")
    assert {path.name for path in (tmp_path / "csv").iterdir()} == {"a.png.answer.jpg", "b.png.answer.jpg"}


def test_without_a_class_a_sorted_copy_has_no_folder(predictor: Predictor, images: list[str], tmp_path: Path) -> None:
    SortedCopies(tmp_path / "out", ()).add(next(predictor.predict_files(images)), "deeper/a.png")
    assert (tmp_path / "out/deeper/a.png").read_bytes() == Path(images[0]).read_bytes()


def test_an_output_without_a_type_is_refused() -> None:
    with pytest.raises(BackendError, match=r"^this net gives depth, which no prediction type reads: logits"):
        Predictor(ValueBackend(), replace(METADATA, output="depth"))
    with pytest.raises(BackendError, match=r"^this net gives features, not classes: python -m tools.embed writes them"):
        Predictor(ValueBackend(), replace(METADATA, output="features"))


def test_a_heat_map_needs_classes(tmp_path: Path, predictor: Predictor) -> None:
    predictor.backend = CheckpointBackend(torch.nn.Linear(1, 1), torch.device("cpu"))
    with pytest.raises(HeatMapError, match=r"^a heat map shows where a class is, and this net gives value$"):
        heat_map_copies(tmp_path, predictor, None)


def test_a_measure_adds_columns_to_any_type(predictor: Predictor, images: list[str]) -> None:
    class Brightest:
        names = ("brightest",)

        def __call__(self, batch: np.ndarray) -> dict[str, np.ndarray]:
            return {"brightest": batch.max(axis=(1, 2, 3))}

    measured = Predictor(predictor.backend, METADATA, Brightest())
    assert measured.csv_columns() == ("value", "brightest")
    first = next(measured.predict_files(images))
    assert list(first.to_dict()) == ["file", "value", "brightest"]


def test_classes_are_the_type_of_logits() -> None:
    assert PREDICTION_TYPES["logits"] is ClassPrediction
