"""The report and the event files are read back by other programs' readers: json, html.parser, TensorBoard's own."""

import errno
import json
import math
import os
import re
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from trainers.evaluation.class_curves import class_curves, class_tags
from trainers.evaluation.classification_metrics import ClassificationValidation, WorstImage, per_class_scores
from trainers.evaluation.confusion_cells import cells_in, totals_of
from trainers.reporting.classification_plots import log_classification
from trainers.reporting.report import START_WEIGHTS, TrainingReport, _capitalized, write_report
from trainers.reporting.tensorboard_logger import TrainingLogger

EVIL = "<script>alert('x')</script>"


class Page(HTMLParser):
    """Collects the text of a page and where its tags point."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def made_up(num_classes: int) -> TrainingReport:
    names = ["金毛寻回犬", EVIL, *(f"class {i}" for i in range(2, num_classes))][:num_classes]
    confusion = np.eye(num_classes, dtype=np.int64) * 8
    confusion[0, 1] = 3
    return TrainingReport(
        title="flowers & 花",
        net="resnet_module.resnet50",
        status="finished",
        class_names=names,
        best={"epoch": 2, "step": 200, "top1": 0.91234, "top5": 0.99, "loss": 0.3},
        final={"epoch": 3, "step": 300, "top1": math.nan, "top5": 0.98, "loss": math.inf},
        per_class=per_class_scores(names, *totals_of(cells_in(confusion), num_classes)),
        confusion=confusion.tolist(),
        worst=[WorstImage("a.jpg", 0, 1, 0.97, 4.2), WorstImage(f"{EVIL}.jpg", 0, 1, 0.9, math.inf)],
        curves={
            "train": [{"step": s, "epoch": s / 100, "loss": 300 / s, "learning_rate": 0.1} for s in range(1, 301)],
            "val": [
                {"step": 100 * e, "epoch": e, "loss": math.nan, "top1": 0.3 * e, "top5": 0.33 * e} for e in (1, 2, 3)
            ],
        },
        config={"root": EVIL, "seed": 7, "mean": [0.5, 0.5]},
        skipped_images=[{"path": "bad\udcff.jpg", "where": "trainset.txt:17", "reason": EVIL}],
        versions={"torch": "2.15.0"},
        seed=7,
    )


def load_image(path: str) -> np.ndarray:
    if path != "a.jpg":
        raise OSError("gone")
    return np.zeros((300, 200, 3), dtype=np.uint8)


def test_json_is_strict_and_says_what_was_given(tmp_path: Path) -> None:
    write_report(made_up(3).to_dict(), tmp_path)

    def refuse(constant: str) -> None:
        pytest.fail(f"{constant} is not JSON")

    text = (tmp_path / "report.json").read_text(encoding="utf-8")
    report = json.loads(text, parse_constant=refuse)
    assert "金毛寻回犬" in text  # to be read by people as well
    assert report["best"]["top1"] == 0.91234
    assert report["final"]["top1"] is report["final"]["loss"] is report["worst"][1]["loss"] is None
    assert report["skipped_images"][0]["path"] == "bad\\udcff.jpg"
    assert report["worst"][0] == {"path": "a.jpg", "label": 0, "answer": 1, "score": 0.97, "loss": 4.2}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.json"]


@pytest.mark.parametrize("num_classes", [2, 20, 21, 450])
def test_page_shows_everything_as_text_and_needs_nothing_else(tmp_path: Path, num_classes: int) -> None:
    html = write_report(made_up(num_classes).to_dict(), tmp_path, images=load_image).read_text(encoding="utf-8")
    assert EVIL not in html
    assert "http://" not in html
    assert "https://" not in html
    page = Page(html)
    assert [tag for tag, _ in page.tags].count("script") == 1
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object")
        for name in ("src", "href", "srcset"):
            assert (attributes.get(name) or "data:").startswith("data:")
    assert set(re.findall(r"url\((.{5})", html)) <= {"data:"}
    for expected in ("flowers & 花", "91.23 %", "金毛寻回犬", EVIL, "trainset.txt:17", "torch 2.15.0", "seed 7"):
        assert expected in page.text, expected
    images = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert any(image and image.startswith("data:image/jpeg;base64,") for image in images)
    assert "no image" in page.text
    assert ("matrix" in [attributes.get("class") for tag, attributes in page.tags if tag == "svg"]) == (
        num_classes <= 20
    )


def test_a_loss_of_all_heads_stands_apart_from_the_loss_of_one(tmp_path: Path) -> None:
    report = made_up(3)
    for row in report.curves["val"]:
        row["loss"] = 0.5
    for head, titles in (("", ["Loss"]), ("combiner", ["Training loss", "Validation loss"])):
        report.head = head
        html = write_report(report.to_dict(), tmp_path).read_text(encoding="utf-8")
        charts = re.findall(r'<svg class="chart".*? aria-label="([^"]*)">(.*?)</svg>\s*</section>', html, re.DOTALL)
        assert [title for title, _ in charts] == [*titles, "Accuracy", "Learning rate"]
        drawn = [{style for style in ("train", "val") if f'"line {style}"' in chart} for _, chart in charts]
        assert drawn[: len(titles)] == ([{"train"}, {"val"}] if head else [{"train", "val"}])


def test_weakest_class_stands_first_and_one_without_images_last(tmp_path: Path) -> None:
    report = made_up(4)
    confusion = np.diag([0, 9, 9, 9]) + np.eye(4, k=-1, dtype=np.int64) * 2
    report.per_class = per_class_scores(report.class_names, *totals_of(cells_in(confusion), 4))
    # F1 is 2 * hits / (row + column): no image; 18 / (11 + 11); 18 / (11 + 11); 18 / (11 + 9). Equal ones keep order.
    html = write_report(report.to_dict(), tmp_path).read_text(encoding="utf-8")
    assert re.findall(r'<td class="num muted" data-v="(\d+)">', html) == ["1", "2", "3", "0"]


def test_report_of_a_run_stopped_before_its_first_validation(tmp_path: Path) -> None:
    report = TrainingReport(title="t", net="n", status="interrupted", class_names=["a", "b"]).to_dict()
    page = Page(write_report(report, tmp_path).read_text(encoding="utf-8"))
    assert "interrupted" in page.text
    assert "svg" not in [tag for tag, _ in page.tags]


def test_failed_write_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_report(made_up(3).to_dict(), tmp_path)
    before = (tmp_path / "report.html").read_bytes()

    def full_disk(self: Path, *args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(OSError, match="no space left"):
        write_report(made_up(4).to_dict(), tmp_path)
    assert (tmp_path / "report.html").read_bytes() == before


def log_validation(logger: TrainingLogger, num_classes: int, step: int) -> None:
    report = made_up(num_classes)
    count = 8 * num_classes + 3
    cells = cells_in(np.array(report.confusion))
    result = ClassificationValidation(0.3, 0.9, 0.99, cells, report.per_class, report.worst, count)
    log_classification(logger, result, report.class_names, load_image, step)


def read_back(folder: Path) -> Any:
    from tensorboard.backend.event_processing import event_accumulator

    return event_accumulator.EventAccumulator(str(folder)).Reload()


def test_event_file_has_every_tag(tmp_path: Path) -> None:
    logger = TrainingLogger(tmp_path, enabled=True)
    logger.scalars({"train/loss": 1.5}, step=10)
    logger.image_grid("train/pictures", np.zeros((3, 28, 28, 1), np.uint8), ["a", "b", "猫"], step=10)
    log_validation(logger, 3, step=100)
    logger.config_text({"seed": 7, "root": "a|b", "mean": [0.5]})
    logger.hparams({"seed": 7, "name": "x", "mean": [0.5], "resume": None}, {"top1": 0.9})
    logger.flush()
    logger.close()
    tags = read_back(tmp_path).Tags()
    names = ["金毛寻回犬", "_script_alert__x____script_", "class_2"]
    curves = {"train/loss", "hparam/top1"}
    assert set(tags["scalars"]) == curves | {f"val_{what}/{name}" for what in ("precision", "recall") for name in names}
    assert set(tags["images"]) == {"train/pictures", "val/confusion_matrix", "val/worst"}
    assert "config/text_summary" in tags["tensors"]
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []  # hparams stay in this run


def test_a_page_of_very_many_classes_has_the_weakest_of_them(tmp_path: Path) -> None:
    names = [f"class {number}" for number in range(2500)]
    cells = [[number, number, 8] for number in range(2, 2500)] + [[0, 1, 5], [1, 0, 3]]
    per_class = per_class_scores(names, *totals_of(cells, 2500))
    report = replace(made_up(2), class_names=names, per_class=per_class, confusion=[], confusion_cells=cells)
    text = write_report(report.to_dict(), tmp_path, images=load_image).read_text("utf-8")
    assert (
        "the weakest 2,000 of 2,500, the others are in report.json" in text
        and text.count('<td class="num muted"') == 2000
    )
    assert "not drawn of more than 1,000 classes" in text and "#heat" not in text
    page = Page(text).text
    assert re.search(
        r"Most frequent mistakes\s.*class 0\s*class 1\s*5\s*100\.0 ?%\s*class 1\s*class 0\s*3", page, re.DOTALL
    )


def test_resumed_run_drops_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    for purge_step, steps, value in ((None, range(1, 8), 0.0), (5, range(5, 7), 1.0)):
        logger = TrainingLogger(tmp_path, enabled=True, purge_step=purge_step)
        for step in steps:
            logger.scalars({"train/loss": value}, step)
        logger.close()
        if purge_step is None:  # TensorBoard reads files by name, which begins with the second they were made in
            next(tmp_path.iterdir()).rename(tmp_path / "events.out.tfevents.0000000001.first")
    events = read_back(tmp_path).Scalars("train/loss")
    assert [(event.step, event.value) for event in events] == [(1, 0), (2, 0), (3, 0), (4, 0), (5, 1), (6, 1)]


def test_class_curves_are_capped_and_that_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="trainers.evaluation.class_curves")
    logger = TrainingLogger(tmp_path, enabled=True)
    for step in (1, 2):
        log_validation(logger, 60, step)
    logger.close()
    assert len([tag for tag in read_back(tmp_path).Tags()["scalars"] if tag.startswith("val_recall/")]) == 50
    messages = [record.getMessage() for record in caplog.records if "report.json" in record.getMessage()]
    assert messages == ["TensorBoard gets curves of the first 50 of 60 classes; report.json has them all"]


def test_a_full_disk_ends_the_logging_with_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The writer's own thread meets it first, and prints no traceback."""

    def full(writer: object, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    messages: list[str] = []
    logger = TrainingLogger(tmp_path, enabled=True, log=messages.append)
    monkeypatch.setattr("tensorboard.summary.writer.record_writer.RecordWriter.write", full)
    deadline = time.monotonic() + 30
    while logger.enabled:
        logger.scalars({"train/loss": 1.0}, step=1)
        logger.flush()
        assert time.monotonic() < deadline
    logger.image_grid("train/pictures", np.zeros((3, 28, 28, 1), np.uint8), ["a", "b", "c"], step=10)
    logger.close()
    why = "No space left on device; the training goes on"
    assert messages == [f"warning: {tmp_path}: nothing more is logged for TensorBoard: {why}"]
    assert "Traceback" not in capfd.readouterr().err


def test_disabled_logger_writes_nothing(tmp_path: Path) -> None:
    logger = TrainingLogger(tmp_path / "absent", enabled=False)
    logger.scalars({"a": 1.0}, 1)
    log_validation(logger, 3, 1)
    logger.image_grid("train/pictures", np.zeros((1, 8, 8, 3), np.uint8), ["a"], 1)
    logger.config_text({"a": 1})
    logger.hparams({"a": 1}, {"b": 2.0})
    logger.embedding(np.ones((1, 2), np.float32), [0], ["a"], lambda row: np.zeros((8, 8, 3), np.uint8), 1)
    logger.flush()
    logger.close()
    assert not (tmp_path / "absent").exists()


def test_projector_has_every_image_with_its_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    features = np.random.default_rng(0).random((5, 4)).astype(np.float32)
    features[3] = np.nan
    grey, shades = (200, 200, 200), [40, 80, 120, 160, 240]

    def load_row(row: int) -> np.ndarray:
        if row == 4:
            raise OSError("gone")
        return np.full((30, 60, 3), shades[row], np.uint8)

    logger = TrainingLogger(tmp_path, enabled=True)
    for _ in range(2):  # a step that a resumed run shows again
        logger.embedding(features, [0, -1, 1, 0, 2], ["金毛\n犬", "a\tb", ""], load_row, 7)
    logger.close()
    assert capsys.readouterr().out == ""
    folder = tmp_path / "00007" / "embedding"
    kept = np.array([0, 1, 2, 4])
    np.testing.assert_array_equal(np.loadtxt(folder / "tensors.tsv", dtype=np.float32), features[kept])
    # TensorBoard reads line by line, drops empty ones, and takes a first line with a tab for a heading.
    lines = (folder / "metadata.tsv").read_text(encoding="utf-8").splitlines()
    assert lines == ["金毛 犬", "unknown", "a b", "unknown"]
    sprite = Image.open(folder / "sprite.png")
    assert sprite.size == (128, 128)
    centres = [sprite.getpixel((32 + 64 * (i % 2), 32 + 64 * (i // 2))) for i in range(4)]
    expected = [*((shade,) * 3 for shade in shades[:3]), grey]
    np.testing.assert_allclose(centres, expected, atol=1)  # the sprite is rounded down
    assert sprite.getpixel((32, 4)) == (255, 255, 255)
    config = (tmp_path / "projector_config.pbtxt").read_text(encoding="utf-8")
    assert 'sprite {\n    image_path: "00007/embedding/sprite.png"\n    single_image_dim: 64' in config


def test_projector_shows_at_most_1000_evenly_spread(tmp_path: Path) -> None:
    logger = TrainingLogger(tmp_path, enabled=True)
    features = np.arange(2500, dtype=np.float32)[:, None] + [0, 1]
    logger.embedding(features, np.zeros(2500, int).tolist(), ["a"], lambda row: np.zeros((8, 8, 1), np.uint8), 1)
    logger.embedding(features * np.nan, [0] * 2500, ["a"], lambda row: np.zeros((8, 8, 1), np.uint8), 2)
    logger.close()
    shown = np.loadtxt(tmp_path / "00001/embedding/tensors.tsv")[:, 0]
    assert (len(shown), shown[0], shown[-1]) == (1000, 0, 2499)
    assert set(np.diff(shown)) <= {2, 3}
    with Image.open(tmp_path / "00001/embedding/sprite.png") as sprite:
        assert sprite.size == (2048, 2048)  # TensorBoard takes up to 8192
    assert not (tmp_path / "00002").exists()


def test_names_that_become_alike_keep_tags_apart() -> None:
    assert class_tags(["a b", "a_b", "猫", ""]) == ["a_b_0", "a_b_1", "猫", "_"]


def test_many_classes_of_boxes_and_masks_have_as_many_curves_as_of_images() -> None:
    rows = [{"class": f"ship/{number}", "ap50": number / 1000, "iou": None} for number in range(1203)]
    rows[3]["ap50"] = None
    curves = class_curves(rows, "ap50")
    assert list(curves) == [f"ship_{number}" for number in range(50) if number != 3] and curves["ship_49"] == 0.049
    assert class_curves(rows, "iou") == {}


def test_what_a_training_began_with_is_no_figure_of_its_best_epoch(tmp_path: Path) -> None:
    report = replace(made_up(2), rows=[("mean IoU", "41.00 %"), (START_WEIGHTS, "a package 0.1.0, MIT")])
    text = Page(write_report(report.to_dict(), tmp_path, images=load_image).read_text("utf-8")).text
    assert "Mean IoU41.00 %best epoch" in text and "Start weightsa package 0.1.0, MIT\n" in text


def test_measures_keep_their_own_capitals() -> None:
    names = ("mAP at IoU 0.5", "kNN", "top-1", "linear probe", "mean IoU", "F1")
    assert [*map(_capitalized, names)] == ["mAP at IoU 0.5", "kNN", "Top-1", "Linear probe", "Mean IoU", "F1"]
