"""Class-conditional heat maps: the positions of an image that raise a class's score.

PIM has logits for every position. Every other net gets Grad-CAM: Selvaraju et al. 2017, "Grad-CAM: Visual Explanations
from Deep Networks via Gradient-based Localization", https://arxiv.org/abs/1610.02391.
In shapes N is the batch, H and W the input's sides, C the channels of a feature map and h and w its sides, S a stage's
positions, k its selected ones, K the classes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from nets.pim_module import PIM, PimOutputs
from nets.support.errors import NetError
from nets.support.torchvision_builder import is_vision_transformer

POOLS_TO_A_SIZE = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)  # their output is no feature map of the net


class NoHeatMapError(NetError):
    """A net that has no feature map with positions; the message is one sentence for the user."""


@dataclass(frozen=True)
class SelectedPositions:
    """The positions that PIM selected at one stage: `positions` (N, k) int64 on the CPU, row by row of the grid."""

    rows: int
    columns: int
    positions: torch.Tensor


@dataclass(frozen=True)
class HeatMaps:
    """A batch's heat maps: `maps` (N, H, W) float32 on the CPU, from 0 to 1, each map's highest value 1.

    A map is all zeros where no position raises the class's score. `selected` has an entry for each of PIM's stages that
    select; it is empty for every other net.
    """

    maps: torch.Tensor
    selected: tuple[SelectedPositions, ...] = ()


HeatMapper = Callable[[torch.Tensor, torch.Tensor], HeatMaps]  # images (N, C, H, W) and a class of each, labels (N,)


def heat_mapper(net: nn.Module, num_channels: int, height: int, width: int) -> HeatMapper:
    """Return the function that computes a net's heat maps, for images of that size on the net's device.

    Neither this nor computing a map changes the net: gradients, modes, buffers, hooks and random state are restored.
    Raises NoHeatMapError.
    """
    if isinstance(net, PIM):
        return PimMapper(net)
    return GradCam(net, *_last_feature_map(net, num_channels, height, width))


class PimMapper:
    """Heat maps of PIM, from the logits of every position (N, S, K) at its four stages.

    A map is how far a position's softmax for the class is above chance, max(0, p - 1 / K), upsampled and summed over
    the stages. The logits themselves would show where there is an object rather than which: they rise and fall together
    for all classes (on 15 flowers, maps of two classes of one image correlate by 0.8 to 0.95, and by -0.14 with the
    softmax). The softmax without subtracting chance would show the background: at uncertain positions every class has
    more than it has on an object of another class.
    """

    def __init__(self, net: PIM) -> None:
        self._net = net

    def __call__(self, images: torch.Tensor, labels: torch.Tensor) -> HeatMaps:
        """Return the maps of labels (N,) int64 in images (N, C, H, W)."""
        with _unchanged(self._net):
            outputs, grids = self._outputs(images)
            size = (images.shape[2], images.shape[3])
            total = torch.zeros(len(images), *size, device=images.device)
            for logits, grid in zip(outputs.stage_logits, grids, strict=True):
                scores = logits.float().softmax(dim=2)  # (N, S, K)
                above = (scores - 1 / scores.shape[2]).clamp(min=0)
                of_class = above.gather(2, labels.view(-1, 1, 1).expand(-1, scores.shape[1], 1))  # (N, S, 1)
                total += _upsample(of_class.view(-1, *grid), size)  # (N, h, w) to (N, H, W)
            selected = tuple(
                SelectedPositions(*grid, positions.cpu())
                for positions, logits, grid in zip(outputs.selected, outputs.stage_logits, grids, strict=True)
                if positions.shape[1] < logits.shape[1]  # else selection is off
            )
        return HeatMaps(_scale(total), selected)

    def _outputs(self, images: torch.Tensor) -> tuple[PimOutputs, list[tuple[int, int]]]:
        """Return the net's outputs, and the rows and columns of each stage."""
        grids: list[tuple[int, int]] = []

        def record(module: nn.Module, inputs: Any, maps: list[torch.Tensor]) -> None:
            grids.extend((x.shape[2], x.shape[3]) for x in maps)

        handle = self._net.fpn.register_forward_hook(record)
        try:
            return self._net.outputs(images), grids
        finally:
            handle.remove()


class GradCam:
    """Grad-CAM on the output of one module, a feature map A (N, C, h, w), for the logit y of the class.

    alpha = mean over positions of dy / dA (eq. 1); map = ReLU(sum over channels of alpha A) (eq. 2), upsampled. The
    graph begins at A: the layers before it are run without gradients.
    """

    def __init__(self, net: nn.Module, layer: nn.Module, as_map: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._net, self._layer, self.as_map = net, layer, as_map

    def __call__(self, images: torch.Tensor, labels: torch.Tensor) -> HeatMaps:
        """Return the maps of labels (N,) int64 in images (N, C, H, W). Raises NoHeatMapError."""
        with _unchanged(self._net):
            features, gradient = self.features_and_gradient(images, labels)
            features, gradient = self.as_map(features), self.as_map(gradient)  # (N, C, h, w)
            weights = gradient.mean(dim=(2, 3), keepdim=True)  # (N, C, 1, 1), eq. 1
            coarse = (weights * features).sum(dim=1).clamp(min=0)  # (N, h, w), eq. 2
            return HeatMaps(_scale(_upsample(coarse, (images.shape[2], images.shape[3]))))

    def features_and_gradient(self, images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the layer's output, and the gradient of each image's logit with respect to it, of the same shape."""
        features: list[torch.Tensor] = []

        def begin_graph(module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
            features[:] = [output.detach().requires_grad_()]
            torch.set_grad_enabled(True)  # until _unchanged ends
            return features[0].clone()  # a ReLU in place may follow, which a leaf does not allow

        handle = self._layer.register_forward_hook(begin_graph)
        try:
            logits = self._net.forward(images)  # not __call__, whose compiled form ignores the hook
        finally:
            handle.remove()
        chosen = labels.clone().view(-1, 1)  # (N, 1); autograd does not take labels made in inference mode
        of_class = logits.gather(1, chosen).sum()  # in eval mode no image depends on another
        if not features or not of_class.requires_grad:
            raise _no_map(self._net)
        (gradient,) = torch.autograd.grad(of_class, features[0], allow_unused=True)
        if gradient is None:
            raise _no_map(self._net)
        return features[0].detach(), gradient


def _last_feature_map(
    net: nn.Module, num_channels: int, height: int, width: int
) -> tuple[nn.Module, Callable[[torch.Tensor], torch.Tensor]]:
    """Return the last module whose output is a feature map that the logits depend on, and the function that turns its
    output into (N, C, h, w). Raises NoHeatMapError.
    """
    if is_vision_transformer(net):  # after the last block's attention only the class token matters
        side = net.image_size // net.patch_size
        if side == 1:
            raise _no_map(net)
        last_block: Any = net.encoder.layers[-1]
        return last_block.ln_1, lambda tokens: _grid_of_tokens(tokens, side)
    device = next(net.parameters()).device
    probe = torch.zeros(2, num_channels, height, width, device=device)  # two: to recognise outputs per image
    labels = torch.zeros(2, dtype=torch.int64, device=device)
    for layer, as_map in reversed(_feature_maps(net, probe)):
        try:
            GradCam(net, layer, as_map)(probe, labels)
        except NoHeatMapError:  # a side branch
            continue
        return layer, as_map
    raise _no_map(net)


def _feature_maps(
    net: nn.Module, probe: torch.Tensor
) -> list[tuple[nn.Module, Callable[[torch.Tensor], torch.Tensor]]]:
    """Return the modules whose output has positions in both directions, in the order of their run.

    Left out are modules that run more than once and, if any remain, those inside a block that ends in a single
    position: what bypasses them is not in their output.
    """
    found: dict[str, tuple[nn.Module, Callable[[torch.Tensor], torch.Tensor]]] = {}
    runs: Counter[str] = Counter()
    ends: list[str] = []  # prefixes of the modules in blocks that end in a single position

    def record(name: str, module: nn.Module, output: Any) -> None:
        runs[name] += 1
        if isinstance(output, torch.Tensor) and output.ndim == 4 and len(output) == len(probe):
            as_map = _layout(output.shape[1:], probe.shape[2:])
            if as_map is not None:
                found[name] = module, as_map
            elif not isinstance(module, nn.Sequential):  # whose parts nothing bypasses
                ends.append(f"{name}.")

    handles = [
        module.register_forward_hook(lambda module, inputs, output, name=name: record(name, module, output))
        for name, module in net.named_modules()
        if name and not isinstance(module, POOLS_TO_A_SIZE)
    ]
    try:
        with _unchanged(net):
            net.forward(probe)
    finally:
        for handle in handles:
            handle.remove()
    once = [name for name in found if runs[name] == 1]
    outside = [name for name in once if not name.startswith(tuple(ends))]
    return [found[name] for name in outside or once]


def _layout(shape: torch.Size, image_size: torch.Size) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """Return the function that turns an output of that shape, without its batch axis, into (N, C, h, w).

    Rows and columns are the two axes that are reduced by the most similar factors. None where neither layout fits.
    """
    distortion = {}
    for channels_last in (False, True):
        size = shape[:2] if channels_last else shape[1:]
        if all(1 < side <= full for side, full in zip(size, image_size, strict=True)):
            down, across = image_size[0] / size[0], image_size[1] / size[1]
            distortion[channels_last] = abs(math.log(down / across))
    if not distortion:
        return None
    return _channels_first if min(distortion, key=lambda layout: distortion[layout]) else _identity


def _identity(x: torch.Tensor) -> torch.Tensor:
    return x


def _channels_first(x: torch.Tensor) -> torch.Tensor:
    return x.permute(0, 3, 1, 2)  # (N, h, w, C) to (N, C, h, w)


def _grid_of_tokens(tokens: torch.Tensor, side: int) -> torch.Tensor:
    """Return the patches of (N, 1 + side * side, C), whose first is the class token, as (N, C, side, side)."""
    return tokens[:, 1:].transpose(1, 2).unflatten(2, (side, side))


def _upsample(coarse: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resize maps (N, h, w) bilinearly to `size`, (N, H, W)."""
    return nn.functional.interpolate(coarse.unsqueeze(1), size, mode="bilinear", align_corners=False).squeeze(1)


def _scale(maps: torch.Tensor) -> torch.Tensor:
    """Divide each map (N, H, W) by its highest value; values that are not finite count as 0."""
    maps = maps.detach().float().nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    highest = maps.amax(dim=(1, 2), keepdim=True)
    return torch.where(highest > 0, maps / highest, 0.0).clamp(0, 1).cpu()


@contextmanager
def _unchanged(net: nn.Module) -> Iterator[None]:
    """Switch every module to eval mode and gradients off, and restore both afterwards."""
    training = [module for module in net.modules() if module.training]
    try:
        with torch.inference_mode(False), torch.no_grad():
            net.eval()
            yield
    finally:
        for module in training:
            module.training = True


def _no_map(net: nn.Module) -> NoHeatMapError:
    return NoHeatMapError(f"{type(net).__name__} has no feature map with positions at this input size, so no heat map")
