"""GeoTIFF in, GeoTIFF in the same place and GeoJSON out; without rasterio TIFFs are decoded whole."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import inference
from data_loader.preprocess import ImageError, Preprocess
from deploy.inference.geo_images import opened_by_gdal, ring_area
from tests.helpers.masks import VALUES, mask_nets, scene, trained_masks

CRS = "EPSG:32640"  # UTM 40N, in metres


def test_the_area_of_a_ring() -> None:
    square = [(1e6, 2e6), (1e6 + 3, 2e6), (1e6 + 3, 2e6 + 2), (1e6, 2e6 + 2), (1e6, 2e6)]
    assert ring_area(square) == ring_area(square[::-1]) == 6


def test_polygons_need_rasterio(tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert inference.main(["--image_dir", str(tmp_path), "--tiles", "--polygons"]) == 2
    assert "--polygons needs rasterio: pip install -r requirements-geo.txt" in capsys.readouterr().err
    assert opened_by_gdal("a.tif", Preprocess(8, 8)) is None


@pytest.fixture
def rasterio() -> Any:
    return pytest.importorskip("rasterio", reason="needs requirements-geo.txt")


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with mask_nets(tmp_path, monkeypatch):
        yield trained_masks(tmp_path)


def write_geo(rasterio: Any, path: Path, pixels: np.ndarray, **changes: Any) -> None:
    """Write bands (H, W, C) with half a metre a pixel."""
    path.parent.mkdir(exist_ok=True)
    transform = rasterio.Affine(0.5, 0, 330_000, 0, -0.5, 2_790_000)
    form = {"driver": "GTiff", "dtype": pixels.dtype, "count": pixels.shape[2], "crs": CRS, "transform": transform}
    with rasterio.open(path, "w", width=pixels.shape[1], height=pixels.shape[0], **form | changes) as file:
        file.write(np.moveaxis(pixels, 2, 0))


def infer(weights: Path, folder: Path, out: Path, *flags: str) -> list[dict[str, Any]]:
    common = ["--weights", str(weights), "--image_dir", str(folder), "--device", "cpu", "--quiet", "--workers", "1"]
    assert inference.main([*common, "--output", f"{out}.json", "--save_images", str(out), *flags]) in (0, 1)
    return json.loads(Path(f"{out}.json").read_text(encoding="utf-8"))


def test_a_mask_lies_in_the_same_place(rasterio: Any, weights: Path, tmp_path: Path) -> None:
    pixels, truth = scene(3, (130, 75))
    write_geo(rasterio, tmp_path / "new/a.tif", pixels)
    (row,) = infer(weights, tmp_path / "new", tmp_path / "out", "--tiles", "--polygons", "20")
    with rasterio.open(tmp_path / "new/a.tif") as source, rasterio.open(tmp_path / "out/a.tif.mask.tif") as mask:
        assert (mask.crs, mask.transform, mask.shape) == (source.crs, source.transform, source.shape)
        assert mask.nodata == 255 and mask.colormap(1)[3][:3] == (110, 193, 228)
        assert mask.tags(1)["class_7"] == "water"
        values = mask.read(1)
    assert (values == VALUES[truth]).mean() > 0.97
    assert list(row["shares"].values()) == pytest.approx([(values == value).mean() for value in VALUES])
    found = json.loads((tmp_path / "out/a.tif.geojson").read_text(encoding="utf-8"))["features"]
    water = [feature for feature in found if feature["properties"]["class"] == "water"]
    assert sum(feature["properties"]["pixels"] for feature in water) == pytest.approx((values == 7).sum(), abs=20)
    (largest,) = [feature for feature in water if feature["properties"]["pixels"] > 40]
    assert largest["properties"]["area_m2"] == pytest.approx(largest["properties"]["pixels"] * 0.25)
    assert largest["properties"]["title"] == "水体" and all(f["properties"]["pixels"] >= 20 for f in found)
    rows, columns = np.nonzero(truth == 2)
    from rasterio.warp import transform

    (east,), (north,) = transform(
        CRS, "EPSG:4326", [330_000 + (columns.mean() + 0.5) / 2], [2_790_000 - (rows.mean() + 0.5) / 2]
    )
    ring = np.array(largest["geometry"]["coordinates"][0])
    assert np.abs(ring.mean(axis=0) - [east, north]).max() < 3e-5  # within 3 m
    assert (tmp_path / "out/a.tif.overlay.jpg").exists()


def test_16_bits_and_nodata(rasterio: Any, weights: Path, tmp_path: Path) -> None:
    pixels, truth = scene(3, (130, 75))
    deep = pixels.astype(np.uint16) * 257
    deep[:20, :30] = 0
    write_geo(rasterio, tmp_path / "new/a.tif", deep, nodata=0)
    (row,) = infer(weights, tmp_path / "new", tmp_path / "out", "--tiles")
    with rasterio.open(tmp_path / "out/a.tif.mask.tif") as mask:
        values = mask.read(1)
    assert (values[:20, :30] == 255).all() and (values == 255).sum() == 600
    seen = values != 255
    assert (values == VALUES[truth])[seen].mean() > 0.97
    assert sum(row["shares"].values()) == pytest.approx(1 - 600 / (130 * 75))
    assert not (tmp_path / "out/a.tif.geojson").exists()


def test_without_tiles_the_place_is_kept_too(rasterio: Any, weights: Path, tmp_path: Path) -> None:
    pixels, _ = scene(3, (60, 50))
    write_geo(rasterio, tmp_path / "new/a.tif", pixels, photometric="RGB")
    Image.fromarray(pixels).save(tmp_path / "new/plain.tif")
    infer(weights, tmp_path / "new", tmp_path / "out")
    with rasterio.open(tmp_path / "out/a.tif.mask.tif") as mask, Image.open(tmp_path / "out/plain.tif.mask.png") as png:
        assert mask.crs == CRS and np.array_equal(mask.read(1), np.asarray(png))


def test_what_cannot_be_read_by_rows(rasterio: Any, weights: Path, tmp_path: Path) -> None:
    pixels, _ = scene(3, (60, 50))
    write_geo(rasterio, tmp_path / "new/float.tif", pixels.astype(np.float32))
    (tmp_path / "new/damaged.tif").write_bytes(b"II*\0garbage")
    content = (tmp_path / "new/float.tif").read_bytes()
    (tmp_path / "new/short.tif").write_bytes(content[: len(content) // 2])
    rows = {Path(row["file"]).name: row for row in infer(weights, tmp_path / "new", tmp_path / "out", "--tiles")}
    assert rows["float.tif"]["error"].startswith(
        "its bands are of float32, and tiles are read from bands of 8 or 16 bits"
    )
    assert rows["damaged.tif"]["error"].startswith("it cannot be read or written by GDAL: ")
    assert rows["short.tif"]["error"]


def test_bands_and_channels(rasterio: Any, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 5), dtype=np.uint8)
    write_geo(rasterio, tmp_path / "new/five.tif", pixels)
    write_geo(rasterio, tmp_path / "new/one.tif", pixels[:, :, :1])
    for name, channels, wanted in (
        ("five", 3, pixels[3:9, :, :3]),
        ("one", 1, pixels[3:9, :, :1]),
        ("one", 3, np.repeat(pixels[3:9, :, :1], 3, axis=2)),
        ("five", 1, np.asarray(Image.fromarray(pixels[3:9, :, :3]).convert("L"))[:, :, None]),
    ):
        opened = opened_by_gdal(str(tmp_path / f"new/{name}.tif"), Preprocess(8, 8, channels))
        assert opened is not None and opened.size == (30, 20) and opened.valid(0, 20) is None
        assert np.array_equal(opened.rows(3, 9), wanted)
        opened.close()
    with pytest.raises(ImageError, match="No such file"):
        opened_by_gdal(str(tmp_path / "gone.tif"), Preprocess(8, 8))
