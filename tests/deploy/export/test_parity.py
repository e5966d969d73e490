"""What a file may differ by: the tolerance, and for a net that selects among equals what the net itself moves by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from artifacts.metadata import ModelMetadata
from data_loader.preprocess import Preprocess
from deploy.export.errors import ExportError
from deploy.export.label_masks import confusions, iou_loss, mean_iou
from deploy.export.parity import compare_outputs, rule_of
from deploy.export.reference import MOST_MOVED, TOLERANCES, Reference, jitter_movement
from deploy.export.sample_images import SampleImages, _fitting, net_input
from deploy.export.verification import verify_backend
from deploy.export.writers import TRACED, Source

NET = {"module": "m", "name": "n", "args": {}}
METADATA = ModelMetadata(("a", "b"), Preprocess(4, 4), NET)


class Function:
    """A backend made of a function of (N, 3, 4, 4)."""

    name, device = "made up", "cpu"

    def __init__(self, function: Callable[[np.ndarray], np.ndarray]) -> None:
        self._function = function

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return self._function(images).astype(np.float32)


def smooth(images: np.ndarray) -> np.ndarray:
    mean = images.astype(np.float64).mean(axis=(1, 2, 3))
    return np.stack([mean, 4 - mean], axis=1)


def selecting(images: np.ndarray, nudge: float = 0.0, share: int = 8) -> np.ndarray:
    """Return logits that depend on which of two equal values is the larger, for every `share`-th kind of image."""
    logits = smooth(images)
    first, second = images[:, 0, 0, 0].astype(np.float64), images[:, 0, 0, 1] * (1 + nudge)
    kind = np.rint(np.abs(logits[:, 0]) * 1000).astype(int) % share == 0
    logits[:, 0] += np.where(kind & (first > second), 0.02, 0.0)
    return logits


def random_images(count: int = 400) -> SampleImages:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    pixels[:, 0, 0, 0] = pixels[:, 0, 1, 0]  # the two that are compared are equal
    return SampleImages(pixels, None, tuple(f"{row}.png" for row in range(count)), "made", count)


def test_a_smooth_net_gets_no_slack() -> None:
    reference = Reference.of(Function(smooth), random_images(), METADATA)
    for precision, tolerance in TOLERANCES.items():
        assert reference.tolerance(precision) == tolerance
    diverged = compare_outputs(reference.outputs + 0.02, reference, METADATA)
    assert diverged.problem.startswith("a logit differs by") and "fp32 may differ by 1e-04" in diverged.problem


def test_a_net_that_selects_among_equals_may_differ_by_its_own_movement() -> None:
    reference = Reference.of(Function(selecting), random_images(), METADATA)
    assert TOLERANCES["fp32"] < reference.tolerance("fp32") <= MOST_MOVED
    other = verify_backend(Function(lambda images: selecting(images, nudge=-1e-6)), reference, METADATA)
    assert other.worst > TOLERANCES["fp32"] and 0 < other.over < 0.25 and other.agreement == 1
    assert other.problem == ""
    wrong = compare_outputs(reference.outputs + np.float32(0.02), reference, METADATA)
    assert wrong.over == 1
    assert wrong.problem == "100 % of 400 images differ by over 1e-04 of the largest logit"
    far = reference.outputs.copy()
    far[0] += 1
    assert compare_outputs(far, reference, METADATA).problem.startswith("a logit differs by")


def choosing(images: np.ndarray, nudge: float = 0.0) -> np.ndarray:
    """Return logits of a net whose class depends on which of two equal values is the larger, in every eighth image.

    The two classes of these are close together; those of the others are far apart.
    """
    logits = selecting(images, nudge)
    moved = logits[:, 0] - smooth(images)[:, 0]
    kind = np.rint(np.abs(smooth(images)[:, 0]) * 1000).astype(int) % 8 == 0
    logits[kind] = np.stack([np.full(len(images), 2.0) + moved, np.full(len(images), 2.01)], axis=1)[kind]
    logits[~kind] = (3.5, 0.5)
    return logits


def test_a_class_that_the_net_itself_does_not_hold_still_is_a_tie() -> None:
    """Whether 2 or 2.02 is beside 2.01 hangs on the last bit of two equal values; a file rounds them another way."""
    reference = Reference.of(Function(choosing), random_images(), METADATA)
    other = compare_outputs(choosing(net_inputs(), nudge=-1e-6).astype(np.float32), reference, METADATA)
    assert other.agreement < 0.999 and other.ties == len(other.flips) > 1
    assert other.problem == ""
    changed = reference.outputs.copy()
    held = np.flatnonzero(changed[:, 0] == 3.5)[:2]
    changed[held] = changed[held, ::-1]
    refused = compare_outputs(changed, reference, METADATA)
    assert refused.problem and refused.ties == 0  # the net holds these still


def net_inputs() -> np.ndarray:
    return net_input(random_images().pixels, METADATA.preprocess, METADATA.input)


def test_movement_of_each_image() -> None:
    some = random_images()
    moved = jitter_movement(selecting, some.pixels, METADATA, "fp32")
    assert moved.shape == (400,)
    assert 0.02 < (moved > 0.01).mean() < 0.2  # of an eighth, half are moved by the draw
    assert jitter_movement(smooth, some.pixels, METADATA, "fp32").max() < 1e-5


def test_the_sample_of_a_description_is_of_images_that_hold_still() -> None:
    class Selecting(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(selecting(images.numpy(), share=2))

    source = Source(Selecting(), METADATA, random_images(), None, "fp32", "float32 NCHW")
    assert source.sample.shape == (TRACED, 4, 4, 3)
    candidates = jitter_movement(selecting, source.pixels(4 * TRACED), METADATA, "fp32")
    assert (candidates > 0.01).any()  # there was something to avoid
    assert jitter_movement(lambda images: selecting(images, share=2), source.sample, METADATA, "fp32").max() < 0.01


@pytest.mark.parametrize(("angle", "problem"), [(0.005, False), (0.1, True)])
def test_features_are_compared_by_their_direction(angle: float, problem: bool) -> None:
    metadata = ModelMetadata(("a", "b"), Preprocess(4, 4), NET, output="features", precision="bf16")
    generator = np.random.default_rng(0)

    def features(images: np.ndarray) -> np.ndarray:
        return np.concatenate([smooth(images), smooth(images)[:, ::-1]], axis=1)

    reference = Reference.of(Function(features), random_images(), metadata)
    assert rule_of(metadata).accuracy(reference) is None
    turned = reference.outputs + angle * np.abs(reference.outputs).max() * generator.normal(size=(400, 4))
    result = compare_outputs(turned.astype(np.float32), reference, metadata)
    assert bool(result.problem) == problem
    assert (result.agreement < 1) == problem and result.accuracy is None


def maps(images: np.ndarray) -> np.ndarray:
    """Return an output without a rule: three values a place, (N, 3, 4, 4), of a net that jitter hardly moves."""
    return images.astype(np.float64).mean(axis=(1, 2, 3), keepdims=True) + np.linspace(0, 4, 48).reshape(3, 4, 4)


@pytest.mark.parametrize(("precision", "share", "passes"), [
    ("fp32", 0.9e-4, True), ("fp32", 1.1e-4, False), ("fp16", 0.9e-2, True), ("fp16", 1.1e-2, False),
])  # fmt: skip
def test_an_output_without_a_rule_is_compared_by_its_worst_value(precision: str, share: float, passes: bool) -> None:
    metadata = ModelMetadata((), Preprocess(4, 4), NET, output="mask_scores", precision=precision)
    reference = Reference.of(Function(maps), random_images(40), metadata)
    off = reference.outputs.copy()
    off[7, 1, 2, 3] += share * reference.scale
    result = compare_outputs(off, reference, metadata)
    np.testing.assert_allclose([result.worst, result.mean], [share, share / off.size], rtol=1e-2)
    assert (result.problem == "") is passes
    assert result.over == (0 if passes else 1 / 40)
    assert np.isnan(result.agreement) and result.flips == [] and result.accuracy is None
    if not passes:
        assert result.problem.startswith(f"a value differs by {share:.1e} of the largest; {precision} may differ by")


@pytest.mark.parametrize(("share", "passes"), [(0.04, True), (0.06, False)])
def test_an_output_without_a_rule_is_compared_by_its_mean_in_int8(share: float, passes: bool) -> None:
    metadata = ModelMetadata((), Preprocess(4, 4), NET, output="mask_scores", precision="int8")
    reference = Reference.of(Function(maps), random_images(40), metadata)
    off = reference.outputs + np.float32(share * reference.scale)
    off[0, 0, 0, 0] += reference.scale  # one value may be far off
    assert (compare_outputs(off, reference, metadata).problem == "") is passes


def test_the_outputs_of_any_shape_must_be_finite_and_as_many() -> None:
    metadata = ModelMetadata((), Preprocess(4, 4), NET, output="mask_scores")
    reference = Reference.of(Function(maps), random_images(40), metadata)
    off = reference.outputs.copy()
    off[3, 0, 1, 1], off[3, 2], off[5, 0, 0, 0] = np.nan, np.nan, np.inf
    assert compare_outputs(off, reference, metadata).problem == "returns NaN or infinite values for 2 of 40 images"
    fewer = compare_outputs(reference.outputs[..., 0], reference, metadata)
    assert fewer.problem == "returns (40, 3, 4) instead of (40, 3, 4, 4)"
    with pytest.raises(ExportError, match="the net itself returns NaN or infinite mask_scores for 40 of 40 images"):
        Reference.of(Function(lambda images: maps(images) * np.nan), random_images(40), metadata)


# --- masks


def mask_reference(shape: tuple[int, ...] = (4, 3, 50, 50)) -> Reference:
    """Return a made-up net's mask logits: 10,000 pixels whose best logit is 1 above the others."""
    labels = np.random.default_rng(1).integers(0, shape[1], (shape[0], *shape[2:]))
    outputs = (labels[:, None] == np.arange(shape[1])[None, :, None, None]).astype(np.float32)
    metadata = replace(METADATA, class_names=("a", "b", "c"), output="mask_logits")
    files = tuple(f"{row}.png" for row in range(shape[0]))
    images = SampleImages(np.zeros((shape[0], 4, 4, 3), np.uint8), None, files, "made", shape[0])
    return Reference(Function(smooth), images, metadata, outputs)


def other_classes(reference: Reference, pixels: int, image: int = 2) -> np.ndarray:
    """Return the outputs with another class in so many pixels of one image, by logits that hardly differ."""
    outputs = reference.outputs.copy()
    of_image = outputs[image].reshape(3, -1)
    best = of_image[:, :pixels].argmax(axis=0)
    of_image[best, np.arange(pixels)] = 0
    of_image[(best + 1) % 3, np.arange(pixels)] = 1
    return outputs


@pytest.mark.parametrize(("precision", "allowed"), [("fp32", 1), ("fp16", 100), ("bf16", 800), ("int8", 200)])
def test_masks_keep_the_class_of_nearly_every_pixel(
    precision: str, allowed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Reference, "tolerance", lambda self, precision: 1.0)  # the logits are let pass here
    reference = mask_reference()
    metadata = replace(reference.metadata, precision=precision)
    kept = compare_outputs(other_classes(reference, allowed), reference, metadata)
    assert (kept.problem, kept.agreement) == ("", pytest.approx(1 - allowed / 10_000))
    assert [image for image, *_ in kept.flips] == ["2.png"]
    lost = compare_outputs(other_classes(reference, allowed + 2), reference, metadata)
    share = f"{100 - (allowed + 2) / 100:.3f} % of the pixels keep their class, under {100 - allowed / 100:g} %"
    in_image = f"{(allowed + 2) / 25:.2f} % of the pixels"
    assert lost.problem == f"{share}; the first: 2.png has another ({in_image})"


def test_logits_of_masks_are_compared_before_their_classes() -> None:
    reference = mask_reference()
    same = compare_outputs(reference.outputs.copy(), reference, reference.metadata)
    assert (same.problem, same.agreement, same.flips, same.worst) == ("", 1.0, [], 0.0)
    broken = compare_outputs(reference.outputs * np.float32(np.nan), reference, reference.metadata)
    assert broken.problem == "returns NaN or infinite logits for 4 of 4 images"
    far = compare_outputs(1 - reference.outputs, reference, replace(reference.metadata, precision="int8"))
    assert far.problem.startswith("the logits differ by 1.0e+00 of the largest in the mean")
    cut = compare_outputs(reference.outputs[:, :, :10], reference, reference.metadata)
    assert cut.problem == "returns (4, 3, 10, 50) instead of (4, 3, 50, 50)"


def test_images_are_fewer_where_their_masks_are_large() -> None:
    metadata = ModelMetadata(("a", "b"), Preprocess(1000, 1000), NET, output="mask_logits")
    # 3 MB of pixels, and 2 million logits of 16 bytes
    assert _fitting(1000, metadata) == 2_000_000_000 // 35_000_000
    assert _fitting(1000, replace(metadata, output="logits")) == 666


BOX_METADATA = replace(METADATA, output="boxes", class_names=("cell", "dot"), thresholds={"score": 0.5, "nms_iou": 0.6})


def box_reference(count: int = 20) -> Reference:
    """Return boxes (N, 3, 4 + 2) of a net's input of some hundred pixels: two objects, and what is none."""
    rows = [[10, 10, 60, 60, 4, -6], [200, 40, 280, 100, -6, 3], [0, 0, 300, 300, -7, -7]]
    outputs = np.repeat(np.array(rows, np.float32)[None], count, axis=0)
    images = random_images(count)
    return Reference(Function(smooth), images, BOX_METADATA, outputs)


def test_boxes_and_logits_are_compared_on_scales_of_their_own() -> None:
    reference = box_reference()
    outputs = reference.outputs.copy()
    outputs[0, 0, 4] += 4e-3  # a thousandth of the largest coordinate's hundredth, and of the largest logit
    result = compare_outputs(outputs, reference, BOX_METADATA)
    assert result.worst == pytest.approx(4e-3 / 7, rel=1e-3) and "a value differs by" in result.problem
    outputs = reference.outputs.copy()
    outputs[0, 0, 2] += 3e-3
    result = compare_outputs(outputs, reference, BOX_METADATA)
    assert result.worst == pytest.approx(1e-5, rel=1e-3) and (result.problem, result.agreement) == ("", 1.0)
    assert result.box_match == (40, pytest.approx(50 / 50.003, abs=1e-6), 0.0)


def test_in_half_precision_candidates_keep_their_place() -> None:
    reference, metadata = box_reference(), replace(BOX_METADATA, precision="fp16")
    outputs = reference.outputs.copy()
    outputs[:, 0, 2] += 0.5  # of 50 pixels: IoU 0.99
    assert compare_outputs(outputs, reference, metadata).agreement == 1.0
    outputs[3, 0, 2] += 0.8  # 0.975
    result = compare_outputs(outputs, reference, metadata)
    assert result.agreement == 39 / 40
    assert result.flips == [(reference.images.files[3], "2 boxes", "1 of them elsewhere or not at all")]
    assert result.problem.startswith("97.50 % of the boxes stay, under 99.9 %; the first: ")
    outputs[3, 0, 4] = -3  # a score of 0.047 where the net has 0.98
    result = compare_outputs(outputs, reference, metadata)
    assert result.problem and result.box_match is not None
    assert result.box_match.least_iou == pytest.approx(50 / 51.3)
    assert result.box_match.most_change == pytest.approx(1 / (1 + np.exp(-4)) - 1 / (1 + np.exp(3)))


def test_in_int8_the_objects_are_found_again() -> None:
    reference, metadata = box_reference(), replace(BOX_METADATA, precision="int8")
    outputs = reference.outputs.copy()
    outputs[:, 0, :4] += 5  # IoU 0.68, and the whole is off by less than 5 % of the largest in the mean
    assert (compare_outputs(outputs, reference, metadata).agreement, reference.outputs.shape) == (1.0, (20, 3, 6))
    outputs[:6, 1, 5] = -0.1  # below the threshold: 34 of 40 are found, and nothing else
    result = compare_outputs(outputs, reference, metadata)
    assert result.agreement == pytest.approx(2 * 34 / (40 + 34)) and result.problem == ""
    outputs[:16, 1, 5] = -0.1
    result = compare_outputs(outputs, reference, metadata)
    assert result.agreement == pytest.approx(2 * 24 / (40 + 24)) and "% of the boxes stay, under 90 %" in result.problem


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_where_the_net_finds_nothing_the_numbers_decide(precision: str) -> None:
    reference, metadata = box_reference(), replace(BOX_METADATA, precision=precision)
    reference.outputs[..., 4:] = -9
    result = compare_outputs(reference.outputs.copy(), reference, metadata)
    assert (result.agreement, result.problem, result.flips) == (1.0, "", [])


def with_truth(reference: Reference, truth: np.ndarray) -> Reference:
    return replace(reference, images=replace(reference.images, labels=truth))


def test_mean_iou_against_a_count_by_hand() -> None:
    """Two images of four pixels: truth 0 0 1 void and 1 1 1 1, predicted 0 1 1 0 and 1 1 0 1; class 2 has none."""
    truth = np.array([[[0, 0], [1, 255]], [[1, 1], [1, 1]]], np.uint8)
    predicted = np.array([[[0, 1], [1, 0]], [[1, 1], [0, 1]]])
    counted = confusions(truth, np.moveaxis(np.eye(3)[predicted], 3, 1))
    assert counted.tolist() == [[[1, 1, 0], [0, 1, 0], [0, 0, 0]], [[0, 0, 0], [1, 3, 0], [0, 0, 0]]]
    # class 0: hit 1, missed 1, false 1; class 1: hits 4, missed 1, false 1
    assert mean_iou(counted.sum(axis=0)) == pytest.approx((1 / 3 + 4 / 6) / 2)
    assert mean_iou(np.zeros((3, 3))) == 0
    assert iou_loss(counted[:1], counted[:1]) == (0, np.inf)
    perfect = confusions(truth, np.moveaxis(np.eye(3)[np.minimum(truth, 2)], 3, 1))
    loss, deviation = iou_loss(perfect, counted)
    # without the first image 1 - 3/4 / 2 is lost (class 0 has no hit), without the second 1 - (1/2 + 1/2) / 2
    lost = np.array([1 - 3 / 8, 1 / 2])
    assert loss == pytest.approx(1 / 2) and deviation == pytest.approx(abs(lost[0] - lost[1]) / 2)


def test_int8_masks_are_judged_by_their_mean_iou_where_there_are_label_images() -> None:
    reference = mask_reference()
    truth = reference.outputs.argmax(axis=1).astype(np.uint8)
    metadata = replace(reference.metadata, precision="int8")
    changed = reference.outputs.copy()
    for image in range(len(changed)):
        changed[image] = other_classes(reference, 75, image)[image]  # 3 % of the pixels of every image
    without = compare_outputs(changed, reference, metadata)
    assert without.accuracy is None and "97.000 % of the pixels keep their class, under 98 %" in without.problem
    lost = compare_outputs(changed, with_truth(reference, truth), metadata)
    assert lost.accuracy is not None and lost.accuracy[0] == 1 and lost.loss_interval is not None
    assert lost.problem.startswith("mean IoU falls from 100.00 % to ") and "over half a point" in lost.problem
    assert lost.loss_interval[0] < 1 - lost.accuracy[1] < lost.loss_interval[1]
    gained = np.array([other_classes(reference, 75, image)[image].argmax(axis=0) for image in range(len(truth))])
    right = compare_outputs(changed, with_truth(reference, gained.astype(np.uint8)), metadata)
    assert right.accuracy is not None and right.accuracy[1] == 1 and right.problem == ""
    shuffled = with_truth(reference, ((truth + 1) % 3).astype(np.uint8))  # the net is right nowhere
    assert "of the pixels keep their class" in compare_outputs(changed, shuffled, metadata).problem
    assert rule_of(metadata).changed(without) == "another class for 3.00 % of the pixels"
