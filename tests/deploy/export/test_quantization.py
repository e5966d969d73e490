"""The int8 file: what is quantized, what stays in float, and from which images the ranges come."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from artifacts.errors import ArtifactError
from artifacts.onnx_file import read_onnx
from common import cpu
from deploy.backends import devices, loading
from deploy.backends.base import BackendError
from deploy.backends.loading import load_backend
from deploy.backends.onnx_backends import OpenVinoBackend
from deploy.export import quantization
from deploy.export.onnx_writer import scopes_of
from deploy.export.quantization import float_nodes, quantize
from deploy.export.verification import INT8_BATCH_TOLERANCE
from nets.net_interface import build_net
from tests.helpers.exported import LARGEST_WEIGHT, build_metadata, export_onnx
from tests.helpers.nets import gem_net

QDQ = {"QuantizeLinear", "DequantizeLinear"}


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).normal(0.3, 1, (25, 3, 32, 32)).astype(np.float32)


@pytest.fixture(scope="module")
def float_file(images: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("int8") / "float.onnx"
    export_onnx(gem_net(), torch.from_numpy(images[:2]), path, build_metadata(32))
    return path


@pytest.fixture(scope="module")
def file(float_file: Path, images: np.ndarray) -> Path:
    path = float_file.with_name("model.int8.onnx")
    quantize(float_file, path, build_metadata(32, precision="int8"), images)
    return path


def weights_of(path: Path) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


def test_no_rounding_stands_between_the_power_blocks_nodes(file: Path) -> None:
    graph = onnx.load(file).graph
    makers = {name: node for node in graph.node for name in node.output}
    block = [node for node in graph.node if "gem" in scopes_of(node)]
    assert [node.op_type for node in block] == ["Clip", "Pow", "ReduceMean", "Pow"]
    for node in block:
        before = makers[node.input[0]]
        assert before.op_type not in QDQ
        readers = [reader for reader in graph.node if node.output[0] in reader.input]
        assert readers and not {reader.op_type for reader in readers} & QDQ
    assert makers[block[0].input[0]].name == "layer4.1.relu/Relu_2"  # what it is fed has not been rounded either


def test_convolutions_are_int8_per_channel_and_fed_uint8(file: Path) -> None:
    graph, weights = onnx.load(file).graph, weights_of(file)
    makers = {name: node for node in graph.node for name in node.output}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert len(convolutions) == 20
    for node in convolutions:
        image, kernel = makers[node.input[0]], makers[node.input[1]]
        assert image.op_type == kernel.op_type == "DequantizeLinear"
        assert weights[image.input[2]].dtype == np.uint8
        assert weights[kernel.input[0]].dtype == np.int8
        channels = weights[kernel.input[0]].shape[0]
        assert weights[kernel.input[1]].shape == (channels,)
        assert not weights[kernel.input[2]].any()  # symmetric


def test_residual_sums_stay_integer_but_the_last(file: Path) -> None:
    graph = onnx.load(file).graph
    makers = {name: node for node in graph.node for name in node.output}
    sums = [node for node in graph.node if node.op_type == "Add"]
    rounded = [all(makers[name].op_type in QDQ for name in node.input) for node in sums]
    readers = [[r.op_type for r in graph.node if node.output[0] in r.input] for node in sums]
    assert rounded == [True] * 8
    assert readers == [["QuantizeLinear"]] * 7 + [["Relu"]]  # GeM and the mean read the last


def test_the_inputs_range_is_that_of_the_calibration_images(file: Path, images: np.ndarray) -> None:
    """Affine uint8 (Jacob et al. 2018, eq. 1): scale = (max - min) / 255, zero point = round(-min / scale)."""
    weights = weights_of(file)
    scale = (images.max() - images.min()) / 255
    np.testing.assert_allclose(weights["images_scale"], scale, rtol=1e-6)
    assert int(weights["images_zero_point"]) == round(float(-images.min() / scale))


def test_weights_round_to_the_nearest_of_their_channels_steps(file: Path, float_file: Path) -> None:
    name = "layer3.0.conv1.weight"
    wanted, got = weights_of(float_file)[name], weights_of(file)[f"{name}_quantized"]
    step = np.abs(wanted).max(axis=(1, 2, 3)) / LARGEST_WEIGHT
    error = np.abs(got * step[:, None, None, None] - wanted) / step[:, None, None, None]
    assert error.max() < 0.51


def test_metadata_and_names_are_in_the_file(file: Path) -> None:
    model = onnx.load(file)
    onnx.checker.check_model(model, full_check=True)
    metadata = {prop.key: prop.value for prop in model.metadata_props}
    assert metadata.keys() == {"facts", "sha256"}
    assert metadata["facts"] == build_metadata(32, precision="int8").to_json()
    assert model.graph.input[0].name == "images"
    assert model.graph.output[0].name == "logits"
    assert file.stat().st_size < 0.3 * file.with_name("float.onnx").stat().st_size


def test_a_flipped_bit_in_the_weights_is_found(file: Path, tmp_path: Path) -> None:
    weights = weights_of(file)["layer3.0.conv1.weight_quantized"].tobytes()
    content = bytearray(file.read_bytes())
    content[content.index(weights) + 1000] ^= 0x20
    (tmp_path / "model.int8.onnx").write_bytes(content)
    assert read_onnx(file).graph.node
    with pytest.raises(ArtifactError, match=r"int8\.onnx: it is damaged, or was changed after its export"):
        read_onnx(tmp_path / "model.int8.onnx")


@pytest.mark.parametrize("count", [1, 3, 32])
def test_any_batch_size_is_close_to_the_float_file(
    count: int, file: Path, float_file: Path, images: np.ndarray
) -> None:
    batch = np.resize(images, (count, 3, 32, 32))
    got, wanted = (onnxruntime.InferenceSession(f).run(None, {"images": batch})[0] for f in (file, float_file))
    assert got.shape == (count, 3)
    assert np.abs(got - wanted).max() < 12.7 / LARGEST_WEIGHT * np.abs(wanted).max()


def test_without_vnni_weights_have_seven_bits(
    float_file: Path, images: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantization, "has_int8_dot_product", lambda: False)
    monkeypatch.setattr(loading, "has_int8_dot_product", lambda: False)
    quantize(float_file, tmp_path / "model.int8.onnx", build_metadata(32, precision="int8"), images)
    load_backend(tmp_path / "model.int8.onnx")
    weights = weights_of(tmp_path / "model.int8.onnx")
    kernels = [value for name, value in weights.items() if name.endswith("weight_quantized")]
    assert len(kernels) == 20
    assert max(np.abs(kernel.astype(int)).max() for kernel in kernels) <= 64


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_weights_of_eight_bits_are_refused_without_vnni(
    runtime: str, float_file: Path, images: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantization, "has_int8_dot_product", lambda: True)
    monkeypatch.setattr(loading, "has_int8_dot_product", lambda: False)
    file = tmp_path / "model.int8.onnx"
    quantize(float_file, file, build_metadata(32, precision="int8"), images)
    with pytest.raises(BackendError, match="written on a CPU with VNNI or AMX, which this one lacks"):
        load_backend(file, runtime=runtime, device="cpu")


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"architecture": "x86_64", "avx512_vnni": True}, True),
        ({"architecture": "x86_64", "avx_vnni": True}, True),
        ({"architecture": "x86_64", "amx_int8": True}, True),
        ({"architecture": "x86_64", "avx2": True, "avx512_vnni": False}, False),
        ({"architecture": "aarch64"}, True),
    ],
)
def test_which_cpus_add_in_32_bits(
    capabilities: dict[str, object], expected: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    monkeypatch.setattr(devices.platform, "machine", lambda: capabilities["architecture"])
    flags = " ".join(name for name, value in capabilities.items() if value is True)
    (tmp_path / "cpuinfo").write_text(f"model name\t: a CPU\nflags\t\t: fpu {flags} sse\n", encoding="utf-8")
    for file in ("cpuinfo", "none"):  # on Linux, and elsewhere
        monkeypatch.setattr(cpu, "CPU_INFO", tmp_path / file)
        assert devices.has_int8_dot_product() is expected


def test_attention_keeps_its_norms_and_softmax_in_float(tmp_path: Path) -> None:
    torch.manual_seed(0)
    args = {"num_classes": 3, "img_height": 32, "img_width": 32, "model_args": {}}
    net = build_net("swin_module", "swin_t", **args)
    net.features = nn.Sequential(*list(net.features)[:2])  # the patches and the first two blocks
    net.norm, net.head = nn.LayerNorm(96), nn.Linear(96, 3)
    images = torch.randn(4, 3, 32, 32)
    metadata = build_metadata(32)
    export_onnx(net.eval(), images, tmp_path / "float.onnx", metadata)
    quantize(tmp_path / "float.onnx", tmp_path / "int8.onnx", replace(metadata, precision="int8"), images.numpy())
    graph = onnx.load(tmp_path / "int8.onnx").graph
    makers = {name: node for node in graph.node for name in node.output}
    operators = [node.op_type for node in graph.node]
    assert operators.count("Softmax") == 2
    assert operators.count("LayerNormalization") == 6
    scores = [node for node in graph.node if node.op_type == "Softmax"]
    assert not [node.name for node in scores if makers[node.input[0]].op_type in QDQ]
    products = [node for node in graph.node if node.op_type in ("MatMul", "Gemm") and node.output[0] != "logits"]
    assert products and all(makers[node.input[0]].op_type == "DequantizeLinear" for node in products)


def test_what_feeds_float_alone_stays_float_and_what_feeds_a_kernel_does_not() -> None:
    make = onnx.helper.make_node
    graph = onnx.helper.make_graph(
        [
            make("Conv", ["images", "w"], ["a"], "first"),
            make("Relu", ["a"], ["b"], "kept"),
            make("Conv", ["b", "w"], ["c"], "second"),
            make("Relu", ["c"], ["d"], "freed"),
            make("Softmax", ["d"], ["e"], "float"),
            make("Add", ["e", "bias"], ["f"], "constant"),
            make("MatMul", ["f", "w"], ["logits"], "classifier"),
        ],
        "g",
        [onnx.ValueInfoProto(name="images")],
        [onnx.ValueInfoProto(name="logits")],
        [numpy_helper.from_array(np.zeros(1, np.float32), name) for name in ("w", "bias")],
    )
    assert float_nodes(graph) == {"freed", "float", "constant", "classifier"}


def test_openvino_runs_in_programs_for_powers_of_two(file: Path, images: np.ndarray) -> None:
    """The program that it compiles for any size was wrong for a swin_t."""
    backend = OpenVinoBackend(file, "int8", is_int8=True)
    assert backend._any_size is None
    of_all = backend(images)
    assert of_all.shape[0] == 25 and counts_of(backend) == [32]
    for count, size in ((1, 1), (3, 4), (8, 8)):
        part = backend(images[:count])
        assert part.shape == of_all[:count].shape
        assert size in counts_of(backend)
        assert np.abs(part - of_all[:count]).max() < INT8_BATCH_TOLERANCE * np.abs(of_all).max()
    assert counts_of(backend) == [1, 4, 8, 32]
    bf16 = load_backend(file, device="cpu", runtime="openvino", precision="bf16")[0]
    assert isinstance(bf16, OpenVinoBackend) and bf16._any_size is None


def counts_of(backend: OpenVinoBackend) -> list[int]:
    """Return the batch sizes that there are programs for."""
    return sorted(shape[0] for shape in backend._of_shape)


def test_classifiers_and_one_dimensional_convolutions_stay_in_float() -> None:
    """PIM in int8 was wrong on OpenVINO with either of them in integers."""
    net = build_net(
        "pim_module", "PIM", num_classes=5, img_height=32, img_width=32,
        model_args={"model_type": "resnet18", "fpn_size": 16, "head": "all"},
    ).eval()  # fmt: skip
    kept = nodes_kept_in_float(net)
    assert {f"heads.{stage}.3/Conv" for stage in range(4)} <= kept
    assert {"combiner.conv/Conv", "combiner.query/Conv", "combiner.key/Conv"} <= kept
    assert any("combiner.classifier" in name for name in kept)
    assert not any(name.startswith(("heads.0.0/", "backbone.layer1.0.conv1/", "fpn.projections.0.0/")) for name in kept)


def nodes_kept_in_float(net: nn.Module) -> set[str]:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "float.onnx"
        export_onnx(net, torch.rand(2, 3, 32, 32), path, build_metadata(32))
        return float_nodes(onnx.load(path).graph)
