"""Single-colour paints for drawing with skia.

Imported by worker processes: skia only.
"""

import skia

from dlcvlib.data.synthetic.people import Color


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


def stroke(
    color: Color, width: float, alpha: float = 1.0, blur: float = 0.0, *, round_ends: bool = True
) -> skia.Paint:
    """Paint for a line of that width along an outline."""
    paint = fill(color, alpha, blur)
    paint.setStyle(skia.Paint.kStroke_Style)
    paint.setStrokeWidth(width)
    if round_ends:
        paint.setStrokeCap(skia.Paint.kRound_Cap)
    return paint
