"""Batch norm's running statistics follow the net in trainings of any length."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import train
from artifacts.checkpoint import load_checkpoint
from trainers.optim.norm_momentum import raise_norm_momentum

pytestmark = pytest.mark.usefixtures("one_thread")

ConfigMaker = Callable[..., Path]
LITE = {"model_module_name": "efficientnet_lite_module", "model_net_name": "efficientnet_lite0"}


@pytest.mark.parametrize(("updates", "slow"), [(0, 0.1), (110, 0.1), (400, 0.05), (1000, 0.02), (2000, 0.01)])
def test_only_what_is_too_slow_is_raised(updates: int, slow: float) -> None:
    momenta = (0.01, 0.1, 0.5, None, 0.01)
    net = nn.Sequential(*(nn.BatchNorm2d(2, momentum=momentum) for momentum in momenta), nn.Conv2d(2, 2, 1))
    net[4].eval()  # held
    lines: list[str] = []
    raise_norm_momentum(net, updates, lines.append)
    assert [module.momentum for module in net[:5]] == [pytest.approx(slow), 0.1, 0.5, None, 0.01]
    told = f"batch norm: momentum {slow:.3g} instead of 0.01 in 1 layers, for {updates} batches"
    assert lines == ([told] if slow > 0.01 else [])


def test_a_short_training_leaves_statistics_of_its_own_net(
    make_config: ConfigMaker, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """After two epochs at a rate of nearly 0 the running variance is that of the images, not the initial 1."""
    moved = {}
    for momentum in ("auto", "net"):
        common = {**LITE, "num_epochs": 2, "learning_rate": 1e-9, "batch_norm_momentum": momentum}
        assert train.main(["--config", str(make_config(**common, save_path=str(dataset / momentum)))]) == 0
        net = load_checkpoint(dataset / momentum / "net_last.pth").net
        updates = int(net["bn0.num_batches_tracked"])
        moved[momentum] = (net["bn0.running_var"] - 1).abs()
        told = f"batch norm: momentum 0.1 instead of 0.01 in 49 layers, for {updates} batches"
        assert (told in capsys.readouterr().out) == (momentum == "auto")
    expected = (1 - 0.9**updates) / (1 - 0.99**updates)  # of the way from 1 to the batches' variance
    torch.testing.assert_close(moved["auto"] / moved["net"], torch.full_like(moved["net"], expected), rtol=0.2, atol=0)


def test_an_older_training_goes_on_with_the_nets_own(
    make_config: ConfigMaker, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main(["--config", str(make_config(**LITE, num_epochs=1))]) == 0
    path = dataset / "weights/net_last.pth"
    content = torch.load(path, weights_only=True)
    del content["config"]["batch_norm_momentum"]
    torch.save(content, path)
    capsys.readouterr()
    assert train.main(["--config", str(make_config(**LITE, num_epochs=2)), "--resume"]) == 0
    out = capsys.readouterr().out
    assert 'resuming with batch_norm_momentum "net": this training began before' in out
    assert "batch norm: momentum" not in out
    assert load_checkpoint(path).config["batch_norm_momentum"] == "net"
