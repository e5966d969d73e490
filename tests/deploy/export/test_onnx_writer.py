"""The ONNX file: names, constants, metadata, batch sizes, and what it refuses."""

from __future__ import annotations

import hashlib
import re
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from artifacts.errors import ArtifactError
from artifacts.metadata_reader import read_metadata
from artifacts.onnx_file import read_onnx
from deploy.backends.loading import load_backend
from deploy.export import onnx_writer
from deploy.export.errors import ExportError
from deploy.export.model_wrapper import deployed_net
from deploy.export.onnx_writer import module_ends, scopes_of
from tests.helpers.exported import TinyNet, build_metadata, export_onnx
from tests.helpers.nets import gem_net


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return gem_net()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def file(net: nn.Module, images: torch.Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    export_onnx(net, images, path, build_metadata(32))
    return path


def run(path: Path, images: np.ndarray) -> np.ndarray:
    return np.asarray(onnxruntime.InferenceSession(path).run(["logits"], {"images": images})[0])


@pytest.mark.parametrize("count", [1, 3, 32])
def test_any_batch_size_returns_the_nets_logits(count: int, net: nn.Module, file: Path) -> None:
    batch = torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(count))
    with torch.inference_mode():
        expected = net(batch).numpy()
    np.testing.assert_allclose(run(file, batch.numpy()), expected, atol=1e-5 * np.abs(expected).max())


def test_input_output_and_metadata(file: Path) -> None:
    model = onnx.load(file)
    onnx.checker.check_model(model, full_check=True)
    [images], [output] = model.graph.input, model.graph.output
    assert (images.name, output.name) == ("images", "logits")
    assert [size.dim_param or size.dim_value for size in images.type.tensor_type.shape.dim] == ["batch", 3, 32, 32]
    metadata = {prop.key: prop.value for prop in model.metadata_props}
    assert metadata.keys() == {"facts", "sha256"}
    assert metadata["facts"] == build_metadata(32).to_json()


def test_every_node_is_named_by_its_module_and_operator(net: nn.Module, file: Path) -> None:
    nodes = onnx.load(file).graph.node
    names = [node.name for node in nodes]
    assert len(set(names)) == len(names)
    modules = dict(net.named_modules())
    for node in nodes:
        module, _, operator = node.name.rpartition("/")
        assert module in modules
        assert re.fullmatch(rf"{node.op_type}(_\d+)?", operator)
    assert {"conv1/Conv", "layer1.0.relu/Relu", "layer1.0.relu/Relu_2", "layer2.0/Add", "gem/Pow", "fc/Gemm"} <= {
        *names
    }


def test_constants_are_folded_and_batch_norms_gone(net: nn.Module, file: Path) -> None:
    graph = onnx.load(file).graph
    operators = [node.op_type for node in graph.node]
    convolutions = sum(isinstance(module, nn.Conv2d) for module in net.modules())
    assert operators.count("Conv") == convolutions
    assert not {"BatchNormalization", "Constant", "Shape", "Identity", "Cast"} & set(operators)


def test_weights_keep_their_names(net: nn.Module, file: Path) -> None:
    graph = onnx.load(file).graph
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d):
            assert weights[f"{name}.weight"].shape == tuple(module.weight.shape)
            assert f"{name}.bias" in weights
    np.testing.assert_array_equal(weights["fc.weight"], net.fc.weight.detach().numpy())
    made = {name for name in weights if not name.endswith((".weight", ".bias"))}
    assert made and all(re.fullmatch(r"gem/\w+\.\d", name) for name in made)  # what the power block is made with


def test_no_path_of_this_machine_is_in_the_file(file: Path) -> None:
    content = file.read_bytes()
    for text in (str(Path.cwd()), "site-packages", "forward("):
        assert text.encode() not in content


def test_the_modules_calls_can_be_found_again(net: nn.Module, file: Path, images: torch.Tensor) -> None:
    """The values at the found ends are those of the net's own hooks."""
    model = onnx.load(file)
    ends = module_ends((scopes_of(node), node.output[0]) for node in model.graph.node)
    seen: dict[str, np.ndarray] = {}
    hooks = []
    for name in ("bn1", "layer2.0", "layer3.1.bn2", "gem"):
        keep = partial(lambda key, module, args, output: seen.update({key: output.numpy().copy()}), name)
        hooks.append(net.get_submodule(name).register_forward_hook(keep))
        model.graph.output.append(onnx.ValueInfoProto(name=ends[name, 0]))
    with torch.inference_mode():
        net(images)
    for hook in hooks:
        hook.remove()
    session = onnxruntime.InferenceSession(model.SerializeToString())
    for name, expected in seen.items():
        [got] = session.run([ends[name, 0]], {"images": images.numpy()})
        np.testing.assert_allclose(got, expected, atol=1e-5 * np.abs(expected).max())


def test_runs_of_a_module_are_its_calls() -> None:
    nodes = [(("a",), "1"), (("a", "a.b"), "2"), (("a",), "3"), ((), "4"), (("a", "a.b"), "5")]
    assert module_ends(iter(nodes)) == {("a.b", 0): "2", ("a", 0): "3", ("a.b", 1): "5", ("a", 1): "5"}


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_weights_are_all_of_it(precision: str, net: nn.Module, tmp_path: Path) -> None:
    metadata = build_metadata(32, precision=precision)
    half = deployed_net(net, metadata.preprocess, metadata.input, precision)
    export_onnx(half, torch.randn(2, 3, 32, 32), tmp_path / "model.onnx", metadata)
    model = onnx.load(tmp_path / "model.onnx")
    wanted = onnx.TensorProto.FLOAT16 if precision == "fp16" else onnx.TensorProto.BFLOAT16
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert {types[name] for name in types if name.endswith((".weight", ".bias"))} == {wanted}
    assert {types[name] for name in types if name.startswith("gem/Pow")} == {onnx.TensorProto.FLOAT}
    ends = {value.name: value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)}
    assert ends == {"images": onnx.TensorProto.FLOAT, "logits": onnx.TensorProto.FLOAT}


def test_beyond_the_largest_file_the_weights_go_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_writer, "LARGEST_FILE", 100)
    net, images = TinyNet().eval(), torch.randn(2, 3, 16, 16)
    export_onnx(net, images, tmp_path / "model.onnx", build_metadata())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    with torch.inference_mode():
        np.testing.assert_allclose(run(tmp_path / "model.onnx", images.numpy()), net(images), atol=1e-5)


class FixedBatch(TinyNet):
    """A net that knows its batch size."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images.reshape(2, 3, 16, 16))


def test_a_net_with_a_fixed_batch_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"torch\.export cannot take the net with a free batch size: .*batch"):
        export_onnx(FixedBatch().eval(), torch.randn(2, 3, 16, 16), tmp_path / "model.onnx", build_metadata())
    assert not list(tmp_path.iterdir())


def test_a_graph_that_is_not_valid_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the repair of the exporter's folding, bf16 convolutions get float32 weights."""
    monkeypatch.setattr(onnx_writer, "_settle_weight_types", lambda graph: None)
    metadata = build_metadata(32, precision="bf16")
    half = deployed_net(gem_net(), metadata.preprocess, metadata.input, "bf16")
    with pytest.raises(ExportError, match="the exported graph is not valid ONNX"):
        export_onnx(half, torch.randn(2, 3, 32, 32), tmp_path / "model.onnx", metadata)


# --- the digest


def test_the_digest_is_of_all_the_files_other_bytes(file: Path) -> None:
    content = file.read_bytes()
    digest = onnx.load(file).metadata_props[-1].value
    assert content.count(digest.encode()) == 1
    assert hashlib.sha256(content.replace(digest.encode(), b"0" * 64)).hexdigest() == digest


def exported_tiny(folder: Path) -> Path:
    torch.manual_seed(0)
    export_onnx(TinyNet().eval(), torch.randn(2, 3, 16, 16), folder / "model.onnx", build_metadata())
    return folder / "model.onnx"


def test_no_flipped_bit_changes_the_net_silently(tmp_path: Path) -> None:
    """It may fall on the digest's own name, which leaves a file without one; net and metadata are then as before."""
    path = exported_tiny(tmp_path)
    original, graph = path.read_bytes(), read_onnx(path).graph.SerializeToString()
    refused = 0
    for position in range(0, len(original), 3):
        content = bytearray(original)
        content[position] ^= 1 << position % 8
        path.write_bytes(content)
        try:
            read = read_onnx(path)
            assert (read.graph.SerializeToString(), read_metadata(path)) == (graph, build_metadata()), position
        except ArtifactError:
            refused += 1
    assert refused > 0.95 * len(original) / 3


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("largest", [onnx_writer.LARGEST_FILE, 100])
def test_no_runtime_loads_a_flipped_weight(
    largest: int, runtime: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_writer, "LARGEST_FILE", largest)
    path = exported_tiny(tmp_path)
    holder = path if largest > 100 else tmp_path / "model.onnx.data"
    kernel = read_onnx(path).graph.initializer
    torch.manual_seed(0)
    wanted = TinyNet().conv.weight.detach().numpy().tobytes()
    content = bytearray(holder.read_bytes())
    content[content.index(wanted) + 7] ^= 0x40
    assert {tensor.name for tensor in kernel} >= {"conv.weight"}
    load_backend(path, device="cpu", runtime=runtime)
    holder.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"model\.onnx: it is damaged, or was changed after its export: .* sha256$"):
        load_backend(path, device="cpu", runtime=runtime)


def test_a_file_with_its_weights_beside_it_may_be_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_writer, "LARGEST_FILE", 100)
    path = exported_tiny(tmp_path)
    (tmp_path / "moved").mkdir()
    for name in ("model.onnx", "model.onnx.data"):
        shutil.move(tmp_path / name, tmp_path / "moved" / name)
    assert read_metadata(tmp_path / "moved" / path.name) == build_metadata()


def test_a_changed_file_with_an_old_digest_and_one_without(tmp_path: Path) -> None:
    path = exported_tiny(tmp_path)
    model = onnx.load(path)
    model.graph.node[0].name = "another"
    onnx.save(model, path)
    with pytest.raises(ArtifactError, match="it does not match its sha256"):
        read_onnx(path)
    onnx.helper.set_model_props(model, {"facts": build_metadata().to_json()})
    onnx.save(model, path)
    assert read_metadata(path) == build_metadata()  # of an older version, or another tool: there is nothing to compare
    onnx_writer.write_digest(path)
    right = onnx.load(path)
    right.metadata_props.add(key="sha256", value="0" * 64)
    onnx.save(right, path)
    with pytest.raises(ArtifactError, match="it does not match its sha256"):
        read_onnx(path)
