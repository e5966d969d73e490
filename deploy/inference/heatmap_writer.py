"""Heat maps of predictions: each image under a map of where the net saw its class."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from artifacts.metadata import ModelMetadata
from common.errors import UserError
from common.formatting import did_you_mean
from data_loader.decoding import decode
from data_loader.preprocess import as_array
from deploy.backends.base import HeatMap, HeatMapper
from deploy.backends.torch_backend import CheckpointBackend
from deploy.inference.class_prediction import ClassPrediction
from deploy.inference.image_writers import folder_names, save_jpeg
from deploy.inference.prediction import Prediction
from deploy.inference.predictor import Predictor
from visualization.heatmap_overlay import heat_map_image
from visualization.raster import annotated

SHOWN_CLASSES = 10
ENDING = ".heatmap.jpg"


class HeatMapError(UserError):
    """A heat map that cannot be made; the message is one sentence for the user."""


class HeatMapCopies:
    """Writes FOLDER/<path below the image folder>.heatmap.jpg: the image under the heat map of its prediction.

    Where `label` is given, also FOLDER/<path>.<class>.heatmap.jpg with that class's map. A text below names the map.
    """

    def __init__(self, folder: Path, mapper: HeatMapper, metadata: ModelMetadata, label: int | None = None) -> None:
        self._folder, self._mapper, self._metadata, self._label = folder, mapper, metadata, label
        is_pim = metadata.net["module"] == "pim_module"
        self._head = [f"predicting head: {metadata.net['args'].get('head', 'all')}"] if is_pim else []

    def add(self, prediction: Prediction, relative: str) -> None:
        """Draw a class's heat map; a bad image has none. Raises ResultsError, ImageError, BackendError."""
        if prediction.error:
            return
        assert isinstance(prediction, ClassPrediction)  # see `heat_map_copies`
        preprocess = self._metadata.preprocess
        seen = preprocess.decode(prediction.file)
        if preprocess.channels == 1:
            decoded = decode(prediction.file, 3, preprocess.max_pixels, icc_profiles=preprocess.icc_profiles)
        else:
            decoded = seen.convert("RGB")
        image = preprocess(as_array(seen))
        lines = [f"{name}  {score:.4f}" for name, score in prediction.top_k[:3]]
        self._save(decoded, self._mapper(image, prediction.label), prediction.class_name, lines, relative)
        if self._label is not None:
            name = self._metadata.class_names[self._label]
            score = next((f"  {score:.4f}" for other, score in prediction.top_k if other == name), "")
            lines = [f"map of {name}{score}", f"prediction: {prediction.class_name}  {prediction.score:.4f}"]
            beside = f"{relative}.{folder_names(self._metadata.class_names)[self._label]}"
            self._save(decoded, self._mapper(image, self._label), name, lines, beside)

    def _save(self, image: Image.Image, found: HeatMap, name: str, lines: Sequence[str], relative: str) -> None:
        nothing = [] if found.heat.any() else [f"no evidence for {name}"]
        drawn = heat_map_image(image, found.heat, self._metadata.preprocess.resize, found.marks)
        sheet = annotated(drawn, [*lines[:1], *nothing, *lines[1:], *self._head])
        save_jpeg(self._folder, relative, ENDING, sheet)


def heat_map_copies(folder: Path, predictor: Predictor, class_name: str | None) -> HeatMapCopies:
    """Return what writes the heat maps of a checkpoint's predictions, and of `class_name` where given.

    Raises HeatMapError for a net without classes or an unknown class, NetError for a net without positions.
    """
    backend, metadata = predictor.backend, predictor.metadata
    assert isinstance(backend, CheckpointBackend)  # see `refuse_without_gradients`
    if predictor.prediction_type is not ClassPrediction:
        raise HeatMapError(f"a heat map shows where a class is, and this net gives {metadata.output}")
    label = None if class_name is None else label_of(class_name, metadata)
    return HeatMapCopies(folder, backend.heat_mapper(metadata), metadata, label)


def label_of(class_name: str, metadata: ModelMetadata) -> int:
    """Return the label of a class. Raises HeatMapError, which names those that are spelt alike."""
    names = metadata.class_names
    if class_name in names:
        return names.index(class_name)
    more = f" and {len(names) - SHOWN_CLASSES} more" if len(names) > SHOWN_CLASSES else ""
    known = f"; its classes are {', '.join(names[:SHOWN_CLASSES])}{more}"
    hint = did_you_mean(class_name, names, ignore_case=True, count=3) or known
    raise HeatMapError(f'--heatmap_class: the net has no class "{class_name}"{hint}')


def refuse_without_gradients(weights: Path, title: str) -> None:
    """Raise HeatMapError for a weights file that is no checkpoint; it names the checkpoint where that is known."""
    own = _checkpoint_of(weights)
    hint = f"name {own}, which this one was made from" if own else "name the checkpoint (.pth) that it was made from"
    raise HeatMapError(f"{weights}: a heat map needs gradients, and this {title} has none; {hint}, with --weights")


def _checkpoint_of(weights: Path) -> str:
    """Return what the report of an export beside the file names as its checkpoint, or ""."""
    from artifacts.formats import REPORT

    try:
        own = json.loads(weights.with_name(REPORT).read_text(encoding="utf-8"))["weights"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return str(own)
