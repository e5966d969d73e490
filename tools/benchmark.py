"""Measure, side by side in one run: `python -m tools.benchmark infer --weights W --artefacts D`.

Every contender runs a round, then every one the next: what the machine does in the meantime hits all alike.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

BASE = "torch eager fp32"
Answer = Callable[[np.ndarray], object]


class BenchmarkError(ValueError):
    """A measurement that cannot be made; the message is one sentence for the user."""


@dataclass(frozen=True)
class Figure:
    """One contender: images/s by round, their median and range, and the median of the ratios to the base by round."""

    name: str
    images_per_s: float
    low: float
    high: float
    ratio: float
    rounds: list[float]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; exit code 2 for a mistake of the user's."""
    args = _parser().parse_args(argv)
    try:
        contenders = inference_contenders(args.weights, args.artefacts)
        figures = measure(contenders, args.batch, args.rounds, args.seconds, args.seed)
        print(table(figures, args.batch))
        if args.json:
            report = {"batch": args.batch, **surroundings(), "figures": [asdict(figure) for figure in figures]}
            args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    except (ValueError, OSError) as error:
        print(f"tools.benchmark: {error}", file=sys.stderr)
        return 2
    return 0


def inference_contenders(weights: Path, artefacts: Path) -> dict[str, tuple[Answer, tuple[int, ...]]]:
    """Give by name what answers a batch, with the shape of one picture: the checkpoint in torch, and its exports.

    Raises ValueError.
    """
    import torch

    from artifacts.checkpoint import load_checkpoint
    from deploy.backends import load_backend
    from nets.net_interface import build_net
    from nets.start_weights import load_start_weights

    checkpoint = load_checkpoint(weights)
    facts, prepared = checkpoint.facts, checkpoint.facts.preprocess
    shape = (prepared.channels, prepared.height, prepared.width)

    def net() -> torch.nn.Module:
        made = build_net(
            facts.net["module"], facts.net["name"], num_classes=facts.num_classes, num_channels=prepared.channels,
            img_height=prepared.height, img_width=prepared.width, model_args=facts.net["args"],
        )  # fmt: skip
        load_start_weights(made, checkpoint.deployed(), new_head=False)
        return made.eval()

    def torch_answer(made: Callable[[torch.Tensor], torch.Tensor], half: bool) -> Answer:
        def answer(images: np.ndarray) -> object:
            with torch.inference_mode():
                batch = torch.from_numpy(images)
                batch = batch.bfloat16().contiguous(memory_format=torch.channels_last) if half else batch
                return made(batch).float().numpy()

        return answer

    half_net = net().bfloat16().to(memory_format=torch.channels_last)
    found: dict[str, Answer] = {
        BASE: torch_answer(net(), False),
        "torch eager bf16 channels_last": torch_answer(half_net, True),
        "torch compiled bf16 channels_last": torch_answer(torch.compile(half_net), True),
    }
    exported: list[tuple[str, str, dict[str, str]]] = [
        ("TorchScript", "model.pt", {}),
        ("torch.export", "model.pt2", {}),
        ("onnxruntime fp32", "model.onnx", {"runtime": "onnxruntime"}),
        ("onnxruntime int8", "model.int8.onnx", {"runtime": "onnxruntime"}),
        ("openvino fp32", "model.onnx", {"runtime": "openvino"}),
        ("openvino bf16", "model.onnx", {"runtime": "openvino", "precision": "bf16"}),
        ("openvino int8", "model.int8.onnx", {"runtime": "openvino"}),
        ("openvino int8, rest bf16", "model.int8.onnx", {"runtime": "openvino", "precision": "bf16"}),
    ]
    for name, file, options in exported:
        if (artefacts / file).is_file():
            found[name], own = load_backend(artefacts / file, device="cpu", **options)  # type: ignore[arg-type]
            if own.weights_sha256 != facts.weights_sha256 or own.input != "float32 NCHW":
                raise BenchmarkError(f"{artefacts / file}: it is not the export of {weights} with float32 input")
    return {name: (answer, shape) for name, answer in found.items()}


def measure(
    contenders: dict[str, tuple[Answer, tuple[int, ...]]], batch: int, rounds: int, seconds: float, seed: int
) -> list[Figure]:
    """Run every contender for `seconds` a round, in turn, after a warm-up of three batches."""
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    generator = np.random.default_rng(seed)
    for answer, shape in contenders.values():
        images = generator.standard_normal((batch, *shape), dtype=np.float32)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch.compile's about itself
            for _ in range(3):
                answer(images)
    for _ in range(rounds):
        for name, (answer, shape) in contenders.items():
            images = generator.standard_normal((batch, *shape), dtype=np.float32)
            answer(images)  # the caches are the neighbour's
            started, count = time.perf_counter(), 0
            while time.perf_counter() - started < seconds:
                answer(images)
                count += batch
            rates[name].append(count / (time.perf_counter() - started))
    return [
        Figure(
            name,
            statistics.median(own),
            min(own),
            max(own),
            statistics.median(rate / base for rate, base in zip(own, rates[BASE], strict=True)),
            own,
        )
        for name, own in rates.items()
    ]


def table(figures: Sequence[Figure], batch: int) -> str:
    """Write the figures as a table of Markdown."""
    around = surroundings()
    lines = [
        f"batch {batch}, {around['threads']} threads, {around['cpu']}; {around['versions']}; commit {around['commit']}",
        "",
        "| contender | images/s | lowest | highest | ratio |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for figure in figures:
        rates = " | ".join(f"{rate:.0f}" for rate in (figure.images_per_s, figure.low, figure.high))
        lines.append(f"| {figure.name} | {rates} | {figure.ratio:.2f} |")
    return "\n".join(lines)


def surroundings() -> dict[str, object]:
    """Give hardware, threads, versions and commit."""
    import onnxruntime
    import openvino
    import torch

    cpu = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = info.read_text(encoding="utf-8").splitlines()
        cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), cpu)
        flags = next((line.split() for line in lines if line.startswith("flags")), [])
        extras = [flag for flag in ("amx_bf16", "amx_int8", "avx512_bf16", "avx512_vnni") if flag in flags]
        cpu = f"{cpu} ({', '.join(extras)})" if extras else cpu
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True).stdout.strip()
    versions = f"torch {torch.__version__}, onnxruntime {onnxruntime.__version__}, openvino {openvino.__version__[:8]}"
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "versions": versions,
        "commit": commit or "unknown",
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.benchmark", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    infer = commands.add_parser("infer", help="a checkpoint and its exports on this machine's CPU", allow_abbrev=False)
    infer.add_argument("--weights", metavar="F", type=Path, required=True, help="a checkpoint")
    infer.add_argument("--artefacts", metavar="DIR", type=Path, required=True, help="where its exports are")
    infer.add_argument("--batch", metavar="N", type=int, default=32, help="pictures at once (default 32)")
    infer.add_argument("--rounds", metavar="N", type=int, default=7, help="rounds of all in turn (default 7)")
    infer.add_argument("--seconds", metavar="S", type=float, default=2.0, help="of a contender's round (default 2)")
    infer.add_argument("--seed", metavar="N", type=int, default=0, help="of the input (default 0)")
    infer.add_argument("--json", metavar="F", type=Path, help="write the figures, round by round, as well")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
