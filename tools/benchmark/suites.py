"""The kinds of measurement: their sides and the arguments of each."""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from common.errors import BenchmarkError
from configs.schema import Config
from nets.linknet_module import BACKBONES
from tools.benchmark.peer_env import peer_python, peer_versions
from tools.benchmark.runners import CallSide, ProcessSide, Side, started
from tools.benchmark.statistics import Measured, measure
from tools.benchmark.streaming import served_shards
from trainers.config_checks import training_config

Starter = Callable[[], Side]
IMAGES_A_SECOND = "images/s"
OURS = "tools.benchmark.own_runner"
CROPS = {"data_aug": True, "color_jitter": [0.0] * 4, "random_grayscale": 0.0, "gaussian_blur": 0.0}
TIMM_WORKERS, TIMM_BATCH = 4, 256  # the defaults of its train.py, and of its inference.py, which has 2 workers
TIMM_BEST = "timm, bf16"  # --amp --amp-dtype bfloat16 --channels-last


def train(args: argparse.Namespace) -> list[Measured]:
    """Train, an epoch per round: ours by its config, timm with its default flags and with its fastest.

    Where the config names a teacher, timm's logit distillation has one of the same kind.
    """
    with _images_of(args) as place:
        configs = {"train.py": _config(args, place)}
        for variant in args.variant:
            name, _, keys = variant.partition(":")
            configs[f"train.py, {name}"] = _config(args, place, keys.split(",") if keys else [])
        config = configs["train.py"]
        starters = [_ours(name, "train", own) for name, own in configs.items()]
        bases = []
        if "timm" in args.against:
            python = peer_python(args.peers)
            common = _timm_arguments("train", config, config.train_data_root_dir, config.batch_size)
            common += [part for path in config.distill_from for part in ("--teacher", _model_type_in(path))]
            flags = {
                "timm, default flags": ("--workers", TIMM_WORKERS),
                TIMM_BEST: ("--workers", TIMM_WORKERS, "--amp"),
                f"{TIMM_BEST}, 2 workers": ("--workers", 2, "--amp"),
            }
            bases = list(flags)
            for name, more in flags.items():
                starters.append(partial(ProcessSide, name, "tools.benchmark.peers.timm", [*common, *more], python))
        return [_measured("training", IMAGES_A_SECOND, starters, bases, args.rounds)]


def load(args: argparse.Namespace) -> list[Measured]:
    """Read images, an epoch per round: later ones, and the first with the loader's start."""
    plain = f"ImageFolder + DataLoader, {args.workers} workers"
    with _images_of(args) as place:
        config = _config(args, place)
        changes: dict[str, dict[str, Any]] = {"crop": CROPS, "config": {}, "none": {"data_aug": False}}
        config = _changed(config, {**changes[args.augment], "dataloader_workers": args.workers, "data_cache": "none"})
        few = Path(place, "few")  # for validation, which is not measured
        link_images(Path(config.train_data_root_dir), config.num_classes, few)
        config = _changed(config, {"val_data_root_dir": str(few)})
        on_cpu = _changed(config, {"augment_on": "cpu"})
        cached = _changed(config, {"augment_on": "device", "data_cache": "ram"})
        sets = []
        for title, what, flags in (("later epochs", "load", ()), ("first epoch", "first_load", ("--first",))):
            peer = ["--config", _json_of(config), "--workers", args.workers, *flags]
            starters: list[Starter] = [
                partial(ProcessSide, plain, "tools.benchmark.peers.imagefolder", peer),
                _ours("data_cache none", what, on_cpu),
                _ours("data_cache ram, augment_on device", what, cached),
            ]
            sets.append(_measured(title, IMAGES_A_SECOND, starters, [plain], args.rounds))
        return sets


def stream(args: argparse.Namespace) -> list[Measured]:
    """Read images from shards behind HTTP, an epoch per round, beside webdataset's loader of the same images."""
    peer = f"webdataset, {args.workers} workers"
    with _images_of(args) as place:
        config = _changed(_config(args, place), {**CROPS, "augment_on": "cpu", "data_cache": "none"})
        few = Path(place, "few")  # for validation, which is not measured
        link_images(Path(config.train_data_root_dir), config.num_classes, few)
        python = peer_python(args.peers)
        with served_shards(config, Path(place, "shards"), copies=args.copies, num=args.num) as (pack, urls):
            own = {"train_data_file": pack, "streamed_shards": args.shards, "data_cache_dir": f"{place}/cache"}
            config = _changed(config, {"val_data_root_dir": str(few), "dataloader_workers": args.workers})
            streamed = _changed(config, own)
            given = ["--config", _json_of(config), "--urls", json.dumps(urls), "--workers", args.workers]
            starters: list[Starter] = [
                partial(ProcessSide, peer, "tools.benchmark.peers.webdataset", given, python),
                _ours("streamed", "stream", streamed),
                _ours("streamed, fast_decode off", "stream", _changed(streamed, {"fast_decode": "off"})),
            ]
            title = f"{len(urls)} shards of {args.num} images over HTTP, {args.shards} on the disk"
            return [_measured(title, IMAGES_A_SECOND, starters, [peer], args.rounds)]


def simsiam(args: argparse.Namespace) -> list[Measured]:
    """Train SimSiam, an epoch of some images per round, with the same net and augmentation as lightly's loop."""
    with _images_of(args) as place:
        config = _config(args, place)
        sizes = {"projector_size": 2048, "predictor_size": 512, **config.net_args(), "projector_layers": 3}
        net = {"model_args": {**sizes, "stem": args.stem}, "model_type": "resnet18", "batch_size": args.batch_size}
        config = _changed(config, {**net, "learning_rate_batch": 0, "next_stage": {}})
        starters = [_ours("train.py", "train", config)]
        python = peer_python(args.peers)
        peer = ["--config", _json_of(config)]
        flags = {"lightly's loop, bf16": (), "lightly's loop, bf16, channels_last": ("--channels_last",)}
        for name, more in flags.items():
            starters.append(partial(ProcessSide, name, "tools.benchmark.peers.lightly", [*peer, *more], python))
        title = f"SimSiam, {args.stem} stem, batch {args.batch_size}"
        return [_measured(title, IMAGES_A_SECOND, starters, list(flags), args.rounds)]


def masks(args: argparse.Namespace) -> list[Measured]:
    """Train a LinkNet, an epoch per round, or with `--fit` whole trainings; smp's beside it in a plain loop."""
    config = training_config(args.config, args.set)
    if config.model_net_name not in BACKBONES:
        raise BenchmarkError(f"{config.model_net_name}: smp's side has the encoders of {', '.join(BACKBONES)} alone")
    python, peer = peer_python(args.peers), ["--config", _json_of(config), *(["--fit"] if args.fit else [])]
    flags = {"fp32": ("smp, fp32", []), "bf16": ("smp, bf16, channels_last", ["--bf16"])}
    peers = {name: [*peer, *more] for name, more in (flags[choice] for choice in args.against)}
    starters = [_ours("train.py", "fit" if args.fit else "train", config)]
    starters += [partial(ProcessSide, name, "tools.benchmark.peers.smp", own, python) for name, own in peers.items()]
    with started(starters) as sides:
        if args.fit:
            title = f"{config.num_epochs} epochs, a seed a round"
            return [measure(title, "mean IoU, %", sides, list(peers), args.rounds, warmups=0)]
        return [measure("training", IMAGES_A_SECOND, sides, list(peers), args.rounds)]


def infer(args: argparse.Namespace) -> list[Measured]:
    """Infer batches of random numbers by every export, and a folder from JPEG to CSV beside timm's script."""
    if not (args.artefacts or args.images):
        raise BenchmarkError("name --artefacts DIR (exports, for batches), --images DIR (a folder), or both")
    sets = []
    if args.artefacts:
        from tools.benchmark.micro import inference_contenders

        sets.append(_contest("batches", inference_contenders(args.weights, args.artefacts), args))
    if args.images:
        sets.append(_folder(args))
    return sets


def pim(args: argparse.Namespace) -> list[Measured]:
    """Run PIM's training step and its inference, with selection per sample and batched."""
    from tools.benchmark.micro import pim_contenders

    sets = pim_contenders(args.model_type, args.size, args.batch)
    return [_contest(title, contenders, args) for title, contenders in sets.items()]


def serve(args: argparse.Namespace) -> list[Measured]:
    """Measure the service under load, the same without batching, and litserve's."""
    from tools.benchmark.serve_runner import ServiceSide

    weights = str(args.weights.resolve())
    side = partial(ServiceSide, clients=args.clients, seconds=args.seconds)
    own = [sys.executable, "-m", "deploy.service", "--weights", weights, "--service_port", "{port}"]
    starters: list[Starter] = [partial(side, "deploy.service", own, "/readyz")]
    bases = []
    if "unbatched" in args.against:
        bases.append("no batching")
        starters.append(partial(side, bases[-1], [*own, "--no_batching"], "/readyz"))
    if "litserve" in args.against:
        peer = [peer_python(args.peers), "-m", "tools.benchmark.peers.litserve", "--weights", weights]
        peer += ["--port", "{port}"]
        for size, workers in ((8, 1), (32, 1), (8, 2)):
            bases.append(f"litserve {size}" + (f", {workers} workers" if workers > 1 else ""))
            flags = ["--batch_size", str(size), "--workers", str(workers)]
            starters.append(partial(side, bases[-1], [*peer, *flags], "/health"))
    measured = _measured(f"{args.clients} clients, {args.seconds:g} s", "requests/s", starters, bases, args.rounds)
    if "litserve" in args.against:
        measured.versions.update(peer_versions(peer_python(args.peers), "litserve"))
    return [measured]


def probe(args: argparse.Namespace) -> list[Measured]:
    """Fit a linear probe on stored features, and with the backbone run in each epoch."""
    from tools.benchmark.micro import PROBE_BASE, probe_contenders

    plays = probe_contenders(args.model_type, args.size, args.pictures)
    starters: list[Starter] = [partial(CallSide, name, play) for name, play in plays.items()]
    return [_measured(f"{args.pictures} images, {args.size} px", "probes/h", starters, [PROBE_BASE], args.rounds)]


KINDS: Mapping[str, Callable[[argparse.Namespace], list[Measured]]] = {
    kind.__name__: kind for kind in (train, load, stream, infer, pim, serve, simsiam, probe, masks)
}


def link_images(root: Path, count: int, place: Path) -> None:
    """Link `count` images of class folders into class folders at `place`, the first of each class by name."""
    folders = sorted(folder for folder in root.iterdir() if folder.is_dir())
    if not folders:
        raise BenchmarkError(f"{root}: no class folders in it, which the peers need")
    shares = [count // len(folders) + (number < count % len(folders)) for number in range(len(folders))]
    for folder, share in zip(folders, shares, strict=True):
        (place / folder.name).mkdir(parents=True)
        files = sorted(file for file in folder.iterdir() if file.is_file())
        for file in itertools.islice(files, share):
            (place / folder.name / file.name).symlink_to(file.resolve())


@contextmanager
def _images_of(args: argparse.Namespace) -> Iterator[str]:
    """Yield a temporary folder, with links to some training images where --pictures limits them."""
    config = training_config(args.config, args.set)
    if config.train_data_file:
        raise BenchmarkError(f"{args.config}: train_data_file is set; the peers read class folders")
    with tempfile.TemporaryDirectory() as place:
        if args.pictures:
            link_images(Path(config.train_data_root_dir), args.pictures, Path(place, "train"))
        yield place


def _config(args: argparse.Namespace, place: str, overrides: Sequence[str] = ()) -> Config:
    config = training_config(args.config, [*args.set, *overrides])
    root = Path(place, "train") if args.pictures else Path(config.train_data_root_dir).resolve()
    return _changed(config, {"train_data_root_dir": str(root)})


def _changed(config: Config, values: Mapping[str, Any]) -> Config:
    return Config.model_validate({**config.model_dump(), **values})


def _json_of(config: Config) -> str:
    return json.dumps(config.model_dump())


def _ours(name: str, what: str, config: Config) -> Starter:
    return partial(ProcessSide, name, OURS, [what, "--config", _json_of(config)])


def _timm_arguments(what: str, config: Config, data: str, batch_size: int) -> list[object]:
    model = str(config.net_args().get("model_type", "resnet34"))
    common: list[object] = [what, "--data", data, "--model", model, "--num_classes", config.num_classes]
    return [*common, "--size", config.img_height, "--batch_size", batch_size]


def _model_type_in(weights: str) -> str:
    """Return the `model_type` of a checkpoint's net. Raises CheckpointError."""
    from artifacts.checkpoint import load_checkpoint

    return str(load_checkpoint(weights).metadata.net_arguments()["model_args"].get("model_type", "resnet34"))


def _folder(args: argparse.Namespace) -> Measured:
    from artifacts.checkpoint import load_checkpoint

    images = str(args.images.resolve())
    ways = [(args.weights, "auto"), (args.weights, "bf16")]
    if args.artefacts:
        exported = [("model.onnx", "auto"), ("model.onnx", "bf16"), ("model.int8.onnx", "auto")]
        ways += [(args.artefacts / name, precision) for name, precision in exported]
    starters: list[Starter] = []
    for file, precision in ways:
        if file.is_file():
            name = f"inference.py, {file.name}" + (", bf16" if precision == "bf16" else "")
            own = ["folder", "--weights", file.resolve(), "--images", images, "--batch_size", args.batch]
            starters.append(partial(ProcessSide, name, OURS, [*own, "--precision", precision]))
    config = Config.model_validate(load_checkpoint(args.weights).config)
    peer = [*_timm_arguments("folder", config, images, TIMM_BATCH), "--workers", 2]
    names = {"timm, default flags": (), TIMM_BEST: ("--amp",)}
    python = peer_python(args.peers)
    for name, flags in names.items():
        starters.append(partial(ProcessSide, name, "tools.benchmark.peers.timm", [*peer, *flags], python))
    return _measured("a folder, JPEG to CSV", IMAGES_A_SECOND, starters, list(names), args.rounds)


def _contest(title: str, contenders: Any, args: argparse.Namespace) -> Measured:
    """Measure inference of batches in this process; the others are compared with the first."""
    from tools.benchmark.micro import batch_round

    starters: list[Starter] = [
        partial(CallSide, name, partial(batch_round, forward, (args.batch, *shape), args.seconds, args.seed))
        for name, (forward, shape) in contenders.items()
    ]
    return _measured(f"{title}, batch {args.batch}", IMAGES_A_SECOND, starters, [next(iter(contenders))], args.rounds)


def _measured(title: str, unit: str, starters: Sequence[Starter], against: Sequence[str], rounds: int) -> Measured:
    with started(starters) as sides:
        return measure(title, unit, sides, against, rounds)
