"""Rounds of the loop: from incoming images to a served net, restarted anywhere."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import inference_uncertain
import train
from artifacts.checkpoint import load_checkpoint
from common import atomic_io
from common.console import text_columns
from datasets.files import read_annotations
from projects.round_folder import DECISIONS
from tests.conftest import CLASSES, slow_but
from tests.helpers.exported import paint, train_net, write_list
from tests.helpers.person import label_as_a_person
from tools import child_programs, release_gate
from tools.doctor import __main__ as doctor
from tools.rounds import __main__ as rounds
from tools.rounds import beginning, training

INCOMING = 30  # images, of three classes in turn; the last 15 are nearly grey
WRN = {"module": "wide_resnet_module", "name": "WideResNet", "args": {"depth": 10, "widen_factor": 1}}
RECIPE = {
    "model_module_name": WRN["module"], "model_net_name": WRN["name"], "model_args": WRN["args"],
    "img_height": 32, "img_width": 32, "num_classes": 3, "dataloader_workers": 0, "num_epochs": 1, "data_aug": False,
    "batch_size": 10, "learning_rate": 0.001, "gpu_id": "cpu", "precision": "fp32", "is_tensorboard": False,
    "class_names_file": "classes.txt", "train_data_root_dir": "images", "train_data_file": "train.txt",
    "val_data_root_dir": "images", "val_data_file": "val.txt",
}  # fmt: skip
BEGINNING = (
    *("--config", "recipe.json", "--calibration", "calibration.txt", "--held_out", "held_out.txt"),
    *("--list_root", "images", "--weights", "net.pth", "--target_risk", "0.2", "--seed", "3"),
)


def run_here(arguments: Sequence[str], log: Path | None = None) -> int:
    """Run a child's program in this process, which has imported torch already."""
    mains: dict[str, Callable[[list[str]], int]] = {
        **{"train.py": train.main, "inference_uncertain.py": inference_uncertain.main},
        **{"tools.release_gate": release_gate.main, "tools.doctor": doctor.main},
    }
    name, *own = arguments[1:] if arguments[0] == "-m" else arguments
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        code = mains[Path(name).name](own)
    if log is not None:
        with log.open("a", encoding="utf-8") as file:
            file.write(printed.getvalue())
    return code


@pytest.fixture(scope="module", autouse=True)
def programs_here() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for module in (child_programs, training):
            patch.setattr(module, "run_child", run_here)
        patch.setattr(doctor, "MAX_WORKERS", 0)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a net, four lists, and a folder of images with one that is damaged, one twice and one held out."""
    folder = tmp_path_factory.mktemp("rounds")
    train_net(folder, WRN)
    for name, count, seed in (("calibration", 110, 1000), ("held_out", 40, 2000)):
        write_list(folder, name, count, seed)
    for number in range(INCOMING):
        paint(folder / f"incoming/{number:02d}.png", number % 3, 3000 + number, 60 if number < INCOMING // 2 else 6)
    shutil.copy(folder / "incoming/04.png", folder / "incoming/again.png")
    shutil.copy(folder / "images/held_out/00.png", folder / "incoming/held_out.png")
    (folder / "incoming/broken.png").write_bytes(b"\x89PNG")
    (folder / "recipe.json").write_text(json.dumps(RECIPE), encoding="utf-8")
    (folder / "classes.txt").write_text("\n".join(CLASSES), encoding="utf-8")
    return folder


def start(folder: Path, *flags: str, root: str = "R") -> tuple[int, str, str]:
    """Run a command in a folder; return its exit code and what it prints."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = rounds.main(["--folder", root, "--device", "cpu", *flags])
    return code, out.getvalue(), err.getvalue()


def result(folder: Path, name: str, number: int = 1) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / f"rounds/{number:03d}/{name}.json").read_text(encoding="utf-8"))
    return values


def decisions(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / DECISIONS).read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def waiting(data: Path) -> tuple[Path, str]:
    """Begin a loop, up to the labels; return its folder and what was printed."""
    code, printed, mistake = start(data, *BEGINNING, "--incoming", "incoming", "--num", "8")
    assert (code, mistake) == (3, "")
    return data / "R", printed


def test_the_first_net_is_the_one_that_was_given(data: Path, waiting: tuple[Path, str]) -> None:
    folder, _ = waiting
    given, served = load_checkpoint(data / "net.pth"), load_checkpoint(folder / "served.pth")
    assert all(given.net[name].equal(served.net[name]) for name in given.net)
    assert served.metadata.calibration is not None and served.metadata.calibration.target_risk == 0.2


def test_images_are_taken_once(waiting: tuple[Path, str]) -> None:
    folder, _ = waiting
    found = result(folder, "incoming")
    assert len(found["images"]) == INCOMING
    assert found["did"] == "took in 30 images of 33: 2 known before, 1 unreadable"
    assert "broken.png" in found["unreadable"][0]
    held_out = {line.partition("----")[0] for line in (folder / "lists/held_out.txt").read_text().splitlines()}
    assert not held_out & set(found["images"]) and len(held_out) == 40
    assert len(list((folder / "images").iterdir())) == INCOMING + 30 + 40 + 40 + 110


def test_the_audit_is_put_to_a_person_unseen(waiting: tuple[Path, str]) -> None:
    folder, _ = waiting
    predictions, picks = result(folder, "predictions"), result(folder, "picks")
    accepted, doubtful = ([one["image"] for one in predictions[name]] for name in ("accepted", "doubtful"))
    assert len(accepted) + len(doubtful) == INCOMING and len(accepted) > 5
    assert len(picks["audit"]) == 1 and set(picks["audit"]) < set(accepted)  # 2 % of them, rounded up
    assert picks["picked"] == doubtful[:8]
    order = [one["uncertainty"] for one in predictions["doubtful"]]
    assert order == sorted(order, reverse=True)
    records = read_annotations(folder / "rounds/001/to_label/annotation.json").records
    assert {record["image_file"] for record in records} == {*picks["picked"], *picks["audit"]}
    assert {frozenset(record) for record in records} == {frozenset({"image_file", "width", "height"})}


def test_what_a_person_has_to_do_is_said(data: Path, waiting: tuple[Path, str]) -> None:
    folder, printed = waiting
    *lines, command = printed.splitlines()
    assert command.endswith("-m tools.antgo label/start --src R/rounds/001/to_label --tgt R/rounds/001/to_label")
    assert lines[-1].startswith("waiting for labels, because the picked images have no labels yet")
    assert max(map(text_columns, lines[:-1])) < 80
    before = decisions(folder)
    code, printed, _ = start(data, "--incoming", "incoming")
    assert (code, printed.splitlines()) == (3, [lines[-1], command])  # and nothing was done twice
    assert decisions(folder) == before


@pytest.fixture(scope="module")
def finished(data: Path, waiting: tuple[Path, str]) -> tuple[Path, int]:
    """Go on with the round of `waiting` in a copy, with a person's labels; return the copy and the exit code."""
    shutil.copytree(waiting[0], data / "finished")
    label_as_a_person(data / "finished/rounds/001/to_label", CLASSES)
    code, _, mistake = start(data, "--pseudo_labels", root="finished")
    assert mistake == ""
    return data / "finished", code


def test_pseudo_labels_stay_apart(finished: tuple[Path, int]) -> None:
    folder, _ = finished
    labels, picks = result(folder, "labels"), result(folder, "picks")
    assert (labels["labelled"], labels["audited"], labels["wrong"], labels["without_label"]) == (9, 1, 0, [])
    listed = [line.partition("----")[0] for line in (folder / "lists/labelled.txt").read_text().splitlines()]
    assert len(listed) == len(set(listed)) == 30 + 9
    with (folder / "rounds/001/pseudo_labels.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == labels["pseudo_labels"] and not {row["image"] for row in rows} & {*listed, *picks["audit"]}
    assert all(row["class"] in CLASSES and 0 < float(row["score"]) <= 1 for row in rows)
    trained = (folder / "rounds/001/train.txt").read_text(encoding="utf-8").splitlines()
    assert len(trained) == 39 + len(rows)
    assert result(folder, "training")["pseudo_labels"] == len(rows)


def test_the_training_goes_on_from_the_served_net(finished: tuple[Path, int]) -> None:
    config = json.loads((finished[0] / "rounds/001/config.json").read_text(encoding="utf-8"))
    assert (config["train_mode"], config["pretrained_file"]) == ("update", "served.pth")
    assert (finished[0] / "rounds/001/doctor/wrong_labels.csv").is_file()


def test_the_gate_decides_what_is_served(data: Path, finished: tuple[Path, int]) -> None:
    folder, code = finished
    gate = result(folder, "gate")
    assert code == (0 if gate["replace"] else 1)
    new, served, before = (load_checkpoint(path).metadata.weights_sha256 for path in _nets(folder))
    assert served == (new if gate["replace"] else before)
    last = decisions(folder)[-1]
    assert last["step"] == "round" and (gate["replace"] or last["because"].startswith("it is not better"))
    code, printed, _ = start(data, "--incoming", "incoming", "--until", "predictions", root="finished")
    assert code == 1 and "took in 0 images of 33: 32 known before" in " ".join(printed.split())


def _nets(folder: Path) -> tuple[Path, Path, Path]:
    return folder / "rounds/001/net/net.pth", folder / "served.pth", folder / "rounds/000/net/net.pth"


def test_a_broken_promise_drops_the_pseudo_labels(data: Path, waiting: tuple[Path, str]) -> None:
    shutil.copytree(waiting[0], data / "broken")
    folder = data / "broken"
    audit = result(folder, "picks")["audit"]
    settings = json.loads((folder / "loop.json").read_text(encoding="utf-8"))
    (folder / "loop.json").write_text(json.dumps({**settings, "target_risk": 0.04}), encoding="utf-8")
    label_as_a_person(folder / "rounds/001/to_label", CLASSES, wrong=audit)
    code, printed, _ = start(data, "--until", "labels", root="broken")
    assert code == 1
    labels = result(folder, "labels")
    assert (labels["is_refuted"], labels["wrong"], labels["pseudo_labels"]) == (True, 1, 0)
    assert "until --calibration names another list" in " ".join(printed.split())
    (folder / "loop.json").write_text(json.dumps(settings), encoding="utf-8")
    start(data, root="broken")
    start(data, "--incoming", "incoming", "--until", "predictions", root="broken")
    predictions = result(folder, "predictions", 2)
    assert predictions["accepted"] == []
    assert predictions["because"] == "the audit of round 1 asks for another calibration list"
    shutil.rmtree(folder / "rounds/002")
    write_list(data, "other", 110, 5000)
    code, _, mistake = start(
        data, "--calibration", "other.txt", "--list_root", "images", "--until", "predictions", root="broken"
    )
    assert (code, mistake) == (1, "")
    assert result(folder, "predictions", 2)["accepted"]
    assert "recalibration-1" in [line["step"] for line in decisions(folder)]


def test_labels_from_a_list_play_the_person(data: Path, waiting: tuple[Path, str]) -> None:
    shutil.copytree(waiting[0], data / "from_list")
    names = sorted(path.name for path in (data / "incoming").glob("[0-9]*.png"))
    lines = [f"{name}----{int(name[:2]) % 3}\n" for name in names]
    (data / "known.txt").write_text("".join(lines), encoding="utf-8")
    flags = ("--labels_from", "known.txt", "--list_root", "incoming", "--until", "labels")
    code, _, mistake = start(data, *flags, root="from_list")
    assert (code, mistake) == (1, "") and result(data / "from_list", "labels")["labelled"] == 9


class Killed(BaseException):
    """Ends a command as a signal does."""


def in_place_of_programs(arguments: Sequence[str], log: Path | None = None) -> int:
    """Do what the programs leave, without a training: a net, a calibration, a comparison, a report."""
    flags = dict(itertools.pairwise(arguments))
    name = arguments[1] if arguments[0] == "-m" else Path(arguments[0]).name
    if log is not None:
        log.write_text("done\n", encoding="utf-8")
    if name == "train.py":
        config = json.loads(Path(flags["--config"]).read_text(encoding="utf-8"))
        target = Path(config["save_path"])
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(config["pretrained_path"]) / config["pretrained_file"], target / "net.pth")
        (target / "report.json").write_text('{"best": {"top1": 0.5}}', encoding="utf-8")
    elif name == "tools.release_gate":
        values = {"images": 4, "new_right": 3, "old_right": 1, "reasons": [], "replace": True}
        Path(flags["--report"]).write_text(json.dumps(values), encoding="utf-8")
    elif name == "tools.doctor":
        Path(flags["--output"]).mkdir(exist_ok=True)
        (Path(flags["--output"]) / "doctor.json").write_text('{"findings": [], "wrong_labels": {}}', encoding="utf-8")
    return 0


def contents(folder: Path) -> dict[str, Any]:
    """Return what a loop's files hold, without times and its own place."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".json", ".jsonl", ".txt", ".csv", ".pth") and path.is_file():
            text = path.read_bytes().replace(str(folder).encode(), b"R")
            lines = [line for line in text.splitlines() if b'"time"' not in line or path.suffix == ".jsonl"]
            name = str(path.relative_to(folder))
            found[name] = [json.loads(line) | {"time": ""} for line in lines] if path.suffix == ".jsonl" else lines
    return found


@pytest.fixture(scope="module")
def begun(data: Path, waiting: tuple[Path, str]) -> Path:
    """Make a loop before its first round, and four images with known labels."""
    few, place = data / "few", data / "begun"
    few.mkdir()
    for number in range(4):
        shutil.copy(data / f"incoming/{10 * number:02d}.png" if number < 3 else data / "incoming/01.png", few)
    lines = ["00.png----0", "10.png----1", "20.png----2", "01.png----1"]
    (data / "few.txt").write_text("\n".join(lines), encoding="utf-8")
    shutil.copytree(waiting[0], place)
    shutil.rmtree(place / "rounds/001")
    listed = "".join(file.read_text(encoding="utf-8") for file in (place / "lists").iterdir())
    for image in (place / "images").iterdir():
        if image.name not in listed:
            image.unlink()
    text = (place / DECISIONS).read_text(encoding="utf-8").splitlines(keepends=True)
    (place / DECISIONS).write_text("".join(line for line in text if '"round": 0' in line), encoding="utf-8")
    return place


def end_round(begun: Path, killed_at: int, patch: pytest.MonkeyPatch) -> tuple[dict[str, Any], int]:
    """Do a round that is killed at one of its writes (0: never) and gone on with; return what is left, and the writes.

    None of the programs is run: each leaves what it would.
    """
    for module in (child_programs, training):
        patch.setattr(module, "run_child", in_place_of_programs)
    writes, move = [0], atomic_io.move_into_place

    def counted_move(*arguments: Any, **settings: Any) -> None:
        writes[0] += 1
        if writes[0] == killed_at:
            raise Killed
        move(*arguments, **settings)

    patch.setattr(atomic_io, "move_into_place", counted_move)
    place = begun.with_name("killed")
    shutil.copytree(begun, place)
    flags = ("--incoming", "few", "--labels_from", "few.txt", "--list_root", "few", "--pseudo_labels")
    try:
        if killed_at:
            with pytest.raises(Killed):
                start(begun.parent, *flags, root="killed")
        code, _, mistake = start(begun.parent, *flags, root="killed")
        assert (code, mistake) == (0, "")
        return contents(place), writes[0]
    finally:
        shutil.rmtree(place)


WRITES = 28  # of a round of four images


@pytest.fixture(scope="module")
def whole_round(begun: Path) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        found, writes = end_round(begun, 0, patch)
    assert writes == WRITES
    return found


@pytest.mark.parametrize("killed_at", slow_but((3, 13, 19, 25), range(1, WRITES + 1)))
def test_killed_at_any_write_a_round_ends_the_same(
    killed_at: int, begun: Path, whole_round: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert end_round(begun, killed_at, monkeypatch)[0] == whole_round


def test_a_training_that_failed_is_resumed(begun: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def fail_first(arguments: Sequence[str], log: Path | None = None) -> int:
        if Path(arguments[0]).name != "train.py":
            return in_place_of_programs(arguments, log)
        asked.append(list(arguments[1:]))
        (place / "rounds/001/net").mkdir(exist_ok=True)
        (place / "rounds/001/net/net_last.pth").touch()
        return 1 if len(asked) == 1 else in_place_of_programs(arguments)

    for module in (child_programs, training):
        monkeypatch.setattr(module, "run_child", fail_first)
    place = begun.with_name("resumed")
    shutil.copytree(begun, place)
    flags = ("--incoming", "few", "--labels_from", "few.txt", "--list_root", "few")
    code, _, mistake = start(begun.parent, *flags, root="resumed")
    assert code == 2 and mistake == "tools.rounds: the training ended with exit code 1; its message is above\n"
    assert start(begun.parent, *flags, root="resumed")[0] == 0
    assert [arguments[2:] for arguments in asked] == [[], ["--resume"]]


def test_mistakes_are_sentences(data: Path, waiting: tuple[Path, str]) -> None:
    def mistake(*flags: str, root: str = "R") -> str:
        code, _, text = start(data, *flags, root=root)
        assert code == 2 and text.count("\n") == 1
        return text

    assert "N: no loop has begun there; begin one with --config F and the lists" in mistake(root="N")
    assert not (data / "N").exists()
    assert "begin one with --held_out" in mistake("--config", "recipe.json", root="N")
    assert 'it is not empty ("' in mistake(*BEGINNING, root=".")
    other = mistake("--config", "recipe.json", "--set", "seed=4")
    assert "recipe.json: the loop in R began with another config; leave the flag out" in other
    assert "--target_risk 0.3: the loop in R began with 0.2" in mistake("--target_risk", "0.3")
    assert "--held_out" in mistake("--held_out", "val.txt")
    assert "--set changes a key of --config" in mistake("--set", "seed=4")
    assert "--incoming none: no such folder" in mistake("--incoming", "none", *BEGINNING, root="M")
    assert "30 of its 30 images were trained on" in mistake(*BEGINNING[:5], "train.txt", *BEGINNING[6:], root="T")
    assert "it has a label for none" in mistake("--labels_from", "val.txt", "--list_root", "images")
    twice = mistake(*BEGINNING[:3], "held_out.txt", *BEGINNING[4:], root="S")
    assert "--calibration: no image is left, all are in a list before it" in twice
    lost = mistake(*BEGINNING, "--list_root", "gone", root="L")
    assert "--held_out: no image is left; the first: gone/held_out/00.png: No such file" in lost
    write_list(data, "short", 20, 9000)
    none = mistake("--calibration", "held_out.txt", "--list_root", "images")
    assert "held_out.txt: no image of it is left: 40 are in the loop's other lists, and 0 cannot be read" in none
    few = mistake(*BEGINNING[:3], "short.txt", *BEGINNING[4:], root="K")
    assert "are too few for a target risk of 0.2: at least 100 are needed" in few
    (data / "R/rounds/001/to_label/annotation_label.json").write_text("[", encoding="utf-8")
    assert "annotation_label.json" in mistake()
    (data / "R/rounds/001/to_label/annotation_label.json").unlink()


def test_an_image_with_two_labels_is_a_mistake(data: Path) -> None:
    shutil.copy(data / "images/train/00.png", data / "images/train/copy.png")
    text = (data / "train.txt").read_text(encoding="utf-8")
    (data / "twice.txt").write_text(f"{text}train/copy.png----1\n", encoding="utf-8")
    code, _, mistake = start(data, *BEGINNING, "--set", "train_data_file=twice.txt", root="two")
    assert code == 2 and "are one image, with the labels" in mistake and "copy.png" in mistake


def test_other_tasks_are_refused() -> None:
    names = {"model_module_name": "linknet_module", "model_net_name": "linknet34"}
    config = beginning.Config.model_validate({**RECIPE, **names, "model_type": ""})
    with pytest.raises(beginning.ProjectError, match="it does not train a net of one class for an image"):
        beginning.check_config(Path("c.json"), config)
    config = beginning.Config.model_validate({**RECIPE, "next_stage": {"num_epochs": 2}})
    with pytest.raises(beginning.ProjectError, match="it has a next_stage"):
        beginning.check_config(Path("c.json"), config)
