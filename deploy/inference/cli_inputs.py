"""The inputs of a program that predicts for images, checked as far as possible without the net."""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from common.atomic_io import check_spares
from common.errors import UserError
from configs.loading import process_config
from configs.schema import DEFAULT_CONFIG, Config
from data_loader.image_files import LeftOut, no_images, walk_images
from data_loader.mask_folders import LABELS, ONE, pairs_below

if TYPE_CHECKING:
    from artifacts.metadata import ModelMetadata
    from deploy.backends.base import Backend


class InputsError(UserError):
    """A mistake in a program's flags or the files they name; the message is one sentence for the user."""


def one_image(path: Path) -> Iterator[str]:
    """Yield the one image's path. Raises InputsError."""
    if path.is_dir():
        raise InputsError(f"{path}: it is a folder; name it with --image_dir")
    if not path.exists():
        raise InputsError(f"{path}: no such file{_current_folder(path)}")
    return iter([str(path)])


def images_below(root: Path, *results: Path) -> Iterator[str]:
    """Stream the images of a folder, without those that an earlier run left in the results folders below it.

    Raises InputsError.
    """
    if not root.is_dir():
        raise InputsError(f"{root}: no such folder{_current_folder(root)}; name one with --image_dir")
    images = _outside(results, walk_images(root)) if results else walk_images(root)
    try:
        first = next(images, None)
    except OSError as error:
        raise InputsError(f"{error.filename or root}: cannot read the folder: {error.strerror}") from error
    if first is None:
        raise InputsError(no_images(root, LeftOut()))
    return itertools.chain([first], images)


def check_polygons(args: argparse.Namespace) -> None:
    """Raise InputsError where --polygons can write nothing."""
    if importlib.util.find_spec("rasterio") is None:
        raise InputsError("--polygons needs rasterio: pip install -r requirements-geo.txt")
    if args.save_images is None and (args.output or args.heatmap):
        raise InputsError("--polygons goes with --save_images DIR, the folder that the masks go to")


def input_images(
    args: argparse.Namespace, images: Iterator[str], root: Path | None, metadata: ModelMetadata
) -> Iterator[str] | Iterator[tuple[str, str]]:
    """Return the images that were found: of a folder with label images those of images/, for a net of pairs the pairs.

    Raises InputsError, ListError.
    """
    if metadata.preprocess.images == 1:
        if args.second_image:
            raise InputsError(f"--second_image {args.second_image}: this net predicts for one image, not for pairs")
        has_labels = root is not None and metadata.output in ("mask_logits", "boxes") and (root / LABELS).is_dir()
        return images_below(root / ONE[0]) if has_labels and root and (root / ONE[0]).is_dir() else images
    if root is not None:
        return iter(pairs_below(str(root)))
    if not args.second_image:
        raise InputsError(f"{args.image}: this net predicts for pairs; name the later image with --second_image")
    return iter([(str(args.image), next(one_image(args.second_image)))])


def with_score_threshold(metadata: ModelMetadata, threshold: float) -> ModelMetadata:
    """Return the metadata of a net that gives boxes with another score threshold. Raises InputsError."""
    if metadata.output != "boxes":
        raise InputsError("--score_threshold is for nets that give boxes, and this one gives none")
    return replace(metadata, thresholds={**metadata.thresholds, "score": threshold})


def weights_and_config(args: argparse.Namespace) -> tuple[Path, Config | None]:
    """Return the weights file, and the config where one is named or needed. Raises UserError."""
    check_spares(args.output, args.weights, args.config or Path(DEFAULT_CONFIG))
    if args.weights and not args.config:
        return args.weights, None
    if args.model and Path(args.model).is_file():
        raise InputsError(f"--model {args.model}: it is a file; --model names a module of nets/, --weights a file")
    path = args.config or Path(DEFAULT_CONFIG)
    values = {
        "model_net_name": ("--net", args.net),
        "model_module_name": ("--model", args.model),
        "num_classes": ("--cls", args.cls),
        "img_height": ("--size", args.size),
        "img_width": ("--size", args.size),
    }
    overrides = {key: (flag, value) for key, (flag, value) in values.items() if value is not None}
    config = process_config(
        path,
        [f"{key}={value}" for key, (_, value) in overrides.items()],
        check_files=False,
        flags={key: f"{flag} {value}" for key, (flag, value) in overrides.items()},
    )
    weights = args.weights or config.best_checkpoint()
    if not args.weights and not weights.exists():
        hint = f"train first (python train.py --config {path}), or name a weights file with --weights"
        raise InputsError(f"{weights}: the net of {path} is not there{_current_folder(weights)}; {hint}")
    return weights, config


def load_net(
    args: argparse.Namespace, program: str, weights: Path, config: Config | None
) -> tuple[Backend, ModelMetadata]:
    """Load the net and compare its metadata with the flags and the config; print on stderr where they differ.

    Raises UserError.
    """
    from artifacts.formats import artifact_kind
    from deploy.backends.base import CHANGED
    from deploy.backends.loading import load_backend

    how = {"runtime": args.runtime, "precision": args.precision, "accept_changed": args.accept_changed}
    backend, metadata = load_backend(weights, device=args.device, config=config, **how)
    if metadata.is_changed:
        print(f"{program}: warning: {weights}: {CHANGED}", file=sys.stderr)
    _check_flags(args, weights, metadata)
    is_bare = artifact_kind(weights) == "checkpoint" and not metadata.weights_sha256
    if config is not None and not is_bare:
        _check_config(program, args.config or Path(DEFAULT_CONFIG), config, weights, metadata)
    if is_bare:
        means, stds = (
            ", ".join(f"{v:g}" for v in values) for values in (metadata.preprocess.mean, metadata.preprocess.std)
        )
        print(
            f"{program}: {weights} holds bare weights; taken from the config: mean {means}, std {stds}, "
            f"{metadata.num_classes} classes ({metadata.class_names[0]}, ...)",
            file=sys.stderr,
        )
    return backend, metadata


def warn_of_foreign_calibration(
    program: str, weights: Path, backend: Backend, metadata: ModelMetadata, precision: str
) -> None:
    """Print where a file's thresholds were fitted to other outputs than those that it is about to give."""
    from deploy.inference.decision import foreign_calibration

    if text := foreign_calibration(metadata, backend.name, precision):
        print(f"{program}: warning: {weights}: {text}", file=sys.stderr)


def check_flags_of_a_checkpoint(args: argparse.Namespace, weights: Path) -> None:
    """Raise InputsError where the flags contradict a checkpoint's own metadata."""
    if not (args.net or args.model or args.cls or args.size):
        return
    from artifacts.checkpoint import is_checkpoint, load_checkpoint

    if is_checkpoint(weights):  # bare weights have no metadata to contradict
        _check_flags(args, weights, load_checkpoint(weights).metadata)


def _check_flags(args: argparse.Namespace, weights: Path, metadata: ModelMetadata) -> None:
    """Raise InputsError where the flags contradict the net's own metadata."""
    height, width = metadata.preprocess.height, metadata.preprocess.width
    flags = {
        f"--net {args.net}": args.net in (None, metadata.net["name"]),
        f"--model {args.model}": args.model in (None, metadata.net["module"]),
        f"--cls {args.cls}": args.cls in (None, metadata.num_classes),
        f"--size {args.size}": args.size is None or args.size == height == width,
    }
    wrong = ", ".join(flag for flag, agrees in flags.items() if not agrees)
    if wrong:
        own = f"{metadata.net['module']}.{metadata.net['name']} with {metadata.num_classes} classes at {height}x{width}"
        raise InputsError(f"{weights}: it holds {own}, which contradicts {wrong}; leave that out, or name its file")


def _check_config(program: str, path: Path, config: Config, weights: Path, metadata: ModelMetadata) -> None:
    """Print where a config differs from the file's own metadata, which is used.

    Raises InputsError where the number of classes differs: it then is the config of another net.
    """
    from artifacts.metadata import preprocess_of

    if config.num_classes != metadata.num_classes:
        hint = "name the config that it was trained with, or --weights alone"
        raise InputsError(
            f"{weights}: it has {metadata.num_classes} classes, and {path} has num_classes {config.num_classes}; {hint}"
        )
    configured, own = preprocess_of(config), metadata.preprocess
    pairs = {
        "model_module_name": (config.model_module_name, metadata.net["module"]),
        "model_net_name": (config.model_net_name, metadata.net["name"]),
        "model_args": (config.net_args(), {key: metadata.net["args"].get(key) for key in config.net_args()}),
        "img_height": (configured.height, own.height),
        "img_width": (configured.width, own.width),
        "num_channels": (configured.channels, own.channels),
        "resize": (configured.resize, own.resize),
        "interpolation": (configured.interpolation, own.interpolation),
        "icc_profiles": (configured.icc_profiles, own.icc_profiles),
        "mean": (configured.mean, own.mean),
        "std": (configured.std, own.std),
    }
    if "icc_profiles" not in config.model_fields_set:  # the default is newer than some files
        del pairs["icc_profiles"]
    if differing := [key for key, (in_config, in_file) in pairs.items() if in_config != in_file]:
        keys = ", ".join(differing)
        print(f"{program}: {weights} has its own {keys}; the values in {path} are not used", file=sys.stderr)


def _outside(folders: Sequence[Path], paths: Iterator[str]) -> Iterator[str]:
    excluded = [folder.resolve() for folder in folders]
    parent, is_outside = "", True
    for path in paths:
        if (name := path.rpartition("/")[0]) != parent:  # paths come folder by folder
            resolved = Path(name).resolve()
            parent, is_outside = name, not any(resolved.is_relative_to(folder) for folder in excluded)
        if is_outside:
            yield path


def _current_folder(path: Path) -> str:
    return "" if path.is_absolute() else f" (current folder {Path.cwd()})"
