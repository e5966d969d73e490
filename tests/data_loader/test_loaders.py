"""Order, plan and loading: every image once, the same with any number of workers and processes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from data_loader import decoder_process
from data_loader.augment import AugmentSettings, BatchMixer, TrainingView, mixed_seed, random_crop_box, seeded
from data_loader.bad_images import BadImageError, checked, find_bad_images, without
from data_loader.decode_guard import GUARD
from data_loader.epoch_plan import EpochBatches, epoch_order, plan_epoch
from data_loader.list_reader import read_list
from data_loader.loaders import ImageDataset, collate, training_loader, validation_loader
from data_loader.preprocess import Preprocess, as_array
from data_loader.samples import SampleList
from tests.helpers import stand_in_decoder

VIEW = AugmentSettings((0.5, 1.0), (0.8, 1.25), 0.5, 0.2, 10.0, 0.1, (0.2, 0.2, 0.2, 0.1), 0.1, 0.2, 0.3)


def read(dataset: Path, split: str = "train") -> SampleList:
    return read_list(dataset / f"{split}.txt", dataset / "images", "----", 3)


@pytest.mark.parametrize(
    ("count", "world"),
    [(count, world) for count in (2, 3, 4, 5, 8, 9, 21, 64, 65) for world in (1, 2) if count >= 2 * world],
)
@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_plan_uses_every_image_once_and_no_batch_of_one(count: int, world: int, accumulation: int) -> None:
    steps = plan_epoch(count, 4, world, accumulation)
    edges = [edge for step in steps for edge in step.batches]
    assert [place for start, stop in edges for place in range(start, stop)] == list(range(count))
    assert all(stop - start >= 2 * world for start, stop in edges)
    assert sum(step.num_samples for step in steps) == count
    assert all(len(step.batches) <= accumulation for step in steps)


def test_a_plan_taken_up_again_cuts_the_rest_the_same_way() -> None:
    whole = plan_epoch(21, 4, 1, 2)
    consumed = whole[0].num_samples
    assert plan_epoch(21, 4, 1, 2, start=consumed) == whole[1:]
    assert plan_epoch(21, 4, 1, 2, start=21) == []
    assert plan_epoch(21, 4, 1, 2, start=20) == []  # a rest of one, which no batch can take


def test_batch_size_one_stays_one() -> None:
    assert [step.num_samples for step in plan_epoch(3, 1)] == [1, 1, 1]


def test_processes_share_each_batch_without_overlap() -> None:
    order = epoch_order(21, epoch=3, seed=1)
    taken = []
    for rank in range(2):
        batches = EpochBatches(rank, 2)
        batches.set_epoch(3, order, plan_epoch(21, 4, 2))
        taken.append(list(batches))
        assert len(batches) == len(taken[-1])
    everything = [index for parts in zip(*taken, strict=True) for part in parts for _, index in part]
    assert everything == order.tolist()


def test_order_depends_on_seed_and_epoch() -> None:
    first = epoch_order(50, 0, 7)
    assert sorted(first) == list(range(50))
    assert (first == epoch_order(50, 0, 7)).all()
    assert (first != epoch_order(50, 1, 7)).any()
    assert (first != epoch_order(50, 0, 8)).any()
    assert epoch_order(50, 0, 7, shuffle=False).tolist() == list(range(50))


def test_balanced_sampling_draws_every_class_equally_often() -> None:
    labels = np.array([0] * 90 + [1] * 9 + [2] * 1)
    order = epoch_order(len(labels), 0, 0, groups=labels)
    assert len(order) == 100
    assert np.bincount(labels[order]).min() >= 33 - 1
    rare = np.bincount(order, minlength=100)[90:99]
    assert rare.max() - rare.min() <= 1  # the class's own images come equally often too


def test_every_image_is_seen_both_ways_in_any_two_epochs(dataset: Path) -> None:
    preprocess = Preprocess(32, 32)
    settings = AugmentSettings(horizontal_flip=0.5, horizontal_flip_alternates=True)
    plain = ImageDataset(read(dataset), preprocess)
    data = ImageDataset(read(dataset), preprocess, TrainingView(preprocess, settings), seed=5)
    mirrored = []
    for epoch in range(4):
        pairs = [(data[epoch, index]["image"], plain[epoch, index]["image"]) for index in range(21)]
        assert all(torch.equal(view, image) or torch.equal(view, image.flip(2)) for view, image in pairs)
        mirrored.append([torch.equal(view, image.flip(2)) for view, image in pairs])
    assert [sum(turns) for turns in mirrored] == [11, 10, 11, 10]  # half of 21
    assert mirrored[0] == mirrored[2] and mirrored[1] == mirrored[3] == [not turn for turn in mirrored[0]]
    other = ImageDataset(read(dataset), preprocess, TrainingView(preprocess, settings), seed=6)
    assert any(not torch.equal(data[0, index]["image"], other[0, index]["image"]) for index in range(21))


@pytest.mark.parametrize(("workers", "alternates"), [(1, False), (2, True)])
def test_the_number_of_workers_changes_no_pixel(dataset: Path, workers: int, alternates: bool) -> None:
    samples, preprocess = read(dataset), Preprocess(32, 32)
    view = TrainingView(preprocess, replace(VIEW, horizontal_flip_alternates=alternates))
    data = ImageDataset(samples, preprocess, view, seed=5)
    order = epoch_order(21, 2, 5)
    gathered = []
    for count in (0, workers):
        batches = EpochBatches()
        batches.set_epoch(2, order, plan_epoch(21, 4))
        torch.manual_seed(count)  # the surrounding random state must not matter
        gathered.append(torch.cat([batch["image"] for batch in training_loader(data, batches, count)]))
    assert gathered[0].dtype == torch.uint8
    assert torch.equal(gathered[0], gathered[1])


def test_a_view_depends_on_the_epoch_and_leaves_the_random_state_alone(dataset: Path) -> None:
    preprocess = Preprocess(32, 32)
    data = ImageDataset(read(dataset), preprocess, TrainingView(preprocess, VIEW), seed=5)
    before = torch.get_rng_state()
    first, again, later = data[(0, 3)]["image"], data[(0, 3)]["image"], data[(1, 3)]["image"]
    assert torch.equal(first, again)
    assert not torch.equal(first, later)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("world", [1, 2, 4])
def test_validation_gives_every_image_to_exactly_one_process(dataset: Path, world: int) -> None:
    data = ImageDataset(read(dataset, "val"), Preprocess(32, 32))
    seen = []
    for rank in range(world):
        for batch in validation_loader(data, 2, 0, rank=rank, world_size=world):
            seen += batch["index"].tolist()
    assert sorted(seen) == list(range(9))


def test_a_bad_image_is_named_with_its_line(dataset: Path) -> None:
    (dataset / "images/train/04.png").write_bytes(b"no image")
    data = ImageDataset(read(dataset), Preprocess(32, 32))
    batches = EpochBatches()
    batches.set_epoch(0, np.arange(21), plan_epoch(21, 4))
    with pytest.raises(BadImageError, match=r"train.txt:5: .*04.png: it is not an image of a known format"):
        for batch in training_loader(data, batches, 0):
            checked(batch)


def test_bad_images_are_found_and_left_out(dataset: Path) -> None:
    (dataset / "images/train/04.png").write_bytes(b"")
    (dataset / "images/train/20.png").write_bytes((dataset / "images/train/19.png").read_bytes()[:-40])
    samples = read(dataset)
    found = [look for look in find_bad_images(samples, Preprocess(32, 32), 2, range(21)) if look]
    assert [index for index, _ in found] == [4, 20]
    assert "it is empty" in found[0][1]
    left = without(samples, {4, 20})
    assert len(left.samples) + len(found) == len(samples.samples)
    assert left.where(4) == f"{dataset}/train.txt:6"


def test_an_image_whose_decoder_exceeds_the_deadline_is_a_bad_one(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (dataset / "images/train/04.png").rename(dataset / "images/train/sleep.png")
    lines = (dataset / "train.txt").read_text(encoding="utf-8")
    (dataset / "train.txt").write_text(lines.replace("train/04.png", "train/sleep.png"), encoding="utf-8")
    samples = read(dataset)
    monkeypatch.setattr(decoder_process, "WORKER", stand_in_decoder.MODULE)
    monkeypatch.setattr(GUARD, "timeout_s", 1.0)
    found = [look for look in find_bad_images(samples, Preprocess(32, 32), 2, range(21)) if look]
    reason = "its decoder did not end within 1 seconds"
    assert found == [(4, f"{dataset}/train.txt:5: {dataset}/images/train/sleep.png: {reason}")]


def test_no_augmentation_equals_validation(dataset: Path) -> None:
    for resize in ("squash", "letterbox", "crop"):
        preprocess = Preprocess(20, 32, resize=resize)
        image = preprocess.decode(dataset / "images/train/00.png")
        assert (TrainingView(preprocess, AugmentSettings())(image) == preprocess.fit(image)).all()


def test_crops_keep_share_and_aspect() -> None:
    with seeded(0):
        boxes = np.array([random_crop_box((200, 100), (0.25, 0.5), (1.0, 2.0)) for _ in range(500)])
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    share = width * height / 20000
    assert 0.23 < share.min() < 0.27 and 0.48 < share.max() < 0.52
    assert abs(share.mean() - 0.375) < 0.015  # uniform in the share, as the paper says
    assert (width / height).min() > 0.95 and (width / height).max() < 2.1
    assert boxes.min() >= 0 and boxes[:, 2].max() <= 200 and boxes[:, 3].max() <= 100


def test_one_channel_views() -> None:
    preprocess = Preprocess(16, 16, channels=1)
    view = TrainingView(preprocess, VIEW)
    image = preprocess.decode(_png(np.arange(256, dtype=np.uint8).reshape(16, 16)))
    with seeded(1):
        pixels = view(image)
    assert pixels.shape == (16, 16, 1) and pixels.dtype == np.uint8
    assert as_array(image).shape == (16, 16, 1)


def test_mixup_mixes_images_and_targets_alike() -> None:
    images = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 1, 8, 8).contiguous()
    mixed, targets = BatchMixer(4, 0.4, 0.0)(images, torch.arange(4), np.random.default_rng(0))
    # An image's value is its own label, so the mean label under the target is the image's value.
    assert torch.allclose(mixed[:, 0, 0, 0], targets @ torch.arange(4.0), atol=1e-6)
    assert torch.allclose(targets.sum(1), torch.ones(4))


def test_cutmix_targets_are_the_shares_of_the_area() -> None:
    images = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 1, 16, 16).contiguous()
    for seed in range(5):
        mixed, targets = BatchMixer(4, 0.0, 1.0)(images, torch.arange(4), np.random.default_rng(seed))
        assert torch.allclose(mixed.mean((1, 2, 3)), targets @ torch.arange(4.0), atol=1e-5)


def test_neighbouring_keys_give_unrelated_seeds() -> None:
    seeds = {mixed_seed(a, b, c) for a in range(10) for b in range(10) for c in range(10)}
    assert len(seeds) == 1000
    bits = np.array([[s >> k & 1 for k in range(62)] for s in seeds])
    assert abs(bits.mean() - 0.5) < 0.01


def _png(pixels: np.ndarray) -> bytes:
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_one_sentence_for_all_images_of_a_shard_that_cannot_be_fetched() -> None:
    errors = ("shard 1: it is damaged", "a.png: it is damaged", "shard 1: it is damaged")
    batch = collate([{"error": error, "index": index} for index, error in enumerate(errors)])
    assert batch == {"errors": ["shard 1: it is damaged", "a.png: it is damaged"]}
