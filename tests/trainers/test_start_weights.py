"""What a training starts from, beside the classes and the preprocessing of its lists and config."""

from __future__ import annotations

import argparse
import json
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
from nets.support.pretrained import KeptRows, load_start_weights, published_normalization, reordered_head
from tests.conftest import CLASSES
from trainers.builder import build_start_net
from trainers.optim.optimizer import FreezeError
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


# --- the rows of a finetuned head


def head(net: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the weight (K, 512) and the bias (K,) of a squeezenet's head."""
    state = net.state_dict()
    return state["classifier.1.weight"].flatten(1), state["classifier.1.bias"]


def finetuned(config: Config, names: tuple[str, ...], **changes: object) -> tuple[nn.Module, list[str]]:
    return started(config.model_copy(update={"train_mode": "finetune", "num_classes": len(names), **changes}), names)


def test_a_finetuned_head_keeps_the_rows_of_the_classes_that_it_knows_by_name(tmp_path: Path) -> None:
    config = write_start(tmp_path / "start.pth")
    old = load_checkpoint(tmp_path / "start.pth").net
    weight, bias = old["classifier.1.weight"].flatten(1), old["classifier.1.bias"]
    names = (CLASSES[2], "oval", CLASSES[0], "ring")
    net, lines = finetuned(config, names)
    got_weight, got_bias = head(net)
    assert torch.equal(got_weight[[0, 2]], weight[[2, 0]]) and torch.equal(got_bias[[0, 2]], bias[[2, 0]])
    for row in (1, 3):
        assert not (got_weight[row] == weight).all(dim=1).any()
    assert lines[-1] == (
        f"the head's rows of 2 of 4 classes are kept by name: {quoted((CLASSES[2], CLASSES[0]))}; "
        f"new: {quoted(('oval', 'ring'))}"
    )
    assert "head, fresh but for the rows that are kept: classifier.1.weight, classifier.1.bias" in lines[-2]
    with pytest.raises(FreezeError, match=r"freeze: classifier.1.weight and 1 more .* would stay random"):
        finetuned(config, names, freeze=["classifier*"])


def test_a_head_of_the_same_classes_is_kept_whole(tmp_path: Path) -> None:
    config = write_start(tmp_path / "start.pth")
    other = tuple(reversed(CLASSES))
    net, lines = finetuned(config, other, freeze=["classifier*"])
    assert torch.equal(
        head(net)[0], load_checkpoint(tmp_path / "start.pth").net["classifier.1.weight"].flatten(1).flip(0)
    )
    assert f"the head's rows of 3 of 3 classes are kept by name: {quoted(other)}" in lines
    assert not [line for line in lines if "fresh" in line]


@pytest.mark.parametrize(
    ("of_file", "of_lists", "changes"),
    [
        (CLASSES, ("oval", "ring", "heart"), {}),
        (CLASSES, ("0", "1", "2"), {}),
        (("0", "1", "2"), ("0", "1", "2"), {}),
        (CLASSES, CLASSES, {"fit_head": True}),  # which fits every row
    ],
    ids=str,
)
def test_no_row_is_kept_of_other_classes_of_numbers_and_where_the_head_is_fitted(
    of_file: tuple[str, ...], of_lists: tuple[str, ...], changes: dict[str, object], tmp_path: Path
) -> None:
    config = write_start(tmp_path / "start.pth", of_file)
    net, lines = finetuned(config, of_lists, **changes)
    old = load_checkpoint(tmp_path / "start.pth").net["classifier.1.weight"].flatten(1)
    assert not (head(net)[0][:, None] == old).all(dim=2).any()
    assert lines[-1].endswith("new head, left fresh: classifier.1.weight, classifier.1.bias")


def test_a_foreign_file_with_class_names_keeps_rows_too(tmp_path: Path) -> None:
    config = write_start(tmp_path / "start.pth").model_copy(update={"pretrained_file": "foreign.pth"})
    old = load_checkpoint(tmp_path / "start.pth").net
    weight = old["classifier.1.weight"].flatten(1)
    torch.save({"state_dict": old, "class_names": ["oval", CLASSES[0], "ring"]}, tmp_path / "foreign.pth")
    net, lines = finetuned(config, CLASSES)
    assert torch.equal(head(net)[0][0], weight[1])
    assert lines[-1].startswith(f"the head's rows of 1 of 3 classes are kept by name: {quoted(CLASSES[:1])}; new: ")
    net, lines = started(config, (CLASSES[0], "ring", "oval"))  # update: all rows, in the lists' order
    assert torch.equal(head(net)[0], weight[[1, 2, 0]])
    torch.save({"state_dict": old, "class_names": ["oval", CLASSES[0]]}, tmp_path / "foreign.pth")  # of another head
    net, lines = finetuned(config, CLASSES)
    assert not (head(net)[0][:, None] == weight).all(dim=2).any() and "rows" not in "".join(lines)


def test_every_head_of_pim_keeps_its_rows() -> None:
    arguments = {"model_type": "resnet18", "fpn_size": 4}
    sizes = {"img_height": 64, "img_width": 64}
    torch.manual_seed(0)
    old = build_net("pim_module", "PIM", num_classes=4, model_args=arguments, **sizes).eval()
    new = build_net("pim_module", "PIM", num_classes=3, model_args=arguments, **sizes).eval()
    report = load_start_weights(new, old.state_dict(), new_head=True, kept_rows=KeptRows({2: 0, 0: 3}, 4))
    assert report.kept_rows == (0, 2)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        before, after = old.head_logits(old.outputs(images)), new.head_logits(new.outputs(images))
    for name in ("stage1", "stage2", "stage3", "stage4"):
        torch.testing.assert_close(after[name][:, [2, 0]], before[name][:, [0, 3]])
    rows = new.combiner.classifier.weight  # whose input, the selected positions, follows all classes
    assert torch.equal(rows[[2, 0]], old.combiner.classifier.weight[[0, 3]])


# --- files of other programs


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model.", "backbone.", "net.model."])
@pytest.mark.parametrize("key", ["", "state_dict", "state_dict_ema", "model_ema"])
def test_weights_under_the_names_of_other_programs_are_found(prefix: str, key: str, tmp_path: Path) -> None:
    config = write_start(tmp_path / "start.pth").model_copy(update={"pretrained_file": "other.pth"})
    old = load_checkpoint(tmp_path / "start.pth").net
    weights = {f"{prefix}{name}": value for name, value in old.items()}
    content = {"epoch": 3, key: weights, "args": argparse.Namespace(lr=0.1)} if key else weights
    torch.save(content, tmp_path / "other.pth")
    net, lines = finetuned(config, ("a", "b"))
    state = net.state_dict()
    body = [name for name in old if not name.startswith("classifier")]
    assert len(body) == 50 and all(torch.equal(state[name], old[name]) for name in body)
    assert "loaded 50 of 52 tensors of the net" in lines[-1]


def test_the_average_of_torchs_averaged_model_is_found(tmp_path: Path) -> None:
    """torchvision's reference training saves {"model": ..., "model_ema": the state of an AveragedModel}."""
    config = write_start(tmp_path / "start.pth").model_copy(update={"pretrained_file": "other.pth"})
    net = build_net("squeezenet_module", "squeezenet1_1", num_classes=3, img_height=32, img_width=32, model_args={})
    averaged = torch.optim.swa_utils.AveragedModel(net)
    with torch.no_grad():
        net.features[0].weight.zero_()
    torch.save({"model": net.state_dict(), "model_ema": averaged.state_dict()}, tmp_path / "other.pth")
    started_net, lines = finetuned(config, ("a", "b"))
    expected = averaged.module.features[0].weight
    assert expected.any() and torch.equal(started_net.state_dict()["features.0.weight"], expected)
    assert lines[0].startswith(
        f'{tmp_path}/other.pth: the weights are the averaged ones, "model_ema"; it also has "model"'
    )
    assert "only in the file" not in lines[-1]


def test_a_training_starts_from_a_folder_of_the_hub(
    make_config: ConfigMaker, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import save_file

    write_start(tmp_path / "start.pth")
    folder = dataset / "hub"
    folder.mkdir()
    start = make_config(
        **SMALL, num_epochs=1, train_mode="finetune", pretrained_path=str(dataset), pretrained_file="hub"
    )
    assert train.main(["--config", str(start)]) == 2
    assert f"{folder}: no weights in this folder: neither model.safetensors nor " in capsys.readouterr().err
    save_file(load_checkpoint(tmp_path / "start.pth").net, folder / "model.safetensors")
    labels = {"label_names": ["oval", CLASSES[1], "ring"]}
    (folder / "config.json").write_text(json.dumps({"architecture": "squeezenet", **labels}), encoding="utf-8")
    assert train.main(["--config", str(start)]) == 0
    said = capsys.readouterr().out
    assert "loaded 50 of 52 tensors of the net" in said
    assert f"the head's rows of 1 of 3 classes are kept by name: {quoted(CLASSES[1:2])}" in said
    start_weights = load_checkpoint(dataset / "weights/net.pth").metadata.start_weights
    assert (start_weights["package"], start_weights["licence"]) == ("squeezenet", "no licence stated")


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
