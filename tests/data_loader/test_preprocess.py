"""The decoder and the preprocessing, against numpy formulas, the EXIF and CIE definitions and hand-made files."""

import io
import os
import struct
import sys
import tracemalloc
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, features

from data_loader.decoding import decode
from data_loader.image_files import IMAGE_SUFFIXES
from data_loader.preprocess import ImageError, Preprocess, as_array
from tests.helpers.images import png_header

ORIENTATION_TAG = 0x0112
# What the EXIF standard (CIPA DC-008, 4.6.4) says row 0 and column 0 are, undone.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pixels(source: bytes | str | Path, channels: int = 3) -> np.ndarray:
    return as_array(decode(source, channels))


def assert_near(got: np.ndarray, expected: np.ndarray, tolerance: int = 1) -> None:
    assert got.dtype == np.uint8
    assert got.shape == expected.shape
    assert np.abs(got.astype(float) - expected).max() <= tolerance


# --- what a file may hold


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied(orientation: int, kind: str) -> None:
    stored = noise(3, 5, 3)
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = orientation
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    data = saved(Image.fromarray(stored), kind, exif=exif, **options)
    np.testing.assert_array_equal(pixels(data), UPRIGHT[orientation](stored))


@pytest.mark.parametrize("is_bytes", [False, True])
def test_a_jpeg_is_decoded_once_and_not_copied(is_bytes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy doubles the memory of a large one; without it the image still needs its file no more."""
    path = tmp_path / "a.jpg"
    Image.linear_gradient("L").convert("RGB").save(path)
    wanted = np.asarray(Image.open(path))
    monkeypatch.setattr(Image.Image, "copy", lambda image: pytest.fail("a copy"))
    image = decode(path.read_bytes() if is_bytes else path)
    path.unlink()
    np.testing.assert_array_equal(np.asarray(image), wanted)
    assert image.resize((8, 8)).size == (8, 8) and getattr(image, "fp", None) is None


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_of_a_jpeg(orientation: int) -> None:
    stored = np.zeros((16, 32, 3), np.uint8)
    stored[:8, :16] = 255  # JPEG loses little on whole blocks
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = orientation
    data = saved(Image.fromarray(stored), "JPEG", exif=exif, quality=95)
    assert_near(pixels(data), UPRIGHT[orientation](stored), 3)


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0",
        b"Exif\0\0II*\0",
        b"Exif\0\0garbage garbage",
        b"Exif\0\0II*\0\xff\xff\xff\x7f",
        b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01\x03\0\x01\0\0\0\x06",
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x03\0\0\0abc\0\0\0\0\0",  # a text as orientation
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x63\0\0\0\0\0\0",  # orientation 99
    ],
)
def test_broken_exif_leaves_the_image_as_stored(exif: bytes) -> None:
    stored = np.full((8, 16, 3), 200, np.uint8)
    assert_near(pixels(saved(Image.fromarray(stored), "JPEG", exif=exif)), stored, 2)


def test_greyscale_is_spread_over_three_channels() -> None:
    stored = noise(4, 6)
    np.testing.assert_array_equal(pixels(saved(Image.fromarray(stored), "PNG")), np.stack([stored] * 3, axis=2))


def test_one_channel_is_the_luma_of_bt601() -> None:
    stored = noise(4, 6, 3)
    luma = stored.astype(float) @ [0.299, 0.587, 0.114]
    assert_near(pixels(saved(Image.fromarray(stored), "PNG"), 1), luma[:, :, None])


def test_cmyk() -> None:
    stored = noise(4, 6, 4)
    ink = stored.astype(float) / 255
    expected = 255 * (1 - ink[:, :, :3]) * (1 - ink[:, :, 3:])
    assert_near(pixels(saved(Image.fromarray(stored, "CMYK"), "TIFF")), expected)


def test_cmyk_jpeg_is_not_inverted() -> None:
    magenta = np.zeros((16, 16, 4), np.uint8)
    magenta[:, :, 1] = 255
    got = pixels(saved(Image.fromarray(magenta, "CMYK"), "JPEG", quality=95))
    assert_near(got, np.broadcast_to([255, 0, 255], (16, 16, 3)), 4)


def palette_image(indices: np.ndarray, colours: np.ndarray) -> Image.Image:
    image = Image.fromarray(indices, "L")
    image = image.convert("P")
    image.putdata(indices.reshape(-1).tolist())
    image.putpalette(colours.reshape(-1).tobytes())
    return image


def test_palette() -> None:
    colours, indices = noise(8, 3), noise(5, 7) % 8
    np.testing.assert_array_equal(pixels(saved(palette_image(indices, colours), "PNG")), colours[indices])


@pytest.mark.parametrize("transparency", [bytes([0, 60, 128, 255, 200]), 3], ids=["a byte a colour", "one colour"])
def test_palette_with_transparency_lies_on_white(transparency: bytes | int) -> None:
    colours, indices = noise(8, 3), noise(5, 7) % 8
    alpha = np.full(8, 255.0)
    if isinstance(transparency, int):
        alpha[transparency] = 0
    else:
        alpha[: len(transparency)] = list(transparency)
    on_white = colours * (alpha / 255)[:, None] + 255 * (1 - alpha / 255)[:, None]
    data = saved(palette_image(indices, colours), "PNG", transparency=transparency)
    assert_near(pixels(data), on_white[indices])


def test_grey_with_alpha_lies_on_white() -> None:
    stored = noise(4, 6, 2)
    alpha = stored[:, :, 1:].astype(float) / 255
    expected = stored[:, :, :1] * alpha + 255 * (1 - alpha)
    data = saved(Image.fromarray(stored, "LA"), "PNG")
    assert_near(pixels(data), np.repeat(expected, 3, axis=2))
    assert_near(pixels(data, 1), expected)


def test_rgba_lies_on_white() -> None:
    stored = noise(4, 6, 4)
    alpha = stored[:, :, 3:].astype(float) / 255
    assert_near(pixels(saved(Image.fromarray(stored), "PNG")), stored[:, :, :3] * alpha + 255 * (1 - alpha))


def test_rgb_with_a_transparent_colour_lies_on_white() -> None:
    stored = np.array([[[1, 2, 3], [9, 9, 9]]], np.uint8)
    data = saved(Image.fromarray(stored), "PNG", transparency=(1, 2, 3))
    np.testing.assert_array_equal(pixels(data), [[[255, 255, 255], [9, 9, 9]]])


def test_one_bit() -> None:
    bits = noise(5, 9) > 127
    data = saved(Image.fromarray(bits), "PNG")
    np.testing.assert_array_equal(pixels(data, 1)[:, :, 0], np.where(bits, 255, 0))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_is_scaled_not_clipped(kind: str) -> None:
    stored = np.array([[0, 257, 257 * 100, 30000, 65535]], np.uint16)
    got = pixels(saved(Image.fromarray(stored), kind), 1)[:, :, 0]
    np.testing.assert_array_equal(got, [[0, 1, 100, 117, 255]])  # 30000 / 257 = 116.7


def test_16_bit_big_endian_tiff() -> None:
    image = Image.frombytes("I;16B", (3, 1), np.array([0, 25700, 65535], ">u2").tobytes())
    np.testing.assert_array_equal(pixels(saved(image, "TIFF"), 1)[:, :, 0], [[0, 100, 255]])


def test_16_bit_colour_png() -> None:
    stored = np.array([[[0, 25700, 65535], [300, 40000, 1]]], ">u2")
    rows = b"\0" + stored.tobytes()

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    assert_near(pixels(data), stored / 257)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 100.4, 255.0], [0, 100, 255]),
        ([-3.0, 300.0, float("nan")], [0, 255, 0]),
        ([float("inf"), float("-inf"), 7.0], [255, 0, 7]),
    ],
)
def test_float_tiff(values: list[float], expected: list[int]) -> None:
    data = saved(Image.fromarray(np.array([values], np.float32)), "TIFF")
    np.testing.assert_array_equal(pixels(data, 1)[:, :, 0], [expected])


def lab_to_srgb(lab: np.ndarray) -> np.ndarray:
    """CIE 15 and IEC 61966-2-1: L*a*b* (D50) -> XYZ -> linear sRGB (Bradford-adapted matrix) -> sRGB 0..255."""
    light, a, b = lab
    fy = (light + 16) / 116
    f = np.array([fy + a / 500, fy, fy - b / 200])
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * [0.96422, 1.0, 0.82521]
    linear = np.clip(
        np.array(
            [
                [3.1338561, -1.6168667, -0.4906146],
                [-0.9787684, 1.9161415, 0.0334540],
                [0.0719453, -0.2289914, 1.4052427],
            ]
        )
        @ xyz,
        0,
        1,
    )
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("lab", [(0, 0, 0), (100, 0, 0), (50, 0, 0), (60, 30, -20), (40, -20, 30)])
def test_lab_tiff(lab: tuple[int, int, int]) -> None:
    light, a, b = lab
    image = Image.frombytes("LAB", (1, 1), bytes([round(light * 2.55), a & 255, b & 255]))
    assert_near(pixels(saved(image, "TIFF"))[0, 0], lab_to_srgb(np.array(lab, float)), 3)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_frame_counts(kind: str) -> None:
    red, blue = Image.new("RGB", (8, 6), (255, 0, 0)), Image.new("RGB", (8, 6), (0, 0, 255))
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    data = saved(red, kind, save_all=True, append_images=[blue], **options)
    np.testing.assert_array_equal(pixels(data), np.broadcast_to([255, 0, 0], (6, 8, 3)))


@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
def test_every_ending_that_a_folder_is_searched_for_can_be_decoded(suffix: str, tmp_path: Path) -> None:
    kind = Image.registered_extensions()[suffix]
    codec = {"AVIF": "avif", "JPEG2000": "jpg_2000", "WEBP": "webp"}.get(kind)
    if codec and not features.check(codec):
        pytest.skip(f"this Pillow was built without {codec}")
    mode = {".pgm": "L", ".pbm": "1"}.get(suffix, "RGB")
    Image.new("RGB", (16, 12), (200, 200, 200)).convert(mode).save(tmp_path / f"x{suffix}", kind)
    assert pixels(tmp_path / f"x{suffix}").shape == (12, 16, 3)


def test_bytes_path_and_text_give_the_same(tmp_path: Path) -> None:
    file = tmp_path / "图 片.png"
    Image.fromarray(noise(5, 4, 3)).save(file)
    np.testing.assert_array_equal(pixels(file), pixels(file.read_bytes()))
    np.testing.assert_array_equal(pixels(file), pixels(str(file)))


def test_the_ending_does_not_decide_the_format(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(saved(Image.fromarray(noise(5, 4, 3)), "PNG"))
    np.testing.assert_array_equal(pixels(tmp_path / "x.jpg"), noise(5, 4, 3))


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "CMYK"])
def test_the_image_outlives_its_file(mode: str, tmp_path: Path) -> None:
    kind = "TIFF" if mode == "CMYK" else "PNG"
    Image.new(mode, (4, 4)).save(tmp_path / "x", kind)
    image = decode(tmp_path / "x")
    (tmp_path / "x").unlink()
    assert np.asarray(image.resize((2, 2))).shape == (2, 2, 3)


def test_decoding_in_threads_leaves_the_warning_filters_alone(tmp_path: Path) -> None:
    file = tmp_path / "x.jpg"
    Image.fromarray(noise(200, 200, 3)).save(file)
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: decode(file), range(500)))
    assert list(warnings.filters) == before


# --- what cannot be used


def test_errors_say_why(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("not an image")
    (tmp_path / "folder.jpg").mkdir()
    whole = saved(Image.fromarray(noise(64, 64, 3)), "PNG")
    jpeg = saved(Image.fromarray(noise(64, 64, 3)), "JPEG")
    cases: list[tuple[Any, str]] = [
        (tmp_path / "empty.jpg", r"^it is empty \(0 bytes\)$"),
        (b"", r"^it is empty \(0 bytes\)$"),
        (tmp_path / "text.jpg", r"^it is not an image of a known format \(JPEG, .*PNG, "),
        (b"not an image", r"^it is not an image of a known format"),
        (tmp_path / "folder.jpg", r"^it is a folder$"),
        (tmp_path / "none.jpg", r"^no such file$"),
        (whole[:200], r"^it is damaged: "),
        (jpeg[: len(jpeg) // 2], r"^it is damaged: image file is truncated"),
        (whole[:60] + b"\0\0\0\0" + whole[64:], r"^it is damaged: "),
    ]
    for source, text in cases:
        with pytest.raises(ImageError, match=text):
            decode(source)


@pytest.mark.parametrize(
    ("data", "kind", "package"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200), "HEIF", "pillow_heif"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(200), "JXL", "pillow_jxl"),
        (b"\xff\x0a" + bytes(200), "JXL", "pillow_jxl"),
    ],
)
def test_formats_of_an_extra(data: bytes, kind: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # as where it is not installed
    reason = f"^it is a {kind} image, which needs {package}: pip install -r requirements-heic.txt$"
    with pytest.raises(ImageError, match=reason):
        decode(data)


@pytest.mark.parametrize(
    ("kind", "package", "options"),
    [("HEIF", "pillow_heif", {"quality": 95}), ("JXL", "pillow_jxl", {"lossless": True})],
)
def test_formats_of_an_extra_that_is_installed(
    kind: str, package: str, options: dict[str, Any], tmp_path: Path
) -> None:
    extra = pytest.importorskip(package, reason=f"{package} is not installed: requirements-heic.txt")
    getattr(extra, "register_heif_opener", bool)()  # to write it, too
    stored = np.zeros((40, 64, 3), np.uint8)
    stored[:20] = 200, 30, 40
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = 6
    file = tmp_path / "x.jpg"
    Image.fromarray(stored).save(file, kind, exif=exif.tobytes(), **options)
    assert_near(pixels(file), UPRIGHT[6](stored), 4)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with a name")
def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "link.jpg").symlink_to("pipe.jpg")
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    for name in ("pipe.jpg", "link.jpg", "zero.jpg"):
        with pytest.raises(ImageError, match=r"^it is no regular file, but a pipe, socket or device$"):
            decode(tmp_path / name)


def test_a_image_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Image, "open", refuse)
    (tmp_path / "x.jpg").touch()
    with pytest.raises(ImageError, match=r"^no permission to read it$"):
        decode(tmp_path / "x.jpg")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "GIF", "BMP", "JPEG2000"])
def test_damage_anywhere_gives_a_image_or_a_image_error(kind: str) -> None:
    data = saved(Image.fromarray(noise(20, 20, 3)), kind)
    generator = np.random.default_rng(7)
    for _ in range(60):
        broken = bytearray(data[: generator.integers(1, len(data) + 1)])
        for position in generator.integers(0, len(broken), 3):
            broken[position] = generator.integers(0, 256)
        try:
            assert decode(bytes(broken), max_pixels=1_000_000).mode == "RGB"
        except ImageError as error:
            assert str(error)


@pytest.mark.parametrize(
    ("side", "text"),
    [
        (60000, r"^it has more pixels than max_pixels \(64000000\) allows$"),  # beyond Pillow's own limit too
        (10000, r"^10000x10000 is more than max_pixels \(64000000\) allows$"),  # where Pillow only warns
        (8100, r"^8100x8100 is more than max_pixels \(64000000\) allows$"),
    ],
)
def test_the_pixel_cap_is_checked_before_a_pixel_is_decoded(side: int, text: str) -> None:
    tracemalloc.start()
    with pytest.raises(ImageError, match=text):
        decode(png_header(side, side))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000


def test_the_pixel_cap_itself_is_allowed() -> None:
    data = saved(Image.fromarray(noise(4, 5, 3)), "PNG")
    assert decode(data, max_pixels=20).size == (5, 4)
    with pytest.raises(ImageError, match=r"^5x4 is more than max_pixels \(19\) allows$"):
        decode(data, max_pixels=19)


# --- Preprocess


@pytest.mark.parametrize("resize", ["squash", "letterbox", "crop"])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(1, 1), (7, 50), (50, 7), (32, 24)])
def test_every_size_becomes_the_nets(resize: str, interpolation: str, channels: int, size: tuple[int, int]) -> None:
    preprocess = Preprocess(32, 24, channels, resize, interpolation)
    batch = preprocess(noise(*size, channels))
    assert batch.dtype == np.float32
    assert batch.shape == (channels, 32, 24)
    assert np.isfinite(batch).all()


def fitted(resize: str, image: np.ndarray) -> np.ndarray:
    return Preprocess(32, 32, resize=resize, interpolation="nearest").fit(Image.fromarray(image))


def test_squash_stretches() -> None:
    image = np.zeros((16, 64, 3), np.uint8)
    image[:, 32:] = 255
    expected = np.zeros((32, 32, 3), np.uint8)
    expected[:, 16:] = 255
    np.testing.assert_array_equal(fitted("squash", image), expected)


def test_letterbox_pads_with_black_in_the_middle() -> None:
    expected = np.zeros((32, 32, 3), np.uint8)
    expected[8:24] = 255
    np.testing.assert_array_equal(fitted("letterbox", np.full((20, 40, 3), 255, np.uint8)), expected)
    np.testing.assert_array_equal(fitted("letterbox", np.full((40, 20, 3), 255, np.uint8)), expected.swapaxes(0, 1))


def test_crop_covers_and_cuts_the_middle_out() -> None:
    image = np.zeros((16, 64, 3), np.uint8)
    image[:, 24:40] = 255  # the middle square
    np.testing.assert_array_equal(fitted("crop", image), np.full((32, 32, 3), 255))


def test_a_image_of_the_right_size_is_not_resampled() -> None:
    image = noise(32, 32, 3)
    for interpolation in ("nearest", "bilinear", "bicubic", "lanczos"):
        fit = Preprocess(32, 32, interpolation=interpolation).fit(Image.fromarray(image))
        np.testing.assert_array_equal(fit, image)


@pytest.mark.parametrize("channels", [1, 3])
def test_values_are_normalised_as_torchvision_does(channels: int) -> None:
    preprocess = Preprocess(16, 16, channels)
    mean, std = {1: ([0.449], [0.226]), 3: ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])}[channels]
    image = np.stack([np.arange(256, dtype=np.uint8).reshape(16, 16)] * channels, axis=2)
    expected = (image / 255 - mean) / std
    np.testing.assert_allclose(preprocess(image), expected.transpose(2, 0, 1), atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mean_std", [(0.449, 0.226), (0.0, 1.0), (0.1234567, 0.7654321)])
def test_a_batch_is_normalised_to_the_same_bits(channels: int, mean_std: tuple[float, float]) -> None:
    mean, std = mean_std
    preprocess = Preprocess(16, 16, channels, mean=(mean,) * channels, std=(std,) * channels)
    images = [np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(channels, 2), noise(16, 16, channels)]
    one_by_one = np.stack([preprocess(image) for image in images])
    batch = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)  # (N, C, H, W)
    for layout in (batch, batch.contiguous(), batch.contiguous(memory_format=torch.channels_last)):
        got = preprocess.normalize(layout)
        assert got.dtype == torch.float32
        assert got.numpy().tobytes() == one_by_one.tobytes() or np.array_equal(got.numpy(), one_by_one)
    np.testing.assert_array_equal(preprocess.denormalize(preprocess.normalize(batch)).numpy(), np.stack(images))


@pytest.mark.parametrize("channels", [1, 3])
def test_it_survives_being_written_down(channels: int) -> None:
    preprocess = Preprocess(20, 30, channels, "letterbox", "lanczos", max_pixels=1234)
    assert Preprocess.from_dict(preprocess.to_dict()) == preprocess


def test_its_decoder_has_its_channels_and_its_pixel_cap() -> None:
    data = saved(Image.fromarray(noise(4, 5, 3)), "PNG")
    assert Preprocess(8, 8, 1).decode(data).mode == "L"
    with pytest.raises(ImageError, match=r"max_pixels \(10\)"):
        Preprocess(8, 8, max_pixels=10).decode(data)


@pytest.mark.parametrize(
    ("image", "text"),
    [
        (np.zeros((4, 4, 3), np.float32), r"expected uint8 \(H, W, 3\) with pixels, got float32 \(4, 4, 3\)"),
        (np.zeros((4, 4), np.uint8), r"got uint8 \(4, 4\)"),
        (np.zeros((4, 4, 1), np.uint8), r"got uint8 \(4, 4, 1\)"),
        (np.zeros((0, 4, 3), np.uint8), r"got uint8 \(0, 4, 3\)"),
    ],
)
def test_other_arrays_are_refused(image: np.ndarray, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Preprocess(8, 8)(image)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"resize": "stretch"}, 'resize must be squash, letterbox or crop, got "stretch"'),
        ({"interpolation": "area"}, "interpolation must be one of nearest, bilinear, bicubic, lanczos"),
        ({"channels": 65}, "channels must be 1 to 64"),
        ({"mean": (0.5,)}, "as many means and stds"),
    ],
)
def test_wrong_settings_are_refused(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Preprocess(**{"height": 8, "width": 8, **changes})
