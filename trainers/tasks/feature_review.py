"""Distillation of feature maps: each of a teacher's maps is learnt from the net's maps of that depth and deeper ones.

Chen et al. 2021, https://arxiv.org/abs/2104.09044.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, interpolate, mse_loss

from nets.support.errors import NetError

STAGES = 4  # the deepest maps of different sizes
WIDTH = 256  # channels in which the net's maps are joined
LEVELS = (4, 2, 1)  # sides of the averaged maps that are compared beside the whole ones (section 3.4)


@contextmanager
def watching(net: nn.Module, names: Sequence[str]) -> Iterator[list[Tensor]]:
    """Collect inside what the modules of these names return, in the order of their run."""
    maps: list[Tensor] = []
    hooks = [net.get_submodule(name).register_forward_hook(lambda *call: maps.append(call[-1])) for name in names]
    try:
        yield maps
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def stages_of(net: nn.Module, images: Tensor) -> list[tuple[str, int]]:
    """Return the names of the modules with a net's deepest maps of different sizes, and their channels.

    Of the modules with maps of one size it is the one that ends last. `images` (1, C, H, W) is a trial input. Raises
    NetError where a net has fewer than two such maps.
    """
    found: dict[tuple[int, ...], tuple[str, int]] = {}  # by size

    def look(name: str, output: object) -> None:
        if isinstance(output, Tensor) and output.ndim == 4 and output.shape[2:].numel() > 1:
            found.pop(tuple(output.shape[2:]), None)
            found[tuple(output.shape[2:])] = name, output.shape[1]

    hooks = [
        module.register_forward_hook(lambda *call, name=name: look(name, call[-1]))
        for name, module in net.named_modules()
        if name
    ]
    was_training = net.training
    net.eval()
    try:
        net(images.to(next(net.parameters()).device))
    finally:
        net.train(was_training)
        for hook in hooks:
            hook.remove()
    if len(found) < 2:
        raise NetError(f'distill_method "review" needs two feature maps of different sizes, and a net has {len(found)}')
    return list(found.values())[-STAGES:]


class FeatureReview(nn.Module):
    """The net's maps, shallow to deep, to the teacher's: projected, joined with what is deeper, and compared.

    `own` and `wanted` are the channels of the net's and the teacher's maps. It is trained with the net, then dropped.
    """

    def __init__(self, own: Sequence[int], wanted: Sequence[int]) -> None:
        super().__init__()
        count = min(len(own), len(wanted))
        own, wanted = own[-count:], wanted[-count:]
        self.into = nn.ModuleList(_convolution(channels, WIDTH, 1) for channels in own)
        self.shares = nn.ModuleList(nn.Conv2d(2 * WIDTH, 2, 1) for _ in own[:-1])
        self.out = nn.ModuleList(_convolution(WIDTH, channels, 3) for channels in wanted)

    def forward(self, maps: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
        """Return the loss of a net's maps beside the teacher's, both (N, C, H, W) from shallow to deep."""
        maps, wanted = maps[-len(self.into) :], wanted[-len(self.into) :]
        joined: Tensor | None = None
        total = maps[-1].new_zeros((), dtype=torch.float32)
        for place in reversed(range(len(maps))):
            own = self.into[place](maps[place])
            if joined is not None:
                deeper = interpolate(joined, own.shape[2:], mode="nearest")
                shares = self.shares[place](torch.cat([own, deeper], 1)).sigmoid()  # (N, 2, H, W)
                own = own * shares[:, :1] + deeper * shares[:, 1:]
            joined = own
            made = interpolate(self.out[place](own).float(), wanted[place].shape[2:], mode="nearest")
            total = total + hierarchical_distance(made, wanted[place].float())
        return total


def hierarchical_distance(made: Tensor, wanted: Tensor) -> Tensor:
    """Return the mean squared distance of maps (N, C, H, W), and of their averages on 4x4, 2x2 and 1x1, halved each.

    The weights 1, 1/2, 1/4 and 1/8 are divided by the sum of those in use; an average is one where it is smaller.
    """
    total, share, weights = mse_loss(made, wanted), 1.0, 1.0
    for side in LEVELS:
        if side < wanted.shape[2]:
            share /= 2
            weights += share
            total = total + share * mse_loss(adaptive_avg_pool2d(made, side), adaptive_avg_pool2d(wanted, side))
    return total / weights


def _convolution(inputs: int, outputs: int, side: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, side, padding=side // 2, bias=False), nn.BatchNorm2d(outputs))
