"""Procedural street numbers of 32x32 pixels: the report's embedded stand-in for SVHN.

As in SVHN's cropped digits, the digit in the middle is the label, and its neighbours in the house
number are cut off at the sides. A sign is drawn on its wall by skia at twice the size, then lit
and photographed by a poor camera.

Coordinates of the sign: x to the right, y down, the origin at the centre of the label's
digit; a digit is 100 high. Coordinates of the picture: 0 to 32.

Imported by worker processes: NumPy, Pillow and skia only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from itertools import starmap
from pathlib import Path

import numpy as np
import skia
from PIL import Image, ImageFilter

from dlcvlib.data.synthetic.brushes import argb, blank, fill, linear, stroke
from dlcvlib.data.synthetic.people import Color, mix

SIZE = 32
SUPERSAMPLING = 2
SMOOTH = skia.SamplingOptions(skia.CubicResampler.Mitchell())
FIGURE = 100
"""Height of a digit, in the sign's coordinates."""

FONTS = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-BoldOblique", "DejaVuSans-Oblique",
    "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-BoldItalic",
    "STIXGeneral", "STIXGeneralBol", "STIXGeneralBolIta",
    "cmb10", "cmr10", "cmss10", "cmss10", "cmtt10",
)  # fmt: skip
"""matplotlib's fonts with plain lining digits, a common style twice; those of its other fonts are
old-style, dotted or absent."""

WALLS: tuple[Color, ...] = (
    (150, 74, 56), (122, 60, 48), (186, 120, 92),  # brick, terracotta
    (214, 200, 172), (226, 220, 206), (190, 176, 150), (166, 152, 128),  # stucco, sandstone
    (128, 92, 62), (88, 60, 42), (160, 122, 82),  # wood
    (240, 240, 236), (204, 206, 208), (138, 142, 146), (84, 88, 92), (38, 38, 42),  # paint, stone
    (56, 84, 132), (28, 44, 92), (46, 92, 66), (120, 34, 36), (196, 170, 84),  # enamel, brass
)  # fmt: skip
INKS: tuple[Color, ...] = (
    (20, 20, 22), (20, 20, 22), (244, 244, 240), (244, 244, 240),
    (150, 150, 152), (196, 156, 78), (120, 84, 48), (150, 36, 34), (34, 52, 110), (40, 84, 58),
)  # fmt: skip
GRAINS = ((2, 2), (2, 2), (4, 4), (9, 9), (30, 30), (30, 4), (4, 30))
"""Rows and columns of a wall's tones: gradients, stains, stucco, grain of boards both ways."""


@dataclass(frozen=True)
class Glyph:
    path: skia.Path  # drawn around 0, FIGURE high
    width: float


Placed = list[tuple[Glyph, float]]
"""Digits, and the x of their centres."""


@cache
def _digits() -> tuple[tuple[Glyph, ...], ...]:
    """The ten digits of each of FONTS."""
    folder = Path(find_spec("matplotlib").origin).parent / "mpl-data/fonts/ttf"
    # This manager has only the fonts that it is given; skia's default would use the system's.
    manager = skia.FontMgr.New_Custom_Empty()
    return tuple(_font_digits(manager.makeFromFile(str(folder / f"{name}.ttf"))) for name in FONTS)


def _font_digits(typeface: skia.Typeface) -> tuple[Glyph, ...]:
    font = skia.Font(typeface, FIGURE)
    font.setHinting(skia.FontHinting.kNone)
    flat = font.getPath(font.unicharToGlyph(ord("1"))).computeTightBounds()  # no overshoot
    font.setSize(FIGURE * FIGURE / flat.height())
    glyphs = []
    for digit in "0123456789":
        path = font.getPath(font.unicharToGlyph(ord(digit)))
        bounds = path.computeTightBounds()
        path.offset(-bounds.centerX(), FIGURE / 2)
        glyphs.append(Glyph(path, bounds.width()))
    return tuple(glyphs)


# --- colours and brushes ----------------------------------------------------------------------


def _shade(color: Color, factor: float) -> Color:
    return tuple(min(255, c * factor) for c in color)


def _luminance(color: Color) -> float:
    return 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]


def _of_luminance(color: Color, luminance: float) -> Color:
    """The colour darkened, or mixed with white, to the given luminance."""
    now = _luminance(color)
    if now >= luminance:
        return _shade(color, luminance / now)
    return mix(color, (255, 255, 255), (luminance - now) / (255 - now))


def _image(values: np.ndarray) -> skia.Image:
    """Values (H, W, 3), clipped to 0..255."""
    pixels = np.full((*values.shape[:2], 4), 255, np.uint8)
    pixels[..., :3] = values.clip(0, 255)
    return skia.Image.fromarray(pixels, skia.kRGBA_8888_ColorType)


def _pick(rng: np.random.Generator, choices: Sequence):
    return choices[rng.integers(len(choices))]


def _wall_color(rng: np.random.Generator) -> Color:
    return _shade(_pick(rng, WALLS), rng.uniform(0.55, 1.15))


def _ink_color(rng: np.random.Generator, ground: Color) -> Color:
    """A colour that stands out from its ground in luminance, if not always by much."""
    level = _luminance(ground)
    lighter = level < 90 or (level < 165 and rng.random() < 0.5)
    contrast = max(48.0, rng.uniform(0.25, 0.95) * (250 - level if lighter else level))
    return _of_luminance(_pick(rng, INKS), level + contrast if lighter else level - contrast)


# --- layers, from back to front ---------------------------------------------------------------


def _place(canvas: skia.Canvas, rng: np.random.Generator) -> None:
    """Switch to the sign's coordinates: random size, place, rotation, shear and perspective."""
    height = rng.uniform(17, 30) / FIGURE
    dx, dy, angle, shear = (rng.standard_normal(4) * (1.9, 1.9, 9, 0.14)).tolist()
    canvas.translate(SIZE / 2 + max(-4, min(4, dx)), SIZE / 2 + max(-4, min(4, dy)))
    canvas.rotate(angle)
    canvas.skew(shear, 0)
    canvas.scale(height * rng.uniform(0.65, 1.15), height)
    corners = [(-50, -50), (50, -50), (50, 50), (-50, 50)]
    moved = corners + rng.normal(0, 4, (4, 2))
    perspective = skia.Matrix()
    perspective.setPolyToPoly([*starmap(skia.Point, corners)], [*starmap(skia.Point, moved)])
    canvas.concat(perspective)


def _wall(canvas: skia.Canvas, rng: np.random.Generator, color: Color) -> None:
    """Tones that vary over the wall, and sometimes the joints of bricks or boards."""
    rows, columns = _pick(rng, GRAINS)
    tones = rng.normal(1, rng.uniform(0.03, 0.12), (rows, columns, 1))
    whole = skia.Rect(-160, -160, 160, 160)
    canvas.drawImageRect(_image(np.array(color) * tones), whole, SMOOTH)
    if rng.random() < 0.3:
        _joints(canvas, rng, color)


def _joints(canvas: skia.Canvas, rng: np.random.Generator, color: Color) -> None:
    tone = _shade(color, _pick(rng, (0.6, 0.75, 1.25)))
    paint = stroke(tone, rng.uniform(2, 6), 0.8)
    paint.setStrokeCap(skia.Paint.kButt_Cap)
    height, offset = rng.uniform(26, 70), rng.uniform(0, 70)
    bricks = rng.random() < 0.5
    if not bricks and rng.random() < 0.3:
        canvas.rotate(90)
    for row in range(-3, 4):
        y = row * height + offset
        canvas.drawLine(-200, y, 200, y, paint)
        for column in range(-2, 2) if bricks else ():
            x = (column + row % 2 / 2) * 2.6 * height + offset
            canvas.drawLine(x, y, x, y + height, paint)


def _plate(canvas: skia.Canvas, rng: np.random.Generator, placed: Placed, color: Color) -> None:
    """The board behind a number, its shadow, and sometimes a border."""
    left = min(x - glyph.width / 2 for glyph, x in placed)
    right = max(x + glyph.width / 2 for glyph, x in placed)
    margin, top, bottom = rng.uniform(8, 40), rng.uniform(6, 40), rng.uniform(6, 40)
    plate = skia.Rect(left - margin, -50 - top, right + margin, 50 + bottom)
    corner = rng.uniform(0, 30)
    shadow = plate.makeOffset(rng.uniform(-6, 6), rng.uniform(2, 8))
    canvas.drawRoundRect(shadow, corner, corner, fill((0, 0, 0), 0.5))
    tones = [argb(_shade(color, factor)) for factor in rng.uniform(0.85, 1.12, 2)]
    canvas.drawRoundRect(plate, corner, corner, linear((left, -50), (right, 50), tones))
    if rng.random() < 0.4:
        inset = plate.makeInset(5, 5)
        border = stroke(_ink_color(rng, color), rng.uniform(1.5, 4))
        canvas.drawRoundRect(inset, corner, corner, border)


def _layout(rng: np.random.Generator, digits: Sequence[Glyph], label: int) -> Placed:
    """The label at 0, and up to two neighbours on either side."""
    gap = rng.uniform(6, 26)
    placed = [(digits[label], 0.0)]
    for side in (-1, 1):
        edge = digits[label].width / 2
        for _ in range(_pick(rng, (0, 1, 1, 2))):
            glyph = _pick(rng, digits)
            placed.append((glyph, side * (edge + gap + glyph.width / 2)))
            edge += gap + glyph.width
    return placed


def _number(
    canvas: skia.Canvas, rng: np.random.Generator, placed: Placed, ink: Color, ground: Color
) -> None:
    """The digits: painted, or metal numerals with a shadow, an outline or lit edges."""
    x, y = rng.uniform(-5, 5), rng.uniform(1, 6)
    bold = rng.uniform(1, 7)
    coats = [(0.0, 0.0, fill(ink, bold=bold))]
    style = rng.random()
    if style < 0.3:
        coats.insert(0, (2 * x, 2 * y, fill((0, 0, 0), rng.uniform(0.3, 0.7))))
    elif style < 0.42:
        outline = _of_luminance(ink, 255 - _luminance(ink)) if rng.random() < 0.3 else ground
        outline = _shade(outline, rng.uniform(0.4, 0.8))
        coats.insert(0, (0.0, 0.0, fill(outline, bold=bold + 8)))
    elif style < 0.6:
        light, dark = mix(ink, (255, 255, 255), 0.5), _shade(ink, 0.45)
        coats.insert(0, (-x / 2, -y / 2, fill(light, bold=bold)))
        coats.insert(1, (x / 2, y / 2, fill(dark, bold=bold)))
    loose = rng.uniform(0, 5) * (rng.random() < 0.5)
    poses = [(glyph.path, at, *rng.normal(0, loose, 2)) for glyph, at in placed]
    for dx, dy, paint in coats:
        for path, at, drop, tilt in poses:
            with skia.AutoCanvasRestore(canvas):
                canvas.translate(at + dx, drop + dy)
                canvas.rotate(tilt)
                canvas.drawPath(path, paint)


def _light(canvas: skia.Canvas, rng: np.random.Generator) -> None:
    """Uneven light over the picture: darker to one side, a shadow's edge, glare."""
    canvas.rotate(rng.uniform(0, 360), SIZE / 2, SIZE / 2)
    colors = [argb((255, 250, 235), rng.uniform(0, 0.15)), argb((8, 8, 20), rng.uniform(0, 0.5))]
    canvas.drawPaint(linear((-4, 0), (SIZE + 4, 0), colors))
    canvas.rotate(rng.uniform(0, 360), SIZE / 2, SIZE / 2)
    if rng.random() < 0.3:
        shadow = skia.Rect(rng.uniform(4, 26), -SIZE, 3 * SIZE, 2 * SIZE)
        canvas.drawRect(shadow, fill((8, 8, 24), rng.uniform(0.25, 0.6), rng.uniform(0.3, 2)))
    if rng.random() < 0.2:
        glare = fill((255, 255, 250), rng.uniform(0.2, 0.5), rng.uniform(3, 6))
        canvas.drawCircle(*rng.uniform(4, 28, 2), rng.uniform(2, 7), glare)


def _camera(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The picture (64, 64, 4) uint8 as taken by a distant, cheap camera: (32, 32, 3) uint8.

    It shakes or is out of focus, has few and noisy pixels, and saves as JPEG.
    """
    side = int(rng.uniform(16, 44))
    blur = [min(rng.gamma(1.6, 0.28), 1.2)] * 2
    if rng.random() < 0.2:  # shaken sideways or up and down
        blur[rng.integers(2)] += rng.uniform(0.3, 1)
    picture = Image.fromarray(pixels).convert("RGB").resize((side, side), Image.Resampling.BOX)
    picture = picture.filter(ImageFilter.GaussianBlur([radius * side / SIZE for radius in blur]))
    noise = rng.standard_normal((side, side, 4), np.float32)  # per channel, and common to all
    sensed = picture * rng.uniform(0.93, 1.07, 3).astype(np.float32)
    sensed += rng.gamma(2, 2) * (noise[..., 3:] + 0.4 * noise[..., :3])
    saved = _image(sensed).encodeToData(skia.kJPEG, int(rng.uniform(20, 95)))
    image = skia.Image.MakeFromEncoded(saved).resize(SIZE, SIZE, SMOOTH)
    return image.toarray(colorType=skia.kRGBA_8888_ColorType)[..., :3]


def draw_number(series: int, index: int) -> tuple[np.ndarray, dict[str, int]]:
    """Number `index` of a series: (32, 32, 3) uint8 RGB, and as "label" the digit at its centre."""
    rng = np.random.default_rng([series, index])
    label = int(rng.integers(10))
    canvas, pixels = blank(SIZE, SUPERSAMPLING)
    with skia.AutoCanvasRestore(canvas):
        _place(canvas, rng)
        ground = _wall_color(rng)
        with skia.AutoCanvasRestore(canvas):
            _wall(canvas, rng, ground)
        placed = _layout(rng, _pick(rng, _digits()), label)
        if rng.random() < 0.35:
            ground = _wall_color(rng)
            _plate(canvas, rng, placed, ground)
        _number(canvas, rng, placed, _ink_color(rng, ground), ground)
    _light(canvas, rng)
    return _camera(pixels, rng), {"label": label}
