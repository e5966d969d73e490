"""The loop of projects with our programs: labels, a training, the gate, a batch, a person, and the next training."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from artifacts.metadata_reader import read_metadata
from common.paths import ROOT
from datasets.files import read_annotations, write_annotations
from projects.book import Book
from projects.models import Project
from tests.helpers.exported import paint
from tests.helpers.jobs import commit_all
from tests.helpers.person import label_as_a_person
from tools import antgo

NAMES = ("red", "green", "blue")
PATIENCE_S = 600
RECIPE = {
    **{"model_args": {"depth": 10, "widen_factor": 1}, "batch_size": 10, "num_epochs": 4, "learning_rate": 0.05},
    **{"img_height": 32, "img_width": 32, "test_time_views": 1, "is_tensorboard": False},
}
STAGES = [{"type": "doubt", "sampling_num": 12}, {"type": "SamplingByKCenter"}]


def run(words: str, *flags: str) -> None:
    assert antgo.main([*words.split(), *flags]) == 0


def look() -> Project:
    run("server --root out --once --gpu-id -1")
    return Book().read("birds")


def trained() -> None:
    """Wait until the newest training has ended."""
    end = time.monotonic() + PATIENCE_S
    while (newest := Book().read("birds").exp["small"][-1]).state != "finish":
        log = Path(newest.root, "log.txt")
        assert time.monotonic() < end and newest.state != "stop", log.read_text(encoding="utf-8")
        time.sleep(0.5)
        run("ls")


def write_pack(name: str, count: int, seed: int) -> str:
    """Pack images of three colours, the second half of those without labels nearly grey; return the address."""
    records: list[dict[str, Any]] = []
    for number in range(count):
        brighter = 6 if name == "pond" and number >= count // 2 else 60
        paint(Path(f"../{name}/images/{number}.png"), number % 3, seed + number, brighter)
        label = {"image_label": number % 3, "image_label_name": NAMES[number % 3]} if name != "pond" else {}
        records.append({"image_file": f"images/{number}.png", **label})
    write_annotations(Path(f"../{name}"), records, NAMES)
    run(f"package/tfrecord --src ../{name} --tgt ../packs --prefix {name}")
    return f"../packs/{name}-*"


@pytest.mark.slow  # two trainings of four epochs; test_server.py has the loop without torch
def test_from_labels_to_the_best_and_round_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # as whoever starts the server in another folder has it
    run("create mvp --name small")
    recipe = Path("small/configs/config.json")
    recipe.write_text(json.dumps(json.loads(recipe.read_text(encoding="utf-8")) | RECIPE), encoding="utf-8")
    commit_all(work, {".gitignore": "runs\nout\n__pycache__\n"})
    run("create project --git a/birds --auto")
    run("create exp --name small")
    run("add product --exp small")
    for kind, name, count in (("train/label", "spring", 60), ("val", "val", 120), ("test", "test", 40)):
        run(f"add {kind} --tags {name} --address", write_pack(name, count, 1000 * count))
    settings = {"method": "ac", "config": {"sampling_num": 8, "sampling_fn": STAGES}}
    Path("../ac.json").write_text(json.dumps(settings), encoding="utf-8")
    run("update project/activelearning --config ../ac.json")
    look()
    trained()
    project = look()
    (first,) = project.exp["small"]
    assert getattr(project.best, "name", "") == first.name
    metadata = read_metadata(Path(first.root, "loop/net.onnx"))
    assert metadata.class_names == NAMES and metadata.calibration is not None

    run("add train/unlabel --tags pond --address", write_pack("pond", 30, 9000))
    look()
    (task,) = Path("out/birds/activelearning").iterdir()
    laid_out = [Path(record["image_file"]).name for record in read_annotations(task / "annotation.json").records]
    picks = json.loads(next(Path("out/birds/dataset/unlabel").iterdir()).joinpath("picks.json").read_text("utf-8"))
    assert len(picks["picked"]) == 8 and sorted(laid_out) == sorted([*picks["picked"], *picks["audit"]])
    label_as_a_person(task, NAMES)
    look()
    trained()
    project = look()
    train = project.dataset.train
    assert train.label[1].num == len(laid_out) and len(project.exp["small"][1].dataset.train) == 2
    assert train.pseudo_label[0].num + len(picks["audit"]) >= 10
    gate = [row for row in project.decisions if row["step"] == "gate"][-1]
    assert gate["looks"] == 1 and "of 40 images right, look 1 at them" in gate["because"]
