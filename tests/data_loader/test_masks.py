"""Label images as class indices: by value, palette and colour, whatever the file's kind."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from data_loader.errors import ImageError
from data_loader.mask_classes import VOID, MaskClass, OtherClass, default_classes, read_mask_classes, read_other_classes
from data_loader.mask_target import MaskFile, MaskTarget
from data_loader.masks import fit_mask, read_mask
from data_loader.preprocess import Preprocess
from data_loader.samples import ListError, Sample

CLASSES = (
    MaskClass("ground", 0, (155, 155, 155)),
    MaskClass("road", 3, (110, 193, 228)),
    MaskClass("tower", 300, (0, 0, 255)),
)
INDICES = np.array([[0, 1, 2, 1], [2, 2, 0, 0], [1, 0, 0, 2]], np.uint8)
COLOURS = np.array([found.color for found in CLASSES], np.uint8)[INDICES]


def saved(path: Path, image: Image.Image, **options: object) -> str:
    image.save(path, **options)
    return str(path)


def paletted(indices: np.ndarray, colours: list[tuple[int, int, int]]) -> Image.Image:
    image = Image.fromarray(indices).convert("P")
    image.putdata(indices.ravel().tolist())
    image.putpalette([number for colour in colours for number in colour])
    return image


def test_values_and_colours_of_every_kind_of_file(tmp_path: Path) -> None:
    values = np.array([0, 3, 300])[INDICES]
    grey16 = Image.fromarray(values.astype(np.uint16))
    alpha = np.dstack([COLOURS, np.full(INDICES.shape, 9, np.uint8)])
    files = [
        saved(tmp_path / "16.png", grey16),
        saved(tmp_path / "16.tif", grey16),
        saved(tmp_path / "32.tif", Image.fromarray(values.astype(np.int32))),
        saved(tmp_path / "f.tif", Image.fromarray(values.astype(np.float32))),
        saved(tmp_path / "rgb.png", Image.fromarray(COLOURS)),
        saved(tmp_path / "rgb.bmp", Image.fromarray(COLOURS)),
        saved(tmp_path / "rgb.tif", Image.fromarray(COLOURS), compression="tiff_lzw"),
        saved(tmp_path / "rgba.png", Image.fromarray(alpha)),
    ]
    for file in files:
        found = read_mask(file, CLASSES)
        np.testing.assert_array_equal(found.indices, INDICES, err_msg=file)
        assert found.unknown == ()


def test_a_palette_of_class_colours_counts_and_not_its_indices(tmp_path: Path) -> None:
    """As dubai's palettes are: their indices are all classes' values, but of other classes."""
    classes = tuple(MaskClass(found.name, index, found.color) for index, found in enumerate(CLASSES))
    turned = (INDICES + 1) % 3  # palette index i has the colour of class i - 1
    colours = [CLASSES[(index - 1) % 3].color for index in range(3)]
    file = saved(tmp_path / "colours.png", paletted(turned, colours))
    np.testing.assert_array_equal(read_mask(file, classes).indices, INDICES)
    file = saved(tmp_path / "indices.png", paletted(INDICES, [(1, 1, 1), (2, 2, 2), (3, 3, 3)]))
    np.testing.assert_array_equal(read_mask(file, classes).indices, INDICES)
    # One colour alone, such as black, is a class's by chance.
    file = saved(tmp_path / "one.png", paletted(INDICES, [(2, 2, 2), (3, 3, 3), CLASSES[0].color]))
    np.testing.assert_array_equal(read_mask(file, classes).indices, INDICES)


def test_two_classes_of_0_and_255(tmp_path: Path) -> None:
    classes, changed = default_classes(["no", "yes"]), INDICES == 1
    for name, image in {
        "l.png": Image.fromarray(changed.astype(np.uint8) * 255),
        "01.png": Image.fromarray(changed.astype(np.uint8)),
        "1.png": Image.fromarray(changed),
        "rgb.png": Image.fromarray(changed.astype(np.uint8) * 255).convert("RGB"),
        "rgb01.png": Image.fromarray(changed.astype(np.uint8)).convert("RGB"),
    }.items():
        np.testing.assert_array_equal(read_mask(saved(tmp_path / name, image), classes).indices, changed, err_msg=name)
    with_void = np.where(INDICES == 2, 255, changed).astype(np.uint8)
    found = read_mask(saved(tmp_path / "void.png", Image.fromarray(with_void)), classes)
    np.testing.assert_array_equal(found.indices, np.where(INDICES == 2, VOID, changed))
    assert found.unknown == (("value 255", 4),)


def test_what_is_of_no_class_is_ignored_and_named(tmp_path: Path) -> None:
    colours = COLOURS.copy()
    colours[0, 0], colours[2] = (1, 2, 3), (110, 193, 229)  # one off a class's colour
    found = read_mask(saved(tmp_path / "a.png", Image.fromarray(colours)), CLASSES)
    expected = INDICES.copy()
    expected[0, 0] = expected[2] = VOID
    np.testing.assert_array_equal(found.indices, expected)
    assert found.unknown == (("colour 110,193,229", 4), ("colour 1,2,3", 1))
    values = np.array([[0, 4], [4, -1]], np.int32)
    found = read_mask(saved(tmp_path / "b.tif", Image.fromarray(values)), CLASSES)
    assert found.unknown == (("value 4", 2), ("value -1", 1))
    np.testing.assert_array_equal(found.indices, [[0, VOID], [VOID, VOID]])


@pytest.mark.parametrize(
    ("name", "image", "options", "sentence"),
    [
        ("a.jpg", Image.fromarray(COLOURS), {}, "a label image cannot be JPEG, which changes values and colours"),
        ("a.webp", Image.fromarray(COLOURS), {}, "a label image cannot be WEBP"),
        ("a.tif", Image.fromarray(COLOURS), {"compression": "jpeg"}, "a label image cannot be TIFF, which changes"),
        ("b.tif", Image.fromarray(np.full((2, 2), 0.5, np.float32)), {}, "its values are no whole numbers"),
        ("c.tif", Image.new("CMYK", (2, 2)), {}, "a label image of mode CMYK has no class values"),
        ("d.png", Image.new("L", (40, 30)), {}, "40x30 is more than max_pixels (1000) allows"),
    ],
)
def test_what_no_mask_can_be(
    tmp_path: Path, name: str, image: Image.Image, options: dict[str, str], sentence: str
) -> None:
    with pytest.raises(ImageError) as raised:
        read_mask(saved(tmp_path / name, image, **options), CLASSES, 1000)
    assert sentence in str(raised.value)


def test_a_damaged_file_is_a_reason(tmp_path: Path) -> None:
    file = Path(saved(tmp_path / "a.png", Image.fromarray(COLOURS.repeat(40, 0).repeat(40, 1))))
    file.write_bytes(file.read_bytes()[:80])
    with pytest.raises(ImageError, match="it is damaged"):
        read_mask(str(file), CLASSES)
    with pytest.raises(ImageError, match="no such file"):
        read_mask(str(tmp_path / "b.png"), CLASSES)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_mask_drawn_on_the_stored_pixels_turns_with_its_image(tmp_path: Path, orientation: int) -> None:
    """The image's red channel is its mask: after loading both, that still holds."""
    indices = np.random.default_rng(orientation).integers(0, 3, (5, 9)).astype(np.uint8)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    image = Image.fromarray(np.dstack([indices * 100] * 3))
    path = saved(tmp_path / "image.png", image, exif=exif)
    mask = saved(tmp_path / "mask.png", Image.fromarray(indices))
    target = MaskTarget(default_classes(["a", "b", "c"]))
    sample = Sample(path, MaskFile(mask))
    scan = target.scan(sample)
    loaded = np.asarray(target.load(Sample(path, MaskFile(mask, orientation=scan.orientation))))
    seen = np.asarray(Preprocess(5, 5).decode(path))[:, :, 0] // 100
    if orientation in (2, 3, 4):  # of the same sides either way: taken as upright
        assert scan.orientation == 1
    else:
        np.testing.assert_array_equal(loaded, seen)


@pytest.mark.parametrize("resize", ["squash", "letterbox", "crop"])
def test_a_mask_is_fitted_as_its_image_is(resize: str) -> None:
    """Large squares survive any resize: the mask's class is the image's colour away from the edges."""
    indices = np.kron(np.random.default_rng(0).integers(0, 3, (3, 5)), np.ones((40, 40))).astype(np.uint8)
    preprocess = Preprocess(60, 60, resize=resize)
    image = preprocess.fit(Image.fromarray(np.dstack([indices * 100] * 3)))[:, :, 0]
    mask = fit_mask(preprocess, Image.fromarray(indices))
    assert mask.shape == (60, 60) and set(np.unique(mask)) <= {0, 1, 2, VOID}
    is_known = mask != VOID
    assert is_known.mean() == pytest.approx(0.6 if resize == "letterbox" else 1.0)
    assert (image[~is_known] == 0).all()
    is_pure = np.isin(image, (0, 100, 200)) & is_known
    assert (mask[is_pure] * 100 == image[is_pure]).mean() > 0.98 and is_pure.mean() > 0.4


def test_classes_that_the_net_does_not_have(tmp_path: Path) -> None:
    """A class read as another one counts as that; one read as nothing is ignored, and not unknown."""
    ground, road, tower = CLASSES
    path = saved(tmp_path / "a.png", Image.fromarray(COLOURS))
    as_ground = read_mask(path, (ground, road), others=(OtherClass(tower, 0),))
    assert np.array_equal(as_ground.indices, np.where(INDICES == 2, 0, INDICES)) and not as_ground.ignored
    unread = read_mask(path, (ground, road), others=(OtherClass(tower, VOID),))
    assert np.array_equal(unread.indices, np.where(INDICES == 2, VOID, INDICES))
    assert unread.ignored == 4 and not unread.unknown

    target = MaskTarget((ground, road), others=(OtherClass(tower, VOID),))
    scan = target.scan(Sample(path, MaskFile(path)))
    assert scan.void == 0 and scan.ignored == 4 and scan.pixels.tolist() == [5, 3]


def test_read_as_in_a_file_of_classes(tmp_path: Path) -> None:
    file = tmp_path / "classes.json"
    rows = [
        {"name": "road", "value": 3, "read_as": "ground"},
        {"name": "ground", "value": 0},
        {"name": "car", "value": 5},
    ]
    file.write_text(json.dumps([*rows, {"name": "void", "value": 9, "read_as": None}]))
    assert [found.name for found in read_mask_classes(file)] == ["ground", "car"]
    assert [(other.found.name, other.index) for other in read_other_classes(file)] == [("road", 0), ("void", VOID)]
    file.write_text(json.dumps([*rows, {"name": "van", "read_as": "bus", "value": 7}]))
    with pytest.raises(ListError, match='class "van": read_as must be null or the name of a class, got "bus"'):
        read_mask_classes(file)
