"""SimSiam: the loss, the guard against collapse, kNN and probe, unlabelled lists, and both stages end to end."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import train
from artifacts.checkpoint import load_checkpoint, weights_sha256
from artifacts.metadata_reader import read_metadata
from configs.schema import Config
from data_loader.list_reader import read_unlabelled
from data_loader.loaders import ImageDataset, collate
from data_loader.preprocess import Preprocess
from data_loader.samples import NO_LABEL, ListError
from deploy.backends.loading import load_backend
from nets.simsiam_module import SimSiam, SimSiam_probe
from nets.support.errors import NetError
from nets.support.pretrained import load_start_weights
from tests.conftest import CLASSES
from tests.helpers.breaking import ranks
from tests.helpers.exported import export
from trainers.evaluation.feature_probes import Embedded, embed, fit_probe, knn_votes, plain_batches, probe_accuracy
from trainers.optim.lr_schedule import scaled_rate
from trainers.optim.optimizer import build_optimizer, freeze_parameters, hold_frozen_in_eval, set_learning_rate
from trainers.optim.param_groups import parameter_groups
from trainers.tasks import simsiam
from trainers.tasks.simsiam import SimSiamTask, embedding_std, symmetric_loss

ConfigMaker = Callable[..., Path]
SMALL: dict[str, Any] = {"model_type": "resnet18", "projector_size": 32, "projector_layers": 2, "predictor_size": 8}
FAST = "shufflenet_v2_x0_5"  # the backbone of whole trainings
PROBE = {"model_net_name": "SimSiam_probe", "model_args": {"model_type": FAST}, "train_mode": "finetune"}


def small_net(side: int = 32) -> SimSiam:
    torch.manual_seed(0)
    return SimSiam(img_height=side, img_width=side, **SMALL)


@pytest.fixture
def pretraining(make_config: ConfigMaker) -> ConfigMaker:
    def make(**changes: Any) -> Path:
        values: dict[str, Any] = {"model_module_name": "simsiam_module", "model_net_name": "SimSiam"}
        values |= {"model_args": {**SMALL, "model_type": FAST}, "simsiam_knn_neighbours": 5, "batch_size": 7}
        return make_config(**values | changes)

    return make


# --- the loss and what watches it ---


def four(rows: int = 6, size: int = 5) -> list[torch.Tensor]:
    generator = np.random.default_rng(0)
    return [torch.from_numpy(generator.normal(size=(rows, size)).astype(np.float32)) for _ in range(4)]


def test_loss_against_cosines_added_by_hand() -> None:
    z1, z2, p1, p2 = four()
    total = 0.0
    for row in range(len(z1)):
        for p, z in ((p1, z2), (p2, z1)):
            dot = sum(float(a) * float(b) for a, b in zip(p[row], z[row], strict=True))
            total -= dot / math.sqrt(sum(float(a) ** 2 for a in p[row]) * sum(float(b) ** 2 for b in z[row]))
    assert float(symmetric_loss(z1, z2, p1, p2)) == pytest.approx(total / (2 * len(z1)), rel=1e-5)
    assert float(symmetric_loss(z1, z2, z2, z1)) == pytest.approx(-1)


def test_no_gradient_flows_through_z() -> None:
    z1, z2, p1, p2 = (tensor.requires_grad_() for tensor in four())
    symmetric_loss(z1, z2, p1, p2).backward()
    assert z1.grad is None and z2.grad is None
    assert p1.grad is not None and p2.grad is not None and p1.grad.abs().sum() > 0
    net = small_net()
    batch = {"image": torch.rand(8, 3, 32, 32), "target": torch.zeros(4, dtype=torch.long)}
    net.predictor.requires_grad_(False)  # what reaches the backbone comes through the prediction alone
    task = SimSiamTask(net, lambda: iter(()), bank_is_validation=True)
    task.training_step(batch, np.random.default_rng(0))["loss"].backward()
    with_prediction = net.backbone.conv1.weight.grad.clone()
    net.zero_grad()
    z1, p1 = net.projections(batch["image"][0::2])
    z2, p2 = net.projections(batch["image"][1::2])
    frozen = [z.detach() for z in (z1, z2)]
    symmetric_loss(frozen[0], frozen[1], p1, p2).backward()
    assert torch.allclose(net.backbone.conv1.weight.grad, with_prediction, atol=1e-6)


def test_lightlys_loss_agrees() -> None:
    loss = pytest.importorskip("lightly.loss", reason="lightly is not installed").NegativeCosineSimilarity()
    z1, z2, p1, p2 = four(64, 128)
    expected = 0.5 * (loss(p1, z2) + loss(p2, z1))
    assert float(symmetric_loss(z1, z2, p1, p2)) == pytest.approx(float(expected), abs=1e-6)


def test_golden_losses_of_a_few_steps() -> None:
    """Plain SGD written out beside the task's own steps."""
    task = SimSiamTask(small_net(), lambda: iter(()), bank_is_validation=True)
    plain = small_net()
    optimizer = build_optimizer(
        task.net, "sgd", learning_rate=0.05, weight_decay=1e-4, momentum=0.9, nesterov=False, decay_norm_and_bias=True
    )
    momenta = [torch.zeros_like(parameter) for parameter in plain.parameters()]
    ours, theirs = [], []
    for step in range(3):
        images = torch.from_numpy(np.random.default_rng(step).random((8, 3, 32, 32), dtype=np.float32))
        loss = task({"image": images, "target": torch.zeros(4)}, np.random.default_rng(0))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        ours.append(loss.item())
        first, second = images[0::2], images[1::2]
        z1, z2 = plain.projector(plain.backbone(first)), plain.projector(plain.backbone(second))
        p1, p2 = plain.predictor(z1), plain.predictor(z2)
        unit = nn.functional.normalize
        loss = -0.5 * ((unit(p1) * unit(z2.detach())).sum(1) + (unit(p2) * unit(z1.detach())).sum(1)).mean()
        gradients = torch.autograd.grad(loss, list(plain.parameters()))
        with torch.no_grad():
            for parameter, momentum, gradient in zip(plain.parameters(), momenta, gradients, strict=True):
                momentum.mul_(0.9).add_(gradient + 1e-4 * parameter)
                parameter.sub_(0.05 * momentum)
        theirs.append(loss.item())
    assert ours == pytest.approx(theirs, abs=1e-5)
    assert ours[0] != ours[2]


def test_embedding_std_of_healthy_and_collapsed_projections() -> None:
    healthy = torch.randn(4000, 64, generator=torch.Generator().manual_seed(0))
    assert float(embedding_std(healthy)) == pytest.approx(1 / 8, rel=0.02)
    assert float(embedding_std(healthy[:1].expand(100, -1))) == pytest.approx(0, abs=1e-6)


def test_a_collapse_is_reported_and_stops_where_the_config_asks_for_it(
    pretraining: ConfigMaker, dataset: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(simsiam, "embedding_std", lambda z: z.new_zeros(()))
    assert train.main(["--config", str(pretraining(num_epochs=1))]) == 0
    assert (
        "warning: embedding_std is 0.0000, healthy is 0.1768: all images get nearly the same" in capsys.readouterr().out
    )
    assert train.main(["--config", str(pretraining(num_epochs=1, simsiam_on_collapse="stop"))]) == 1
    captured = capsys.readouterr().err
    assert (
        "embedding_std is 0.0000" in captured and "lower learning_rate" in captured and "(epoch 1, step 3)" in captured
    )


# --- the net ---


@pytest.mark.parametrize(
    ("name", "features"),
    [("resnet18", 512), ("mobilenet_v3_small", 1024), ("swin_t", 768), ("googlenet", 1024), ("vit_b_32", 768)],
)
def test_features_and_projections_of_a_backbone(name: str, features: int) -> None:
    net = SimSiam(name, img_height=64, img_width=64, projector_size=24, predictor_size=6)
    images = torch.rand(3, 3, 64, 64)
    z, p = net.projections(images)
    assert net(images).shape == (3, features)
    assert z.shape == p.shape == (3, 24)
    assert SimSiam_probe(name, 7, img_height=64, img_width=64)(images).shape == (3, 7)


def test_projector_and_predictor_are_the_papers() -> None:
    net = SimSiam("resnet18", img_height=224, img_width=224)
    kinds = [type(layer).__name__ for layer in net.projector]
    assert kinds == ["Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d"]
    assert [layer.affine for layer in net.projector if isinstance(layer, nn.BatchNorm1d)] == [True, True, False]
    assert [layer.out_features for layer in net.projector if isinstance(layer, nn.Linear)] == [2048] * 3
    assert [type(layer).__name__ for layer in net.predictor] == ["Linear", "BatchNorm1d", "ReLU", "Linear"]
    assert net.predictor[0].out_features == 512 and net.predictor[3].out_features == 2048


@pytest.mark.parametrize(
    ("stem", "side", "stride"), [("auto", 64, 1), ("auto", 65, 4), ("small", 224, 1), ("imagenet", 32, 4)]
)
def test_the_stem_follows_the_input_size(stem: str, side: int, stride: int) -> None:
    backbone: Any = SimSiam("resnet18", img_height=side, img_width=side, stem=stem).backbone
    images = torch.rand(1, 3, 64, 64)
    x = backbone.maxpool(backbone.relu(backbone.bn1(backbone.conv1(images))))
    assert x.shape[2] == 64 // stride


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ({"model_type": "resnet19"}, 'efficientnet_lite4, got "resnet19"; did you mean "resnet18"?'),
        ({"model_type": "swin_t", "stem": "small"}, 'only torchvision\'s ResNets have the stem "small", swin_t does'),
        ({"model_type": "squeezenet1_0"}, "squeezenet1_0 does not end in a linear layer"),
        ({"model_type": "resnet18", "stem": "tiny"}, 'stem must be one of auto, small, imagenet, got "tiny"'),
        ({"model_type": "resnet18", "projector_layers": 0}, "must be at least 1"),
        (
            {"model_type": "vit_b_16", "img_height": 100, "img_width": 100},
            "squares of whole patches of 16 px, got 100x100",
        ),
        ({"model_type": "inception_v3", "img_height": 64, "img_width": 64}, "does not take images of 64x64 px"),
    ],
)
def test_what_cannot_be_built_is_reported(args: dict[str, Any], sentence: str) -> None:
    with pytest.raises(NetError, match=sentence.replace("(", r"\(")):
        SimSiam(**args)


def test_the_predictors_rate_stays_constant() -> None:
    net = small_net()
    optimizer = build_optimizer(
        net, "sgd", learning_rate=0.4, weight_decay=1e-4, momentum=0.9, nesterov=False, decay_norm_and_bias=True
    )
    set_learning_rate(optimizer, 0.01)
    own = {id(parameter) for parameter in net.predictor.parameters()}
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert {rate for key, rate in rates.items() if key in own} == {0.4}
    assert {rate for key, rate in rates.items() if key not in own} == {0.01}
    assert len(rates) == len(list(net.parameters()))
    plain = parameter_groups(SimSiam_probe("resnet18", 3), 0.1, 0.0)
    assert [group["constant_rate"] for group in plain] == [False]


def test_the_rate_is_scaled_by_the_images_of_a_step(make_config: ConfigMaker) -> None:
    values = json.loads(
        make_config(batch_size=64, accumulation_steps=2, learning_rate=0.03).read_text(encoding="utf-8")
    )
    config = Config.model_validate({**values, "learning_rate_batch": 256})
    assert scaled_rate(config, world_size=3) == pytest.approx(0.03 * 64 * 2 * 3 / 256)
    assert scaled_rate(Config.model_validate(values), world_size=3) == 0.03


# --- what the features are worth ---


def made_up(count: int, seed: int) -> Embedded:
    """Three clusters in 8 dimensions, of different spread and far from 0."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    centres = np.random.default_rng(99).normal(size=(3, 8))
    features = (centres[labels] + 0.7 * generator.normal(size=(count, 8))) * np.geomspace(0.01, 100, 8) + 5
    return Embedded(*map(torch.from_numpy, (features.astype(np.float32), labels, np.arange(count))))


@pytest.mark.parametrize("leave_out_own", [False, True])
def test_votes_against_a_loop(leave_out_own: bool) -> None:
    bank = made_up(40, seed=0)
    queries = bank if leave_out_own else made_up(15, seed=1)
    votes = knn_votes(queries, bank, 3, 7, leave_out_own=leave_out_own)
    for row, query in enumerate(queries.features.double().numpy()):
        cosines = []
        for other, key in enumerate(bank.features.double().numpy()):
            if not (leave_out_own and other == row):
                cosines.append((query @ key / np.linalg.norm(query) / np.linalg.norm(key), int(bank.labels[other])))
        expected = np.zeros(3)
        for cosine, label in sorted(cosines, reverse=True)[:7]:
            expected[label] += math.exp(cosine / 0.1)
        assert votes[row].numpy() == pytest.approx(expected / expected.sum(), abs=2e-3)


def test_more_neighbours_than_images_are_all_of_them() -> None:
    bank = made_up(12, seed=0)
    votes = knn_votes(bank, bank, 3, 200, leave_out_own=True)
    assert votes.shape == (12, 3) and torch.allclose(votes.sum(1), torch.ones(12))


def test_probe_separates_what_is_separable_and_takes_features_as_they_are() -> None:
    bank, queries = made_up(300, seed=0), made_up(150, seed=1)
    layer = fit_probe(bank, 3, seed=0)
    own = float((layer(queries.features).argmax(1) == queries.labels).float().mean())
    assert own > 0.9
    assert probe_accuracy(queries, bank, 3, seed=0) == pytest.approx(own)
    assert 0.85 < probe_accuracy(queries, None, 3, seed=0) <= 1
    shuffled = Embedded(bank.features, bank.labels.roll(1), bank.indices)
    assert probe_accuracy(queries, shuffled, 3, seed=0) < 0.1  # it predicts what it was taught, each class's neighbour


def test_probe_agrees_with_logistic_regression() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    bank, queries = made_up(300, seed=0), made_up(300, seed=1)
    mean, std = bank.features.mean(0), bank.features.std(0)
    reference = linear_model.LogisticRegression(C=100.0, max_iter=2000)
    reference.fit(((bank.features - mean) / std).numpy(), bank.labels.numpy())
    expected = reference.predict(((queries.features - mean) / std).numpy())
    layer = fit_probe(bank, 3, seed=0)
    assert (layer(queries.features).argmax(1).numpy() == expected).mean() > 0.98


def test_embed_leaves_the_net_as_it_was() -> None:
    net = small_net().train()
    before = weights_sha256(net.state_dict())
    batch = {"image": torch.rand(4, 3, 32, 32), "target": torch.arange(4), "index": torch.arange(4)}
    embedded = embed(net, [batch, batch])
    assert embedded.features.shape == (8, 512) and embedded.labels.tolist() == [0, 1, 2, 3] * 2
    assert net.training and weights_sha256(net.state_dict()) == before


# --- unlabelled images ---


def test_lists_with_labels_without_and_mixed(dataset: Path) -> None:
    names = [f"train/{number:02d}.png" for number in range(3)]
    file = dataset / "images.txt"
    file.write_text(f"{names[0]}\n{names[1]}----1\n\n{names[2]}----17\n", encoding="utf-8")
    samples = read_unlabelled(file, dataset / "images", "----", CLASSES)
    assert [sample.label for sample in samples.samples] == [NO_LABEL, 1, NO_LABEL]
    assert not samples.is_labelled and samples.where(2) == f"{file}:4"
    assert read_unlabelled(dataset / "train.txt", dataset / "images", "----", CLASSES).is_labelled


def test_a_folder_of_images_with_and_without_class_folders(tmp_path: Path) -> None:
    for name in ("circle/a.png", "方块/b.png", "elsewhere/c.png", "d.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    samples = read_unlabelled("", tmp_path, "----", CLASSES)
    assert {Path(s.path).name: s.label for s in samples.samples} == {"a.png": 0, "b.png": 1, "c.png": -1, "d.png": -1}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "the list is empty; write one path a line"),
        ("train/00.png\ntrain/00.png\n", "already stands in line 1"),
        ("train/99.png\n", "image not found"),
        ("train/00.png----方块\n", 'label "方块" is not an integer; allowed are 0..2; class 方块 has label 1'),
        ("../train.txt\n", "leaves the root folder"),
    ],
)
def test_lists_that_cannot_be_learnt_from(dataset: Path, text: str, sentence: str) -> None:
    (dataset / "images.txt").write_text(text, encoding="utf-8")
    with pytest.raises(ListError, match=sentence):
        read_unlabelled(dataset / "images.txt", dataset / "images", "----", CLASSES)


def test_two_views_stand_side_by_side(dataset: Path) -> None:
    samples = read_unlabelled("", dataset / "images", "----", CLASSES)

    def view(image: Any, mirrored: bool) -> np.ndarray:
        return np.stack([np.zeros((32, 32, 3), np.uint8), np.full((32, 32, 3), 9, np.uint8)])

    data = ImageDataset(samples, Preprocess(32, 32), view)
    batch = collate([data[0, index] for index in range(3)])
    assert batch["image"].shape == (6, 3, 32, 32) and len(batch["target"]) == 3
    assert batch["image"][:, 0, 0, 0].tolist() == [0, 9] * 3


# --- end to end ---


@pytest.mark.parametrize("augment_on", ["cpu", "device"])
def test_pretraining_from_a_folder_then_probe_reported_together(
    pretraining: ConfigMaker, dataset: Path, augment_on: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The images to learn from have no labels; the backbone is frozen, and shown to be unchanged."""
    following = {**PROBE, "freeze": ["backbone"], "num_epochs": 3, "save_name": "probe.pth"}
    config = pretraining(
        train_data_file="",
        train_data_root_dir=str(dataset / "images/train"),
        augment_on=augment_on,
        validation_interval=2,
        num_epochs=3,
        next_stage={
            **following,
            "train_data_file": str(dataset / "train.txt"),
            "train_data_root_dir": str(dataset / "images"),
        },
    )
    assert train.main(["--config", str(config)]) == 0
    captured = capsys.readouterr().out.splitlines()
    assert [line.count("kNN") for line in captured if line.startswith("epoch")][:3] == [0, 1, 1]
    assert any(line.startswith("  probe, 5 folds") for line in captured)
    assert any(line.startswith("  stage before     best kNN") for line in captured)
    best, last = (load_checkpoint(dataset / "weights" / name) for name in ("net.pth", "net_last.pth"))
    assert best.metadata.output == last.metadata.output == "features" and best.metadata.class_names == CLASSES
    probe = load_checkpoint(dataset / "weights/next_stage/probe_last.pth")
    assert probe.metadata.output == "logits"
    backbone = {key: value for key, value in best.net.items() if key.startswith("backbone.")}
    assert len(backbone) > 100
    assert all(torch.equal(probe.net[key], value) for key, value in backbone.items())
    report = json.loads((dataset / "weights/next_stage/report.json").read_text(encoding="utf-8"))
    first = json.loads((dataset / "weights/report.json").read_text(encoding="utf-8"))
    assert first["measure"] == "kNN" and list(first["conclusions"]) == ["probe, 5 folds"]
    assert report["earlier"]["top1"] == first["best"]["top1"] and report["measure"] == "top-1"
    assert "kNN of net" in (dataset / "weights/next_stage/report.html").read_text(encoding="utf-8")


def test_each_stage_alone_and_both_resumed(
    pretraining: ConfigMaker, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = pretraining(next_stage={**PROBE, "num_epochs": 2})
    assert train.main(["--config", str(config)]) == 0
    names = ("net_last.pth", "next_stage/net_last.pth")
    whole = [load_checkpoint(dataset / "weights" / name).net for name in names]
    half = ["--config", str(config), "--set", f"save_path={dataset}/half"]
    assert train.main([*half, "--stage", "1", "--set", "num_epochs=1"]) == 0
    assert not (dataset / "half/next_stage").exists()
    assert train.main([*half, "--resume", "--stage", "1"]) == 0
    assert train.main([*half, "--stage", "2", "--set", "next_stage.num_epochs=1"]) == 0
    capsys.readouterr()
    assert train.main([*half, "--resume"]) == 0
    captured = capsys.readouterr().out
    assert "resuming after epoch 2, the last, at step 6" in captured and "resuming in epoch 2 at step" in captured
    parts = [load_checkpoint(dataset / "half" / name).net for name in names]
    assert weights_sha256(parts[0]) == weights_sha256(whole[0])
    assert weights_sha256(parts[1]) == weights_sha256(whole[1])


def test_a_resumed_first_stage_that_was_finished_keeps_its_probe_and_a_stale_second_one_begins_anew(
    pretraining: ConfigMaker, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(pretraining(num_epochs=1, next_stage={**PROBE, "num_epochs": 1}))
    assert train.main(["--config", config]) == 0
    before = json.loads((dataset / "weights/report.json").read_text(encoding="utf-8"))
    assert train.main(["--config", config, "--resume"]) == 0
    after = json.loads((dataset / "weights/report.json").read_text(encoding="utf-8"))
    assert after["conclusions"] == before["conclusions"] and after["conclusions"]
    capsys.readouterr()
    assert train.main(["--config", config, "--stage", "1", "--set", "seed=1"]) == 0  # another pretraining
    assert "stays until this training has a best epoch of its own" in capsys.readouterr().out
    best, state = dataset / "weights/net.pth", dataset / "weights/next_stage/net_last.pth"
    os.utime(state, (best.stat().st_mtime - 5,) * 2)
    assert train.main(["--config", config, "--set", "seed=1", "--resume"]) == 0
    second = capsys.readouterr().out.partition("next stage:")[2]
    assert "resuming" not in second and "epoch 1/1" in second


def test_a_signal_stops_between_the_banks_batches(
    pretraining: ConfigMaker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bank may take minutes to embed."""
    asked: list[int] = []

    def long_bank(*arguments: Any) -> Callable[[], Iterator[Any]]:
        batches = plain_batches(*arguments)

        def again_and_again() -> Iterator[Any]:
            for batch in batches():
                for number in range(50):
                    asked.append(number)
                    if len(asked) == 2:
                        signal.raise_signal(signal.SIGTERM)
                    yield batch

        return again_and_again

    monkeypatch.setattr(simsiam, "plain_batches", long_bank)
    assert train.main(["--config", str(pretraining(num_epochs=1, dataloader_workers=0))]) == 143
    assert asked == [0, 1] and "interrupted by SIGTERM" in capsys.readouterr().out


def test_two_processes_report_what_one_does(pretraining: ConfigMaker, dataset: Path) -> None:
    """The probe and the kNN are of all validation images, whoever embedded them."""
    config = pretraining(num_epochs=1, batch_size=4, model_args=SMALL)
    output = dataset / "output.txt"
    assert ranks(2, lambda: train.main(["--config", str(config)]), output) == [0, 0], output.read_text()
    assert "2 processes" in output.read_text()
    report = json.loads((dataset / "weights/report.json").read_text(encoding="utf-8"))
    assert sum(map(sum, report["confusion"])) == 9
    assert round(9 * report["conclusions"]["linear probe"], 6).is_integer()  # ninths, not fifths or fourths
    best = load_checkpoint(dataset / "weights/net.pth")
    net = small_net()
    net.load_state_dict(best.net)
    train_list, val_list = (
        read_unlabelled(dataset / f"{name}.txt", dataset / "images", "----", CLASSES) for name in ("train", "val")
    )
    bank, queries = (
        embed(net, plain_batches(samples, best.metadata.preprocess, 0, torch.device("cpu"))())
        for samples in (train_list, val_list)
    )
    votes = knn_votes(queries, bank, 3, 5)
    assert float((votes.argmax(1) == queries.labels).float().mean()) == pytest.approx(report["best"]["top1"])
    assert probe_accuracy(queries, bank, 3, 0) == pytest.approx(report["conclusions"]["linear probe"])


FILES = {"jit": "model.pt", "pt2": "model.pt2", "onnx": "model.onnx", "int8": "model.int8.onnx", "json": "model.json"}


@pytest.mark.parametrize("formats", ["pt2 onnx", pytest.param(" ".join(FILES), marks=pytest.mark.slow)])
def test_the_encoder_leaves_in_every_format_and_the_probe_as_any_classifier(
    pretraining: ConfigMaker, dataset: Path, formats: str
) -> None:
    following = {**PROBE, "num_epochs": 3, "learning_rate": 0.05, "save_name": "probe.pth"}
    assert train.main(["--config", str(pretraining(num_epochs=1, next_stage=following))]) == 0
    check_exports(dataset / "weights/net.pth", formats.split(), dataset / "encoder", "features", 1024)
    check_exports(dataset / "weights/next_stage/probe.pth", ["onnx"], dataset / "probe", "logits", 3)
    names = torch.export.load(dataset / "encoder/model.pt2").state_dict  # the projector stays behind
    assert names and not [name for name in names if not name.startswith("backbone.")]


def check_exports(weights: Path, formats: list[str], out: Path, output: str, width: int) -> None:
    """Export a checkpoint and compare each file's outputs, of any batch size, with its own."""
    assert export(weights, formats, out, device="cpu") == 0
    report = json.loads((out / "export_report.json").read_text(encoding="utf-8"))
    assert [entry["status"] for entry in report["formats"]] == ["written"] * len(formats)
    images = np.random.default_rng(0).random((5, 3, 32, 32), dtype=np.float32)
    expected = load_backend(weights, device="cpu")[0](images)
    assert expected.shape == (5, width)
    for file in [FILES[name] for name in formats]:
        backend, metadata = load_backend(out / file, device="cpu")
        assert metadata.output == output
        tolerance = 0.1 if "int8" in file else 1e-5
        for count in (1, 3, 5):
            assert np.abs(backend(images[:count]) - expected[:count]).max() < tolerance * np.abs(expected).max()


def test_finetuning_moves_the_backbone_and_a_labelled_list_is_the_bank(pretraining: ConfigMaker, dataset: Path) -> None:
    assert (
        train.main(["--config", str(pretraining(num_epochs=1, ema_decay=0.9, next_stage={**PROBE, "num_epochs": 1}))])
        == 0
    )
    first = json.loads((dataset / "weights/report.json").read_text(encoding="utf-8"))
    assert list(first["conclusions"]) == ["linear probe"]
    before = load_checkpoint(dataset / "weights/net.pth").deployed()
    after = load_checkpoint(dataset / "weights/next_stage/net_last.pth").net
    assert not torch.equal(before["backbone.conv1.0.weight"], after["backbone.conv1.0.weight"])


def test_one_batch_is_learnt(dataset: Path) -> None:
    torch.manual_seed(0)
    net = SimSiam(img_height=16, img_width=16, **{**SMALL, "model_type": FAST})
    task = SimSiamTask(net, lambda: iter(()), bank_is_validation=True)
    optimizer = torch.optim.SGD(task.parameters(), lr=0.05, momentum=0.9)
    generator = torch.Generator().manual_seed(0)
    originals = torch.rand(8, 3, 16, 16, generator=generator)
    images = originals.repeat_interleave(2, dim=0) + 0.05 * torch.randn(16, 3, 16, 16, generator=generator)
    losses = []
    for _ in range(60):
        terms = task({"image": images, "target": torch.zeros(8)}, np.random.default_rng(0))
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
        losses.append(terms["loss"].item())
    assert losses[-1] < -0.8 and losses[0] > -0.3
    assert float(terms["embedding_std"]) > 0.5 / math.sqrt(SMALL["projector_size"])  # not by collapsing


def test_frozen_backbone_is_wholly_in_eval_mode() -> None:
    probe = SimSiam_probe("swin_t", 3, img_height=64, img_width=64)
    freeze_parameters(probe, ["backbone"])
    probe.train()
    hold_frozen_in_eval(probe)
    assert probe.fc.training
    assert not any(module.training for module in probe.backbone.modules())  # stochastic depth has no parameters


def test_the_probe_starts_from_the_backbone_alone() -> None:
    probe, pretrained = SimSiam_probe("resnet18", 3, img_height=32, img_width=32), small_net()
    report = load_start_weights(probe, pretrained.state_dict(), new_head=True)
    assert set(report.skipped_head) == {"fc.weight", "fc.bias"} and not report.missing and not report.skipped_shape
    assert all(name.startswith(("projector.", "predictor.")) for name in report.unexpected)
    assert float(probe.fc.weight.detach().std()) == pytest.approx(0.01, rel=0.1)


def test_what_is_frozen_must_have_been_loaded(pretraining: ConfigMaker, capsys: pytest.CaptureFixture[str]) -> None:
    """The stem for small images in the first stage, the other one in the second."""
    following = {**PROBE, "freeze": ["backbone"], "num_epochs": 1, "img_height": 96, "img_width": 96}
    following["model_args"] = {"model_type": "resnet18"}
    assert train.main(["--config", str(pretraining(num_epochs=1, model_args=SMALL, next_stage=following))]) == 2
    captured = capsys.readouterr()
    assert "freeze: backbone.conv1.weight and 0 more of the frozen parameters were not loaded" in captured.err
    following = {**following, "freeze": ["backbon"]}
    assert train.main(["--config", str(pretraining(num_epochs=1, next_stage=following))]) == 2
    captured = capsys.readouterr()
    assert 'freeze: "backbon" fits no parameter' in captured.err and "epoch" not in captured.out


def test_a_folder_that_the_second_stage_cannot_write_is_found_before_the_first(
    pretraining: ConfigMaker, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    following = {**PROBE, "save_path": str(dataset / "train.txt/weights")}
    assert train.main(["--config", str(pretraining(next_stage=following))]) == 2
    captured = capsys.readouterr()
    assert "train.txt/weights: cannot write into this folder" in captured.err and "epoch" not in captured.out


def test_a_second_stage_starts_from_the_first_by_default(
    pretraining: ConfigMaker, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    following = {key: value for key, value in PROBE.items() if key != "train_mode"} | {"num_epochs": 1}
    assert train.main(["--config", str(pretraining(num_epochs=1, next_stage=following))]) == 0
    count = len(SimSiam_probe(FAST, 3).state_dict())
    assert f"loaded {count - 2} of {count} tensors of the net" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"next_stage": {"num_epoch": 2}}, 'next_stage: unknown key "num_epoch"; did you mean "num_epochs"?'),
        ({"next_stage": {"num_epochs": 0}}, "next_stage: num_epochs must be at least 1, got 0"),
        ({"next_stage": {"next_stage": {}}}, "next_stage: a third training cannot follow"),
        (
            {"next_stage": {"model_net_name": "Probe", "model_args": {}}},
            'next_stage: nets/simsiam_module.py has no net "Probe"',
        ),
        (
            {"next_stage": {"num_epochs": 3, "save_path": "weights"}, "save_path": "weights"},
            "another folder than the first",
        ),
        ({"augment_on": "device", "rotation_degrees": 5.0}, "rotation_degrees is for one image at a time"),
        ({"augment_on": "device", "interpolation": "bicubic"}, 'crops bilinearly, not by "bicubic"'),
        ({"label_smoothing": 0.1}, "label_smoothing needs labels, which SimSiam does not learn from"),
        ({"compile": True}, "compile is for nets that are trained by their logits alone, not for SimSiam"),
    ],
)
def test_mistakes_in_a_config(
    pretraining: ConfigMaker, changes: dict[str, Any], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main(["--config", str(pretraining(**changes))]) == 2
    assert sentence in capsys.readouterr().err


def test_a_second_stage_without_labels_is_reported_before_the_first_begins(
    pretraining: ConfigMaker, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = str(dataset / "images/train")
    config = pretraining(train_data_file="", train_data_root_dir=root, next_stage={**PROBE, "num_epochs": 1})
    assert train.main(["--config", str(config)]) == 2
    captured = capsys.readouterr()
    assert f"next_stage: {root}: has no class folders" in captured.err and "epoch" not in captured.out
    assert train.main(["--config", str(config), "--stage", "2"]) == 2
    assert "the net of the first stage is not there; train it with --stage 1" in capsys.readouterr().err
    assert train.main(["--config", str(pretraining()), "--stage", "2"]) == 2
    assert "it has one stage, no next_stage for --stage 2" in capsys.readouterr().err


def test_the_values_of_the_second_stage_are_shown(
    pretraining: ConfigMaker, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = pretraining(next_stage={**PROBE, "num_epochs": 7})
    assert train.main(["--config", str(config), "--stage", "2", "--print_config"]) == 0
    lines = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()}
    assert lines["num_epochs"] == ["7", "next_stage"] and lines["pretrained_file"][0] == '"net.pth"'


def test_an_encoder_does_not_classify(
    pretraining: ConfigMaker, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import inference

    assert train.main(["--config", str(pretraining(num_epochs=1))]) == 0
    weights = dataset / "weights/net.pth"
    assert read_metadata(weights).output == "features"
    status = inference.main(
        ["--weights", str(weights), "--image_dir", str(dataset / "images"), "--output", str(dataset / "r.csv")]
    )
    assert status == 2
    assert "this net gives features, not classes" in capsys.readouterr().err
    assert not (dataset / "r.csv").exists()
