"""The reference of a comparison: the net's own outputs on real images, and by how much others may differ."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from artifacts.metadata import ModelMetadata
from deploy.backends.base import Backend, BackendError
from deploy.export.errors import ExportError
from deploy.export.sample_images import SampleImages, net_input

BATCH = 32  # of the comparison and of the timing
# Largest |difference| of a value of the output, as a share of the largest |value| over all images.
TOLERANCES = {
    "fp32": 1e-4,  # the same sums in another order: 1e-6 is usual, and fifty layers do not bring it to 1e-4
    "fp16": 1e-2,  # 11 bits: a rounding of 5e-4 a layer, which grows with the root of the depth
    "bf16": 8e-2,  # 8 bits: a rounding of 4e-3 a layer
}
# A net that chooses among equals (PIM ranks positions by certainty) has slightly other outputs wherever its sums are
# rounded in another order. By how much is measured on the net itself, with each value of its input off by JITTER.
JITTER = {"fp32": 2.0**-18, "fp16": 2.0**-9, "bf16": 2.0**-6}  # the sum of the roundings of some tens of layers
MOVED_TIMES = 10  # a file may differ by so many times what the jitter moves the net's outputs by,
MOST_MOVED = 0.05  # and by no more than this


@dataclass(frozen=True)
class Reference:
    """The net: how it is called, the images, and its outputs for them, float32 (N, ...)."""

    backend: Backend
    images: SampleImages
    metadata: ModelMetadata
    outputs: np.ndarray
    _moved: dict[str, float] = field(default_factory=dict, init=False, compare=False)

    @classmethod
    def of(cls, backend: Backend, images: SampleImages, metadata: ModelMetadata) -> Reference:
        """Run the net on all images. Raises ExportError where it returns NaN or infinity, BackendError."""
        outputs = run_images(backend, images, metadata)
        if len(bad := np.flatnonzero(~np.isfinite(flat(outputs)).all(axis=1))):
            count = f"{len(bad)} of {len(images)} images, the first {images.files[bad[0]]}"
            what = f"NaN or infinite {metadata.output}"
            raise ExportError(f"the net itself returns {what} for {count}; no file can be compared with them")
        return cls(backend, images, metadata, outputs)

    def every_second(self, first: int) -> Reference:
        """Return the reference of every second image, from the first (0) or the second (1) on."""
        return replace(self, images=self.images.every_second(first), outputs=self.outputs[first::2])

    @property
    def scale(self) -> float:
        """The largest |value| of the outputs, which differences are a share of."""
        return float(np.abs(self.outputs).max()) or 1.0

    def tolerance(self, precision: str) -> float:
        """Return by how much the worst image may differ: TOLERANCES, or MOVED_TIMES what jitter moves the net by."""
        if precision not in self._moved:
            moved = jitter_movement(self.backend, self.images.pixels, self.metadata, precision, draws=3)
            self._moved[precision] = float(moved.max())
        return self._slack(precision, self._moved[precision])

    def batch_tolerance(self, precision: str, pixels: np.ndarray) -> float:
        """Return by how much the outputs of these images may differ between batches of different size."""
        moved = jitter_movement(self.backend, pixels, self.metadata, precision, draws=8)
        return self._slack(precision, float(moved.max()))

    def own_movement(self, rows: np.ndarray, precision: str) -> np.ndarray:
        """Return by how much the outputs of some images may differ, (n,): MOVED_TIMES what jitter moves each by."""
        moved = jitter_movement(self.backend, self.images.pixels[rows], self.metadata, precision, draws=32)
        return np.minimum(MOVED_TIMES * moved, MOST_MOVED * self.scale)

    def _slack(self, precision: str, moved: float) -> float:
        return max(TOLERANCES[precision], min(MOVED_TIMES * moved / self.scale, MOST_MOVED))


def run_images(backend: Backend, images: SampleImages, metadata: ModelMetadata) -> np.ndarray:
    """Return the outputs, float32 (N, ...), for all images in batches of 32; the last is padded, as in a service."""
    parts = []
    for start in range(0, len(images), BATCH):
        pixels = images.pixels[start : start + BATCH]
        parts.append(run_batch(backend, repeat_rows(pixels, BATCH), metadata)[: len(pixels)])
    return np.concatenate(parts)


def run_batch(backend: Backend, pixels: np.ndarray, metadata: ModelMetadata) -> np.ndarray:
    """Return the outputs for a batch. Raises BackendError, without the hint of a flag that an export lacks."""
    try:
        return backend(net_input(pixels, metadata.preprocess, metadata.input))
    except BackendError as error:
        raise BackendError(str(error).removesuffix("; lower the batch size")) from error


def jitter_movement(
    run: Callable[[np.ndarray], np.ndarray],
    pixels: np.ndarray,
    metadata: ModelMetadata,
    precision: str,
    draws: int = 1,
) -> np.ndarray:
    """Return by how much each image's outputs move, (N,), when each value of its input moves by JITTER up or down.

    Of several random draws of the directions the largest movement counts.
    """
    generator = np.random.default_rng(0)
    moved = np.zeros(len(pixels))
    for start in range(0, len(pixels), BATCH):
        images = net_input(pixels[start : start + BATCH], metadata.preprocess, "float32 NCHW")
        unmoved = run(images)
        for _ in range(draws):
            jitter = generator.choice(np.array([-JITTER[precision], JITTER[precision]], np.float32), images.shape)
            difference = flat(np.abs(run(images + images * jitter) - unmoved)).max(axis=1)
            moved[start : start + BATCH] = np.maximum(moved[start : start + BATCH], difference)
    return moved


def other_size(metadata: ModelMetadata) -> tuple[int, int]:
    """Return the height and width at which a net of free ones is verified besides its own."""
    return metadata.preprocess.height + metadata.size_step, metadata.preprocess.width + 2 * metadata.size_step


def flat(outputs: np.ndarray) -> np.ndarray:
    """Return the values of each image in one row: (N, ...) to (N, D)."""
    return outputs.reshape(len(outputs), -1)


def repeat_rows(rows: np.ndarray, count: int) -> np.ndarray:
    """Return `count` rows, repeated from the first on."""
    return rows if len(rows) == count else np.concatenate([rows] * -(-count // len(rows)))[:count]
