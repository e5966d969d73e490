"""torchvision's single-stage detectors, FCOS, RetinaNet and SSDLite, over any encoder of ours, with their own losses.

Heads, anchors, matching and losses are torchvision's classes; what is ours is the backbone, and the output: every box
and its scores as one tensor, from which the same function finds the objects as from `detector_module.Detector`.

In shapes N is the batch, C the image's channels, K the classes, A the anchors, L the head's values of an anchor.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection._utils import Matcher
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.ssdlite import SSDLiteHead
from torchvision.ops import Conv2dNormActivation, FeaturePyramidNetwork, box_iou
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from nets.support.encoders import build_encoder, check_sides
from nets.support.errors import NetError

LARGEST_STRIDE = 32  # of the encoders
GROUPS = 32  # of FCOS' group norms
SURE = 50.0  # a logit whose loss is 0, and whose gradient is none
MOST_LOGIT = 9.5  # there onnxruntime's sigmoid is off by 1e-3 of itself, below by more; scores are under 0.01
LEAST_CHANCE = 1e-6  # a score's distance from 0 and 1, so that its logit is finite
MOST_LOG_SCALE = 4.135166556742356  # log(1000 / 16): of a box beside its anchor, as torchvision's BoxCoder has it


class _OneTensor(nn.Module):
    """What a detector of torchvision becomes: images (N, C, H, W) to (N, A, 4 + K), as `Detector` gives them.

    Stands before torchvision's class among the bases, whose parts it uses: backbone, head, anchor_generator.
    """

    task = "detection"
    output = "boxes"
    head_names: tuple[str, ...] = ("head.classification_head.cls_logits",)
    parts: ClassVar[dict[str, int]]  # the head's outputs by torchvision's names, and how many columns each has
    anchors: Tensor  # (A, 4), left, top, right, bottom in pixels
    per_level: list[int]  # anchors of each map

    def forward(self, images: Tensor, raw: bool = False) -> Tensor:
        """Return boxes and logits (N, A, 4 + K); with `raw` what `decode` and `losses` take, (N, A, L)."""
        backbone, head = self.get_submodule("backbone"), self.get_submodule("head")
        found = head(list(backbone(images).values()))
        rows = torch.cat([found[name] for name in self.parts], dim=2)
        if rows.dtype != torch.float32:
            rows = rows.float()
        return rows if raw else self.decode(rows)

    def decode(self, rows: Tensor) -> Tensor:
        """Return boxes and logits (N, A, 4 + K) of the head's values (N, A, L)."""
        raise NotImplementedError

    def losses(self, rows: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return the losses (N,) of each image by itself: "loss" and its terms "class_loss" and "box_loss".

        target (N, M, 6) are left, top, right, bottom, label and whether it is ignored, padded with -1. What is said of
        an anchor whose middle lies in an ignored object, and which learns no other, costs nothing. The losses are each
        divided by an image's own matched anchors.
        """
        found = [self._image_losses(row[None], truth) for row, truth in zip(rows, target, strict=True)]
        classes = torch.stack([terms.pop("classification") for terms in found])
        boxes = torch.stack([torch.stack(list(terms.values())).sum() for terms in found])
        return {"loss": classes + boxes, "class_loss": classes, "box_loss": boxes}

    def _image_losses(self, rows: Tensor, truth: Tensor) -> dict[str, Tensor]:
        is_object, is_ignored = truth[:, 4] >= 0, truth[:, 5] > 0.5
        known = truth[is_object & ~is_ignored]
        free = _has_middle_in(self.anchors, truth[is_object & is_ignored, :4])
        columns = list(self.parts.values())
        outputs = dict(zip(self.parts, rows.split([*columns[:-1], rows.shape[2] - sum(columns[:-1])], 2), strict=True))
        losses = self._matched_losses({"boxes": known[:, :4].float(), "labels": known[:, 4].long()}, outputs, free)
        return dict(losses)

    def _matched_losses(self, truth: dict[str, Tensor], outputs: dict[str, Tensor], free: Tensor) -> dict[str, Tensor]:
        """Return torchvision's losses of one image; `free` (A,) are the anchors in ignored objects."""
        raise NotImplementedError

    def _matches(self, boxes: Tensor) -> Tensor:
        """Return the object of each anchor (A,), as torchvision's matcher has them; negative for none."""
        matcher: Any = self.proposal_matcher
        if not len(boxes):
            return torch.full((len(self.anchors),), -1, device=self.anchors.device)
        found: Tensor = matcher(box_iou(boxes, self.anchors))
        return found

    @torch.no_grad()
    def _set_anchors(self, num_channels: int, img_height: int, img_width: int) -> None:
        """Set the anchors of an input size, and the strides of the maps, by a pass through the backbone."""
        image = torch.zeros(1, num_channels, img_height, img_width)
        self.eval()
        maps = list(self.get_submodule("backbone")(image).values())
        self.train()
        made = self.get_submodule("anchor_generator")(ImageList(image, [(img_height, img_width)]), maps)
        self.register_buffer("anchors", made[0].float().contiguous(), persistent=False)
        each = len(made[0]) // sum(x.shape[2] * x.shape[3] for x in maps)
        self.per_level = [each * x.shape[2] * x.shape[3] for x in maps]
        self.strides = tuple(-(-img_height // x.shape[2]) for x in maps)


class fcos(_OneTensor, FCOS):
    """FCOS (Tian et al. 2019, https://arxiv.org/abs/1904.01355) with a pyramid of strides 8 to 128 of `width` channels.

    A score is the geometric mean of class and centre-ness, as in torchvision. `model_type` is an encoder of
    `nets.support.encoders`. Raises NetError.
    """

    parts: ClassVar[dict[str, int]] = {"bbox_regression": 4, "bbox_ctrness": 1, "cls_logits": -1}

    def __init__(
        self,
        model_type: str = "resnet50",
        num_classes: int = 1,
        num_channels: int = 3,
        img_height: int = 320,
        img_width: int = 320,
        width: int = 256,
    ) -> None:
        check_sides("fcos", LARGEST_STRIDE, img_height, img_width)
        if width < 2 * GROUPS or width % GROUPS:  # of one value torch makes no group
            allowed = f"a multiple of {GROUPS}, FCOS' groups of channels, from {2 * GROUPS}"
            raise NetError(f"width must be {allowed}, got {width}")
        FCOS.__init__(self, _Pyramid(model_type, num_channels, width), num_classes)
        self._set_anchors(num_channels, img_height, img_width)

    def decode(self, rows: Tensor) -> Tensor:
        centres = (self.anchors[:, :2] + self.anchors[:, 2:]) / 2  # (A, 2)
        distances = rows[:, :, :4] * (self.anchors[:, 2:] - self.anchors[:, :2]).repeat(1, 2)  # (N, A, 4)
        inside = rows[:, :, 4:].clamp(-MOST_LOGIT, MOST_LOGIT).sigmoid()  # (N, A, 1 + K)
        chances = (inside[:, :, 1:] * inside[:, :, :1]).sqrt()  # (N, A, K)
        corners = [centres - distances[:, :, :2], centres + distances[:, :, 2:]]
        return torch.cat([*corners, _logits(chances)], dim=2)

    def _matched_losses(self, truth: dict[str, Tensor], outputs: dict[str, Tensor], free: Tensor) -> dict[str, Tensor]:
        free = free & ~_has_middle_in(self.anchors, truth["boxes"])  # in an object it may learn this one
        outputs["cls_logits"] = torch.where(free[:, None], -SURE, outputs["cls_logits"])
        losses: dict[str, Tensor] = FCOS.compute_loss(self, [truth], outputs, [self.anchors], self.per_level)
        return losses


class retinanet(_OneTensor, RetinaNet):
    """RetinaNet (Lin et al. 2017, https://arxiv.org/abs/1708.02002) with a pyramid of strides 8 to 128.

    Nine anchors a position. `model_type` is an encoder of `nets.support.encoders`. Raises NetError.
    """

    parts: ClassVar[dict[str, int]] = {"bbox_regression": 4, "cls_logits": -1}

    def __init__(
        self,
        model_type: str = "resnet50",
        num_classes: int = 1,
        num_channels: int = 3,
        img_height: int = 320,
        img_width: int = 320,
        width: int = 256,
    ) -> None:
        check_sides("retinanet", LARGEST_STRIDE, img_height, img_width)
        RetinaNet.__init__(self, _Pyramid(model_type, num_channels, width), num_classes)
        self._set_anchors(num_channels, img_height, img_width)

    def decode(self, rows: Tensor) -> Tensor:
        return torch.cat([_from_deltas(rows[:, :, :4], self.anchors, 1.0, 1.0), rows[:, :, 4:]], dim=2)

    def _matched_losses(self, truth: dict[str, Tensor], outputs: dict[str, Tensor], free: Tensor) -> dict[str, Tensor]:
        matches = self._matches(truth["boxes"])
        matches = torch.where(free & (matches < 0), Matcher.BETWEEN_THRESHOLDS, matches)
        head: Any = self.head
        losses: dict[str, Tensor] = head.compute_loss([truth], outputs, [self.anchors], [matches])
        return losses


class ssdlite(_OneTensor, SSD):
    """SSDLite (Sandler et al. 2018, https://arxiv.org/abs/1801.04381, section 6.2) with maps of stride 16 to 512.

    Six anchors a position; the classes' softmax has one more, the background. It reads the last map of stride 16, not
    the wider one within the next block as torchvision's own builder does. `model_type` is an encoder of
    `nets.support.encoders`. Raises NetError.
    """

    head_names = ("head.classification_head",)
    parts: ClassVar[dict[str, int]] = {"bbox_regression": 4, "cls_logits": -1}

    def __init__(
        self,
        model_type: str = "mobilenet_v3_large",
        num_classes: int = 1,
        num_channels: int = 3,
        img_height: int = 320,
        img_width: int = 320,
    ) -> None:
        check_sides("ssdlite", LARGEST_STRIDE, img_height, img_width)
        backbone = _LiteMaps(model_type, num_channels)
        generator = DefaultBoxGenerator([[2, 3]] * len(backbone.channels), min_ratio=0.2, max_ratio=0.95)
        head = SSDLiteHead(backbone.channels, generator.num_anchors_per_location(), num_classes + 1, NORM)
        SSD.__init__(self, backbone, generator, (img_height, img_width), num_classes + 1, head=head)
        self._set_anchors(num_channels, img_height, img_width)

    def decode(self, rows: Tensor) -> Tensor:
        chances = rows[:, :, 4:].softmax(dim=2)[:, :, 1:]  # (N, A, K)
        return torch.cat([_from_deltas(rows[:, :, :4], self.anchors, 10.0, 5.0), _logits(chances)], dim=2)

    def _matched_losses(self, truth: dict[str, Tensor], outputs: dict[str, Tensor], free: Tensor) -> dict[str, Tensor]:
        behind_background = {**truth, "labels": truth["labels"] + 1}
        matches = self._matches(truth["boxes"])
        nothing = torch.full_like(outputs["cls_logits"], -SURE)
        nothing[:, :, 0] = SURE
        is_free = (free & (matches < 0))[:, None]  # (A, 1)
        outputs["cls_logits"] = torch.where(is_free, nothing, outputs["cls_logits"])
        losses: dict[str, Tensor] = SSD.compute_loss(self, [behind_background], outputs, [self.anchors], [matches])
        return losses


class _Pyramid(nn.Module):
    """Images (N, C, H, W) to five maps of `out_channels` channels, of stride 8, 16, 32, 64 and 128."""

    def __init__(self, model_type: str, num_channels: int, width: int) -> None:
        super().__init__()
        if width < 1:
            raise NetError(f"width must be at least 1, got {width}")
        self.net = build_encoder(model_type, num_channels)
        self.fpn = FeaturePyramidNetwork(self.net.channels[-3:], width, LastLevelP6P7(width, width))
        self.out_channels = width

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        maps = self.net(images)[-3:]
        found: OrderedDict[str, Tensor] = self.fpn(OrderedDict((str(i), x) for i, x in enumerate(maps)))
        return found


class _NormOfAny(nn.BatchNorm2d):
    """A batch norm that takes its running statistics for a single value a channel, which has no others.

    The last map of an image of 320 pixels is 1 x 1, and the last batch of an epoch may hold one image.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.numel() == x.shape[1]:
            statistics = self.running_mean, self.running_var
            return nn.functional.batch_norm(x, *statistics, self.weight, self.bias, False, 0.0, self.eps)
        return super().forward(x)


NORM = partial(_NormOfAny, eps=0.001, momentum=0.03)  # as torchvision's ssdlite320_mobilenet_v3_large


class _LiteMaps(nn.Module):
    """Images (N, C, H, W) to six maps: the encoder's of stride 16 and 32, and four more, each half as large."""

    def __init__(self, model_type: str, num_channels: int) -> None:
        super().__init__()
        self.net = build_encoder(model_type, num_channels)
        self.channels = [*self.net.channels[-2:], 512, 256, 256, 128]
        pairs = zip(self.channels[1:], self.channels[2:], strict=False)
        self.extra = nn.ModuleList(_narrowing(before, after) for before, after in pairs)
        for module in self.extra.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.03)

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        maps = self.net(images)[-2:]
        for block in self.extra:
            maps.append(block(maps[-1]))
        return OrderedDict((str(i), x) for i, x in enumerate(maps))


def _narrowing(before: int, after: int) -> nn.Sequential:
    """Build a 1x1, a depthwise 3x3 convolution of stride 2, and another 1x1, each with norm and ReLU6."""
    half, how = after // 2, {"norm_layer": NORM, "activation_layer": nn.ReLU6}
    return nn.Sequential(
        Conv2dNormActivation(before, half, 1, **how),
        Conv2dNormActivation(half, half, 3, 2, groups=half, **how),
        Conv2dNormActivation(half, after, 1, **how),
    )


def _has_middle_in(anchors: Tensor, boxes: Tensor) -> Tensor:
    """Return whether the middle of each anchor (A, 4) lies in one of some boxes (m, 4)."""
    middles = (anchors[:, None, :2] + anchors[:, None, 2:]) / 2  # (A, 1, 2)
    return ((middles >= boxes[:, :2]) & (middles <= boxes[:, 2:])).all(dim=2).any(dim=1)


def _from_deltas(deltas: Tensor, anchors: Tensor, of_place: float, of_size: float) -> Tensor:
    """Return boxes (N, A, 4) of deltas (N, A, 4) from anchors (A, 4), divided by these weights."""
    sides = anchors[:, 2:] - anchors[:, :2]  # (A, 2)
    middles = (anchors[:, :2] + anchors[:, 2:]) / 2 + deltas[:, :, :2] / of_place * sides  # (N, A, 2)
    halves = (deltas[:, :, 2:] / of_size).clamp(max=MOST_LOG_SCALE).exp() * sides / 2
    return torch.cat([middles - halves, middles + halves], dim=2)


def _logits(chances: Tensor) -> Tensor:
    """Return the logits whose sigmoid gives these scores, within LEAST_CHANCE of 0 and 1."""
    inside = chances.clamp(LEAST_CHANCE, 1 - LEAST_CHANCE)
    return inside.log() - (inside * -1 + 1).log()  # 1 - x is an operator of its own, without a layer in TensorRT
