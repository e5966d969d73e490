"""What a device does not repeat: found by training a batch several times."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import train
from artifacts.checkpoint import load_checkpoint, weights_sha256
from trainers.runtime import determinism
from trainers.runtime.determinism import differing_gradients

ConfigMaker = Callable[..., Path]


class Unsteady(nn.Module):
    """Two layers, of which the first one's gradients depend on how often it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)
        self.unused = nn.Linear(1, 1)
        self.asked = itertools.count(1)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        rounding = 2.0**-20 * next(self.asked)  # as sums in another order leave it
        moved: torch.Tensor = self.second(self.norm(values)) + self.first(values)[:, :2] * (1 + rounding)
        return moved


def test_the_gradients_that_differ_are_named_and_nothing_stays() -> None:
    net = Unsteady()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    values = torch.randn(8, 4)
    assert differing_gradients(net, lambda: net(values).sum()) == ["first.weight", "first.bias"]
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_same_bits_are_no_difference(dtype: torch.dtype) -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.PReLU(), nn.Linear(4, 1)).to(dtype)
    net.register_parameter("scale", nn.Parameter(torch.ones((), dtype=dtype)))
    values = torch.randn(8, 4, dtype=dtype)
    assert differing_gradients(net, lambda: (net(values) * net.scale).sum()) == []


@pytest.mark.parametrize("is_steady", [True, False])
def test_a_training_reports_what_its_device_does_not_repeat(
    make_config: ConfigMaker, dataset: Path, monkeypatch: pytest.MonkeyPatch, is_steady: bool
) -> None:
    """With dropout, mixup and views, which are random and the same each time; without the key nothing is checked."""
    settings: dict[str, Any] = {"model_module_name": "squeezenet_module", "model_net_name": "squeezenet1_1"}
    settings |= {"mixup_alpha": 0.2, "num_epochs": 1, "learning_rate": 1e-4}
    assert train.main(["--config", str(make_config(**settings, save_path=str(dataset / "not_asked")))]) == 0
    assert json.loads((dataset / "not_asked/report.json").read_text())["differing_gradients"] is None
    assert "Repeatable?" not in (dataset / "not_asked/report.html").read_text()
    if not is_steady:
        asked = itertools.count(1)

        def look(net: nn.Module, loss_of: Callable[[], torch.Tensor]) -> list[str]:
            return differing_gradients(net, lambda: loss_of() * next(asked))

        monkeypatch.setattr(determinism, "differing_gradients", look)
    config = make_config(**settings, check_determinism=True, save_path=str(dataset / "asked"))
    assert train.main(["--config", str(config)]) == 0
    found = json.loads((dataset / "asked/report.json").read_text())["differing_gradients"]
    page = (dataset / "asked/report.html").read_text()
    nets = [load_checkpoint(dataset / name / "net_last.pth").net for name in ("asked", "not_asked")]
    assert weights_sha256(nets[0]) == weights_sha256(nets[1])
    if is_steady:
        assert found == [] and "Each gradient was the same bits each time" in page
    else:
        assert "features.0.weight" in found and f"{len(found)} gradients were not the same bits" in page
        assert "features.0.weight, " in page


def test_a_look_that_fails_spoils_no_training(
    make_config: ConfigMaker, dataset: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def look(net: nn.Module, loss_of: Callable[[], torch.Tensor]) -> list[str]:
        raise RuntimeError("CUDA error: an illegal memory access\nand more")

    monkeypatch.setattr(determinism, "differing_gradients", look)
    assert train.main(["--config", str(make_config(num_epochs=1, check_determinism=True))]) == 0
    warning = "warning: check_determinism failed: CUDA error: an illegal memory access\n"
    assert warning in capsys.readouterr().out
    assert json.loads((dataset / "weights/report.json").read_text())["differing_gradients"] is None
