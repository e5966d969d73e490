"""The opset and IR version of ONNX files, and the oldest onnxruntime that is promised."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from deploy.backends.loading import load_backend
from deploy.export.cli_args import make_parser
from deploy.export.errors import ExportError
from deploy.export.quantization import quantize
from deploy.export.request import ExportRequest
from nets.net_interface import build_net
from tests.helpers.exported import build_metadata, export_onnx
from tests.helpers.nets import gem_net

OLDEST = os.environ.get("OLDEST_ONNXRUNTIME", "")  # pip install --target DIR --no-deps -r requirements-oldest.txt
IR_VERSIONS = {18: 8, 19: 9, 20: 9, 21: 10, 22: 10, 23: 11}  # onnx/docs/Versioning.md, "Released Versions"
RUN = """
import sys
import numpy, onnxruntime
assert onnxruntime.__version__ == "1.15.1", onnxruntime.__version__
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
numpy.save(sys.argv[3], session.run(None, {"images": numpy.load(sys.argv[2])})[0])
"""


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).normal(0.3, 1, (12, 3, 32, 32)).astype(np.float32)


@pytest.fixture(scope="module")
def files(images: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Export a GeM-ResNet in float and int8, and a swin_t, whose layer norms and GELUs newer opsets have as one."""
    folder = tmp_path_factory.mktemp("versions")
    made = {name: folder / f"{name}.onnx" for name in ("float", "int8", "swin")}
    export_onnx(gem_net(), torch.from_numpy(images[:2]), made["float"], build_metadata(32))
    quantize(made["float"], made["int8"], build_metadata(32, precision="int8"), images)
    torch.manual_seed(0)
    swin = build_net("swin_module", "swin_t", num_classes=3, img_height=32, img_width=32, model_args={}).eval()
    export_onnx(swin, torch.from_numpy(images[:2]), made["swin"], build_metadata(32))
    return made


def test_files_have_opset_18_and_ir_8_by_default(files: dict[str, Path]) -> None:
    for path in files.values():
        model = onnx.load(path)
        versions = {entry.domain: entry.version for entry in model.opset_import}
        assert (versions[""], model.ir_version) == (18, 8)
        onnx.checker.check_model(model, full_check=True)


@pytest.mark.parametrize("opset", [19, 21, 23])
def test_another_opset_has_its_ir_version_and_the_same_outputs(
    opset: int, files: dict[str, Path], images: np.ndarray, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    export_onnx(gem_net(), torch.from_numpy(images[:2]), path, build_metadata(32), opset)
    model = onnx.load(path)
    assert (model.opset_import[0].version, model.ir_version) == (opset, IR_VERSIONS[opset])
    own, default = (load_backend(file, runtime="onnxruntime")[0](images) for file in (path, files["float"]))
    np.testing.assert_allclose(own, default, rtol=1e-4, atol=1e-5 * np.abs(default).max())


def test_the_flag_and_its_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--weights", "net.pth", "--formats", "onnx"]
    assert make_parser().parse_args(flags).opset is None
    assert make_parser().parse_args([*flags, "--opset", "20"]).opset == 20
    with pytest.raises(SystemExit):
        make_parser().parse_args([*flags, "--opset", "17"])
    assert 'must be a whole number from 18 to 23, got "17"' in capsys.readouterr().err
    request = ExportRequest(
        weights=tmp_path / "net.pth", formats=["onnx"], output_dir=tmp_path, precision="bf16", opset=21
    )
    with pytest.raises(ExportError, match=r"^opset must be 22 to 23 for bf16, got 21$"):
        request.check()
    assert ExportRequest(weights=tmp_path, formats=[], output_dir=tmp_path, precision="bf16").onnx_opset == 22


@pytest.mark.skipif(not OLDEST, reason="OLDEST_ONNXRUNTIME names no folder with onnxruntime 1.15.1")
@pytest.mark.parametrize("name", ["float", "int8", "swin"])
def test_the_oldest_runtime_gives_the_same(
    name: str, files: dict[str, Path], images: np.ndarray, tmp_path: Path
) -> None:
    np.save(tmp_path / "images.npy", images)
    command = [sys.executable, "-c", RUN, str(files[name]), str(tmp_path / "images.npy"), str(tmp_path / "old.npy")]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": OLDEST}, timeout=300)
    assert done.returncode == 0, done.stderr
    old, new = np.load(tmp_path / "old.npy"), load_backend(files[name], runtime="onnxruntime")[0](images)
    if name == "int8":
        assert (old.argmax(1) == new.argmax(1)).all()
        assert np.abs(old - new).mean() < 0.02 * np.abs(new).max()
    else:
        np.testing.assert_allclose(old, new, atol=1e-5 * np.abs(new).max())
