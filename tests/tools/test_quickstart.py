"""From class folders to a served model: checked lists, training, calibration and export, once and again."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import inference_uncertain
import train
from artifacts.metadata_reader import read_metadata
from common.console import text_columns
from common.paths import ROOT
from common.signals import Stopped
from data_loader.image_files import LeftOut
from deploy.export import __main__ as export
from tests.helpers.exported import paint
from tools.child_programs import run_child
from tools.datasets.make_lists import Images
from tools.quickstart import __main__ as quickstart
from tools.quickstart import data, steps
from tools.quickstart.data import check_counts, split
from tools.quickstart.state import QuickstartError, open_state

CLASSES = ("circle", "方块", "stripes")
A_CLASS = 150  # images of each: enough to calibrate on a fifth of them
RECIPE = {
    "model_module_name": "GeM_ResNet_module", "model_net_name": "GeM_ResNet_AVP", "model_type": "resnet18",
    "img_height": 32, "img_width": 32, "num_classes": 2, "train_data_root_dir": ".", "val_data_root_dir": ".",
    "dataloader_workers": 0, "num_epochs": 2, "batch_size": 16, "learning_rate": 0.02, "gpu_id": "cpu",
    "precision": "fp32", "is_tensorboard": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make 450 images of three classes, one of them cut short and one the copy of another."""
    folder = tmp_path_factory.mktemp("quickstart")
    for label, name in enumerate(CLASSES):
        for number in range(A_CLASS):
            paint(folder / "photos" / name / f"{number}.png", label, 1000 * label + number)
    (folder / "photos/circle/7.png").write_bytes(b"\x89PNG")
    shutil.copy(folder / "photos/stripes/3.png", folder / "photos/stripes/4.png")
    (folder / "recipe.json").write_text(json.dumps(RECIPE), encoding="utf-8")
    return folder


def run_here(arguments: Sequence[str], log: Path | None = None) -> int:
    """Run a child's program in this process, which has imported torch already."""
    mains = {"train.py": train.main, "inference_uncertain.py": inference_uncertain.main, "-m": export.main}
    own = arguments[2:] if arguments[0] == "-m" else arguments[1:]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        code = mains[Path(arguments[0]).name](list(own))
    if log is not None:
        log.write_text(printed.getvalue(), encoding="utf-8")
    return code


def start(folder: Path, *flags: str) -> tuple[int, str, str]:
    """Run a quickstart in a folder; return its exit code and what it prints."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = quickstart.main(["--images", "photos", "--config", "recipe.json", *flags])
    return code, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def finished(photos: Path) -> str:
    """Run a quickstart into logs/photos whose first export fails; return what the second run printed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "MAX_WORKERS", 0)
        patch.setattr(
            steps, "run_child", lambda arguments, log=None: 3 if "-m" in arguments else run_here(arguments, log)
        )
        code, _, mistake = start(photos)
        assert code == 2 and "the export ended with exit code 3" in mistake
        trained = (photos / "logs/photos/net.pth").read_bytes()
        patch.setattr(steps, "run_child", run_here)
        code, printed, mistake = start(photos)
        assert (code, mistake) == (0, "")
    assert (photos / "logs/photos/net.pth").read_bytes() == trained  # not trained again
    return printed


def test_what_a_run_leaves(photos: Path, finished: str) -> None:
    out = photos / "logs/photos"
    lists = {
        name: (out / f"lists/{name}.txt").read_text("utf-8").splitlines() for name in ("train", "val", "calibration")
    }
    paths = [line.partition("----")[0] for lines in lists.values() for line in lines]
    assert len(paths) == len(set(paths)) == 3 * A_CLASS - 2  # not the damaged one, nor one of the two copies
    assert "circle/7.png" not in paths and len({"stripes/3.png", "stripes/4.png"} & set(paths)) == 1
    calibration = read_metadata(out / "exported/model.onnx").calibration
    assert calibration is not None and calibration.target_risk == 0.05
    config = json.loads((out / "config.json").read_text("utf-8"))
    assert config["num_classes"] == 3 and config["train_data_file"] == "logs/photos/lists/train.txt"
    assert config["learning_rate"] == RECIPE["learning_rate"]
    for page in ("report.html", "doctor.html"):
        assert (out / page).is_file()


def test_what_a_run_prints(finished: str) -> None:
    lines = finished.splitlines()[:-1]  # the command is as long as the path of this Python
    assert max(map(text_columns, lines)) < 80
    for text in ("1/4  images  (done before)", "1 cannot be read", "4/4  export\n", "logs/photos/report.html"):
        assert text in finished
    assert finished.splitlines()[-1].endswith("-m deploy.service --weights logs/photos/exported/model.onnx")


def test_a_finished_folder_is_not_written_again(photos: Path, finished: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "run_child", None)  # a call would fail
    files = {path: path.stat().st_mtime_ns for path in (photos / "logs/photos").rglob("*") if path.is_file()}
    code, printed, _ = start(photos)
    assert code == 0 and printed.count("(done before)") == 4
    assert {path: path.stat().st_mtime_ns for path in files} == files


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--set", "num_epochs=3"), "logs/photos: it holds the results with other --set (none, now num_epochs=3)"),
        (("--out", "photos/new"), "photos/new: it lies in the folder of the images, where it would be a class"),
        (("--out", "."), ".: it is not empty, and not a quickstart's; choose another --out"),
        (("--set", "num_classes=4"), "--set num_classes=4: a quickstart sets num_classes itself"),
        (("--set", "learnig_rate=1"), 'unknown key "learnig_rate"; did you mean "learning_rate"?'),
    ],
)  # fmt: skip
def test_a_wrong_request_is_refused(photos: Path, finished: str, flags: tuple[str, ...], message: str) -> None:
    code, _, mistake = start(photos, *flags)
    assert code == 2 and message in mistake and "Traceback" not in mistake


def test_other_images_are_refused(photos: Path, finished: str) -> None:
    added = photos / "photos/circle/new.png"
    paint(added, 0, 1)
    code, _, mistake = start(photos)
    added.unlink()
    assert code == 2 and "it holds the results of other files in this folder; choose another --out" in mistake


def test_a_run_that_ends_among_the_images_goes_on(tmp_path: Path) -> None:
    out, inputs = tmp_path / "out", {"images": "a", "files": "b", "config": "c", "set": []}
    state = open_state(out, inputs)
    out.mkdir()
    state.begin()
    (out / "doctor.html").touch()
    assert open_state(out, inputs).done == {}
    with pytest.raises(
        QuickstartError, match=r"out: it holds the results of other images \(a, now d\); choose another"
    ):
        open_state(out, {**inputs, "images": "d"})


def images_of(*counts: int) -> Images:
    entries = [(f"{label}/{number}.png", label) for label, count in enumerate(counts) for number in range(count)]
    return Images(tuple(entries), tuple(map(str, range(len(counts)))), LeftOut())


def test_each_class_is_split_by_the_shares() -> None:
    """70, 15 and 15 % of 400 and 800 images."""
    images = images_of(400, 800)
    splits = split(images)
    counts = {name: [sum(label == own for _, own in entries) for label in (0, 1)] for name, entries in splits.items()}
    assert counts == {"train": [280, 560], "val": [60, 120], "calibration": [60, 120]}
    assert sorted(entry for entries in splits.values() for entry in entries) == sorted(images.entries)


@pytest.mark.parametrize(("num_images", "epochs"), [(1, 80), (32, 80), (50, 40), (184, 14), (1000, 3)])
def test_few_images_make_more_epochs(num_images: int, epochs: int) -> None:
    assert quickstart.epochs_for(num_images, 32, 80) == epochs  # 1, 1, 2, 6 and 32 steps an epoch
    assert quickstart.epochs_for(num_images, 32, 0) == 0


@pytest.mark.parametrize(
    ("flags", "least_steps"),
    [((), 80), (("--set", "seed=1"), 80), (("--set", "num_epochs=6"), 0), (("--config", "recipe.json"), 0)],
)
def test_chosen_epochs_stay(
    photos: Path, flags: tuple[str, ...], least_steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(quickstart, "do_steps", lambda *values: asked.append(values[-1]))
    monkeypatch.setattr(quickstart, "summary", lambda out, done: [])
    with contextlib.chdir(photos):
        assert quickstart.main(["--images", "photos", "--out", str(tmp_path / "out"), *flags]) == 0
    assert asked == [least_steps]


def test_too_few_to_calibrate() -> None:
    """A calibration list needs 100 images, and takes at most a quarter: there is none below 400."""
    assert {name: len(entries) for name, entries in split(images_of(10, 10, 10)).items()} == {"train": 24, "val": 6}
    assert "calibration" not in split(images_of(195, 195))
    assert len(split(images_of(210, 210))["calibration"]) >= 100


def test_too_few_images() -> None:
    check_counts("d", ("a", "b"), [0] * 5 + [1] * 5)
    with pytest.raises(QuickstartError, match=r"^d: a class has fewer than 5 images: b \(4\); add images, or move"):
        check_counts("d", ("a", "b"), [0] * 5 + [1] * 4)
    with pytest.raises(QuickstartError, match=r'^d: "a" is its only class folder, and two are needed'):
        check_counts("d", ("a",), [0] * 5)


def test_a_folder_without_class_folders(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    paint(tmp_path / "photos/1.png", 0, 0)
    code, _, mistake = start(tmp_path)
    assert code == 2 and mistake.startswith(
        "tools.quickstart: photos: has no class folders; expected one folder a class"
    )
    assert not (tmp_path / "logs").exists()


def test_signals_go_to_the_child(tmp_path: Path) -> None:
    """The child sends the signal here once it is ready for its return, and ends as a training does: late."""
    child = (
        "import os, pathlib, signal, sys, time\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})\n"
        "os.kill(os.getppid(), signal.SIGTERM)\n"
        "signal.sigwait({signal.SIGTERM})\n"
        "time.sleep(0.2)\n"
        "pathlib.Path(sys.argv[1]).touch()"
    )
    with pytest.raises(Stopped) as error:
        run_child(["-c", child, str(tmp_path / "saved")])
    assert error.value.exit_code == 128 + signal.SIGTERM and (tmp_path / "saved").exists()


def test_the_log_of_a_child(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert run_child(["-c", "import sys; print(1); print(2, file=sys.stderr); sys.exit(5)"], log) == 5
    assert sorted(log.read_text().split()) == ["1", "2"]
    assert run_child(["-c", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"], log) == 128 + signal.SIGKILL


@pytest.mark.slow
def test_the_command_itself(photos: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "tools.quickstart",
        "--images",
        str(photos / "photos"),
        "--out",
        str(tmp_path / "out"),
    ]
    done = subprocess.run(
        [*command, "--config", str(photos / "recipe.json"), "--set", "num_epochs=1"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/exported/model.onnx").is_file()
