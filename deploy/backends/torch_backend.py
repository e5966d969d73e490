"""Checkpoints and torch's own archives on torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from artifacts.metadata import ModelMetadata
from common.cpu import multiplies_bf16
from deploy.backends.base import HeatMap, HeatMapper, failure
from visualization.heatmap_overlay import Marks

if TYPE_CHECKING:
    import torch
    from torch import nn


class TorchBackend:
    """A function from tensor to tensor: an eager net, TorchScript, torch.export's, an interpreter, an engine."""

    def __init__(
        self,
        net: Callable[[torch.Tensor], torch.Tensor],
        device: torch.device,
        name: str = "torch",
        *,
        channels_last: bool = False,
    ) -> None:
        self.name, self.device = name, str(device)
        self._net, self._device, self._channels_last = net, device, channels_last

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Return the outputs, float32 (N, ...), for a batch. Raises BackendError."""
        import torch

        layout = torch.channels_last if self._channels_last else torch.contiguous_format
        try:
            with torch.inference_mode():
                batch = torch.from_numpy(images).to(self._device, memory_format=layout)
                return self._net(batch).float().cpu().numpy()
        except (RuntimeError, AssertionError, MemoryError, torch.jit.Error) as error:  # torch's errors on a device
            raise failure(self, len(images), error) from error


class CheckpointBackend(TorchBackend):
    """A checkpoint's net: the one backend that has gradients, and so heat maps."""

    def __init__(self, net: nn.Module, device: torch.device, *, is_bf16: bool = False) -> None:
        super().__init__(_in_bf16(net, device) if is_bf16 else net, device, channels_last=True)
        self.net, self._target = net, device

    def in_bf16(self) -> CheckpointBackend | None:
        """Return the same net, computed in bf16; None where its device does not multiply bf16 itself."""
        import torch

        is_gpu = self._target.type == "cuda"
        has_it = torch.cuda.get_device_capability(self._target) >= (8, 0) if is_gpu else multiplies_bf16()
        return CheckpointBackend(self.net, self._target, is_bf16=True) if has_it else None

    def heat_mapper(self, metadata: ModelMetadata) -> HeatMapper:
        """Return what makes an image's heat maps; it raises BackendError. Raises NetError for a net without them."""
        import torch

        from nets.support.saliency import heat_mapper

        preprocess = metadata.preprocess
        mapper = heat_mapper(self.net, preprocess.channels, preprocess.height, preprocess.width)

        def map_of(image: np.ndarray, label: int) -> HeatMap:
            try:
                made = mapper(
                    torch.from_numpy(image[None]).to(self._target), torch.tensor([label], device=self._target)
                )
            except (RuntimeError, MemoryError) as error:
                raise failure(self, 1, error) from error
            marks = (
                Marks(str(stage), selected.rows, selected.columns, selected.positions[0].tolist())
                for stage, selected in enumerate(made.selected, 1)
            )
            return HeatMap(made.maps[0].numpy(), tuple(marks))

        return map_of


def _in_bf16(net: nn.Module, device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
    import torch

    def call(images: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device.type, dtype=torch.bfloat16):
            outputs: torch.Tensor = net(images)
        return outputs

    return call
