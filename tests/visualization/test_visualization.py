"""Images are compared by their ink: two characters shown as the same box would have the same."""

import base64
import io
import re
from collections.abc import Callable
from pathlib import Path

import jinja2
import matplotlib
import numpy as np
import pytest
from PIL import Image, ImageDraw

from visualization import fonts, raster, svg_axes, svg_charts
from visualization.html_page import render_page, thumbnail_data_uri

ODD_NAMES = [
    "金毛寻回犬",
    "$a_b$",
    "<script>",
    "cat",
    "a long class name that goes on and on without end",
    "🫨\nx",
    "العربية",
    "",
]


def pillow_ink(character: str) -> np.ndarray:
    sheet = Image.new("RGB", (60, 60), (255, 255, 255))
    fonts.draw_text(ImageDraw.Draw(sheet), (5, 45), character, 40, (0, 0, 0))
    return np.asarray(sheet)


def matplotlib_ink(character: str) -> np.ndarray:
    return raster.confusion_matrix_image(np.eye(2, dtype=int), [character, "x"])


@pytest.mark.parametrize("ink", [pillow_ink, matplotlib_ink])
def test_chinese_shows_as_itself(ink: Callable[[str], np.ndarray]) -> None:
    cat, dog, again = ink("猫"), ink("狗"), ink("猫")
    assert (cat < 128).any()
    assert (cat == again).all()
    assert (cat != dog).any()


def test_characters_without_a_glyph_are_escaped() -> None:
    assert fonts.printable("金毛 dog\n🫨\x07\udcff") == "金毛 dog\\u000a\\U0001FAE8\\u0007\\udcff"


def test_bundled_font_stands_in_for_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "CJK_FAMILIES", ())
    monkeypatch.setattr(fonts, "CJK_PATHS", ())
    fonts.cjk_font_path.cache_clear()
    try:
        assert Path(fonts.cjk_font_path() or "").name == "NotoSansCJKsc-Regular.otf"
    finally:
        fonts.cjk_font_path.cache_clear()


def test_system_font_comes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    copy = tmp_path / "wqy-microhei.ttc"
    copy.symlink_to(fonts.cjk_font_path() or "")
    monkeypatch.setattr(fonts, "CJK_FAMILIES", ())
    monkeypatch.setattr(fonts, "CJK_PATHS", (str(tmp_path / "absent.ttc"), str(copy)))
    fonts.cjk_font_path.cache_clear()
    try:
        assert fonts.cjk_font_path() == str(copy)
    finally:
        fonts.cjk_font_path.cache_clear()


def test_fonts_leave_matplotlibs_settings_alone() -> None:
    before = dict(matplotlib.rcParams)
    raster.confusion_matrix_image([[1, 2], [3, 4]], ["猫", "狗"])
    assert dict(matplotlib.rcParams) == before


def test_text_fits_where_it_is_cut_to() -> None:
    for text in ODD_NAMES:
        assert fonts.text_width(fonts.elide(text, 80, 13), 13) <= 80
        lines = fonts.wrap(text * 5, 80, 13, max_lines=3)
        assert len(lines) <= 3
        assert all(fonts.text_width(line, 13) <= 80 for line in lines)
    assert fonts.elide("short", 500, 13) == "short"
    assert fonts.elide("a" * 99, 80, 13).endswith("…")


@pytest.mark.parametrize("num_classes", [2, 8, 21, 1000])
def test_confusion_matrix_of_any_size(num_classes: int) -> None:
    confusion = np.eye(num_classes, dtype=np.int64) * 9
    confusion[0, 1] = 1
    names = [ODD_NAMES[i % len(ODD_NAMES)] + str(i) for i in range(num_classes)]
    image = raster.confusion_matrix_image(confusion, names)
    assert image.dtype == np.uint8
    assert image.shape[2] == 3
    assert max(image.shape) < 1500


def test_confusion_colours_are_shares_of_the_row() -> None:
    colours = raster.confusion_colours(np.array([[1, 3], [0, 0]]))
    assert colours[0, 0].tolist() == np.rint(255 + (np.array(raster.HIT) - 255) * 0.25).tolist()
    assert colours[0, 1].tolist() == np.rint(255 + (np.array(raster.MISS) - 255) * np.sqrt(0.75)).tolist()
    assert (colours[1] == 255).all()  # a class without images stays white


def test_image_grid_takes_any_size_and_frames_predictions() -> None:
    images = [np.zeros(shape, dtype=np.uint8) for shape in [(28, 28, 1), (300, 500, 3), (500, 20, 3)]]
    grid = raster.image_grid(images, ["猫\n狗"] * 3, columns=2, right=[True, False, True], cell_px=100)
    assert grid.shape[1] == 10 + 2 * 110
    assert grid[10, 10].tolist() == list(raster.RIGHT)
    assert grid[10, 120].tolist() == list(raster.WRONG)
    assert raster.image_grid(np.zeros((0, 8, 8, 3), np.uint8), [], columns=4).shape[2] == 3


def test_small_images_grow_by_whole_pixels() -> None:
    image = np.random.default_rng(0).integers(0, 255, (28, 28, 1), dtype=np.uint8)
    grown = np.asarray(raster.thumbnail(image, 160))
    assert (grown == image.repeat(5, 0).repeat(5, 1)).all()


@pytest.mark.parametrize("size", [(28, 28), (4, 300), (500, 375), (4000, 3000)])
def test_annotated_keeps_the_image_and_adds_a_strip(size: tuple[int, int]) -> None:
    image = Image.effect_noise(size, 50)
    plain = raster.annotated(image, [])
    noted = raster.annotated(image, ["金毛寻回犬 golden retriever 98.7 %", "labrador 1.1 %"])
    assert noted.mode == "RGB"
    assert noted.height > plain.height
    assert (np.asarray(noted)[: plain.height] == np.asarray(plain)).all()
    assert (np.asarray(noted)[plain.height :] < 128).any()
    assert min(noted.size) >= 224


def test_png_bytes_come_back() -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (5, 4, 3), dtype=np.uint8)
    assert (np.asarray(Image.open(io.BytesIO(raster.png_bytes(pixels)))) == pixels).all()


@pytest.mark.parametrize(
    ("size", "media_type", "shown"), [((28, 28), "png", (168, 168)), ((400, 100), "jpeg", (192, 48))]
)
def test_a_thumbnail_is_a_png_of_few_pixels_or_a_jpeg(
    size: tuple[int, int], media_type: str, shown: tuple[int, int]
) -> None:
    pixels = np.asarray(Image.effect_noise(size, 50).convert("RGB"))
    head, content = thumbnail_data_uri(pixels, 192).split(",")
    assert head == f"data:image/{media_type};base64"
    assert Image.open(io.BytesIO(base64.b64decode(content))).size == shown


def test_a_page_escapes_its_values_and_refuses_a_name_that_is_not_given(tmp_path: Path) -> None:
    template = tmp_path / "page.jinja"
    template.write_text("{{ name }} {{ share|percent }} {{ none|percent(1) }} {{ name|loud }}\n", encoding="utf-8")
    page = render_page(template, {"loud": str.upper}, name="<b>", share=0.25, none=None)
    assert page == "&lt;b&gt; 25.00 % – &lt;B&gt;"
    with pytest.raises(jinja2.UndefinedError, match="'share' is undefined"):
        render_page(template, {"loud": str.upper}, name="")


def test_embedded_font_has_only_what_is_asked() -> None:
    assert fonts.embedded_font("only Latin") is None
    embedded = fonts.embedded_font("猫 and 狗")
    assert embedded is not None
    uri, covered = embedded
    assert covered == "U+72D7, U+732B"
    assert uri.startswith("data:font/woff;base64,")
    assert len(uri) < 10_000


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.0, 1.0, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]), (0.3, 2.1, [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]), (1e-6, 3e-6, None)],
)
def test_ticks_are_round_and_enclose(low: float, high: float, expected: list[float] | None) -> None:
    ticks = svg_axes.round_ticks(low, high)
    assert ticks[0] <= low
    assert ticks[-1] >= high
    assert expected is None or ticks == pytest.approx(expected)


def test_curves_svg_with_gaps_one_point_and_nothing() -> None:
    assert svg_charts.curves_svg([svg_charts.Line("a", "train", [1, 2], [float("nan")] * 2)], "Loss") == ""
    assert svg_charts.curves_svg([], "Loss") == ""
    assert "circle" in svg_charts.curves_svg(
        [svg_charts.Line("a", "train", [7], [0.0])], "Loss", epochs=[(7, 1)], best_x=7
    )
    chart = svg_charts.curves_svg([svg_charts.Line("<b>", "train", [1, 2, 3], [1.0, float("inf"), 2.0])], "Loss")
    assert "inf" not in chart
    assert "<b>" not in chart


def test_the_word_epoch_is_free_of_the_axis() -> None:
    """Texts of 11.5 px: the letters of the row of epochs end 3 px below its line, those of the axis begin 9 above."""
    line = svg_charts.Line("a", "train", [1, 2, 3], [1.0, 2.0, 4.0])
    chart = svg_charts.curves_svg([line], "Loss", epochs=[(1, 1), (3, 2)])
    rows = re.findall(r'<text[^>]*?x="([\d.]+)" y="([\d.]+)"[^>]*>([^<]*)</text>', chart)
    (epoch_y,) = (float(y) for x, y, text in rows if text == "epoch")
    highest = min(float(y) for x, y, text in rows if float(x) < 52 and text not in ("epoch",))
    assert epoch_y > 11.5 and epoch_y + 3 < highest - 9
    assert {float(y) for x, y, text in rows if text in ("1", "2") and float(y) < highest - 5} == {epoch_y}


def test_running_mean_of_a_straight_line_is_the_line() -> None:
    line = svg_charts.Line("a", "train", list(range(500)), [3.0 * i for i in range(500)], noisy=True)
    assert svg_charts.running_mean(line).ys == pytest.approx(line.ys)


def test_long_line_keeps_its_extremes() -> None:
    ys = np.random.default_rng(0).random(100_000).tolist()
    thinned = svg_charts.thin_out(svg_charts.Line("a", "train", list(range(100_000)), ys))
    assert len(thinned.xs) <= svg_charts.MAX_POINTS
    assert (min(thinned.ys), max(thinned.ys)) == (min(ys), max(ys))
    assert thinned.xs == sorted(thinned.xs)
