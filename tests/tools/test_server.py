"""The loop of projects: what a look does, what it enters, and that a kill anywhere does nothing twice.

Our programs are stood in for, and jobs end as they begin; test_server_story.py runs them.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from common import atomic_io
from datasets.files import read_annotations, write_annotations
from projects.book import Book
from projects.jobs import Job
from projects.models import Project
from projects.run_state import write_state
from tests.conftest import slow_but
from tests.helpers.exported import paint
from tests.helpers.jobs import commit_all
from tests.helpers.person import label_as_a_person
from tools import antgo, child_programs
from tools.loop import nets
from tools.projects import submit

NAMES = ("red", "green", "blue")
WRONG = 3  # of five images that the stand-in for a net accepts


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
        exported = Path(value["--root"], f"small/output/export/small-{Path(value['--checkpoint']).stem}-model.onnx")
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
    from PIL import Image
    from PIL.ImageStat import Stat

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


def label_all(wrong: Sequence[str] = ()) -> None:
    """Label the newest task as a person would."""
    newest = max(Path("out/birds/activelearning").iterdir())
    label_as_a_person(newest, NAMES, wrong)


def test_from_labels_to_the_best_and_round_again(work: Path, packs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    look()
    (first,) = birds().exp["small"]
    words = json.loads(Path(first.root, "job.json").read_text(encoding="utf-8"))["words"]
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
