"""What a training starts from, beside the classes and the preprocessing of its lists and config."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import train
from artifacts.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from artifacts.errors import CheckpointError
from artifacts.metadata import build_metadata
from configs.schema import Config
from nets.net_interface import build_net
from nets.support.errors import NetError
from nets.support.pretrained import published_normalization, reordered_head
from tests.conftest import CLASSES
from trainers.builder import build_start_net
from trainers.resuming import check_classes
from trainers.start_weights import other_preprocessing

ConfigMaker = Callable[..., Path]
SQUEEZENET = {"model_module_name": "squeezenet_module", "model_net_name": "squeezenet1_1"}
SMALL = {**SQUEEZENET, "img_height": 32, "img_width": 32}


def write_start(file: Path, names: tuple[str, ...] = CLASSES, **preprocess: object) -> Config:
    """Write a checkpoint with random weights for 32x32 px; return its config."""
    start = {"train_mode": "update", "pretrained_path": str(file.parent), "pretrained_file": file.name}
    folders = {"train_data_root_dir": "images", "val_data_root_dir": "images"}
    config = Config.model_validate({**SMALL, **start, **folders, "num_classes": len(names)})
    metadata = build_metadata(config, names)
    metadata = replace(metadata, preprocess=replace(metadata.preprocess, **preprocess))
    torch.manual_seed(5)
    save_checkpoint(Checkpoint(config.model_dump(), metadata, build_net(**metadata.net_arguments()).state_dict()), file)
    return config


def started(config: Config, names: tuple[str, ...]) -> tuple[nn.Module, list[str]]:
    lines: list[str] = []
    return build_start_net(config, lines.append, names).eval(), lines


def test_the_heads_rows_follow_the_lists_order(tmp_path: Path) -> None:
    config = write_start(tmp_path / "start.pth")
    same, lines = started(config, CLASSES)
    assert not [line for line in lines if "warning" in line or "order" in line]
    other = (CLASSES[2], CLASSES[0], CLASSES[1])
    moved, lines = started(config, other)
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        before, after = same(images), moved(images)
    for index, name in enumerate(other):
        torch.testing.assert_close(after[:, index], before[:, CLASSES.index(name)])
    assert lines[0] == (
        f"{tmp_path}/start.pth: the same classes in another order: {quoted(other)} here, {quoted(CLASSES)} in the net; "
        "the head's rows are put into the lists' order"
    )


def quoted(names: tuple[str, ...]) -> str:
    return ", ".join(f'"{name}"' for name in names)


def test_every_head_of_pim_follows() -> None:
    arguments = {"model_type": "resnet18", "fpn_size": 4}  # whose heads have tensors of four rows inside, too
    torch.manual_seed(0)
    net = build_net("pim_module", "PIM", num_classes=4, img_height=64, img_width=64, model_args=arguments).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        before = net.head_logits(net.outputs(images))
    net.load_state_dict(reordered_head(net, net.state_dict(), (3, 1, 0, 2), torch.randn(1, 3, 64, 64)))
    with torch.no_grad():
        after = net.head_logits(net.outputs(images))
    for name, logits in before.items():
        torch.testing.assert_close(after[name], logits[:, [3, 1, 0, 2]])


def test_a_head_whose_rows_are_not_the_classes_is_refused() -> None:
    class Mirrored(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 2)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.linear(images.mean((2, 3)))
            return logits * torch.tensor([1.0, 2.0])

    net = Mirrored()
    with pytest.raises(NetError, match=r"the classes of Mirrored cannot be put into another order: .*finetune"):
        reordered_head(net, net.state_dict(), (1, 0), torch.randn(1, 3, 4, 4))


def test_classes_that_stay_are_named_where_one_is_new(tmp_path: Path) -> None:
    config = write_start(tmp_path / "start.pth")
    _, lines = started(config, (CLASSES[0], "oval", CLASSES[2]))
    assert lines[0] == (
        f'warning: {tmp_path}/start.pth: class 1 is "oval" here, "{CLASSES[1]}" in the net; the weights go on under '
        "the new names, all other classes are kept"
    )
    for names in ((CLASSES[1], CLASSES[2], "oval"), CLASSES[:2]):
        with pytest.raises(
            CheckpointError, match=r'start.pth: its classes are not the lists\': .*"finetune" takes the'
        ):
            started(config.model_copy(update={"num_classes": len(names)}), names)


def test_weights_without_names_are_taken_in_their_order(tmp_path: Path) -> None:
    config = write_start(tmp_path / "start.pth")
    torch.save(load_checkpoint(tmp_path / "start.pth").net, tmp_path / "bare.pth")
    _, lines = started(config.model_copy(update={"pretrained_file": "bare.pth"}), CLASSES)
    assert lines[0] == (
        f"warning: {tmp_path}/bare.pth names no classes: its head is taken for {quoted(CLASSES)}, in this order"
    )
    _, lines = started(config, ("0", "1", "2"))
    assert lines[0].startswith(f"warning: the lists name no classes: {quoted(CLASSES)} of {tmp_path}/start.pth")


def test_other_preprocessing_than_the_weights_is_named(tmp_path: Path) -> None:
    own = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25), "resize": "letterbox", "interpolation": "bicubic"}
    config = write_start(tmp_path / "start.pth", height=40, **own)
    _, lines = started(config, CLASSES)
    place = f"warning: {tmp_path}/start.pth: trained with"
    assert lines[:5] == [
        f"{place} mean [0.5, 0.5, 0.5], but the config has mean [0.485, 0.456, 0.406]",
        f"{place} std [0.25, 0.25, 0.25], but the config has std [0.229, 0.224, 0.225]",
        f"{place} resize letterbox, but the config has resize squash",
        f"{place} interpolation bicubic, but the config has interpolation bilinear",
        f"{place} height 40, but the config has height 32",
    ]
    _, lines = started(config.model_copy(update={"train_mode": "finetune"}), CLASSES)
    assert [line.split()[4] for line in lines if line.startswith("warning")] == ["mean", "std"]


def test_published_weights_with_another_mean_are_named() -> None:
    """torchvision documents mean and std 0.5 for EfficientNetV2-L, ImageNet's for all others."""
    wanted = published_normalization("efficientnet_module", "efficientnet_v2_l", {})
    assert wanted == {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    values = {"model_module_name": "efficientnet_module", "model_net_name": "efficientnet_v2_l"}
    start = {"train_mode": "finetune", "pretrained_file": "torchvision"}
    folders = {"train_data_root_dir": "images", "val_data_root_dir": "images"}
    config = Config.model_validate({**values, **start, **folders, "num_classes": 10})
    assert other_preprocessing(wanted, config) == [
        "warning: published weights: trained with mean [0.5, 0.5, 0.5], but the config has mean [0.485, 0.456, 0.406]",
        "warning: published weights: trained with std [0.5, 0.5, 0.5], but the config has std [0.229, 0.224, 0.225]",
    ]
    assert other_preprocessing(wanted, config.model_copy(update={"mean": [0.5] * 3, "std": [0.5] * 3})) == []
    grey = config.model_copy(update={"num_channels": 1})
    of_resnet = published_normalization("GeM_ResNet_module", "GeM_ResNet_AVP", {"model_type": "resnet18"})
    assert other_preprocessing(of_resnet, grey) == []  # grey: the mean of ImageNet's channels


# --- --resume


def test_resume_refuses_other_classes(
    make_config: ConfigMaker, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["--config", str(make_config(**SMALL, num_epochs=1))]
    assert train.main(run) == 0
    for names in ((CLASSES[1], CLASSES[0], CLASSES[2]), (CLASSES[0], "oval", CLASSES[2])):
        (dataset / "classes.txt").write_text("\n".join(names), encoding="utf-8")
        before = (dataset / "weights/net_last.pth").read_bytes()
        assert train.main([*run, "--resume", "--set", "num_epochs=2"]) == 2
        assert "net_last.pth: --resume cannot go on with other classes: " in capsys.readouterr().err
        assert (dataset / "weights/net_last.pth").read_bytes() == before


def test_resume_takes_names_where_there_were_only_numbers(tmp_path: Path) -> None:
    config = write_start(tmp_path / "net_last.pth", ("0", "1", "2"))
    config = config.model_copy(update={"save_path": str(tmp_path), "save_name": "net.pth"})
    checkpoint = load_checkpoint(tmp_path / "net_last.pth")
    lines: list[str] = []
    check_classes(checkpoint, CLASSES, config, lines.append)
    assert lines == [f"the classes of {tmp_path}/net_last.pth had no names; they are called {quoted(CLASSES)} now"]
    for names in (("1", "0", "2"), ("a", "b")):
        with pytest.raises(CheckpointError, match="cannot go on with other classes"):
            check_classes(checkpoint, names, config, lines.append)
    named = replace(checkpoint, metadata=replace(checkpoint.metadata, class_names=CLASSES))
    with pytest.raises(CheckpointError, match="cannot go on with other classes"):
        check_classes(named, ("0", "1", "2"), config, lines.append)


def test_a_validation_list_of_classes_in_another_order_is_refused(
    make_config: ConfigMaker, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (dataset / "held").mkdir()
    (dataset / "val.txt").rename(dataset / "held/val.txt")
    (dataset / "held/classes.txt").write_text("\n".join(reversed(CLASSES)), encoding="utf-8")
    config = make_config(**SMALL, val_data_file=str(dataset / "held/val.txt"))
    assert train.main(["--config", str(config)]) == 2
    reversed_names = tuple(reversed(CLASSES))
    assert (
        capsys.readouterr()
        .err.strip()
        .endswith(
            f"{dataset}/held/classes.txt: its classes are not the training list's: the same classes in another order: "
            f"{quoted(reversed_names)} here, {quoted(CLASSES)} in training"
        )
    )
