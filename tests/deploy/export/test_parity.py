"""What a file may differ by: the tolerance, and for a net that selects among equals what the net itself moves by."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from artifacts.metadata import ModelMetadata
from data_loader.preprocess import Preprocess
from deploy.export.parity import MOST_MOVED, TOLERANCES, Reference, compare, measure, moves
from deploy.export.sample_images import SampleImages
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
    """Give logits that depend on which of two equal values is the larger, for every `share`-th kind of image."""
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
        assert reference.allowed(precision) == tolerance
    departed = compare(reference.logits + 0.02, reference, METADATA)
    assert departed.problem.startswith("a logit differs by") and "fp32 may differ by 1e-04" in departed.problem


def test_a_net_that_selects_among_equals_is_held_to_its_own_movement() -> None:
    reference = Reference.of(Function(selecting), random_images(), METADATA)
    assert TOLERANCES["fp32"] < reference.allowed("fp32") <= MOST_MOVED
    other = measure(Function(lambda images: selecting(images, nudge=-1e-6)), reference, METADATA)
    assert other.worst > TOLERANCES["fp32"] and 0 < other.over < 0.25 and other.agreement == 1
    assert other.problem == ""
    wrong = compare(reference.logits + np.float32(0.02), reference, METADATA)
    assert wrong.over == 1
    assert wrong.problem == "100 % of 400 images differ by over 1e-04 of the largest logit"
    far = reference.logits.copy()
    far[0] += 1
    assert compare(far, reference, METADATA).problem.startswith("a logit differs by")


def test_movement_of_each_image() -> None:
    some = random_images()
    moved = moves(selecting, some.pixels, METADATA, "fp32")
    assert moved.shape == (400,)
    assert 0.02 < (moved > 0.01).mean() < 0.2  # of an eighth, half are moved by the draw
    assert moves(smooth, some.pixels, METADATA, "fp32").max() < 1e-5


def test_the_sample_of_a_description_is_of_images_that_hold_still() -> None:
    class Selecting(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(selecting(images.numpy(), share=2))

    source = Source(Selecting(), METADATA, random_images(), None, "fp32", "float32 NCHW")
    assert source.sample.shape == (TRACED, 4, 4, 3)
    candidates = moves(selecting, source.pixels(4 * TRACED), METADATA, "fp32")
    assert (candidates > 0.01).any()  # there was something to avoid
    assert moves(lambda images: selecting(images, share=2), source.sample, METADATA, "fp32").max() < 0.01


@pytest.mark.parametrize(("angle", "problem"), [(0.005, False), (0.1, True)])
def test_features_are_held_by_their_direction(angle: float, problem: bool) -> None:
    metadata = ModelMetadata(("a", "b"), Preprocess(4, 4), NET, output="features", precision="bf16")
    generator = np.random.default_rng(0)

    def features(images: np.ndarray) -> np.ndarray:
        return np.concatenate([smooth(images), smooth(images)[:, ::-1]], axis=1)

    reference = Reference.of(Function(features), random_images(), metadata)
    assert reference.accuracy() is None
    turned = reference.logits + angle * np.abs(reference.logits).max() * generator.normal(size=(400, 4))
    told = compare(turned.astype(np.float32), reference, metadata)
    assert bool(told.problem) == problem
    assert (told.agreement < 1) == problem and told.accuracy is None
