"""Distillation: the losses against their formulas, what teachers see, and trainings with teachers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import train
from artifacts.checkpoint import load_checkpoint, weights_sha256
from data_loader.preprocess import Preprocess
from nets.net_interface import build_net
from nets.support.errors import NetError
from tests.helpers.boxes import box_nets, write_boxes
from tests.helpers.boxes import write_config as write_box_config
from tests.helpers.breaking import dying_after_save
from tests.helpers.masks import mask_nets, write_config, write_scenes
from trainers.tasks.distillation_losses import decoupled, imitated_boxes, soft_cross_entropy, soft_labels
from trainers.tasks.feature_review import hierarchical_distance, stages_of, watching
from trainers.tasks.teachers import Teacher, Teachers

T = 4.0


def run_train(config: Path, *args: str) -> int:
    return train.main(["--config", str(config), *args])


def softmax(values: np.ndarray) -> np.ndarray:
    powers = np.exp(values - values.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def random_logits(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(0, 3, shape).astype(np.float32))


# --- losses


def test_soft_cross_entropy_is_the_divergence_times_the_temperature_squared() -> None:
    own, first, second = (random_logits(seed, 5, 7) for seed in range(3))
    soft = (softmax(first.numpy() / T) + softmax(second.numpy() / T)) / 2
    expected = T**2 * (soft * np.log(soft / softmax(own.numpy() / T))).sum(axis=1).mean()
    found = soft_cross_entropy(own.requires_grad_(), soft_labels([first, second], T), T)
    assert found.item() == pytest.approx(expected, rel=1e-5)
    found.backward()
    assert own.grad is not None  # T (q - p) / N: its size does not follow the temperature (Hinton et al. 2015, eq. 4)
    assert np.allclose(own.grad.numpy(), T * (softmax(own.detach().numpy() / T) - soft) / 5, atol=1e-5)
    assert soft_cross_entropy(first, soft_labels([first], T), T).item() == pytest.approx(0, abs=1e-5)


def test_decoupled_parts_add_up_to_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """The divergence is that of the target plus (1 - p) times that of the others (Zhao et al. 2022, eq. 5)."""
    own, teacher, targets = random_logits(0, 6, 5), random_logits(1, 6, 5), torch.tensor([0, 4, 2, 2, 1, 3])
    soft = soft_labels([teacher], T)
    parts = []
    for weight in (0.0, 1.0):
        monkeypatch.setattr("trainers.tasks.distillation_losses.NON_TARGET_WEIGHT", weight)
        parts.append(torch.stack([decoupled(own[i : i + 1], soft[i : i + 1], targets[i : i + 1], T) for i in range(6)]))
    of_target, of_others = parts[0], parts[1] - parts[0]
    sure = soft.gather(1, targets[:, None])[:, 0]
    whole = torch.stack([soft_cross_entropy(own[i : i + 1], soft[i : i + 1], T) for i in range(6)])
    assert torch.allclose(of_target + (1 - sure) * of_others, whole, rtol=1e-4)
    assert decoupled(teacher, soft, targets, T).item() == pytest.approx(0, abs=1e-4)


def test_a_teacher_that_is_certain_gives_finite_losses() -> None:
    certain = torch.tensor([[200.0, -200, -200]])
    own = torch.zeros(1, 3, requires_grad=True)
    for loss in (soft_cross_entropy, lambda *args: decoupled(args[0], args[1], torch.tensor([1]), args[2])):
        found = loss(own, soft_labels([certain], 1.0), 1.0)
        found.backward()
        assert found.isfinite() and own.grad is not None and own.grad.isfinite().all()


def test_boxes_are_imitated_where_a_teacher_is_sure() -> None:
    boxes = torch.tensor([[[0.0, 0, 10, 10], [5, 5, 25, 25]]])
    teacher = torch.cat([boxes, torch.tensor([[[-20.0], [20.0]]])], dim=2)
    assert imitated_boxes(teacher.clone(), [teacher]).item() == pytest.approx(0, abs=1e-6)
    moved_unsure, moved_sure = teacher.clone(), teacher.clone()
    moved_unsure[0, 0, :4] += 3
    moved_sure[0, 1, :4] += 3
    assert imitated_boxes(moved_unsure, [teacher]).item() == pytest.approx(0, abs=1e-6)
    overlap, union, hull = 17 * 17, 2 * 400 - 17 * 17, 23 * 23  # of [5, 25] and [8, 28] on both axes
    assert imitated_boxes(moved_sure, [teacher]).item() == pytest.approx(1 - overlap / union + (hull - union) / hull)


# --- what teachers see


class Recorder(nn.Module):
    """Keeps its input, and returns logits (N, 3) that tell the classes apart."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images)
        return images.new_tensor([[1.0, 2.0, 3.0]]).expand(len(images), 3)


def test_a_teacher_sees_its_own_size_and_normalisation() -> None:
    own = Preprocess(8, 8, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    wanted = replace(own, height=16, width=16, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    net = Recorder()
    teachers = Teachers([Teacher(net, wanted, (2, 0, 1))], own, has_large_views=True)
    assert (teachers.view.height, teachers.view.width, teachers.view.mean) == (16, 16, own.mean)
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 16, 16)).astype(np.uint8))
    views = own.normalize(pixels)
    loss = teachers.loss_of_classes(torch.zeros(2, 3), views, torch.arange(2), torch.zeros(2).long())
    assert torch.allclose(net.seen[0], wanted.normalize(pixels), atol=1e-5)
    soft = torch.tensor([[3.0, 1.0, 2.0]]).div(T).softmax(1)  # the student's classes are the teacher's 2, 0 and 1
    assert loss.item() == pytest.approx(T**2 * float((soft * (soft * 3).log()).sum()), rel=1e-4)
    small = teachers.for_student(views)
    assert small.shape == (2, 3, 8, 8)
    assert torch.allclose(small.mean(dim=(2, 3)), views.mean(dim=(2, 3)), atol=0.05)  # averaged, not picked
    assert Teachers([Teacher(net, wanted, (0, 1, 2))], own).view == own  # of masks and boxes views stay as they are


def test_what_is_said_of_an_image_that_stays_the_same_is_kept() -> None:
    own, net = Preprocess(8, 8), Recorder()
    teachers = Teachers([Teacher(net, own, (0, 1, 2))], own, is_fixed=True)
    views, labels = torch.zeros(2, 3, 8, 8), torch.zeros(2).long()
    for indices in ([0, 1], [1, 2], [2, 0]):
        teachers.loss_of_classes(torch.zeros(2, 3), views, torch.tensor(indices), labels)
    assert [len(images) for images in net.seen] == [2, 1]


def test_the_weight_rises_over_the_warm_up() -> None:
    own = Preprocess(8, 8)
    teachers = Teachers([Teacher(Recorder(), own, (0, 1, 2))], own, weight=2.0, warmup_epochs=4)
    weights = []
    for epochs in (0.0, 1.0, 4.0, 9.0):
        teachers.epochs = lambda epochs=epochs: epochs
        weights.append(teachers.current_weight())
    assert weights == [0.0, 0.5, 2.0, 2.0]


# --- trainings


@pytest.fixture
def taught(make_config: Callable[..., Path], dataset: Path) -> Callable[..., Path]:
    """A function that writes the config of a student of 24 px, with a teacher of 32 px that was trained before."""
    place = str(dataset / "teacher")
    assert run_train(make_config(save_path=place, num_epochs=1, learning_rate=0.002)) == 0
    own = {"img_height": 24, "img_width": 24, "learning_rate": 0.002, "distill_from": [f"{place}/net.pth"]}
    return lambda **changes: make_config(**{**own, **changes})


def test_a_student_is_trained_resumed_and_reported(taught: Callable[..., Path], dataset: Path) -> None:
    config = taught(num_epochs=2, distill_warmup_epochs=1.5, save_interval_steps=1)
    assert run_train(config) == 0
    whole = load_checkpoint(dataset / "weights/net_last.pth")
    assert whole.metadata.preprocess.height == 24 and not any("teacher" in name for name in whole.net)
    stopped = ["--set", f"save_path={dataset / 'stopped'}"]
    with dying_after_save(2, KeyboardInterrupt):
        assert run_train(config, *stopped) == 130
    assert run_train(config, *stopped, "--resume") == 0
    resumed = load_checkpoint(dataset / "stopped/net_last.pth")
    assert weights_sha256(resumed.net) == weights_sha256(whole.net)
    assert run_train(config, "--set", f"save_path={dataset / 'plain'}", "--set", "distill_from=[]") == 0
    plain = load_checkpoint(dataset / "plain/net_last.pth")
    assert weights_sha256(plain.net) != weights_sha256(whole.net)


@pytest.mark.parametrize("changes", [{"distill_method": "dkd"}, {"data_aug": False}, {"augment_on": "device"}])
def test_methods_and_views(taught: Callable[..., Path], changes: dict[str, Any]) -> None:
    assert run_train(taught(num_epochs=1, **changes)) == 0


@pytest.mark.parametrize("net", [{}, {"model_net_name": "TinyChange", "num_classes": 2}], ids=["masks", "pairs"])
def test_masks_and_pairs_are_distilled(net: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with mask_nets(tmp_path, monkeypatch):
        write_scenes(tmp_path, has_pairs=bool(net))
        assert run_train(write_config(tmp_path, **net, save_path=str(tmp_path / "teacher"))) == 0
        small = {**net, "img_height": 16, "img_width": 16, "distill_from": [str(tmp_path / "teacher/net.pth")]}
        assert run_train(write_config(tmp_path, **small, num_epochs=1)) == 0
        taught = load_checkpoint(tmp_path / "weights/net_last.pth")
        assert run_train(write_config(tmp_path, **{**small, "distill_from": []}, num_epochs=1)) == 0
        assert weights_sha256(load_checkpoint(tmp_path / "weights/net_last.pth").net) != weights_sha256(taught.net)


def test_boxes_are_distilled_at_the_same_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with box_nets(tmp_path, monkeypatch):
        write_boxes(tmp_path)
        assert run_train(write_box_config(tmp_path, save_path=str(tmp_path / "teacher"))) == 0
        teacher = {"distill_from": [str(tmp_path / "teacher/net.pth")]}
        assert run_train(write_box_config(tmp_path, **teacher, num_epochs=1)) == 0
        taught = load_checkpoint(tmp_path / "weights/net_last.pth")
        assert run_train(write_box_config(tmp_path, num_epochs=1)) == 0
        assert weights_sha256(load_checkpoint(tmp_path / "weights/net_last.pth").net) != weights_sha256(taught.net)
        capsys.readouterr()
        assert run_train(write_box_config(tmp_path, **teacher, img_height=32, img_width=32)) == 2
    assert "boxes are learnt of teachers with the same input size and strides alone" in capsys.readouterr().err


# --- mistakes


def test_mistakes(
    taught: Callable[..., Path], dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = tmp_path / "names.txt"
    names.write_text("a\nb\nc\n", "utf-8")
    weights = str(dataset / "teacher/net.pth")
    broken = tmp_path / "broken.pth"
    broken.write_bytes(Path(weights).read_bytes()[:-100])
    pim = {"model_module_name": "pim_module", "model_net_name": "PIM", "model_args": {"model_type": "resnet18"}}
    for changes, text in (
        ({"distill_from": ["gone.pth"]}, 'distill_from "gone.pth" is not a file'),
        ({"save_path": str(dataset / "teacher")}, 'net.pth" would be written over by this training'),
        ({"distill_from": [str(broken)]}, "broken.pth"),
        ({"distill_from": [weights], "data_cache": "ram"}, "data_cache keeps images of 24x24 px, and its teacher sees"),
        ({"distill_method": "dkd", "mixup_alpha": 0.2}, 'distill_method "dkd" needs one class an image'),
        ({"num_channels": 1}, "net.pth takes 3 channels, this training 1"),
        (pim, "distill_from is for nets whose outputs are learnt as they are, not for PIM"),
    ):
        assert run_train(taught(**changes)) == 2, text
        err = capsys.readouterr().err
        assert text in err and "Traceback" not in err


# --- feature maps, and the average of the weights


class Stages(nn.Module):
    """Two stages of 4 and 6 channels at 8 and 4 px, and a head: (N, 3, 16, 16) to (N, 3)."""

    def __init__(self, channels: tuple[int, int] = (4, 6)) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels[0], 3, stride=2, padding=1)
        self.deep = nn.Sequential(nn.Conv2d(channels[0], channels[1], 3, stride=2, padding=1), nn.ReLU())
        self.head = nn.Linear(channels[1], 3)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.deep(self.stem(images)).mean(dim=(2, 3)))
        return logits


def test_stages_are_the_last_maps_of_each_size() -> None:
    net = Stages()
    assert stages_of(net, torch.zeros(1, 3, 16, 16)) == [("stem", 4), ("deep", 6)]
    assert net.training and not any(module._forward_hooks for module in net.modules())
    with watching(net, ["stem", "deep"]) as maps:
        net(torch.zeros(2, 3, 16, 16))
    assert [tuple(one.shape) for one in maps] == [(2, 4, 8, 8), (2, 6, 4, 4)]
    sizes = {"num_channels": 3, "img_height": 64, "img_width": 64}
    resnet = build_net("resnet_module", "resnet18", num_classes=3, model_args={}, **sizes)
    deepest = [("layer1", 64), ("layer2", 128), ("layer3", 256), ("layer4", 512)]
    assert stages_of(resnet, torch.zeros(1, 3, 64, 64)) == deepest
    with pytest.raises(NetError, match="needs two feature maps of different sizes, and a net has 1"):
        stages_of(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()), torch.zeros(1, 3, 8, 8))


def test_the_distance_of_maps_is_that_of_their_averages_too() -> None:
    made, wanted = torch.zeros(1, 2, 8, 8), torch.zeros(1, 2, 8, 8)
    wanted[:, :, ::2] = 1.0  # every second row: 1/2 in each average
    expected = (0.5 + 0.25 / 2 + 0.25 / 4 + 0.25 / 8) / (1 + 1 / 2 + 1 / 4 + 1 / 8)
    assert hierarchical_distance(made, wanted).item() == pytest.approx(expected)
    assert hierarchical_distance(made[..., :2, :2], torch.ones(1, 2, 2, 2)).item() == pytest.approx(1.0)


def test_maps_are_learnt_until_they_are_the_teachers() -> None:
    """A review fits maps that a projection makes of the net's own; what the teacher sees gets no gradient."""
    torch.manual_seed(0)
    net, teacher = Stages(), Stages((5, 7)).eval().requires_grad_(False)
    preprocess = Preprocess(16, 16)
    teachers = Teachers([Teacher(teacher, preprocess, (0, 1, 2))], preprocess, method="review")
    reviews = teachers.review_features(net)
    optimizer = torch.optim.Adam([*net.parameters(), *reviews.parameters()], 0.01)
    images, losses = random_logits(3, 8, 3, 16, 16), []
    for _ in range(60):
        with teachers.watching(net) as maps:
            net(images)
        loss = teachers.loss_of_maps(maps, images)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
    assert net.head.weight.grad is None and teacher.head.weight.grad is None


@pytest.mark.parametrize("changes", [{"distill_method": "review"}, {"distill_from": ["ema"], "ema_decay": 0.9}])
def test_what_is_beside_the_net_is_resumed(taught: Callable[..., Path], dataset: Path, changes: dict[str, Any]) -> None:
    config = taught(num_epochs=2, save_interval_steps=1, **changes)
    assert run_train(config) == 0
    stopped = ["--set", f"save_path={dataset / 'stopped'}"]
    with dying_after_save(3, KeyboardInterrupt):
        assert run_train(config, *stopped) == 130
    assert run_train(config, *stopped, "--resume") == 0
    whole, resumed = (load_checkpoint(dataset / name / "net_last.pth") for name in ("weights", "stopped"))
    assert weights_sha256(resumed.net) == weights_sha256(whole.net)
    assert (whole.companion is not None) == ("distill_method" in changes)
    best = load_checkpoint(dataset / "weights/net.pth")
    build_net(**best.metadata.net_arguments()).load_state_dict(best.deployed())
    assert run_train(config, "--set", "distill_from=[]", "--set", "distill_method=logits", *stopped) == 0
    assert weights_sha256(load_checkpoint(dataset / "stopped/net_last.pth").net) != weights_sha256(whole.net)


def test_mistakes_of_maps_and_averages(taught: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    for changes, text in (
        ({"distill_from": ["ema"]}, 'distill_from "ema" is the average of the weights; set ema_decay'),
        ({"distill_from": ["ema"], "ema_decay": 0.9, "distill_method": "review"}, "not those of"),
        ({"distill_method": "review", "compile": True}, "which compile does not allow"),
    ):
        assert run_train(taught(**changes)) == 2, text
        err = capsys.readouterr().err
        assert text in err and "Traceback" not in err
