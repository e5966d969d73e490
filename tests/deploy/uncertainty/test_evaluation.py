"""Measures, evaluation and its page, against scikit-learn, or the formula written another way."""

from __future__ import annotations

import importlib
import itertools
import json
import math
import re
import xml.etree.ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.special
import sklearn.metrics

from artifacts.calibration import SCORES
from common.atomic_io import ResultsError
from data_loader.image_files import NoImagesError
from data_loader.samples import Sample
from deploy.inference.uncertainty_scores import ClassMeans, UncertaintyError, softmax
from deploy.uncertainty.calibration import CalibrationTarget, calibrate
from deploy.uncertainty.evaluate_command import out_of_distribution_samples, summary_lines
from deploy.uncertainty.evaluation import evaluate, uncertainties
from deploy.uncertainty.metrics import area_under_risks, auroc, brier, fpr95, reliability, risks
from deploy.uncertainty.outputs import Outputs
from deploy.uncertainty.report import write_page
from tests.helpers.calibrated import NAMES, grey, metadata_with, some_logits, true_labels

CLASSES = 3


def some_uncertainties(count: int, seed: int, ties: int | None = None) -> np.ndarray:
    values = np.random.default_rng(seed).random(count)
    return np.round(values * ties) / ties if ties else values


# --- measures


def test_the_calibration_error_is_that_of_a_loop_over_the_predictions() -> None:
    logits = some_logits(900, spread=2.0)
    labels, scores = true_labels(logits, 3.0), softmax(logits)
    found = reliability(scores, labels)
    parts: dict[int, list[tuple[float, bool]]] = {}
    for row, label in zip(scores.tolist(), labels.tolist(), strict=True):
        part = next(i for i in range(15) if max(row) <= (i + 1) / 15)
        parts.setdefault(part, []).append((max(row), row.index(max(row)) == label))
    expected = 0.0
    for pairs in parts.values():
        gap = sum(score for score, _ in pairs) / len(pairs) - sum(is_right for _, is_right in pairs) / len(pairs)
        expected += len(pairs) / 900 * abs(gap)
    assert found.error == pytest.approx(expected, rel=1e-12) and found.error > 0.1
    assert {i: int(count) for i, count in enumerate(found.counts) if count} == {i: len(parts[i]) for i in sorted(parts)}
    assert np.isnan(found.scores[found.counts == 0]).all()


def test_scores_that_are_probabilities_have_next_to_no_calibration_error() -> None:
    logits = some_logits(60_000, spread=2.0)
    assert reliability(softmax(logits, 2.0), true_labels(logits, 2.0)).error < 0.008
    certain = np.eye(3)[[0, 1, 2, 0]]
    assert reliability(certain, np.array([0, 1, 2, 1])).error == pytest.approx(0.25)


@pytest.mark.parametrize("package", ["netcal", "torchmetrics"])
def test_the_calibration_error_is_that_of_other_libraries(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed; the loop above is the check")
    logits = some_logits(900, spread=2.0)
    labels, scores = true_labels(logits, 3.0), softmax(logits)
    if package == "netcal":
        expected = importlib.import_module("netcal.metrics").ECE(15).measure(scores, labels)
    else:
        import torch

        measure = importlib.import_module("torchmetrics.functional.classification").multiclass_calibration_error
        expected = float(measure(torch.from_numpy(scores), torch.from_numpy(labels), scores.shape[1], n_bins=15))
    assert reliability(scores, labels).error == pytest.approx(expected, abs=1e-6)


def test_brier_is_scikit_learns() -> None:
    logits = some_logits(300)
    labels, scores = true_labels(logits, 2.0), softmax(logits)
    expected = sklearn.metrics.brier_score_loss(labels, scores, scale_by_half=False, labels=range(7))
    assert brier(scores, labels) == pytest.approx(expected, rel=1e-12)


def test_risks_are_counted_one_image_at_a_time() -> None:
    uncertainty, wrong = some_uncertainties(200, 0), np.random.default_rng(1).random(200) < 0.2
    ranked = sorted(zip(uncertainty.tolist(), wrong.tolist(), strict=True))
    expected = [sum(is_wrong for _, is_wrong in ranked[:count]) / count for count in range(1, 201)]
    np.testing.assert_allclose(risks(uncertainty, wrong), expected, rtol=1e-12)
    area, excess = area_under_risks(uncertainty, wrong)
    assert area == pytest.approx(sum(expected) / 200)
    errors = int(wrong.sum())
    least = sum(max(count - (200 - errors), 0) / count for count in range(1, 201)) / 200
    assert excess == pytest.approx(area - least)


def test_the_risk_of_equals_is_its_mean_over_their_orders() -> None:
    uncertainty, wrong = np.array([0.1, 0.5, 0.5, 0.5, 0.5, 0.9]), np.array([0, 1, 0, 0, 1, 1], bool)
    orders = [[0, *order, 5] for order in itertools.permutations(range(1, 5))]
    expected = np.mean([np.cumsum(wrong[order]) / np.arange(1, 7) for order in orders], axis=0)
    np.testing.assert_allclose(risks(uncertainty, wrong), expected, rtol=1e-12)


def test_mistakes_last_have_no_excess_and_the_paper_approximates_their_area() -> None:
    wrong = np.zeros(20_000, bool)
    wrong[-3000:] = True
    area, excess = area_under_risks(np.arange(20_000.0), wrong)
    assert excess == pytest.approx(0, abs=1e-15)
    assert area == pytest.approx(0.15 + 0.85 * math.log(0.85), abs=1e-4)  # Geifman, Uziel & El-Yaniv 2019, eq. 3
    assert area_under_risks(np.arange(9.0), np.zeros(9, bool)) == (0, 0)
    by_chance = np.random.default_rng(0).permutation(20_000).astype(float)
    assert area_under_risks(by_chance, wrong)[0] == pytest.approx(0.15, abs=0.01)


@pytest.mark.parametrize("ties", [None, 12])
def test_auroc_and_fpr95_are_scikit_learns(ties: int | None) -> None:
    known, ood = some_uncertainties(400, 0, ties), some_uncertainties(250, 1, ties) + 0.25
    is_ood = np.repeat([0, 1], [400, 250])
    both = np.concatenate([known, ood])
    assert auroc(known, ood) == pytest.approx(sklearn.metrics.roc_auc_score(is_ood, both), rel=1e-12)
    false, true, _ = sklearn.metrics.roc_curve(1 - is_ood, -both, drop_intermediate=False)
    assert fpr95(known, ood) == pytest.approx(false[np.argmax(true >= 0.95 - 1e-12)], rel=1e-12)
    assert auroc(known, known) == pytest.approx(0.5)


# --- evaluation


def outputs(count: int, seed: int, folder: Path | None = None, temperature: float = 2.0) -> Outputs:
    """Return logits of which some predictions are wrong, features about their class's mean, and three passes."""
    generator = np.random.default_rng(seed)
    logits = some_logits(count, CLASSES, seed, spread=6.0)
    labels = true_labels(logits, temperature, seed + 1)
    features = np.eye(CLASSES)[labels] + generator.normal(0, 0.2, (count, CLASSES))
    passes = softmax(np.stack([logits + generator.normal(0, 1, logits.shape) for _ in range(3)]), temperature)
    files = tuple(f"{folder or '/nowhere'}/{number:03d}.png" for number in range(count))
    return Outputs(logits, labels, files, features, passes)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("images")
    for number in range(0, 600, 2):  # every second image is gone
        grey(folder / f"{number:03d}.png", number % 256, (8, 8) if number % 4 else (300, 200))
    known, ood = outputs(600, 10, folder), outputs(150, 20)
    ood = Outputs(ood.logits / 8, ood.labels, ood.files, -ood.features, ood.scores)
    held = outputs(3000, 30)
    metadata = calibrate(held.logits, held.labels, metadata_with(), CalibrationTarget(0.05, 0.9, 0.1))
    means = ClassMeans.of(held.features, held.labels)
    named = {"net": "<b>猫", "weights": "net.pth", "list": "a/very" * 20 + "/list.txt", "ood": "D", "notes": ["Noted."]}
    return {
        "known": known,
        "ood": ood,
        "metadata": metadata,
        "means": means,
        "values": {**named, **evaluate(known, metadata, ood, means)},
    }


def test_the_evaluation_follows_from_the_metadata(evaluated: dict[str, Any]) -> None:
    """Every number from the logits with scipy and scikit-learn, and the thresholds of the metadata."""
    known, metadata, values = evaluated["known"], evaluated["metadata"], evaluated["values"]
    scores = scipy.special.softmax(known.logits.astype(float) / metadata.temperature, axis=1)
    wrong = scores.argmax(axis=1) != known.labels
    accepted = 1 - scores.max(axis=1) <= metadata.thresholds["accept"]
    sets = 1 - scores <= metadata.thresholds["conformal"]
    assert values["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(known.labels, scores.argmax(axis=1)))
    assert 0 < accepted.sum() < 600 and wrong[accepted].any()
    assert {key: values["decided"][key] for key in ("accepted", "wrong", "coverage", "error")} == {
        "accepted": accepted.sum(),
        "wrong": wrong[accepted].sum(),
        "coverage": pytest.approx(accepted.mean()),
        "error": pytest.approx(wrong[accepted].mean()),
    }
    assert values["decided"]["conformal_coverage"] == pytest.approx(sets[np.arange(600), known.labels].mean())
    assert values["decided"]["conformal_size"] == pytest.approx(sets.sum(axis=1).mean())
    for size, count in enumerate(values["decided"]["conformal_sizes"]):
        assert count == (sets.sum(axis=1) == size).sum()
    for when, temperature in (("before", 1.0), ("after", metadata.temperature)):
        at = scipy.special.softmax(known.logits.astype(float) / temperature, axis=1)
        assert values[when]["nll"] == pytest.approx(sklearn.metrics.log_loss(known.labels, at, labels=range(3)))
        assert values[when]["ece"] == reliability(at, known.labels).error
    assert values["after"]["ece"] < values["before"]["ece"]
    assert sum(part["count"] for part in values["before"]["bins"]) == 600
    is_accepted = (
        1 - softmax(evaluated["ood"].logits, metadata.temperature).max(axis=1) <= metadata.thresholds["accept"]
    )
    assert values["strange"] == {
        "pictures": 150,
        "accepted": is_accepted.sum(),
        "share_accepted": pytest.approx(is_accepted.mean()),
    }
    mean_prediction = known.scores.mean(axis=0).argmax(axis=1)
    assert values["passes"] == {
        "count": 3,
        "accuracy_of_their_mean": pytest.approx((mean_prediction == known.labels).mean()),
    }


def test_every_score_is_compared(evaluated: dict[str, Any]) -> None:
    known, ood, metadata, means = (evaluated[key] for key in ("known", "ood", "metadata", "means"))
    values = evaluated["values"]["scores"]
    passes = ["predictive_entropy", "expected_entropy", "mutual_information"]
    assert list(values) == [*SCORES, "distance", *passes]
    wrong = known.logits.argmax(axis=1) != known.labels
    own, others = uncertainties(known, metadata, means), uncertainties(ood, metadata, means)
    for name, score in values.items():
        assert (score["aurc"], score["e_aurc"]) == area_under_risks(own[name], wrong)
        labels = np.repeat([0, 1], [600, 150])
        area = sklearn.metrics.roc_auc_score(labels, np.concatenate([own[name], others[name]]))
        assert score["auroc"] == pytest.approx(area)
        assert score["risk_at_coverage"][-1] == [1.0, pytest.approx(wrong.mean(), abs=1e-6)]
        assert len(score["risk_at_coverage"]) == 200
    assert values["distance"]["auroc"] > 0.95  # their features point away from every mean
    without = evaluate(Outputs(known.logits, known.labels, known.files), metadata)
    assert list(without["scores"]) == list(SCORES) and without["strange"] is None and without["passes"] is None
    assert "auroc" not in without["scores"]["energy"]


def test_the_most_confident_mistakes_come_first(evaluated: dict[str, Any]) -> None:
    known, metadata = evaluated["known"], evaluated["metadata"]
    scores = scipy.special.softmax(known.logits.astype(float) / metadata.temperature, axis=1)
    wrong = np.flatnonzero(scores.argmax(axis=1) != known.labels)
    expected = sorted(wrong, key=lambda index: -scores[index].max())[:24]
    rows = evaluated["values"]["mistakes"]
    assert [row["file"] for row in rows] == [known.files[index] for index in expected]
    for row, index in zip(rows, expected, strict=True):
        assert (row["class"], row["answer"]) == (NAMES[known.labels[index]], NAMES[scores[index].argmax()])
        assert row["score"] == pytest.approx(scores[index].max())


def test_the_histogram_holds_every_image(evaluated: dict[str, Any]) -> None:
    histogram = evaluated["values"]["histogram"]
    assert histogram["is_log"] and (sum(histogram["known"]), sum(histogram["strange"])) == (600, 150)
    assert histogram["threshold"] == pytest.approx(math.log10(evaluated["metadata"].thresholds["accept"]))


# --- page and lines


@pytest.fixture(scope="module")
def page(evaluated: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "new"
    write_page(evaluated["values"], folder)
    return folder


def test_the_page_stands_alone(page: Path, evaluated: dict[str, Any]) -> None:
    text = (page / "uncertainty.html").read_text(encoding="utf-8")
    assert sorted(path.name for path in page.iterdir()) == ["uncertainty.html", "uncertainty.json"]
    assert not re.search(r'(src|href)="(?!data:)|url\((?!data:)|<script|<link|@import', text)
    assert "<h1>Uncertainty of &lt;b&gt;猫</h1>" in text  # escaped
    charts = re.findall(r'<svg class="chart".*?</svg></svg>', text, re.DOTALL)
    labels = [xml.etree.ElementTree.fromstring(chart).get("aria-label") for chart in charts]
    assert labels == ["Reliability before", "Reliability after", "Risk by coverage", "Uncertainty"]
    assert charts[2].count("<polyline") == len(evaluated["values"]["scores"]) == 9
    assert text.count("<figure>") == 24
    gone = sum(not Path(row["file"]).exists() for row in evaluated["values"]["mistakes"])
    assert 0 < gone < 24 and text.count(">no image<") == gone
    assert {"data:image/png", "data:image/jpeg"} == set(re.findall("data:image/[a-z]+", text))


def test_the_values_are_strict_json(page: Path, evaluated: dict[str, Any]) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    values = json.loads((page / "uncertainty.json").read_text(encoding="utf-8"), parse_constant=refuse)
    assert values == json.loads(json.dumps(evaluated["values"]))


def test_lines_fit_a_terminal(evaluated: dict[str, Any]) -> None:
    lines = summary_lines(evaluated["values"])
    assert max(map(len, lines)) < 80 and lines[0].startswith("600 images of a/very") and lines[-1] == "Noted."
    (decides,) = [line for line in lines if line.startswith("least_confidence *")]
    score = evaluated["values"]["scores"]["least_confidence"]
    assert [float(text.strip("%")) for text in decides.split()[2:]] == [
        pytest.approx(score["aurc"] * 1000, abs=6e-4),
        pytest.approx(score["e_aurc"] * 1000, abs=6e-4),
        pytest.approx(score["auroc"], abs=6e-5),
        pytest.approx(score["fpr95"] * 100, abs=0.06),
    ]


@pytest.mark.parametrize("score", ["energy", "entropy"])
def test_a_net_without_mistakes_or_uncertainty_has_a_page_too(score: str, tmp_path: Path) -> None:
    logits = (np.eye(3)[np.arange(900) % 3] * 5).astype(np.float32)  # all alike
    metadata = calibrate(logits, logits.argmax(axis=1), metadata_with(), CalibrationTarget(score=score))
    known = Outputs(logits, logits.argmax(axis=1), ("x.png",) * 900)
    values = {"net": "n", "weights": "w", "list": "l", "ood": "", "notes": [], **evaluate(known, metadata)}
    write_page(values, tmp_path)
    assert "Most confident mistakes" not in (tmp_path / "uncertainty.html").read_text(encoding="utf-8")
    assert values["decided"]["error"] == 0 and summary_lines(values)
    assert evaluate(known, metadata_with(thresholds={"accept": -99.0, "conformal": 0.5}))["decided"]["error"] is None


def test_a_page_that_cannot_be_written_is_reported(evaluated: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultsError, match=r"file is a file, not a folder$"):
        write_page(evaluated["values"], tmp_path / "file")


def test_out_of_distribution_images_are_others(tmp_path: Path) -> None:
    files = [grey(tmp_path / f"D/{value}.png", value) for value in (1, 2)]
    assert [sample.path for sample in out_of_distribution_samples(tmp_path / "D", [])] == files
    with pytest.raises(UncertaintyError, match=r"D: 1 of its images are among the evaluated ones, so they are not "):
        out_of_distribution_samples(tmp_path / "D", [Sample(files[1], 0)])
    (tmp_path / "link").symlink_to(tmp_path / "D")
    with pytest.raises(UncertaintyError, match=r"D: 1 of its images are among the evaluated ones"):
        out_of_distribution_samples(tmp_path / "D", [Sample(str(tmp_path / "link/2.png"), 0)])
    (tmp_path / "E").mkdir()
    with pytest.raises(NoImagesError, match=r"E: no images in it or below it; endings known: "):
        out_of_distribution_samples(tmp_path / "E", [])
    with pytest.raises(UncertaintyError, match=r"1.png: no such folder; name one of out-of-distribution images with"):
        out_of_distribution_samples(Path(files[0]), [])
