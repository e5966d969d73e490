"""Random calibration splits, as `python -m tools.calibration_splits` draws them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from artifacts.checkpoint import Checkpoint, save_checkpoint
from deploy.inference.decision import decide
from deploy.uncertainty.calibration import CalibrationTarget, calibrate
from tests.helpers.calibrated import metadata_with, some_logits, true_labels
from tools import calibration_splits
from tools.calibration_splits import measure, splits, table


@pytest.fixture
def asked(tmp_path: Path) -> list[str]:
    """Keep logits whose labels are drawn at temperature 2, and a checkpoint of other weights; return the flags."""
    logits = some_logits(6000, 3, spread=9.0)
    np.savez(tmp_path / "kept.npz", logits=logits, labels=true_labels(logits, 2.0))
    metadata = metadata_with(calibration=None, temperature=None, thresholds={})
    save_checkpoint(Checkpoint({}, metadata, torch.nn.Linear(3, 3).state_dict()), tmp_path / "net.pth")
    return ["--weights", str(tmp_path / "net.pth"), "--logits", str(tmp_path / "kept.npz"), "--pictures", "2000"]


def test_a_split_is_measured_as_its_decisions_are() -> None:
    logits = some_logits(4000, 3, spread=9.0)
    labels = true_labels(logits, 2.0)
    fitted = calibrate(logits[:2000], labels[:2000], metadata_with(), CalibrationTarget(0.05, 0.9, 0.1, "margin"))
    found = measure(logits[2000:], labels[2000:], fitted)
    decisions = [decision for decision in decide(logits[2000:], fitted) if decision is not None]
    accepted = [number for number, decision in enumerate(decisions) if decision.decision == "accept"]
    wrong = [number for number in accepted if logits[2000 + number].argmax() != labels[2000 + number]]
    assert 0 < len(wrong) < len(accepted) < 2000
    assert found.coverage == pytest.approx(len(accepted) / 2000)
    assert found.error == pytest.approx(len(wrong) / len(accepted))
    hits = [label in decision.conformal_set for label, decision in zip(labels[2000:], decisions, strict=True)]
    assert found.conformal_coverage == pytest.approx(sum(hits) / 2000)
    assert found.set_size == pytest.approx(sum(len(decision.conformal_set) for decision in decisions) / 2000)


def test_splits_differ_and_repeat_themselves() -> None:
    logits = some_logits(3000, 3, spread=9.0)
    labels = true_labels(logits, 2.0)
    first, again = (
        splits(logits, labels, metadata_with(), CalibrationTarget(0.05, 0.9, 0.1), 1500, 3) for _ in range(2)
    )
    assert first == again and len(set(first)) == 3 and None not in first
    assert splits(logits, labels, metadata_with(), CalibrationTarget(0.0005), 1500, 2) == [None, None]


def test_the_targets_are_printed_beside_the_results(asked: list[str], capsys: Any) -> None:
    flags = ["--splits", "6", "--target_risk", "0.05", "--scores", "margin", "evidence"]
    assert calibration_splits.main([*asked, *flags]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "6 splits, calibrated on 2000, measured on 4000"
    margin = re.fullmatch(r"margin +6/6 +([\d.]+)% +([\d.]+)% \([\d.]+%-([\d.]+)%\) +(\d) +[\d.]+", lines[3])
    assert margin is not None and 20 < float(margin[1]) < 100
    assert float(margin[2]) < 5 and int(margin[4]) == (float(margin[3]) > 5)
    assert re.fullmatch(r"evidence +0/6  no threshold meets the target", lines[4])
    sets = re.match(r"conformal sets: the true class in ([\d.]+)% \([\d.]+%-[\d.]+%\), target 0.95;", lines[5])
    assert sets is not None and abs(float(sets[1]) - 95) < 1.5
    after = re.match(r"temperature ([\d.]+) .*; ECE before ([\d.]+)%, after ([\d.]+)%", lines[6])
    assert after is not None and abs(float(after[1]) - 2) < 0.3 and 3 * float(after[3]) < float(after[2])
    assert max(map(len, lines)) <= 100


def test_mistakes_are_sentences(asked: list[str], capsys: Any) -> None:
    assert calibration_splits.main([*asked[:4], "--pictures", "6000"]) == 2
    assert "--pictures must be less than the 6000 there are, got 6000\n" in capsys.readouterr().err
    assert calibration_splits.main(asked[:2]) == 2
    assert "name the labelled images with --lists\n" in capsys.readouterr().err


def test_a_split_that_accepts_nothing_is_in_no_mean() -> None:
    """Of 0.1 and nothing the mean error is 0.1; with a 0 for the second it was 0.05."""
    one = calibration_splits.Split(0.5, 0.1, 0.9, 1.2, 1.0, 0.1, 0.1, 0.05)
    lines = table({"margin": [one, one._replace(coverage=0.0, error=float("nan"))]}, CalibrationTarget(0.2))
    assert re.match(r"margin +2/2 +25\.00% +10\.000% \(10\.000%-10\.000%\) +0 ", lines[1])
    nothing = one._replace(coverage=0.0, error=float("nan"))
    assert "none accepted" in table({"margin": [nothing]}, CalibrationTarget(0.2))[1]


def test_kept_logits_of_another_net_are_refused(asked: list[str], tmp_path: Path, capsys: Any) -> None:
    with np.load(tmp_path / "kept.npz") as kept:
        np.savez(tmp_path / "kept.npz", **kept, weights_sha256="0" * 64)
    assert calibration_splits.main(asked) == 2
    assert "kept.npz: it holds another net's logits than " in capsys.readouterr().err
