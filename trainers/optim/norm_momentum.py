"""How fast batch norm's running statistics follow the net in a short training."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

FASTEST = 0.1  # torch's default
FOLLOWED = 20  # the statistics are those of the last twentieth of a training


def raise_norm_momentum(net: nn.Module, updates: int, log: Callable[[str], None]) -> None:
    """Raise the momentum of each batch norm in training mode to 20 / `updates`, at most 0.1, and log it.

    `updates` are the batches of the whole training. EfficientNet-Lite and MobileNet V3 have 0.01 (MnasNet 0.0003) for
    hundreds of thousands of them; after 110 a third of the initial mean 0 and variance 1 is left in the running
    statistics, and the net in validation is another one than in training: U-Net over EfficientNet-Lite0 from random
    weights then finds one class everywhere while its training loss falls.
    """
    needed = min(FASTEST, FOLLOWED / max(1, updates))
    slow = [
        module
        for module in net.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        and module.training
        and module.momentum
        and module.momentum < needed
    ]
    if not slow:
        return
    least = min(module.momentum for module in slow if module.momentum)
    for module in slow:
        module.momentum = needed
    log(f"batch norm: momentum {needed:.3g} instead of {least:.3g} in {len(slow)} layers, for {updates} batches")
