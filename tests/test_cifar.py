"""The recipes for CIFAR-10: alternating flips as the trainer makes them, several views at test time, a run of one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import train
from artifacts.checkpoint import load_checkpoint, weights_sha256
from common.paths import ROOT
from configs.loading import process_config
from tools.benchmark.own_runner import make_trainer
from trainers.evaluation.test_time_augmentation import mean_logits
from trainers.trainer import Trainer

ConfigMaker = Callable[..., Path]
FLIPS: dict[str, Any] = {
    "random_crop_scale": [1.0, 1.0], "random_crop_ratio": [1.0, 1.0], "color_jitter": [0.0, 0.0, 0.0, 0.0],
    "horizontal_flip_alternates": True, "seed": 4, "shuffle": False,
}  # fmt: skip


def trainer_of(config: Path) -> Trainer:
    return make_trainer(process_config(config), lambda text: None)


def test_images_and_batches_are_mirrored_alike_and_both_ways_in_two_epochs(make_config: ConfigMaker) -> None:
    one_by_one = trainer_of(make_config(**FLIPS))
    at_once = trainer_of(make_config(**FLIPS, augment_on="device"))
    assert one_by_one.batches.augment is None and at_once.batches.augment is not None
    seen = []
    for epoch in range(3):
        views, fitted = (list(side.batches.training(epoch, side.batches.plan())) for side in (one_by_one, at_once))
        for one, other in zip(views, fitted, strict=True):
            assert torch.equal(one["index"], other["index"]) and torch.equal(one["image"], other["image"])
        seen.append(torch.cat([batch["image"] for batch in fitted]))
    assert torch.equal(seen[0], seen[1].flip(3)) and torch.equal(seen[0], seen[2])
    assert not torch.equal(seen[0], seen[1])


@pytest.mark.parametrize("views", [2, 6])
def test_mean_logits_against_views_cut_out_by_hand(views: int) -> None:
    generator = np.random.default_rng(0)
    images, weights = generator.normal(size=(4, 3, 5, 6)), generator.normal(size=(90, 7))
    expected = np.zeros((4, 7))
    for image, logits in zip(images, expected, strict=True):
        padded = np.pad(image, ((0, 0), (1, 1), (1, 1)), mode="reflect")
        places = {(1, 1): 1.0} if views == 2 else {(1, 1): 0.5, (0, 0): 0.25, (2, 2): 0.25}
        for (top, left), share in places.items():
            view = padded[:, top : top + 5, left : left + 6]
            for pixels in (view, view[:, :, ::-1]):
                logits += share / 2 * (np.tanh(pixels.ravel()) @ weights)
    matrix = torch.from_numpy(weights)
    got = mean_logits(lambda batch: batch.flatten(1).tanh() @ matrix, torch.from_numpy(images), views)
    np.testing.assert_allclose(got, expected)


def test_a_recipe_trains_and_reports_six_views_apart(
    make_config: ConfigMaker, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Asked or not, the views change neither the weights nor the choice of the best."""
    mine = json.loads(make_config().read_text(encoding="utf-8"))
    places = ("train_data_root_dir", "val_data_root_dir", "train_data_file", "val_data_file", "gpu_id", "num_classes")
    recipe = json.loads((ROOT / "configs/cifar10_wrn_config.json").read_text(encoding="utf-8"))
    recipe |= {key: mine[key] for key in (*places, "precision", "dataloader_workers", "log_path")}
    recipe |= {"model_args": {"depth": 10, "widen_factor": 1, "dropout": 0.3}, "num_epochs": 2, "batch_size": 8}
    recipe |= {"validation_interval": 1, "data_cache": "none"}
    checksums, captured = [], []
    for views in (1, 6):
        folder = dataset / f"views_{views}"
        changes = {"test_time_views": views, "save_path": str(folder), "is_tensorboard": views == 6}
        (dataset / "recipe.json").write_text(json.dumps(recipe | changes), encoding="utf-8")
        assert train.main(["--config", str(dataset / "recipe.json")]) == 0
        captured.append(capsys.readouterr().out)
        checksums.append(weights_sha256(load_checkpoint(folder / "wrn.pth").net))
    assert checksums[0] == checksums[1]
    assert " views " not in captured[0] and captured[1].count("  6 views ") == 2
    plain, apart = (json.loads((dataset / f"views_{views}/report.json").read_text("utf-8")) for views in (1, 6))
    assert "top1_views" not in plain["best"] and plain["best"].items() <= apart["best"].items()
    page = (dataset / "views_6/report.html").read_text(encoding="utf-8")
    assert "Top-1 over 6 views" in page
    assert tagged(dataset / "logs", "val/top1_views") == pytest.approx(
        [point["top1_views"] for point in apart["curves"]["val"]]
    )
    best = [point for point in apart["curves"]["val"] if point["epoch"] == apart["best"]["epoch"]]
    right = best[0]["top1_views"] * 9
    assert right == pytest.approx(round(right)) and 0 <= right <= 9  # of 9 validation images


def tagged(folder: Path, tag: str) -> list[float]:
    """Read a curve of TensorBoard's files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    [run] = (folder / "tensorboard").iterdir()
    events = EventAccumulator(str(run))
    events.Reload()
    return [event.value for event in events.Scalars(tag)]
