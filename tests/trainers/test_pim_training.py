"""PIM's task: its loss terms against loops, golden losses, the head that validation declares, resuming, finetuning."""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional

import inference
import train
from artifacts.checkpoint import Checkpoint, load_checkpoint, save_checkpoint, weights_sha256
from artifacts.metadata import ModelMetadata, build_metadata
from configs.loading import process_config
from configs.schema import Config
from data_loader.augment import BatchMixer
from data_loader.preprocess import Preprocess
from data_loader.samples import Sample, SampleList
from deploy.backends.loading import load_backend
from nets.pim_module import HEADS, PIM, PimOutputs
from nets.support.errors import NetError
from nets.support.pretrained import load_start_weights, published_state_dict
from tests.helpers.breaking import dying_after_save
from trainers import builder
from trainers.data.reading import read_data
from trainers.runtime.distributed import World
from trainers.tasks.base import Setup
from trainers.tasks.pim import PimLossWeights, PimTask

pytestmark = pytest.mark.usefixtures("one_thread")

ConfigMaker = Callable[..., Path]
PIM_NET: dict[str, Any] = {
    "model_module_name": "pim_module", "model_net_name": "PIM",
    "model_args": {"model_type": "resnet18", "fpn_size": 16}, "img_height": 64, "img_width": 64, "batch_size": 7,
    "learning_rate": 0.001,
}  # fmt: skip
TERMS = ("stages_loss", "selected_loss", "dropped_loss", "combiner_loss")


def small_net(num_classes: int = 3, side: int = 64, **args: Any) -> PIM:
    return PIM("resnet18", num_classes, 3, side, side, **{"fpn_size": 16, **args})


def run_train(config: Path, *args: str) -> int:
    return train.main(["--config", str(config), *args])


# --- the loss


def made_up(*, with_combiner: bool = True, dropped: tuple[int, ...] = (5, 3, 2, 0)) -> PimOutputs:
    """Return outputs of four images and three classes, each entry its own random tensor."""
    counts = (4, 3, 2, 1)
    return PimOutputs(
        stage_logits=tuple(torch.randn(4, k + d, 3, requires_grad=True) for k, d in zip(counts, dropped, strict=True)),
        selected_logits=tuple(torch.randn(4, k, 3, requires_grad=True) for k in counts),
        dropped_logits=tuple(torch.randn(4, d, 3, requires_grad=True) for d in dropped),
        selected=(),
        combiner_logits=torch.randn(4, 3, requires_grad=True) if with_combiner else None,
    )


def entropy_by_hand(logits: torch.Tensor, label: int) -> float:
    powers = [math.exp(value) for value in logits.tolist()]
    return -math.log(powers[label] / sum(powers))


def mean(numbers: list[float]) -> float:
    return sum(numbers) / len(numbers)


def terms_by_hand(outputs: PimOutputs, labels: list[int]) -> dict[str, float]:
    """Sum over stages the mean over images (and positions), number after number."""
    terms = dict.fromkeys(TERMS, 0.0)
    for logits, kept, dropped in zip(
        outputs.stage_logits, outputs.selected_logits, outputs.dropped_logits, strict=True
    ):
        terms["stages_loss"] += mean([entropy_by_hand(x.mean(0), y) for x, y in zip(logits, labels, strict=True)])
        of_positions = [entropy_by_hand(row, y) for x, y in zip(kept, labels, strict=True) for row in x]
        terms["selected_loss"] += mean(of_positions)
        squares = [(math.tanh(value) - -1) ** 2 for value in dropped.flatten().tolist()]
        terms["dropped_loss"] += mean(squares) if squares else 0.0
    if outputs.combiner_logits is not None:
        pairs = zip(outputs.combiner_logits, labels, strict=True)
        terms["combiner_loss"] = mean([entropy_by_hand(x, y) for x, y in pairs])
    return terms


@pytest.mark.parametrize("with_combiner", [True, False])
def test_every_term_against_numbers_added_by_hand(with_combiner: bool) -> None:
    labels = [2, 0, 1, 1]
    outputs = made_up(with_combiner=with_combiner)
    task = PimTask(small_net(), PimLossWeights(selected=1.0))
    terms = task.loss_terms(outputs, torch.tensor(labels))
    assert {name: value.item() for name, value in terms.items()} == pytest.approx(
        terms_by_hand(outputs, labels), rel=1e-5
    )
    assert terms["combiner_loss"] > 0 if with_combiner else terms["combiner_loss"] == 0


def test_the_stages_term_is_torchs_cross_entropy_weighted_and_smoothed() -> None:
    outputs, labels = made_up(), torch.tensor([2, 0, 1, 1])
    weights = torch.tensor([0.5, 2.0, 1.0])
    task = PimTask(small_net(), PimLossWeights(), label_smoothing=0.1, class_weights=weights.tolist())

    def entropy(logits: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(logits, labels, weights, label_smoothing=0.1, reduction="none").mean()

    terms = task.loss_terms(outputs, labels)
    expected = torch.stack([entropy(logits.mean(1)) for logits in outputs.stage_logits]).sum()
    torch.testing.assert_close(terms["stages_loss"], expected)
    torch.testing.assert_close(terms["combiner_loss"], entropy(outputs.combiner_logits))


@pytest.mark.parametrize("dropped", [(5, 3, 2, 0), (0, 0, 0, 0)])
def test_a_stage_of_which_nothing_is_dropped_adds_nothing(dropped: tuple[int, ...]) -> None:
    outputs = made_up(dropped=dropped)
    task = PimTask(small_net(), PimLossWeights(selected=1.0))
    terms = task.loss_terms(outputs, torch.tensor([2, 0, 1, 1]))
    assert all(term.isfinite() for term in terms.values())
    assert (terms["dropped_loss"] == 0) == (not any(dropped))
    torch.stack(list(terms.values())).sum().backward()
    for logits in (*outputs.stage_logits, *outputs.selected_logits, outputs.combiner_logits):
        assert logits.grad.isfinite().all() and logits.grad.any()


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1, "class_weights": [0.5, 2.0, 1.0]}], ids=str)
def test_soft_targets_that_are_one_hot_equal_labels(options: dict[str, Any]) -> None:
    outputs, labels = made_up(), torch.tensor([2, 0, 1, 1])
    task = PimTask(small_net(), PimLossWeights(selected=1.0), **options)
    hard = task.loss_terms(outputs, labels)
    soft = task.loss_terms(outputs, functional.one_hot(labels, 3).float())
    for name in TERMS:
        torch.testing.assert_close(soft[name], hard[name])


def test_mixed_targets_weigh_both_classes() -> None:
    outputs = made_up()
    task = PimTask(small_net(), PimLossWeights(selected=1.0))
    first, second = torch.tensor([2, 0, 1, 1]), torch.tensor([0, 0, 2, 1])
    mixed = 0.7 * functional.one_hot(first, 3) + 0.3 * functional.one_hot(second, 3)
    got = task.loss_terms(outputs, mixed)
    one, other = task.loss_terms(outputs, first), task.loss_terms(outputs, second)
    for name in TERMS:
        torch.testing.assert_close(got[name], 0.7 * one[name] + 0.3 * other[name])


def test_the_weights_of_the_config_reach_the_loss(make_config: ConfigMaker) -> None:
    defaults = Config.model_fields
    published = {"stages": 0.5, "selected": 0.0, "dropped": 5.0, "combiner": 1.0}
    assert {name: defaults[f"pim_{name}_weight"].default for name in published} == published
    assert PimLossWeights() == PimLossWeights(**published)
    chosen = {"stages": 0.3, "selected": 0.2, "dropped": 4.0, "combiner": 0.7}
    config = process_config(make_config(**PIM_NET, **{f"pim_{name}_weight": value for name, value in chosen.items()}))
    train_samples, val_samples, _ = read_data(config, World(), lambda text: None)
    net = builder.build_start_net(config, lambda text: None)
    task = PimTask.from_setup(net, Setup(config, train_samples, val_samples, torch.device("cpu")))
    batch = {"image": torch.randn(4, 3, 64, 64), "target": torch.tensor([2, 0, 1, 1])}
    terms = task.training_step(batch, np.random.default_rng(0))
    assert list(terms) == ["loss", *TERMS]
    assert all(terms[name] > 0 for name in TERMS)
    expected = sum(weight * terms[f"{name}_loss"] for name, weight in chosen.items())
    torch.testing.assert_close(terms["loss"], expected)


def test_weights_that_teach_no_class_are_refused() -> None:
    start = "the loss would teach no class: pim_stages_weight and pim_selected_weight are 0, and "
    cases = [
        ({}, PimLossWeights(stages=0, combiner=0), "so is pim_combiner_weight"),
        ({"use_combiner": False}, PimLossWeights(stages=0), "the net has no combiner"),
    ]
    for args, weights, end in cases:
        with pytest.raises(NetError) as caught:
            PimTask(small_net(**args), weights)
        assert str(caught.value) == start + end
    PimTask(small_net(), PimLossWeights(stages=0, dropped=0))


@pytest.mark.parametrize("args", [{"num_selects": [1.0, 1.0, 1.0, 1.0]}, {"use_selection": False}, {}], ids=str)
def test_a_step_with_nothing_dropped_and_mixed_images_has_finite_gradients(args: dict[str, Any]) -> None:
    net = small_net(side=32, **args)
    task = PimTask(net, PimLossWeights(selected=1.0), mixer=BatchMixer(3, 0.4, 0.4))
    batch = {"image": torch.randn(4, 3, 32, 32), "target": torch.tensor([2, 0, 1, 1])}
    terms = task(batch, np.random.default_rng(0))
    assert (terms["dropped_loss"] > 0) == (not args)
    terms["loss"].backward()
    assert terms["loss"].isfinite()
    assert all(p.grad.isfinite().all() for p in net.parameters() if p.grad is not None)
    assert {name for name, p in net.named_parameters() if p.grad is None} == set()


def test_a_step_under_bf16_autocast_is_near_the_float32_one() -> None:
    net = small_net()
    batch = {"image": torch.randn(6, 3, 64, 64), "target": torch.arange(6) % 3}
    steps = []
    for enabled in (False, True):
        task = PimTask(copy.deepcopy(net), PimLossWeights(selected=1.0))
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            terms = task(batch, np.random.default_rng(0))
        terms["loss"].backward()
        assert all(p.grad.isfinite().all() for p in task.net.parameters())
        assert all(term.dtype == torch.float32 for term in terms.values())
        steps.append([terms[name].item() for name in TERMS])
    assert steps[0] != steps[1]
    assert steps[1][:3] == pytest.approx(steps[0][:3], rel=0.05)
    assert steps[1][3] == pytest.approx(steps[0][3], rel=0.3)  # the combiner feels the order of the selected positions


# --- learning


def test_one_batch_is_overfitted() -> None:
    net = small_net(num_classes=4, side=32, dropout=0.0)
    task = PimTask(net, PimLossWeights(dropped=0.5))
    batch = {"image": torch.randn(8, 3, 32, 32), "target": torch.arange(8) % 4}
    optimizer = torch.optim.AdamW(net.parameters(), lr=5e-3)
    steps = []
    for _ in range(60):
        optimizer.zero_grad()
        terms = task(batch, np.random.default_rng(0))
        terms["loss"].backward()
        optimizer.step()
        steps.append({name: value.item() for name, value in terms.items()})
        if steps[-1]["loss"] < 0.9:
            break
    first, last = steps[0], steps[-1]
    assert first["stages_loss"] > 4 * 1.2 and first["combiner_loss"] > 1.2  # ln 4 = 1.39 a head
    assert last["stages_loss"] < 1.5 and last["combiner_loss"] < 0.1
    assert last["dropped_loss"] < 0.25 * first["dropped_loss"]
    outputs = net.outputs(batch["image"])
    for head in HEADS:
        assert net.logits(outputs, head).argmax(1).tolist() == batch["target"].tolist()


def plain_loss(net: PIM, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Compute the published loss from every position's logits alone, image by image."""
    outputs = net.outputs(images)
    loss = torch.zeros(())
    for logits, count in zip(outputs.stage_logits, (57, 14, 4, 1), strict=True):  # 2/9 of 256, 64, 16 and 4
        loss = loss + 0.5 * functional.cross_entropy(logits.mean(1), labels)
        if not net.use_selection:
            continue
        dropped = []
        for one in logits:
            order = functional.softmax(one, 1).max(1).values.argsort(descending=True)
            dropped.append(one[order[count:]])
        rest = torch.stack(dropped)
        loss = loss + 5.0 * functional.mse_loss(rest.tanh(), torch.full_like(rest, -1.0))
    if outputs.combiner_logits is not None:
        loss = loss + functional.cross_entropy(outputs.combiner_logits, labels)
    return loss


@pytest.mark.parametrize("switch", ["use_combiner", "use_selection"])
def test_golden_losses(make_config: ConfigMaker, dataset: Path, switch: str) -> None:
    """The loop's losses against a dozen lines that do the same with torch alone.

    With both parts at once a rounding error can exchange two positions of a fresh net, whose order its combiner feels.
    """
    args = {**PIM_NET["model_args"], "dropout": 0.0, switch: False}
    changes = {**PIM_NET, "model_args": args, "seed": 3, "data_aug": False, "channels_last": False, "num_epochs": 2}
    changes["learning_rate"] = 0.0001
    file = make_config(**changes, log_interval=1, weight_decay=0.01, clip_grad_norm=1.0)
    assert run_train(file) == 0
    curve = load_checkpoint(dataset / "weights/net_last.pth").progress["curves"]["train"]
    config = process_config(file)
    samples, *_ = read_data(config, World(), lambda text: None)
    net = builder.build_start_net(config, lambda text: None)
    assert isinstance(net, PIM)
    preprocess = build_metadata(config, samples.class_names).preprocess
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0001, momentum=0.9, nesterov=True, weight_decay=0.01)
    expected, at_first = [], []
    fresh = copy.deepcopy(net)
    for epoch in range(2):
        order = np.random.default_rng([3, epoch, 0]).permutation(21)
        for first in range(0, 21, 7):
            chosen = [samples.samples[index] for index in order[first : first + 7]]
            arrays = [preprocess(np.asarray(preprocess.decode(sample.path))) for sample in chosen]
            images, labels = torch.from_numpy(np.stack(arrays)), torch.tensor([s.label for s in chosen])
            loss = plain_loss(net, images, labels)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            expected.append(loss.item())
            at_first.append(plain_loss(fresh, images, labels).item())
    got = [point["loss"] for point in curve]
    assert got == pytest.approx(expected, rel=3e-4)
    assert max(abs(now / then - 1) for now, then in zip(got, at_first, strict=True)) > 1e-3  # steps are felt


# --- the declared head


def listed(count: int) -> SampleList:
    """Make a list of images of three classes."""
    return SampleList(tuple(Sample(str(number), 0) for number in range(count)), ("a", "b", "c"), ".", "val.txt")


def batches(net: PIM, head: str) -> list[dict[str, torch.Tensor]]:
    """Make two batches whose labels are what one head predicts, so that this head is right every time."""
    made = []
    for start in (0, 8):
        images = torch.randn(8, 3, 64, 64)
        with torch.no_grad():
            labels = net.logits(net.eval().outputs(images), head).argmax(1)
        made.append({"image": images, "target": labels, "index": torch.arange(start, start + 8)})
    return made


@pytest.mark.parametrize("head", ["stage2", "combiner"])
def test_validation_declares_the_best_head_and_the_checkpoint_predicts_with_it(head: str, tmp_path: Path) -> None:
    net = small_net(num_classes=3)
    layers = dict(zip(HEADS[1:], [*(stage[3] for stage in net.heads), net.combiner.classifier], strict=True))
    with torch.no_grad():
        for name, layer in layers.items():
            layer.weight.mul_(20)
            layer.bias[0] = -1000 if name == head else 1000  # the head never says "a", the others always
    task = PimTask(net, PimLossWeights())
    data = batches(net, head)
    net.train()
    result = task.validate(lambda: data, listed(16))
    assert net.training
    assert result.head == head and result.top1 == 1.0
    assert list(result.head_top1) == list(HEADS)
    assert result.head_top1 == {**dict.fromkeys(HEADS, 0.0), head: 1.0}
    args = {"model_type": "resnet18", "fpn_size": 16}
    metadata = ModelMetadata(("a", "b", "c"), Preprocess(64, 64), {"module": "pim_module", "name": "PIM", "args": args})
    declared = task.declare(metadata, result)
    assert declared.net == {"module": "pim_module", "name": "PIM", "args": {**args, "head": head}}
    assert replace(declared, net=metadata.net) == metadata and "head" not in metadata.net["args"]
    save_checkpoint(Checkpoint({}, declared, net.state_dict()), tmp_path / "net.pth")
    backend, read = load_backend(tmp_path / "net.pth", device="cpu")
    assert read.net["args"]["head"] == head
    images = data[0]["image"]
    with torch.no_grad():
        outputs = net.eval().outputs(images)
    assert torch.equal(torch.from_numpy(backend(images.numpy())).argmax(1), data[0]["target"])
    np.testing.assert_allclose(backend(images.numpy()), net.logits(outputs, head).numpy(), rtol=1e-3, atol=1e-3)


def test_of_equal_heads_all_of_them_together_win() -> None:
    net = small_net(num_classes=3)
    nn.init.zeros_(net.combiner.classifier.weight)
    for stage in net.heads:
        nn.init.zeros_(stage[3].weight)
        stage[3].bias.data.copy_(torch.tensor([0.0, 1.0, 0.0]))
    net.combiner.classifier.bias.data.copy_(torch.tensor([0.0, 1.0, 0.0]))
    batch = {"image": torch.randn(4, 3, 64, 64), "target": torch.tensor([1, 1, 0, 2]), "index": torch.arange(4)}
    result = PimTask(net, PimLossWeights()).validate(lambda: [batch], listed(4))
    assert result.head_top1 == dict.fromkeys(HEADS, 0.5) and result.head == "all"


def test_a_net_without_combiner_has_no_such_head_to_choose() -> None:
    net = small_net(num_classes=3, use_combiner=False)
    batch = {"image": torch.randn(4, 3, 64, 64), "target": torch.tensor([1, 1, 0, 2]), "index": torch.arange(4)}
    result = PimTask(net, PimLossWeights()).validate(lambda: [batch], listed(4))
    assert list(result.head_top1) == list(HEADS[:5])


def test_a_training_from_end_to_end(
    make_config: ConfigMaker, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    changes = {
        **PIM_NET, "num_epochs": 4, "is_tensorboard": True, "log_interval": 1, "ema_decay": 0.5, "optimizer": "adamw",
        "pim_selected_weight": 0.1, "pim_dropped_weight": 0.2, "precision": "bf16",
    }  # fmt: skip
    assert run_train(make_config(**changes)) == 0
    assert (
        len(re.findall(r"epoch ./4  loss of all terms [\d.]+  val cross entropy [\d.]+  ", capsys.readouterr().out))
        == 4
    )
    (folder,) = (dataset / "logs/tensorboard").iterdir()
    events = EventAccumulator(str(folder)).Reload()

    def curve(tag: str) -> list[float]:
        return [event.value for event in events.Scalars(tag)]

    weights = {"stages": 0.5, "selected": 0.1, "dropped": 0.2, "combiner": 1.0}
    total = sum(weight * np.array(curve(f"train/{name}_loss")) for name, weight in weights.items())
    assert len(total) == 12 and min(total) > 0
    np.testing.assert_allclose(curve("train/loss"), total, rtol=1e-4)
    of_heads = np.array([curve(f"val/top1_{head}") for head in HEADS])  # (6, epochs)
    np.testing.assert_allclose(curve("val/top1"), of_heads.max(0))
    best = load_checkpoint(dataset / "weights/net.pth")
    epoch = best.progress["best"]["epoch"] - 1
    head = HEADS[int(of_heads[:, epoch].argmax())]
    assert best.metadata.net["args"] == {"model_type": "resnet18", "fpn_size": 16, "head": head}
    assert best.progress["best_result"]["head"] == head
    last = load_checkpoint(dataset / "weights/net_last.pth")
    assert last.metadata.net["args"]["head"] == HEADS[int(of_heads[:, -1].argmax())]
    report = json.loads((dataset / "weights/report.json").read_text(encoding="utf-8"))
    assert report["best"]["top1"] == pytest.approx(of_heads[:, epoch].max()) and report["best"]["top1"] > 0.5
    table = tmp_path / "predictions.jsonl"
    flags = ["--weights", str(dataset / "weights/net.pth"), "--image_dir", str(dataset / "images/val")]
    assert inference.main([*flags, "--output", str(table), "--device", "cpu"]) == 0
    net = small_net()
    net.load_state_dict(best.deployed())
    predictions = [json.loads(line) for line in table.read_text(encoding="utf-8").splitlines()]
    assert len(predictions) == 9
    preprocess = best.metadata.preprocess
    for prediction in predictions:
        array = preprocess(np.asarray(preprocess.decode(dataset / "images/val" / prediction["file"])))
        with torch.no_grad():
            logits = net.eval().logits(net.outputs(torch.from_numpy(array)[None]), head)
        scores = logits.softmax(1)[0]
        assert prediction["class"] == best.metadata.class_names[int(scores.argmax())]
        assert prediction["score"] == pytest.approx(scores.max().item(), abs=1e-3)


class Interrupted(Exception):
    """Stands for the power going off."""


@pytest.mark.parametrize("stop_at", [2, pytest.param(5, marks=pytest.mark.slow)])
def test_interrupted_and_resumed_equals_uninterrupted(
    make_config: ConfigMaker, dataset: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int
) -> None:
    """To the bit, with the combiner's dropout, averaging, mixed images and accumulation; an epoch has three steps."""
    changes = {
        **PIM_NET, "img_height": 32, "img_width": 32, "batch_size": 4, "accumulation_steps": 2, "num_epochs": 2,
        "ema_decay": 0.9, "mixup_alpha": 0.2, "cutmix_alpha": 0.5, "label_smoothing": 0.1, "log_interval": 1,
        "pim_selected_weight": 0.1, "learning_rate_schedule": "cosine",
    }  # fmt: skip
    assert run_train(make_config(**changes, save_path=str(dataset / "a/weights"))) == 0
    config = make_config(**changes, save_path=str(dataset / "b/weights"), save_interval_steps=1)
    with pytest.raises(Interrupted), dying_after_save(stop_at, Interrupted):
        run_train(config)
    torch.manual_seed(99)
    assert run_train(config, "--resume") == 0
    whole, resumed = (load_checkpoint(dataset / run / "weights/net_last.pth") for run in "ab")
    assert weights_sha256(whole.net) == weights_sha256(resumed.net)
    assert weights_sha256(whole.deployed()) == weights_sha256(resumed.deployed())
    assert whole.progress["curves"] == resumed.progress["curves"]
    assert whole.progress["best"] == resumed.progress["best"]
    assert whole.metadata.net == resumed.metadata.net and whole.metadata.net["args"]["head"] in HEADS


# --- start weights


def test_finetune_takes_a_bare_backbone_of_torchvision(
    make_config: ConfigMaker, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = torchvision.models.resnet18(num_classes=1000)
    torch.save(whole.state_dict(), dataset / "resnet18.pth")
    start = {"train_mode": "finetune", "pretrained_path": str(dataset), "pretrained_file": "resnet18.pth"}
    config = process_config(make_config(**PIM_NET, **start))
    lines: list[str] = []
    net = builder.build_start_net(config, lines.append)
    assert isinstance(net, PIM)
    own = net.backbone.state_dict()
    assert all(torch.equal(value, own[name]) for name, value in whole.state_dict().items() if "fc." not in name)
    total = len(net.state_dict())
    assert lines[0].splitlines()[0] == f"loaded 120 of {total - 5} tensors of the net ({12000 / (total - 5):.1f} %)"
    assert "new head, left fresh: heads.0.3.weight, heads.0.3.bias, heads.1.3.weight" in lines[0]
    assert "only in the file: backbone.fc.weight, backbone.fc.bias" in lines[0]
    assert "not in the file, left fresh: fpn.projections.0.0.weight" in lines[0]
    with pytest.raises(NetError, match="the weights fit nothing in PIM: "):
        load_start_weights(net, whole.state_dict(), new_head=False)


def test_finetune_takes_all_but_the_heads_of_another_pim() -> None:
    source, net = small_net(num_classes=7), small_net(num_classes=3)
    fresh = {name: value.clone() for name, value in net.state_dict().items()}
    report = load_start_weights(net, source.state_dict(), new_head=True)
    layers = [*(f"heads.{stage}.3" for stage in range(4)), "combiner.classifier"]
    heads = {f"{layer}.{part}" for layer in layers for part in ("weight", "bias")}
    assert set(report.skipped_head) == heads
    assert not report.missing and not report.unexpected and not report.skipped_shape
    now = net.state_dict()
    for name, value in source.state_dict().items():
        assert torch.equal(now[name], fresh[name] if name in heads else value)


def test_a_pim_of_another_input_size_leaves_only_the_pool_of_its_combiner_fresh() -> None:
    report = load_start_weights(small_net(side=64), small_net(side=96).state_dict(), new_head=True)
    named = {name for name, *_ in report.skipped_shape}
    assert named >= {"combiner.pool.weight"} and all(name.startswith("combiner.") for name in named)
    assert not report.missing and not report.unexpected


def test_torchvisions_published_weights_are_those_of_the_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fetch(url: str, **options: Any) -> dict[str, torch.Tensor]:
        asked.append(url)
        return {}

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fetch)
    for model_args in ({"model_type": "swin_t"}, {}):
        assert published_state_dict("pim_module", "PIM", model_args) == {}
    assert ["swin_t-" in asked[0], "resnet50-" in asked[1]] == [True, True]
