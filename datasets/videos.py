"""Videos -> frames with standard annotations, by the time stamps that the frames have."""

from __future__ import annotations

import importlib
import math
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from common.formatting import first_line, is_utf8
from data_loader.decode_guard import guarded
from data_loader.decoding import MAX_PIXELS
from data_loader.image_files import natural_sorted
from datasets.errors import DatasetError
from datasets.images import THREADS, save_image, shrunk
from datasets.outcome import Outcome
from datasets.records import Record

SUFFIXES = frozenset(
    f".{name}"
    for name in (
        *("mp4", "m4v", "mov", "avi", "mkv", "webm", "mpg", "mpeg", "wmv", "flv", "ts", "mts", "m2ts", "3gp", "ogv"),
    )
)
INSTALL = "pip install -r requirements-video.txt"
EARLY_S = 1e-6  # that a frame's time may lie before its moment: time stamps are fractions
LEAST_SHARE = 0.9  # of a video's length that its frames reach, or it was cut off


@dataclass(frozen=True)
class FrameChoice:
    """Which frames: `rate` a second of the video's time, or each `every`-th; at most `num` of a video (0: all)."""

    rate: float = 15.0
    every: int = 0
    num: int = 0
    side_px: int = 0
    is_jpeg: bool = False

    @property
    def word(self) -> str:
        """Return what names of files say of it, "rate-15" or "every-15"."""
        return f"every-{self.every}" if self.every else f"rate-{self.rate:g}"

    def takes(self, index: int, time_s: float, last_s: float | None) -> bool:
        """Return whether a frame is taken, after one at `last_s`: by time, where a moment n / rate came in between."""
        if self.every:
            return index % self.every == 0
        return last_s is None or self._moment(time_s) > self._moment(last_s)

    def _moment(self, time_s: float) -> int:
        """Return the number of the last moment that has come."""
        return math.floor((time_s + EARLY_S) * self.rate)


@dataclass(frozen=True)
class Frame:
    """A frame as shown, its number in the video from 0, and its time from the first."""

    image: Image.Image
    index: int
    time_s: float


def find_videos(source: Path) -> tuple[Path, list[str]]:
    """Return the folder and the videos' paths below it, in natural order; of a file its own. Raises DatasetError."""
    if source.is_file():
        return source.parent, [source.name]
    paths = [
        path.relative_to(source).as_posix()
        for path in source.rglob("*")
        if path.suffix.lower() in SUFFIXES and path.is_file() and not path.name.startswith(".")
    ]
    if not paths:
        endings = " ".join(sorted(SUFFIXES))
        raise DatasetError(f"--src {source}: no video in it or below it; endings known: {endings}")
    return source, natural_sorted(paths)


def folder_names(paths: Sequence[str]) -> dict[str, str]:
    """Return the folder of each video's frames: its path without ending, with it where two would be the same."""
    counts = Counter(path.removesuffix(Path(path).suffix) for path in paths)
    names = {path: path.removesuffix(Path(path).suffix) for path in paths}
    return {path: name if counts[name] == 1 else path for path, name in names.items()}


def extract_videos(
    folder: Path, paths: Sequence[str], target: Path, choice: FrameChoice, outcome: Outcome
) -> Iterator[Record]:
    """Yield a record for each frame that is taken, written below the target.

    Of a damaged video the frames before the damage come, and it is left out by name. Raises DatasetError without PyAV.
    """
    av = load_av()
    names = folder_names(paths)
    for path in paths:
        if not is_utf8(path):
            outcome.leave_out(path, "its name is not UTF-8; rename it")
            continue
        reader = VideoReader(av, folder / path, choice)
        yield from _written(reader, path, names[path], target, outcome)
        if reader.problem:
            outcome.leave_out(path, reader.problem)


def load_av() -> Any:
    """Return PyAV. Raises DatasetError where it is not installed."""
    try:
        return importlib.import_module("av")
    except ImportError as error:
        raise DatasetError(f"extract/videos needs PyAV: {INSTALL}") from error


class VideoReader:
    """The chosen frames of a video; after them `problem` says what is wrong with it, "" for nothing."""

    def __init__(self, av: Any, path: Path, choice: FrameChoice) -> None:
        self.av, self.path, self.choice = av, path, choice
        self.problem = ""

    def __iter__(self) -> Iterator[Frame]:
        count = 0
        try:
            with self.av.open(str(self.path)) as container:
                if not container.streams.video:
                    self.problem = "it has no video stream"
                    return
                stream = container.streams.video[0]
                stream.thread_type = "AUTO"
                for frame in self._frames(container, stream):
                    yield frame
                    count += 1
        except (self.av.error.FFmpegError, OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or first_line(error)
            self.problem = f"it is damaged: {reason}; the {count} frames before are kept" if count else str(reason)
        if not count and not self.problem:
            self.problem = "no frame of it can be decoded"

    def _frames(self, container: Any, stream: Any) -> Iterator[Frame]:
        """Yield the chosen frames, upright."""
        size = stream.codec_context.width * stream.codec_context.height
        if size > MAX_PIXELS:
            raise ValueError(f"its frames have {size} pixels, more than {MAX_PIXELS}")
        frames, first_s, last_s, taken, index, time_s = container.decode(stream), None, None, 0, 0, 0.0
        while (frame := _next(str(self.path), frames)) is not None:
            if frame.is_corrupt:
                raise ValueError(f"frame {index} is damaged")
            seen_s = frame.time if frame.time is not None else index / float(stream.average_rate or 25)
            first_s = seen_s if first_s is None else first_s
            time_s = seen_s - first_s
            if self.choice.takes(index, time_s, last_s):
                yield Frame(_upright(frame), index, time_s)
                taken, last_s = taken + 1, time_s
                if taken == self.choice.num:
                    return
            index += 1
        self._check_length(stream, index, time_s)

    def _check_length(self, stream: Any, count: int, time_s: float) -> None:
        """Raise ValueError where the video is longer than its frames: FFmpeg ends a cut one without a word."""
        length_s = float(stream.duration * stream.time_base) if stream.duration and stream.time_base else 0.0
        rate = float(stream.average_rate or 0)
        reached_s = time_s + (1 / rate if rate else 0)
        if count and reached_s < LEAST_SHARE * length_s:
            raise ValueError(f"it ends after {reached_s:.3g} of {length_s:.3g} seconds")


@guarded
def _next(path: str, frames: Iterator[Any]) -> Any:
    """Return a video's next frame, None at its end; the guard watches that it comes."""
    return next(frames, None)


def _upright(frame: Any) -> Image.Image:
    """Return a frame as it is shown: PyAV's rotation is anticlockwise, as Pillow's."""
    image: Image.Image = frame.to_image()
    with suppress(AttributeError):
        turns = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}
        if turn := turns.get(round(frame.rotation) % 360):
            image = image.transpose(turn)
    return image


def _written(reader: VideoReader, path: str, name: str, target: Path, outcome: Outcome) -> Iterator[Record]:
    """Yield the records of a video's frames, which several threads write while the next are decoded."""
    waiting: deque[tuple[Future[None], Record]] = deque()
    choice = reader.choice
    ending = "jpg" if choice.is_jpeg else "png"
    stem = f"{name}/{Path(name).name}_{choice.word}_frame-"
    with ThreadPoolExecutor(THREADS) as pool:
        for frame in reader:
            image = shrunk(frame.image, choice.side_px)
            file = f"{stem}{frame.index}.{ending}"
            record: Record = {"image_file": file, "width": image.width, "height": image.height}
            record |= {"tag": path, "clip_tag": path, "timestamp": f"{frame.time_s:.6f}"}
            saving = pool.submit(save_image, image, target / file, is_jpeg=choice.is_jpeg, overwrite=outcome.overwrite)
            waiting.append((saving, record))
            while len(waiting) > 2 * THREADS:
                yield from _saved(*waiting.popleft(), outcome)
        for each in waiting:
            yield from _saved(*each, outcome)


def _saved(saving: Future[None], record: Record, outcome: Outcome) -> Iterator[Record]:
    """Yield the record of a frame once it is written; another file of its name is left alone."""
    try:
        saving.result()
    except FileExistsError as error:
        outcome.leave_out(record["image_file"], str(error.strerror))
    else:
        yield record
