"""The converter and the interpreter: nets by family, single operators, and what cannot be described."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from common.paths import ROOT
from pytorch2json import network
from pytorch2json.converter import convert
from pytorch2json.description_checks import find_problems
from pytorch2json.description_file import read_description, to_json, write_description
from pytorch2json.interpreter import Interpreter, relative_error
from pytorch2json.network import DescriptionError, Network
from pytorch2json.wts import write_wts
from tests.conftest import slow_but
from tests.helpers.nets import FAMILIES, OPERATIONS, Wrapped, inputs_of, lively_net, random_images

pytestmark = pytest.mark.usefixtures("one_thread")

DOCS = ROOT / "docs" / "tensorrt-json.md"


DENSE = ("linknet18", "deeplabv3plus", "lraspp", "unet", "backbone_unet", "siamese_linknet34", "fc_siam_diff")
QUICK = (
    *("lraspp", "unet", "fc_siam_diff"),
    "GeM_ResNet_AVP resnet18",
    "WideResNet 10-2",
    "mobilenet_v3_small",
    "shufflenet_v2_x0_5",
    "swin_t",
)


@pytest.mark.parametrize("row", slow_but(QUICK, FAMILIES))
def test_the_interpreter_reproduces_every_family_from_the_two_files(row: str, tmp_path: Path) -> None:
    net, side = lively_net(row)
    most = 32 if row not in DENSE else 4
    images = inputs_of(row, most, side)
    write_description(tmp_path / "model.json", *convert(net, images[:2], metadata={"net": row}))
    interpreter = Interpreter.load(tmp_path / "model.json")
    assert interpreter.network.facts == {"net": row}
    assert len(interpreter.network.layers) == documented()[row]
    for count in (1, 3, most):
        with torch.no_grad():
            expected = net(images[:count])
        assert expected.std() > 1e-3
        assert relative_error(interpreter(images[:count]), expected) < 1e-4


@pytest.mark.parametrize(
    ("row", "precision"),
    [
        ("GeM_ResNet_AVP resnet18", "fp16"),
        ("GeM_ResNet_AVP resnet18", "bf16"),
        pytest.param("swin_t", "fp16", marks=pytest.mark.slow),
        pytest.param("mobilenet_v3_small", "bf16", marks=pytest.mark.slow),
    ],
)
def test_half_precision_stays_near_the_net_with_float32_at_both_ends(row: str, precision: str) -> None:
    net, side = lively_net(row)
    images = random_images(3, side)
    described, weights = convert(net, images[:1], precision=precision)
    assert {described.inputs[0].dtype, described.outputs[0].dtype} == {"float32"}
    kernels = [weights[layer.weights["kernel"]] for layer in described.layers if layer.type == "convolution"]
    assert {kernel.dtype for kernel in kernels} == {torch.float16 if precision == "fp16" else torch.bfloat16}
    with torch.no_grad():
        expected = net(images)
    error = relative_error(Interpreter(described, weights)(images), expected)
    assert 1e-6 < error < {"fp16": 2e-2, "bf16": 1e-1}[precision]


def test_gem_is_pinned_to_float32() -> None:
    net, side = lively_net("GeM_ResNet_AVP resnet18")
    described, weights = convert(net, random_images(1, side), precision="fp16")
    gem = [layer for layer in described.layers if layer.name.startswith("gem.")]
    assert [layer.type for layer in gem if layer.type != "constant"] == [
        "cast", "elementwise", "elementwise", "reduce", "elementwise"
    ]  # fmt: skip
    assert {tensor.dtype for layer in gem for tensor in layer.outputs} == {"float32"}
    assert weights["gem.constant"].item() == pytest.approx(1e-6)


def test_residual_additions_and_names_are_the_modules() -> None:
    net, side = lively_net("GeM_ResNet_AVP resnet18")
    described, weights = convert(net, random_images(1, side))
    by_name = {layer.name: layer for layer in described.layers}
    assert by_name["conv1"].type == "convolution" and by_name["conv1"].outputs[0].name == "bn1"
    assert by_name["layer1.0.elementwise"].inputs == ("layer1.0.bn2", "maxpool")
    assert by_name["layer2.0.elementwise"].inputs == ("layer2.0.bn2", "layer2.0.downsample.1")
    assert sum(name.endswith(".elementwise") and name.startswith("layer") for name in by_name) == 8
    assert by_name["fc"].outputs[0].name == "logits" and described.outputs[0].shape == ("N", 7)
    assert by_name["layer1.0.conv1"].outputs[0].shape == ("N", 64, 16, 16)
    assert not any(layer.type == "scale" for layer in described.layers)
    assert weights["fc.weight"].shape == (7, 1024)


def test_the_parity_sample_is_the_nets_own_output(tmp_path: Path) -> None:
    net, side = lively_net("resnet18")
    images = random_images(2, side)
    write_description(tmp_path / "model.json", *convert(net, images))
    described, weights = read_description(tmp_path / "model.json")
    with torch.no_grad():
        assert torch.equal(weights[described.parity.output], net(images))
    assert torch.equal(weights[described.parity.input], images)
    assert described.parity.tolerance == 1e-4


def documented() -> dict[str, int]:
    """Read the table of docs/tensorrt-json.md: net: number of layers."""
    table = DOCS.read_text(encoding="utf-8").partition("## Nets")[2]
    return {net: int(count) for net, count in re.findall(r"^\| `([^`]+)` \| (\d+) \|", table, re.MULTILINE)}


def test_the_docs_list_the_families_that_are_tested() -> None:
    assert list(documented()) == list(FAMILIES)


# --- single operators


@pytest.mark.parametrize("name", OPERATIONS)
def test_operators_alone(name: str) -> None:
    net = Wrapped(OPERATIONS[name])
    images = torch.randn(5, 6, 9, 6)
    interpreter = Interpreter(*convert(net, images[:2]))
    assert not list(find_problems(interpreter.network, interpreter._weights))
    for count in (1, 3, 5):
        expected = net(images[:count])
        got = interpreter(images[:count])
        assert got.shape == expected.shape
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "net",
    [
        nn.Conv2d(6, 4, (3, 1), stride=(2, 1), padding=(1, 0), dilation=(2, 1), groups=2, bias=False),
        nn.Sequential(nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4), nn.ReLU()),
        nn.ConvTranspose2d(6, 4, (3, 4), stride=2, padding=1, output_padding=(1, 0), groups=2, bias=False),
        nn.Sequential(nn.ConvTranspose2d(6, 4, 3, dilation=2), nn.BatchNorm2d(4), nn.ReLU()),
        nn.Sequential(nn.ConvTranspose2d(6, 4, 4, 2, 1, groups=2), nn.BatchNorm2d(4)),
        nn.Sequential(nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3)),
        nn.Sequential(nn.Flatten(2), nn.Conv1d(6, 5, 3, padding=1), nn.BatchNorm1d(5), nn.ReLU(), nn.Conv1d(5, 2, 1)),
        nn.Sequential(nn.Flatten(2), nn.BatchNorm1d(6)),
        nn.Sequential(nn.Flatten(), nn.Linear(324, 8), nn.BatchNorm1d(8, affine=False), nn.Linear(8, 3, bias=False)),
        nn.LayerNorm([9, 6]),
        nn.LayerNorm(6, elementwise_affine=False),
        nn.Sequential(nn.GroupNorm(3, 6), nn.Conv2d(6, 6, 3), nn.GroupNorm(2, 6, affine=False)),
        nn.Sequential(nn.Flatten(2), nn.MultiheadAttention(54, 2, batch_first=True)),
    ],
    ids=str,
)
def test_modules_alone(net: nn.Module) -> None:
    if isinstance(net, nn.Sequential) and isinstance(net[-1], nn.MultiheadAttention):
        attention = net[-1]
        net = Wrapped(lambda x: attention(x.flatten(2), x.flatten(2), x.flatten(2), need_weights=False)[0])
        net.attention = attention
    images = torch.randn(4, 6, 9, 6)
    for part in net.modules():
        if isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d)):
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2)
        if isinstance(part, nn.GroupNorm) and part.affine:
            nn.init.normal_(part.weight)
            nn.init.normal_(part.bias)
    interpreter = Interpreter(*convert(net.eval(), images[:1]))
    for count in (1, 4):
        with torch.no_grad():
            torch.testing.assert_close(interpreter(images[:count]), net(images[:count]), rtol=1e-4, atol=1e-5)


def test_a_module_that_is_called_twice_has_its_weights_once() -> None:
    net = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6))
    twice = Wrapped(lambda x: net(net(x)))
    twice.net = net.eval()
    described, weights = convert(twice, torch.randn(2, 6, 9, 6))
    assert [layer.type for layer in described.layers] == ["convolution", "convolution"]
    assert sorted(name for name in weights if "kernel" in name or "bias" in name) == ["net.0.bias", "net.0.kernel"]


def test_uint8_input_is_cast_in_the_description() -> None:
    scale = torch.tensor([0.1, 0.2, 0.3])
    net = Wrapped(lambda x: (x.permute(0, 3, 1, 2).float() * scale.view(1, 3, 1, 1)).mean((2, 3)))
    images = torch.randint(0, 256, (3, 4, 5, 3), dtype=torch.uint8)
    described, weights = convert(net, images)
    assert described.inputs[0].dtype == "uint8" and described.inputs[0].shape == ("N", 4, 5, 3)
    torch.testing.assert_close(Interpreter(described, weights)(images), net(images))


# --- what cannot be described


def refused(net: nn.Module | Callable[[torch.Tensor], torch.Tensor], **options: Any) -> str:
    module = net if isinstance(net, nn.Module) else Wrapped(net)
    with pytest.raises(DescriptionError) as caught:
        convert(module, torch.randn(2, 6, 9, 6), **options)
    return str(caught.value)


class Inner(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.cumsum(1)


def test_an_unknown_operator_names_itself_its_module_and_its_line() -> None:
    line = next(n for n, text in enumerate(Path(__file__).read_text("utf-8").splitlines(), 1) if "x.cumsum(1)" in text)
    message = refused(nn.Sequential(nn.ReLU(), Inner()))
    assert message.startswith('module "1" (Inner): operator aten.cumsum.default cannot be described; called in File "')
    assert f'test_pytorch2json.py", line {line}, in forward' in message


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: x[0], "one image picked out of the batch"),
        (lambda x: functional.pad(x, (1, 1), value=3.0), "a padding with anything but zeros"),
        (lambda x: functional.pad(x, (1, 1, 1, 1), mode="reflect"), "cannot be described|anything but zeros"),
        (lambda x: functional.max_pool2d(x, 2, dilation=2), "a max pooling with dilation"),
        (lambda x: torch.zeros(3), "does not depend on its input"),
        (lambda x: torch.cat([row.sum(0, keepdim=True) for row in x]), "free batch size"),
    ],
)
def test_refusals_state_the_reason(function: Callable[[torch.Tensor], torch.Tensor], reason: str) -> None:
    assert re.search(reason, refused(function))


def test_weights_that_overflow_fp16_are_named() -> None:
    net = nn.Conv2d(6, 1, 1)
    nn.init.constant_(net.weight, 1e6)
    assert 'the weight "kernel" overflows torch.float16' in refused(net, precision="fp16")
    nn.init.constant_(net.weight, float("nan"))
    assert 'the weight "kernel" holds NaN' in refused(net)


# --- files


def test_wts_is_what_tensorrtx_reads(tmp_path: Path) -> None:
    values = [1.0, -2.5, 3.1415927]
    state = {"fc.weight": torch.tensor(values).view(3, 1), "bn.num_batches_tracked": torch.tensor(7)}
    write_wts(tmp_path / "model.wts", state)
    first, weight, count = (tmp_path / "model.wts").read_text("utf-8").splitlines()
    assert first == "2"
    assert weight == "fc.weight 3 3f800000 c0200000 40490fdb"  # IEEE 754, by hand
    assert count == "bn.num_batches_tracked 1 40e00000"


@pytest.fixture
def described(tmp_path: Path) -> Path:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5)).eval()
    write_description(tmp_path / "model.json", *convert(net, torch.randn(2, 3, 8, 8)))
    return tmp_path / "model.json"


def test_a_description_is_read_as_it_was_written(described: Path) -> None:
    read, weights = read_description(described)
    assert Network.model_validate_json(to_json(read)) == read
    assert len(described.read_text("utf-8").splitlines()) == len(read.layers) + 14
    assert described.stat().st_mode == described.with_suffix(".safetensors").stat().st_mode
    assert set(weights) == {"0.kernel", "0.bias", "4.weight", "4.bias", "parity.images", "parity.logits"}


def test_the_schema_is_current() -> None:
    import json

    assert json.loads(network.SCHEMA_FILE.read_text("utf-8")) == network.description_schema()


TAMPERED = {
    "missing tensor": ('"kernel": "0.kernel"', '"kernel": "0.none"', 'its kernel "0.none" is not in the weights file'),
    "wrong shape": ('"num_output_maps": 4', '"num_output_maps": 5', '"0.kernel" is float32 (4, 3, 3, 3), must be'),
    "wrong output shape": ('["N", 4, 6, 6]', '["N", 4, 6, 7]', 'layer "0" (convolution) declares float32'),
    "unknown layer type": ('"convolution"', '"convolute"', 'layers.0: unknown type "convolute"; known: convolution, '),
    "leaves the folder": ('"file": "model.safetensors"', '"file": "../model.safetensors"', "weights.file: String"),
    "absolute path": ('"file": "model.safetensors"', '"file": "/etc/passwd.safetensors"', "weights.file: String"),
    "other weights": ('"sha256": "', '"sha256": "0000', "weights.sha256: String should match"),
    "unknown key": ('"groups": 1', '"groups": 1, "code": "x"', "code: Extra inputs are not permitted"),
    "negative size": ('"kernel_shape": [3, 3]', '"kernel_shape": [3, -3]', "kernel_shape.1: Input should be greater"),
    "newer": ('"format_version": 1', '"format_version": 3', "format_version 3; this program reads 1 and 2"),
    "no number": (
        '"format_version": 1', f'"format_version": {[1] * 999}',
        "format_version [1, 1, 1, 1, 1, 1, ...]; this program reads 1 and 2",
    ),
    "another file": ('"format": "', '"format": "a ', "it is not a network description"),
    "no JSON": ('"format"', "format", "it is not JSON"),
    "unmade input": ('"inputs": ["images"]', '"inputs": ["image"]', '"image" is made by no layer before it'),
    "huge tensor": ('["N", 144]', '["9999999999*N", 144]', "is too large"),
}  # fmt: skip


@pytest.mark.parametrize("name", TAMPERED)
def test_tampered_descriptions_are_refused(name: str, described: Path) -> None:
    old, new, problem = TAMPERED[name]
    text = described.read_text("utf-8")
    assert old in text
    described.write_text(text.replace(old, new), "utf-8")
    with pytest.raises(DescriptionError) as caught:
        Interpreter.load(described)(torch.randn(1, 3, 8, 8))
    assert problem in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_weights_file_that_is_not_the_descriptions_is_refused(described: Path) -> None:
    weights = described.with_suffix(".safetensors")
    content = weights.read_bytes()
    weights.write_bytes(content[:-4] + b"abcd")
    with pytest.raises(DescriptionError, match="not the weights of"):
        read_description(described)
    weights.unlink()
    with pytest.raises(DescriptionError, match=r"its weights file model\.safetensors is not beside it"):
        read_description(described)


@pytest.mark.parametrize("end", [1 << 40, -8])
def test_offsets_past_the_end_are_damage(end: int, described: Path) -> None:
    import hashlib
    import json

    weights = described.with_suffix(".safetensors")
    content = weights.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["0.bias"]["data_offsets"][1] += end
    text = json.dumps(header).encode()
    weights.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    described.write_text(re.sub(r'"sha256": "\w+"', f'"sha256": "{digest}"', described.read_text("utf-8")), "utf-8")
    with pytest.raises(DescriptionError, match=r"model\.safetensors: damaged: "):
        read_description(described)


def test_input_of_another_shape_is_refused(described: Path) -> None:
    interpreter = Interpreter.load(described)
    with pytest.raises(DescriptionError, match=r"got float32 \(1, 3, 8, 9\)"):
        interpreter(torch.randn(1, 3, 8, 9))
    with pytest.raises(DescriptionError, match="got float64"):
        interpreter(torch.randn(1, 3, 8, 8).double())


def test_a_name_that_the_description_cannot_hold_is_refused_before_the_json_is_written(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).eval()
    with pytest.raises(DescriptionError, match="name the description with letters"):
        write_description(tmp_path / "网络.json", *convert(net, torch.randn(1, 3, 2, 2)))
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_older_files(described: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: path.read_bytes() for path in described.parent.iterdir()}
    read, weights = read_description(described)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DescriptionError, match=r"cannot write it: No space left on device"):
        write_description(described, read, weights)
    assert {path.name: path.read_bytes() for path in described.parent.iterdir()} == before
