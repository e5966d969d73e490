"""The flags of `python -m tools.benchmark`."""

from __future__ import annotations

import argparse
from pathlib import Path

from tools.benchmark.peer_env import DEFAULT_PEERS

FLOWERS, CIFAR = "configs/flowers_config.json", "configs/simsiam_cifar10_config.json"
DUBAI = "configs/segmentation_config.json"
DESCRIPTION = """\
Measure this program beside others, in one run: every side does one round, then
every side the next, so that changes of the machine's load affect all of them."""


def make_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.benchmark",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--make_peers",
        metavar="DIR",
        type=Path,
        help=f"make the peers' environment (by default it is expected in {DEFAULT_PEERS})",
    )
    parser.add_argument(
        "--check_peers",
        action="store_true",
        help="fail where a pinned peer is 60 days behind its newest release on PyPI",
    )
    commands = parser.add_subparsers(dest="command", metavar="KIND")
    _add_training(commands)
    _add_inference(commands)
    _add_service_and_probe(commands)
    page = commands.add_parser("page", help="write reports into docs/benchmarks.md", allow_abbrev=False)
    page.add_argument("reports", metavar="JSON", type=Path, nargs="+", help="files that --json has written, in order")
    return parser


def _add_training(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    train = _kind(commands, "train", "an epoch of training", ("timm",))
    _add_config(train, FLOWERS)
    train.add_argument(
        "--variant",
        metavar="NAME:KEY=VALUE,...",
        action="append",
        default=[],
        help="another side of ours, with other keys; repeatable",
    )
    load = _kind(commands, "load", "an epoch of reading images, the first and the later ones", ("imagefolder",))
    _add_config(load, FLOWERS)
    load.add_argument(
        "--augment",
        choices=("crop", "config", "none"),
        default="crop",
        help="random crops and flips (default), all of the config's augmentation, or nothing",
    )
    load.add_argument("--workers", metavar="N", type=int, default=2, help="loader processes of both (default 2)")
    stream = _kind(commands, "stream", "an epoch of reading shards over HTTP", ("webdataset",))
    _add_config(stream, FLOWERS)
    stream.add_argument("--copies", metavar="N", type=int, default=4, help="of each image (default 4)")
    stream.add_argument("--num", metavar="N", type=int, default=250, help="images a shard (default 250)")
    stream.add_argument("--shards", metavar="N", type=int, default=8, help="of ours on the disk (default 8)")
    stream.add_argument("--workers", metavar="N", type=int, default=2, help="loader processes of both (default 2)")
    simsiam = _kind(commands, "simsiam", "steps of SimSiam", ("lightly",))
    _add_config(simsiam, CIFAR, images=2048)
    simsiam.add_argument("--batch_size", metavar="N", type=int, default=256, help="default 256")
    simsiam.add_argument(
        "--stem",
        choices=("imagenet", "small"),
        default="imagenet",
        help="of both nets: that of lightly's example (default), or a ResNet's for CIFAR",
    )
    masks = _kind(commands, "masks", "an epoch of a LinkNet's training beside smp's", ("fp32", "bf16"))
    masks.add_argument("--config", metavar="F", type=Path, default=Path(DUBAI), help=f"default {DUBAI}")
    masks.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="replace a key of the config")
    masks.add_argument("--fit", action="store_true", help="whole trainings, a seed a round, compared by mean IoU")


def _add_inference(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    infer = _kind(commands, "infer", "a checkpoint and its exports: batches of numbers, or a folder", ("timm",))
    infer.add_argument("--weights", metavar="F", type=Path, required=True, help="a checkpoint")
    infer.add_argument("--artefacts", metavar="DIR", type=Path, help="where its exports are")
    infer.add_argument("--images", metavar="DIR", type=Path, help="a folder of class folders with JPEGs to classify")
    _add_batches(infer, 32)
    pim = _kind(commands, "pim", "PIM's selection against one sample after the other", ())
    pim.add_argument("--model_type", metavar="NAME", default="resnet18", help="backbone (default resnet18)")
    pim.add_argument("--size", metavar="PX", type=int, default=224, help="input size (default 224)")
    _add_batches(pim, 16)


def _add_service_and_probe(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    serve = _kind(commands, "serve", "the HTTP service under load", ("unbatched", "litserve"))
    serve.add_argument("--weights", metavar="F", type=Path, required=True, help="a checkpoint, or any export of it")
    serve.add_argument("--clients", metavar="N", type=int, default=32, help="at once (default 32)")
    serve.add_argument("--seconds", metavar="S", type=float, default=60.0, help="of a round (default 60)")
    probe = _kind(commands, "probe", "a linear probe of 90 epochs on kept features", ("backbone",))
    probe.add_argument("--model_type", metavar="NAME", default="resnet18", help="backbone (default resnet18)")
    probe.add_argument("--size", metavar="PX", type=int, default=64, help="input size (default 64)")
    probe.add_argument("--pictures", metavar="N", type=int, default=1000, help="default 1000")


def _kind(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, text: str, peers: tuple[str, ...]
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=f"Measure {text}.", allow_abbrev=False)
    if peers:
        parser.add_argument(
            "--against", choices=peers, nargs="+", default=list(peers), help=f"default {' and '.join(peers)}"
        )
    parser.add_argument("--rounds", metavar="N", type=int, default=7, help="of all sides in turn (default 7)")
    parser.add_argument("--json", metavar="F", type=Path, help="also write the figures, round by round")
    parser.add_argument(
        "--peers", metavar="DIR", type=Path, default=Path(DEFAULT_PEERS), help=f"their environment ({DEFAULT_PEERS})"
    )
    return parser


def _add_config(parser: argparse.ArgumentParser, default: str, images: int = 0) -> None:
    parser.add_argument("--config", metavar="F", type=Path, default=Path(default), help=f"default {default}")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="replace a key of the config")
    text = f"of the training set, evenly from its classes (default {images or 'all'})"
    parser.add_argument("--pictures", metavar="N", type=int, default=images, help=text)


def _add_batches(parser: argparse.ArgumentParser, batch: int) -> None:
    parser.add_argument("--batch", metavar="N", type=int, default=batch, help=f"images at once (default {batch})")
    parser.add_argument("--seconds", metavar="S", type=float, default=2.0, help="of a round of batches (default 2)")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of the batches (default 0)")
