"""A training's data, read and checked before it begins: the lists, their caches, and images that cannot be read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from tqdm import tqdm

from artifacts.class_names import listed
from artifacts.metadata import preprocess_of
from configs.schema import Config
from data_loader.bad_images import BadImageError, bad_image_sentence, find_bad_images, without
from data_loader.loaders import lost_loaders_reported
from data_loader.preprocess import ImageError, Preprocess
from data_loader.samples import ListError, Sample, SampleList
from data_loader.targets import ClassLabel, Target
from trainers.data.image_cache import with_caches
from trainers.data.sample_lists import read_lists, read_unlabelled_list
from trainers.runtime.distributed import World
from trainers.tasks.table import task_of_config

BAD_SHOWN = 20
Skipped = list[dict[str, str]]  # path, where, reason
Lists = tuple[SampleList, SampleList]  # to train with, and to validate with


def read_data(
    config: Config,
    world: World,
    log: Callable[[str], None],
    change: Callable[[SampleList, SampleList], Lists] | None = None,
) -> tuple[SampleList, SampleList, Skipped]:
    """Return both lists, checked, and the images left out of them; `change` may put others in their place.

    Raises ListError, CacheError, LoaderProcessError; BadImageError where more images are bad than allowed.
    """
    task = task_of_config(config)
    target = task.target(config)
    train, val = read_lists(config, target)
    if change is not None:
        train, val = change(train, val)
    if train.origin == val.origin:
        log(f"warning: training and validation read the same images ({val.origin}); the accuracy will mean little")
    elif shared := shared_images(train, val):
        text = f"{shared} of {len(val.samples)} validation images are training images too"
        log(f"warning: {val.origin}: {text}; the accuracy will be better than on images that the net has not seen")
    classes = f", {len(train.class_names)} classes" if train.class_names else ""
    log(f"{len(train.samples)} training and {len(val.samples)} validation images{classes}")
    for samples in (train, val):
        if samples.left_out.counts:
            log(f"note: {samples.root}: left out, as no images: {samples.left_out}")
    skipped: Skipped = []
    preprocess = task.preprocess(config)
    if target.needs_scan:
        (train, of_train), (val, of_val) = _scan_both(config, (train, val), target, world, log)
        skipped = of_train + of_val
    if config.data_cache != "none":
        with lost_loaders_reported():
            train, val = with_caches(config, train, val, preprocess, target, world, log)
    if config.bad_images == "skip":
        train, of_train = _without_bad(config, train, preprocess, world, log, is_decoded=target.needs_scan)
        val, of_val = _without_bad(config, val, preprocess, world, log, is_decoded=target.needs_scan)
        skipped += of_train + of_val
    if len(train.samples) < 2 * world.size or not val.samples:
        counts = f"{len(train.samples)} training and {len(val.samples)} validation images"
        raise ListError([f"{train.origin}: {counts} are too few for {world.size} process(es): two and one at least"])
    if isinstance(target, ClassLabel):
        for line in classes_without_images(train, val):
            log(line)
    return train, val, skipped


def read_unlabelled_data(
    config: Config, train: SampleList, val: SampleList, world: World, log: Callable[[str], None]
) -> tuple[SampleList | None, Skipped]:
    """Return the images that `semi` learns from without labels, checked, and those left out; None where it is off.

    Raises ListError, BadImageError.
    """
    samples = read_unlabelled_list(config, train.class_names)
    if samples is None:
        return None, []
    log(f"{len(samples.samples)} images without labels")
    if shared := shared_images(samples, val):
        log(f"warning: {shared} of {len(val.samples)} validation images are learnt from without their labels")
    if samples.left_out.counts:
        log(f"note: {samples.root}: left out, as no images: {samples.left_out}")
    skipped: Skipped = []
    if config.bad_images == "skip":
        samples, skipped = _without_bad(config, samples, preprocess_of(config), world, log)
    if len(samples.samples) < world.size:
        raise ListError([f"{samples.origin}: fewer images without labels than processes ({world.size})"])
    return samples, skipped


def shared_images(train: SampleList, val: SampleList) -> int:
    """Return how many validation images the training list names, too."""
    trained = {sample.path for sample in train.samples}
    return sum(sample.path in trained for sample in val.samples)


def classes_without_images(train: SampleList, val: SampleList) -> list[str]:
    """Return a warning for each split in which classes have no image; none for images without labels."""
    lines = []
    for samples, effect in (
        (train, "no training image: the net cannot learn them"),
        (val, "no validation image: they are not measured"),
    ):
        counts = zip(samples.class_names, samples.class_counts(), strict=True)
        names = [name for name, count in counts if not count]
        if names and samples.is_labelled:
            shown = f"{len(names)} of {len(samples.class_names)} classes have {effect}: {listed(names)}"
            lines.append(f"warning: {samples.origin}: {shown}")
    return lines


def _scan_both(
    config: Config, both: Sequence[SampleList], target: Target, world: World, log: Callable[[str], None]
) -> list[tuple[SampleList, Skipped]]:
    """Return what `scan_targets` does of each list. Raises BadImageError for both together, ListError."""
    scanned, faults = [], []
    for samples in both:
        try:
            scanned.append(scan_targets(config, samples, target, world, log))
        except BadImageError as error:
            faults.append(error)
    if faults:
        together = BadImageError("\n".join(map(str, faults)))
        together.one_process = False  # all processes know of it
        raise together
    return scanned


def scan_targets(
    config: Config, samples: SampleList, target: Target, world: World, log: Callable[[str], None]
) -> tuple[SampleList, Skipped]:
    """Look at every sample's target, each process at its share; return the list with what was found, and bad samples.

    Raises BadImageError for a bad one where `bad_images` is "error", or there are too many; ListError for a bad whole.
    """
    mine = range(world.rank, len(samples.samples), world.size)
    hidden = None if world.is_main else True

    def look(index: int) -> tuple[int, Any, str]:
        try:
            return index, target.scan(samples.samples[index]), ""
        except ImageError as error:
            return index, None, bad_image_sentence(samples, index, error)

    with ThreadPoolExecutor(max(1, config.dataloader_workers)) as pool:
        looks = tqdm(
            pool.map(look, mine), desc=f"checking {target.noun}s", total=len(mine), leave=False, disable=hidden
        )
        found = sorted(world.gather(list(looks)), key=lambda row: row[0])
    bad = [(index, sentence) for index, _, sentence in found if sentence]
    if config.bad_images == "skip":
        damaged = dict(_undecodable(config, samples, target, world, [i for i, _, sentence in found if not sentence]))
        found = [(index, scan, sentence or damaged.get(index, "")) for index, scan, sentence in found]
        bad = [(index, sentence) for index, _, sentence in found if sentence]
    if bad and config.bad_images == "error":
        error = BadImageError("\n".join(_shown(bad)))
        error.one_process = False  # all processes know of it
        raise error
    kept, skipped = _skip(config, samples, bad, log)
    scans = [scan for _, scan, sentence in found if not sentence]
    if scans:
        kept, lines = target.scanned(kept, scans)
        for line in lines:
            log(line)
    return kept, skipped


def _undecodable(
    config: Config, samples: SampleList, target: Target, world: World, indices: Sequence[int]
) -> list[tuple[int, str]]:
    """Return the samples of which an image cannot be decoded, found before training, with a sentence about each."""
    mine = indices[world.rank :: world.size]
    paths = [(index, path) for index in mine for path in target.image_paths(samples.samples[index])]
    flat = replace(samples, samples=tuple(Sample(path, "") for _, path in paths), line_numbers=())
    looks = find_bad_images(flat, preprocess_of(config), config.dataloader_workers, range(len(paths)))
    bar = tqdm(looks, desc="checking images", total=len(paths), leave=False, disable=None if world.is_main else True)
    return world.gather([(paths[look[0]][0], look[1]) for look in bar if look])


def _without_bad(
    config: Config,
    samples: SampleList,
    preprocess: Preprocess,
    world: World,
    log: Callable[[str], None],
    *,
    is_decoded: bool = False,
) -> tuple[SampleList, Skipped]:
    """Return a list without the images that cannot be read, found by decoding all before training, and these.

    `is_decoded`: all have been decoded already, and were good then.
    """
    if samples.cache is not None:  # every image has been decoded for it
        reasons = sorted(samples.cache.bad.items())
        bad = [(index, bad_image_sentence(samples, index, reason)) for index, reason in reasons]
    elif is_decoded:
        return samples, []
    else:
        mine = range(world.rank, len(samples.samples), world.size)
        looks = find_bad_images(samples, preprocess, config.dataloader_workers, mine)
        hidden = None if world.is_main else True
        bar = tqdm(looks, desc="checking images", total=len(mine), leave=False, disable=hidden)
        bad = sorted(world.gather([look for look in bar if look]))
    return _skip(config, samples, bad, log)


def _skip(
    config: Config, samples: SampleList, bad: list[tuple[int, str]], log: Callable[[str], None]
) -> tuple[SampleList, Skipped]:
    """Return a list without some samples, and these. Raises BadImageError where more are bad than allowed."""
    share = len(bad) / len(samples.samples)
    if bad:
        log(f"{samples.origin}: {len(bad)} of {len(samples.samples)} images cannot be read and are skipped")
    if share > config.max_bad_share:
        most = f"{config.max_bad_share:.2%} may be (max_bad_share)"
        lines = [f"{samples.origin}: {share:.2%} of the images are bad, {most}:", *_shown(bad)]
        raise BadImageError("\n".join(lines))
    skipped = []
    for index, sentence in bad:
        path, where = samples.samples[index].path, samples.where(index)
        reason = sentence.removeprefix(bad_image_sentence(samples, index, ""))
        skipped.append({"path": path, "where": where, "reason": reason})
    return without(samples, {index for index, _ in bad}), skipped


def _shown(bad: Sequence[tuple[int, str]]) -> list[str]:
    """Return the first sentences, and how many more there are."""
    more = [f"... and {len(bad) - BAD_SHOWN} more"] if len(bad) > BAD_SHOWN else []
    return [*(sentence for _, sentence in bad[:BAD_SHOWN]), *more]
