"""extract/videos: frames by their time stamps, known by their grey; rotation, damage, names and sentences."""

import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_loader.decoding import decode
from datasets.videos import FrameChoice, folder_names
from tests.helpers.records import records_of
from tools import antgo
from tools.datasets import extract_videos


def write_video(path: Path, times_ms: list[int], rotation: int = 0, *, fast: bool = False) -> Path:
    """Write frame i, 64 x 48 in the grey 8 i + 20 with a white upper left corner, at its time."""
    av: Any = pytest.importorskip("av")
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"movflags": "faststart"} if fast else {}
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("mpeg4", rate=1000)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        stream.codec_context.qmin = stream.codec_context.qmax = 2
        stream.codec_context.gop_size = 4
        if rotation:
            stream.set_display_rotation(rotation)
        for index, time in enumerate(times_ms):
            pixels = np.full((48, 64, 3), 8 * index + 20, np.uint8)
            pixels[:16, :16] = 255
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def numbers(folder: Path, records: list[dict[str, Any]]) -> list[int]:
    """Return the frames' numbers by the grey of their lower right part."""
    greys = [np.asarray(decode(str(folder / record["image_file"])))[-16:, -16:].mean() for record in records]
    return [round((grey - 20) / 8) for grey in greys]


def extract(tmp_path: Path, *flags: str, code: int = 0) -> list[dict[str, Any]]:
    words = ["extract/videos", "--src", str(tmp_path / "clips"), "--tgt", str(tmp_path / "set"), "--overwrite", *flags]
    assert antgo.main(words) == code
    return records_of(tmp_path / "set")


UNEVEN = [0, 10, 20, 30, 140, 150, 200, 280, 290, 400, 450]  # ms


def test_frames_by_time(tmp_path: Path) -> None:
    write_video(tmp_path / "clips/día/a.mp4", UNEVEN)
    found = extract(tmp_path, "--frame-rate", "10")
    # the first frame at or after 0, 100, 200 and 300 ms; 400 ms is the same frame, and 450 none of the moments
    assert numbers(tmp_path / "set", found) == [0, 4, 6, 9]
    assert [record["image_file"] for record in found][:2] == [
        *("día/a/a_rate-10_frame-0.png", "día/a/a_rate-10_frame-4.png"),
    ]
    assert [float(record["timestamp"]) for record in found] == [0, 0.14, 0.2, 0.4]
    assert {record["clip_tag"] for record in found} == {"día/a.mp4"} == {record["tag"] for record in found}
    assert {(record["width"], record["height"]) for record in found} == {(64, 48)}
    first = (tmp_path / "set/annotation.json").read_bytes()
    extract(tmp_path, "--frame-rate", "10")
    assert (tmp_path / "set/annotation.json").read_bytes() == first


def test_never_more_frames_than_there_are(tmp_path: Path) -> None:
    write_video(tmp_path / "clips/a.mp4", UNEVEN)
    assert numbers(tmp_path / "set", extract(tmp_path, "--frame-rate", "1000")) == list(range(11))


def test_each_kth_and_at_most_so_many(tmp_path: Path) -> None:
    write_video(tmp_path / "clips/a.mp4", UNEVEN)
    found = extract(tmp_path, "--every=3", "--max-size", "32", "--format", "jpg")
    assert numbers(tmp_path / "set", found) == [0, 3, 6, 9]
    assert found[1]["image_file"] == "a/a_every-3_frame-3.jpg" and (found[1]["width"], found[1]["height"]) == (32, 24)
    assert numbers(tmp_path / "set", extract(tmp_path, "--every", "3", "--num", "2")) == [0, 3]


@pytest.mark.parametrize(("rotation", "corner"), [(90, (-1, 0)), (180, (-1, -1)), (-90, (0, -1))])
def test_rotation_is_applied(tmp_path: Path, rotation: int, corner: tuple[int, int]) -> None:
    """The white upper left corner comes, turned anticlockwise, to the lower left, lower right or upper right."""
    write_video(tmp_path / "clips/a.mp4", [0, 100], rotation)
    (record, _) = extract(tmp_path)
    assert (record["width"], record["height"]) == ((64, 48) if rotation == 180 else (48, 64))
    pixels = np.asarray(decode(str(tmp_path / "set" / record["image_file"])).convert("L"))
    whites = {(y, x): pixels[y, x] > 200 for y in (0, -1) for x in (0, -1)}
    assert [place for place, white in whites.items() if white] == [corner]


def test_videos_of_one_name_have_their_own_folders(tmp_path: Path) -> None:
    for name in ("a.b.mp4", "a.b.avi", "a.c.mp4"):
        write_video(tmp_path / "clips" / name, [0, 100])
    folders = {Path(record["image_file"]).parent.name for record in extract(tmp_path)}
    assert folders == {"a.b.mp4", "a.b.avi", "a.c"}
    assert folder_names(["x/a.mp4", "y/a.mp4"]) == {"x/a.mp4": "x/a", "y/a.mp4": "y/a"}


def test_another_file_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    video = write_video(tmp_path / "a.mp4", [0, 100, 200])
    words = ["extract/videos", "--src", str(video), "--every", "1", "--tgt"]
    assert antgo.main([*words, str(tmp_path)]) == 2
    assert "it is the source's folder" in capsys.readouterr().err
    other = tmp_path / "set/a/a_every-1_frame-1.png"
    other.parent.mkdir(parents=True)
    other.write_bytes(b"somebody's")
    assert antgo.main([*words, str(tmp_path / "set")]) == 1
    assert "left out: a/a_every-1_frame-1.png: another file of this name is there" in capsys.readouterr().err
    assert other.read_bytes() == b"somebody's"
    assert numbers(tmp_path / "set", records_of(tmp_path / "set")) == [0, 2]


def test_a_cut_video_gives_what_came_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = write_video(tmp_path / "clips/whole.mp4", [40 * i for i in range(24)], fast=True)
    data = whole.read_bytes()
    cut = data.index(b"mdat") + (len(data) - data.index(b"mdat")) // 2
    (tmp_path / "clips/cut.mp4").write_bytes(data[:cut])
    (tmp_path / "clips/text.avi").write_text("no video")
    found = extract(tmp_path, "--every", "1", code=1)
    counts = {clip: len([r for r in found if r["clip_tag"] == clip]) for clip in ("cut.mp4", "whole.mp4", "text.avi")}
    assert counts["whole.mp4"] == 24 and 4 < counts["cut.mp4"] < 20 and not counts["text.avi"]
    assert numbers(tmp_path / "set", found)[: counts["cut.mp4"]] == list(range(counts["cut.mp4"]))
    errors = capsys.readouterr().err
    assert (
        "left out: cut.mp4: it is damaged: " in errors and f"the {counts['cut.mp4']} frames before are kept" in errors
    )
    assert "left out: text.avi: " in errors and "2 left out" in errors


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--frame-rate", "15", "--every", "15"], "name one of them"),
        (["--frame-rate", "0"], "--frame-rate must be above 0, got 0"),
        (["--every", "0"], "--every must be above 0, got 0"),
        (["--max-size", "8"], "--max-size must be 0 or at least 16"),
        ([], "no video in it or below it"),
        (["--src", "nothing"], "it is not there"),
    ],
)
def test_mistakes(tmp_path: Path, flags: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "clips").mkdir()
    words = ["extract/videos", "--src", str(tmp_path / "clips"), "--tgt", str(tmp_path / "set"), *flags]
    assert antgo.main(words) == 2
    assert sentence in capsys.readouterr().err and not (tmp_path / "set").exists()


def test_without_pyav(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.mp4").write_text("")
    monkeypatch.setitem(sys.modules, "av", None)
    assert extract_videos.main(["--src", str(tmp_path / "a.mp4"), "--tgt", str(tmp_path / "set")]) == 2
    assert "extract/videos needs PyAV: pip install -r requirements-video.txt" in capsys.readouterr().err


def test_moments() -> None:
    """15 frames a second of 50 frames in 2.3 s: one for each moment 0, 1/15, ...; a gap is not made up for."""
    choice = FrameChoice(15.0)

    def taken(times_s: list[float]) -> list[float]:
        last: list[float] = []
        for index, time_s in enumerate(times_s):
            if choice.takes(index, time_s, last[-1] if last else None):
                last.append(time_s)
        return last

    assert len(taken([index * 2.3 / 49 for index in range(50)])) == 35  # moments 0 to 34/15 s = 2.27 s
    assert taken([0.0, 10.0, 10.02, 10.04, 10.08]) == [0.0, 10.0, 10.08]
    assert taken([index / 15 for index in range(300)]) == [index / 15 for index in range(300)]
