"""How a loop begins: its four lists with their images, its config, and the net that is served first."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from artifacts.formats import artifact_kind
from artifacts.metadata import ModelMetadata, build_metadata
from artifacts.metadata_reader import read_metadata
from common.atomic_io import write_atomic, writing
from common.formatting import counted
from configs.schema import Config
from data_loader.packs import is_pack
from data_loader.samples import Sample
from deploy.uncertainty.calibration import CalibrationTarget, least_images
from deploy.uncertainty.outputs import check_not_trained_on, config_of, labelled_samples, trained_on
from nets.net_interface import declared_task
from projects.errors import ProjectError
from projects.image_store import ImageStore
from projects.round_folder import (
    CLASSES,
    HELD_OUT,
    LABELLED,
    VALIDATION,
    Result,
    RoundFolder,
    write_list,
)
from tools.rounds.loop import CALIBRATION, CONFIG, Loop, Options
from trainers.config_checks import BOX_TASK, MASK_TASKS, training_config
from trainers.data.sample_lists import read_lists

VERSION = 1
OWN = {"images", "lists", "rounds", CONFIG}  # what a beginning that was killed leaves
DEFAULT_RISK, DEFAULT_SEED = 0.05, 0
TITLES = {
    HELD_OUT: "--held_out",
    CALIBRATION: "--calibration",
    VALIDATION: "validation list",
    LABELLED: "labelled list",
}
PATHS = ("held_out", "calibration", "weights")  # flags that the settings keep as paths


def begin(folder: RoundFolder, args: argparse.Namespace) -> Result:
    """Take in the lists with their images, write config and settings, and return the settings. Raises UserError."""
    for name in ("held_out", "calibration"):
        if getattr(args, name) is None:
            raise ProjectError(f"{folder.root}: no loop has begun there; begin one with --{name} and the others")
    others = [path.name for path in folder.root.iterdir() if path.name not in OWN and not path.name.startswith(".")]
    if others:
        raise ProjectError(f'{folder.root}: it is not empty ("{others[0]}") and holds no loop; choose another --folder')
    config = training_config(args.config, args.set)
    check_config(args.config, config)
    train, val = read_lists(config)
    names = train.class_names or tuple(map(str, range(config.num_classes)))
    metadata = build_metadata(config, names)
    given = {name: labelled_list(getattr(args, name), config, metadata, args) for name in ("held_out", "calibration")}
    lists = {HELD_OUT: given["held_out"], CALIBRATION: given["calibration"], VALIDATION: val.samples}
    lists[LABELLED] = train.samples
    net = _checked_net(args.weights, names, given, args) if args.weights else None
    images, notes = _take_in(folder, lists, metadata)
    target = CalibrationTarget(DEFAULT_RISK if args.target_risk is None else args.target_risk)
    if (count := len(images[CALIBRATION])) < (least := least_images(target)):
        raise ProjectError(
            f"{args.calibration}: {count} images are too few for a target risk of {target.target_risk:g}: at least "
            f"{least} are needed; name a longer list, or a higher --target_risk"
        )
    for name, labels in images.items():
        write_list(folder.lists / name, labels, names)
    with writing(folder.root):
        write_atomic(folder.lists / CLASSES, "".join(f"{name}\n" for name in names))
        write_atomic(folder.root / CONFIG, config_text(config))
        if net is not None:
            place = Loop(folder, {}, Options()).net_file(0)
            place.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(place, net)
    settings = {
        "version": VERSION,
        "class_names": list(names),
        "target_risk": target.target_risk,
        "seed": DEFAULT_SEED if args.seed is None else args.seed,
        "recalibrations": 0,
        **{name: resolved(getattr(args, name)) for name in PATHS},
        "counts": {name: len(labels) for name, labels in images.items()},
        "notes": notes,
    }
    folder.write_settings(settings)
    return settings


def check_same(folder: RoundFolder, settings: Result, args: argparse.Namespace) -> None:
    """Raise ProjectError where a command names something else than what the loop began with."""
    if settings.get("version") != VERSION:
        raise ProjectError(f"{folder.root}: it is of another version, {settings.get('version')}")
    hint = "leave the flag out, or choose another --folder"
    if args.set and args.config is None:
        raise ProjectError("--set changes a key of --config, which is not named")
    if args.config is not None:
        config = training_config(args.config, args.set, check_files=False)
        if config_text(config) != (folder.root / CONFIG).read_text(encoding="utf-8"):
            raise ProjectError(f"--config {args.config}: the loop in {folder.root} began with another config; {hint}")
    for name in ("target_risk", "seed", "held_out", "weights"):
        given = getattr(args, name)
        given = resolved(given) if name in PATHS and given is not None else given
        if given is not None and given != settings[name]:
            began = settings[name] or "none"
            raise ProjectError(f"--{name} {given}: the loop in {folder.root} began with {began}; {hint}")


def check_config(path: Path, config: Config) -> None:
    """Raise ProjectError for a training that a loop does not know."""
    task = declared_task(config.model_module_name, config.model_net_name)
    problem = ""
    if task in (*MASK_TASKS, BOX_TASK) or config.learns_without_labels():
        problem = "it does not train a net of one class for an image"
    elif config.next_stage:
        problem = "it has a next_stage, and a round has one training"
    elif is_pack(config.train_data_file) or is_pack(config.val_data_file):
        problem = "its images lie in packs; name lists or folders"
    elif config.has_bands():
        problem = "its images have bands, which the labelling page does not show"
    if problem:
        raise ProjectError(f"{path}: {problem}")


def config_text(config: Config) -> str:
    """Return what the config sets, as the loop keeps it."""
    values = {key: value for key, value in config.model_dump().items() if key in config.model_fields_set}
    return json.dumps(values, ensure_ascii=False, indent=2) + "\n"


def labelled_list(
    source: Path, config: Config | None, metadata: ModelMetadata, args: argparse.Namespace
) -> Sequence[Sample]:
    """Return the labelled images of a list or of class folders. Raises UncertaintyError, SamplesError, ListError."""
    return labelled_samples(source, config, metadata, args.list_root, flag="--calibrate").samples


def _take_in(
    folder: RoundFolder, lists: dict[str, Sequence[Sample]], metadata: ModelMetadata
) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Keep the images of the lists; return the class of each by list, and what was left out.

    An image of several lists stays in the first one alone: what judges a net is never trained on.
    """
    store, taken, notes = ImageStore(folder.images, metadata.preprocess), set[str](), list[str]()
    images = {}
    for name, samples in lists.items():
        found, unreadable = keep_images(store, samples, metadata.class_names, Path(TITLES[name]))
        notes += unreadable
        images[name] = {image: label for image, label in found.items() if image not in taken}
        if several := len(found) - len(images[name]):
            notes.append(f"{TITLES[name]}: {counted(several)} are in a list before it, and were left out")
        if not images[name]:
            why = f"; the first: {unreadable[0]}" if unreadable else ", all are in a list before it"
            raise ProjectError(f"{TITLES[name]}: no image is left{why}")
        taken |= set(found)
    return images, notes


def keep_images(
    store: ImageStore, samples: Iterable[Sample], class_names: Sequence[str], origin: Path
) -> tuple[dict[str, str], list[str]]:
    """Keep images; return the class of each, and what cannot be read. Raises ProjectError for two classes of one."""
    labels = {sample.path: class_names[sample.label] for sample in samples}
    names, unreadable = store.add_all(labels)
    classes: dict[str, str] = {}
    first: dict[str, str] = {}
    for path, image in names.items():
        if classes.setdefault(image, labels[path]) != labels[path]:
            both = f'"{classes[image]}" and "{labels[path]}"'
            raise ProjectError(f"{origin}: {first[image]} and {path} are one image, with the labels {both}; correct it")
        first.setdefault(image, path)
    return classes, unreadable


def _checked_net(
    weights: Path, names: Sequence[str], given: dict[str, Sequence[Sample]], args: argparse.Namespace
) -> bytes:
    """Return the bytes of the checkpoint that is served first. Raises UserError."""
    if artifact_kind(weights) != "checkpoint":
        raise ProjectError(f"{weights}: the loop goes on training, so it needs a checkpoint of train.py")
    metadata = read_metadata(weights)
    if metadata.output != "logits" or not metadata.weights_sha256:
        raise ProjectError(f"{weights}: the loop needs a classifier's checkpoint of train.py")
    if set(metadata.class_names) != set(names):
        raise ProjectError(f"{weights}: its classes are not those of {args.config}")
    trained = trained_on(config_of(weights), metadata) or frozenset()
    for name, samples in given.items():
        check_not_trained_on(samples, getattr(args, name), trained)
    return weights.read_bytes()


def resolved(path: Path | None) -> str:
    """Return a path as the settings keep it, "" for none."""
    return str(path.resolve()) if path else ""
