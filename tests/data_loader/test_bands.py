"""Images of bands: their values by hand, each band as an image of its own, and what cannot be read."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors

from data_loader.augment import AugmentSettings, BandJitter, TrainingView, seeded
from data_loader.band_image import BandImage, as_array, gaps_of, image_of
from data_loader.bands import Bands, band_image_size, band_kind, read_bands, read_values, scaled
from data_loader.cache import Fitting
from data_loader.decoder_process import DecoderPool
from data_loader.errors import ImageError
from data_loader.joint_view import JointView
from data_loader.mask_classes import VOID
from data_loader.preprocess import Preprocess

NUMBERS = np.random.default_rng(0)
FOUR = ((0.0, 255.0), (0.0, 255.0), (0.0, 255.0), (10.0, 110.0))


@pytest.fixture
def rasterio() -> Any:
    return pytest.importorskip("rasterio", reason="needs requirements-geo.txt")


def write_tiff(rasterio: Any, path: Path, bands: np.ndarray, **changes: Any) -> Path:
    """Write bands (B, H, W) as a TIFF."""
    form = {"driver": "GTiff", "dtype": bands.dtype, "count": len(bands), "crs": "EPSG:32640"}
    place = rasterio.Affine(0.5, 0, 3e5, 0, -0.5, 2.8e6)
    with rasterio.open(
        path, "w", width=bands.shape[2], height=bands.shape[1], transform=place, **form | changes
    ) as file:
        file.write(bands)
    return path


def rgba(path: Path, size: tuple[int, int] = (9, 7)) -> np.ndarray:
    """Write four bands of 8 bits by Pillow, and return them (H, W, 4)."""
    pixels = NUMBERS.integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def band_image(count: int, width: int = 30, height: int = 20) -> BandImage:
    image = image_of(NUMBERS.integers(0, 256, (height, width, count), dtype=np.uint8))
    assert isinstance(image, BandImage)
    return image


def test_values_are_scaled_by_each_bands_range() -> None:
    values = np.array([[[0, 100, 300, 501, 900, 1100]], [[-50, 0, 25, 51, 75, 1e30]]], np.float64)
    found = scaled(Bands(values, None), ((100, 900), (0, 100)), (7, 9))
    # 255 * (300 - 100) / 800 = 63.75, (501 - 100) / 800 * 255 = 127.8; 63.75, 130.05 and 191.25
    assert found.tolist() == [[[0, 0, 64, 128, 255, 255]], [[0, 0, 64, 130, 191, 255]]]
    gaps = np.array([[False, True, False, False, False, False]])
    values[0, 0, 1] = np.nan
    assert scaled(Bands(values, gaps), ((100, 900), (0, 100)), (7, 9))[:, 0, 1].tolist() == [7, 9]


@pytest.mark.parametrize("ending", ["tif", "png"])
def test_a_fourth_band_is_no_transparency(tmp_path: Path, ending: str) -> None:
    pixels = rgba(tmp_path / f"a.{ending}")
    preprocess = Preprocess(7, 9, channels=4, band_range=FOUR, band_type="uint8")
    decoded = as_array(preprocess.decode(str(tmp_path / f"a.{ending}")))
    assert np.array_equal(decoded[:, :, :3], pixels[:, :, :3])
    wanted = np.rint((np.clip(pixels[:, :, 3].astype(float), 10, 110) - 10) * 2.55)
    assert np.array_equal(decoded[:, :, 3], wanted)
    assert np.array_equal(preprocess.show(str(tmp_path / f"a.{ending}")), pixels[:, :, :3])
    assert band_image_size(str(tmp_path / f"a.{ending}")) == ((9, 7), (9, 7), 1)
    data = (tmp_path / f"a.{ending}").read_bytes()
    assert np.array_equal(as_array(preprocess.decode(data)), decoded)


def test_other_bands_and_types_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rgba(tmp_path / "four.png")
    Image.fromarray(NUMBERS.integers(0, 9, (5, 5, 3), dtype=np.uint8)).save(tmp_path / "three.jpg")
    Image.fromarray(NUMBERS.integers(0, 9, (5, 5), dtype=np.uint8)).convert("P").save(tmp_path / "palette.png")
    Image.fromarray(NUMBERS.integers(0, 999, (5, 5)).astype(np.uint16)).save(tmp_path / "deep.tif")
    (tmp_path / "empty.tif").write_bytes(b"")
    preprocess = Preprocess(8, 8, channels=4)
    monkeypatch.setattr("data_loader.bands.has_rasterio", lambda: False)
    for name, text in (
        ("three.jpg", "it has 3 bands of uint8, and 4 bands of uint8 are needed"),
        ("palette.png", "an image of mode P has no bands of its own; save it as TIFF"),
        ("deep.tif", "it is a TIFF that only rasterio reads: pip install -r requirements-geo.txt"),
        ("empty.tif", "it is empty (0 bytes)"),
        ("gone.tif", "no such file"),
    ):
        with pytest.raises(ImageError) as raised:
            preprocess.decode(str(tmp_path / name))
        assert str(raised.value) == text
    with pytest.raises(ImageError, match="it has 4 bands of uint8, and 4 bands of uint16 are needed"):
        read_bands(str(tmp_path / "four.png"), FOUR, (0,) * 4, "uint16")
    with pytest.raises(ImageError, match=r"9x7 is more than max_pixels \(62\) allows"):
        read_values(str(tmp_path / "four.png"), 62)


@pytest.mark.parametrize("resize", ["squash", "letterbox", "crop"])
def test_each_band_is_fitted_as_a_grey_image_is(resize: str) -> None:
    image = band_image(6)
    fitted = Preprocess(12, 16, channels=6, resize=resize).fit(image)
    grey = Preprocess(12, 16, channels=1, resize=resize)
    assert np.array_equal(fitted, np.concatenate([grey.fit(plane) for plane in image.planes], axis=2))


@pytest.mark.parametrize("resize", ["squash", "letterbox"])
def test_views_move_every_band_alike(resize: str) -> None:
    """Without colours a view of bands is that of each band as a grey image, and the mask's."""
    settings = AugmentSettings(
        random_crop_scale=(0.3, 0.9), horizontal_flip=0.5, vertical_flip=0.5, quarter_turns=True, balanced_crops=0.5
    )
    image, mask = band_image(5), Image.fromarray(NUMBERS.integers(0, 3, (20, 30), dtype=np.uint8))
    joint, grey = (JointView(Preprocess(16, 16, count, resize=resize), settings) for count in (5, 1))
    plain, plain_grey = (TrainingView(Preprocess(16, 16, count, resize=resize), settings) for count in (5, 1))
    for index in range(8):
        with seeded(0, index):
            pixels, labels = joint([image], mask)
        for band, plane in enumerate(image.planes):
            with seeded(0, index):
                of_band, of_mask = grey([plane], mask)
            assert np.array_equal(pixels[:, :, band], of_band[:, :, 0]) and np.array_equal(labels, of_mask)
        with seeded(1, index):
            turned = plain(image)
        with seeded(1, index):
            assert np.array_equal(turned[:, :, 3], plain_grey(image.planes[3])[:, :, 0])


def test_rotation_and_blur_are_not_left_out() -> None:
    settings = AugmentSettings(rotation_degrees=40, gaussian_blur=1.0)
    image, mask = band_image(4), Image.fromarray(np.zeros((20, 30), np.uint8))
    with seeded(3):
        pixels, labels = JointView(Preprocess(32, 32, 4), settings)([image], mask)
    beside = labels == VOID
    assert beside.any() and not beside.all() and (pixels[beside].max(axis=1) == 0).mean() > 0.5
    assert pixels[~beside].std() < as_array(image).std()


def test_jitter_has_one_factor_for_all_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    factors = iter([1.2, 0.5])
    monkeypatch.setattr(torch.Tensor, "uniform_", lambda self, low, high: torch.tensor(next(factors)))
    image = NUMBERS.integers(0, 120, (5, 4, 6), dtype=np.uint8)
    found = BandJitter(0.3, 0.6)(tv_tensors.Image(torch.from_numpy(image)))
    bright = image * 1.2
    mean = bright.mean(axis=(1, 2), keepdims=True)
    assert np.abs(found.numpy() - ((bright - mean) * 0.5 + mean)).max() <= 0.51


def test_one_or_three_bands_are_plain_images() -> None:
    planes = band_image(4).planes
    gaps = NUMBERS.integers(0, 2, (20, 30)).astype(bool)
    for count, mode in ((1, "L"), (3, "RGB")):
        plain = BandImage(planes[:count], gaps).plain()
        assert isinstance(plain, Image.Image) and plain.mode == mode
        assert np.array_equal(gaps_of([plain]), gaps)
    assert gaps_of([planes[0], BandImage(planes)]) is None  # nothing was written into the bands
    both = gaps_of([BandImage(planes, gaps), BandImage(planes, ~gaps)])
    assert both is not None and both.all()


def test_what_metadata_hold() -> None:
    preprocess = Preprocess(8, 8, channels=4, band_range=FOUR, band_type="uint16", mean=(0.5,) * 4, std=(0.2,) * 4)
    assert Preprocess.from_dict(preprocess.to_dict()) == preprocess
    assert preprocess.fill == (128,) * 4
    assert not {"band_range", "band_type"} & set(Preprocess(8, 8).to_dict())  # as in files before there were bands
    assert Fitting(preprocess).pixel_settings() != Fitting(Preprocess(8, 8, channels=4)).pixel_settings()
    for limits in ([[0, 1]] * 3, [[0, 0]] * 4, [[0, float("nan")]] * 4):
        with pytest.raises(ValueError, match="band_range"):
            Preprocess.from_dict(preprocess.to_dict() | {"band_range": limits})


def test_pixels_without_data(rasterio: Any, tmp_path: Path) -> None:
    bands = NUMBERS.integers(1, 4000, (6, 40, 33)).astype(np.uint16)
    bands[:, :4] = 0
    bands[2, 30, 5] = 0  # in one band alone
    tiles = {"tiled": True, "blockxsize": 16, "blockysize": 16, "interleave": "band", "compress": "lzw"}
    path = write_tiff(rasterio, tmp_path / "a.tif", bands, nodata=0, **tiles)
    mean = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
    ranges = tuple((0.0, 4000.0 + band) for band in range(6))
    preprocess = Preprocess(20, 20, channels=6, mean=mean, std=(1,) * 6, band_range=ranges, band_type="uint16")
    decoded = preprocess.decode(str(path))
    gaps = gaps_of([decoded])
    assert gaps is not None and gaps[:4].all() and gaps[30, 5] and gaps.sum() == 4 * 33 + 1
    pixels = as_array(decoded)
    assert pixels[0, 0].tolist() == pixels[30, 5].tolist() == [26, 51, 76, 102, 128, 153]
    wanted = np.rint(bands[:, 4:] * (255 / np.array([limits[1] for limits in ranges]))[:, None, None])
    seen = ~gaps[4:]
    assert np.array_equal(pixels[4:][seen], np.moveaxis(wanted, 0, 2)[seen])
    assert np.array_equal(as_array(preprocess.decode(path.read_bytes())), pixels)
    assert band_kind(str(path)) == ((6, "uint16"), (33, 40))
    pool = DecoderPool(preprocess, 1)
    try:
        fitted = pool.fit(str(path), 10**6)
        shown, same = pool.show(path.read_bytes(), 10**6, 20)
    finally:
        pool.close()
    assert np.array_equal(as_array(fitted.image), preprocess.fit(decoded)) and fitted.size == (33, 40)
    assert fitted.gaps is not None and np.array_equal(fitted.gaps, gaps)
    assert shown.mode == "RGB" and max(shown.size) == 20 and np.array_equal(as_array(same), preprocess.fit(decoded))


@pytest.mark.parametrize("kind", ["int16", "uint32", "int32", "float32", "float64"])
def test_types(rasterio: Any, tmp_path: Path, kind: str) -> None:
    bands = np.linspace(0, 1000, 2 * 5 * 6).reshape(2, 5, 6).astype(kind)
    if kind.startswith("float"):
        bands[0, 0, 0], bands[1, 2, 2] = np.nan, np.inf
    path = write_tiff(rasterio, tmp_path / "a.tif", bands)
    image = read_bands(str(path), ((0, 1000), (500, 1000)), (1, 2), kind)
    assert as_array(image)[4, 5].tolist() == [round(float(bands[0, 4, 5]) * 0.255), 255]
    if kind.startswith("float"):
        assert image.gaps is not None and np.argwhere(image.gaps).tolist() == [[0, 0], [2, 2]]
        assert as_array(image)[0, 0].tolist() == as_array(image)[2, 2].tolist() == [1, 2]
    else:
        assert image.gaps is None


def test_gdal_calls_near_infrared_alpha(rasterio: Any, tmp_path: Path) -> None:
    bands = NUMBERS.integers(0, 256, (4, 8, 8), dtype=np.uint8)
    bands[3, 0] = 0
    path = write_tiff(rasterio, tmp_path / "a.tif", bands, photometric="RGB", alpha="YES")
    with rasterio.open(path) as file:
        assert file.colorinterp[3].name == "alpha"
    found = read_values(str(path))
    assert found.gaps is None and np.array_equal(found.values, bands)


def test_no_driver_but_tiffs_is_used(rasterio: Any, tmp_path: Path) -> None:
    bands = NUMBERS.integers(1, 9, (5, 8, 8)).astype(np.uint16)
    path = write_tiff(rasterio, tmp_path / "a.tif", bands)
    (tmp_path / "b.vrt").write_text(f'<VRTDataset rasterXSize="8" rasterYSize="8">{path}</VRTDataset>')
    with pytest.raises(ImageError, match="it is not an image of a known format"):
        read_values(str(tmp_path / "b.vrt"))
    with pytest.raises(ImageError, match="it is damaged, or no TIFF that GDAL reads"):
        read_values(path.read_bytes()[:300])
    with pytest.raises(ImageError, match=r"8x8 is more than max_pixels \(63\) allows"):
        read_values(str(path), 63)
    buffer = io.BytesIO()
    Image.fromarray(bands[0].astype(np.uint8)).convert("P").save(buffer, "TIFF")
    with pytest.raises(ImageError, match="it has a palette"):
        read_values(buffer.getvalue())
