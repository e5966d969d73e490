"""Scores, calibration and the decision, against scipy, scikit-learn, torch, or the formula written another way."""

from __future__ import annotations

import itertools
import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import scipy.spatial
import scipy.special
import scipy.stats
import torch
from PIL import Image
from sklearn.preprocessing import normalize

from artifacts.calibration import SCORES
from artifacts.checkpoint import Checkpoint, load_checkpoint, rewrite_metadata, save_checkpoint
from artifacts.errors import CheckpointError
from artifacts.metadata import ModelMetadata
from common.atomic_io import ResultsError
from common.paths import ROOT
from configs.schema import Config
from data_loader.list_reader import read_list
from data_loader.preprocess import Preprocess
from data_loader.samples import ListError, Sample
from deploy.backends.base import BackendError
from deploy.backends.torch_backend import CheckpointBackend
from deploy.inference.class_prediction import ClassPrediction
from deploy.inference.decision import Decision, decide
from deploy.inference.predictor import Predictor
from deploy.inference.result_writer import open_results
from deploy.inference.uncertainty_scores import (
    LOGIT_SCORES,
    ClassMeans,
    UncertaintyError,
    split_entropy,
    uncertainty_of,
)
from deploy.uncertainty.calibration import (
    CalibrationTarget,
    calibrate,
    choose_temperature,
    conformal_threshold,
    fit_temperature,
    for_temperature,
    least_images,
    negative_log_likelihood,
)
from deploy.uncertainty.multi_pass import (
    Repetition,
    View,
    apply_view,
    dropout_passes,
    ensemble_passes,
    view_passes,
    views_of,
)
from deploy.uncertainty.outputs import check_not_trained_on, collect, labelled_samples, trained_on
from deploy.uncertainty.review_folder import ReviewFolder, check_new_folder
from deploy.uncertainty.risk_control import accept_threshold, error_limits, risk_bound
from nets.net_interface import build_net
from tests.helpers.calibrated import NAMES, grey, metadata_with, some_logits, true_labels

# --- scores


def independent(score: str, row: list[float], temperature: float) -> float:
    """Return a row's uncertainty with scipy and plain Python."""
    scores = scipy.special.softmax(np.array(row, np.float64) / temperature)
    ranked = sorted(scores, reverse=True)
    return {
        "least_confidence": lambda: float(1 - ranked[0]),
        "entropy": lambda: float(scipy.stats.entropy(scores)),
        "margin": lambda: float(1 - (ranked[0] - ranked[1])),
        "energy": lambda: float(-temperature * scipy.special.logsumexp(np.array(row, np.float64) / temperature)),
        "evidence": lambda: len(row) / sum(1 + max(value, 0.0) for value in row),
    }[score]()


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
@pytest.mark.parametrize("score", SCORES)
def test_each_score_is_scipys(score: str, temperature: float) -> None:
    logits = some_logits()
    expected = [independent(score, row, temperature) for row in logits.astype(np.float64).tolist()]
    np.testing.assert_allclose(uncertainty_of(logits, score, temperature), expected, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("score", SCORES)
def test_less_confident_is_more_uncertain(score: str) -> None:
    confident = np.array([[8.0, 1.0, 0.0]], np.float32)
    uncertain = np.array([[2.0, 1.5, 0.0]], np.float32)
    assert uncertainty_of(uncertain, score) > uncertainty_of(confident, score)


def test_huge_logits_overflow_nothing_and_confident_predictions_stay_apart() -> None:
    logits = np.array([[3e4, 0, 0], [60, 0, 0], [70, 0, 0]], np.float32)
    assert all(np.isfinite(uncertainty_of(logits, score)).all() for score in SCORES)
    _, sure, surer = uncertainty_of(logits, "least_confidence")
    assert sure == pytest.approx(2 * math.exp(-60), rel=1e-9)  # 1 - the highest score would be 0 for both
    assert 0 < surer < sure


def test_the_scores_that_metadata_may_name_are_those_of_the_table() -> None:
    assert tuple(LOGIT_SCORES) == SCORES


def test_an_unknown_score_is_named() -> None:
    with pytest.raises(UncertaintyError, match=r"^the score must be least_confidence, entropy, .*, got \"distance\"$"):
        uncertainty_of(some_logits(2), "distance")


def test_entropy_splits_into_what_each_pass_and_what_their_difference_leaves_open() -> None:
    scores = scipy.special.softmax(np.random.default_rng(0).normal(0, 2, (6, 40, 5)), axis=2)
    split = split_entropy(scores)
    mean = scores.mean(axis=0)
    expected = {  # the mutual information written as the mean divergence from the mean
        "predictive_entropy": scipy.stats.entropy(mean, axis=1),
        "expected_entropy": np.mean([scipy.stats.entropy(one, axis=1) for one in scores], axis=0),
        "mutual_information": np.mean([scipy.stats.entropy(one, mean, axis=1) for one in scores], axis=0),
    }
    assert list(split) == list(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(split[name], values, rtol=1e-9)
    alike = split_entropy(np.repeat(scores[:1], 3, axis=0))["mutual_information"]
    np.testing.assert_allclose(alike, 0, atol=1e-12)


def test_the_distance_is_to_the_nearest_mean_of_directions() -> None:
    generator = np.random.default_rng(0)
    features, others = generator.normal(1, 1, (90, 16)), generator.normal(0, 3, (30, 16))
    labels = generator.integers(0, 4, 90)
    directions = normalize(features)  # scikit-learn's
    means = np.stack([directions[labels == label].mean(axis=0) for label in range(4)])
    expected = scipy.spatial.distance.cdist(normalize(others), means).min(axis=1)
    np.testing.assert_allclose(ClassMeans.of(features, labels).distance(others), expected, rtol=1e-9)


# --- calibration


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_the_temperature_is_the_one_that_scipy_and_lbfgs_find(temperature: float) -> None:
    logits = some_logits(800)
    labels = true_labels(logits, temperature)
    fitted = fit_temperature(logits, labels)

    def loss(value: float) -> float:
        scaled = torch.from_numpy(logits).double() / value
        return float(torch.nn.functional.cross_entropy(scaled, torch.from_numpy(labels)))

    bounded = scipy.optimize.minimize_scalar(loss, bounds=(0.05, 20), method="bounded", options={"xatol": 1e-7})
    assert fitted == pytest.approx(bounded.x, rel=1e-5)
    parameter = torch.ones(1, dtype=torch.double, requires_grad=True)
    optimizer = torch.optim.LBFGS([parameter], max_iter=40, line_search_fn="strong_wolfe", tolerance_change=1e-14)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = torch.nn.functional.cross_entropy(
            torch.from_numpy(logits).double() * parameter, torch.from_numpy(labels)
        )
        value.backward()
        return value

    optimizer.step(closure)
    assert fitted == pytest.approx(1 / float(parameter.detach()), rel=1e-5)
    assert fitted == pytest.approx(temperature, rel=0.15)  # what the labels were drawn at
    assert negative_log_likelihood(logits, labels, fitted) == pytest.approx(loss(fitted), rel=1e-12)


def test_where_all_are_right_the_mean_score_follows_the_rule_of_succession() -> None:
    logits = some_logits(50)
    fitted = fit_temperature(logits, logits.argmax(axis=1))

    def excess(value: float) -> float:
        return float(scipy.special.softmax(logits.astype(np.float64) / value, axis=1).max(axis=1).mean() - 51 / 52)

    assert fitted == pytest.approx(scipy.optimize.brentq(excess, 0.01, 20), rel=1e-6)


@pytest.mark.parametrize(
    ("errors", "count", "delta"), [(0, 300, 0.05), (0, 1, 0.5), (3, 500, 0.005), (240, 4000, 0.004), (99, 100, 0.05)]
)
def test_the_risk_bound_is_clopper_and_pearsons(errors: int, count: int, delta: float) -> None:
    bound = risk_bound(errors, count, delta)
    assert bound == pytest.approx(scipy.stats.beta.ppf(1 - delta, errors + 1, count - errors), rel=1e-9)
    assert scipy.stats.binom.cdf(errors, count, bound) == pytest.approx(delta, rel=1e-6)


def test_all_wrong_bounds_nothing() -> None:
    assert risk_bound(7, 7, 0.05) == 1.0


def passing_probability(limits: Sequence[int], risk: float) -> float:
    """Return the probability that a walk of errors passes any limit, from all 2^n walks."""
    total = 0.0
    for walk in itertools.product((0, 1), repeat=len(limits) - 1):
        errors = list(itertools.accumulate(walk))
        if any(found <= limit for found, limit in zip(errors, limits[1:], strict=True)):
            total += risk ** errors[-1] * (1 - risk) ** (len(walk) - errors[-1])
    return total


@pytest.mark.parametrize(("count", "risk", "delta"), [(12, 0.3, 0.2), (14, 0.4, 0.1), (13, 0.5, 0.25), (9, 0.2, 0.5)])
def test_any_number_of_accepted_images_may_pass_and_all_together_err_no_more_often(
    count: int, risk: float, delta: float
) -> None:
    """Every walk of errors is listed: of one level for all numbers it is the largest that keeps the probability."""
    limits, level = error_limits(count, risk, delta)
    assert passing_probability(limits.tolist(), risk) <= delta * (1 + 1e-9)
    singles = {
        errors: scipy.stats.binom.cdf(errors, k, risk) for k in range(1, count + 1) for errors in (limits[k] + 1,)
    }
    assert limits[-1] >= 0 and all(value > level for value in singles.values())  # none higher at this level
    if level < delta:
        higher = [int(scipy.stats.binom.ppf(level * 1.05, k, risk)) for k in range(count + 1)]
        higher = [e if scipy.stats.binom.cdf(e, k, risk) <= level * 1.05 else e - 1 for k, e in enumerate(higher)]
        least = next(k for k in range(1, count + 1) if (1 - risk) ** k <= delta)
        higher = [-1 if k < least else e for k, e in enumerate(higher)]
        assert higher == limits.tolist() or passing_probability(higher, risk) > delta


@pytest.mark.parametrize(("target", "confidence"), [(0.2, 0.95), (0.2, 0.8), (0.05, 0.95), (0.3, 0.9)])
@pytest.mark.parametrize("count", [160, 240, 700])
def test_what_a_search_may_step_over_is_found(count: int, target: float, confidence: float) -> None:
    """A binary search tests bit_length(count) numbers, at an equal part of 1 - confidence; here each of them passes."""
    delta = (1 - confidence) / count.bit_length()
    limits, _ = error_limits(count, target, 1 - confidence)
    for accepted in range(1, count + 1):
        most = int(scipy.stats.binom.ppf(delta, accepted, target))
        most -= scipy.stats.binom.cdf(most, accepted, target) > delta
        assert limits[accepted] >= most
    # Only the whole list has few errors enough: the first step of a search, at half of it, would end without one.
    wrong = np.zeros(count, bool)
    wrong[: int(limits[count])] = True
    found = accept_threshold(np.arange(count, dtype=float), wrong, target, confidence)
    assert found is not None and (found.accepted, found.wrong) == (count, limits[count])
    half = count // 2
    assert (
        found.wrong > limits[half]
        and accept_threshold(np.arange(half, dtype=float), wrong[:half], target, confidence) is None
    )


def test_a_long_list_rises_at_fewer_numbers_and_never_above_the_level() -> None:
    limits, level = error_limits(6000, 0.05, 0.1)
    numbers = np.arange(6001)
    assert (scipy.stats.binom.cdf(limits, numbers, 0.05)[limits >= 0] <= level * (1 + 1e-6)).all()
    exact = scipy.stats.binom.ppf(level, numbers[1:], 0.05)
    assert (exact - limits[1:]).max() <= 3 and (np.diff(limits) >= 0).all()


def test_the_target_risk_is_met_as_often_as_guaranteed() -> None:
    """Wrong with probability u / 4 where u is uniform: the risk of accepting up to t is t / 8, known exactly."""
    generator = np.random.default_rng(0)
    broken = found = 0
    for _ in range(150):
        uncertainty = generator.random(3000)
        wrong = generator.random(3000) < uncertainty / 4
        threshold = accept_threshold(uncertainty, wrong, 0.08, 0.9)
        found += threshold is not None
        broken += threshold is not None and threshold.value / 8 > 0.08
    assert found > 125
    assert broken <= 0.1 * 150


@pytest.mark.parametrize("confidence", [0.95, 0.8])
def test_the_guarantee_holds_where_every_threshold_is_nearly_good_enough(confidence: float) -> None:
    """The risk is 0.19 + 0.02 t: above 0.2 from the middle on, and never by much, which is the hardest case."""
    broken = found = 0
    for seed in range(1000):
        generator = np.random.default_rng(seed)
        uncertainty = generator.random(240)
        wrong = generator.random(240) < 0.19 + 0.04 * uncertainty
        threshold = accept_threshold(uncertainty, wrong, 0.2, confidence)
        found += threshold is not None
        broken += threshold is not None and 0.19 + 0.02 * threshold.value > 0.2
    assert 0 < broken <= (1 - confidence) * 1000 and found > broken


def test_images_alike_are_accepted_together_or_not_at_all() -> None:
    uncertainty = np.repeat([0.1, 0.2, 0.3], 400)
    wrong = np.zeros(1200, bool)
    wrong[800::4] = True
    for permuted in (np.arange(1200), np.random.default_rng(0).permutation(1200)):
        threshold = accept_threshold(uncertainty[permuted], wrong[permuted], 0.02, 0.95)
        assert threshold is not None
        assert (threshold.accepted, threshold.wrong) == (800, 0)
        assert threshold.value == pytest.approx(0.25)


def test_no_threshold_where_none_meets_the_target() -> None:
    uncertainty = np.random.default_rng(0).random(2000)
    assert accept_threshold(uncertainty, np.arange(2000) % 5 == 0, 0.01, 0.95) is None
    assert accept_threshold(uncertainty[:200], np.zeros(200, bool), 0.01, 0.95) is None  # too few images


def test_a_threshold_between_neighbours_accepts_no_more_than_was_counted() -> None:
    """The float midway between two that have none between them is one of the two: here the upper."""
    lower = np.nextafter(0.5, 1)
    uncertainty = np.concatenate([np.full(1000, lower), np.full(10, np.nextafter(lower, 1))])
    found = accept_threshold(uncertainty, uncertainty > lower, 0.01, 0.95)
    assert found is not None and found.accepted == (uncertainty <= found.value).sum() == 1000


@pytest.mark.parametrize(("count", "risk"), [(19, 0.05), (99, 0.05), (1000, 0.1), (37, 0.3)])
def test_the_conformal_threshold_is_numpys_quantile(count: int, risk: float) -> None:
    own = np.random.default_rng(count).random(count)
    level = math.ceil(round((count + 1) * (1 - risk), 6)) / count
    expected = np.quantile(1 - own, level, method="inverted_cdf")
    assert conformal_threshold(own, risk) == expected
    if count == 19:
        assert expected == (1 - own).max()
        with pytest.raises(UncertaintyError, match=r"^18 images are too few for conformal sets that miss 0.05$"):
            conformal_threshold(own[:18], risk)


def test_conformal_sets_cover_the_truth_as_often_as_guaranteed() -> None:
    """Of many splits the mean coverage lies between 1 - a and 1 - a + 1 / (n + 1) (Angelopoulos & Bates 2021)."""
    logits = some_logits(20000, 5, spread=1.5)
    labels = true_labels(logits, 1.3)
    own = np.take_along_axis(scipy.special.softmax(logits.astype(np.float64), axis=1), labels[:, None], axis=1)[:, 0]
    generator, coverages = np.random.default_rng(0), []
    for _ in range(200):
        order = generator.permutation(20000)
        threshold = conformal_threshold(own[order[:99]], 0.1)
        coverages.append((1 - own[order[99:]] <= threshold).mean())
    assert 0.9 - 0.01 < np.mean(coverages) < 0.91 + 0.01  # 0.03 a split, 0.002 of their mean
    assert np.min(coverages) < 0.9 < np.max(coverages)


def test_calibration_of_a_whole_list() -> None:
    logits = some_logits(3000, spread=9)
    labels = true_labels(logits, 2.0)
    fitted = calibrate(
        logits, labels, metadata_with(calibration=None, thresholds={}), CalibrationTarget(0.05, 0.9, 0.1, "entropy")
    )
    first = for_temperature(3000)
    assert first.sum() == 600
    assert fitted.temperature == fit_temperature(logits[first], labels[first])
    calibration = fitted.calibration
    assert calibration is not None and calibration.pictures == 2400
    decisions = decide(logits[~first], fitted)
    accepted = np.array([decision is not None and decision.decision == "accept" for decision in decisions])
    wrong = logits[~first].argmax(axis=1) != labels[~first]
    assert (accepted.sum(), (accepted & wrong).sum()) == (calibration.accepted, calibration.wrong)
    assert 0 < calibration.accepted < 2400 and calibration.wrong > 0
    level = error_limits(2400, 0.05, 1 - (1 - 0.1 * 0.9))[
        1
    ]  # nine tenths of 1 - confidence are the fitted temperature's
    shares = (calibration.wrong + 1, calibration.accepted - calibration.wrong)
    assert calibration.risk_bound == pytest.approx(scipy.stats.beta.ppf(1 - level, *shares), rel=1e-6)
    assert calibration.risk_bound <= 0.05
    sets = [decision.conformal_set for decision in decisions if decision is not None]
    covered = np.mean([label in members for label, members in zip(labels[~first], sets, strict=True)])
    assert 0.9 <= covered < 0.905
    assert ModelMetadata.from_dict(json.loads(fitted.to_json())) == fitted


@pytest.mark.parametrize("order", ["sorted", "in turn"])
def test_however_a_list_is_ordered_both_shares_see_every_class(order: str) -> None:
    labels = np.repeat(np.arange(10), 100) if order == "sorted" else np.arange(1000) % 10
    chosen = for_temperature(1000)
    for share in (chosen, ~chosen):
        expected = share.sum() / 10
        counts = np.bincount(labels[share], minlength=10)
        assert (abs(counts - expected) < 4 * math.sqrt(expected)).all()  # four deviations


def test_a_list_that_is_too_short_is_refused_with_the_number_that_is_needed() -> None:
    target = CalibrationTarget()
    least = least_images(target)
    logits = some_logits(least)
    labels = logits.argmax(axis=1)
    assert calibrate(logits, labels, metadata_with(), target).calibration is not None
    sentence = (
        f"^{least - 1} images are too few for a risk under 0.01 with confidence 0.95 and conformal sets that "
        f"miss 0.05: at least {least} are needed, all of them predicted correctly; a higher --target_risk needs fewer$"
    )
    with pytest.raises(UncertaintyError, match=sentence):
        calibrate(logits[1:], labels[1:], metadata_with(), target)


@pytest.mark.parametrize(
    ("target", "confidence", "conformal"),
    [(0.01, 0.95, 0.05), (0.02, 0.95, 0.05), (0.3, 0.5, 0.001), (0.07, 0.99, 0.2)],
)
def test_the_number_that_is_needed_is_the_least_of_all_numbers(
    target: float, confidence: float, conformal: float
) -> None:
    def is_enough(count: int) -> bool:
        kept = count - math.ceil(count / 5)
        bound = scipy.stats.beta.ppf(1 - 0.9 * (1 - confidence), 1, kept) if kept else 1.0
        return bound <= target and math.ceil(round((kept + 1) * (1 - conformal), 9)) <= kept and count >= 100

    assert least_images(CalibrationTarget(target, confidence, conformal)) == next(
        n for n in range(1, 10**5) if is_enough(n)
    )


def test_the_length_for_a_target_of_hundreds_of_millions_is_computed_at_once() -> None:
    assert 10**8 < least_images(CalibrationTarget(target_risk=1e-8)) < 10**10


def test_a_hint_names_a_risk_that_these_images_allow() -> None:
    """Half of the images are wrong for half of them: 0.3 is too little, and the hint says what is not."""
    logits = some_logits(400, 5, spread=2.0)
    labels = true_labels(logits, 1.0)
    with pytest.raises(
        UncertaintyError, match=r"with these images --target_risk [\d.]+ can be; a longer list"
    ) as error:
        calibrate(logits, labels, metadata_with(), CalibrationTarget(0.02, 0.95, 0.2))
    (risk,) = re.findall(r"--target_risk ([\d.]+) can be", str(error.value))
    fitted = calibrate(logits, labels, metadata_with(), CalibrationTarget(float(risk), 0.95, 0.2))
    assert fitted.calibration is not None and fitted.calibration.accepted > 0


@pytest.mark.parametrize(
    ("target", "count", "hint"),
    [
        (CalibrationTarget(0.02, 0.95, 0.05), 192, "; a higher --target_risk needs fewer"),
        (CalibrationTarget(0.3, 0.95, 0.001), 1248, "; a higher --conformal needs fewer"),
        (CalibrationTarget(0.3, 0.95, 0.2), 99, ", for the temperature alone"),
    ],
)
def test_a_list_that_is_too_short_gets_the_hint_that_helps(target: CalibrationTarget, count: int, hint: str) -> None:
    """With 0.95: 154 without an error for 0.02, 999 for sets that miss 0.001, each four fifths of a list."""
    logits = some_logits(count)
    expected = f"at least {count + 1} are needed, all of them predicted correctly{hint}$"
    with pytest.raises(UncertaintyError, match=expected):
        calibrate(logits, logits.argmax(axis=1), metadata_with(), target)


@pytest.mark.parametrize("temperature", [1.0, 0.9, 1.3, 0.6])
def test_the_temperature_of_few_images_is_no_worse_than_none(temperature: float) -> None:
    """60 of 40,000 images fit it; the log likelihood of all of them says whether it was worth it."""
    logits = some_logits(40000, 5, spread=2.5)
    labels = true_labels(logits, temperature)
    none = negative_log_likelihood(logits[:8000], labels[:8000])
    worse, alone = [], []
    for seed in range(40):
        few = np.random.default_rng(seed).choice(40000, 60, replace=False)
        chosen, fitted = choose_temperature(logits[few], labels[few]), fit_temperature(logits[few], labels[few])
        assert chosen in (1.0, fitted)
        worse.append(negative_log_likelihood(logits[:8000], labels[:8000], chosen) - none)
        alone.append(negative_log_likelihood(logits[:8000], labels[:8000], fitted) - none)
    assert np.mean(np.array(worse) > 1e-9) <= 0.1
    if temperature == 1.0:
        assert np.mean(np.array(alone) > 1e-9) > 0.5  # as it was


def test_a_temperature_that_the_other_images_contradict_is_not_written() -> None:
    """The images that fit the temperature are drawn at 0.4, the others at 1."""
    logits = some_logits(500, 5, spread=3.0)
    first = for_temperature(500)
    labels = np.where(first, true_labels(logits, 0.4), true_labels(logits, 1.0))
    assert choose_temperature(logits[first], labels[first]) < 0.8
    fitted = calibrate(logits, labels, metadata_with(), CalibrationTarget(0.3, 0.9, 0.2))
    calibration = fitted.calibration
    assert fitted.temperature == 1.0 and calibration is not None
    level = error_limits(400, 0.3, 1 - (1 - 0.1 * (1 - 0.9)))[1]  # the tenth that is kept for this
    shares = (calibration.wrong + 1, calibration.accepted - calibration.wrong)
    assert calibration.risk_bound == pytest.approx(scipy.stats.beta.ppf(1 - level, *shares), rel=1e-3)


def test_a_target_that_cannot_be_met_is_refused() -> None:
    logits = some_logits(2000, spread=0.1)
    sentence = (
        r"^no threshold on margin keeps the risk among the accepted under 0.01 with confidence 0.95 \(\d+ of 1600 "
        r"images are predicted wrongly\); with these images no --target_risk up to 0.5 can be either; a longer list, "
        r"or another --score, may do more$"
    )
    with pytest.raises(UncertaintyError, match=sentence):
        calibrate(logits, true_labels(logits, 1.0), metadata_with(), CalibrationTarget(score="margin"))


# --- the decision


def documented_rows() -> list[list[str]]:
    text = (ROOT / "docs/tensorrt-json.md").read_text(encoding="utf-8")
    example = text.partition("A worked example, T = 1.6, accept = 0.2, conformal = 0.88:")[2]
    rows = [line.strip("| ").split(" | ") for line in example.splitlines() if re.match(r"\| -?[0-9]", line)]
    return rows[:2]


@pytest.mark.parametrize("row", documented_rows(), ids=["accepted", "set aside"])
def test_the_documented_example_is_what_is_computed(row: list[str]) -> None:
    logits = [float(value) for value in row[0].split(", ")]
    powers = [math.exp(value / 1.6) for value in logits]
    assert row[1] == ", ".join(f"{power / sum(powers):.4f}" for power in powers)
    for score, text in zip(("least_confidence", "entropy", "margin", "energy", "evidence"), row[2:7], strict=True):
        (decision,) = decide(np.array([logits], np.float32), metadata_with(score))
        assert decision is not None
        assert f"{decision.uncertainty:.4f}" == text == f"{independent(score, logits, 1.6):.4f}"
    (decision,) = decide(np.array([logits], np.float32), metadata_with())
    assert decision is not None
    assert (decision.decision, ", ".join(map(str, decision.conformal_set))) == (row[7], row[8])


def test_the_example_shows_both_decisions() -> None:
    assert [row[7] for row in documented_rows()] == ["accept", "set_aside"]


def test_nothing_is_decided_without_calibration_or_on_what_is_not_finite() -> None:
    logits = np.array([[4, 1, -1], [np.nan, 1, -1], [np.inf, 1, -1]], np.float32)
    assert decide(logits, metadata_with(calibration=None)) == [None] * 3
    first, *others = decide(logits, metadata_with())
    assert isinstance(first, Decision) and others == [None, None]


def test_the_threshold_itself_is_accepted_and_a_set_may_be_empty() -> None:
    logits = np.array([[1.0, 1.0, 1.0]], np.float32)
    own = float(uncertainty_of(logits, "least_confidence", 1.6)[0])
    (at,) = decide(logits, metadata_with(thresholds={"accept": own, "conformal": 0.5}))
    (above,) = decide(logits, metadata_with(thresholds={"accept": own * (1 - 1e-12), "conformal": 0.5}))
    assert at is not None and above is not None
    assert (at.decision, above.decision, at.conformal_set) == ("accept", "set_aside", ())


# --- metadata and checkpoints


def test_metadata_without_calibration_stays_as_it_was() -> None:
    values = metadata_with(calibration=None).to_dict()
    assert "calibration" not in values
    assert ModelMetadata.from_dict(values).calibration is None


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"score": "distance"}, "calibration cannot have score 'distance'"),
        ({"target_risk": 1.5}, "calibration cannot have target_risk 1.5"),
        ({"confidence": float("nan")}, "calibration cannot have confidence nan"),
        ({"pictures": True}, "calibration cannot have pictures True"),
        ({"surplus": 1}, "calibration must have score, target_risk, "),
    ],
)
def test_damaged_calibration_is_refused(change: dict[str, Any], sentence: str) -> None:
    values = metadata_with().to_dict()
    values["calibration"] |= change
    with pytest.raises(ValueError, match=f"^the metadata is damaged: {sentence}"):
        ModelMetadata.from_dict(values)


@pytest.mark.parametrize("change", [{"temperature": None}, {"thresholds": {"accept": 0.2}}, {"output": "features"}])
def test_calibration_without_what_decides_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^the metadata is damaged: calibration cannot be Calibration"):
        ModelMetadata.from_dict(metadata_with().to_dict() | change)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    net, ema = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
    uncalibrated = metadata_with(calibration=None, temperature=None, thresholds={})
    progress = {"step": 7, "rng": torch.get_rng_state()}
    path = tmp_path / "net.pth"
    parts = {"ema": ema.state_dict(), "scaler": {"scale": 2.0}, "progress": progress}
    save_checkpoint(Checkpoint({"num_classes": 3}, uncalibrated, net.state_dict(), **parts), path)
    return path


def test_only_the_metadata_of_a_checkpoint_is_rewritten(saved: Path) -> None:
    before = torch.load(saved, weights_only=True) | {"facts": None}
    content = torch.load(saved, weights_only=True) | {"of_a_later_version": 1}
    torch.save(content, saved)
    link = saved.with_name("link.pth")
    link.symlink_to(saved)
    fitted = replace(metadata_with(), weights_sha256=load_checkpoint(saved).metadata.weights_sha256)
    rewrite_metadata(link, fitted)
    assert link.is_symlink() and load_checkpoint(saved).metadata == fitted
    after = torch.load(saved, weights_only=True)
    assert after.pop("of_a_later_version") == 1
    assert list(after) == list(before)
    for name in ("net", "ema"):
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=0)
    assert torch.equal(after["progress"].pop("rng"), before["progress"].pop("rng"))
    plain = set(before) - {"facts", "net", "ema"}
    assert {name: after[name] for name in plain} == {name: before[name] for name in plain}
    assert sorted(path.name for path in saved.parent.iterdir()) == ["link.pth", "net.pth"]


def test_a_full_disk_leaves_the_checkpoint_as_it_was(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.read_bytes()
    fitted = replace(metadata_with(), weights_sha256=load_checkpoint(saved).metadata.weights_sha256)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(CheckpointError, match="cannot write the checkpoint: No space left on device"):
        rewrite_metadata(saved, fitted)
    assert saved.read_bytes() == before and len(list(saved.parent.iterdir())) == 1


def test_metadata_of_other_weights_is_refused(saved: Path) -> None:
    with pytest.raises(CheckpointError, match="the metadata is of other weights than the checkpoint's"):
        rewrite_metadata(saved, metadata_with(weights_sha256="0" * 64))


# --- predictions


class BrightnessBackend:
    """Logits that follow from the mean brightness of an image."""

    name, device = "fake", "cpu"

    def __call__(self, images: np.ndarray) -> np.ndarray:
        mean = images.mean(axis=tuple(range(1, images.ndim)))
        return np.stack([2 * mean, -mean, np.zeros_like(mean)], axis=1).astype(np.float32)


@pytest.fixture
def shades(tmp_path: Path) -> list[str]:
    return [grey(tmp_path / f"shades/{value:03d}.png", value) for value in (0, 90, 120, 180, 255)]


def test_predictions_have_a_decision_only_where_calibrated(shades: list[str]) -> None:
    plain = list(Predictor(BrightnessBackend(), metadata_with(calibration=None)).predict_files(shades))
    decided = list(Predictor(BrightnessBackend(), metadata_with()).predict_files(shades))
    assert {prediction.decision for prediction in decided} == {"accept", "set_aside"}
    for before, after in zip(plain, decided, strict=True):
        assert set(before.to_dict()) == {"file", "label", "class", "score", "top_k"}
        values = after.to_dict()
        assert [values.pop(key) for key in ("uncertainty", "decision", "conformal_set")] == [
            pytest.approx(1 - after.score),
            "accept" if 1 - after.score <= 0.2 else "set_aside",
            [name for name, score in after.top_k if 1 - score <= 0.88],
        ]
        assert values == before.to_dict()


def test_csv_columns_come_before_the_error(shades: list[str], tmp_path: Path) -> None:
    predictor = Predictor(
        BrightnessBackend(), metadata_with(), Repetition(view_passes(BrightnessBackend(), metadata_with(), ()))
    )
    with open_results(tmp_path / "r.csv", predictor.csv_columns(1)) as results:
        for prediction in predictor.predict_files([shades[1], str(tmp_path / "none.png")]):
            results.write(prediction)
    header, first, second = (tmp_path / "r.csv").read_text(encoding="utf-8-sig").splitlines()
    names = "file,label,class,score,uncertainty,decision,conformal_set,predictive_entropy,expected_entropy,"
    assert header == names + "mutual_information,error"
    assert first.startswith(f"{shades[1]},1,dog,0.") and first.endswith(",0,")
    assert second.count(",") == 10 and second.endswith("no such file")


def test_passes_that_are_not_finite_give_an_error(shades: list[str]) -> None:
    predictor = Predictor(
        BrightnessBackend(), metadata_with(), Repetition(lambda images: np.full((2, len(images), 3), np.nan))
    )
    assert [prediction.error for prediction in predictor.predict_files(shades[:1])] == [
        "the net's output is not finite (NaN or infinite logits)"
    ]


# --- gathering


class HeadedNet(torch.nn.Module):
    """A net of two layers with dropout between them."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.dropout, self.head = torch.nn.Linear(3, 6), torch.nn.Dropout(0.5), torch.nn.Linear(6, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.dropout(self.body(images.mean((2, 3))).relu()))
        return logits


@pytest.fixture
def headed() -> CheckpointBackend:
    torch.manual_seed(0)
    return CheckpointBackend(HeadedNet().eval(), torch.device("cpu"))


def test_outputs_are_gathered_in_order_and_what_cannot_be_read_is_left_out(
    shades: list[str], headed: CheckpointBackend, tmp_path: Path
) -> None:
    samples = [Sample(path, number % 3) for number, path in enumerate(shades)]
    samples.insert(2, Sample(str(tmp_path / "none.png"), 0))
    metadata = metadata_with()
    outputs = collect(headed, metadata, samples, batch_size=2, workers=2, with_features=True)
    assert outputs.files == tuple(shades) and outputs.labels.tolist() == [0, 1, 2, 0, 1]
    assert len(outputs.skipped) == 1 and outputs.skipped[0].startswith(f"{tmp_path}/none.png: ")
    images = torch.stack([torch.from_numpy(metadata.preprocess(np.asarray(Image.open(path)))) for path in shades])
    with torch.no_grad():
        features = headed.net.body(images.mean((2, 3))).relu()
        logits = headed.net.head(features)
    np.testing.assert_allclose(outputs.features, features, atol=1e-6)
    np.testing.assert_allclose(outputs.logits, logits, atol=1e-6)
    passes = view_passes(headed, metadata, ("flip",))
    scores = collect(headed, metadata, samples, batch_size=4, passes=passes).scores
    assert scores is not None and scores.shape == (2, 5, 3)
    with pytest.raises(UncertaintyError, match=r"needs features, which only a checkpoint has; name the \.pth file$"):
        collect(BrightnessBackend(), metadata, samples, with_features=True)


def test_logits_that_are_not_finite_calibrate_nothing(shades: list[str]) -> None:
    backend = BrightnessBackend()
    backend.__class__ = type("Broken", (BrightnessBackend,), {"__call__": lambda _, x: np.full((len(x), 3), np.nan)})
    with pytest.raises(BackendError, match=r"the net's output is not finite"):
        collect(backend, metadata_with(), [Sample(shades[0], 0)])
    with pytest.raises(UncertaintyError, match=r"^none of the 1 images can be read; the first: nowhere.png: "):
        collect(backend, metadata_with(), [Sample("nowhere.png", 0)])


def test_training_images_are_found_by_their_paths(shades: list[str], tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("shades/000.png----0\nshades/180.png----1\n", encoding="utf-8")
    (tmp_path / "val.txt").write_text("090.png----0\n180.png----1\n", encoding="utf-8")
    net = {"model_module_name": "resnet_module", "model_net_name": "resnet18"}
    place = net | {
        "train_data_file": str(tmp_path / "train.txt"),
        "train_data_root_dir": str(tmp_path),
        "num_classes": 3,
    }
    config = Config.model_validate(place | {"val_data_root_dir": str(tmp_path / "shades")})
    trained = trained_on(config, metadata_with())
    assert trained is not None and len(trained) == 2
    samples = labelled_samples(tmp_path / "val.txt", config, metadata_with(), flag="--calibrate").samples
    with pytest.raises(UncertaintyError, match=r"val.txt: 1 of its 2 images were trained on, and a net is overconf"):
        check_not_trained_on(samples, tmp_path / "val.txt", trained)
    check_not_trained_on(samples[:1], tmp_path / "val.txt", trained)
    (tmp_path / "link").symlink_to(tmp_path / "shades")
    for around in (tmp_path / "link/000.png", tmp_path / "shades/../shades/000.png"):  # the same image by another way
        with pytest.raises(UncertaintyError, match=r"val.txt: 1 of its 1 images were trained on"):
            check_not_trained_on([Sample(str(around), 0)], tmp_path / "val.txt", trained)
    (tmp_path / "train.txt").unlink()
    assert trained_on(config, metadata_with()) is None and trained_on(None, metadata_with()) is None
    with pytest.raises(UncertaintyError, match=r"shades: its images have no labels; name a list, or one"):
        labelled_samples(tmp_path / "shades", config, metadata_with(), flag="--calibrate")


# --- repetition


def test_views_are_what_torch_samples() -> None:
    """The same affine maps by torch's grid_sample, whose positions run from -1 to 1."""
    images = np.random.default_rng(0).normal(size=(2, 3, 20, 32)).astype(np.float32)
    for view in (*views_of(("flip", "shift", "scale")), View(flip=True, down=0.1, right=-0.05, scale=1.3)):
        mirror = -1.0 if view.flip else 1.0
        theta = torch.tensor(
            [
                [mirror / view.scale, 0, -mirror * view.right * 32 * 2 / 31],  # flipped first, then moved
                [0, 1 / view.scale, -view.down * 20 * 2 / 19],
            ]
        )[None].repeat(2, 1, 1)
        grid = torch.nn.functional.affine_grid(theta, [2, 3, 20, 32], align_corners=True)
        expected = torch.nn.functional.grid_sample(
            torch.from_numpy(images), grid, padding_mode="border", align_corners=True
        )
        np.testing.assert_allclose(apply_view(images, view), expected, atol=2e-5)


def test_views_of_bytes_are_rounded_and_a_flip_is_exact() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    assert np.array_equal(apply_view(pixels, View(flip=True), "uint8 NHWC RGB"), pixels[:, :, ::-1])
    moved = apply_view(pixels, View(down=1 / 16), "uint8 NHWC BGR")
    assert np.array_equal(moved[:, 1:], pixels[:, :-1]) and np.array_equal(moved[:, 0], pixels[:, 0])
    assert moved.dtype == np.uint8
    assert len(views_of(("flip", "shift", "scale"))) == 8 and views_of(()) == [View()]


def test_dropout_passes_differ_repeat_themselves_and_leave_the_net_as_it_was(headed: CheckpointBackend) -> None:
    images = np.random.default_rng(0).normal(size=(4, 3, 8, 8)).astype(np.float32)
    metadata = metadata_with()
    before, state = headed(images), torch.get_rng_state()
    passes = dropout_passes(headed, metadata, 400)
    scores = passes(images)
    assert scores.shape == (400, 4, 3) and np.array_equal(scores, passes(images))
    assert np.array_equal(headed(images), before) and not headed.net.dropout.training
    assert torch.equal(torch.get_rng_state(), state)
    weights, bias = headed.net.head.weight.detach(), headed.net.head.bias.detach()
    with torch.no_grad():
        hidden = headed.net.body(torch.from_numpy(images).mean((2, 3))).relu()
    masks = torch.cartesian_prod(*[torch.tensor([0.0, 2.0])] * 6)  # all that dropout of one half can do to six
    logits = torch.einsum("mh,nh,kh->mnk", masks, hidden, weights) + bias
    exact = torch.softmax(logits / 1.6, dim=2).mean(dim=0)
    np.testing.assert_allclose(scores.mean(axis=0), exact, atol=0.05)  # 400 draws: a deviation of under 0.015


class AttendingNet(torch.nn.Module):
    """Predicts by self-attention over the columns of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = torch.nn.MultiheadAttention(3, 1, dropout=0.3, batch_first=True)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        columns = images.mean(dim=2).mT  # (N, W, 3)
        attended: torch.Tensor = self.attention(columns, columns, columns)[0]
        return attended.mean(dim=1)  # (N, 3)


@pytest.mark.parametrize("kind", ["densenet", "attention"])
def test_dropout_that_is_no_layer_is_kept_on_and_nothing_else(kind: str) -> None:
    """DenseNet's layers, beside normalisations that must stay as they are, and attention drop by functions."""
    torch.manual_seed(0)
    sizes = {"num_classes": 3, "img_height": 32, "img_width": 32, "model_args": {"dropout": 0.3}}
    net = AttendingNet() if kind == "attention" else build_net("densenet_module", "densenet121", **sizes)
    backend = CheckpointBackend(net.eval(), torch.device("cpu"))
    images = np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32)
    before, state = backend(images), {key: value.clone() for key, value in net.state_dict().items()}
    scores = dropout_passes(backend, metadata_with(), 2)(images)
    assert not np.allclose(scores[0], scores[1], atol=1e-6)
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert np.array_equal(backend(images), before) and not any(module.training for module in net.modules())


def test_dropout_needs_a_net_that_has_it(headed: CheckpointBackend) -> None:
    headed.net.dropout.p = 0.0
    sentence = "^resnet18 was trained without dropout, so there is none to keep on; use --repeat views$"
    with pytest.raises(UncertaintyError, match=sentence):
        dropout_passes(headed, metadata_with(), 5)
    with pytest.raises(UncertaintyError, match=r"exported files have none$"):
        dropout_passes(BrightnessBackend(), metadata_with(), 5)


def test_an_ensemble_asks_each_net_at_its_own_temperature(headed: CheckpointBackend) -> None:
    images = np.random.default_rng(0).normal(size=(4, 3, 8, 8)).astype(np.float32)
    other = metadata_with(temperature=0.7)
    scores = ensemble_passes([(headed, metadata_with()), (BrightnessBackend(), other)])(images)
    np.testing.assert_allclose(scores[0], scipy.special.softmax(headed(images) / 1.6, axis=1), rtol=1e-5)
    np.testing.assert_allclose(scores[1], scipy.special.softmax(BrightnessBackend()(images) / 0.7, axis=1), rtol=1e-5)
    with pytest.raises(UncertaintyError, match=r"^the nets of an ensemble must have the same classes, got "):
        ensemble_passes([(headed, other), (headed, replace(other, class_names=("a", "b", "c")))])
    with pytest.raises(UncertaintyError, match=r"^the nets of an ensemble must have the same preprocessing, got "):
        ensemble_passes([(headed, other), (headed, replace(other, preprocess=Preprocess(16, 8)))])


# --- what was set aside


def test_images_set_aside_are_ranked_drawn_and_listed(shades: list[str], tmp_path: Path) -> None:
    review = ReviewFolder(tmp_path / "aside", metadata_with())
    uncertainties = (0.3, 0.5, 0.1, 0.5, 0.4)
    for path, uncertainty in zip(shades, uncertainties, strict=True):
        decision = "accept" if uncertainty < 0.2 else "set_aside"
        review.add(
            ClassPrediction(
                path, 0, "猫", 1 - uncertainty, uncertainty=uncertainty, decision=decision, conformal_set=("猫", "dog")
            )
        )
    review.add(ClassPrediction("bad.png", error="it is empty"))
    review.finish()
    folder = tmp_path / "aside"
    names = ["0001_090.png", "0002_180.png", "0003_255.png", "0004_000.png"]
    assert sorted(path.name for path in folder.iterdir()) == [
        *names,
        "classes.txt",
        "contact_sheet.png",
        "to_label.txt",
    ]
    assert (folder / "0001_090.png").read_bytes() == Path(shades[1]).read_bytes()
    with Image.open(folder / "contact_sheet.png") as sheet:
        assert sheet.width > 4 * 160
    text = (folder / "to_label.txt").read_text(encoding="utf-8")
    with pytest.raises(ListError, match=r'to_label.txt:1: label "\?" is not an integer'):
        read_list(folder / "to_label.txt", folder, "----", 3)
    (folder / "to_label.txt").write_text(text.replace("?", "2"), encoding="utf-8")
    class_names = tuple((folder / "classes.txt").read_text(encoding="utf-8").split("\n")[:-1])
    read = read_list(folder / "to_label.txt", folder, "----", 3, class_names)
    assert [Path(sample.path).name for sample in read.samples] == names and read.class_names == NAMES
    with pytest.raises(ResultsError, match=r"aside: it is not empty; name a new folder with --set_aside$"):
        check_new_folder(folder)


def test_nothing_set_aside_leaves_an_empty_list(tmp_path: Path) -> None:
    check_new_folder(tmp_path / "aside")
    ReviewFolder(tmp_path / "aside", metadata_with()).finish()
    assert (tmp_path / "aside/to_label.txt").read_bytes() == b""


def test_a_list_to_label_holds_any_name(tmp_path: Path) -> None:
    """A line of UTF-8 holds no line break and no foreign byte, so the copies' names do without."""
    review = ReviewFolder(tmp_path / "aside", metadata_with())
    found = [b"a\nb.png", b"c\rd.png", b"\xff.png", "猫 ----1.png".encode()]
    for index, name in enumerate(found):
        path = grey(tmp_path / os.fsdecode(name), index)
        review.add(ClassPrediction(path, 0, "猫", 0.5, uncertainty=0.5 - index / 10, decision="set_aside"))
    review.finish()
    listed = tmp_path / "aside/to_label.txt"
    listed.write_text(listed.read_text(encoding="utf-8").replace("?\n", "2\n"), encoding="utf-8")
    read = read_list(listed, tmp_path / "aside", "----", 3)
    names = ["0001_a_b.png", "0002_c_d.png", "0003__.png", "0004_猫 ----1.png"]
    assert [Path(sample.path).name for sample in read.samples] == names


def test_a_long_name_keeps_its_end(tmp_path: Path) -> None:
    path = grey(tmp_path / ("猫" * 80 + ".png"), 9)
    review = ReviewFolder(tmp_path / "aside", metadata_with())
    review.add(ClassPrediction(path, 0, "猫", 0.5, uncertainty=0.5, decision="set_aside"))
    review.finish()
    (copy,) = (tmp_path / "aside").glob("0001_*.png")
    assert copy.name.endswith("猫猫.png") and len(copy.name.encode()) < 255
