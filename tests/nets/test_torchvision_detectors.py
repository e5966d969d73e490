"""torchvision's detectors with one output: their losses and objects beside torchvision's own, and their exports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from artifacts.detections import find_objects
from nets import torchvision_detectors_module as ours
from nets.net_interface import available_nets, build_net, declared_task, net_task
from nets.support.errors import NetError
from nets.support.pretrained import load_start_weights
from pytorch2json.converter import convert
from pytorch2json.interpreter import Interpreter, relative_error
from tests.conftest import slow_but

pytestmark = pytest.mark.usefixtures("one_thread")

MODULE = "torchvision_detectors_module"
SIZE = (64, 96)  # height, width
ARGS: dict[str, dict[str, Any]] = {"fcos": {"width": 64}, "retinanet": {"width": 32}, "ssdlite": {}}
ANCHORS = {  # a position, times the positions of all maps
    "fcos": 8 * 12 + 4 * 6 + 2 * 3 + 1 * 2 + 1,
    "retinanet": 9 * (8 * 12 + 4 * 6 + 2 * 3 + 1 * 2 + 1),
    "ssdlite": 6 * (4 * 6 + 2 * 3 + 1 * 2 + 1 + 1 + 1),
}
OBJECTS = torch.tensor(
    [
        [[10.0, 10, 40, 30, 1, 0], [50, 5, 90, 60, 3, 0], [0, 0, 12, 9, 0, 1]],
        [[3, 20, 80, 63, 0, 0], [-1] * 6, [-1] * 6],
        [[-1] * 6, [-1] * 6, [-1] * 6],
    ]
)


def build(name: str, model_type: str = "mobilenet_v3_small", **given: Any) -> Any:
    args = {"model_type": model_type, **ARGS[name], **given.pop("model_args", {})}
    values = {"num_classes": 5, "img_height": SIZE[0], "img_width": SIZE[1], "model_args": args, **given}
    torch.manual_seed(0)
    return build_net(MODULE, name, **values)


@pytest.mark.parametrize("name", ARGS)
def test_shape_and_a_gradient_everywhere(name: str) -> None:
    net = build(name, num_channels=1)
    assert available_nets()[MODULE] == sorted(ARGS)
    assert net_task(MODULE, name) == declared_task(MODULE, name) == "detection"
    if name == "fcos":
        nn.init.ones_(net.head.regression_head.bbox_reg.bias)  # else its ReLU may cut all of a map
    outputs = net(torch.randn(2, 1, *SIZE))
    assert outputs.shape == (2, ANCHORS[name], 9) and outputs.isfinite().all() and outputs.dtype == torch.float32
    (outputs[:, :, :4].tanh().sum() + outputs[:, :, 4:].logsumexp(2).sum()).backward()
    assert [key for key, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("name", ARGS)
def test_what_lies_in_an_ignored_object_is_not_held_against_the_net(name: str) -> None:
    """No gradient reaches the classes there, but for anchors that learn an object; elsewhere nothing changes."""
    net = build(name).train()
    objects = torch.tensor([[60.0, 8, 88, 40, 1, 0], [0, 0, 50, 64, 2, 1]])[None]
    middles = (net.anchors[:, :2] + net.anchors[:, 2:]) / 2
    inside = (middles[:, 0] <= 50) & (middles[:, 1] <= 64)
    rows = torch.randn(1, ANCHORS[name], net(torch.zeros(1, 3, *SIZE), raw=True).shape[2])
    if name == "fcos":
        rows[:, :, :4] = rows[:, :, :4].abs()
    classes = rows.shape[2] - 5 - (name == "ssdlite")
    gradients = []
    for target in (objects, objects[:, :1], objects[:, 1:]):
        given = rows.clone().requires_grad_()
        net.losses(given, target)["loss"].sum().backward()
        assert given.grad is not None
        gradients.append(given.grad[0, :, classes:].abs().sum(dim=1))
    with_both, without, alone = gradients
    assert inside.sum() > 10 and (without[inside] > 0).sum() > 2 and not with_both[inside].any()
    assert not alone[inside].any()
    if name != "ssdlite":  # which chooses as many negatives elsewhere as it has positives
        assert torch.equal(with_both[~inside], without[~inside]) and alone[~inside].all()


@pytest.mark.parametrize("name", ARGS)
def test_an_object_within_an_ignored_one_is_learnt(name: str) -> None:
    net = build(name).train()
    both = torch.tensor([[8.0, 8, 40, 40, 1, 0], [0, 0, 96, 64, 2, 1]])[None]
    rows = net(torch.randn(1, 3, *SIZE), raw=True).detach().requires_grad_()
    losses = net.losses(rows, both)
    losses["class_loss"].sum().backward()
    assert rows.grad is not None and rows.grad.any() and losses["box_loss"] > 0
    assert losses["class_loss"] < 20  # of what costs nothing, not a constant for each


@pytest.mark.parametrize("name", ARGS)
def test_the_losses_are_torchvisions(name: str) -> None:
    """Its own forward pass in training, an image at a time, its labels from 1 on."""
    net = build(name).train()
    for part in net.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.eval()  # an image's maps are then the same in any batch
    images = torch.randn(3, 3, *SIZE)
    objects = torch.where(OBJECTS[..., 5:] > 0.5, -1.0, OBJECTS)  # none is ignored
    got = net.losses(net(images, raw=True), objects)
    assert set(got) == {"loss", "class_loss", "box_loss"} and got["loss"].shape == (3,)
    net.transform = nn.Identity()
    for number, rows in enumerate(objects):
        known = rows[rows[:, 4] >= 0]
        truth = {"boxes": known[:, :4], "labels": known[:, 4].long() + (name == "ssdlite")}
        theirs = torchvision_losses(net, images[number : number + 1], truth)
        torch.testing.assert_close(got["class_loss"][number], theirs.pop("classification"))
        torch.testing.assert_close(got["box_loss"][number], sum(theirs.values(), torch.tensor(0.0)))
    assert got["box_loss"].tolist()[2] == 0 and (got["loss"][:2] > 0.1).all()


def torchvision_losses(net: Any, image: torch.Tensor, truth: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the losses of torchvision's own forward pass of an image (1, C, H, W)."""
    listed = ours.ImageList(image, [SIZE])
    net.transform.forward = lambda images, targets: (listed, targets)
    base = type(net).__mro__[2]
    found: dict[str, torch.Tensor] = base.forward(net, [image[0]], [truth])
    return found


@pytest.mark.parametrize("name", ARGS)
def test_the_objects_are_torchvisions(name: str) -> None:
    """Its own forward pass in prediction, with its clipping and suppression, beside `find_objects` on our output.

    The head's values are random, but for FCOS' distances not below 0, as after its ReLU.
    """
    net = build(name).eval()
    net.score_thresh, net.nms_thresh, net.topk_candidates, net.detections_per_img = 0.3, 0.6, 10_000, 100
    columns = {**net.parts, "cls_logits": 5 + (name == "ssdlite")}
    generator = torch.Generator().manual_seed(1)
    values = {part: torch.randn(1, ANCHORS[name], count, generator=generator) for part, count in columns.items()}
    if name == "fcos":
        values["bbox_regression"] = 2 * values["bbox_regression"].abs()
    net.head.forward = lambda maps: values
    image = torch.zeros(1, 3, *SIZE)
    with torch.no_grad():
        rows = net(image).numpy()
        net.transform = Untouched(ours.ImageList(image, [SIZE]))
        theirs = type(net).__mro__[2].forward(net, [image[0]])[0]
    rows[:, :, :4] = rows[:, :, :4].clip(0, np.array([SIZE[1], SIZE[0]] * 2, np.float32))
    (found,) = find_objects(rows, 0.3, 0.6, candidates=10_000)
    assert len(found.scores) == len(theirs["scores"]) > 50
    np.testing.assert_allclose(found.scores, theirs["scores"], atol=1e-5)
    np.testing.assert_allclose(found.boxes, theirs["boxes"], atol=1e-3)
    assert (found.labels == theirs["labels"].numpy() - (name == "ssdlite")).all()


def test_fcos_is_alike_beyond_what_a_runtimes_sigmoid_tells_apart() -> None:
    """By the formula: the root of sigmoid(-9.5), halved by the centre-ness, has a logit of -5.09."""
    net = build("fcos").eval()
    rows = torch.zeros(1, ANCHORS["fcos"], 10)
    rows[:, :, 5:] = torch.tensor([-9.5, -18.0, -40.0, 0.0, 3.0])
    logits = net.decode(rows)[0, 0, 4:]
    scores = np.sqrt(0.5 / (1 + np.exp([9.5, 9.5, 9.5, 0.0, -3.0])))
    np.testing.assert_allclose(logits, np.log(scores / (1 - scores)), rtol=1e-5)


class Untouched(nn.Module):
    """A transform that gives the images as they are, and the boxes too."""

    def __init__(self, listed: Any) -> None:
        super().__init__()
        self.listed = listed

    def forward(self, images: Any, targets: Any) -> Any:
        return self.listed, targets

    def postprocess(self, found: Any, *_: Any) -> Any:
        return found


@pytest.mark.parametrize("name", ARGS)
def test_weights_of_an_encoder_fill_the_backbone(name: str) -> None:
    net = build(name, "resnet18")
    published = build_net("resnet_module", "resnet18", num_classes=9, img_height=64, img_width=64, model_args={})
    report = load_start_weights(net, published.state_dict(), new_head=True)
    assert {key for key in net.state_dict() if key.startswith("backbone.net.")} == set(report.loaded)
    assert report.skipped_head


def test_a_single_image_trains_ssdlite() -> None:
    """Its last maps have one value a channel, which batch norm refuses."""
    net = build("ssdlite").train()
    losses = net.losses(net(torch.randn(1, 3, *SIZE), raw=True), OBJECTS[:1])
    assert losses["loss"].isfinite().all()


@pytest.mark.parametrize(
    ("name", "given", "sentence"),
    [
        ("ssdlite", {"img_height": 100}, "ssdlite takes images whose sides are multiples of 32 px, got 100x96"),
        ("fcos", {"model_args": {"width": 48}}, "width must be a multiple of 32, FCOS' groups of channels"),
        ("fcos", {"model_args": {"width": 32}}, "from 64, got 32"),
        ("retinanet", {"model_args": {"width": 0}}, "width must be at least 1, got 0"),
    ],
)
def test_what_the_nets_do_not_take(name: str, given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(NetError) as caught:
        build(name, **given)
    assert sentence in str(caught.value)


@pytest.mark.parametrize("name", slow_but(("fcos",), ARGS))
def test_the_net_is_described_and_runs_from_its_description(name: str) -> None:
    net = build(name, "resnet18").eval()
    images = torch.randn(3, 3, *SIZE)
    interpreter = Interpreter(*convert(net, images[:2]))
    with torch.no_grad():
        expected, got = net(images), interpreter(images)
    for columns in (slice(0, 4), slice(4, None)):
        assert relative_error(got[:, :, columns], expected[:, :, columns]) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", ARGS)
def test_onnx_gives_the_same_boxes(name: str, tmp_path: Path) -> None:
    net = build(name, "resnet18").eval()
    images = torch.randn(2, 3, *SIZE)
    torch.onnx.export(net, (images,), tmp_path / "net.onnx", dynamo=True, dynamic_shapes=({0: "batch"},), verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    for count in (1, 2):
        (got,) = session.run(None, {session.get_inputs()[0].name: images[:count].numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(got, net(images[:count]).numpy(), rtol=1e-4, atol=1e-3)
