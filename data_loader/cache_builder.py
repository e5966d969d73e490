"""Writes the files of `data_loader.cache`: in parallel, and named only when they are complete."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader, Dataset

from common.atomic_io import move_into_place, remove_leftovers, sync_file, temporary_ending
from common.errors import UserError
from data_loader.cache import Fitting, ImageCache
from data_loader.decode_guard import GUARD
from data_loader.loaders import start_loader_process
from data_loader.preprocess import ImageError
from data_loader.samples import Sample, SampleList
from data_loader.streamed_packs import StreamError

BLOCK = 64  # images that a process fits before it reports
MEMINFO, CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")

BadRow = tuple[int, str]  # row, reason
Fitted = tuple[int, list[BadRow], str]  # images looked at, which of them cannot be read, and why one cannot be kept


class CacheError(UserError):
    """No room for the images, or nowhere to put them; the message is the sentence to show."""

    one_process = False  # of several, all know of it


@dataclass(frozen=True)
class NewFile:
    """An open file without a name, which is gone with its last user, and the path by which other processes open it.

    Where there are none on a disk (NFS, macOS) it is a temporary file, which only a killed process leaves behind.
    """

    descriptor: int
    path: str

    def complete(self, size: int, bad: Sequence[BadRow], name: Path | None) -> None:
        """Write what stands behind `size` bytes of rows, and let the file be found, if it is to have a name."""
        with Path(self.path).open("r+b") as file:
            file.seek(size)
            file.write(json.dumps({"bad": dict(bad)}).encode())
        if name is None:
            return
        if self._is_unnamed():
            sync_file(Path(self.path))  # else the name may outlive a power cut, and the rows not
            with contextlib.suppress(FileExistsError):  # another training was faster: the same is in its file
                os.link(self.path, name, src_dir_fd=self.descriptor)  # with a folder, or Python links /proc's link
        else:
            move_into_place(Path(self.path), name)

    def drop(self) -> None:
        """Close it, and remove what has got no name."""
        os.close(self.descriptor)
        if not self._is_unnamed():
            Path(self.path).unlink(missing_ok=True)

    def _is_unnamed(self) -> bool:
        return self.path.startswith("/proc/")


def new_file(folder: Path | None) -> NewFile:
    """Open a file in a folder, or in memory. Raises OSError, and CacheError for a system without files in memory."""
    if folder is None:
        if not hasattr(os, "memfd_create"):
            raise CacheError('data_cache "ram" needs Linux; use "disk"')
        descriptor = os.memfd_create("images")
    else:
        try:
            descriptor = os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o666)
        except (OSError, AttributeError):
            remove_leftovers(folder)
            return NewFile(*tempfile.mkstemp(temporary_ending(), ".images", folder))
    return NewFile(descriptor, f"/proc/{os.getpid()}/fd/{descriptor}")


def fit_all(path: str, samples: SampleList, fitting: Fitting, indices: range, workers: int) -> Iterator[Fitted]:
    """Fit images of a list into their rows of a file, on so many loader processes at most; yield the progress."""
    GUARD.start()  # before the processes, which it watches too
    blocks = _Blocks(path, samples, fitting, indices)
    loader: DataLoader[Fitted] = DataLoader(
        blocks,
        batch_size=None,
        num_workers=min(workers, len(blocks)) if len(blocks) > 1 else 0,
        collate_fn=_as_it_is,
        worker_init_fn=start_loader_process,
    )
    yield from loader


def make_folder(folder: Path) -> None:
    """Make a folder that can be written into. Raises CacheError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise CacheError(f"data_cache_dir {folder}: cannot write into this folder: {error.strerror}") from error


def is_usable(name: Path, fitting: Fitting, samples: SampleList) -> bool:
    """Return whether a file is there and complete; a damaged one, or one with an image since repaired, is removed.

    Unreadable images are tried again, because rights can change without the image's size or time.
    """
    try:
        bad = ImageCache(str(name), fitting, len(samples.samples)).bad
        if not any(_is_readable(fitting, samples.samples[row]) for row in bad):
            return True
    except FileNotFoundError:
        return False
    except (ValueError, KeyError, TypeError, AttributeError):  # not what `NewFile.complete` wrote
        pass
    name.unlink(missing_ok=True)
    return False


def check_room(needed: int, folder: Path | None) -> None:
    """Raise CacheError where a disk, or the memory, has not enough room for so many bytes."""
    free = free_memory() if folder is None else shutil.disk_usage(folder).free
    if free is not None and needed > free:
        where, kind = ("in memory", "ram") if folder is None else (f"in {folder}", "disk")
        other = 'data_cache "disk"' if folder is None else "another data_cache_dir"
        raise CacheError(
            f'data_cache "{kind}" needs {size_text(needed)}, and {size_text(free)} are free {where}: '
            f'use {other}, a lower fitted_scale, or "none"'
        )


def free_memory() -> int | None:
    """Return the free bytes of memory, of this machine and of this container; None where they are not known."""
    free = []
    with contextlib.suppress(OSError, StopIteration, ValueError, IndexError):
        line = next(line for line in MEMINFO.read_text().splitlines() if line.startswith("MemAvailable:"))
        free.append(int(line.split()[1]) * 1024)
    with contextlib.suppress(OSError, ValueError):  # "max": no limit
        free.append(int((CGROUP / "memory.max").read_text()) - int((CGROUP / "memory.current").read_text()))
    return max(0, min(free)) if free else None


def size_text(num_bytes: int) -> str:
    """Write a size as people do."""
    for unit, word in ((1e9, "GB"), (1e6, "MB")):
        if num_bytes >= unit:
            return f"{num_bytes / unit:.1f} {word}"
    return f"{num_bytes / 1e3:.1f} kB"


class _Blocks(Dataset[Fitted]):
    """Blocks of images; to ask for one fits it into its rows of the file."""

    def __init__(self, path: str, samples: SampleList, fitting: Fitting, indices: range) -> None:
        self.path, self.samples, self.fitting, self.indices = path, samples, fitting, indices

    def __len__(self) -> int:
        return -(-len(self.indices) // BLOCK)

    def __getitem__(self, block: int) -> Fitted:
        chosen = self.indices[block * BLOCK : (block + 1) * BLOCK]
        bad: list[BadRow] = []
        try:
            with Path(self.path).open("r+b") as file:
                for index in chosen:
                    try:
                        pixels = self.fitting.row(self.samples.samples[index])
                    except ImageError as error:
                        bad.append((index, str(error)))
                        continue
                    file.seek(index * prod(self.fitting.shape))
                    file.write(pixels.data)
        except OSError as error:
            return len(chosen), bad, error.strerror or str(error)
        except StreamError as error:
            return len(chosen), bad, str(error)
        return len(chosen), bad, ""


def _is_readable(fitting: Fitting, sample: Sample) -> bool:
    try:
        fitting.row(sample)
    except ImageError:
        return False
    return True


def _as_it_is(fitted: Any) -> Any:
    return fitted
