"""A training's sample lists with their fitted images: found in a file, or fitted by all processes of a machine."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from configs.schema import Config
from data_loader.bad_images import BadImageError, bad_image_sentence
from data_loader.cache import Fitting, ImageCache
from data_loader.cache_builder import (
    BadRow,
    CacheError,
    check_room,
    fit_all,
    is_usable,
    make_folder,
    new_file,
    size_text,
)
from data_loader.loaders import enlarged
from data_loader.preprocess import Preprocess
from data_loader.samples import SampleList
from data_loader.targets import Target
from trainers.runtime.distributed import World

BAD_SHOWN = 20
T = TypeVar("T")


def with_caches(
    config: Config,
    train: SampleList,
    val: SampleList,
    preprocess: Preprocess,
    target: Target,
    world: World,
    log: Callable[[str], None],
) -> tuple[SampleList, SampleList]:
    """Return both lists with their images, kept as `data_cache` names it; unreadable ones are in `cache.bad`.

    Images that are validated at their own size (`val_tiles`) are not kept.
    Raises CacheError where there is no room, and BadImageError where an image is bad and `bad_images` is "error".
    """
    source = enlarged(preprocess, config.fitted_scale) if config.data_aug else preprocess
    lists = [train] if config.val_tiles else [train, val]
    fittings = [
        Fitting(source, config.fast_decode != "off", target),
        Fitting(preprocess, config.fast_decode == "all", target),
    ][: len(lists)]
    folder = None if config.data_cache == "ram" else Path(config.data_cache_dir)
    found = _from_leader(world, lambda: _find(lists, fittings, folder))
    cached = []
    for samples, fitting, (name, is_there) in zip(lists, fittings, found, strict=True):
        if not is_there:
            cache = _build(config, samples, fitting, name, world)
        else:
            cache = ImageCache(str(name), fitting, len(samples.samples))
        if cache.bad and config.bad_images == "error":
            raise _bad_images_error(samples, sorted(cache.bad.items()))
        where = f"{name}, {'found' if is_there else 'built'}" if name else "memory"
        log(f"{samples.origin}: {size_text(fitting.num_bytes(samples))} of fitted images in {where}")
        cached.append(replace(samples, cache=cache))
    return cached[0], cached[-1] if len(cached) > 1 else val


def _find(
    lists: Sequence[SampleList], fittings: Sequence[Fitting], folder: Path | None
) -> list[tuple[Path | None, bool]]:
    """Return each file's path (None: in memory) and whether it is there, once there is room for the rest.

    Raises CacheError.
    """
    if folder is not None:
        make_folder(folder)
    found, needed = [], 0
    for samples, fitting in zip(lists, fittings, strict=True):
        name = None if folder is None else folder / fitting.file_name(samples)
        is_there = name is not None and is_usable(name, fitting, samples)
        found.append((name, is_there))
        needed += 0 if is_there else fitting.num_bytes(samples)
    check_room(needed, folder)
    return found


def _build(config: Config, samples: SampleList, fitting: Fitting, name: Path | None, world: World) -> ImageCache:
    """Fit every image into a new file, each process of this machine its share. Raises as `with_caches` does."""
    file = _from_leader(world, lambda: new_file(name and name.parent))
    drop = file.drop if world.local_rank == 0 else _nothing
    try:
        bad = _fit_share(config, samples, fitting, file.path, world)
        _from_leader(world, lambda: file.complete(fitting.num_bytes(samples), bad, name))
        cache = ImageCache(str(name or file.path), fitting, len(samples.samples))
    except BaseException:
        drop()
        raise
    if name is None:
        weakref.finalize(cache, drop)
    else:
        drop()
    return cache


def _fit_share(config: Config, samples: SampleList, fitting: Fitting, path: str, world: World) -> list[BadRow]:
    """Fit this process's share of the images; return the unreadable ones of all."""
    share = range(world.local_rank, len(samples.samples), world.local_size)
    bad = []
    hidden = None if world.is_main else True
    with tqdm(total=len(share), desc="fitting images", leave=False, disable=hidden) as bar:
        for count, of_block, problem in fit_all(path, samples, fitting, share, config.dataloader_workers):
            if problem:
                error = CacheError(f"data_cache: the fitted images cannot be kept: {problem}")
                error.one_process = True
                raise error
            if of_block and config.bad_images == "error":
                raise _bad_images_error(samples, of_block)
            bad += of_block
            bar.update(count)
    machine = world.rank - world.local_rank
    return sorted(row for of_machine, row in world.gather([(machine, row) for row in bad]) if of_machine == machine)


def _bad_images_error(samples: SampleList, bad: Sequence[BadRow]) -> BadImageError:
    sentences = [bad_image_sentence(samples, row, reason) for row, reason in bad[:BAD_SHOWN]]
    return BadImageError("\n".join(sentences))


def _from_leader(world: World, work: Callable[[], T]) -> T:
    """Do some work in local rank 0 of each machine, and return its result in all processes of the machine."""
    outcome: tuple[Any, str] = (None, "")
    if world.local_rank == 0:
        try:
            outcome = work(), ""
        except CacheError as error:
            outcome = None, str(error)
        except OSError as error:
            outcome = None, f"data_cache: the fitted images cannot be kept: {error.strerror}"
    outcomes = world.gather([outcome])
    for _, problem in outcomes:
        if problem:
            raise CacheError(problem)
    result: T = outcomes[world.rank - world.local_rank][0]
    return result


def _nothing() -> None:
    """Leave the file to the process that opened it."""
