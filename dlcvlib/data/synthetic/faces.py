"""Procedural portraits of 64x64 pixels, with exact attributes: the report's embedded faces.

A person is sampled first (`dlcvlib.data.synthetic.people`), then drawn in layers, from the
background to the overall lighting, at three times the final size. Coordinates are those of the
final picture: x to the right, y down, 0 to 64.

Imported by worker processes: NumPy and skia only.
"""

import colorsys
import math

import numpy as np
import skia

from dlcvlib.data.synthetic.brushes import argb, blank, curve, fill, glow, linear, radial, stroke
from dlcvlib.data.synthetic.hair import CROWN_Y, hair_behind, hair_front
from dlcvlib.data.synthetic.people import Color, Person, mix, sample_person, shade

SIZE = 64
SUPERSAMPLING = 3

# --- layers, from back to front (those of the hair: `hair`) --------------------------------------

EYES_Y, NOSE_Y, MOUTH_Y = 30.5, 41.0, 46.2


def _feature_x(p: Person, offset: float) -> float:
    """x of a feature on the turned head: shifted, and narrower on the side turned away."""
    near = 1 - 0.16 * p.turn * math.copysign(1, offset) if offset else 1
    return 32 + 3.4 * p.turn + offset * near


def _background(canvas: skia.Canvas, p: Person, rng: np.random.Generator) -> None:
    base = _hsv(rng.random(), rng.uniform(0.03, 0.35), rng.uniform(0.25, 0.95))
    other = mix(base, _hsv(rng.random(), 0.2, rng.uniform(0.2, 0.95)), 0.6)
    angle = rng.uniform(0, 2 * math.pi)
    dx, dy = 40 * math.cos(angle), 40 * math.sin(angle)
    canvas.drawPaint(linear((32 - dx, 32 - dy), (32 + dx, 32 + dy), [argb(base), argb(other)]))
    for _ in range(rng.integers(0, 6)):
        radius = rng.uniform(5, 22)
        color = shade(mix(base, other, rng.random()), rng.uniform(0.6, 1.5))
        glow(canvas, *rng.uniform(0, 64, 2), radius, radius * rng.uniform(0.6, 1.5), color, 0.55)


def _hsv(hue: float, saturation: float, value: float) -> Color:
    return tuple(255 * channel for channel in colorsys.hsv_to_rgb(hue, saturation, value))


def _body(canvas: skia.Canvas, p: Person, rng: np.random.Generator) -> None:
    """The neck in the head's shadow, and clothed shoulders."""
    neck = 8.4 if p.male else 6.8
    cx = 32 + 0.6 * p.turn
    skin = shade(p.skin, 0.84)
    path = curve(
        (cx - neck, 44), (cx - neck, 54), (cx - neck - 3, 60), (cx - 14, 66),
        (cx + 14, 66), (cx + neck + 3, 60), (cx + neck, 54), (cx + neck, 44), closed=True,
    )  # fmt: skip
    canvas.drawPath(path, fill(skin))
    glow(canvas, cx + p.turn, p.chin + 1.0, neck + 3, 7, shade(p.skin, 0.45), 0.75)
    cloth = _hsv(rng.integers(12) / 12, rng.uniform(0.05, 0.65), rng.uniform(0.15, 0.9))
    shoulder = rng.uniform(27, 33) if p.male else rng.uniform(22, 27)
    top = 59.5 if p.male else 60.5
    drop = rng.uniform(1.5, 6)
    path = curve(
        (cx - shoulder, 68), (cx - shoulder * 0.8, top + 2.2), (cx - neck - 2, top - 1.5),
        (cx, top + drop), (cx + neck + 2, top - 1.5), (cx + shoulder * 0.8, top + 2.2),
        (cx + shoulder, 68), closed=True,
    )  # fmt: skip
    tones = 1 - 0.25 * p.light, 1 + 0.2 * min(0, p.light)
    colors = [argb(shade(cloth, tone)) for tone in tones]
    canvas.drawPath(path, linear((cx - 20, 0), (cx + 20, 0), colors))


def _head_path(p: Person) -> skia.Path:
    """The outline of face and skull, without ears."""
    cx, w, jaw = 32 + 1.6 * p.turn, p.width, p.width * p.jaw
    left, right = 1 + 0.06 * p.turn, 1 - 0.06 * p.turn
    lean = 2.2 * p.turn
    return curve(
        (cx, CROWN_Y - 1), (cx + w * 0.78 * right, 13.5), (cx + w * right, 26),
        (cx + w * 0.98 * right, 35),
        (cx + jaw * right + 0.3 * lean, 46), (cx + jaw * 0.52 + lean, p.chin - 1.6),
        (cx + lean, p.chin),
        (cx - jaw * 0.52 + lean, p.chin - 1.6), (cx - jaw * left + 0.3 * lean, 46),
        (cx - w * 0.98 * left, 35),
        (cx - w * left, 26), (cx - w * 0.78 * left, 13.5), closed=True,
    )  # fmt: skip


def _head(canvas: skia.Canvas, p: Person) -> None:
    cx, w = 32 + 1.6 * p.turn, p.width
    for side in (-1, 1):
        if side * p.turn < -0.75:
            continue
        x = cx + side * (w + 0.5 - 0.8 * side * p.turn)
        canvas.drawOval(skia.Rect(x - 2.3, 28, x + 2.3, 38.5), fill(shade(p.skin, 0.86)))
        canvas.drawOval(skia.Rect(x - 1.0, 30, x + 1.0, 36.5), fill(shade(p.skin, 0.68), 0.7))
    path = _head_path(p)
    lit = 32 + 6 * p.light + 2 * p.turn
    colors = [argb(shade(p.skin, f)) for f in (1.09, 1.01, 0.88, 0.62)]
    canvas.drawPath(path, radial(lit, 29, 29, colors, [0, 0.42, 0.72, 1]))
    with skia.AutoCanvasRestore(canvas):
        canvas.clipPath(path, True)
        shadow = shade(p.skin, 0.42)
        far, slant = -math.copysign(1, p.light), abs(p.light)
        glow(canvas, cx + far * (w + 1), 36, 9 + 4 * slant, 24, shadow, 0.3 + 0.45 * slant)
        glow(canvas, cx + 2 * p.turn, p.chin + 1.5, 13, 6, shadow, 0.3)
        blush, rosy = mix(p.skin, (205, 70, 60), 0.55), 0.30 if p.male else 0.42
        for side in (-1, 1):
            glow(canvas, _feature_x(p, side * 8.6), 40.0, 5.6, 4.6, blush, rosy)
            glow(canvas, _feature_x(p, side * p.spacing), EYES_Y - 0.4, 5.4, 4.2, shadow, 0.34)
            if p.smile > 0.3:
                glow(canvas, _feature_x(p, side * 8.2), 38.2, 4.0, 2.6, shade(p.skin, 1.35), 0.45)
        glow(canvas, _feature_x(p, 0) + 2 * p.light, 19, 9, 6, shade(p.skin, 1.4), 0.35)


def _eyes(canvas: skia.Canvas, p: Person) -> None:
    gaze = 0.35 * p.turn
    squint = 1 - 0.22 * max(0.0, p.smile) - 0.14 * p.age
    lash = (30, 22, 20)
    for side in (-1, 1):
        x = _feature_x(p, side * p.spacing)
        half = 3.15 * p.eye * (1 - 0.13 * p.turn * side)
        up, down = 1.75 * p.eye * squint, 1.15 * p.eye * squint
        y = EYES_Y
        inner, outer = (x - side * half, y + 0.35), (x + side * half, y - 0.15)
        upper = [inner, (x - side * 0.6, y - up), (x + side * half * 0.55, y - up * 0.82), outer]
        below = [(x + side * half * 0.3, y + down), (x - side * half * 0.5, y + down * 0.8)]
        almond = curve(*upper, *below, closed=True)
        with skia.AutoCanvasRestore(canvas):
            canvas.clipPath(almond, True)
            canvas.drawPath(almond, fill((238, 234, 230)))
            radius = 1.72 * p.eye
            colors = [argb(shade(p.iris, 1.25)), argb(p.iris), argb(shade(p.iris, 0.4))]
            iris = radial(x + gaze, y + 0.3, radius, colors, [0, 0.6, 1])
            canvas.drawCircle(x + gaze, y - 0.25, radius, iris)
            canvas.drawCircle(x + gaze, y - 0.25, radius * 0.48, fill((14, 10, 10)))
            glint = x + gaze + 0.6 * p.light - 0.2
            canvas.drawCircle(glint, y - 0.9, 0.42, fill((255, 255, 255), 0.95))
            canvas.drawPath(curve(*upper), stroke((40, 28, 26), 1.3, 0.4))
        heavy = 0.62 if p.male else 0.85
        canvas.drawPath(curve(*upper), stroke(lash, heavy, 0.9))
        if not p.male:
            corner = curve(upper[2], (outer[0] + side * 0.9, outer[1] - 0.8))
            canvas.drawPath(corner, stroke(lash, 0.7, 0.85))
        crease = [(a, b - 1.15) for a, b in upper[:3]] + [(outer[0] + side * 0.3, outer[1] - 0.9)]
        canvas.drawPath(curve(*crease), stroke(shade(p.skin, 0.5), 0.5, 0.55))
        canvas.drawPath(curve(outer, *below, inner), stroke(shade(p.skin, 0.5), 0.4, 0.5))
        if p.age > 0.45:
            bag = [(a, b + 1.9) for a, b in (outer, *below)]
            shadow = stroke(shade(p.skin, 0.55), 0.6, 0.75 * (p.age - 0.3), 0.35)
            canvas.drawPath(curve(*bag), shadow)
        _brow(canvas, p, x, side)


def _brow(canvas: skia.Canvas, p: Person, x: float, side: int) -> None:
    color = shade(p.hair, 0.6 if p.hair_name == "Blond_Hair" else 0.75)
    y = EYES_Y - 4.7 - 0.4 * max(0.0, p.smile)
    thick = 1.25 * p.brow
    path = curve(
        (x - side * 3.5, y + 0.35 - thick / 2), (x + side * 0.8, y - 0.45 - thick / 2),
        (x + side * 4.3, y + 0.6), (x + side * 0.8, y - 0.45 + thick / 2),
        (x - side * 3.5, y + 0.35 + thick / 2), closed=True,
    )  # fmt: skip
    canvas.drawPath(path, fill(color, 0.8, 0.3))


def _nose(canvas: skia.Canvas, p: Person) -> None:
    x = _feature_x(p, 0) + 0.9 * p.turn
    shadow, light = shade(p.skin, 0.48), shade(p.skin, 1.45)
    side = -math.copysign(1, p.light + 0.4 * p.turn)
    glow(canvas, x + side * 2.0, 35.5, 1.9, 7.0, shadow, 0.42)
    glow(canvas, x - side * 0.5, 34.0, 1.1, 6.0, light, 0.4)
    glow(canvas, x, NOSE_Y + 0.9, p.nose + 1.4, 1.9, shadow, 0.5)
    glow(canvas, x - side * 0.3, NOSE_Y - 1.4, 1.8, 1.6, light, 0.5)
    for wing in (-1, 1):
        width = wing * p.nose
        points = (width * 0.8, -2.0), (width, -0.5), (width * 0.7, 0.4)
        path = curve(*((x + dx, NOSE_Y + dy) for dx, dy in points))
        canvas.drawPath(path, stroke(shadow, 0.55, 0.5))
        inner = x + width * 0.42
        nostril = skia.Rect(inner - 0.75, NOSE_Y - 0.25, inner + 0.75, NOSE_Y + 0.55)
        canvas.drawOval(nostril, fill(shade(p.skin, 0.25), 0.8))


def _mouth(canvas: skia.Canvas, p: Person) -> None:
    x, y = _feature_x(p, 0) + 0.6 * p.turn, MOUTH_Y
    smile = max(0.0, p.smile)
    half = 4.6 + 2.3 * smile
    lift = 2.0 * p.smile
    natural = mix(p.skin, (168, 62, 62), 0.42 if not p.male else 0.28)
    color = mix(natural, (178, 28, 48), 0.75) if p.lipstick else natural
    left, right = (x - half, y - lift), (x + half, y - lift)
    open_ = 2.6 * (smile - 0.4) if smile > 0.55 else 0.0
    full = 1.5 * p.lips
    bow, dip = y - full * 0.85 - 0.25 * lift, y - full * 0.55 - 0.25 * lift
    upper = [left, (x - 1.3, bow), (x, dip), (x + 1.3, bow), right]
    middle = [right, (x + half * 0.45, y + 0.15), (x, y + 0.3), (x - half * 0.45, y + 0.15), left]
    bottom = y + full * 1.05 + 1.25 * open_ + 0.4 * smile
    lower = [(x - half * 0.5, bottom - 0.45), (x, bottom), (x + half * 0.5, bottom - 0.45)]
    glow(canvas, x, bottom + 1.0, 4.4, 1.5, shade(p.skin, 0.45), 0.45)
    below = reversed(lower) if open_ else [(x, bottom)]
    canvas.drawPath(curve(*upper, *below, closed=True), fill(color))
    if open_:
        inside = curve(
            left, (x, y - 0.35), right, (x + half * 0.45, y + open_ * 1.15),
            (x, y + open_ * 1.45), (x - half * 0.45, y + open_ * 1.15), closed=True,
        )  # fmt: skip
        canvas.drawPath(inside, fill((70, 22, 24)))
        with skia.AutoCanvasRestore(canvas):
            canvas.clipPath(inside, True)
            teeth = skia.Rect(x - half, y - 3, x + half, y + 0.95 * open_)
            colors = [argb((190, 180, 172)), argb((250, 247, 240)), argb((190, 180, 172))]
            canvas.drawRect(teeth, linear((x - half, 0), (x + half, 0), colors))
    else:
        canvas.drawPath(curve(left, *lower, *middle[:-1], closed=True), fill(shade(color, 1.1)))
        canvas.drawPath(curve(*middle), stroke(shade(color, 0.42), 0.55, 0.9))
        glow(canvas, x + p.light, bottom - 0.8, 1.8, 0.7, (255, 255, 255), 0.28)
    for side, (end, height) in ((-1, left), (1, right)):
        glow(canvas, end + side * 0.5, height, 1.2, 1.2, shade(p.skin, 0.4), 0.5)
        strength = 0.5 * smile + 0.7 * max(0.0, p.age - 0.35)
        if strength > 0.1:
            start = _feature_x(p, side * (p.nose + 0.6)), NOSE_Y - 1.2
            fold = curve(start, (end + side * 1.5, y - 3.4), (end + side * 1.9, y + 0.6))
            canvas.drawPath(fold, stroke(shade(p.skin, 0.55), 0.8, min(0.75, strength), 0.35))


def _wrinkles(canvas: skia.Canvas, p: Person) -> None:
    if p.age < 0.5 or p.bangs:
        return
    cx = _feature_x(p, 0)
    for row in range(3):
        y = 18.0 + 2.3 * row
        path = curve((cx - 7, y + 0.5), (cx - 2, y - 0.3), (cx + 3, y + 0.2), (cx + 7, y + 0.4))
        canvas.drawPath(path, stroke(shade(p.skin, 0.6), 0.5, 0.85 * (p.age - 0.4), 0.25))


def _beard(canvas: skia.Canvas, p: Person, rng: np.random.Generator) -> None:
    if not p.beard:
        return
    color = shade(p.hair, 0.8)
    cx, w = _feature_x(p, 0) + 0.6 * p.turn, p.width
    moustache = curve(
        (cx - 5.6, 46.4), (cx - 2.5, 43.2), (cx, 43.6), (cx + 2.5, 43.2), (cx + 5.6, 46.4),
        (cx, 44.9), closed=True,
    )  # fmt: skip
    cheeks = curve(
        (cx - w - 2, 33), (cx - w * 0.78, 40), (cx - 6.4, 44.0), (cx, 42.8), (cx + 6.4, 44.0),
        (cx + w * 0.78, 40), (cx + w + 2, 33), (cx + w + 3, 60), (cx - w - 3, 60), closed=True,
    )  # fmt: skip
    mouth = skia.Rect(cx - 5.4, MOUTH_Y - 1.9, cx + 5.4, MOUTH_Y + 2.6)
    with skia.AutoCanvasRestore(canvas):
        canvas.clipPath(_head_path(p), True)
        if p.beard in ("goatee", "moustache"):
            canvas.drawPath(moustache, fill(color, 0.88, 0.3))
        if p.beard == "goatee":
            tuft = skia.Rect(cx - 4.0, 49.2, cx + 4.0, p.chin + 1.5)
            canvas.drawOval(tuft, fill(color, 0.85, 0.6))
        canvas.clipPath(skia.Path.Oval(mouth), skia.ClipOp.kDifference, True)
        if p.beard in ("full", "stubble"):
            canvas.drawPath(cheeks, fill(color, 0.9 if p.beard == "full" else 0.34, 0.9))
        for _ in range(26 if p.beard == "full" else 0):
            x, y = cx + rng.uniform(-w, w), rng.uniform(40, p.chin)
            hair = stroke(shade(p.hair, rng.uniform(0.5, 1.2)), 0.45, 0.45)
            canvas.drawLine(x, y, x + 0.12 * (x - cx), y + 2.2, hair)


def _glasses(canvas: skia.Canvas, p: Person, rng: np.random.Generator) -> None:
    if not p.glasses:
        return
    frame = ((24, 22, 24), (70, 44, 30), (120, 96, 60), (50, 56, 72))[rng.integers(4)]
    width = rng.uniform(0.75, 1.35)
    y = EYES_Y + 0.4
    edges = {}
    for side in (-1, 1):
        x = _feature_x(p, side * (p.spacing + 0.1))
        half = 5.1 * (1 - 0.12 * p.turn * side)
        height = 4.5 if p.glasses == "round" else 3.7
        lens = skia.Rect(x - half, y - height, x + half, y + height)
        corner = height if p.glasses == "round" else 1.5
        canvas.drawRoundRect(lens, min(half, corner * 1.1), corner, fill((225, 235, 245), 0.12))
        canvas.drawRoundRect(lens, min(half, corner * 1.1), corner, stroke(frame, width, 0.95))
        canvas.drawLine(x - 2.2, y - 2.6, x + 0.6, y + 0.4, stroke((255, 255, 255), 0.8, 0.25, 0.3))
        edges[side] = (x - side * half, x + side * half)
    left, right = edges[-1][0], edges[1][0]
    bridge = curve((left, y - 0.8), ((left + right) / 2, y - 1.7), (right, y - 0.8))
    canvas.drawPath(bridge, stroke(frame, width))
    for side in (-1, 1):
        temple = 32 + 1.6 * p.turn + side * (p.width + 0.4)
        canvas.drawLine(edges[side][1], y - 1.2, temple, y - 1.8, stroke(frame, width, 0.9))


def _lighting(canvas: skia.Canvas, p: Person) -> None:
    """Overall lighting: one side brighter, a tint, the corners a little darker."""
    bright = argb((255, 246, 230), 0.16 * abs(p.light))
    dark = argb((10, 8, 25), 0.32 * abs(p.light))
    colors = [bright, dark] if p.light < 0 else [dark, bright]
    canvas.drawPaint(linear((4, 10), (60, 40), colors))
    tint = (255, 170, 90) if p.warmth > 0 else (90, 150, 255)
    canvas.drawPaint(fill(tint, 0.07 * min(1.5, abs(p.warmth))))
    colors = [argb((0, 0, 0), 0), argb((0, 0, 0), 0), argb((0, 0, 0), 0.22)]
    canvas.drawPaint(radial(32, 32, 48, colors, [0, 0.6, 1]))


def draw_face(series: int, index: int) -> tuple[np.ndarray, dict[str, bool]]:
    """Face `index` of a series: (64, 64, 3) uint8 RGB, and its attributes by name."""
    p = sample_person(np.random.default_rng([series, index]))
    rng = np.random.default_rng(p.seed)
    canvas, pixels = blank(SIZE, SUPERSAMPLING)
    _background(canvas, p, rng)
    with skia.AutoCanvasRestore(canvas):
        canvas.translate(32 + p.shift[0], 34 + p.shift[1])
        canvas.scale(p.zoom, p.zoom)
        canvas.translate(-32, -34)
        with skia.AutoCanvasRestore(canvas):
            canvas.rotate(p.tilt, 32, 62)
            hair_behind(canvas, p, rng)
        _body(canvas, p, rng)
        canvas.rotate(p.tilt, 32, 62)
        _head(canvas, p)
        _wrinkles(canvas, p)
        _nose(canvas, p)
        _beard(canvas, p, rng)
        _mouth(canvas, p)
        _eyes(canvas, p)
        hair_front(canvas, p, rng)
        _glasses(canvas, p, rng)
    _lighting(canvas, p)
    blocks = pixels[:, :, :3].reshape(SIZE, SUPERSAMPLING, SIZE, SUPERSAMPLING, 3)
    picture = blocks.mean((1, 3), dtype=np.float32)
    picture += rng.normal(0, p.noise, (SIZE, SIZE, 1)).astype(np.float32)
    return picture.round().clip(0, 255).astype(np.uint8), p.attributes
