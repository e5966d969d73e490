"""Images with label images: what a net of masks predicts for them beside what is true."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from artifacts.metadata import ModelMetadata
from configs.schema import Config
from data_loader.mask_classes import VOID, others_beside
from data_loader.mask_target import MaskTarget
from data_loader.preprocess import ImageError
from data_loader.samples import Sample
from deploy.inference.mask_prediction import MaskPrediction, classes_of
from deploy.inference.predictor import Predictor, Source
from deploy.inference.uncertainty_scores import UncertaintyError
from deploy.uncertainty.calibrate_boxes import annotated_samples, annotated_training, warn
from deploy.uncertainty.outputs import check_not_trained_on


@dataclass(frozen=True)
class MaskSource:
    """The samples of a folder or a list, and how their masks are read."""

    origin: Path
    samples: tuple[Sample, ...]
    masks: MaskTarget

    @classmethod
    def of(
        cls, origin: Path, list_root: Path | None, weights: Path, config: Config | None, metadata: ModelMetadata
    ) -> MaskSource:
        """Return images that the net of `weights` was not trained on. Raises ListError, UncertaintyError.

        A classes.json beside them, or in the folder above, names the classes that others are read as.
        """
        preprocess, classes = metadata.preprocess, classes_of(metadata)
        masks = MaskTarget(
            classes,
            has_pairs=preprocess.images == 2,
            max_pixels=preprocess.max_pixels,
            others=others_beside(origin if origin.is_dir() else origin.parent, classes),
            has_bands=preprocess.has_bands,
        )
        samples = annotated_samples(origin, list_root, config, masks).samples
        if (trained := annotated_training(config, metadata, masks)) is None:
            warn(f"the training images of {weights} are not on this machine: take care that {origin} has none")
        else:
            check_not_trained_on(samples, origin, trained)
        return cls(origin, samples, masks)

    def predicted(
        self, predictor: Predictor, batch_size: int, workers: int
    ) -> Iterator[tuple[MaskPrediction, np.ndarray]]:
        """Yield the mask predicted for each image that can be read, and its true class indices (H, W) uint8.

        These are VOID where a pixel is ignored, or where the net sees none of the image. Raises UncertaintyError where
        no image can be read.
        """
        usable: dict[Source, Sample] = {}
        problems, count = [], 0
        for sample in self.samples:
            try:
                file = sample.target._replace(orientation=self.masks.scan(sample).orientation)
            except ImageError as error:
                problems.append(f"{sample.path}: {error}")
                continue
            usable[(sample.path, file.second) if file.second else sample.path] = replace(sample, target=file)
        predictions = predictor.predict_files(usable, batch_size, workers=workers)
        for sample, prediction in zip(usable.values(), predictions, strict=True):
            if prediction.error:
                problems.append(f"{prediction.file}: {prediction.error}")
                continue
            assert isinstance(prediction, MaskPrediction)
            count += 1
            yield prediction, np.where(prediction.indices == VOID, np.uint8(VOID), np.asarray(self.masks.load(sample)))
        if problems:
            warn(f"{len(problems)} images cannot be used and were left out; the first: {problems[0]}")
        if not count:
            raise UncertaintyError(f"{self.origin}: none of its images can be used")
