"""Cached images are the decoded ones, whoever builds them and however that ends; reduced decoding stays close."""

from __future__ import annotations

import errno
import io
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

import train as train_program
from configs.loading import process_config
from configs.schema import Config
from data_loader import cache_builder
from data_loader.augment import TrainingView
from data_loader.bad_images import BadImageError, without
from data_loader.batch_augment import BatchViews
from data_loader.cache import Fitting, ImageCache
from data_loader.cache_builder import CacheError, NewFile, check_room, fit_all, free_memory, new_file, size_text
from data_loader.decoding import decode
from data_loader.epoch_plan import EpochBatches, epoch_order, plan_epoch
from data_loader.list_reader import read_list
from data_loader.loaders import (
    ImageDataset,
    WholeBatches,
    enlarged,
    least_source_size,
    training_loader,
    validation_loader,
)
from data_loader.preprocess import ImageError, Preprocess
from data_loader.samples import Sample, SampleList
from data_loader.targets import CLASS_LABEL
from tests.helpers.augmented import EVERYTHING, compare, seen_in, textured
from tests.helpers.breaking import dying_after_save
from trainers.data.image_cache import with_caches
from trainers.runtime.distributed import World

ConfigMaker = Callable[..., Path]
LINUX = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs Linux")


RECIPE = {
    "augment_on": "device", "random_crop_scale": [0.6, 1.0], "mixup_alpha": 0.2, "num_epochs": 1, "batch_size": 8,
    "model_module_name": "squeezenet_module", "model_net_name": "squeezenet1_1",
}  # fmt: skip


def quiet(text: str) -> None:
    """Say nothing."""


def read(dataset: Path, split: str = "train") -> SampleList:
    return read_list(dataset / f"{split}.txt", dataset / "images", "----", 3)


def settings(make_config: ConfigMaker, dataset: Path, **changes: Any) -> Config:
    return process_config(
        make_config(**{"data_cache": "disk", "data_cache_dir": str(dataset / "kept"), "fast_decode": "off", **changes})
    )


def cached(config: Config, dataset: Path, world: World | None = None) -> tuple[SampleList, SampleList]:
    preprocess = Preprocess(config.img_height, config.img_width, config.num_channels, config.resize)
    return with_caches(config, read(dataset), read(dataset, "val"), preprocess, CLASS_LABEL, world or World(), quiet)


def files(dataset: Path) -> list[str]:
    return sorted(path.name for path in (dataset / "kept").iterdir())


# --- what is in it ---


@pytest.mark.parametrize(
    ("kind", "resize", "channels", "workers"),
    [("disk", "squash", 3, 0), ("disk", "letterbox", 1, 2), pytest.param("ram", "crop", 3, 2, marks=LINUX)],
)
def test_cached_batches_are_the_decoded_ones(
    make_config: ConfigMaker, dataset: Path, kind: str, resize: str, channels: int, workers: int
) -> None:
    size = {"img_height": 20, "img_width": 28, "resize": resize, "num_channels": channels, "data_aug": False}
    config = settings(make_config, dataset, data_cache=kind, dataloader_workers=workers, **size)
    train, val = cached(config, dataset)
    preprocess = Preprocess(20, 28, channels, resize)
    order = epoch_order(21, 3, 5)
    seen = []
    for samples in (train, read(dataset)):
        batches = EpochBatches(1, 2)
        batches.set_epoch(3, order, plan_epoch(21, 4, 2))
        loader = training_loader(ImageDataset(samples, preprocess), batches, 0)
        assert len(loader) == 3
        seen.append(list(loader))
        assert isinstance(loader, WholeBatches) == (samples.cache is not None)
    for samples in (val, read(dataset, "val")):
        seen.append(list(validation_loader(ImageDataset(samples, preprocess), 2, 0, rank=1, world_size=2)))
    for mine, expected in zip(seen[0] + seen[2], seen[1] + seen[3], strict=True):
        assert mine["image"].dtype == torch.uint8
        assert all(torch.equal(mine[key], expected[key]) for key in ("image", "target", "index"))
    assert (dataset / "kept").exists() == (kind == "disk")


def test_a_view_is_made_from_the_cached_image_alike_on_any_number_of_workers(
    make_config: ConfigMaker, dataset: Path
) -> None:
    train, _ = cached(settings(make_config, dataset, fitted_scale=1.5), dataset)
    preprocess, order = Preprocess(32, 32), epoch_order(21, 2, 5)
    view = TrainingView(preprocess, EVERYTHING)
    assert train.cache.row(3).shape == (48, 48, 3)
    for sample in train.samples:
        Path(sample.path).unlink()  # no image is read again
    gathered = []
    for workers in (0, 2):
        batches = EpochBatches()
        batches.set_epoch(2, order, plan_epoch(21, 4))
        torch.manual_seed(workers)  # the surrounding random state must not matter
        loader = training_loader(ImageDataset(train, preprocess, view, seed=5), batches, workers)
        gathered.append(torch.cat([batch["image"] for batch in loader]))
    assert gathered[0].shape == (21, 3, 32, 32)
    assert torch.equal(gathered[0], gathered[1])


def test_only_images_fitted_alike_are_taken(make_config: ConfigMaker, dataset: Path) -> None:
    train, _ = cached(settings(make_config, dataset, fitted_scale=2.0), dataset)
    assert ImageDataset(train, Preprocess(64, 64)).cache is train.cache
    assert ImageDataset(train, Preprocess(32, 32)).cache is None
    assert ImageDataset(train, Preprocess(64, 64), at_least=(64, 64)).cache is None  # decoded in another way
    assert ImageDataset(train, Preprocess(64, 64, resize="crop")).cache is None


def test_a_pickled_cache_maps_the_same_rows(make_config: ConfigMaker, dataset: Path) -> None:
    train, _ = cached(settings(make_config, dataset), dataset)
    some = train.cache.chosen([4, 2])
    again = pickle.loads(pickle.dumps(some))
    assert len(pickle.dumps(some)) < 2000
    assert again.row(1).tobytes() == train.cache.row(2).tobytes()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_gpu_with_room_keeps_all_images(make_config: ConfigMaker, dataset: Path) -> None:
    train, _ = cached(settings(make_config, dataset), dataset)
    batches = [
        next(iter(WholeBatches(train, train.cache, lambda: [np.array([3, 1])], torch.device(d))))
        for d in ("cuda", "cpu")
    ]
    assert batches[0]["image"].is_cuda
    assert all(torch.equal(batches[0][key].cpu(), batches[1][key]) for key in batches[0])


def test_a_gpu_without_room_keeps_none(
    make_config: ConfigMaker, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, _ = cached(settings(make_config, dataset), dataset)
    size = 21 * 32 * 32 * 3
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (4 * size - 1, 10**12))
    assert train.cache.on(torch.device("cuda")) is train.cache.pixels


# --- when a file is taken, and when it is made anew ---


def test_a_file_is_found_again_until_something_it_follows_from_changes(make_config: ConfigMaker, dataset: Path) -> None:
    config = settings(make_config, dataset)
    cached(config, dataset)
    first = files(dataset)
    stamps = [(dataset / "kept" / name).stat().st_ino for name in first]
    cached(config, dataset)
    assert [(dataset / "kept" / name).stat().st_ino for name in files(dataset)] == stamps
    fitting, samples = Fitting(Preprocess(32, 32)), read(dataset)
    name = fitting.file_name(samples)
    others = [
        Fitting(Preprocess(32, 32), is_fast=True),
        *(Fitting(Preprocess(32, 32, **change)) for change in ({"resize": "crop"}, {"max_pixels": 10**6})),
        *(Fitting(Preprocess(*size)) for size in ((32, 31), (32, 32, 1))),
    ]
    assert len({name, *(other.file_name(samples) for other in others)}) == len(others) + 1
    assert Fitting(Preprocess(32, 32, mean=(0.0,) * 3)).file_name(samples) == name  # comes after the pixels
    image = dataset / "images/train/07.png"
    os.utime(image, ns=(0, 1))
    newer = fitting.file_name(samples)
    image.write_bytes(image.read_bytes() + b"\0")
    os.utime(image, ns=(0, 1))
    assert len({name, newer, fitting.file_name(samples)}) == 3
    assert fitting.file_name(without(samples, {20})) not in (name, newer)


@pytest.mark.parametrize("damage", ["cut short", "no end", "another end"])
def test_a_damaged_file_is_built_anew(make_config: ConfigMaker, dataset: Path, damage: str) -> None:
    config = settings(make_config, dataset)
    train, _ = cached(config, dataset)
    whole, path = Path(train.cache.path).read_bytes(), Path(train.cache.path)
    size = 21 * 32 * 32 * 3
    path.unlink()  # the old file itself stays as it is for those that have mapped it
    path.write_bytes({"cut short": whole[:500], "no end": whole[:size], "another end": whole[:size] + b"[]"}[damage])
    again, _ = cached(config, dataset)
    assert path.read_bytes() == whole
    assert torch.equal(again.cache.pixels, train.cache.pixels)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_process_that_is_killed_while_building_leaves_nothing(
    make_config: ConfigMaker, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, row = settings(make_config, dataset), Fitting.row

    def die(fitting: Fitting, sample: Sample) -> np.ndarray:
        if sample.path.endswith("15.png"):
            os.kill(os.getpid(), signal.SIGKILL)
        return row(fitting, sample)

    child = os.fork()
    if child == 0:
        monkeypatch.setattr(Fitting, "row", die)
        cached(config, dataset)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert sys.platform != "linux" or files(dataset) == []  # elsewhere a .part file
    train, _ = cached(config, dataset)
    assert train.cache.row(15).tobytes() == row(train.cache.fitting, train.samples[15]).tobytes()


def no_unnamed_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the file system be one of those, such as NFS, that have no files without a name."""
    opened, unnamed = os.open, getattr(os, "O_TMPFILE", 0)

    def refuse(path: Any, flags: int, *rest: Any, **named: Any) -> int:
        if unnamed and flags & unnamed == unnamed:
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")
        return opened(path, flags, *rest, **named)

    monkeypatch.setattr(os, "open", refuse)


@pytest.mark.parametrize("unnamed", [True, False])
def test_two_trainings_build_the_same_at_once(dataset: Path, monkeypatch: pytest.MonkeyPatch, unnamed: bool) -> None:
    if not unnamed:
        no_unnamed_files(monkeypatch)
    fitting, samples, name = Fitting(Preprocess(8, 8)), read(dataset), dataset / "x.pictures"
    before = set(dataset.iterdir())
    both = [new_file(dataset), new_file(dataset)]
    for file in both:
        assert [bad for _, bad, _ in fit_all(file.path, samples, fitting, range(21), 0)] == [[]]
        assert not name.exists()
    for file in both:
        file.complete(fitting.num_bytes(samples), [], name)
        assert ImageCache(str(name), fitting, 21).pixels.shape == (21, 8, 8, 3)
        file.drop()
    assert set(dataset.iterdir()) - before == {name}


def test_a_build_that_fails_leaves_nothing(
    make_config: ConfigMaker, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_unnamed_files(monkeypatch)  # the harder case: the file has a name from the start
    config = settings(make_config, dataset)

    def full(file: NewFile, *_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(NewFile, "complete", full)
    with pytest.raises(CacheError, match=r"^data_cache: the fitted images cannot be kept: No space left on device$"):
        cached(config, dataset)
    assert files(dataset) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_that_runs_full_while_images_are_fitted_is_named(dataset: Path) -> None:
    ((count, bad, problem),) = fit_all("/dev/full", read(dataset), Fitting(Preprocess(64, 64)), range(21), 0)
    assert (count, bad, problem) == (21, [], "No space left on device")


@dataclass(frozen=True)
class Together(World):
    """One of several processes of a machine, played by threads."""

    meeting: Any = None
    table: Any = None

    def gather(self, values: list[Any]) -> list[Any]:
        self.table[self.rank] = values
        self.meeting.wait(20)
        everything = [value for rank in range(self.size) for value in self.table[rank]]
        self.meeting.wait(20)
        return everything


@pytest.mark.parametrize("kind", ["disk", pytest.param("ram", marks=LINUX)])
def test_all_processes_of_a_machine_build_together_and_share(
    make_config: ConfigMaker, dataset: Path, kind: str
) -> None:
    config = settings(make_config, dataset, data_cache=kind, bad_images="skip")
    (dataset / "images/train/03.png").write_bytes(b"no image")
    meeting = threading.Barrier(4)
    table: dict[int, list[Any]] = {}
    results: dict[int, tuple[SampleList, SampleList]] = {}

    def work(rank: int) -> None:  # four processes, two on each of two machines
        world = Together(rank, 4, rank % 2, 2, meeting, table)
        results[rank] = cached(config, dataset, world)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    alone, _ = cached(settings(make_config, dataset, data_cache_dir=str(dataset / "b"), bad_images="skip"), dataset)
    assert len(results) == 4
    for train, _ in results.values():
        assert torch.equal(train.cache.pixels, alone.cache.pixels)
        assert list(train.cache.bad) == [3]
    paths = [results[rank][0].cache.path for rank in range(4)]
    assert paths[0] == paths[1] and paths[2] == paths[3]


# --- room ---


def test_no_room_is_one_sentence_with_the_sizes_before_training(
    make_config: ConfigMaker, dataset: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    needed = 30 * 32 * 32 * 3  # both lists together: 92 kB
    monkeypatch.setattr("data_loader.cache_builder.shutil.disk_usage", lambda folder: _Free(needed - 1))
    folder = dataset / "kept"
    config = make_config(data_cache="disk", data_cache_dir=str(folder))
    assert train_program.main(["--config", str(config)]) == 2
    assert capsys.readouterr().err == (
        f'train.py: data_cache "disk" needs 92.2 kB, and 92.2 kB are free in {folder}: '
        'use another data_cache_dir, a lower fitted_scale, or "none"\n'
    )
    assert files(dataset) == []
    monkeypatch.setattr("data_loader.cache_builder.shutil.disk_usage", lambda folder: _Free(needed))
    check_room(needed, folder)


@dataclass
class _Free:
    free: int


def test_free_memory_is_the_machines_or_the_containers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:   3000 kB\n")
    monkeypatch.setattr(cache_builder, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(cache_builder, "CGROUP", tmp_path)
    assert free_memory() == 3_072_000
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("1000000\n")
    assert free_memory() == 3_072_000
    (tmp_path / "memory.max").write_text("3000000\n")
    assert free_memory() == 2_000_000
    with pytest.raises(CacheError) as error:
        check_room(5_000_000_000, None)
    assert str(error.value) == (
        'data_cache "ram" needs 5.0 GB, and 2.0 MB are free in memory: '
        'use data_cache "disk", a lower fitted_scale, or "none"'
    )
    (tmp_path / "meminfo").unlink()
    (tmp_path / "memory.max").unlink()
    assert free_memory() is None
    check_room(10**18, None)  # not known: tried
    assert [size_text(size) for size in (1_500_000_000, 20_000_000, 300)] == ["1.5 GB", "20.0 MB", "0.3 kB"]


def test_a_folder_that_cannot_be_is_named(make_config: ConfigMaker, dataset: Path) -> None:
    config = settings(make_config, dataset, data_cache_dir=str(dataset / "train.txt/kept"))
    with pytest.raises(CacheError, match=r"^data_cache_dir .*train.txt/kept: cannot write into this folder: Not a dir"):
        cached(config, dataset)


# --- bad images ---


def test_a_bad_image_stops_as_without_a_cache(make_config: ConfigMaker, dataset: Path) -> None:
    bad = dataset / "images/train/04.png"
    bad.write_bytes(b"no image")
    sentence = rf"^{dataset}/train.txt:5: {bad}: it is not an image of a known format"
    with pytest.raises(BadImageError, match=sentence):
        cached(settings(make_config, dataset), dataset)
    assert files(dataset) == []
    cached(settings(make_config, dataset, bad_images="skip"), dataset)
    with pytest.raises(BadImageError, match=sentence):  # a file that another policy left
        cached(settings(make_config, dataset), dataset)


def test_skipped_images_are_left_out_and_the_others_keep_theirs(
    make_config: ConfigMaker, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = dataset / "images/train/04.png"
    bad.write_bytes(b"")
    config = settings(make_config, dataset, bad_images="skip", max_bad_share=0.1, **RECIPE)
    train, _ = cached(config, dataset)
    left = without(train, set(train.cache.bad))
    assert left.cache is not None and len(left.samples) == 20 and left.where(4).endswith("train.txt:6")
    (batch,) = WholeBatches(left, left.cache, lambda: [np.arange(20)], torch.device("cpu"))
    for sample, pixels, label in zip(left.samples, batch["image"], batch["target"].tolist(), strict=True):
        assert label == sample.label
        assert (pixels.permute(1, 2, 0).numpy() == Fitting(Preprocess(32, 32)).row(sample)).all()
    assert train_program.main(["--config", str(dataset / "config.json"), "--set", "num_epochs=1"]) == 0
    assert "1 of 21 images cannot be read and are skipped" in capsys.readouterr().out


def test_a_image_that_can_be_read_again_is_taken(make_config: ConfigMaker, dataset: Path) -> None:
    config = settings(make_config, dataset, bad_images="skip")
    image = dataset / "images/train/04.png"
    good, time = image.read_bytes(), image.stat().st_mtime_ns
    image.write_bytes(bytes(len(good)))
    os.utime(image, ns=(time, time))
    assert list(cached(config, dataset)[0].cache.bad) == [4]
    image.write_bytes(good)
    os.utime(image, ns=(time, time))
    assert cached(config, dataset)[0].cache.bad == {}


# --- trainings ---


class PowerCut(Exception):
    """Stands for the power going off."""


def test_a_training_is_the_same_with_a_cache_and_resumed_in_it(
    make_config: ConfigMaker, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit: views are made from the fitted image either way."""
    results = []
    for kind in ("none", "disk"):
        config = make_config(**RECIPE, data_cache=kind, data_cache_dir=str(dataset / "kept"), save_interval_steps=1)
        if kind == "disk":
            with pytest.raises(PowerCut), dying_after_save(2, PowerCut):
                train_program.main(["--config", str(config)])
            assert train_program.main(["--config", str(config), "--resume"]) == 0
        else:
            assert train_program.main(["--config", str(config)]) == 0
        results.append(torch.load(dataset / "weights/net_last.pth", weights_only=True))
    first, second = results
    assert first["progress"]["curves"] == second["progress"]["curves"]
    assert all(torch.equal(value, second["net"][name]) for name, value in first["net"].items())


# --- views from larger fitted images ---


def test_views_of_a_larger_fitted_image_are_distributed_as_the_training_view_of_one_image() -> None:
    torch.manual_seed(1)
    pixels, draws = textured(64, 64), 800
    image = Image.fromarray(pixels[0].permute(1, 2, 0).numpy())
    single = TrainingView(Preprocess(height=32, width=32), EVERYTHING)
    expected = np.stack([single(image) for _ in range(draws)])  # (N, H, W, C)
    views = BatchViews(EVERYTHING, size=(32, 32))(pixels.expand(draws, -1, -1, -1))
    compare(seen_in(views), seen_in(torch.from_numpy(expected).permute(0, 3, 1, 2)))
    with pytest.raises(AssertionError, match="differ"):  # of an image that has lost its detail they are not
        coarse = torch.from_numpy(Preprocess(32, 32).fit(image)).permute(2, 0, 1)[None]
        compare(seen_in(BatchViews(EVERYTHING)(coarse.expand(draws, -1, -1, -1))), seen_in(views))


def test_every_smallest_crop_of_the_least_source_has_the_input_size() -> None:
    scale, ratio = (0.35, 1.0), (0.8, 1.25)
    width, height = least_source_size(Preprocess(64, 96), scale, ratio)
    for stretch in ratio:  # area = share * whole, width / height = stretch * that of the input
        crop_width = (scale[0] * width * height * stretch * 96 / 64) ** 0.5
        assert crop_width >= 96 - 1 and crop_width / stretch / 96 * 64 >= 64 - 1
    assert least_source_size(Preprocess(64, 96), (1.0, 1.0), (1.0, 1.0)) == (96, 64)
    assert enlarged(Preprocess(33, 20), 1.5) == replace(Preprocess(33, 20), height=50, width=30)


# --- reduced decoding ---


def photo(width: int, height: int) -> Image.Image:
    """Something like a photograph: detail of all sizes, its amplitude in proportion, and less colour than light."""
    generator = np.random.default_rng(4)
    frequencies = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    frequencies[0, 0] = 1
    layers = np.fft.ifft2(np.fft.fft2(generator.normal(size=(4, height, width))) / frequencies).real
    layers /= layers.std(axis=(1, 2), keepdims=True)
    values = 128 + 45 * layers[0] + 12 * layers[1:]
    return Image.fromarray(values.clip(0, 255).astype(np.uint8).transpose(1, 2, 0))


def jpeg(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=92, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("resize", ["squash", "letterbox", "crop"])
def test_reduced_decoding_differs_as_little_as_another_interpolation(mode: str, resize: str) -> None:
    data = jpeg(photo(624, 520).convert(mode))
    preprocess = Preprocess(64, 96, 1 if mode == "L" else 3, resize)
    reduced = preprocess.decode(data, (96, 64))
    assert reduced.size == (156, 130)  # a quarter; an eighth would be too small
    whole = preprocess.decode(data)
    expected = preprocess.fit(whole).astype(int)
    difference = np.abs(expected - preprocess.fit(reduced))
    other = np.abs(expected - replace(preprocess, interpolation="lanczos").fit(whole))
    assert 0 < difference.mean() < min(2.5, other.mean())
    assert np.percentile(difference, 99) <= 12


@pytest.mark.parametrize("resize", ["squash", "crop"])
def test_reduced_decoding_stretches_by_half_a_pixel_at_the_most(resize: str) -> None:
    """Of 621 x 517 pixels a quarter is 155.25 x 129.25."""
    data, preprocess = jpeg(photo(621, 517)), Preprocess(64, 96, resize=resize)
    reduced = preprocess.decode(data, (96, 64))
    assert reduced.size == (155, 129)
    difference = np.abs(preprocess.fit(preprocess.decode(data)).astype(int) - preprocess.fit(reduced))
    assert difference.mean() < 3 and np.percentile(difference, 99) <= 14


@pytest.mark.parametrize("orientation", [1, 6])
def test_reduced_decoding_keeps_to_the_size_that_is_wanted_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = (300, 420) if orientation == 1 else (420, 300)
    data = jpeg(photo(300, 420), exif=exif)
    assert decode(data).size == upright
    for width, height, factor in ((150, 150, 2), (210, 150, 2), (151, 151, 1), (75, 75, 4), (30, 30, 8)):
        fits_twice = upright[0] >= 2 * width and upright[1] >= 2 * height
        reduced = decode(data, at_least=(width, height))
        assert reduced.size == (tuple(round(side / factor) for side in upright) if fits_twice else upright)
        assert reduced.width >= width and reduced.height >= height
        shown, expected = (image.resize((30, 20)) for image in (reduced, decode(data)))
        assert np.abs(np.asarray(shown).astype(int) - np.asarray(expected)).mean() < 8  # turned the same way; else 40


def test_what_is_not_twice_as_large_or_no_jpeg_is_decoded_in_full() -> None:
    image = photo(120, 90)
    buffer = io.BytesIO()
    image.filter(ImageFilter.BLUR).save(buffer, "PNG")
    for data, least in ((jpeg(image), (61, 40)), (jpeg(image), (60, 46)), (buffer.getvalue(), (10, 10))):
        assert decode(data, at_least=least).tobytes() == decode(data).tobytes()


def test_damage_is_met_in_reduced_decoding_too() -> None:
    data = jpeg(photo(300, 300))
    with pytest.raises(ImageError, match="it is damaged"):
        decode(data[: len(data) // 2], at_least=(60, 60))
    with pytest.raises(ImageError, match="300x300 is more than max_pixels"):
        decode(data, max_pixels=300 * 299, at_least=(60, 60))


def test_fast_decoding_is_for_training_and_for_validation_when_asked(make_config: ConfigMaker, dataset: Path) -> None:
    from trainers.builder import training_images, validation_images

    samples, preprocess = read(dataset), Preprocess(32, 32)
    expected = {"off": (None, None), "training": ((32, 32), None), "all": ((32, 32), (32, 32))}
    for choice, sizes in expected.items():
        config = settings(make_config, dataset, fast_decode=choice, data_aug=False)
        train = training_images(config, samples, preprocess, 1)
        assert (train.at_least, validation_images(config, samples, preprocess).at_least) == sizes
    config = settings(make_config, dataset, fast_decode="training", augment_on="device", fitted_scale=2.0)
    assert training_images(config, samples, preprocess, 1).at_least == (64, 64)
    crops = {"random_crop_scale": [0.25, 1.0], "random_crop_ratio": [1.0, 1.0]}
    config = settings(make_config, dataset, fast_decode="training", **crops)
    assert training_images(config, samples, preprocess, 1).at_least == (64, 64)  # half the sides are the input's
