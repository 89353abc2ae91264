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


def glow(canvas: skia.Canvas, x: float, y: float, rx: float, ry: float, color: Color, alpha: float):
    """A soft ellipse that fades out, for inexpensive shading."""
    colors = [argb(color, alpha), argb(color, 0.55 * alpha), argb(color, 0)]
    with skia.AutoCanvasRestore(canvas):
        canvas.translate(x, y)
        canvas.scale(rx, ry)
        canvas.drawCircle(0, 0, 1, radial(0, 0, 1, colors, [0, 0.5, 1]))


def curve(*points: tuple[float, float], closed: bool = False) -> skia.Path:
    """A smooth path through points (Catmull-Rom splines as cubics)."""
    first, last = points[0], points[-1]
    around = [last, *points, first, points[1]] if closed else [first, *points, last]
    path = skia.PathBuilder()
    path.moveTo(*first)
    for before, start, end, after in zip(around, around[1:], around[2:], around[3:], strict=False):
        path.cubicTo(
            start[0] + (end[0] - before[0]) / 6, start[1] + (end[1] - before[1]) / 6,
            end[0] - (after[0] - start[0]) / 6, end[1] - (after[1] - start[1]) / 6,
            *end,
        )  # fmt: skip
    if closed:
        path.close()
    return path.detach()
