"""Batch views: each operation pixel by pixel against Pillow and torchvision, and the whole in distribution."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from configs.schema import ON_CPU_ONLY
from data_loader import batch_augment, batch_crops
from data_loader.augment import AugmentSettings, TrainingView, random_crop_box
from data_loader.batch_augment import BatchViews, BatchViewsError
from data_loader.preprocess import Preprocess
from tests.helpers.augmented import EVERYTHING, UNLIKELY, compare, noise, seen_in, stats, textured

Crops = Callable[..., torch.Tensor]

DRAWS = 2000
OFF: dict[str, dict[str, Any]] = {  # each operation of EVERYTHING, left out
    "crop": {"random_crop_scale": (1.0, 1.0), "random_crop_ratio": (1.0, 1.0)},
    "horizontal flip": {"horizontal_flip": 0.0},
    "vertical flip": {"vertical_flip": 0.0},
    "translation": {"translate": 0.0},
    "brightness": {"color_jitter": (0.0, 0.8, 0.9, 0.15)},
    "contrast": {"color_jitter": (0.4, 0.0, 0.9, 0.15)},
    "saturation": {"color_jitter": (0.4, 0.8, 0.0, 0.15)},
    "hue": {"color_jitter": (0.4, 0.8, 0.9, 0.0)},
    "unjittered": {"color_jitter_probability": 1.0},
    "greyscale": {"random_grayscale": 0.0},
    "blur": {"gaussian_blur": 0.0},
    "erasing": {"random_erasing": 0.0},
}


def as_image(pixels: torch.Tensor) -> Image.Image:
    return functional.to_pil_image(pixels)


def from_images(images: list[Image.Image]) -> torch.Tensor:
    return torch.stack([functional.pil_to_tensor(image) for image in images])


def worst(got: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference in 255ths."""
    return float((got.float() - expected.float()).abs().max())


@pytest.mark.parametrize(
    ("name", "channels"), [("brightness", 3), ("contrast", 3), ("saturation", 3), ("brightness", 1), ("contrast", 1)]
)
def test_blends_are_pillows(name: str, channels: int) -> None:
    images = torch.cat([noise(12, channels), textured(48, 40, channels, 12)])
    factors = torch.linspace(0, 2.2, len(images))
    reference: Callable[..., Image.Image] = getattr(functional, f"adjust_{name}")
    pairs = zip(images, factors.tolist(), strict=True)
    expected = from_images([reference(as_image(image), factor) for image, factor in pairs])
    got = getattr(batch_augment, f"adjust_{name}")(images.float(), factors)
    assert worst(got, expected) <= 1
    assert float((got != expected).float().mean()) < 0.01


def test_hue_is_pillows_but_for_a_hue_step_in_few_pixels() -> None:
    images = noise(24)
    factors = torch.linspace(-0.5, 0.5, len(images))
    pairs = zip(images, factors.tolist(), strict=True)
    expected = from_images([functional.adjust_hue(as_image(image), factor) for image, factor in pairs])
    got = batch_augment.adjust_hue(images.float(), factors)
    assert worst(got, expected) <= 6
    assert float((got != expected).any(1).float().mean()) < 0.01


def test_greyscale_is_pillows() -> None:
    images = noise(8)
    expected = from_images([functional.rgb_to_grayscale(as_image(image), 3) for image in images])
    assert torch.equal(BatchViews(AugmentSettings(random_grayscale=1.0))(images), expected)


@pytest.mark.parametrize(("height", "width", "kernel"), [(32, 40, 3), (96, 90, 9)])
def test_blur_is_torchvisions(height: int, width: int, kernel: int) -> None:
    generator = torch.Generator().manual_seed(5)
    images = torch.randint(0, 256, (6, 3, height, width), dtype=torch.uint8, generator=generator)
    sigma = torch.linspace(0.1, 2.0, 6)
    pairs = zip(images, sigma.tolist(), strict=True)
    expected = torch.stack([functional.gaussian_blur(image, [kernel] * 2, [spread] * 2) for image, spread in pairs])
    assert worst(batch_augment.blur(images.float(), sigma), expected) <= 1
    view = TrainingView(Preprocess(height=height, width=width), AugmentSettings(gaussian_blur=0.5))
    single: Any = view.on_image[-1]  # v2.RandomApply
    drawn = single.transforms[0]
    assert (tuple(drawn.kernel_size), tuple(drawn.sigma)) == ((kernel, kernel), batch_augment.BLUR_SIGMA)


CROPS: dict[str, Crops] = {  # how a device resizes crops: bytes on the CPU, else float32
    "bytes": batch_crops.crops_on_cpu,
    "grid": lambda images, *boxes: batch_crops.magnified_crops(images.float(), *boxes),
    "products": lambda images, *boxes: batch_crops.crops_to_size(images.float(), *boxes),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("way", CROPS)
@pytest.mark.parametrize("flips", [(False, False), (True, False), (False, True), (True, True)])
def test_a_magnified_crop_is_pillows(way: str, flips: tuple[bool, bool], channels: int) -> None:
    images = noise(24, channels)
    check_crops(CROPS[way], images, flips, (48, 40))


@pytest.mark.parametrize("way", ["bytes", "products"])
@pytest.mark.parametrize("flips", [(False, False), (True, False), (False, True), (True, True)])
def test_a_crop_to_a_smaller_size_is_pillows(way: str, flips: tuple[bool, bool]) -> None:
    check_crops(CROPS[way], noise(24), flips, (20, 24))


def check_crops(crops: Crops, images: torch.Tensor, flips: tuple[bool, bool], size: tuple[int, int]) -> None:
    """Compare crops with Pillow's, of cut-out boxes, from tiny to the whole image."""
    torch.manual_seed(0)
    boxes = batch_crops.crop_boxes(images, (0.05, 1.0), (0.5, 2.0))
    boxes[0] = torch.tensor([0, 0, *images.shape[2:]])
    expected = []
    for image, (top, left, tall, wide) in zip(images, boxes.int().tolist(), strict=True):
        crop = as_image(image).crop((left, top, left + wide, top + tall))
        view = crop.resize(size[::-1], Image.Resampling.BILINEAR)
        view = functional.horizontal_flip(view) if flips[0] else view
        expected.append(functional.vertical_flip(view) if flips[1] else view)
    got = crops(images, boxes, *(torch.full((len(images),), chosen) for chosen in flips), size)
    difference = (got.float() - from_images(expected).float()).abs()
    assert float(difference.max()) <= 2 and float((difference > 1).float().mean()) < 1e-3
    assert float((difference > 0).float().mean()) < 0.2  # Pillow's weights are whole numbers, rounded once a direction
    if images.shape[2:] == size:
        assert worst(got[0], from_images(expected[:1])) == 0  # the whole image stays as it is


@pytest.mark.parametrize("channels", [1, 3])
def test_shift_is_torchvisions_affine(channels: int) -> None:
    images = noise(9, channels).clamp(min=1)
    places = [(down, right) for down in (-5, 0, 7) for right in (-40, 0, 3)]
    expected = [
        functional.affine(as_image(image), 0, [right, down], 1, [0], functional.InterpolationMode.BILINEAR)
        for image, (down, right) in zip(images, places, strict=True)
    ]
    down, right = torch.tensor(places, dtype=torch.float32).T
    got = batch_augment.shift(images.float(), down, right)
    assert worst(got, from_images(expected)) == 0
    assert not got[6].any() and torch.equal(got[4], images[4].float())  # moved out; not moved


def test_translations_are_distributed_as_torchvisions() -> None:
    torch.manual_seed(0)
    height, width = 30, 25  # shares of a side that are no whole numbers of pixels, and that are
    views = BatchViews(AugmentSettings(translate=0.12))(torch.ones(DRAWS, 1, height, width, dtype=torch.uint8))
    drawn = [v2.RandomAffine(0, translate=(0.12, 0.12)).make_params([views[0]])["translate"] for _ in range(DRAWS)]
    rows, columns = views[:, 0].amax(2).int(), views[:, 0].amax(1).int()  # 0 where black came in
    moved = {
        "down": (rows.argmax(1) - rows.flip(1).argmax(1)).numpy(),
        "right": (columns.argmax(1) - columns.flip(1).argmax(1)).numpy(),
    }
    compare(moved, {"down": np.array(drawn)[:, 1], "right": np.array(drawn)[:, 0]})
    assert set(moved["down"]) == set(range(-4, 5)) and set(moved["right"]) == set(range(-3, 4))


def test_alternating_flips_mirror_those_whose_turn_it_is() -> None:
    images, turns = textured(count=4), torch.tensor([True, False, False, True])
    settings = AugmentSettings(horizontal_flip=0.5, horizontal_flip_alternates=True)
    expected = torch.where(turns[:, None, None, None], images.flip(3), images)
    assert torch.equal(BatchViews(settings)(images, turns), expected)
    assert torch.equal(BatchViews(settings)(images), images)
    assert torch.equal(BatchViews(settings, views=2)(images, turns), expected.repeat_interleave(2, 0))


def test_nothing_asked_gives_each_image_as_often_as_views_side_by_side() -> None:
    images = noise(3)
    assert torch.equal(BatchViews(AugmentSettings(), views=2)(images), images[torch.tensor([0, 0, 1, 1, 2, 2])])


def test_a_seed_gives_the_same_views_and_two_views_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    images, augment = textured(count=5), BatchViews(EVERYTHING, views=2)
    before = images.clone()
    torch.manual_seed(0)
    first = augment(images)
    torch.manual_seed(0)
    assert torch.equal(augment(images), first)
    assert torch.equal(images, before)
    assert not torch.equal(augment(images), first)
    assert all(not torch.equal(*pair) for pair in first.split(2))
    monkeypatch.setattr(batch_augment, "CPU_SHARE", 4 * images[0].numel())  # in parts of four, the last of two
    parts = augment(images)
    assert parts.shape == first.shape and parts.dtype == torch.uint8


@pytest.mark.parametrize("channels", [1, 3])
def test_nothing_waits_for_the_device(channels: int) -> None:
    # A meta tensor has no values: whatever would have to read one back raises.
    views = BatchViews(EVERYTHING, views=2)(torch.empty(4, channels, 32, 32, dtype=torch.uint8, device="meta"))
    assert (views.shape, views.dtype) == ((8, channels, 32, 32), torch.uint8)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_gpu_draws_from_the_same_distribution() -> None:
    torch.manual_seed(0)
    images = textured().expand(DRAWS, -1, -1, -1)
    on_gpu = BatchViews(EVERYTHING)(images.cuda()).cpu()
    compare(seen_in(BatchViews(EVERYTHING)(images)), seen_in(on_gpu))


def test_a_new_setting_is_refused_until_it_is_implemented() -> None:
    """A field that BatchViews does not implement must not be ignored; left at its default it changes nothing."""

    @dataclass(frozen=True)
    class Newer(AugmentSettings):
        solarize: float = 0.0

    BatchViews(Newer(horizontal_flip=0.5))
    with pytest.raises(BatchViewsError, match=r'^solarize: for one image at a time; set augment_on to "cpu"$'):
        BatchViews(Newer(solarize=0.2))
    names = {field.name for field in fields(AugmentSettings)}
    assert names - set(ON_CPU_ONLY) == batch_augment.IMPLEMENTED


def test_unknown_settings_are_named() -> None:
    with pytest.raises(BatchViewsError) as error:
        BatchViews(AugmentSettings(rotation_degrees=5, auto_augment="randaugment"))
    expected = 'rotation_degrees and auto_augment: for one image at a time; set augment_on to "cpu"'
    assert str(error.value) == expected


@pytest.mark.parametrize(
    ("scale", "ratio"),
    [((0.2, 1.0), (0.75, 4 / 3)), ((0.8, 1.0), (0.5, 2.0)), ((0.9, 1.0), (2.0, 3.0)), ((0.9, 1.0), (0.2, 0.3))],
)
def test_crop_boxes_are_distributed_as_torchvisions(scale: tuple[float, float], ratio: tuple[float, float]) -> None:
    torch.manual_seed(0)
    height, width = 40, 48
    drawn = batch_crops.crop_boxes(torch.empty(DRAWS, 3, height, width), scale, ratio).numpy()
    edges = np.array([random_crop_box((width, height), scale, ratio) for _ in range(DRAWS)])
    left, top, right, bottom = edges.T
    compare(shape_of(drawn), shape_of(np.stack([top, left, bottom - top, right - left], 1)))
    assert (drawn[:, :2] >= 0).all() and (drawn[:, :2] + drawn[:, 2:] <= (height, width)).all()


@pytest.mark.parametrize("augment_on", ["one image", "a batch"])
@pytest.mark.parametrize("stretch", [0.01, 100.0])
def test_a_crop_of_the_most_extreme_ratio_still_has_pixels(stretch: float, augment_on: str) -> None:
    settings = AugmentSettings(random_crop_scale=(0.5, 0.5), random_crop_ratio=(stretch, stretch))
    image = textured(32, 32)
    if augment_on == "a batch":
        view = BatchViews(settings, 1, (32, 32))(image)
    else:
        pixels = TrainingView(Preprocess(32, 32), settings)(as_image(image[0]))
        view = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    spread = view.float().std(dim=2 if stretch > 1 else 3).max()
    assert view.shape == (1, 3, 32, 32) and view.float().std() > 0
    assert spread == 0  # a single row, or column, of the image


def test_erased_boxes_are_distributed_as_torchvisions() -> None:
    torch.manual_seed(0)
    images = torch.empty(DRAWS, 3, 24, 8)  # so narrow that some of the ten tries do not fit
    drawn, found = batch_crops.erased_boxes(images)
    erase = v2.RandomErasing(p=1)
    params = [erase.make_params([images[0]]) for _ in range(DRAWS)]
    expected = np.array([[p["i"], p["j"], p["h"], p["w"]] for p in params if p["v"] is not None])
    compare(shape_of(drawn[found].numpy()), shape_of(expected))
    assert erase.scale == batch_crops.ERASED_SHARE
    assert erase.ratio == pytest.approx([1 / side for side in reversed(batch_crops.ERASED_RATIO)])


def test_each_chance_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_augment, "BLUR_SIGMA", (1.0, 2.0))  # the slightest blurs change no pixel
    torch.manual_seed(0)
    image = textured()
    sides = {"horizontal_flip": image.flip(3), "vertical_flip": image.flip(2)}
    for name in ("horizontal_flip", "vertical_flip", "random_grayscale", "gaussian_blur", "random_erasing"):
        views = BatchViews(AugmentSettings(**{name: 0.3}))(image.expand(DRAWS, -1, -1, -1))
        hit = (views == sides[name] if name in sides else views != image).flatten(1)
        count = int((hit.all(1) if name in sides else hit.any(1)).sum())
        assert stats.binomtest(count, DRAWS, 0.3).pvalue > UNLIKELY, name


def test_an_erased_part_is_black_and_nothing_else_changes() -> None:
    torch.manual_seed(0)
    images = noise(16).clamp(min=1)
    erased = BatchViews(AugmentSettings(random_erasing=1.0))(images)
    blank = (erased == 0).all(1, keepdim=True)
    assert torch.equal(erased, images * ~blank)
    share = blank.float().mean((1, 2, 3))
    assert share.min() > 0 and share.max() < 0.4


def test_every_image_has_its_own_order_of_colour_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    # Each operation writes its number as a digit to base 4, so that a black image ends as the order it went through.
    for digit, name in enumerate(("brightness", "contrast", "saturation", "hue")):
        monkeypatch.setattr(batch_augment, f"adjust_{name}", lambda pixels, _, digit=digit: pixels * 4 + digit)
    torch.manual_seed(0)
    settings = AugmentSettings(color_jitter=(0.4, 0.4, 0.4, 0.1), color_jitter_probability=0.7)
    codes = BatchViews(settings)(torch.zeros(DRAWS, 3, 1, 1, dtype=torch.uint8))[:, 0, 0, 0].tolist()
    counts = Counter(codes)
    assert stats.binomtest(DRAWS - counts.pop(0), DRAWS, 0.7).pvalue > UNLIKELY
    assert len(counts) == 24 and all(len({code // 4**place % 4 for place in range(4)}) == 4 for code in counts)
    assert stats.chisquare(list(counts.values())).pvalue > UNLIKELY


@pytest.mark.parametrize("channels", [1, 3])
def test_views_are_distributed_as_the_training_view_of_one_image(channels: int) -> None:
    torch.manual_seed(1)
    pixels = textured(channels=channels)
    image = as_image(pixels[0])
    single = TrainingView(Preprocess(height=32, width=32, channels=channels, resize="squash"), EVERYTHING)
    expected = np.stack([single(image) for _ in range(DRAWS)])  # (N, H, W, C)
    views = BatchViews(EVERYTHING)(pixels.expand(DRAWS, -1, -1, -1))
    compare(seen_in(views), seen_in(torch.from_numpy(expected).permute(0, 3, 1, 2)))


@pytest.mark.parametrize("left_out", OFF)
def test_leaving_an_operation_out_would_be_seen(left_out: str) -> None:
    torch.manual_seed(2)
    images = textured().expand(DRAWS, -1, -1, -1)
    whole, rest = (BatchViews(settings)(images) for settings in (EVERYTHING, replace(EVERYTHING, **OFF[left_out])))
    with pytest.raises(AssertionError, match="differ"):
        compare(seen_in(whole), seen_in(rest))


def shape_of(boxes: np.ndarray) -> dict[str, np.ndarray]:
    """What describes boxes (N, 4) (top, left, height, width)."""
    top, left, height, width = boxes.T.astype(float)
    return {"area": height * width, "aspect": width / height, "top": top, "left": left}
