"""Learning from images without labels: their batches and views, FixMatch, meta pseudo labels, and trainings of both."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

import train
from artifacts.checkpoint import load_checkpoint, weights_sha256
from data_loader.augment import AugmentSettings, TrainingView, WeakAndStrongView, seeded
from data_loader.epoch_plan import EndlessBatches, plan_epoch
from data_loader.preprocess import Preprocess
from nets.net_interface import build_net
from tests.conftest import CLASSES, write_image
from tests.helpers.breaking import dying_after_save
from trainers.runtime.determinism import differing_gradients
from trainers.tasks.fixmatch import FixMatchTask, Thresholds
from trainers.tasks.mpl import MplTask


def run_train(config: Path, *args: str) -> int:
    return train.main(["--config", str(config), *args])


# --- batches and views


def test_every_image_comes_once_a_round_whatever_the_processes() -> None:
    steps = plan_epoch(10, 4)
    keys = []
    for epoch in range(3):
        rounds = EndlessBatches(7, 5, per_labelled=2)
        rounds.set_steps(epoch * 10, steps)
        assert [len(batch) for batch in rounds] == [8, 8, 4] and len(rounds) == 3
        keys += list(itertools.chain.from_iterable(rounds))
    assert len(keys) == 60
    for number in range(8):
        assert sorted(index for of, index in keys if of == number) == list(range(7))
    order = [[index for of, index in keys if of == number] for number in range(8)]
    assert order[0] != order[1]
    both = []
    for rank in range(2):
        rounds = EndlessBatches(7, 5, per_labelled=2, rank=rank, world_size=2)
        rounds.set_steps(10, steps[1:])  # as a resumed training goes on in its second epoch
        both.append(list(rounds))
    joined = [one + other for one, other in zip(*both, strict=True)]
    assert list(itertools.chain.from_iterable(joined)) == keys[28:40]


def test_the_weak_view_is_moved_alone_and_the_strong_one_changed() -> None:
    preprocess = Preprocess(16, 16)
    settings = AugmentSettings(horizontal_flip=1.0, color_jitter=(0.4, 0.4, 0.4, 0.1), gaussian_blur=1.0)
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    image = Image.fromarray(pixels)
    view = WeakAndStrongView(preprocess, settings)
    with seeded(0):
        weak, strong = view(image)
    assert np.array_equal(weak, pixels[:, ::-1]) and weak.shape == strong.shape
    assert not np.array_equal(strong, weak)
    assert view.views[1].settings.auto_augment == "randaugment" and view.views[1].settings.random_erasing == 1.0
    own = WeakAndStrongView(preprocess, AugmentSettings(auto_augment="trivialaugment", random_erasing=0.25)).views[1]
    assert (own.settings.auto_augment, own.settings.random_erasing) == ("trivialaugment", 0.25)
    bands = WeakAndStrongView(Preprocess(16, 16, channels=5, mean=(0.5,) * 5, std=(0.2,) * 5), settings).views[1]
    assert bands.settings.auto_augment == ""  # no published policy is for bands
    assert isinstance(view.views[0], TrainingView)


# --- FixMatch


def test_thresholds_follow_what_the_net_says() -> None:
    """Wang et al. 2023, eq. 5 to 7, with the decay (1 + n) / (10 + n) of a short training."""
    thresholds = Thresholds(2)
    assert thresholds.of_classes().tolist() == [0.5, 0.5]
    thresholds.update(torch.tensor([[0.9, 0.1], [0.7, 0.3]]))  # decay 0.1: the new means have nine tenths
    sure, shares = 0.1 * 0.5 + 0.9 * 0.8, np.array([0.1 * 0.5 + 0.9 * 0.8, 0.1 * 0.5 + 0.9 * 0.2])
    assert np.allclose(thresholds.of_classes(), sure * shares / shares.max(), atol=1e-6)
    thresholds.update(torch.tensor([[0.0, 1.0]]))
    decay = 2 / 11
    sure, shares = decay * sure + (1 - decay), decay * shares + (1 - decay) * np.array([0, 1])
    assert np.allclose(thresholds.of_classes(), sure * shares / shares.max(), atol=1e-6)
    fixed = Thresholds(3, 0.95)
    fixed.update(torch.tensor([[1.0, 0, 0]]))
    assert fixed.of_classes().tolist() == pytest.approx([0.95] * 3)


class Lookup(nn.Module):
    """Gives an image the logits that stand in its first pixels, times a weight: (N, C, H, W) -> (N, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        return images[:, 0, 0, :3] * self.weight


def as_images(logits: list[list[float]]) -> Tensor:
    images = torch.zeros(len(logits), 3, 4, 4)
    images[:, 0, 0, :3] = torch.tensor(logits)
    return images


def test_fixmatch_learns_sure_guesses_alone() -> None:
    sure, unsure = [0.0, 6.0, 0.0], [0.1, 0.0, 0.2]
    strong = [[1.0, 2.0, 0.5], [3.0, 0.0, 0.0]]
    views = torch.stack([as_images([sure, unsure]), as_images(strong)], 1).flatten(0, 1)
    labels = torch.tensor([2])
    batch = {"image": as_images([[0.5, 0.0, 1.0]]), "target": labels, "unlabelled": views, "index": torch.tensor([0])}
    task = FixMatchTask(Lookup(), Thresholds(3, 0.9), weight=0.5)
    terms = task.training_step(batch, np.random.default_rng(0))
    of_guesses = cross_entropy(torch.tensor(strong[:1]), torch.tensor([1])) / 2  # the mean over both images
    assert terms["of_pseudo_labels"].item() == pytest.approx(of_guesses.item(), rel=1e-5)
    assert terms["pseudo_labelled"].item() == 0.5
    of_labels = cross_entropy(torch.tensor([[0.5, 0.0, 1.0]]), labels)
    assert terms["loss"].item() == pytest.approx((of_labels + 0.5 * of_guesses).item(), rel=1e-5)
    net, least = task.guesser(task.net)
    assert net is task.net and least.tolist() == pytest.approx([0.9] * 3)


def test_a_check_of_determinism_leaves_the_thresholds_as_they_were() -> None:
    views = torch.stack([as_images([[0.0, 6.0, 0.0]]), as_images([[1.0, 2.0, 0.5]])], 1).flatten(0, 1)
    batch = {"image": as_images([[0.5, 0.0, 1.0]]), "target": torch.tensor([2]), "unlabelled": views}
    task = FixMatchTask(Lookup(), Thresholds(3))
    before = task.companion.of_classes()
    assert differing_gradients(task, lambda: task.training_step(batch, np.random.default_rng(0))["loss"]) == []
    assert torch.equal(task.companion.of_classes(), before) and task.companion.updates.item() == 0


# --- meta pseudo labels


def linear_net(seed: int, inputs: int, classes: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, classes)).double()


def mpl_batch(inputs: int, classes: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    images, views = (torch.randn(count, 1, 1, inputs, generator=generator).double() for count in (4, 4))
    return {"image": images, "target": torch.arange(4) % classes, "unlabelled": views, "index": torch.arange(4)}


@pytest.mark.parametrize("rate", [1e-1, 1e-2, 1e-3])
def test_the_teacher_follows_the_exact_gradient_of_the_students_loss(
    rate: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over all guesses the teacher's gradient is, to first order in the rate, that of the student's loss behind a step.

    Written down without the formula of the paper: the expectation over the guesses of the student's loss on the labels
    after a plain step, as a function of the teacher's weights, which autograd differentiates. The guesses' loss is a
    mean over two images, so the gradient is half of it. Its sign is what published programs differ in.
    """
    inputs, classes = 5, 3
    student, teacher, batch = linear_net(0, inputs, classes), linear_net(1, inputs, classes), mpl_batch(inputs, classes)
    strong = batch["unlabelled"][1::2]
    weights = [parameter.detach().clone() for parameter in student.parameters()]

    def loss_behind_a_step(guesses: Tensor) -> Tensor:
        gradients = torch.autograd.grad(cross_entropy(student(strong), guesses), list(student.parameters()))
        moved = [weight - rate * gradient for weight, gradient in zip(weights, gradients, strict=True)]
        logits = batch["image"].flatten(1) @ moved[0].T + moved[1]
        return cross_entropy(logits, batch["target"])

    scores = teacher(strong).softmax(1)  # (2, K)
    pairs = [torch.tensor(pair) for pair in itertools.product(range(classes), repeat=2)]
    expected = sum(scores[0, pair[0]] * scores[1, pair[1]] * loss_behind_a_step(pair) for pair in pairs)
    assert isinstance(expected, Tensor)
    exact = torch.cat([part.flatten() for part in torch.autograd.grad(expected, list(teacher.parameters()))])

    task = MplTask(student, teacher, classes, weight=0.0)
    task.rate = rate
    found = torch.zeros_like(exact)
    of_labels = cross_entropy(teacher(batch["image"]), batch["target"])
    plain = torch.cat([part.flatten() for part in torch.autograd.grad(of_labels, list(teacher.parameters()))])
    for pair in pairs:
        monkeypatch.setattr(torch, "multinomial", lambda scores, count, pair=pair: pair[:, None])
        terms = task.training_step(batch, np.random.default_rng(0))
        gradient = torch.autograd.grad(terms["loss"], list(teacher.parameters()))
        share = (scores[0, pair[0]] * scores[1, pair[1]]).item()
        found += share * (torch.cat([part.flatten() for part in gradient]) - plain)
    assert torch.nn.functional.cosine_similarity(found, exact, dim=0) > 1 - 10 * rate
    assert (2 * found / exact).median().item() == pytest.approx(1, abs=20 * rate)


def test_the_student_gets_the_gradient_of_its_guesses_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher, batch = linear_net(0, 5, 3), linear_net(1, 5, 3), mpl_batch(5, 3)
    guesses = torch.tensor([2, 0])
    monkeypatch.setattr(torch, "multinomial", lambda scores, count: guesses[:, None])
    task = MplTask(student, teacher, 3, threshold=0.0, weight=2.0, warmup_steps=10)
    task.step = 5
    terms = task.training_step(batch, np.random.default_rng(0))
    terms["loss"].backward()
    expected = cross_entropy(student(batch["unlabelled"][1::2]), guesses)
    assert terms["student"].item() == pytest.approx(expected.item())
    for parameter, gradient in zip(
        student.parameters(), torch.autograd.grad(expected, list(student.parameters())), strict=True
    ):
        assert parameter.grad is not None and torch.allclose(parameter.grad, gradient)
    answers = (teacher(batch["unlabelled"][0::2]) / 0.7).softmax(1)
    logits = teacher(batch["unlabelled"][1::2])
    consistency = -(answers * logits.log_softmax(1)).sum(1).mean()
    labelled = cross_entropy(teacher(batch["image"]), batch["target"])
    of_teacher = labelled + 0.5 * 2.0 * consistency  # half of the warm-up's steps; the rate, and so the feedback, is 0
    assert terms["feedback"].item() == 0 and terms["teacher"].item() == pytest.approx(of_teacher.item())


# --- trainings


@pytest.fixture
def semi_config(make_config: Callable[..., Path], dataset: Path) -> Callable[..., Path]:
    """A function that writes a config of three labelled classes with 13 images of no label."""
    for number in range(13):
        write_image(dataset / "more" / f"{number:02d}.png", number % 3, seed=500 + number)
    own = {"unlabelled_data_root_dir": str(dataset / "more"), "unlabelled_per_labelled": 2, "learning_rate": 0.005}
    return lambda **changes: make_config(**{**own, **changes})


@pytest.mark.parametrize("semi", ["fixmatch", "mpl"])
def test_a_training_is_resumed_to_the_bit_and_reported(
    semi: str, semi_config: Callable[..., Path], dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = semi_config(semi=semi, save_interval_steps=1, ema_decay=0.9, clip_grad_norm=1.0)
    assert run_train(config) == 0
    assert "13 images without labels" in capsys.readouterr().out
    best, whole = (load_checkpoint(dataset / "weights" / name) for name in ("net.pth", "net_last.pth"))
    assert best.companion is None and whole.companion is not None
    net = build_net(**best.metadata.net_arguments())
    net.load_state_dict(best.deployed())  # the net itself, and nothing of what was trained beside it
    stopped = ["--set", f"save_path={dataset / 'stopped'}"]
    with dying_after_save(3, KeyboardInterrupt):
        assert run_train(config, *stopped) == 130
    assert run_train(config, *stopped, "--resume") == 0
    resumed = load_checkpoint(dataset / "stopped/net_last.pth")
    assert resumed.companion is not None
    for one, other in ((resumed.net, whole.net), (resumed.companion, whole.companion)):
        assert weights_sha256(one) == weights_sha256(other)
    with (dataset / "weights/pseudo_labels.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [Path(row["path"]).name for row in rows] == [f"{number:02d}.png" for number in range(13)]
    assert {row["class"] for row in rows} <= set(CLASSES) and all(1 / 3 <= float(row["score"]) <= 1 for row in rows)
    report = json.loads((dataset / "weights/report.json").read_text("utf-8"))
    learnt = [row["class"] for row in rows if row["is_learnt"] == "1"]
    counts = {name: learnt.count(name) for name in CLASSES}
    of_report = {"images": 13, "learnt": len(learnt), "of_classes": counts, "file": "pseudo_labels.csv"}
    assert report["pseudo_labels"] == of_report
    assert ["pseudo-labels", f"{len(learnt)} of 13 images"] in report["rows"]
    assert semi == "fixmatch" or len(learnt) == 13  # the student learns every guess


@pytest.mark.parametrize("semi", ["fixmatch", "mpl"])
def test_it_learns_from_images_without_labels(semi: str, semi_config: Callable[..., Path], dataset: Path) -> None:
    """The weights follow from the list of images without labels, not from the labelled ones alone."""
    sums = set()
    for count in (13, 12):
        names = dataset / "more.txt"
        names.write_text("".join(f"{number:02d}.png\n" for number in range(count)), "utf-8")
        assert run_train(semi_config(semi=semi, num_epochs=1, unlabelled_data_file=str(names))) == 0
        sums.add(weights_sha256(load_checkpoint(dataset / "weights/net_last.pth").net))
    assert len(sums) == 2


@pytest.mark.slow
@pytest.mark.parametrize("semi", ["fixmatch", "mpl"])
def test_several_processes(semi: str, semi_config: Callable[..., Path], dataset: Path) -> None:
    config = semi_config(semi=semi, num_processes=2, num_epochs=1)
    assert run_train(config) == 0
    with (dataset / "weights/pseudo_labels.csv").open(encoding="utf-8-sig", newline="") as file:
        assert len(list(csv.DictReader(file))) == 13
    companion = load_checkpoint(dataset / "weights/net_last.pth").companion
    assert companion is not None and all(bool(value.isfinite().all()) for value in companion.values())


def test_damaged_images_without_labels(
    semi_config: Callable[..., Path], dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (dataset / "more/05.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert run_train(semi_config(semi="fixmatch")) == 2
    assert "more/05.png" in capsys.readouterr().err
    assert run_train(semi_config(semi="fixmatch", num_epochs=1, bad_images="skip", max_bad_share=0.1)) == 0
    report = json.loads((dataset / "weights/report.json").read_text("utf-8"))
    assert report["pseudo_labels"]["images"] == 12
    assert [Path(row["path"]).name for row in report["skipped_images"]] == ["05.png"]


# --- mistakes


def test_mistakes(semi_config: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    simsiam = {"model_module_name": "simsiam_module", "model_net_name": "SimSiam"}
    masks = {"model_module_name": "linknet_module", "model_net_name": "LinkNet"}
    cases: list[tuple[dict[str, Any], str]] = [
        ({}, 'unlabelled_data_root_dir is for images without labels that semi learns from; set it to "fixmatch"'),
        ({"semi": "mixmatch"}, "semi"),
        ({"semi": "mpl", "unlabelled_data_root_dir": "gone"}, 'unlabelled_data_root_dir "gone" is not a folder'),
        ({"semi": "mpl", "unlabelled_data_file": "gone.txt"}, 'unlabelled_data_file "gone.txt" is not a file'),
        ({"semi": "fixmatch", "data_aug": False}, "data_aug cannot be off"),
        ({"semi": "fixmatch", "compile": True}, "compile is for nets that are trained by labels alone"),
        ({"semi": "mpl", "precision": "fp16"}, 'semi "mpl" multiplies gradients that fp16 would lose'),
        ({"semi": "mpl", "distill_from": ["a.pth"]}, 'distill_from and semi "mpl" both teach the net'),
        ({"semi": "fixmatch", **simsiam}, 'semi "fixmatch" is for nets that are trained by their logits alone'),
        ({"semi": "fixmatch", **masks}, "semi is for nets of classes alone"),
    ]
    for changes, text in cases:
        assert run_train(semi_config(**changes)) == 2, text
        err = capsys.readouterr().err
        assert text in err and "Traceback" not in err


def test_a_checkpoint_of_a_plain_training_is_not_gone_on_with(
    semi_config: Callable[..., Path], make_config: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_train(make_config(num_epochs=1)) == 0
    assert run_train(semi_config(semi="mpl"), "--resume") == 2
    assert "does not fit this training" in capsys.readouterr().err


def test_labels_are_one_hot_where_images_are_mixed(semi_config: Callable[..., Path]) -> None:
    assert one_hot(torch.tensor([1]), 3).tolist() == [[0, 1, 0]]
    assert run_train(semi_config(semi="mpl", mixup_alpha=0.2, num_epochs=1)) == 0
