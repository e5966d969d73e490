"""A training that starts from timm's published weights: a Hub folder or a file, and the preprocessing they want."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

import train
from artifacts.checkpoint import load_checkpoint
from configs.loading import ConfigError
from configs.schema import Config
from nets.net_interface import build_net
from nets.support import timm_builder
from nets.support.errors import NetError
from tests.helpers.masks import write_config, write_scenes
from trainers import timm_weights
from trainers.config_checks import training_config
from trainers.head_fitting import fit_head
from trainers.timm_weights import timm_name

pytestmark = pytest.mark.usefixtures("one_thread")

ConfigMaker = Callable[..., Path]
NET = {"model_module_name": "timm_module", "model_net_name": "timm_net", "model_type": "test_resnet.r160_in1k"}
LEFT_OUT = ("img_height", "img_width")
HUB = {  # of a config.json as timm's push_to_hf_hub writes it
    "architecture": "test_resnet",
    "num_classes": 4,
    "label_names": ["circle", "star", "方块", "cross"],
    "pretrained_cfg": {
        "tag": "r160_in1k",
        "input_size": [3, 96, 64],
        "interpolation": "bicubic",
        "crop_pct": 0.9,
        "crop_mode": "border",
        "mean": [0.4, 0.5, 0.6],
        "std": [0.2, 0.25, 0.3],
        "classifier": "fc",
    },
}


@pytest.fixture
def timm() -> Any:
    return pytest.importorskip("timm", reason="timm is not installed: requirements-timm.txt")


def start_folder(timm: Any, folder: Path, values: dict[str, Any] | None) -> dict[str, torch.Tensor]:
    """Write a Hub folder with random weights of 4 classes; return them."""
    from safetensors.torch import save_file

    torch.manual_seed(3)
    state: dict[str, torch.Tensor] = timm.create_model("test_resnet", num_classes=4).state_dict()
    folder.mkdir()
    save_file(state, folder / "model.safetensors")
    if values is not None:
        (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")
    return state


def without(file: Path, *keys: str) -> Path:
    """Leave keys out of a config."""
    values = {key: value for key, value in json.loads(file.read_text(encoding="utf-8")).items() if key not in keys}
    file.write_text(json.dumps(values), encoding="utf-8")
    return file


def finetune(folder: Path) -> dict[str, Any]:
    return {**NET, "train_mode": "finetune", "pretrained_path": str(folder.parent), "pretrained_file": folder.name}


def test_a_training_starts_from_a_hub_folder_with_its_preprocessing(
    timm: Any, make_config: ConfigMaker, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = start_folder(timm, dataset / "hub", HUB)
    config = without(make_config(**finetune(dataset / "hub"), num_epochs=1, learning_rate=1e-12), *LEFT_OUT)
    assert train.main(["--config", str(config)]) == 0
    said = capsys.readouterr().out
    assert "warning" not in said
    assert 'the head\'s rows of 2 of 3 classes are kept by name: "circle", "方块"; new: "stripes"' in said
    trained = load_checkpoint(dataset / "weights/net.pth")
    preprocess = trained.metadata.preprocess
    assert (preprocess.height, preprocess.width, preprocess.resize) == (96, 64, "letterbox")
    assert preprocess.interpolation == "bicubic"
    assert preprocess.mean == (0.4, 0.5, 0.6) and preprocess.std == (0.2, 0.25, 0.3)
    for name, value in state.items():
        if name.endswith("weight") and not name.startswith("fc."):
            torch.testing.assert_close(trained.net[name], value, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(trained.net["fc.weight"][:2], state["fc.weight"][[0, 2]], rtol=1e-5, atol=1e-6)


def test_without_a_config_of_the_hub_timms_record_counts(timm: Any, make_config: ConfigMaker, dataset: Path) -> None:
    """timm documents 160 px, mean and std 0.5 and a central crop for both nets, and bicubic for test_vit."""
    state = start_folder(timm, dataset / "hub", None)
    torch.save({"state_dict": state}, dataset / "resnet.pth")
    for name in ("hub", "resnet.pth"):
        config = training_config(without(make_config(**finetune(dataset / name)), *LEFT_OUT))
        assert (config.img_height, config.img_width, config.resize) == (160, 160, "crop")
        assert config.mean == config.std == [0.5] * 3 and config.interpolation == "bilinear"
    vit = {**finetune(dataset / "resnet.pth"), "model_type": "test_vit"}
    assert training_config(make_config(**vit)).interpolation == "bicubic"
    config = training_config(without(make_config(**vit, num_channels=1, augment_on="device"), *LEFT_OUT))
    assert config.mean == [0.5] and config.interpolation == "bilinear"  # which augment_on "device" needs
    around = {"model_module_name": "simsiam_module", "model_net_name": "SimSiam_probe"}
    around["model_type"] = f"timm:{NET['model_type']}"
    config = training_config(without(make_config(**{**finetune(dataset / "resnet.pth"), **around}), *LEFT_OUT))
    assert (config.img_height, config.mean) == (160, [0.5] * 3)


def test_a_backbone_under_masks_takes_mean_and_std_alone(
    timm: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = start_folder(timm, tmp_path / "hub", HUB)
    write_scenes(tmp_path)
    net = {"model_module_name": "unet_module", "model_net_name": "backbone_unet"}
    changes = {**finetune(tmp_path / "hub"), **net, "model_type": "timm:test_resnet", "img_height": 32, "img_width": 64}
    assert train.main(["--config", str(write_config(tmp_path, **changes, num_epochs=1, learning_rate=1e-12))]) == 0
    assert "warning" not in capsys.readouterr().out
    trained = load_checkpoint(tmp_path / "weights/net.pth")
    preprocess = trained.metadata.preprocess
    assert (preprocess.height, preprocess.width, preprocess.resize) == (32, 64, "squash")
    assert preprocess.mean == (0.4, 0.5, 0.6) and preprocess.interpolation == "bilinear"
    torch.testing.assert_close(
        trained.net["backbone.net.conv1.0.weight"], state["conv1.0.weight"], rtol=1e-5, atol=1e-6
    )


def test_what_the_config_says_stays_and_is_warned_of(
    timm: Any, make_config: ConfigMaker, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start_folder(timm, dataset / "hub", HUB)
    own = {"mean": [0.4, 0.5, 0.5], "resize": "squash", "interpolation": "bilinear"}
    assert train.main(["--config", str(make_config(**finetune(dataset / "hub"), **own, num_epochs=1))]) == 0
    said = capsys.readouterr().out
    place = f"warning: {dataset}/hub: trained with"
    for sentence in (
        "mean [0.4, 0.5, 0.6], but the config has mean [0.4, 0.5, 0.5]",
        "height 96, but the config has height 32",
        "width 64, but the config has width 32",
        "resize letterbox, but the config has resize squash",
        "interpolation bicubic, but the config has interpolation bilinear",
    ):
        assert f"{place} {sentence}" in said
    assert "trained with std" not in said


def test_a_second_training_from_its_checkpoint_goes_on_with_its_own(
    timm: Any, make_config: ConfigMaker, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main(["--config", str(make_config(**NET, num_epochs=1))]) == 0
    again = training_config(make_config(**finetune(dataset / "weights/net.pth"), save_path=str(dataset / "again")))
    assert again.mean == [] and again.resize == "squash"


@pytest.mark.parametrize(
    "name",
    [
        *("resnet18", "mobilenetv3_small_050", "efficientnet_b0", "convnext_atto", "vit_tiny_patch16_224"),
        *(
            "regnety_002",
            "mobileone_s0",
            "repvgg_a0",
            "mobilevit_xxs",
            "fastvit_t8",
            "dla34",
            "mambaout_femto",
            "xception41",
        ),
    ],
)
def test_the_head_of_the_usual_nets_is_fitted(timm: Any, name: str) -> None:
    """The features are those of timm's own `forward_head`, the regression is scikit-learn's own."""
    torch.manual_seed(0)
    arguments = {"model_args": {"model_type": name}, "img_height": 64, "img_width": 64}
    net: Any = build_net("timm_module", "timm_net", num_classes=3, **arguments)
    for module in net.modules():  # random weights alone let most nets forget their image
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    labels = torch.arange(24) % 3
    images = 0.3 * torch.randn(24, 3, 64, 64) + torch.eye(3)[labels][:, :, None, None]
    with torch.no_grad():
        net.train()(images)
        fit_head(net, [{"image": images[:16], "target": labels[:16]}, {"image": images[16:], "target": labels[16:]}])
        net.eval()
        features = net.forward_head(net.forward_features(images), pre_logits=True).flatten(1).double().numpy()
        got = net(images).softmax(1).numpy()
    scaled = (features - features.mean(0)) / max(np.sqrt(features.var(0).mean()), 1e-6)
    expected = LogisticRegression(C=0.01, max_iter=1000).fit(scaled, labels.numpy())
    np.testing.assert_allclose(got, expected.predict_proba(scaled), atol=0.02)


def test_a_distilled_net_has_two_heads_and_none_to_fit(timm: Any) -> None:
    arguments = {"model_args": {"model_type": "deit_tiny_distilled_patch16_224"}, "img_height": 32, "img_width": 32}
    net = build_net("timm_module", "timm_net", num_classes=3, **arguments)
    with pytest.raises(NetError, match="fit_head needs a net that ends in one linear layer"):
        fit_head(net, [])


def test_a_training_fits_the_head_of_a_timm_net_first(
    timm: Any, make_config: ConfigMaker, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its head ends in an Identity, not in the linear layer."""
    torch.manual_seed(3)
    torch.save(timm.create_model("test_byobnet", num_classes=4).state_dict(), dataset / "byobnet.pth")
    start = {**finetune(dataset / "byobnet.pth"), "model_type": "test_byobnet"}
    config = make_config(**start, fit_head=True, num_epochs=1, learning_rate=1e-12, layer_decay=0.8)
    assert train.main(["--config", str(config)]) == 0
    assert "the new head was fitted on frozen features of 21 images and 8 views of each: " in capsys.readouterr().out
    trained = load_checkpoint(dataset / "weights/net.pth")
    assert trained.net["head.fc.weight"].abs().max() > 0


def test_mistakes_are_named_before_the_images_are_read(
    make_config: ConfigMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timm_weights, "is_installed", lambda: False)
    monkeypatch.setattr(timm_builder, "is_installed", lambda: False)
    with pytest.raises(ConfigError, match=r"not installed: pip install -r requirements-timm.txt"):
        training_config(make_config(**NET))
    with pytest.raises(ConfigError, match="torchvision's published weights are not for timm's nets; name a weights"):
        training_config(make_config(**NET, train_mode="finetune", pretrained_file="torchvision"))


def test_which_configs_have_a_net_of_timm() -> None:
    folders = {"train_data_root_dir": "images", "val_data_root_dir": "images", "num_classes": 3}
    values = {"model_module_name": "pim_module", "model_net_name": "PIM", **folders}
    assert timm_name(Config.model_validate({**NET, **folders})) == "test_resnet.r160_in1k"
    assert timm_name(Config.model_validate({**values, "model_type": "timm:swin_tiny_patch4_window7_224"})).startswith(
        "sw"
    )
    assert timm_name(Config.model_validate({**values, "model_type": "resnet50"})) == ""
