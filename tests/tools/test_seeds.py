"""Several seeds of one config: trained once each, resumed after a kill, and reported together."""

from __future__ import annotations

import contextlib
import io
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import train
from common.console import text_columns
from common.signals import Stopped
from configs.loading import process_config
from deploy.backends.loading import load_backend
from deploy.inference.class_prediction import ClassPrediction
from deploy.inference.predictor import Predictor
from tests.helpers.breaking import dying_after_save
from tools import child_programs
from tools.seeds import __main__ as seeds
from tools.seeds.__main__ import SeedsError, check_same, shared_values
from tools.seeds.page import deviation, terminal_text
from tools.seeds.results import SeedResult, spread, summarize

MEASURE = {"key": "top1", "name": "top-1", "higher_is_better": True, "is_share": True}


class Trainings:
    """Runs trainings in this process, and notes their arguments; one can be stopped in the middle."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.stop_at = 0  # the number of the training that is stopped

    def __call__(self, arguments: Sequence[str], log: Path | None = None) -> int:
        self.calls.append(list(arguments[1:]))
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            if len(self.calls) != self.stop_at:
                return train.main(self.calls[-1])
            with pytest.raises(ZeroDivisionError), dying_after_save(6, ZeroDivisionError):
                train.main(self.calls[-1])
        raise Stopped(15)


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> Trainings:
    found = Trainings()
    monkeypatch.setattr(child_programs, "run_child", found)
    return found


def start(config: Path, *flags: str) -> tuple[int, str, str]:
    """Run the program; return its exit code and what it prints."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = seeds.main(["--config", str(config), *flags])
    return code, out.getvalue(), err.getvalue()


def test_a_kill_loses_nothing(make_config: Callable[..., Path], trainings: Trainings, dataset: Path) -> None:
    """The second of three seeds is stopped in the middle; each report and all predictions are then read by hand."""
    config, output = make_config(save_interval_steps=1, save_name="net.pth"), dataset / "weights_seeds"
    trainings.stop_at = 2
    code, _, mistake = start(config, "--seeds", "3")
    assert code == 128 + 15 and "stopped by SIGTERM" in mistake
    assert [row["seed"] for row in json.loads((output / "seeds.json").read_text("utf-8"))["seeds"]] == [0]
    first = output / "seed_0/net.pth"
    before = first.read_bytes()

    code, printed, mistake = start(config, "--seeds", "3")
    assert (code, mistake) == (0, "")
    assert ["--resume" in call for call in trainings.calls] == [False, False, True, False]
    assert first.read_bytes() == before and "finished before" in printed
    report = json.loads((output / "seeds.json").read_text("utf-8"))
    own = [json.loads((output / f"seed_{seed}/report.json").read_text("utf-8")) for seed in range(3)]
    assert [row["config"]["seed"] for row in own] == [0, 1, 2]
    values = [row["best"]["top1"] for row in own]
    assert [row["value"] for row in report["seeds"]] == values
    assert report["summary"]["mean"] == pytest.approx(sum(values) / 3)
    check_images(report["images"], own)

    trained = len(trainings.calls)
    code, printed, _ = start(config, "--seeds", "3")
    assert code == 0 and len(trainings.calls) == trained
    assert max(text_columns(line) for line in printed.splitlines() if "/" not in line) < 80


def check_images(images: dict[str, Any], reports: list[dict[str, Any]]) -> None:
    """Compare with what inference predicts for the validation images with each seed's net."""
    names = reports[0]["class_names"]
    predicted: dict[str, list[str]] = {}
    for report in reports:
        folder = Path(report["config"]["save_path"])
        backend = load_backend(folder / report["config"]["save_name"], device="cpu")
        root = Path(report["config"]["val_data_root_dir"])
        for row in Predictor(*backend).predict_files(
            [str(path) for path in sorted((root / "val").iterdir())], workers=1
        ):
            assert isinstance(row, ClassPrediction)
            predicted.setdefault(row.file, []).append(row.class_name)
    label = {path: names[int(Path(path).stem) % 3] for path in predicted}
    assert images["measured"] == len(predicted) == 9
    assert {row["path"] for row in images["changing"]} == {p for p, found in predicted.items() if len(set(found)) > 1}
    assert {row["path"] for row in images["never_right"]} == {
        p for p, found in predicted.items() if label[p] not in found
    }
    assert images["always_right"] == sum(set(found) == {label[path]} for path, found in predicted.items())


def test_another_config_is_refused(make_config: Callable[..., Path], trainings: Trainings, dataset: Path) -> None:
    assert start(make_config(num_epochs=1), "--seeds", "1")[0] == 0
    code, _, mistake = start(make_config(num_epochs=1), "--seeds", "2", "--set", "learning_rate=0.5")
    assert code == 2 and "it has seeds of another config: learning_rate was 0.02, is 0.5; choose another" in mistake
    assert len(trainings.calls) == 1


def test_a_key_that_is_newer_than_the_seeds(make_config: Callable[..., Path], dataset: Path) -> None:
    values = shared_values(process_config(make_config()))
    del values["icc_profiles"]
    (dataset / "seeds.json").write_text(json.dumps({"config": values}), encoding="utf-8")
    check_same(dataset, process_config(make_config()))
    with pytest.raises(SeedsError, match='icc_profiles was "convert", is "ignore"; choose another --output'):
        check_same(dataset, process_config(make_config(icc_profiles="ignore")))


def test_a_training_that_fails(make_config: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_programs, "run_child", lambda arguments, log=None: 1)
    code, _, mistake = start(make_config(), "--seeds", "2")
    assert code == 2 and "seed 0: the training ended with exit code 1; those that are finished are kept" in mistake


def result(seed: int, top1: float, recall: float | None, predictions: list[int]) -> SeedResult:
    report = {
        "net": "m.n", "task": "classification", "status": "finished", "class_names": ["a", "b"],
        "num_train": 10, "num_val": 3, "primary_measure": MEASURE, "train_seconds": 1.0,
        "best": {"top1": top1, "loss": 0.5, "epoch": 4},
        "per_class": [{"class": "a", "support": 3, "recall": recall}, {"class": "b", "support": 0, "recall": None}],
    }  # fmt: skip
    return SeedResult(seed, Path(f"s{seed}"), report, {f"{n}.png": (label, 0.9) for n, label in enumerate(predictions)})


def test_the_summary() -> None:
    """0.90, 0.92 and 0.97 have the mean 0.93 and the sample variance (0.0009 + 0.0001 + 0.0016) / 2."""
    results = [result(0, 0.9, 0.5, [0, 0, 1]), result(1, 0.92, 0.7, [0, 1, 1]), result(2, 0.97, 0.6, [0, 1, 1])]
    report = summarize(results, range(3), {"0.png": 0, "1.png": 1, "2.png": 0})
    assert report["summary"] == pytest.approx({"mean": 0.93, "std": 0.0013**0.5, "min": 0.9, "max": 0.97})
    assert report["per_class"][0]["recall"]["mean"] == pytest.approx(0.6) and report["per_class"][1]["recall"] is None
    images = report["images"]
    assert (images["measured"], images["always_right"]) == (3, 1)
    assert [(row["path"], row["predictions"], row["right"]) for row in images["changing"]] == [("1.png", [0, 1, 1], 2)]
    assert [row["path"] for row in images["never_right"]] == ["2.png"]
    text = terminal_text(report)
    assert "mean 93.00%, from 90.00% to 97.00%, standard deviation 3.61 points" in text
    assert max(map(text_columns, text.splitlines())) < 80


def test_the_spread_of_one_value() -> None:
    assert spread([0.5]) == {"mean": 0.5, "std": None, "min": 0.5, "max": 0.5}
    assert deviation(statistics.stdev([1.0, 3.0]), {**MEASURE, "is_share": False}) == "1.4142"
