"""Gradient checkpointing: less memory in a training step for a second forward pass."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint
from torchvision.models.regnet import AnyStage

from nets.support.errors import NetError

STAGE_NAMES = (
    *("layer1", "layer2", "layer3", "layer4"),  # ResNet, ResNeXt
    *("stage2", "stage3", "stage4"),  # ShuffleNet
    *("features", "layers", "blocks", "trunk_output"),  # most others; MNASNet and ViT; EfficientNet-Lite; RegNet
)


def enable_gradient_checkpointing(net: nn.Module) -> int:
    """Make the net's stages keep only their blocks' inputs and recompute the rest in the backward pass.

    Parameter names, outputs, gradients and running statistics do not change. Acts only in training and outside
    torch.compile, which plans its own recomputation. Returns the number of stages; raises NetError where there is none.
    Source: Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost", https://arxiv.org/abs/1604.06174.
    """
    stages: list[tuple[nn.Module, str, nn.Sequential]] = []
    for parent in net.modules():
        for name, child in parent.named_children():
            if name in STAGE_NAMES and isinstance(child, nn.Sequential):
                stages.append((parent, name, child))
    if not stages:
        raise NetError(
            f"{type(net).__name__} has no sequential stages for gradient checkpointing "
            f"(looked for {', '.join(STAGE_NAMES)}); switch it off for this net"
        )
    for parent, name, child in stages:
        setattr(parent, name, _checkpointed(child))
    return len(stages)


class CheckpointedSequential(nn.Sequential):
    """A Sequential that checkpoints each of its blocks in training; runs of single layers count as one block."""

    def __init__(self, children: OrderedDict[str, nn.Module]) -> None:
        super().__init__(children)
        self._segments = _segments(children)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return super().forward(x)
        for names in self._segments:
            x = _run([self._modules[name] for name in names], x)
        return x


def _checkpointed(stage: nn.Sequential) -> CheckpointedSequential:
    children = (
        (name, _checkpointed(child) if isinstance(child, nn.Sequential) and _is_nested_stage(child) else child)
        for name, child in stage.named_children()
    )
    return CheckpointedSequential(OrderedDict(children)).train(stage.training)


def _run(layers: Sequence[nn.Module | None], x: torch.Tensor) -> torch.Tensor:
    modules = [layer for layer in layers if layer is not None]
    if isinstance(modules[0], CheckpointedSequential):
        return modules[0](x)

    def forward(x: torch.Tensor) -> torch.Tensor:
        for module in modules:
            x = module(x)
        return x

    contexts = (contextlib.nullcontext(), _FrozenStatistics(modules))
    return checkpoint(forward, x, use_reentrant=False, context_fn=lambda: contexts)


class _FrozenStatistics:
    """Stops batch norms from counting the same batch twice when their forward pass is repeated."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.norms = [inner for module in modules for inner in module.modules() if isinstance(inner, _BatchNorm)]
        self.kept: list[tuple[float | None, torch.Tensor | None]] = []

    def __enter__(self) -> None:
        self.kept = [(norm.momentum, norm.num_batches_tracked) for norm in self.norms]
        for norm, (_, count) in zip(self.norms, self.kept, strict=True):
            norm.momentum = 0.0  # running = 1 * running + 0 * batch
            norm.num_batches_tracked = None if count is None else count.clone()

    def __exit__(self, *error: object) -> None:
        for norm, (momentum, count) in zip(self.norms, self.kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count


def _segments(children: OrderedDict[str, nn.Module]) -> list[list[str]]:
    """Return the names of the children in groups: a composite child alone, single layers together up to a pooling.

    A layer that works in place never opens a segment: it would overwrite the input that is kept for the second pass.
    """
    segments: list[list[str]] = []
    is_open = False
    for name, child in children.items():
        is_single = next(child.children(), None) is None
        if segments and ((is_single and is_open) or getattr(child, "inplace", False)):
            segments[-1].append(name)
        else:
            segments.append([name])
        is_open = is_single and not isinstance(child, nn.MaxPool2d)
    return segments


def _is_nested_stage(child: nn.Module) -> bool:
    """Return whether a child is a stage within a stage (Swin, ConvNeXt, EfficientNet, RegNet), not one block."""
    is_sequence = type(child) in (nn.Sequential, AnyStage)
    return is_sequence and any(next(block.children(), None) is not None for block in child.children())
