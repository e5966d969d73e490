"""`create mvp`, and what its main.py does: train, test, export and pick, with the functions of its own files."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from artifacts.checkpoint import load_checkpoint
from common.paths import ROOT
from tests.helpers.cifar import write_cifar10
from tests.helpers.experiments import TINY, run_main
from tools import antgo

DATASET = """
import dataclasses

def sample_lists(train, val):
    return dataclasses.replace(train, samples=train.samples[::2], line_numbers=()), val
"""
METRICS = """
import statistics

def further_numbers(validation):
    return {"mean_f1": statistics.fmean(row["f1"] or 0.0 for row in validation.per_class)}
"""
HOOKS = """
from pathlib import Path

def epoch_ended(trainer, validation):
    with Path("epochs.txt").open("a") as file:
        file.write(f"{trainer.progress.epoch} {validation.top1}\\n")
"""


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make an experiment "mine" and a small CIFAR-10 beside it, and go there."""
    monkeypatch.chdir(tmp_path)
    assert antgo.main(["create", "mvp", "--name", "mine"]) == 0
    write_cifar10(tmp_path / "cifar-10-binary.tar.gz")
    return tmp_path


def test_the_tree_is_antgos_and_nothing_is_written_over(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = ["__init__.py", "configs/config.json", "dataset.py", "hooks.py", "main.py", "metrics.py", "models/wideres.py"]
    beside = ["README.md", "install.sh", "launch.sh", "requirements.txt", "system.py"]
    found = sorted(str(path.relative_to(tree)) for path in tree.rglob("*") if path.is_file())
    assert found == sorted([*beside, "cifar-10-binary.tar.gz", *(f"mine/{name}" for name in own)])
    (tree / "README.md").write_text("my own", encoding="utf-8")
    assert antgo.main(["create", "mvp", "--name", "mine"]) == 2
    assert antgo.main(["create", "mvp", "--name", "../other"]) == 2
    err = capsys.readouterr().err
    assert "mine: it is there already; choose another --name or --tgt" in err
    assert '--name must begin with a letter and have letters, digits, - and _ only, got "../other"' in err
    assert antgo.main(["create", "mvp", "--name", "second"]) == 0
    assert (tree / "README.md").read_text(encoding="utf-8") == "my own"
    assert antgo.main(["create", "mpv"]) == 2
    assert '"create mpv" is no command; did you mean "mvp"?' in capsys.readouterr().err


def test_train_resume_test_and_export_with_functions_of_its_own(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, text in (("dataset", DATASET), ("metrics", METRICS), ("hooks", HOOKS)):
        (tree / f"mine/{name}.py").write_text(text, encoding="utf-8")
    main, output = tree / "mine/main.py", tree / "output/mine/output"
    data = ("--data", "cifar-10-binary.tar.gz", "--set", "validation_interval=1")
    assert run_main(main, "--process", "train", "--max-epochs", "2", *data, *TINY) == 0
    assert sorted(path.name for path in (output / "checkpoint").iterdir()) == ["epoch_2.pth", "latest.pth"]
    names = ["best.json", "best.pth", "report.html", "report.json"]
    assert sorted(path.name for path in (output / "metric").iterdir()) == names
    report = json.loads((output / "metric/report.json").read_text(encoding="utf-8"))
    assert report["num_train"] == 25 and report["net"] == "wideres.WideResNet"
    f1 = statistics.fmean(row["f1"] or 0.0 for row in report["per_class"])
    best = json.loads((output / "metric/best.json").read_text(encoding="utf-8"))
    assert best["current"] == f"epoch_{report['best']['epoch']}"
    assert best["score"]["top_1"] == report["best"]["top1"] and best["score"]["mean_f1"] == pytest.approx(f1)
    assert ["mean_f1", f"{f1:.4f}"] in report["rows"]
    rows = (tree / "epochs.txt").read_text(encoding="utf-8").splitlines()
    assert rows == [f"{point['epoch']} {point['top1']}" for point in report["curves"]["val"]] and len(rows) == 2

    words = ("--resume-from", "output/mine/output/checkpoint/latest.pth", "--json", "score.json")
    assert run_main(main, "--process", "train", "--max-epochs", "3", *words, *data, *TINY) == 0
    assert sorted(path.name for path in (output / "checkpoint").iterdir()) == ["epoch_3.pth", "latest.pth"]
    assert len((tree / "epochs.txt").read_text(encoding="utf-8").splitlines()) == 3
    best = json.loads((tree / "score.json").read_text(encoding="utf-8"))
    assert best == json.loads((output / "metric/best.json").read_text(encoding="utf-8"))
    assert load_checkpoint(output / "checkpoint/latest.pth").progress["epoch"] == 3

    assert run_main(main, "--process", "test", "--json", "test.json", *data, *TINY) == 0
    tested = json.loads((tree / "test.json").read_text(encoding="utf-8"))
    assert tested["score"] == best["score"] and tested["num"] == 20

    assert run_main(main, "--process", "export", "--gpu-id", "-1") == 0
    assert (output / "export/mine-best-model.onnx").samefile(output / "export/best/model.onnx")
    pick = ("--unlabelled", "cifar-10-binary/test", "--num", "4", "--strategy", "entropy", "--gpu-id", "-1")
    assert run_main(main, "--process", "activelearning", *pick) == 0
    assert len(json.loads((output / "activelearning/annotation.json").read_text(encoding="utf-8"))) == 4
    capsys.readouterr()


@pytest.mark.slow
def test_two_processes_call_the_functions_and_leave_one_run(tree: Path) -> None:
    hooks = HOOKS.replace('"epochs.txt"', 'f"epochs{trainer.runtime.world.rank}.txt"')
    (tree / "mine/hooks.py").write_text(hooks, encoding="utf-8")
    words = ["--data", "cifar-10-binary.tar.gz", "--max-epochs", "1", *TINY, "--set", "num_processes=2"]
    done = subprocess.run([sys.executable, "mine/main.py", *words, "--json", "score.json"], cwd=tree)
    assert done.returncode == 0
    output = tree / "output/mine/output"
    assert sorted(path.name for path in (output / "checkpoint").iterdir()) == ["epoch_1.pth", "latest.pth"]
    assert not (output / "metric/best_last.pth").exists() and (tree / "score.json").is_file()
    assert (tree / "epochs0.txt").read_text() == (tree / "epochs1.txt").read_text()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("dataset", "def sample_lists(train, val):\n    return train", "must return the two lists to train and to"),
        ("metrics", "def further_numbers(validation):\n    return {'top1': 1}", 'further_numbers: the name "top1" is'),
        ("metrics", "def further_numbers(validation):\n    return 3", "must return a dictionary of numbers by name"),
    ],
)
def test_what_a_function_must_not_return_is_a_sentence(
    tree: Path, capsys: pytest.CaptureFixture[str], name: str, text: str, message: str
) -> None:
    (tree / f"mine/{name}.py").write_text(text, encoding="utf-8")
    words = ("--max-epochs", "1", "--data", "cifar-10-binary.tar.gz", *TINY)
    assert run_main(tree / "mine/main.py", *words) == 2
    assert f"{name}.py: " in (err := capsys.readouterr().err) and message in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--process fly", "invalid choice: 'fly'"),
        ("--max-epoch 3 --rot x", 'unrecognized arguments: --rot x; did you mean "--root"?'),
        ("--process export --json a", "--json is not for --process export; it is for train and test"),
        ("--config nope.json", "nope.json: no such file (current folder"),
        ("--data nope", "--data nope: a folder must have train and val or test, and an archive end in .tar.gz"),
        ("--data nope.tar.gz", "nope.tar.gz: the archive is not there (current folder"),
        ("--gpu-id x", 'must be -1 for the CPU, or numbers with commas between, got "x"'),
        ("--exp ../x", 'it must begin with a letter and have letters, digits, - and _ only, got "../x"'),
        ("--process test", "best.pth: the experiment has no trained net yet; train it first, or name a --checkpoint"),
        ("--checkpoint README.md --resume-from README.md", "--resume-from goes on with one; name one"),
        ("--process activelearning", "with --unlabelled DIR and how many to pick with --num N"),
    ],
)
def test_mistakes(tree: Path, capsys: pytest.CaptureFixture[str], words: str, message: str) -> None:
    assert run_main(tree / "mine/main.py", *words.split()) == 2
    assert message in capsys.readouterr().err


def test_a_net_of_its_own_must_have_a_name_of_its_own(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(tree / "mine/models/wideres.py", tree / "mine/models/resnet_module.py")
    assert run_main(tree / "mine/main.py", "--gpu-id", "-1") == 2
    assert "resnet_module.py: nets/ has a module of this name already; choose another" in capsys.readouterr().err
    (tree / "mine/models/resnet_module.py").unlink()
    assert run_main(tree / "mine/main.py", "--gpu-id", "-1", "--set", "model_net_name=WideResnet") == 2
    assert 'models/wideres.py has no net "WideResnet"' in capsys.readouterr().err


def test_the_tree_works_at_another_place_with_the_trainer_on_the_path(tree: Path, tmp_path_factory: object) -> None:
    moved = tree / "elsewhere"
    shutil.copytree(tree / "mine", moved / "mine")
    file = moved / "mine/main.py"
    file.write_text(file.read_text(encoding="utf-8").replace(repr(str(ROOT)), repr("/not/there")), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "mine/main.py", "--help"]
    done = subprocess.run(command, cwd=moved, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "--resume-from" in done.stdout, done.stderr
