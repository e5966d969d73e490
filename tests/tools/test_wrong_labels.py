"""The doctor ranks labels by how much they contradict predictions that were made without them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import PredefinedSplit, cross_val_predict
from sklearn.pipeline import make_pipeline

from tests.helpers.doctor import Diagnosis, Planted, examined, found
from tests.helpers.wrong_labels import coloured, planted, ranked, start_weights
from tools.doctor import __main__ as doctor
from tools.doctor.wrong_labels import COLUMNS, FOLDS, folds_of, judge, out_of_fold

pytestmark = pytest.mark.usefixtures("one_thread")

PROBABILITIES = np.array(
    [
        [0.80, 0.10, 0.10],  # label 0, whose mean is (0.8 + 0.3 + 0.1) / 3 = 0.4
        [0.30, 0.30, 0.40],  # 2 is predicted, but below its mean of 0.567
        [0.10, 0.85, 0.05],  # 1 is predicted, above its mean of 0.55: likely wrong
        [0.10, 0.80, 0.10],  # label 1
        [0.20, 0.50, 0.30],
        [0.55, 0.35, 0.10],  # likely wrong: 0
        [0.38, 0.22, 0.40],  # label 2
        [0.10, 0.10, 0.80],
        [0.45, 0.05, 0.50],  # only 0 reaches its mean, but the label is predicted
    ]
)
LABELS = np.array([0, 0, 0, 1, 1, 1, 2, 2, 2])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    """Three wrong labels: one in validation, and one image with a near-duplicate that has the same wrong label."""
    data = planted(tmp_path_factory.mktemp("wrong"))
    data.add("val", "wrong_val.png", 1, coloured(0, 900))
    wrong = coloured(2, 901)
    data.add("train", "wrong.png", 0, wrong)
    data.add("train", "wrong_copy.png", 0, wrong.resize((120, 96)))
    data.add("train", "text.jpg", 0, b"not an image")
    return data


@pytest.fixture(scope="module")
def diagnosis(data: Planted) -> Diagnosis:
    return examined(start_weights(data, bad_images="skip", max_bad_share=1.0), "--wrong_labels")


def test_wrong_labels_of_both_lists_are_found(data: Planted, diagnosis: Diagnosis) -> None:
    code, printed, report = diagnosis
    assert code == 0
    level, groups = found(report, "wrong labels")
    assert level == "warning" and sorted(groups) == [["wrong.png"], ["wrong_copy.png"], ["wrong_val.png"]]
    assert report["wrong_labels"] == {
        "judged": 39,
        "likely_wrong": 3,
        "agreeing": pytest.approx(36 / 39, abs=1e-4),
        "not_judged": [],
        "file": "wrong_labels.csv",
    }
    assert (
        "3 of 39 labels probably wrong: look at the images (92.3% of them" in " ".join(printed.split())
        and "not rose (" in printed
    )
    assert max(map(len, printed.splitlines()[:-3])) < 80
    page = (data.folder / "out" / "doctor.html").read_text(encoding="utf-8")
    assert (
        "predicted tulip (" in page and "3 of 3 shown, the most suspicious first; wrong_labels.csv ranks all 39" in page
    )


def test_the_list_ranks_every_image_that_can_be_read(data: Planted, diagnosis: Diagnosis) -> None:
    rows = ranked(data.folder / "config.json")
    assert tuple(rows[0]) == COLUMNS and [int(row["rank"]) for row in rows] == list(range(1, 40))
    assert {Path(row["file"]).name for row in rows[:3]} == {"wrong.png", "wrong_copy.png", "wrong_val.png"}
    assert [row["likely_wrong"] for row in rows] == ["1"] * 3 + ["0"] * 36
    own = [float(row["p_label"]) for row in rows]
    assert own == sorted(own) and own[2] < 0.3 < own[3]
    validation = next(row for row in rows[:3] if row["file"].endswith("wrong_val.png"))
    assert (validation["label"], validation["predicted"]) == ("rose", "daisy")
    assert validation["where"] == f"{data.folder}/val.txt:10"
    assert not [row for row in rows if row["file"].endswith("text.jpg")]


def test_classes_of_too_few_images_are_named_and_not_judged(tmp_path: Path) -> None:
    """Copies do not count: they tell nothing of each other's label."""
    data = planted(tmp_path / "data", (12, 12, 4))
    data.add("train", "copy.png", 2, Image.open(data.images / "2_0.png"))
    config = start_weights(data)
    _, printed, report = examined(config, "--wrong_labels")
    assert report["wrong_labels"]["not_judged"] == ["tulip"] and report["wrong_labels"]["judged"] == 24
    assert "labels of tulip were not judged: fewer than 5 different images" in " ".join(printed.split())
    assert {row["label"] for row in ranked(config)} == {"daisy", "rose"}
    assert "none of 24 labels probably wrong (100.0% of them are as the other images predict)" in " ".join(
        printed.split()
    )


def test_what_cannot_be_judged_is_a_warning_and_the_rest_is_reported(tmp_path: Path) -> None:
    config = start_weights(planted(tmp_path / "data", (12, 4, 3)))
    _, printed, report = examined(config, "--wrong_labels")
    sentence = "it needs two classes with 5 different images each, that can be read and have a label"
    assert f"no wrong labels could be looked for: {sentence}" in " ".join(printed.split())
    assert (
        report["wrong_labels"] == {}
        and "all labels" not in printed
        and not (tmp_path / "data/out/wrong_labels.csv").exists()
    )
    assert report["classes"][0]["training"] == 9


def test_without_start_weights_or_labels_it_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = planted(tmp_path / "data")
    config = data.config()
    assert doctor.main(["--config", str(config), "--wrong_labels"]) == 2
    assert 'train_mode "fromscratch" has none: take --config configs/finetune_config.json' in capsys.readouterr().err
    simsiam = {"model_module_name": "simsiam_module", "model_net_name": "SimSiam"}
    assert doctor.main(["--config", str(data.config(**simsiam)), "--wrong_labels"]) == 2
    assert "--wrong_labels judges labels, and this training uses none" in capsys.readouterr().err


# --- the rule ---


def test_a_label_is_likely_wrong_where_another_class_is_above_its_mean() -> None:
    """By hand, from the rule of the paper."""
    scores, is_wrong = judge(LABELS, PROBABILITIES)
    assert scores.tolist() == [0.8, 0.3, 0.1, 0.8, 0.5, 0.35, 0.4, 0.8, 0.5]
    assert np.flatnonzero(is_wrong).tolist() == [2, 5]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_order_and_rule_are_cleanlabs(seed: int) -> None:
    filters = pytest.importorskip("cleanlab.filter", reason="cleanlab is not installed: pip install cleanlab==2.9.0")
    rank = pytest.importorskip("cleanlab.rank")
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 6, 900)
    probabilities = generator.dirichlet(np.full(6, 0.4), 900) + 0.6 * np.eye(6)[labels] * generator.random((900, 1))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    scores, is_wrong = judge(labels, probabilities)
    np.testing.assert_allclose(scores, rank.get_label_quality_scores(labels, probabilities))
    issues = filters.find_label_issues(labels, probabilities, filter_by="confident_learning")
    assert issues.sum() > 50 and np.array_equal(is_wrong, issues)


def test_a_class_without_labels_is_never_the_better_one() -> None:
    scores, is_wrong = judge(
        np.array([0, 0, 2, 2]), np.array([[0.9, 0.1, 0.0], [0.1, 0.9, 0], [0, 0.6, 0.4], [0, 0, 1]])
    )
    assert not is_wrong.any() and scores.tolist() == [0.9, 0.1, 0.4, 1.0]


# --- the predictions ---


class OneScale(TransformerMixin, BaseEstimator):
    """Centres features, and divides all by the root of their mean variance."""

    def fit(self, features: np.ndarray, labels: object = None) -> OneScale:
        self.mean, self.scale = features.mean(axis=0), np.sqrt(features.var(axis=0).mean())
        return self

    def transform(self, features: np.ndarray) -> np.ndarray:
        return np.asarray((features - self.mean) / self.scale)


def test_predictions_are_those_of_cross_validation() -> None:
    """The reference is scikit-learn's own, of the same folds."""
    generator = np.random.default_rng(0)
    labels = np.arange(90) % 3
    features = (generator.normal(size=(90, 7)) * 10 + 3 + 8 * np.eye(7)[labels]) * np.arange(1, 8)
    groups = np.arange(90)
    model = make_pipeline(OneScale(), LogisticRegression(C=0.003, max_iter=1000))
    split = PredefinedSplit(folds_of(labels, groups))
    expected = cross_val_predict(model, features.astype(np.float64), labels, cv=split, method="predict_proba")
    np.testing.assert_allclose(out_of_fold(features, labels, groups, 3), expected, atol=1e-4)


def test_folds_have_the_same_classes_and_hold_groups_together() -> None:
    labels, groups = np.repeat([0, 1, 2], (50, 25, 5)), np.arange(80)
    groups[[7, 60]] = groups[3]
    folds = folds_of(labels, groups)
    assert folds[7] == folds[60] == folds[3]
    assert set(folds) == set(range(FOLDS))
    assert sorted(folds[labels == 2]) == list(range(FOLDS))
    for label, share in ((0, 10), (1, 5)):
        assert abs(np.bincount(folds[labels == label]) - share).max() <= 2
