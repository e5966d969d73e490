"""The loop of projects: what a look does, what it enters, and that a kill anywhere does nothing twice.

Our programs are stood in for, and jobs end as they begin; test_server_story.py runs them.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from PIL.ImageStat import Stat

from common import atomic_io
from common.file_lock import lock_file
from common.paths import ROOT
from datasets.files import read_annotations, write_annotations
from projects.book import Book
from projects.errors import ProjectError
from projects.jobs import Job, read_job
from projects.models import Data, Project, Run
from projects.run_state import write_state
from tests.conftest import slow_but
from tests.helpers.exported import paint
from tests.helpers.jobs import commit_all
from tests.helpers.person import label_as_a_person
from tools import antgo, child_programs
from tools.loop import nets
from tools.loop.trainings import our_settings
from tools.projects import submit

NAMES = ("red", "green", "blue")


class Killed(BaseException):
    """Ends a command as a signal does."""


def programs(arguments: Sequence[str], log: Path | None = None) -> int:
    """Leave what one of our programs would: a net accepts all images but each third, and says what they are."""
    words = list(map(str, arguments))
    value = {flag: words[at + 1] for at, flag in enumerate(words[:-1]) if flag.startswith("--")}
    printed = io.StringIO("done\n")
    if words[:3] == ["-m", "tools.antgo", "package/tfrecord"]:
        with contextlib.redirect_stdout(io.StringIO()):
            assert antgo.main(words[2:]) == 0
    elif words[:2] == ["-m", "tools.release_gate"]:
        report = {"new_right": 9, "old_right": 8, "images": 9, "replace": True, "reasons": []}
        Path(value["--report"]).write_text(json.dumps(report), encoding="utf-8")
    elif value.get("--process") == "export":
        exp, stem = value["--exp"], Path(value["--checkpoint"]).stem
        exported = Path(value["--root"], exp, "output/export", f"{exp}-{stem}-model.onnx")
        exported.parent.mkdir(parents=True, exist_ok=True)
        exported.write_bytes(b"onnx")
    elif value.get("--process") == "activelearning":
        assert json.loads(Path(value["--sampling-fn"]).read_text(encoding="utf-8"))["sampling_num"] == 4
        assert len(Path(value["--labelled"]).read_text(encoding="utf-8").splitlines()) >= 9
        files = sorted(path.name for path in Path(value["--unlabelled"], "images").iterdir())[:4]
        Path(value["--output"]).mkdir()
        Path(value["--output"], "picks.txt").write_text("".join(f"images/{file}\n" for file in files), "utf-8")
    elif "--image_dir" in value:
        rows = [answer(path, number) for number, path in enumerate(sorted(Path(value["--image_dir"]).iterdir()))]
        Path(value["--output"]).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert log is not None
    log.write_text(printed.getvalue(), encoding="utf-8")
    return 0


def answer(path: Path, number: int) -> dict[str, Any]:
    with Image.open(path) as image:
        means = Stat(image).mean
    decision = "set_aside" if number % 3 == 2 else "accept"
    name = NAMES[means.index(max(means))]
    return {"file": str(path), "class": name, "score": 0.9, "uncertainty": 0.1, "decision": decision}


def end_at_once(job: Job, folder: Path, own: object) -> str:
    """Stand in for an engine: the job has ended with a net."""
    metric = folder / job.exp / "output" / "metric"
    metric.mkdir(parents=True, exist_ok=True)
    (metric / "best.pth").write_bytes(b"net")
    (metric / "best.json").write_text('{"score": {"top_1": 0.9}}', encoding="utf-8")
    write_state(folder, "finish", 0)
    return ""


@pytest.fixture(scope="module", autouse=True)
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    code = tmp_path_factory.mktemp("trainer")
    commit_all(code, {"trainer.py": ""})
    calibration = SimpleNamespace(accepted=90, pictures=100, target_risk=0.05)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(child_programs, "run_child", programs)
        patch.setattr(submit, "launch", end_at_once)
        patch.setattr(submit, "trainer_code", lambda: submit.read_code(code))
        patch.setattr(nets, "read_metadata", lambda path: SimpleNamespace(calibration=calibration))
        yield


@pytest.fixture(scope="module")
def packs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make packs of labelled images, and of others."""
    folder = tmp_path_factory.mktemp("packs")
    for seed, (name, count) in enumerate({"label": 9, "more": 9, "val": 9, "test": 9, "pond": 15}.items()):
        records: list[dict[str, Any]] = []
        for number in range(count):
            paint(folder / name / f"images/{number}.png", number % 3, 1000 * seed + number)
            label = {"image_label": number % 3, "image_label_name": NAMES[number % 3]} if name != "pond" else {}
            records.append({"image_file": f"images/{number}.png", **label})
        write_annotations(folder / name, records, NAMES)
        words = ["package/tfrecord", "--src", str(folder / name), "--tgt", str(folder), "--prefix", name]
        with contextlib.redirect_stdout(io.StringIO()):
            assert antgo.main(words) == 0
    return folder


@pytest.fixture
def work(tmp_path: Path, packs: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a project with an experiment, a product and data, and go there."""
    folder = tmp_path / "code"
    commit_all(folder, {"small/main.py": "", ".gitignore": "runs\nout*\n"})
    monkeypatch.chdir(folder)
    run("create project --git a/birds --auto")
    run("create exp --name small")
    run("add product --exp small")
    for kind, name in (("train/label", "label"), ("val", "val"), ("test", "test")):
        run(f"add {kind} --tags {name} --address", f"{packs}/{name}-*")
    Path("ac.json").write_text('{"method": "ac", "config": {"sampling_num": 4}}', encoding="utf-8")
    run("update project/activelearning --config ac.json")
    Path("ac.json").unlink()
    return folder


def run(words: str, *flags: str) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        assert antgo.main([*words.split(), *flags]) == 0


def look(*flags: str, code: int = 0) -> None:
    assert antgo.main(["server", "--root", "out", "--once", "--gpu-id", "-1", *flags]) == code


def birds() -> Project:
    return Book().read("birds")


def decisions() -> list[str]:
    return [row["did"] for row in birds().decisions]


def words_of(run: Run) -> list[str]:
    return read_job(Path(run.root)).words


def label_all(wrong: Sequence[str] = ()) -> None:
    """Label the newest task as a person would."""
    newest = max(Path("out/birds/activelearning").iterdir())
    label_as_a_person(newest, NAMES, wrong)


def test_from_labels_to_the_best_and_round_again(work: Path, packs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    look()
    (first,) = birds().exp["small"]
    words = words_of(first)
    assert f"train_data_file={packs}/label-*-tfrecord" in words and f"val_data_file={packs}/val-*-tfrecord" in words
    assert "num_classes=3" in words and words[words.index("--gpu-id") + 1] == "-1"
    look()
    assert decisions() == [
        f"submitted {first.name} by local",
        f"exported and calibrated {first.name}",
        f"{first.name} passes the gate",
        f"{first.name} is the best",
    ]
    capfd.readouterr()
    look()
    assert capfd.readouterr().out == "" and getattr(birds().best, "name", "") == first.name

    run("add train/unlabel --tags pond --address", f"{packs}/pond-*")
    look()
    task = max(Path("out/birds/activelearning").iterdir())
    assert sorted(path.name for path in task.iterdir()) == [
        *("annotation.json", "images", "meta.json", "picks.csv", "picks.png", "picks.txt"),
    ]
    laid_out = [record["image_file"] for record in read_annotations(task / "annotation.json").records]
    picked = (task / "picks.csv").read_text(encoding="utf-8-sig").splitlines()
    assert picked[0] == "image,class,score,uncertainty" and len(picked) == 5 and len(laid_out) == 5  # one is audited
    assert {line.split(",")[0] for line in picked[1:]} < {Path(file).name for file in laid_out}
    assert decisions()[4:] == [
        "pond: took in 15 images",
        "pond: 10 images accepted, 5 doubtful",
        f"pond: laid out 4 images to label and 1 for the audit between them; label them: python -m tools.antgo "
        f"label/start --src {work}/out/birds/activelearning/{task.name} --tgt {work}/out/birds/label/{task.name}",
    ]
    look()
    label_all()
    look()
    train = birds().dataset.train
    assert [data.num for data in train.label] == [9, 5] and [data.num for data in train.pseudo_label] == [9]
    assert decisions()[7] == "pond: added 5 labels and, apart, 9 pseudo-labels"
    second = birds().exp["small"][1]
    joined = [
        word for word in json.loads(Path(second.root, "job.json").read_text("utf-8"))["words"] if "train_" in word
    ]
    assert joined[1].startswith(f"train_data_file={work}/out/birds/dataset/label/joined-")
    look()
    assert birds().decisions[-2]["because"] == "100.00% beside 88.89% of 9 images right, look 1 at them"
    assert getattr(birds().best, "name", "") == second.name
    run("show project --project birds")


WRITES = 118  # of the story below, most of them images


def story(packs: Path) -> None:
    """Look until nothing is left to do, with a batch and its labels."""
    for _ in range(3):
        look()
    if not birds().dataset.train.unlabel:
        run("add train/unlabel --tags pond --address", f"{packs}/pond-*")
    look()
    if not any(Path("out/birds/activelearning").glob("*/annotation_label.json")):
        label_all()
    for _ in range(3):
        look()


def told(packs: Path, killed_at: int, patch: pytest.MonkeyPatch) -> tuple[list[Any], int]:
    """Tell the story, killed at one of the writes of the loop (0: never) and begun again; return what is left."""
    writes, move = [0], atomic_io.move_into_place

    def counted_move(*arguments: Any, **settings: Any) -> None:
        writes[0] += 1
        if writes[0] == killed_at:
            raise Killed
        move(*arguments, **settings)

    patch.setattr(atomic_io, "move_into_place", counted_move)
    with contextlib.suppress(Killed):
        story(packs)
    story(packs)
    project = birds()
    steps = [(row["event"], row["step"]) for row in project.decisions]
    train = project.dataset.train
    data = [[each.num for each in rows] for rows in (train.label, train.pseudo_label, train.unlabel)]
    best = (
        project.best
        if isinstance(project.best, dict)
        else [run.name for run in project.exp["small"]].index(project.best.name)
    )
    runs = [(run.stage, run.state, len(run.dataset.train)) for run in project.exp["small"]]
    return [steps, data, best, runs], writes[0]


WHOLE: list[Any] = [
    [
        ("labelled data added, or another product", "training"),
        *(("a training's FINISH", step) for step in ("calibration", "gate", "release")),
        *(("unlabelled data added", step) for step in ("incoming", "predictions", "picks")),
        ("a label task's FINISH", "labels"),
        ("labelled data added, or another product", "training"),
        *(("a training's FINISH", step) for step in ("calibration", "gate", "release")),
    ],
    [[9, 5], [9], [15]],  # labelled, pseudo-labelled, without labels
    1,  # the best run
    [("supervised", "finish", 1), ("supervised", "finish", 2)],
]


@pytest.mark.parametrize("killed_at", slow_but((0, 6, 9, 51, 87, 102), range(0, WRITES + 1, 3)))
def test_killed_at_any_write_nothing_is_done_twice(
    killed_at: int, work: Path, packs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, writes = told(packs, killed_at, monkeypatch)
    assert found == WHOLE
    assert abs(writes - WRITES) < 5 or killed_at


def refusal(capfd: pytest.CaptureFixture[str]) -> str:
    """Look; return the one sentence that says what could not be done."""
    capfd.readouterr()
    look(code=1)
    (line,) = capfd.readouterr().err.splitlines()
    return line


def test_what_cannot_be_done_is_told_at_each_look_and_entered_once(
    work: Path, packs: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("small/new.py").touch()
    message = "1 file not as committed (small/new.py); commit them, or send and record them with --dirty"
    assert refusal(capfd).endswith(message) and refusal(capfd).endswith(message)
    (row,) = birds().decisions
    assert (row["did"], row["because"].endswith(message)) == ("nothing", True)
    assert birds().exp["small"] == []
    Path("small/new.py").unlink()
    look()
    run("add train/label --tags more --address", f"{packs}/more-*")
    with Book().changing("birds") as project:
        project.submitter.method = "ssh"
    hint = "pack them together, and put that pack where the jobs find it"
    assert refusal(capfd).endswith(f"2 packs of label, and jobs by ssh cannot join them: {hint}")


def test_labels_of_other_kinds_are_refused(work: Path, packs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    look()
    look()
    run("add train/unlabel --tags pond --address", f"{packs}/pond-*")
    Path("label.json").write_text('{"type": "RECT", "category": ["red"]}', encoding="utf-8")
    run("update project/label --config label.json")
    assert refusal(capfd).endswith("the loop labels classes, and update project/label says RECT")
    Path("label.json").write_text('{"type": "CLASS", "category": ["red", "grey"]}', encoding="utf-8")
    run("update project/label --config label.json")
    assert f"names other classes than {packs}/label-*: red, green, blue" in refusal(capfd)


def test_a_broken_promise_drops_the_pseudo_labels_and_asks_for_a_calibration(
    work: Path, packs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one audited prediction one wrong is explained by a risk of 0.05 with probability 0.05: just too little."""
    look()
    look()
    run("add train/unlabel --tags pond --address", f"{packs}/pond-*")
    look()
    folder = next(Path("out/birds/dataset/unlabel").iterdir())
    audit = json.loads((folder / "picks.json").read_text(encoding="utf-8"))["audit"]
    label_all(wrong=audit)
    look()
    row = next(row for row in birds().decisions if row["step"] == "labels")
    assert row["refuted"] == f"{packs}/val-*" and row["because"].startswith(
        "1 of 1 audited predictions are wrong, more"
    )
    assert birds().dataset.train.pseudo_label == [] and birds().dataset.train.label[1].num == 5
    look()
    assert birds().decisions[-1]["because"] == "it is not calibrated, or an audit has refuted its calibration"
    run("add train/unlabel --tags again --address", f"{packs}/more-*")
    look()
    assert next(row for row in birds().decisions if row["did"].startswith("again: 0 images accepted, 9 doubtful"))
    run("add val --tags new --address", f"{packs}/label-*")
    look()
    assert sum(row["step"] == "calibration" for row in birds().decisions) == 4  # both nets, anew


def test_without_a_calibration_nothing_is_accepted(work: Path, packs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def uncalibrated(arguments: Sequence[str], log: Path | None = None) -> int:
        assert "inference_uncertain.py" not in str(arguments[0]) or "--calibrate" in arguments
        return 2 if "--calibrate" in arguments else programs(arguments, log)

    monkeypatch.setattr(child_programs, "run_child", uncalibrated)
    run("add train/unlabel --tags pond --address", f"{packs}/pond-*")
    look()
    look()
    assert any(did.startswith("pond: 0 images accepted, 15 doubtful") for did in decisions())
    assert any(did.endswith("does not pass the gate") for did in decisions())
    assert birds().best == {}


def test_the_first_labels_of_all_need_no_net(work: Path, packs: Path) -> None:
    run("del train/label --tags label")
    Path("label.json").write_text(json.dumps({"type": "CLASS", "category": NAMES}), encoding="utf-8")
    run("update project/label --config label.json")
    Path("label.json").unlink()
    run("add train/unlabel --tags pond --address", f"{packs}/pond-*")
    look()
    label_all()
    look()
    assert birds().dataset.train.label[0].num == 4 and birds().exp["small"][0].state == "queued"


def test_a_distillation_and_a_training_without_labels_have_their_settings(work: Path, packs: Path) -> None:
    look()
    look()
    run("add expert --exp small --id", birds().exp["small"][0].id)
    run("create exp --name large")
    commit_all(work)
    run("add product --exp large")
    Path("../semi.json").write_text(
        '{"method": "mpl", "config": {"threshold": 0.8, "samples_per_gpu": [8, 16]}}', "utf-8"
    )
    run("update project/semi --config ../semi.json")
    run("update project/distillation --name reviewkd")
    run("add train/unlabel --tags pond --address", f"{packs}/pond-*")
    look()
    stages = {each.stage: each for each in birds().exp["large"]}
    assert list(stages) == ["supervised", "semi"]
    look()
    stages = {each.stage: each for each in birds().exp["large"]}
    words = {
        stage: json.loads(Path(each.root, "job.json").read_text("utf-8"))["words"] for stage, each in stages.items()
    }
    wanted = {"semi=mpl", "mpl_threshold=0.8", "batch_size=8", "unlabelled_per_labelled=2"}
    assert wanted | {f"unlabelled_data_file={packs}/pond-*-tfrecord"} < set(words["semi"])
    teacher = json.dumps([birds().exp["small"][0].checkpoint])
    assert {"distill_method=review", f"distill_from={teacher}"} < set(words["distillation"])


def test_settings_of_the_methods() -> None:
    antgo_keys = {"kd_loss_weight": 2.0, "channels": [1], "ema": 0.9, "samples_per_gpu": [8, 20]}
    ours = {"distill_weight": 2.0, "ema_decay": 0.9, "batch_size": 8, "unlabelled_per_labelled": 2}
    assert our_settings(antgo_keys) == ours and our_settings({"mpl_threshold": 0.5}) == {"mpl_threshold": 0.5}
    for settings, message in (
        ({"samples_per_gpu": [0, 8]}, "samples_per_gpu must be two numbers from 1, got [0, 8]"),
        ({"treshold": 0.5}, '"treshold" is no key of a config, nor one of antgo that is known'),
    ):
        with pytest.raises(ProjectError) as caught:
            our_settings(settings)
        assert str(caught.value) == f"settings of the method: {message}"


def test_one_server_looks_at_a_root(work: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Path("out").mkdir()
    with lock_file(Path("out/.server.lock")):
        command = [sys.executable, "-m", "tools.antgo", "server", "--root", "out", "--once"]
        done = subprocess.run(command, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "server: out: another server is looking there; end it first\n")
    assert antgo.main(["server", "--root", "s3://bucket/out"]) == 2
    assert "the loop needs a folder; copy or mount the address" in capfd.readouterr().err


def test_it_looks_again_until_a_signal_comes(work: Path) -> None:
    with Book().changing("birds") as project:
        project.dataset.train.label = []
    command = [sys.executable, "-m", "tools.antgo", "server", "--root", "out", "--interval", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while not Path("out/.server.lock").exists():
            time.sleep(0.05)
        with Book().changing("birds") as project:
            project.product, project.dataset.train.label = "", [Data(tag="a", num=1, address="packs/A-*")]
        assert "there is no product: add product --exp E" in process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 128 + signal.SIGTERM


def test_projects_without_auto_are_left_alone(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Book().changing("birds") as project:
        project.auto = False
    capsys.readouterr()
    look()
    assert birds().decisions == []
    assert "no project was created with --auto: nothing to look at" in capsys.readouterr().out
