"""Training from packs of which few shards lie on the disk: the same weights to the bit, however they are fetched."""

from __future__ import annotations

import errno
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import train
from configs.loading import process_config
from data_loader import remote_files, remote_packs
from data_loader.pack_list import read_pack
from data_loader.remote_packs import local_packs
from data_loader.shard_order import ShardOrder
from data_loader.targets import ClassLabel
from tests.helpers.breaking import dying_after_save
from tests.helpers.packed import packed_dataset, trained, without_roots
from tests.helpers.serving import wait
from tests.helpers.web_folder import FolderServer, folder_server
from trainers.data.shard_prefetch import ShardPrefetch

pytest.importorskip("crc32c")
pytest.importorskip("aiohttp")

MOST = 4  # of the seven shards

ConfigMaker = Callable[..., Path]


class Stopped(Exception):
    """What stands in for a kill."""


@pytest.fixture
def keys(dataset: Path) -> dict[str, Any]:
    """Return the keys of a config whose packs, seven shards of three images, lie on the disk."""
    return {**packed_dataset(dataset, 3), "streamed_shards": MOST}


@pytest.fixture
def server(dataset: Path, keys: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[FolderServer]:
    monkeypatch.setattr(remote_files, "PAUSES_S", (0.0, 0.0))
    remote_packs._fetched.cache_clear()
    with folder_server(dataset / "packs") as running:
        yield running


def streamed(server: FolderServer, keys: dict[str, Any], cache: Path) -> dict[str, Any]:
    remote_packs._fetched.cache_clear()  # as a new process would
    lists = {key: f"{server.url}/{split}-*-tfrecord" for split in ("train", "val") for key in [f"{split}_data_file"]}
    return {**keys, **lists, "data_cache_dir": str(cache)}


@contextmanager
def most_at_once(cache: Path) -> Iterator[list[int]]:
    """Yield, at the end, how many shards of the training pack lay in a folder at once."""
    found, most = [0], threading.Event()

    def look() -> None:
        while not most.wait(0.001):
            with suppress(FileNotFoundError):
                paths = cache.glob("packs/train-*-streamed/*/*-tfrecord*")
                names = {path.name.removesuffix(".part") for path in paths if path.suffix != ".lock"}
                found[0] = max(found[0], len(names))

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield found
    finally:
        most.set()
        looking.join()


def test_the_window_to_come_is_fetched_before_it_is_read(
    dataset: Path, make_config: ConfigMaker, server: FolderServer, keys: dict[str, Any]
) -> None:
    """By another process, which ends with the training's; what the epoch has behind it goes."""
    given = streamed(server, keys, dataset / "cache")
    local = local_packs(process_config(without_roots(make_config(**given))))
    names = [sample.path for sample in read_pack(local.train_data_file, ClassLabel(3)).samples]
    order = ShardOrder(names, MOST // 2, seed=0)
    prefetch = ShardPrefetch(order)
    folder = Path(local.train_data_file).parent
    try:
        for place in (0, 6, 12):  # windows have six images
            prefetch.reached(1, place)
            needed = {Path(path).name for path in order.needed(1, place)}
            wait(lambda needed=needed: needed <= {path.name for path in folder.glob("*-tfrecord")})
            assert len(list(folder.glob("*-tfrecord*"))) - len(list(folder.glob("*.lock"))) <= MOST
    finally:
        prefetch.close()
    assert prefetch._feeder is not None and prefetch._feeder.returncode == 0


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes")
@pytest.mark.parametrize("workers", [0, *(pytest.param(count, marks=pytest.mark.slow) for count in (1, 2, 4))])
def test_a_streamed_training_is_that_of_the_disk(
    dataset: Path, make_config: ConfigMaker, server: FolderServer, keys: dict[str, Any], workers: int
) -> None:
    from_disk = trained(without_roots(make_config(save_path=str(dataset / "disk"), **keys)))
    cache = dataset / "cache"
    config = make_config(
        save_path=str(dataset / "streamed"), dataloader_workers=workers, **streamed(server, keys, cache)
    )
    with most_at_once(cache) as most:
        assert trained(without_roots(config)) == from_disk
    assert 2 <= most[0] <= MOST


def test_a_killed_training_goes_on_with_other_workers(
    dataset: Path, make_config: ConfigMaker, server: FolderServer, keys: dict[str, Any]
) -> None:
    """It stops in the middle of an epoch; what the kill left of a shard does not count as one for ever."""
    whole = trained(without_roots(make_config(save_path=str(dataset / "disk"), **keys)))
    changes = {"save_path": str(dataset / "stopped"), "save_interval_steps": 1}
    changes |= streamed(server, keys, dataset / "cache")
    with pytest.raises(Stopped), dying_after_save(4, Stopped):
        train.main(["--config", str(without_roots(make_config(**changes)))])
    (folder,) = (dataset / "cache/packs").glob("train-*-streamed/*/")
    for path in (path for path in folder.glob("*-tfrecord*") if path.suffix != ".lock"):
        path.unlink()
    for path in sorted((dataset / "packs").glob("train-*-tfrecord"))[:MOST]:  # what several kills leave
        (folder / f"{path.name}.part").write_bytes(path.read_bytes()[:100])
    remote_packs._fetched.cache_clear()
    config = without_roots(make_config(**changes, dataloader_workers=2))
    with most_at_once(dataset / "cache") as most:
        assert trained(config, "--resume") == whole
    assert most[0] <= MOST


@pytest.mark.slow
def test_another_window_begins_the_epoch_again(
    dataset: Path, make_config: ConfigMaker, keys: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Else images would be trained twice in it, and others not at all."""
    config = without_roots(make_config(**keys, save_interval_steps=1))
    with pytest.raises(Stopped), dying_after_save(8, Stopped):  # in the second epoch
        train.main(["--config", str(config)])
    assert train.main(["--config", str(config), "--resume", "--set", "streamed_shards=6"]) == 0
    shown = capsys.readouterr().out
    assert "resuming with another streamed_shards: 4 before, 6 now" in shown
    assert "or another order: the epoch begins again" in shown


def test_an_outage_ends_the_training_in_a_sentence_and_costs_nothing(
    dataset: Path,
    make_config: ConfigMaker,
    server: FolderServer,
    keys: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ShardPrefetch, "reached", lambda *_: None)  # which waits between its tries
    whole = trained(without_roots(make_config(save_path=str(dataset / "disk"), **keys)))
    changes = {"save_path": str(dataset / "cut"), "save_interval_steps": 1, "dataloader_workers": 1}
    config = without_roots(make_config(**changes, **streamed(server, keys, dataset / "cache")))
    names = [f"train-{number:05}-of-00007-tfrecord" for number in range(7)]
    local_packs(process_config(config))  # the labels are read before
    server.statuses = dict.fromkeys(names, 503)
    for path in dataset.glob("cache/packs/*-streamed/*/*-tfrecord"):
        path.unlink()
    assert train.main(["--config", str(config)]) == 2
    assert re.search(f"{server.url}/train-.*-tfrecord: it cannot be reached: 503.* came, and are", said(capsys))
    server.statuses = {}
    server.left = 2 * sum((dataset / "packs" / name).stat().st_size for name in names) // 3
    assert train.main(["--config", str(config)]) == 2  # after some steps
    assert "it cannot be reached" in said(capsys)
    server.left = 2**40
    right = {name: (dataset / "packs" / name).read_bytes() for name in names}
    for name, content in right.items():
        (dataset / "packs" / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert train.main(["--config", str(config), "--resume"]) == 2
    assert re.search(r"tfrecord: \d+ bytes came, whose sha256 is not that of the pack's meta.json", said(capsys))
    for name, content in right.items():
        (dataset / "packs" / name).write_bytes(content)
    assert trained(config, "--resume") == whole


def test_a_full_disk(
    dataset: Path,
    make_config: ConfigMaker,
    server: FolderServer,
    keys: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = without_roots(make_config(**streamed(server, keys, dataset / "cache")))
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10))
        assert train.main(["--config", str(config)]) == 2
        assert "are to be fetched into" in said(capsys)
    local_packs(process_config(config))
    for path in dataset.glob("cache/packs/*-streamed/*/*-tfrecord"):
        path.unlink()
    real = Path.open

    def full(self: Path, mode: str = "r", **options: Any) -> Any:
        if mode == "ab":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(self, mode, **options)

    monkeypatch.setattr(Path, "open", full)
    assert train.main(["--config", str(config)]) == 2
    assert "No space left on device; data_cache_dir names a folder on another disk" in said(capsys)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"data_cache": "disk"}, {"bad_images": "skip"}], ids=["cached", "looked_at"])
def test_what_looks_at_all_images_before(
    dataset: Path, make_config: ConfigMaker, server: FolderServer, keys: dict[str, Any], changes: dict[str, Any]
) -> None:
    places = {"save_path": str(dataset / "disk"), "data_cache_dir": str(dataset / "other")}
    from_disk = trained(without_roots(make_config(**keys, **changes, **places)))
    given = {**streamed(server, keys, dataset / "cache"), **changes, "save_path": str(dataset / "streamed")}
    with most_at_once(dataset / "cache") as most:
        assert trained(without_roots(make_config(**given))) == from_disk
    assert most[0] <= MOST


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err
