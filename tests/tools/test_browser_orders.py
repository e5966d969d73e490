"""The orders of browser/images that need a net's features."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from data_loader.samples import NO_LABEL
from datasets.files import read_annotations, write_annotations
from review.review import Choice, Review, open_review
from tests.helpers.doctor import Planted, examined
from tests.helpers.embedded import SIMSIAM, input_of, made, write_images
from tests.helpers.wrong_labels import coloured, planted, ranked, start_weights
from tools import antgo
from tools.datasets import browser_orders
from tools.datasets.browser_orders import add_order

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    made(tmp_path, SIMSIAM, output="features")
    return tmp_path / "net.pth"


def write_set(folder: Path, **more: str) -> tuple[Path, list[Path]]:
    """Write annotations of seven images, one that is damaged, one that is missing, and an address."""
    paths = write_images(folder)
    files = [path.relative_to(folder).as_posix() for path in paths]
    (folder / "bad.png").write_bytes(b"no image")
    records = [{"image_file": name} for name in [*files, "bad.png", "gone.png"]]
    return write_annotations(folder, [*records, {"image_url": "http://localhost/a.png"}], ["a"]), paths


def similar(source: Path, weights: Path) -> Review:
    with open_review(source, []) as review:
        add_order(review, "similarity", weights, 1)
    return review


def test_similarity_is_that_of_the_net_s_features(weights: Path, tmp_path: Path) -> None:
    """Expected from the net itself, called on the images one by one."""
    source, paths = write_set(tmp_path / "set")
    net = made(tmp_path, SIMSIAM, output="features")
    features = net(input_of(paths)).detach().numpy().astype(np.float64)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    review = similar(source, weights)
    found = review.listed(Choice(order="similarity", near=2), "")
    assert found == [2, *(row for row in np.argsort(-features @ features[2]).tolist() if row != 2), 7, 8, 9]
    chain = review.listed(Choice(order="similarity"), "")
    assert sorted(chain[:7]) == list(range(7)) and chain[7:] == [7, 8, 9]
    assert review.orders == ["file", "class", "similarity"]
    assert review.listed(Choice(order="similarity", near=8), "") == list(range(10))  # it has no features


def test_features_are_kept_until_something_changes(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, paths = write_set(tmp_path / "set")
    first = similar(source, weights)
    assert capsys.readouterr().err == "note: 3 images without features come last\n"
    kept = source.with_name("annotation_features.npz")
    made_at = kept.stat().st_mtime_ns
    assert similar(source, weights).listed(Choice(order="similarity"), "") == first.listed(
        Choice(order="similarity"), ""
    )
    assert kept.stat().st_mtime_ns == made_at
    for change in (lambda: os.utime(paths[0]), lambda: kept.write_bytes(b"damaged")):
        change()
        similar(source, weights)
        assert kept.stat().st_mtime_ns > made_at
        made_at = kept.stat().st_mtime_ns


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    data = planted(tmp_path_factory.mktemp("wrong"))
    wrong = coloured(2, 901)
    data.add("train", "wrong.png", 0, wrong)
    data.add("train", "wrong_copy.png", 0, wrong.resize((120, 96)))
    data.add("train", "bad.jpg", 0, b"not an image")
    return data


def test_wrong_labels_are_the_doctor_s(data: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same images, in the doctor's two lists: the same order, probabilities and verdicts."""
    config = start_weights(data, bad_images="skip", max_bad_share=1.0)
    rows = [line.strip().split("----") for line in [*data.lines["train"], *data.lines["val"]]]
    records = [{"image_file": name, "image_label": int(label)} for name, label in rows]
    records.insert(3, {"image_file": "unknown.png", "image_label": NO_LABEL})
    coloured(1, 1).save(data.images / "unknown.png")
    source = write_annotations(data.images, records, list(data.class_names))
    monkeypatch.setattr(browser_orders, "RECIPE", config)
    with open_review(source, []) as review:
        add_order(review, "wrong_label", None, 0)
    found = review.listed(Choice(order="wrong_label"), "")
    examined(config, "--wrong_labels")
    expected = ranked(config)
    names = [records[index]["image_file"] for index in found]
    assert names == [*(Path(row["file"]).name for row in expected), "unknown.png", "bad.jpg"]
    for index, row in zip(found, expected, strict=False):
        judged = review.judgements[index]
        assert (judged.predicted, judged.is_wrong) == (row["predicted"], row["likely_wrong"] == "1")
        assert [judged.own, judged.other] == pytest.approx([float(row["p_label"]), float(row["p_predicted"])], abs=6e-5)
    monkeypatch.setattr(browser_orders, "RECIPE", Path("nowhere"))  # what was judged is kept
    with open_review(source, []) as again:
        add_order(again, "wrong_label", None, 0)
    assert again.judgements == review.judgements
    wrong = review.listed(Choice(net="wrong_label"), "")
    assert sorted(str(records[index]["image_file"]) for index in wrong) == ["wrong.png", "wrong_copy.png"]


def test_what_cannot_be_ordered_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.png").write_bytes(b"no image")
    source = write_annotations(tmp_path, [{"image_file": "a.png", "image_label": 0}], ["a"])
    start = ["browser/images", "--src", str(source), "--port", "0", "--order"]
    assert antgo.main([*start, "wrong_label"]) == 2
    text = "browser/images: --order wrong_label: it needs two classes with 5 different images each"
    assert capsys.readouterr().err.startswith(text)
    assert antgo.main([*start, "similarity", "--weights", str(tmp_path / "x.pth")]) == 2
    assert "x.pth" in capsys.readouterr().err
    assert antgo.main(["browser/images", "--user-input", "--order", "similarity"]) == 2
    assert capsys.readouterr().err == "browser/images: --order similarity compares the images of --src; name it\n"
    assert read_annotations(source).records and not list(tmp_path.glob("*.npz"))
