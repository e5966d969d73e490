"""Images of any size for the service, by the tiles of `inference.py --tiles`."""

from __future__ import annotations

from data_loader.preprocess import ImageError
from deploy.inference.prediction import Prediction
from deploy.inference.predictor import Prepared
from deploy.inference.tiles import Run, TiledPredictor, joining_bytes
from deploy.service.image_decoder import ImageDecoder


class Tiler:
    """Predicts for encoded images by tiles, within `memory_bytes`: half of it for a large image, half for small ones.

    `workers` threads may predict for small images at once, and one for a large image beside them.
    """

    def __init__(self, predictor: TiledPredictor, decoder: ImageDecoder, memory_bytes: int, workers: int) -> None:
        self._predictor, self._decoder, self.workers = predictor, decoder, workers
        self._memory_bytes = memory_bytes

    def predict(self, images: tuple[bytes, ...], batch_size: int, run: Run, *, may_be_large: bool) -> Prediction | None:
        """Return the prediction for an image, or for both of a pair; `run` gives the net's outputs for tiles.

        None unless `may_be_large`: it is large or damaged, and another try has to find out. Raises BackendError.
        """
        opened = self._decoder.whole(images, may_be_large=may_be_large)
        if isinstance(opened, str):
            return self._failure(opened)
        if opened is None:
            return None
        size, metadata = opened[0].size, self._predictor.metadata
        needed, most = joining_bytes(size, metadata), self._memory_bytes // 2
        if not may_be_large and needed > most // self.workers:
            return None
        if needed > most:
            return self._failure(
                f"it is {size[0]}x{size[1]}: a row of its tiles takes {-(-needed // 10**6)} MB, and half of "
                f"--tile_memory_mb is {most // 10**6}; send it in narrower parts, or raise that limit"
            )
        try:
            return self._predictor.predict_rows(opened, batch_size, run)
        except (ImageError, MemoryError) as error:
            return self._failure(str(error) or "it is too large for the memory")

    def _failure(self, error: str) -> Prediction:
        return self._predictor.failure(Prepared("", None), error)
