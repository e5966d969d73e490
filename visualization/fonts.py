"""Fonts that can show Chinese: found once, used by matplotlib and by Pillow."""

from __future__ import annotations

import base64
import importlib.util
import io
import unicodedata
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import ImageDraw, ImageFont

CJK_FAMILIES = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Noto Sans SC",
    "Source Han Sans SC",
    "Source Han Sans CN",
    "PingFang SC",
    "Hiragino Sans GB",
    "Microsoft YaHei",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "Heiti SC",
    "SimHei",
    "Arial Unicode MS",
)
CJK_PATHS = (  # for a font that was installed after matplotlib wrote its list of fonts
    "/usr/share/fonts/opentype/noto/NotoSansCJK-Regular.ttc",
    "/usr/share/fonts/noto-cjk/NotoSansCJK-Regular.ttc",
    "/usr/share/fonts/google-noto-cjk/NotoSansCJK-Regular.ttc",
    "/usr/share/fonts/truetype/wqy/wqy-microhei.ttc",
    "/usr/share/fonts/truetype/wqy/wqy-zenhei.ttc",
    "/System/Library/Fonts/PingFang.ttc",
    "/System/Library/Fonts/Hiragino Sans GB.ttc",
    "/System/Library/Fonts/STHeiti Light.ttc",
    "C:/Windows/Fonts/msyh.ttc",
    "C:/Windows/Fonts/simhei.ttf",
)
ELLIPSIS = "…"


@lru_cache(maxsize=1)
def cjk_font_path() -> str | None:
    """Return the file of a font with Chinese glyphs: the system's, else the one in mplfonts, else None.

    It is looked for once; a font counts only if it has the character 中.
    """
    from matplotlib import font_manager

    installed: dict[str, list[tuple[int, str]]] = {}
    for entry in font_manager.fontManager.ttflist:
        if entry.style == "normal":
            weight = entry.weight if isinstance(entry.weight, int) else 400
            installed.setdefault(entry.name, []).append((abs(weight - 400), entry.fname))
    candidates = [path for family in CJK_FAMILIES for _, path in sorted(installed.get(family, []))]
    bundled = importlib.util.find_spec("mplfonts")  # found, not imported: its import rewrites matplotlib's settings
    folders = (bundled.submodule_search_locations or []) if bundled else []
    candidates += [*CJK_PATHS, *(str(Path(folder, "fonts", "NotoSansCJKsc-Regular.otf")) for folder in folders)]
    return next((path for path in candidates if Path(path).is_file() and ord("中") in _charmap(path)), None)


def use_fonts() -> dict[str, Any]:
    """Return the rc parameters for `matplotlib.rc_context` under which Chinese text shows and `$` stays a dollar."""
    return {"font.family": list(_families()), "text.parse_math": False, "axes.unicode_minus": False}


def printable(text: str) -> str:
    r"""Replace every character that no font here can show by its escape: \u0007, \U0001FAE8."""
    charmaps = [_charmap(path) for path in _font_paths()]
    shown = (any(ord(c) in charmap for charmap in charmaps) and not _breaks_line(c) for c in text)
    return "".join(c if is_shown else _escape(c) for c, is_shown in zip(text, shown, strict=True))


def embedded_font(text: str) -> tuple[str, str] | None:
    """Return the Chinese font, cut down to those characters of `text` that DejaVu Sans lacks, for a style sheet.

    It spares a web page its dependence on the fonts of the machine that shows it. The pair is a data URI and the
    `unicode-range` it covers. None where no character is missing, or where the font's licence bits (OpenType OS/2
    fsType) are anything but "installable".
    """
    from fontTools import subset, ttLib  # type: ignore[import-untyped]  # comes with matplotlib

    path = cjk_font_path()
    if path is None:
        return None
    wanted = {ord(character) for character in text} & _charmap(path) - _charmap(_font_paths()[0])
    with ttLib.TTFont(path, fontNumber=0, lazy=True) as font:
        if not wanted or font["OS/2"].fsType != 0:
            return None
        options = subset.Options(layout_features=[], name_IDs=[], notdef_outline=True, hinting=False)
        subsetter = subset.Subsetter(options)
        subsetter.populate(unicodes=wanted)
        subsetter.subset(font)
        font.flavor = "woff"
        buffer = io.BytesIO()
        font.save(buffer)
    uri = f"data:font/woff;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return uri, ", ".join(f"U+{code:X}" for code in sorted(wanted))


def text_width(text: str, size_px: int) -> float:
    """Return the width of one line in pixels, in the fonts that `draw_text` takes."""
    return sum(_pillow_font(path, size_px).getlength(run) for path, run in _runs(printable(text)))


def draw_text(
    draw: ImageDraw.ImageDraw, xy: tuple[float, float], text: str, size_px: int, fill: tuple[int, int, int]
) -> None:
    """Draw one line; `xy` is where its baseline begins. A character comes from the first font that has it."""
    x, y = xy
    for path, run in _runs(printable(text)):
        font = _pillow_font(path, size_px)
        draw.text((x, y), run, font=font, fill=fill, anchor="ls")
        x += font.getlength(run)


def elide(text: str, width_px: float, size_px: int) -> str:
    """Replace the end of a line by an ellipsis where it is wider than `width_px`."""
    text = printable(text)
    if text_width(text, size_px) <= width_px:
        return text
    low, high = 0, len(text)  # the longest beginning that fits, by bisection
    while low < high:
        middle = (low + high + 1) // 2
        if text_width(text[:middle].rstrip() + ELLIPSIS, size_px) <= width_px:
            low = middle
        else:
            high = middle - 1
    return text[:low].rstrip() + ELLIPSIS


def wrap(text: str, width_px: float, size_px: int, max_lines: int) -> list[str]:
    """Break a line into at most `max_lines`, at a space where there is one; what is left over is elided."""
    rest = printable(text).strip()
    lines: list[str] = []
    while len(lines) < max_lines - 1 and text_width(rest, size_px) > width_px:
        end = max(len(elide(rest, width_px, size_px)) - 1, 1)
        space = rest.rfind(" ", end // 2, end + 1)  # a space in the first half would leave a short line
        end = space if space > 0 else end
        lines.append(rest[:end].rstrip())
        rest = rest[end:].lstrip()
    return [*lines, elide(rest, width_px, size_px)]


@lru_cache(maxsize=1)
def _font_paths() -> tuple[str, ...]:
    """DejaVu Sans, which matplotlib brings, then the Chinese font."""
    from matplotlib import font_manager

    dejavu = font_manager.findfont("DejaVu Sans")
    cjk = cjk_font_path()
    return (dejavu, cjk) if cjk else (dejavu,)


@lru_cache(maxsize=1)
def _families() -> tuple[str, ...]:
    """Family names of `_font_paths`, made known to matplotlib."""
    from matplotlib import font_manager

    for path in _font_paths()[1:]:
        font_manager.fontManager.addfont(path)
    return tuple(font_manager.get_font(path).family_name for path in _font_paths())


@lru_cache(maxsize=8)
def _charmap(path: str) -> frozenset[int]:
    """Code points that a font has a glyph for; none where the file is not a font."""
    from matplotlib import font_manager

    try:
        return frozenset(font_manager.get_font(path).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()


@lru_cache(maxsize=64)
def _pillow_font(path: str, size_px: int) -> ImageFont.FreeTypeFont:
    from PIL import ImageFont

    # The basic layout is in every Pillow and measures as it draws; raqm fails on some texts.
    return ImageFont.truetype(path, size_px, layout_engine=ImageFont.Layout.BASIC)


def _runs(text: str) -> list[tuple[str, str]]:
    """Split printable text into pieces of one font each: (font file, piece)."""
    paths = _font_paths()
    runs: list[tuple[str, str]] = []
    for character in text:
        path = next((path for path in paths if ord(character) in _charmap(path)), paths[0])
        if runs and runs[-1][0] == path:
            runs[-1] = (path, runs[-1][1] + character)
        else:
            runs.append((path, character))
    return runs


def _breaks_line(character: str) -> bool:
    """Return whether it is a control character or line separator, for which some fonts hold an empty glyph."""
    category = unicodedata.category(character)
    return category[0] == "C" or category in ("Zl", "Zp")


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08X}"
