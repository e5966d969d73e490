"""Whether a device repeats itself: a batch trained several times, its gradients compared bit by bit."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from torch import nn

from common.formatting import first_line

REPEATS = 3


def find_differing_gradients(
    net: nn.Module, loss_of: Callable[[], torch.Tensor], log: Callable[[str], None]
) -> list[str] | None:
    """Return what `differing_gradients` finds; None, with a line in the log, where it fails.

    The training itself is over by then, so that no error of it may spoil the rest.
    """
    try:
        return differing_gradients(net, loss_of)
    except (RuntimeError, ValueError) as error:
        log(f"warning: check_determinism failed: {first_line(error)}")
        return None


def differing_gradients(net: nn.Module, loss_of: Callable[[], torch.Tensor]) -> list[str]:
    """Return the names of the parameters whose gradients are not the same bits each of REPEATS times.

    `loss_of` returns the loss of one batch, a scalar, from the same random numbers each time. The net's buffers are put
    back and its gradients dropped.
    """
    buffers = {name: value.clone() for name, value in net.named_buffers()}
    checksums: dict[str, set[bytes]] = {}
    for _ in range(REPEATS):
        net.zero_grad(set_to_none=True)
        loss_of().backward()
        for name, parameter in net.named_parameters():
            if parameter.grad is not None:
                checksums.setdefault(name, set()).add(_checksum(parameter.grad))
        with torch.no_grad():
            for name, value in net.named_buffers():
                value.copy_(buffers[name])
    net.zero_grad(set_to_none=True)
    return [name for name, found in checksums.items() if len(found) > 1]


def _checksum(tensor: torch.Tensor) -> bytes:
    values = tensor.detach().cpu().contiguous().flatten()
    return hashlib.sha256(values.view(torch.uint8).numpy().tobytes()).digest()
