"""Canvases and paints for drawing with skia.

Imported by worker processes: NumPy and skia only.
"""

from collections.abc import Sequence

import numpy as np
import skia

from dlcvlib.data.synthetic.people import Color


def blank(side: int, scale: int) -> tuple[skia.Canvas, np.ndarray]:
    """A black canvas on which coordinates go from 0 to `side`, magnified by `scale`.

    Returns:
        The canvas, and its pixels (side * scale, side * scale, 4) uint8 RGBA.
    """
    pixels = np.zeros((side * scale, side * scale, 4), np.uint8)
    canvas = skia.Canvas(pixels, skia.kRGBA_8888_ColorType, skia.kPremul_AlphaType)
    canvas.scale(scale, scale)
    return canvas, pixels


def argb(color: Color, alpha: float = 1.0) -> int:
    """A colour of 0..255 per channel, clipped, with an opacity of 0..1, in skia's form."""
    r, g, b = (int(min(255, max(0, c))) for c in color)
    return skia.ColorSetARGB(int(255 * min(1.0, max(0.0, alpha))), r, g, b)


def fill(color: Color, alpha: float = 1.0, blur: float = 0.0, bold: float = 0.0) -> skia.Paint:
    """Paint for the inside of an outline and, with `bold`, a stroke of that width along it."""
    paint = skia.Paint(Color=argb(color, alpha), AntiAlias=True)
    if bold:
        paint.setStyle(skia.Paint.kStrokeAndFill_Style)
        paint.setStrokeWidth(bold)
    if blur:
        paint.setMaskFilter(skia.MaskFilter.MakeBlur(skia.kNormal_BlurStyle, blur))
    return paint


def stroke(color: Color, width: float, alpha: float = 1.0, blur: float = 0.0) -> skia.Paint:
    """Paint for a line of that width along an outline, with round ends."""
    paint = fill(color, alpha, blur)
    paint.setStyle(skia.Paint.kStroke_Style)
    paint.setStrokeWidth(width)
    paint.setStrokeCap(skia.Paint.kRound_Cap)
    return paint


def linear(
    start: tuple[float, float], end: tuple[float, float], colors: Sequence[int]
) -> skia.Paint:
    """Paint that goes from colour to colour (see `argb`) between two points."""
    shader = skia.GradientShader.MakeLinear([start, end], colors)
    return skia.Paint(Shader=shader, AntiAlias=True)


def radial(
    x: float, y: float, radius: float, colors: Sequence[int], stops: Sequence[float]
) -> skia.Paint:
    """Paint that goes from colour to colour (see `argb`) from a centre; stops are from 0 to 1."""
    shader = skia.GradientShader.MakeRadial((x, y), radius, colors, stops)
    return skia.Paint(Shader=shader, AntiAlias=True)
