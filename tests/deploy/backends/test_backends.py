"""Every backend gives the net's outputs at every batch size; what cannot be loaded or run is one sentence."""

from __future__ import annotations

import ctypes
import gc
import json
import logging
import pickle
import shutil
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import nn

from artifacts.checkpoint import Checkpoint, save_checkpoint
from artifacts.errors import ArtifactError
from artifacts.metadata import ModelMetadata
from deploy.backends import devices, loading, safe_torch_export
from deploy.backends.base import BackendError, reason, within_profile
from deploy.backends.declared_sizes import check_declared, sizes_of
from deploy.backends.devices import choose_runtime
from deploy.backends.loading import load_backend
from deploy.backends.onnx_backends import OnnxRuntimeBackend, OpenVinoBackend
from deploy.backends.torch_backend import TorchBackend
from deploy.inference.prediction import Prediction
from deploy.inference.predictor import Predictor
from nets.net_interface import build_net
from pytorch2json import engine_runner
from pytorch2json.converter import convert
from pytorch2json.description_file import write_description as write_network
from tests.helpers.exported import (
    NET,
    WRITERS,
    FromBytes,
    TinyNet,
    build_metadata,
    example_of,
    records_of,
    write_engine_metadata,
    write_onnx,
    write_pt2,
    write_two_in_one,
)

SIZE_PX = 32
FORMATS = {  # the backend's name: ending, runtime
    "torch": ("pth", "auto"),
    "jit": ("pt", "auto"),
    "pt2": ("pt2", "auto"),
    "onnxruntime": ("onnx", "onnxruntime"),
    "openvino": ("onnx", "openvino"),
    "json": ("json", "auto"),
}


def write_description(net: nn.Module, path: Path, metadata: ModelMetadata, example: torch.Tensor) -> Path:
    write_network(path, *convert(net, example, metadata=metadata.to_dict()))
    return path


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    size = {"img_height": SIZE_PX, "img_width": SIZE_PX}
    return build_net(NET["module"], NET["name"], num_classes=3, model_args=NET["args"], **size).eval()


@pytest.fixture(scope="module")
def exported(net: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write GeM_ResNet_AVP in every format into one folder."""
    folder = tmp_path_factory.mktemp("exported")
    metadata = build_metadata(SIZE_PX)
    save_checkpoint(Checkpoint({}, metadata, net.state_dict()), folder / "model.pth")
    for ending, write in (WRITERS | {"json": write_description}).items():
        write(net, folder / f"model.{ending}", metadata, example_of(metadata))
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a net of two layers as TorchScript, torch.export's and ONNX files into one folder."""
    folder = tmp_path_factory.mktemp("tiny")
    for ending, write in WRITERS.items():
        write(TinyNet().eval(), folder / f"model.{ending}", build_metadata(), example_of(build_metadata()))
    return folder


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    paths = [str(tmp_path / f"{number}.png") for number in range(35)]
    for number, path in enumerate(paths):
        pixels = np.random.default_rng(number).integers(0, 256, (20 + number, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels // (1 + number % 5)).save(path)
    return paths


def predictions(path: Path, images: list[str], batch_size: int, runtime: str = "auto") -> list[Prediction]:
    predictor = Predictor(*load_backend(path, device="cpu", runtime=runtime))
    return list(predictor.predict_files(images, batch_size, topk=3))


def scores(found: list[Prediction]) -> np.ndarray:
    assert not [prediction.error for prediction in found if prediction.error]
    return np.array([[dict(prediction.top_k)[name] for name in build_metadata().class_names] for prediction in found])


# --- the same outputs from all of them


@pytest.mark.parametrize("batch_size", [1, 3, 32])
@pytest.mark.parametrize("name", FORMATS)
def test_every_backend_gives_the_nets_outputs(
    name: str, batch_size: int, net: nn.Module, exported: Path, images: list[str]
) -> None:
    ending, runtime = FORMATS[name]
    backend, metadata = load_backend(exported / f"model.{ending}", device="cpu", runtime=runtime)
    assert (backend.name, backend.device) == (name, "cpu")
    assert metadata.to_dict() | {"weights_sha256": ""} == build_metadata(SIZE_PX).to_dict()
    batch = example_of(metadata, batch_size)
    for _ in range(3):  # the second and third call of a size may run on other kernels
        logits = backend(batch.numpy())
        assert (logits.dtype, logits.shape) == (np.float32, (batch_size, 3))
        with torch.no_grad():
            np.testing.assert_allclose(logits, net(batch).numpy(), atol=2e-6)
    got = predictions(exported / f"model.{ending}", images, batch_size, runtime)
    expected = predictions(exported / "model.pth", images, batch_size=1)
    assert [prediction.label for prediction in got] == [prediction.label for prediction in expected]
    np.testing.assert_allclose(scores(got), scores(expected), atol=5e-6)


@pytest.mark.parametrize("order", ["RGB", "BGR"])
@pytest.mark.parametrize("name", [name for name in FORMATS if name != "torch"])
def test_a_net_with_its_preprocessing_inside_gives_the_same(
    name: str, order: str, images: list[str], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    net, plain = TinyNet().eval(), build_metadata()
    metadata = build_metadata(input=f"uint8 NHWC {order}")
    ending, runtime = FORMATS[name]
    write = (WRITERS | {"json": write_description})[ending]
    inner = FromBytes(net, metadata.preprocess, bgr=order == "BGR").eval()
    path = write(inner, tmp_path / f"model.{ending}", metadata, example_of(metadata))
    expected = Predictor(TorchBackend(net, torch.device("cpu")), plain).predict_files(images, topk=3)
    np.testing.assert_allclose(scores(predictions(path, images, 32, runtime)), scores(list(expected)), atol=1e-5)


def test_a_batch_of_another_size_after_one_that_came_twice(exported: Path, net: nn.Module) -> None:
    backend = OpenVinoBackend(exported / "model.onnx")
    for size in (4, 4, 2, 2, 4, 1):
        images = example_of(build_metadata(SIZE_PX), size)
        with torch.no_grad():
            np.testing.assert_allclose(backend(images.numpy()), net(images).numpy(), atol=2e-6)


def test_openvino_computes_in_float32_unless_asked(exported: Path) -> None:
    images = example_of(build_metadata(SIZE_PX), 8).numpy()
    exact = OnnxRuntimeBackend(exported / "model.onnx")(images)
    default = load_backend(exported / "model.onnx", device="cpu", runtime="openvino")[0]
    assert np.abs(default(images) - exact).max() < 2e-6
    asked: Any = load_backend(exported / "model.onnx", device="cpu", runtime="openvino", precision="bf16")[0]
    assert asked._any_size.get_property("INFERENCE_PRECISION_HINT").to_string() in ("bf16", "f32")  # f32: no bf16 here
    assert np.abs(asked(images) - exact).max() < 0.05


def test_a_checkpoint_computes_in_bf16_where_asked(exported: Path, net: nn.Module) -> None:
    images = example_of(build_metadata(SIZE_PX), 8)
    exact = load_backend(exported / "model.pth", device="cpu")[0](images.numpy())
    asked = load_backend(exported / "model.pth", device="cpu", precision="bf16")[0](images.numpy())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = net(images).float().numpy()
    assert 0 < np.abs(asked - exact).max() < 0.05
    np.testing.assert_allclose(asked, expected, atol=0.02)  # another memory layout adds up in another order


def test_int8_weights_and_activations_run_in_int8(tmp_path: Path) -> None:
    """The hint for floating point, f32, must not keep OpenVINO from the int8 kernels that the file asks for."""
    from onnxruntime import quantization

    class Calibration(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter([{"images": example_of(build_metadata(), 8).numpy()}])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.batches, None)

    write_onnx(TinyNet().eval(), tmp_path / "float.onnx", None, example_of(build_metadata()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable()  # it advises another way to prepare a net
        quantization.quantize_static(
            tmp_path / "float.onnx", tmp_path / "int8.onnx", Calibration(), quant_format=quantization.QuantFormat.QDQ
        )
        logging.disable(logging.NOTSET)
    backend = OpenVinoBackend(tmp_path / "int8.onnx", "int8")
    assert backend._any_size.get_property("INFERENCE_PRECISION_HINT").to_string() == "f32"
    kinds = [operation.get_rt_info() for operation in backend._any_size.get_runtime_model().get_ops()]
    precisions = {info["runtimePrecision"].value for info in kinds if info["layerType"].value == "Convolution"}
    assert precisions <= {"i8", "u8"}
    assert precisions


# --- what runs an ONNX file


def installed(monkeypatch: pytest.MonkeyPatch, *names: str, cuda: bool = False) -> None:
    monkeypatch.setattr(devices, "find_spec", lambda name: name if name in names else None)
    providers = ["CUDAExecutionProvider"] * cuda + ["CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)


def test_the_rule_that_chooses_the_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    both = ("onnxruntime", "openvino")
    installed(monkeypatch, *both)
    assert [choose_runtime("auto", device) for device in ("auto", "cpu", "cuda", "cuda:1")] == [
        "openvino",
        "openvino",
        "onnxruntime",
        "onnxruntime",
    ]
    installed(monkeypatch, *both, cuda=True)
    assert [choose_runtime("auto", device) for device in ("auto", "cpu")] == ["onnxruntime", "openvino"]
    installed(monkeypatch, "onnxruntime")
    assert choose_runtime("auto", "cpu") == "onnxruntime"
    with pytest.raises(BackendError, match="openvino is not installed: pip install openvino"):
        choose_runtime("openvino", "cpu")
    with pytest.raises(BackendError, match='runtime must be auto, onnxruntime, openvino, got "tensorrt"'):
        choose_runtime("tensorrt", "cpu")


def test_devices_that_a_runtime_lacks(tiny: Path) -> None:
    path = tiny / "model.onnx"
    asks = r'device "cuda:1" asks for CUDA, and this onnxruntime [\d.]+ has none; pip install onnxruntime-gpu, or use'
    for runtime in ("auto", "onnxruntime"):
        with pytest.raises(BackendError, match=asks):
            load_backend(path, device="cuda:1", runtime=runtime)
    with pytest.raises(BackendError, match="openvino has no CUDA; use --device cpu, or --runtime onnxruntime"):
        load_backend(path, device="cuda", runtime="openvino")
    for runtime in ("auto", "onnxruntime", "openvino"):
        with pytest.raises(BackendError, match='device must be auto, cpu, cuda or cuda:N, got "tpu"'):
            load_backend(path, device="tpu", runtime=runtime)


def test_cuda_libraries_that_are_missing(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Onnxruntime then runs on the CPU, and only its log says so."""
    installed(monkeypatch, "onnxruntime", cuda=True)
    session = onnxruntime.InferenceSession

    def on_the_cpu(path: Path, options: Any, providers: list[Any], **_: Any) -> Any:
        assert providers == [("CUDAExecutionProvider", {"device_id": "1"})]
        return session(path, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "InferenceSession", on_the_cpu)
    with pytest.raises(
        BackendError, match="onnxruntime cannot use cuda:1: CUDA libraries are missing; use --device cpu"
    ):
        load_backend(tiny / "model.onnx", device="cuda:1")


def test_runtimes_and_precisions_are_for_files_that_have_a_choice(tiny: Path) -> None:
    with pytest.raises(BackendError, match="a runtime is chosen for ONNX files; this is a"):
        load_backend(tiny / "model.pt", runtime="openvino")
    with pytest.raises(BackendError, match="a precision is chosen for checkpoints and ONNX files; this is a"):
        load_backend(tiny / "model.pt", precision="bf16")
    with pytest.raises(BackendError, match="onnxruntime computes in the file's own precision; bf16 needs the"):
        load_backend(tiny / "model.onnx", device="cpu", runtime="onnxruntime", precision="bf16")
    with pytest.raises(BackendError, match='precision must be one of auto, fp32, bf16, got "int4"'):
        load_backend(tiny / "model.onnx", device="cpu", precision="int4")


def test_an_onnx_file_runs_without_torch(tiny: Path) -> None:
    code = f"""
import sys
import numpy as np
from deploy.backends.loading import load_backend
for runtime in ("auto", "onnxruntime"):
    backend, _ = load_backend({str(tiny / "model.onnx")!r}, runtime=runtime)
    assert backend(np.zeros((2, 3, 16, 16), np.float32)).shape == (2, 3)
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# --- files that cannot be loaded


@pytest.mark.parametrize("ending", ["pt", "pt2", "onnx"])
def test_a_cut_file_is_a_sentence(ending: str, tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / f"model.{ending}"
    path.write_bytes((tiny / path.name).read_bytes()[:-500])
    with pytest.raises(ArtifactError, match=rf"model\.{ending}: it is damaged, or no"):
        load_backend(path, device="cpu")


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_an_operator_that_a_runtime_does_not_know(runtime: str, tiny: Path, tmp_path: Path) -> None:
    import onnx

    model = onnx.load(tiny / "model.onnx")
    model.graph.node[0].op_type = "Convolute"
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(BackendError, match=rf"model\.onnx: {runtime} cannot load it: .*Convolute") as caught:
        load_backend(tmp_path / "model.onnx", device="cpu", runtime=runtime)
    assert "\n" not in str(caught.value)
    assert "ONNXRuntimeError" not in str(caught.value)


def test_an_archive_of_torch_that_is_neither(tmp_path: Path) -> None:
    metadata = build_metadata().to_json()
    for ending, marker in (("pt", "constants.pkl"), ("pt2", "archive_format")):
        path = tmp_path / f"model.{ending}"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(f"model/{marker}", b"x")
            archive.writestr("model/extra/facts.json", metadata)
        with pytest.raises(BackendError, match=r"it is damaged, or no (TorchScript|torch\.export) file: ") as caught:
            load_backend(path, device="cpu")
        assert "\n" not in str(caught.value)


def test_a_description_without_its_weights(exported: Path, tmp_path: Path) -> None:
    shutil.copy(exported / "model.json", tmp_path)
    with pytest.raises(ValueError, match=r"its weights file model\.safetensors is not beside it"):
        load_backend(tmp_path / "model.json", device="cpu")


# --- torch.export's files run nothing


class Evil:
    """Unpickled, it makes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.target,)


Change = Callable[[dict[str, Any]], None]


def pickled(config: dict[str, Any]) -> None:
    config["config"]["conv.weight"]["use_pickle"] = True


def foreign_operator(model: dict[str, Any]) -> None:
    model["graph_module"]["graph"]["nodes"][0]["target"] = "torch.os.system"


def file_operator(model: dict[str, Any]) -> None:
    model["graph_module"]["graph"]["nodes"][0]["target"] = "torch.ops.aten.from_file.default"


def foreign_name(model: dict[str, Any]) -> None:
    model["graph_module"]["graph"]["nodes"][0]["name"] = "x = print(1)"


def foreign_guard(model: dict[str, Any]) -> None:
    model["guards_code"] = ["print(1)"]


def foreign_expression(model: dict[str, Any]) -> None:
    sizes = next(iter(model["graph_module"]["graph"]["tensor_values"].values()))["sizes"]
    sizes[0] = {"as_expr": {"expr_str": "__import__('os').getpid()", "hint": None}}


class TwoHeads(TinyNet):
    """Returns two tensors."""

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
        logits = super().forward(images)
        return logits, logits


def foreign_enum(model: dict[str, Any]) -> None:
    """A key that makes torch import a module, and ask it for a name: here, what ctypes would link."""
    context = json.dumps([{"__enum__": True, "fqn": "ctypes:cdll", "name": "evil.so"}])
    leaf: dict[str, Any] = {"type": None, "context": None, "children_spec": []}
    spec = [1, {"type": "builtins.dict", "context": context, "children_spec": [leaf]}]
    model["graph_module"]["module_call_graph"][0]["signature"]["out_spec"] = json.dumps(spec)


def foreign_container(model: dict[str, Any]) -> None:
    spec = [1, {"type": "collections.namedtuple", "context": '"os.system"', "children_spec": []}]
    model["graph_module"]["module_call_graph"][0]["signature"]["in_spec"] = json.dumps(spec)


@pytest.mark.parametrize(
    ("record", "change", "text"),
    [
        ("models/model.json", foreign_enum, 'the structure "[1, {'),
        ("models/model.json", foreign_container, 'the structure "[1, {'),
        ("data/weights/model_weights_config.json", pickled, '"conv.weight" is pickled'),
        ("models/model.json", foreign_operator, 'the operator "torch.os.system"'),
        ("models/model.json", file_operator, 'the operator "torch.ops.aten.from_file.default"'),
        ("models/model.json", foreign_name, 'the name "x = print(1)"'),
        ("models/model.json", foreign_guard, 'the guard "print(1)"'),
        ("models/model.json", foreign_expression, 'the expression "__import__'),
    ],
)
def test_what_torch_would_run_is_refused(record: str, change: Change, text: str, tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    with zipfile.ZipFile(tiny / "model.pt2") as whole, zipfile.ZipFile(path, "w") as archive:
        for name in whole.namelist():
            content = whole.read(name)
            if name == f"model/{record}":
                values = json.loads(content)
                change(values)
                content = json.dumps(values).encode()
            archive.writestr(name, content)
    with pytest.raises(BackendError) as caught:
        load_backend(path, device="cpu")
    assert str(caught.value).startswith(f"{path}: it has more than a net of plain tensors, and was not loaded: {text}")


@pytest.mark.parametrize("record", ["data/weights/model.pt", "data/constants/opaque_obj_0", "data/aotinductor/m/x.so"])
def test_what_torch_would_unpickle_or_link_is_refused(record: str, tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    shutil.copy(tiny / "model.pt2", path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"model/{record}", pickle.dumps(Evil(tmp_path / "made")))
    with pytest.raises(BackendError, match=f'and was not loaded: "{record}"'):
        load_backend(path, device="cpu")
    assert not (tmp_path / "made").exists()


def test_records_that_torch_alone_finds_are_not_read(tiny: Path, tmp_path: Path) -> None:
    """One archive for zipfile and another for torch's reader, in either way: what torch 2.7 wrote is unpickled."""
    records = records_of(tiny / "model.pt2")
    torch.save(Evil(tmp_path / "made"), tmp_path / "evil")
    evil, path = (tmp_path / "evil").read_bytes(), tmp_path / "model.pt2"
    old = {name: content for name, content in records.items() if name.endswith(("archive_format", "facts.json"))}
    old |= {"version": b"8.8", "serialized_exported_program.json": records["model/models/model.json"]}
    old |= {f"serialized_{name}.pt": evil for name in ("state_dict", "constants", "example_inputs")}
    write_two_in_one(path, old, records)
    with pytest.raises(BackendError, match="its records lie in several folders"):
        load_backend(path, device="cpu")
    write_two_in_one(path, records, {**records, "model/data/sample_inputs/model.pt": evil})
    assert load_backend(path, device="cpu")[0](np.zeros((2, 3, 16, 16), np.float32)).shape == (2, 3)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("name", ["model/Version", "other/version"])
def test_records_that_may_be_mistaken_for_others(name: str, tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    shutil.copy(tiny / "model.pt2", path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("model/version", b"1")
        archive.writestr(name, b"2")
    with pytest.raises(
        BackendError, match=r"model\.pt2: it is damaged, .*: it(s records lie in| holds a record twice)"
    ):
        load_backend(path, device="cpu")


def test_a_program_returns_one_tensor(tmp_path: Path) -> None:
    path = write_pt2(TwoHeads().eval(), tmp_path / "model.pt2", build_metadata(), example_of(build_metadata()))
    with pytest.raises(BackendError, match=r"model\.pt2: it must return one tensor for a batch, and returns 2"):
        load_backend(path, device="cpu")


def test_sample_inputs_that_are_more_than_tensors(tiny: Path, tmp_path: Path) -> None:
    torch.save(Evil(tmp_path / "made"), tmp_path / "evil")
    path = tmp_path / "model.pt2"
    with zipfile.ZipFile(tiny / "model.pt2") as whole, zipfile.ZipFile(path, "w") as archive:
        for name in whole.namelist():
            is_sample = name.endswith("sample_inputs/model.pt")
            archive.writestr(name, (tmp_path / "evil").read_bytes() if is_sample else whole.read(name))
    with pytest.raises(BackendError, match=r"it is damaged, or no torch\.export file: Weights only load failed"):
        load_backend(path, device="cpu")
    assert not (tmp_path / "made").exists()


def test_sizes_are_what_torch_writes_of_them() -> None:
    good = ["Symbol('s77', positive=True, integer=True)", "4*s77 + 1".replace("s77", "Symbol('s77')"), "Integer(3)"]
    good += ["FloorDiv(Mul(Integer(3), Symbol('u0', integer=True)), Integer(2))"]
    bad = ["exit()", "Symbol('a').name", "Symbol('a', name=exit())", "[].append(1)", "'a'", "Integer(3)\nexit()"]
    for text, fits in [*((text, True) for text in good), *((text, False) for text in bad)]:
        assert bool(safe_torch_export.EXPRESSION.fullmatch(safe_torch_export.SYMBOL.sub("", text))) == fits, text


# --- nets that cannot run


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "torch"])
def test_images_of_another_size_are_a_sentence(name: str, exported: Path) -> None:
    ending, runtime = FORMATS[name]
    backend, _ = load_backend(exported / f"model.{ending}", device="cpu", runtime=runtime)
    with pytest.raises(ValueError, match=r".") as caught:  # the interpreter's own error for a description
        backend(np.zeros((2, 3, 16, 16, 1), np.float32))
    assert "\n" not in str(caught.value)
    if name != "json":
        assert str(caught.value).startswith(f"the net failed on {name} cpu: ")


def failing(error: Exception) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    return fail


NO_MEMORY = [
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried to"),
    RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Failed to allocate memory for requested"),
    RuntimeError("Exception from src/inference/src/cpp/infer_request.cpp:67:\nstd::bad_alloc"),
]


@pytest.mark.parametrize("error", NO_MEMORY, ids=lambda error: str(error)[:30])
def test_too_little_memory_names_the_remedy(error: Exception, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend: Any
    for runtime, part in (("onnxruntime", "_session"), ("openvino", "_any_size")):
        backend, _ = load_backend(tiny / "model.onnx", device="cpu", runtime=runtime)
        session = type("Session", (), {"run": failing(error), "__call__": failing(error)})()
        monkeypatch.setattr(backend, part, session)
        with pytest.raises(
            BackendError, match=r"^cpu has too little memory for 2 images at once; lower the batch size"
        ):
            backend(np.zeros((2, 3, 16, 16), np.float32))
    with pytest.raises(BackendError, match="too little memory for 2 images at once; lower the batch size"):
        TorchBackend(failing(error), torch.device("cpu"), "jit")(np.zeros((2, 3, 16, 16), np.float32))
    with pytest.raises(BackendError, match=r"^cpu has too little memory for a single image$"):
        TorchBackend(failing(error), torch.device("cpu"), "jit")(np.zeros((1, 3, 16, 16), np.float32))


def test_a_net_with_other_outputs_than_its_metadata(tiny: Path, images: list[str]) -> None:
    backend, metadata = load_backend(tiny / "model.onnx", device="cpu")
    wrong = ModelMetadata(("a", "b"), metadata.preprocess, metadata.net)
    with pytest.raises(BackendError, match=rf"the {backend.name} net gives \(4, 3\) instead of \(4, 2\)"):
        list(Predictor(backend, wrong).predict_files(images[:4]))


CONTRADICTIONS = [
    (build_metadata(32), r"takes images \(float32 NCHW\) \(N, 3, 16, 16\), its metadata says \(N, 3, 32, 32\)"),
    (build_metadata(input="uint8 NHWC RGB"), r"takes .* \(N, 3, 16, 16\), its metadata says \(N, 16, 16, 3\)"),
    (replace(build_metadata(), class_names=("a", "b")), r"returns logits \(N, 3\), its metadata says \(N, 2\)"),
]


@pytest.mark.parametrize(("metadata", "text"), CONTRADICTIONS)
@pytest.mark.parametrize("name", ["onnxruntime", "openvino", "json"])
def test_metadata_of_another_net_is_refused_at_loading(
    name: str, metadata: ModelMetadata, text: str, tmp_path: Path
) -> None:
    ending, runtime = FORMATS[name]
    path = (WRITERS | {"json": write_description})[ending](
        TinyNet().eval(), tmp_path / f"model.{ending}", metadata, example_of(build_metadata())
    )
    with pytest.raises(BackendError, match=rf"^{path}: its net {text}: they are not of one net$"):
        load_backend(path, device="cpu", runtime=runtime)


def test_what_is_not_declared_is_not_compared() -> None:
    check_declared(Path(), build_metadata(), [(None, None, 16, None), None])
    check_declared(Path(), build_metadata(), [sizes_of(["batch", 3, 16, -1]), (4, 3)])
    with pytest.raises(BackendError, match=r"returns logits \(N, 3, 1\), its metadata says \(N, 3\)"):
        check_declared(Path(), build_metadata(), [None, (None, 3, 1)])
    with pytest.raises(BackendError, match="its net must have one input and one output"):
        check_declared(Path(), build_metadata(), [None, None, None])


def test_the_line_with_the_cause_is_found() -> None:
    onnx_text = "[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : Got invalid dimensions: images\n index: 2 Got: 16"
    assert reason(RuntimeError(onnx_text)) == "Got invalid dimensions: images"
    openvino_text = "Exception from src/cpp/core.cpp:84:\nCheck 'm' failed at a.cpp:5:\nModel can't be parsed\n\n"
    assert reason(RuntimeError(openvino_text)) == "Model can't be parsed"
    openvino_text = "Exception from src/cpp/core.cpp:84:\nCheck 'false' failed at a.cpp:47:\nLoading input model\n"
    assert reason(RuntimeError(f"{openvino_text}Input tensor isn't found\n\n")) == "Input tensor isn't found"
    assert reason(RuntimeError(f"{openvino_text}Errors during translation:\nno such operator")) == "no such operator"
    assert reason(RuntimeError(openvino_text)) == "Loading input model"  # better than nothing
    script_text = "The following operation failed in the TorchScript interpreter.\n x\nRuntimeError: sizes differ\n"
    assert reason(RuntimeError(script_text)) == "sizes differ"
    assert reason(RuntimeError()) == "RuntimeError"


# --- engines


class FakeEngine:
    """A profile of 2 to 4 images, as TensorRT has it; every output lies in the same memory."""

    def __init__(self, path: Path, device: torch.device) -> None:
        self.min_batch, self.max_batch, self.shape = 2, 4, (-1, 3, 16, 16)
        self.sizes: list[int] = []
        self.memory = torch.zeros(4, 3)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        assert 2 <= len(images) <= 4
        self.sizes.append(len(images))
        self.memory[: len(images)] = images.mean((2, 3))
        return self.memory[: len(images)]


@pytest.mark.parametrize(
    ("count", "sizes"), [(1, [2]), (2, [2]), (4, [4]), (5, [4, 2]), (8, [4, 4]), (11, [4, 4, 3]), (32, [4] * 8)]
)
def test_batches_beyond_an_engines_profile(count: int, sizes: list[int]) -> None:
    runner = FakeEngine(Path(), torch.device("cpu"))
    images = example_of(build_metadata(), count)
    backend = TorchBackend(within_profile(runner, runner.min_batch, runner.max_batch), torch.device("cpu"), "engine")
    np.testing.assert_allclose(backend(images.numpy()), images.mean((2, 3)).numpy(), atol=1e-6)
    assert runner.sizes == sizes


def test_an_engine_needs_a_gpu(tmp_path: Path) -> None:
    path = write_engine_metadata(tmp_path / "model.engine", build_metadata())
    with pytest.raises(BackendError, match=r"model\.engine: a TensorRT engine runs on a CUDA GPU, not on cpu; use ano"):
        load_backend(path, device="cpu")


def test_an_engine_is_run_within_its_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_engine_metadata(tmp_path / "model.engine", build_metadata())
    monkeypatch.setattr(engine_runner, "EngineRunner", FakeEngine)
    monkeypatch.setattr(loading, "choose_device", lambda name: torch.device("cuda"))
    loaded: Any = load_backend(path)[0]
    assert (loaded.name, loaded.device) == ("engine", "cuda")
    assert loaded._net(torch.ones(5, 3, 4, 4)).tolist() == [[1.0] * 3] * 5
    write_engine_metadata(path, build_metadata(32))
    with pytest.raises(
        BackendError, match=r"its net takes images .* \(N, 3, 16, 16\), its metadata says \(N, 3, 32, 32\)"
    ):
        load_backend(path)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc/self/maps is Linux's")
def test_the_stack_for_signals_outlives_every_openvino_backend(tiny: Path) -> None:
    """OpenVINO's own cores free it in the order in which they end: the next signal then killed the process."""

    class Stack(ctypes.Structure):
        _fields_ = (("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))

    backends = [load_backend(tiny / "model.onnx", device="cpu", runtime="openvino") for _ in range(3)]
    for index in (1, 1, 0):
        del backends[index]
        gc.collect()
        stack = Stack()
        assert ctypes.CDLL(None).sigaltstack(None, ctypes.byref(stack)) == 0
        lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
        areas = [[int(end, 16) for end in line.split()[0].split("-")] for line in lines]
        assert not stack.address or any(first <= stack.address < last for first, last in areas)


def test_openvinos_reason_for_a_broken_graph_is_no_heading(tmp_path: Path) -> None:
    path = write_onnx(TinyNet().eval(), tmp_path / "model.onnx", build_metadata(), example_of(build_metadata()))
    model = onnx.load(path)
    model.graph.node[0].input[0] = "nothing"
    onnx.save(model, path)
    with pytest.raises(BackendError, match=r"openvino cannot load it: .*nothing"):
        load_backend(path, device="cpu", runtime="openvino")
