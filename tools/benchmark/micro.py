"""The sides of `tools.benchmark` that run in its own process: functions of a batch, by set and name."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from common.errors import BenchmarkError
from nets.pim_module import PIM
from tools.benchmark.protocol import RATE, Round
from trainers.tasks.pim import PimLossWeights, PimTask

Forward = Callable[[np.ndarray], object]
Contenders = dict[str, tuple[Forward, tuple[int, ...]]]  # with the shape of one image; the first is the base
BASE = "torch eager fp32"
CUB_CLASSES = 200
PROBE_BASE, PROBE_CLASSES, BATCH = "backbone run in each epoch", 10, 256


class PerSamplePim(PIM):
    """PIM that selects one sample after the other, as a straightforward selector does."""

    def select(
        self, logits: torch.Tensor, features: torch.Tensor, count: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Select as PIM does, with all positions ranked."""
        ranked, tokens, orders = [], [], []
        for sample in range(logits.shape[0]):
            confidence = logits[sample].float().softmax(dim=1).amax(dim=1)  # (S,)
            order = confidence.argsort(descending=True)
            ranked.append(torch.cat([logits[sample, order[:count]], logits[sample, order[count:]]]))
            tokens.append(features[sample, order[:count]])
            orders.append(order)
        return torch.stack(ranked), torch.stack(tokens), torch.stack(orders)


def batch_round(forward: Forward, shape: tuple[int, ...], seconds: float, seed: int) -> Round:
    """Run batches of random numbers (N, C, H, W) for `seconds`, after two for warm-up; return images per second."""
    images = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.compile's own
        for _ in range(2):  # the previous side has filled the caches
            forward(images)
    started, count = time.perf_counter(), 0
    while (spent := time.perf_counter() - started) < seconds:
        forward(images)
        count += shape[0]
    return {RATE: count / spent}


def probe_contenders(model_type: str, size: int, count: int) -> dict[str, Callable[[], Round]]:
    """Return rounds of a probe of 90 epochs, on stored features and with the backbone run in each, in probes per hour.

    Both use `count` images of random numbers in memory. Of the second one epoch is run, and its time counted 90 times.
    Raises NetError.
    """
    from nets.simsiam_module import SimSiam
    from trainers.evaluation.feature_probes import PROBE_EPOCHS, PROBE_RATE, embed, fit_probe

    torch.manual_seed(0)
    net = SimSiam(model_type, 3, size, size).eval()
    images = torch.randn(count, 3, size, size)
    labels = torch.arange(count) % PROBE_CLASSES
    parts = torch.arange(count).split(BATCH)
    layer = torch.nn.Linear(net(images[:1]).shape[1], PROBE_CLASSES)
    optimizer = torch.optim.SGD(layer.parameters(), lr=PROBE_RATE, momentum=0.9)

    def on_features() -> None:
        embedded = embed(net, ({"image": images[part], "target": labels[part], "index": part} for part in parts))
        fit_probe(embedded, PROBE_CLASSES, seed=0)

    def one_epoch() -> None:
        for part in parts:
            with torch.no_grad():
                features = net(images[part])
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(layer(features), labels[part]).backward()
            optimizer.step()

    return {"features kept": lambda: _per_hour(on_features, 1), PROBE_BASE: lambda: _per_hour(one_epoch, PROBE_EPOCHS)}


def _per_hour(work: Callable[[], None], times: int) -> Round:
    started = time.perf_counter()
    work()
    return {RATE: 3600 / (times * (time.perf_counter() - started))}


def pim_contenders(model_type: str, size: int, batch: int) -> dict[str, Contenders]:
    """Return a training step and inference of PIM with 200 classes, per sample and batched. Raises NetError."""
    sets: dict[str, Contenders] = {"training step": {}, "inference": {}}
    labels = torch.arange(batch) % CUB_CLASSES
    for name, kind in (("a loop over samples", PerSamplePim), ("batched topk and gather", PIM)):
        torch.manual_seed(0)
        net = kind(model_type, CUB_CLASSES, 3, size, size)
        trained = kind(model_type, CUB_CLASSES, 3, size, size)
        sets["training step"][name] = _training_step(PimTask(trained, PimLossWeights()), labels), (3, size, size)
        sets["inference"][name] = _torch_forward(net.eval(), half=False), (3, size, size)
    return sets


def _training_step(task: PimTask, labels: torch.Tensor) -> Forward:
    optimizer = torch.optim.SGD(task.parameters(), lr=1e-4, momentum=0.9, fused=True)
    generator = np.random.default_rng(0)

    def step(images: np.ndarray) -> object:
        optimizer.zero_grad()
        loss = task({"image": torch.from_numpy(images), "target": labels}, generator)["loss"]
        loss.backward()
        optimizer.step()
        return loss

    return step


def inference_contenders(weights: Path, artefacts: Path) -> Contenders:
    """Return the inference of a batch by the checkpoint in torch and by its exports, with the shape of one image.

    Raises UserError.
    """
    from artifacts.checkpoint import load_checkpoint
    from deploy.backends.loading import load_backend
    from nets.net_interface import build_net
    from nets.support.pretrained import load_start_weights

    checkpoint = load_checkpoint(weights)
    metadata, prepared = checkpoint.metadata, checkpoint.metadata.preprocess
    shape = (prepared.channels, prepared.height, prepared.width)

    def net() -> torch.nn.Module:
        made = build_net(
            metadata.net["module"],
            metadata.net["name"],
            num_classes=metadata.num_classes,
            num_channels=prepared.channels,
            img_height=prepared.height,
            img_width=prepared.width,
            model_args=metadata.net["args"],
        )
        load_start_weights(made, checkpoint.deployed(), new_head=False)
        return made.eval()

    half_net = net().bfloat16().to(memory_format=torch.channels_last)
    found: dict[str, Forward] = {
        BASE: _torch_forward(net(), half=False),
        "torch eager bf16 channels_last": _torch_forward(half_net, half=True),
        "torch compiled bf16 channels_last": _torch_forward(torch.compile(half_net), half=True),
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
            if own.weights_sha256 != metadata.weights_sha256 or own.input != "float32 NCHW":
                raise BenchmarkError(f"{artefacts / file}: it is not the export of {weights} with float32 input")
    return {name: (forward, shape) for name, forward in found.items()}


def _torch_forward(net: Callable[[torch.Tensor], torch.Tensor], *, half: bool) -> Forward:
    def forward(images: np.ndarray) -> object:
        with torch.inference_mode():
            batch = torch.from_numpy(images)
            batch = batch.bfloat16().contiguous(memory_format=torch.channels_last) if half else batch
            return net(batch).float().numpy()

    return forward
