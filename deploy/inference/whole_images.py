"""Masks of large images that the net sees whole, at their own scale: one tile of the image's size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from artifacts.metadata import ModelMetadata
from data_loader.preprocess import ImageError
from deploy.backends.base import Backend, BackendError
from deploy.backends.torch_backend import CheckpointBackend
from deploy.inference.prediction import Prediction
from deploy.inference.tiles import ImageRows, Run, TiledPredictor


class WholePredictor(TiledPredictor):
    """Predicts masks of images of any size at once, continued to the net's step with their border pixels.

    The memory grows with the image: one of more than the metadata's `max_pixels` is refused. Raises BackendError for a
    net of one size.
    """

    def __init__(self, backend: Backend, metadata: ModelMetadata) -> None:
        step = metadata.size_step
        if isinstance(backend, CheckpointBackend):
            step = int(getattr(backend.net, "size_step", 0))
        if not step:
            raise BackendError(
                "--whole is for checkpoints of nets of masks, and for files that were exported from them with "
                "--any_size; this net takes images of one size: use --tiles"
            )
        super().__init__(backend, replace(metadata, size_step=step), overlap=0.0)

    def metadata_for(self, size: tuple[int, int]) -> ModelMetadata:
        """Return the metadata for a tile of an image's (width, height), rounded up to the step."""
        width, height = (-(-side // self.metadata.size_step) * self.metadata.size_step for side in size)
        return replace(self.metadata, preprocess=replace(self.metadata.preprocess, width=width, height=height))

    def predict_rows(
        self, images: Sequence[ImageRows], batch_size: int, run: Run | None = None, second_file: str = ""
    ) -> Prediction:
        """Return the prediction of one image or a pair, as with tiles. Raises ImageError, BackendError."""
        (width, height), most = images[0].size, self.metadata.preprocess.max_pixels
        if width * height > most:
            raise ImageError(f"{width}x{height} is more than max_pixels ({most}) allows to be seen whole; use --tiles")
        return super().predict_rows(images, batch_size, run, second_file)
