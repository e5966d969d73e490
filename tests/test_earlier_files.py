"""Files that an earlier build wrote still load, and predict what they predicted.

tests/data/earlier_files.tar.xz holds a set made before the packages were laid out anew: a calibrated classifier with
its training state and all its exports, a PIM, a SimSiam and its probe, six images, and in expected.json what that build
made of them. Outputs are compared within rounding, since processors round differently; on the processor that
expected.json names they are the same to the bit.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import inference
import inference_uncertain
from artifacts.formats import artifact_kind
from artifacts.metadata_reader import read_metadata
from common.paths import ROOT
from configs.loading import process_config
from deploy.backends.base import BackendError
from deploy.backends.devices import has_int8_dot_product
from deploy.backends.loading import load_backend
from deploy.inference.feature_extractor import load_embedder
from deploy.inference.predictor import prepare

ARCHIVE = ROOT / "tests" / "data" / "earlier_files.tar.xz"
FEATURES = 16  # of each vector, which expected.json has
FLOAT_TOLERANCE, INT8_TOLERANCE = 5e-5, 5e-2  # of the largest output
CONFIG = "classifier/config.json"
with tarfile.open(ARCHIVE) as _archive:
    _member = _archive.extractfile("expected.json")
    assert _member is not None
    EXPECTED = json.load(_member)
RUNS = [
    (file, runtime)
    for file, values in EXPECTED["files"].items()
    if values["outputs"] is not None
    for runtime in values["outputs"]
]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("earlier")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture
def earlier(unpacked: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(unpacked)  # the paths in the configs start there
    return unpacked


def tolerance_of(file: str) -> float:
    return INT8_TOLERANCE if "int8" in file else FLOAT_TOLERANCE


def config_of(file: str) -> Any:
    return process_config(CONFIG, check_files=False) if file.endswith("bare.pth") else None


@pytest.mark.parametrize("file", [file for file, values in EXPECTED["files"].items() if "facts" in values])
def test_metadata_is_read(file: str, earlier: Path) -> None:
    expected = EXPECTED["files"][file]
    assert artifact_kind(file) == expected["kind"]
    metadata = read_metadata(file).to_dict()
    assert {key: metadata[key] for key in expected["facts"]} == expected["facts"]


@pytest.mark.parametrize(("file", "runtime"), RUNS)
def test_outputs_are_the_same(file: str, runtime: str, earlier: Path) -> None:
    chosen = runtime if file.endswith(".onnx") else "auto"
    if "int8" in file and not has_int8_dot_product():
        with pytest.raises(BackendError, match="written on a CPU with VNNI or AMX, which this one lacks"):
            load_backend(Path(file), device="cpu", runtime=chosen)
        return
    backend, metadata = load_backend(Path(file), device="cpu", config=config_of(file), runtime=chosen)
    images = [metadata.preprocess.decode(Path("images", name)) for name in EXPECTED["images"]]
    outputs = backend(np.stack([prepare(image, metadata) for image in images]))
    expected = np.array([EXPECTED["files"][file]["outputs"][runtime][name] for name in EXPECTED["images"]])
    assert backend.name == runtime
    np.testing.assert_allclose(
        outputs[:, :FEATURES], expected, rtol=0, atol=tolerance_of(file) * np.abs(expected).max()
    )


@pytest.mark.parametrize("program", ["answers", "uncertain"])
@pytest.mark.parametrize("file", ["classifier/net.pth", "classifier/exported/model.onnx", "pim/net.pth"])
def test_programs_write_the_same_results(program: str, file: str, earlier: Path, tmp_path: Path) -> None:
    expected = EXPECTED["files"][file].get(program)
    if expected is None:
        pytest.skip("not calibrated")
    main = inference.main if program == "answers" else inference_uncertain.main
    output = tmp_path / "results.json"
    flags = ["--weights", file, "--image_dir", "images", "--device", "cpu", "--output", str(output), "--quiet"]
    assert main(flags) == 0
    results = {Path(values.pop("file")).name: values for values in json.loads(output.read_text(encoding="utf-8"))}
    for name, wanted in next(iter(expected.values())).items():
        got = results[name]
        assert list(got) == list(wanted)
        assert (got["label"], got["class"]) == (wanted["label"], wanted["class"])
        assert got["score"] == pytest.approx(wanted["score"], abs=1e-4)
        for key in ("decision", "conformal_set"):
            assert got.get(key) == wanted.get(key)


def test_features_are_the_same(earlier: Path) -> None:
    file = "simsiam/net.pth"
    rows = load_embedder(Path(file), device="cpu").embed_files([f"images/{name}" for name in EXPECTED["images"]])
    for row, name in zip(rows, EXPECTED["images"], strict=True):
        expected = EXPECTED["files"][file]["embeddings"][name]
        np.testing.assert_allclose(row.features[:FEATURES], expected, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_an_interrupted_training_resumes(unpacked: Path, tmp_path: Path) -> None:
    """One epoch of two steps more: the same losses and accuracies as the earlier build's, and the same weights here."""
    expected = EXPECTED["resume"]
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    command = [sys.executable, str(ROOT / "train.py"), *expected["command"].split()[2:]]
    subprocess.run(command, cwd=tmp_path, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True)
    backend, metadata = load_backend(tmp_path / "classifier/net_last.pth", device="cpu")
    images = [metadata.preprocess.decode(unpacked / "images" / name) for name in EXPECTED["images"]]
    outputs = backend(np.stack([prepare(image, metadata) for image in images]))
    wanted = np.array([expected["outputs"][name] for name in EXPECTED["images"]])
    np.testing.assert_allclose(outputs, wanted, rtol=0, atol=1e-3 * np.abs(wanted).max())
