"""The hair of drawn faces: behind the neck and around the head, and in front of the skull.

Imported by worker processes: NumPy and skia only.
"""

import math

import numpy as np
import skia

from dlcvlib.data.synthetic.brushes import argb, curve, fill, glow, linear, radial, stroke
from dlcvlib.data.synthetic.people import Person, shade

CROWN_Y = 9.0


def hair_behind(canvas: skia.Canvas, p: Person, rng: np.random.Generator) -> None:
    """The hair behind the neck and around the head."""
    if p.style in ("bald", "short", "crop", "receding"):
        return
    cx, w = 32 + 1.2 * p.turn, p.width
    if p.style == "bun":
        canvas.drawCircle(cx - 2 * p.turn, 5.0, 6.5, fill(shade(p.hair, 0.8)))
        return
    if p.style == "curly":
        radius, low = (w + 2.2, 26) if p.male else (w + 6.5, 40)
        for angle in np.linspace(0, 2 * math.pi, 26, endpoint=False):
            x, y = cx + radius * math.cos(angle), 24 + radius * 0.98 * math.sin(angle)
            if y < low:
                size, tone = rng.uniform(3, 4.6), rng.uniform(0.7, 0.95)
                canvas.drawCircle(x, y, size, fill(shade(p.hair, tone)))
        whole = skia.Rect(cx - radius, 24 - radius, cx + radius, low)
        canvas.drawOval(whole, fill(shade(p.hair, 0.75)))
        return
    length = {"bob": 49.0, "long": 70.0, "wavy": 66.0}[p.style] + rng.uniform(-3, 3)
    spread = {"bob": 4.0, "long": 3.2, "wavy": 5.8}[p.style]
    wave = 1.8 if p.style == "wavy" else 0.3
    left, right = [], []
    for i, y in enumerate(np.linspace(16, length, 6)):
        reach = w + spread * min(1, 0.35 + i * 0.2) + wave * math.sin(1.9 * i)
        left.append((cx - reach, y))
        right.append((cx + reach, y))
    top = [(cx - w * 0.75, 7.0), (cx, 3.4), (cx + w * 0.75, 7.0)]
    outline = [*reversed(left), *top, *right]
    paint = linear((0, 8), (0, length), [argb(shade(p.hair, 0.85)), argb(shade(p.hair, 0.6))])
    canvas.drawPath(curve(*outline, closed=True), paint)
    for _ in range(12):
        side = rng.choice([-1, 1])
        x = cx + side * rng.uniform(w * 0.85, w + spread)
        path = curve((x - side, 16), (x, 32), (x + side * rng.uniform(-1.5, 1.5), length - 2))
        canvas.drawPath(path, stroke(shade(p.hair, rng.uniform(0.6, 1.2)), 0.7, 0.5))


def hair_front(canvas: skia.Canvas, p: Person, rng: np.random.Generator) -> None:
    """The cap of hair over the skull, down to the hairline, with strands."""
    if p.style == "bald":
        glow(canvas, 32 + 3 * p.light + 2 * p.turn, 13, 6, 4, shade(p.skin, 1.6), 0.55)
        return
    cx, w = 32 + 1.6 * p.turn, p.width
    volume = {"crop": 0.6, "receding": 0.3, "curly": 3.4, "bun": 1.0}.get(p.style, 2.6)
    line = {"crop": 17.0, "curly": 17.5}.get(p.style, 17.6)
    temple = {"long": 40.0, "wavy": 40.0, "bob": 43.0, "bun": 29.0}.get(p.style, 29.5)
    apex = cx + 0.55 * p.part * w
    inner = w * (0.9 if temple > 35 else 0.96)
    top = CROWN_Y - 2.2 - volume
    outer = [
        (cx - w - 0.7 - 0.25 * volume, temple), (cx - w - 0.9 - 0.4 * volume, 20),
        (cx - w * 0.62, top + 2.6), (cx, top), (cx + w * 0.62, top + 2.6),
        (cx + w + 0.9 + 0.4 * volume, 20), (cx + w + 0.7 + 0.25 * volume, temple),
    ]  # fmt: skip
    # The hairline from the right to the left: its ends, its sides and its middle.
    if p.bangs:
        side = 24.6 if not p.male else 22.6
        ends, share, middle = 27, 0.6, (cx, side + 0.8)
    elif p.style == "receding":
        ends, share, side, middle = 24, 0.62, 12.5, (cx, 14.5)
    elif p.style in ("long", "wavy", "bob"):
        ends, share, side, middle = 30, 0.72, 21, (apex, 12.6)
    else:
        ends, share, side, middle = 26, 0.74, line, (apex, line - 2.6)
    right, left = cx + w * share, cx - w * share
    front = [(cx + inner, ends), (right, side), middle, (left, side), (cx - inner, ends)]
    path = curve(*outer, *front, closed=True)
    glow(canvas, cx, 20.5, w, 6.5, shade(p.skin, 0.4), 0.3)
    colors = [argb(shade(p.hair, f)) for f in (1.16, 1.0, 0.72)]
    canvas.drawPath(path, radial(cx + 7 * p.light, top + 6, 27, colors, [0, 0.45, 1]))
    with skia.AutoCanvasRestore(canvas):
        canvas.clipPath(path, True)
        if p.style == "curly":
            for _ in range(70):
                x, y = cx + rng.uniform(-w - 4, w + 4), rng.uniform(top, 28)
                radius = rng.uniform(0.9, 1.8)
                curl = stroke(shade(p.hair, rng.uniform(0.55, 1.3)), 0.6, 0.55)
                canvas.drawCircle(x, y, radius, curl)
        else:
            for _ in range(34):
                x = cx + rng.uniform(-w - 2, w + 2)
                start = (apex + 0.35 * (x - apex), top + rng.uniform(0, 3))
                end = (x + 0.16 * (x - cx), rng.uniform(18, temple))
                bend = ((start[0] + end[0]) / 2 + 0.18 * (x - cx), (start[1] + end[1]) / 2 - 2.4)
                strand = stroke(shade(p.hair, rng.uniform(0.6, 1.28)), 0.6, 0.42)
                canvas.drawPath(curve(start, bend, end), strand)
        shine = curve((cx - w * 0.8, 16), (cx + 3 * p.light, top + 5), (cx + w * 0.8, 16))
        canvas.drawPath(shine, stroke(shade(p.hair, 1.5), 2.2, 0.28, 1.2))
