"""Metadata: what a deployment must know about a trained net. It travels inside every artefact."""

from __future__ import annotations

import json
import platform
import re
import reprlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from artifacts.calibration import ACCEPT, CONFORMAL, FP32, LONGEST_NAME, MOST_MISSED, PIXEL_SCORE, Calibration
from configs.schema import Config
from data_loader.bands import Ranges
from data_loader.mask_classes import (
    MASK_CLASSES_FILE,
    MaskClass,
    OtherClass,
    default_classes,
    read_mask_classes,
    read_other_classes,
)
from data_loader.packs import find_pack, is_pack
from data_loader.preprocess import Preprocess
from data_loader.remote_packs import local_packs
from data_loader.samples import CLASS_NAMES_FILE, ListError, read_class_names

METADATA_VERSION = 1
PRODUCER = "classic-trainer"
INPUTS = ("float32 NCHW", "uint8 NHWC RGB", "uint8 NHWC BGR")  # a grey net's one channel is RGB and BGR alike
PRECISIONS = ("fp32", "fp16", "bf16", "int8")
LARGEST = 1e9  # of a mean and a std, with room before what float32 cannot hold
IDENTIFIER = "[a-z][a-z0-9_]*"  # of a task and of an output


@dataclass(frozen=True)
class ModelMetadata:
    """Class names in order, the preprocessing, the batch profile, and what was fitted after training."""

    class_names: tuple[str, ...]
    preprocess: Preprocess
    net: dict[str, Any]  # module, name, args: what build_net needs
    batch_profile: tuple[int, int, int] = (1, 8, 64)  # min, best, max
    input: str = "float32 NCHW"  # one of INPUTS; uint8 where Preprocess's mean and std are in the graph
    precision: str = "fp32"  # one of PRECISIONS
    task: str = "classification"  # what the net was trained for, as `trainers.tasks.TASKS` names it
    output: str = "logits"  # what the net returns, float32; see `artifacts.outputs`
    temperature: float | None = None
    thresholds: dict[str, float] = field(default_factory=dict)
    calibration: Calibration | None = None  # with it the thresholds `accept` and `conformal` decide
    fitted_to: str = ""  # of masks and boxes: what `Calibration.fitted_to` is of classes
    weights_sha256: str = ""  # of the state dict; empty for bare weights
    versions: dict[str, str] = field(default_factory=dict)
    start_weights: dict[str, str] = field(default_factory=dict)  # package, sha256, licence, source; empty for others
    mask_classes: tuple[MaskClass, ...] = ()  # of masks and boxes: values, colours and titles, as `class_names`
    size_step: int = 0  # with it height and width of the input may be any multiples of it; 0: Preprocess's alone
    is_changed: bool = False  # the file was changed after its export, and accepted; not in the file

    @property
    def num_classes(self) -> int:
        """Number of classes K; 0 for a task without classes."""
        return len(self.class_names)

    @property
    def calibrated_outputs(self) -> str:
        """The `outputs_name` that its thresholds were fitted to; "" where none are fitted."""
        if self.calibration is not None:
            return self.calibration.fitted_to
        is_fitted = PIXEL_SCORE in self.thresholds or MOST_MISSED in self.thresholds
        return (self.fitted_to or FP32) if is_fitted else ""

    def net_arguments(self) -> dict[str, Any]:
        """Return the arguments of `nets.net_interface.build_net` for this net."""
        return {
            "module_name": self.net["module"],
            "net_name": self.net["name"],
            "num_classes": self.num_classes,
            "num_channels": self.preprocess.channels,
            "img_height": self.preprocess.height,
            "img_width": self.preprocess.width,
            "model_args": self.net["args"],
        }

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "facts_version": METADATA_VERSION,
            "producer": PRODUCER,
            "class_names": list(self.class_names),
            "preprocess": self.preprocess.to_dict(),
            "net": self.net,
            "batch_profile": list(self.batch_profile),
            "input": self.input,
            "precision": self.precision,
            "task": self.task,
            "output": self.output,
            "temperature": self.temperature,
            "thresholds": self.thresholds,
            "weights_sha256": self.weights_sha256,
            "versions": self.versions,
            **({"calibration": self.calibration.to_dict()} if self.calibration else {}),
            **({"fitted_to": self.fitted_to} if self.fitted_to else {}),
            **({"start_weights": self.start_weights} if self.start_weights else {}),
            **({"size_step": self.size_step} if self.size_step else {}),
            **({"mask_classes": [found.to_dict() for found in self.mask_classes]} if self.mask_classes else {}),
        }

    def to_json(self) -> str:
        """Return the JSON text for ONNX metadata, TorchScript extra files and the description."""
        return json.dumps(self.to_dict(), ensure_ascii=False, sort_keys=True)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelMetadata:
        """Return the metadata that `to_dict` wrote. Raises ValueError, a sentence starting with "the metadata"."""
        if (version := values.get("facts_version")) != METADATA_VERSION:
            got = reprlib.repr(version)
            raise ValueError(f"the metadata is of version {got}, this program reads version {METADATA_VERSION}")
        try:
            metadata = cls(
                class_names=_listed(values, "class_names"),
                preprocess=Preprocess.from_dict(values["preprocess"]),
                net=values["net"],
                batch_profile=_listed(values, "batch_profile"),
                input=values.get("input", "float32 NCHW"),  # not in older files
                precision=values.get("precision", "fp32"),
                task=values.get("task", "classification"),  # not in older files
                output=values["output"],
                temperature=values["temperature"],
                thresholds=values["thresholds"],
                calibration=_calibration(values.get("calibration")),  # not in older files
                fitted_to=values.get("fitted_to", ""),
                weights_sha256=values["weights_sha256"],
                versions=values["versions"],
                start_weights=values.get("start_weights", {}),  # not in older files
                mask_classes=tuple(map(MaskClass.from_dict, values.get("mask_classes", ()))),
                size_step=values.get("size_step", 0),
            )
        except KeyError as error:
            raise ValueError(f"the metadata is incomplete: {error}") from error
        except (ValueError, TypeError, AttributeError, OverflowError) as error:  # Preprocess raises each of them
            raise ValueError(f"the metadata is damaged: {error}") from error
        metadata._check()
        return metadata

    def _check(self) -> None:
        """Raise ValueError where a value is one that `to_dict` never writes."""
        names, thresholds, sha256 = self.class_names, self.thresholds, self.weights_sha256
        right = {
            "class_names": self._has_classes() and all(map(_is_text, names)) and len(set(names)) == len(names),
            "channels": type(self.preprocess.channels) is int,
            "mean": all(abs(value) <= LARGEST for value in self.preprocess.mean),
            "std": all(1 / LARGEST <= value <= LARGEST for value in self.preprocess.std),
            "net": _is_net(self.net),
            "batch_profile": _is_profile(self.batch_profile),
            "input": self.input in INPUTS,
            "precision": self.precision in PRECISIONS,
            "task": _is_identifier(self.task),
            "output": _is_identifier(self.output),
            "temperature": self.temperature is None or (_is_number(self.temperature) and 1e-6 < self.temperature < 1e6),
            "thresholds": isinstance(thresholds, dict) and all(map(_is_number, thresholds.values())),
            "calibration": self.calibration is None or self._has_thresholds(),
            "fitted_to": isinstance(self.fitted_to, str) and len(self.fitted_to) <= LONGEST_NAME,
            "weights_sha256": isinstance(sha256, str) and bool(re.fullmatch("([0-9a-f]{64})?", sha256)),
            "versions": isinstance(self.versions, dict),
            "start_weights": isinstance(self.start_weights, dict) and all(map(_is_text, self.start_weights.values())),
            "size_step": type(self.size_step) is int and 0 <= self.size_step <= 1024,
            "mask_classes": tuple(found.name for found in self.mask_classes) in ((), names),
        }
        values = vars(self.preprocess) | vars(self)
        wrong = [f"{name} cannot be {reprlib.repr(values[name])}" for name, fits in right.items() if not fits]
        if wrong:
            raise ValueError(f"the metadata is damaged: {', '.join(wrong)}")

    def _has_classes(self) -> bool:
        """Return whether there are as many classes as the output needs: two for logits, else any number."""
        return len(self.class_names) > 1 or self.output not in ("logits", "mask_logits")

    def _has_thresholds(self) -> bool:
        is_there = isinstance(self.thresholds, dict) and {ACCEPT, CONFORMAL} <= set(self.thresholds)
        return is_there and self.temperature is not None and self.output == "logits"


def _calibration(values: Any) -> Calibration | None:
    return None if values is None else Calibration.from_dict(values)


def _listed(values: dict[str, Any], key: str) -> tuple[Any, ...]:
    """Return a list as a tuple. Raises TypeError for a text, which would become a tuple of letters."""
    if not isinstance(values[key], (list, tuple)):
        raise TypeError(f"{key} cannot be {reprlib.repr(values[key])}")
    return tuple(values[key])


def _is_identifier(value: object) -> bool:
    return isinstance(value, str) and bool(re.fullmatch(IDENTIFIER, value))


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value != ""


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= sys.float_info.max  # not NaN, and no bool


def _is_net(net: object) -> bool:
    if not isinstance(net, dict) or set(net) != {"module", "name", "args"}:
        return False
    return _is_text(net["module"]) and _is_text(net["name"]) and isinstance(net["args"], dict)


def _is_profile(profile: tuple[int, ...]) -> bool:
    return (
        len(profile) == 3 and all(type(size) is int for size in profile) and 1 <= profile[0] <= profile[1] <= profile[2]
    )


def class_names_of(config: Config) -> tuple[str, ...]:
    """Return the class names from `class_names_file`, else from classes.txt beside the list, else none.

    Raises ListError, also where there are not `num_classes` of them.
    """
    file = Path(config.class_names_file)
    if not config.class_names_file:
        config = local_packs(config)
        list_file = config.train_data_file or config.val_data_file
        if is_pack(list_file) and (names := find_pack(list_file).category):
            if len(names) != config.num_classes:
                raise ListError([f"{list_file}: {len(names)} classes, but num_classes is {config.num_classes}"])
            return names
        file = Path(list_file).parent / CLASS_NAMES_FILE
        if not list_file or not file.is_file():
            return ()
    names = read_class_names(file)
    if len(names) != config.num_classes:
        raise ListError([f"{file}: {len(names)} class names, but num_classes is {config.num_classes}"])
    return names


def mask_classes_of(config: Config) -> tuple[MaskClass, ...]:
    """Return the classes of masks: of `class_names_file`, else of the classes.json beside the list or in the data's
    folder or the one above, else of the class names, else 0, 1, ... with their numbers for names.

    Raises ListError, also where there are not `num_classes` of them.
    """
    file = _mask_classes_file(config)
    if file.suffix.lower() != ".json":
        names = class_names_of(config) or tuple(str(label) for label in range(config.num_classes))
        return default_classes(names)
    classes = read_mask_classes(file)
    if len(classes) != config.num_classes:
        raise ListError([f"{file}: {len(classes)} classes, but num_classes is {config.num_classes}"])
    return classes


def other_classes_of(config: Config) -> tuple[OtherClass, ...]:
    """Return the classes of the data that the net does not have, as the classes.json of `mask_classes_of` says."""
    file = _mask_classes_file(config)
    return read_other_classes(file) if file.suffix.lower() == ".json" else ()


def _mask_classes_file(config: Config) -> Path:
    file = Path(config.class_names_file)
    if not config.class_names_file:
        config = local_packs(config)
        root, list_file = Path(config.train_data_root_dir), config.train_data_file
        folders = (Path(list_file).parent,) if list_file else (root, root.parent)
        file = next((found for folder in folders if (found := folder / MASK_CLASSES_FILE).is_file()), file)
    return file


def preprocess_of(config: Config) -> Preprocess:
    """Return the preprocessing that a config describes."""
    return Preprocess(
        height=config.img_height,
        width=config.img_width,
        channels=config.num_channels,
        resize=config.resize,
        interpolation=config.interpolation,
        mean=tuple(config.mean),
        std=tuple(config.std),
        max_pixels=config.max_pixels,
        icc_profiles=config.icc_profiles,
        band_range=band_ranges(config),
        band_type=config.band_type,
    )


def band_ranges(config: Config) -> Ranges:
    """Return the range of each band as a config gives it; () where it is to be measured, and for other images."""
    return () if isinstance(config.band_range, str) else tuple((low, high) for low, high in config.band_range)


def build_metadata(config: Config, class_names: Sequence[str]) -> ModelMetadata:
    """Return the metadata of a net that a config describes, before anything is fitted."""
    net = {"module": config.model_module_name, "name": config.model_net_name, "args": config.net_args()}
    return ModelMetadata(tuple(class_names), preprocess_of(config), net, versions=library_versions())


def library_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that affect the results."""
    import numpy
    import PIL
    import torch
    import torchvision

    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # a class of its own, which a checkpoint must not hold
        "torchvision": str(torchvision.__version__),
        "numpy": numpy.__version__,
        "pillow": PIL.__version__,
    }
