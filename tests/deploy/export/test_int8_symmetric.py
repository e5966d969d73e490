"""The symmetric int8 file, which TensorRT takes: every zero point is 0, and what is rounded where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from artifacts.metadata_reader import read_metadata
from deploy.export.quantization import integer_kernels, quantize
from pytorch2json.converter import convert
from pytorch2json.description_file import read_description
from pytorch2json.interpreter import Interpreter
from pytorch2json.network import Network
from pytorch2json.quantization import quantized
from tests.helpers.exported import LARGEST_WEIGHT, build_metadata, export, export_onnx, mistake, report_of, train_net
from tests.helpers.nets import gem_net, lively_net, random_images

ROWS = ("mobilenet_v2", "efficientnet_lite0", "efficientnet_b0", "resnet18", "convnext_tiny", "swin_t", "vit_b_32")


class TwoConvolutions(nn.Module):
    """Two 1x1 convolutions with a ReLU between them, a mean and a linear layer: (N, 2, 2, 2) -> (N, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 2, 1, bias=False), nn.Conv2d(2, 4, 1, bias=False)
        self.head = nn.Linear(4, 3)
        with torch.no_grad():
            self.first.weight.copy_(torch.tensor([[0.5, -0.1], [-2.0, 1.1]]).view(2, 2, 1, 1))
            self.second.weight.copy_(torch.arange(-3.0, 5.0).view(4, 2, 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.second(self.first(images).relu()).mean((2, 3)))
        return logits


class Attention(nn.Module):
    """One head of attention over the tokens of 16x16 patches: (N, 3, 32, 32) -> (N, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 16, 16)
        self.query, self.key, self.value, self.out = (nn.Linear(8, 8) for _ in range(4))
        self.head = nn.Linear(8, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        tokens = self.patches(images).flatten(2).transpose(1, 2)  # (N, 4, 8)
        weights = (self.query(tokens) @ self.key(tokens).transpose(1, 2)).softmax(2)  # (N, 4, 4)
        logits: torch.Tensor = self.head(self.out(weights @ self.value(tokens)).mean(1))
        return logits


def two_images() -> torch.Tensor:
    """Return images of one colour each: channels -2.54 and 1.0, then 1.27 and -1.0."""
    return torch.tensor([[-2.54, 1.0], [1.27, -1.0]]).view(2, 2, 1, 1).repeat(1, 1, 2, 2)


def symmetric_file(net: nn.Module, images: torch.Tensor, folder: Path, **changes: Any) -> Path:
    metadata = build_metadata(images.shape[-1])
    export_onnx(net, images[:2], folder / "float.onnx", metadata)
    path = folder / "model.int8.onnx"
    quantize(folder / "float.onnx", path, metadata, images.numpy(), **{"symmetric": True} | changes)
    return path


def constants_of(path: Path) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


def tensorrt_errors(path: Path, build: bool = True) -> list[str]:
    """Parse the file with TensorRT's own parser and build an engine; return what it has against it."""
    trt = pytest.importorskip("tensorrt_rtx", reason="needs tensorrt_rtx, which builds without a GPU")
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(path.read_bytes()):
        return [parser.get_error(number).desc() for number in range(parser.num_errors)]
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    sizes = tuple(network.get_input(0).shape)[1:]
    profile.set_shape("images", (1, *sizes), (2, *sizes), (4, *sizes))
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    return [] if plan is not None and len(bytes(plan)) > 1000 else ["no engine"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_net(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def gem_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return symmetric_file(gem_net(), random_images(25, 32), tmp_path_factory.mktemp("symmetric"))


def test_scales_and_a_tensor_worked_out_by_hand(tmp_path: Path) -> None:
    """scale = largest |value| / 127, value = round(x / scale) (NVIDIA TensorRT, "Explicit quantization").

    The first convolution gives (-1.37, 6.18) and (0.735, -3.64), of which the ReLU leaves 6.18 as the largest.
    """
    path = symmetric_file(TwoConvolutions(), two_images(), tmp_path)
    values = constants_of(path)
    np.testing.assert_allclose(values["images_scale"], 0.02, rtol=1e-6)
    np.testing.assert_allclose(values["Relu_scale"], 6.18 / 127, rtol=1e-6)
    np.testing.assert_allclose(values["first.weight_scale"], [0.5 / LARGEST_WEIGHT, 2 / LARGEST_WEIGHT], rtol=1e-6)
    rows = {127: [[127, -25], [-127, 70]], 64: [[64, -13], [-64, 35]]}  # -25.4, 69.85; -12.8, 35.2
    assert values["first.weight_quantized"].reshape(2, 2).tolist() == rows[LARGEST_WEIGHT]
    model = onnx.load(path)
    rounded = next(node.output[0] for node in model.graph.node if list(node.input[:1]) == ["images"])
    model.graph.output.append(onnx.ValueInfoProto(name=rounded))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    got = session.run([rounded], {"images": two_images().numpy() * np.float32(1.013)})[0][:, :, 0, 0]
    assert got.tolist() == [[-128, 51], [64, -51]]  # -128.65 is beyond the range; 50.65, 64.33, -50.65


def test_every_zero_point_is_0(gem_file: Path) -> None:
    graph, values = onnx.load(gem_file).graph, constants_of(gem_file)
    nodes = [node for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    points = [values[node.input[2]] for node in nodes]
    assert len(nodes) == 2 * 17 + 20  # what the 20 convolutions read, 3 of it twice, and their kernels
    assert all(point.dtype == np.int8 and not point.any() for point in points)


def test_only_what_convolutions_read_is_rounded(gem_file: Path) -> None:
    graph = onnx.load(gem_file).graph
    makers = {name: node for node in graph.node for name in node.output}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert len(convolutions) == 20
    for node in convolutions:
        assert [makers[name].op_type for name in node.input[:2]] == ["DequantizeLinear"] * 2
        assert node.input[2] not in makers  # the bias stays float32
        assert {reader.op_type for reader in graph.node if node.output[0] in reader.input} <= {"Relu", "Add"}
    classifier = next(node for node in graph.node if node.op_type == "Gemm")
    assert makers[classifier.input[0]].op_type != "DequantizeLinear" and classifier.input[1] not in makers


def test_products_of_two_activations_stay_in_float(tmp_path: Path) -> None:
    net = Attention().eval()
    graph = onnx.load(symmetric_file(net, random_images(4, 32), tmp_path)).graph
    makers = {name: node for node in graph.node for name in node.output}
    products = [node for node in graph.node if node.op_type in ("MatMul", "Gemm")]
    rounded = [
        [makers[name].op_type == "DequantizeLinear" for name in node.input[:2] if name in makers] for node in products
    ]
    assert rounded.count([True, True]) == 4  # query, key, value, out
    assert rounded.count([False, False]) == 2  # the scores, and the values that they weight


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_it_is_close_to_the_float_file(runtime: str, gem_file: Path) -> None:
    pytest.importorskip(runtime)
    images = random_images(25, 32).numpy()
    wanted = run(gem_file.with_name("float.onnx"), images, "onnxruntime")
    assert np.abs(run(gem_file, images, runtime) - wanted).mean() < 2.54 / LARGEST_WEIGHT * np.abs(wanted).max()


def run(path: Path, images: np.ndarray, runtime: str) -> np.ndarray:
    if runtime == "openvino":
        import openvino

        compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        return np.asarray(compiled(images)[0])
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"images": images})[0])


def test_tensorrt_builds_an_engine_from_it(gem_file: Path) -> None:
    assert tensorrt_errors(gem_file) == []


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS)
def test_tensorrt_builds_an_engine_of_other_nets(row: str, tmp_path: Path) -> None:
    net, side = lively_net(row)
    assert tensorrt_errors(symmetric_file(net, random_images(12, side), tmp_path)) == []


def test_tensorrt_refuses_zero_points_that_are_not_0(tmp_path: Path) -> None:
    """Why there is a flag; once its parser takes this file too, the flag can go."""
    path = symmetric_file(gem_net(), random_images(12, 32), tmp_path, symmetric=False)
    assert any("zero" in error.lower() or "uint8" in error.lower() for error in tensorrt_errors(path))


def test_an_export_writes_and_verifies_it(trained: Path, tmp_path: Path) -> None:
    assert export(trained, ["int8"], tmp_path, device="cpu", int8_symmetric=True) == 0
    file, report = tmp_path / "model.int8.onnx", report_of(tmp_path)
    assert not any(value.any() for name, value in constants_of(file).items() if name.endswith("zero_point"))
    assert tensorrt_errors(file) == []
    assert read_metadata(file).precision == "int8"
    assert report["int8_symmetric"] is True
    runs = report["formats"][0]["runs"]
    assert [run["runtime"] for run in runs] and all(run["accuracy"] and not run["problem"] for run in runs)


def test_the_flag_is_of_the_int8_file(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--weights", trained, "--output_dir", tmp_path, "--formats", "onnx", "--int8_symmetric")
    assert mistake(capsys, *flags) == "--int8_symmetric is of the int8 file; add int8 to --formats"


# --- the description in int8


def test_the_description_computes_what_the_onnx_file_computes(gem_file: Path) -> None:
    network, weights = compare_description(gem_file, gem_net(), random_images(25, 32))
    scales = {name: value for name, value in constants_of(gem_file).items() if name.endswith("_scale")}
    taken = {name: float(value) for name, value in weights.items() if name.endswith(".scale")}
    assert len(taken) == 17 and set(taken.values()) <= {float(value) for value in scales.values() if not value.ndim}
    assert taken["images.scale"] == float(scales["images_scale"])
    assert [layer.type for layer in network.layers].count("quantize") == 17
    tensors = Interpreter(network, weights).run(random_images(25, 32))
    assert torch.equal(tensors["images.quantize"], rounded_by_onnx(gem_file, "images"))
    moved = (tensors["maxpool.quantize"].int() - rounded_by_onnx(gem_file, "maxpool/MaxPool").int()).abs()
    assert moved.max() <= 1 and moved.float().mean() < 1e-3  # the first convolution sums in another order


def rounded_by_onnx(file: Path, name: str) -> torch.Tensor:
    model = onnx.load(file)
    output = next(node.output[0] for node in model.graph.node if list(node.input[:1]) == [name])
    model.graph.output.append(onnx.ValueInfoProto(name=output))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run([output], {"images": random_images(25, 32).numpy()})[0])


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS)
def test_the_descriptions_of_other_nets_compute_what_their_onnx_files_compute(row: str, tmp_path: Path) -> None:
    net, side = lively_net(row)
    file = symmetric_file(net, random_images(12, side), tmp_path)
    compare_description(file, net, random_images(12, side))


def compare_description(file: Path, net: nn.Module, images: torch.Tensor) -> tuple[Network, dict[str, torch.Tensor]]:
    """Make the description with the file's scales, compare their logits, and return it.

    A sum in another order moves a value at the border of two steps, and layers amplify that: onnxruntime differs from
    itself by 1.2 % of the largest logit in the mean (an untrained resnet18) without its optimizations, or with images
    moved by one part in 100,000. The description may differ by 1.5 times the larger of the two: which of them is the
    larger depends on the net and on the CPU's kernels.
    """
    network, weights = quantized(*convert(net, images[:2]), integer_kernels(file))
    got, wanted = Interpreter(network, weights)(images).numpy(), run(file, images.numpy(), "onnxruntime")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    moved = images * (1 + 1e-5 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0)))
    others = session.run(None, {"images": images.numpy()})[0], run(file, moved.numpy(), "onnxruntime")
    allowed = max(np.abs(other - wanted).mean() for other in others)
    assert np.abs(got - wanted).mean() < 1.5 * allowed + 1e-6 * np.abs(wanted).max()
    return network, weights


def test_an_export_in_int8_writes_the_description_and_its_engine(trained: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt_rtx, which builds without a GPU")
    assert export(trained, ["int8", "engine"], tmp_path, device="cpu", precision="int8") == 0
    report = {entry["format"]: entry for entry in report_of(tmp_path)["formats"]}
    assert {name: entry["status"] for name, entry in report.items()} == {
        "int8": "written", "json": "written", "engine": "not proved",
    }  # fmt: skip
    network, weights = read_description(tmp_path / "model.json")
    assert (network.format_version, network.precision, network.facts["precision"]) == (2, "int8", "int8")
    own, file = integer_kernels(tmp_path / "model.int8.onnx"), constants_of(tmp_path / "model.int8.onnx")
    assert not any(value.any() for name, value in file.items() if name.endswith("zero_point"))
    made = [value for name, value in weights.items() if name.endswith("kernel_int8")]
    assert len(made) == len(own) == 20
    assert all(any(torch.equal(ours, kernel.values) for kernel in own) for ours in made)
    assert read_metadata(tmp_path / "model.engine").precision == "int8"
    assert report["engine"]["bytes"] < 0.5 * trained.stat().st_size  # float32 weights take 45 MB
    entry = report["json"]["runs"][0]
    assert entry["accuracy"] and entry["mean_difference"] < 0.05 and not entry["problem"]


def test_int8_is_a_precision_of_the_description_alone(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--weights", trained, "--output_dir", tmp_path, "--precision", "int8")
    sentence = mistake(capsys, *flags, "--formats", "jit,onnx,json")
    assert sentence == "precision int8 is of json and engine, and --formats int8 is ONNX; got jit, onnx"
