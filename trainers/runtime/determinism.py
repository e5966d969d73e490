"""What a device does not do twice alike: a batch trained several times, its gradients compared bit by bit."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from torch import nn

REPEATS = 3
LOOKED_AT = ("cuda",)  # on a CPU the same seed gives the same bits


def differing_gradients(net: nn.Module, loss_of: Callable[[], torch.Tensor]) -> list[str]:
    """Name the parameters whose gradients are not the same bits each of REPEATS times.

    `loss_of` gives the loss of one batch, a scalar, from the same random numbers each time. The net's buffers are put
    back and its gradients dropped.
    """
    buffers = {name: value.clone() for name, value in net.named_buffers()}
    digests: dict[str, set[bytes]] = {}
    for _ in range(REPEATS):
        net.zero_grad(set_to_none=True)
        loss_of().backward()
        for name, parameter in net.named_parameters():
            if parameter.grad is not None:
                digests.setdefault(name, set()).add(_digest(parameter.grad))
        with torch.no_grad():
            for name, value in net.named_buffers():
                value.copy_(buffers[name])
    net.zero_grad(set_to_none=True)
    return [name for name, found in digests.items() if len(found) > 1]


def _digest(tensor: torch.Tensor) -> bytes:
    values = tensor.detach().cpu().contiguous().flatten()
    return hashlib.sha256(values.view(torch.uint8).numpy().tobytes()).digest()
