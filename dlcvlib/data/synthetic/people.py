"""People to be drawn: traits sampled in plausible combinations, and their attributes.

Imported by worker processes: NumPy only.
"""

from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np

Color = tuple[float, float, float]

SKIN: tuple[Color, ...] = (
    (242, 208, 184), (235, 194, 165), (226, 180, 146), (214, 163, 124),
    (190, 137, 98), (160, 108, 73), (124, 80, 53), (92, 58, 40),
)  # fmt: skip
HAIR: dict[str, tuple[Color, ...]] = {
    "Black_Hair": ((24, 20, 20), (36, 28, 26), (20, 22, 28)),
    "Brown_Hair": ((84, 56, 38), (110, 74, 48), (98, 58, 36), (128, 70, 42)),
    "Blond_Hair": ((216, 180, 116), (232, 202, 146), (196, 158, 96)),
    "Gray_Hair": ((176, 174, 172), (206, 204, 202), (150, 148, 148)),
}
IRIS: tuple[Color, ...] = (
    (70, 45, 30), (95, 62, 38), (86, 104, 70), (84, 118, 146), (112, 128, 136),
)  # fmt: skip


class Person(SimpleNamespace):
    """Everything that determines a portrait; `sample_person` says what."""

    @property
    def attributes(self) -> dict[str, bool]:
        """By name, in the order of the columns."""
        return {
            "Male": self.male,
            "Young": self.age < 0.5,
            "Smiling": self.smile > 0.3,
            "Eyeglasses": bool(self.glasses),
            **{name: self.hair_name == name for name in HAIR},
            "Bald": self.style == "bald",
            "Bangs": self.bangs,
            "No_Beard": not self.beard,
            "Wearing_Lipstick": self.lipstick,
        }


def sample_person(rng: np.random.Generator) -> Person:
    """A person with plausible traits: only men have beards, grey hair comes with age."""
    male = rng.random() < 0.48
    young = rng.random() < 0.62
    age = rng.uniform(0, 0.5) if young else rng.uniform(0.5, 1)
    tone = rng.beta(1.1, 1.6)
    style, bangs = _style(rng, male, age)
    hair_name = "" if style == "bald" else _hair_name(rng, tone, age)
    smiling = rng.random() < (0.45 if male else 0.6)
    beard = ""
    if male and rng.random() < 0.45:
        beards = ["stubble", "full", "goatee", "moustache"]
        beard = str(rng.choice(beards, p=[0.3, 0.35, 0.2, 0.15]))
    palette = HAIR[hair_name or ("Gray_Hair" if age > 0.7 else "Brown_Hair")]
    return Person(
        # Lengths are in pixels of the final picture.
        male=male,
        age=age,  # 0 (twenty) to 1 (eighty)
        skin=_jitter(rng, _ramp(SKIN, tone), 6),
        hair_name=hair_name,  # a key of HAIR, or "" if bald
        hair=_jitter(rng, palette[rng.integers(len(palette))], 6),
        style=style,
        part=float(rng.choice([-1, 1]) * rng.uniform(0.1, 0.7)),  # where the hair parts, -1 to 1
        bangs=bangs,
        beard=beard,  # one of the above, or ""
        # From -0.12 (serious) to 1 (broad smile, teeth shown above 0.55).
        smile=rng.uniform(0.4, 1) if smiling else rng.uniform(-0.12, 0.2),
        lipstick=not male and rng.random() < 0.55,
        glasses=str(rng.choice(["round", "square"])) if rng.random() < 0.16 + 0.1 * age else "",
        iris=IRIS[rng.integers(2 if tone > 0.45 else len(IRIS))],
        turn=float(np.clip(rng.normal(0, 0.4), -1, 1)),  # of the head, to the side
        tilt=rng.normal(0, 3.0),  # degrees
        width=rng.normal(15.6 if male else 14.8, 0.7),  # half the head's width at the cheeks
        jaw=rng.normal(0.86 if male else 0.76, 0.05),  # its width as a share of the cheeks'
        chin=rng.normal(55.0 if male else 53.6, 0.8),  # its y
        brow=rng.uniform(0.8, 1.25) * (1.25 if male else 0.85),  # thickness of the brows
        eye=rng.normal(0.96 if male else 1.08, 0.06),  # scale of the eyes
        spacing=rng.normal(7.0, 0.35),  # half the distance between the eyes
        nose=rng.normal(3.5 if male else 3.0, 0.4) + 0.5 * tone,  # its width
        lips=rng.normal(0.85 if male else 1.1, 0.12) + 0.3 * tone,  # their fullness
        light=rng.uniform(-1, 1),  # from the left to from the right
        warmth=rng.normal(0.2, 0.5),  # about -1 (cold) to 1 (warm)
        zoom=rng.normal(1.2, 0.04),  # of the whole person
        shift=(float(rng.normal(0, 0.7)), float(rng.normal(0, 0.7))),  # of the whole person
        noise=rng.uniform(1.0, 3.5),  # standard deviation of the grain
        seed=int(rng.integers(2**31)),  # of the random details: strands, background, grain
    )


def _style(rng: np.random.Generator, male: bool, age: float) -> tuple[str, bool]:
    """Hair style, and whether a fringe covers the forehead."""
    if male:
        styles = ["short", "crop", "curly", "receding", "bald"]
        weights = np.array([0.42, 0.22, 0.16, 0.06 + 0.14 * age, 0.05 + 0.28 * age])
    else:
        styles = ["long", "wavy", "bob", "bun", "curly"]
        weights = np.array([0.3, 0.25, 0.2, 0.13, 0.12])
    style = str(rng.choice(styles, p=weights / weights.sum()))
    fringe = style in ("long", "wavy", "bob", "short") and rng.random() < (0.2 if male else 0.4)
    return style, fringe


def _hair_name(rng: np.random.Generator, tone: float, age: float) -> str:
    if rng.random() < (0.75 * (age - 0.5) / 0.5 if age > 0.5 else 0.02):
        return "Gray_Hair"
    dark = np.clip(0.2 + 1.1 * tone, 0, 0.95)
    names = ["Black_Hair", "Brown_Hair", "Blond_Hair"]
    return str(rng.choice(names, p=[dark, (1 - dark) * 0.56, (1 - dark) * 0.44]))


def _ramp(colors: Sequence[Color], position: float) -> Color:
    """The colour at a position from 0 to 1 along a sequence of colours."""
    place = position * (len(colors) - 1)
    low = min(int(place), len(colors) - 2)
    return mix(colors[low], colors[low + 1], place - low)


def mix(a: Color, b: Color, share: float) -> Color:
    return tuple(x + (y - x) * share for x, y in zip(a, b, strict=True))


def shade(color: Color, factor: float) -> Color:
    """Darker below 1; above 1 lighter, towards white."""
    if factor <= 1:
        return tuple(c * factor for c in color)
    return mix(color, (255, 255, 255), factor - 1)


def _jitter(rng: np.random.Generator, color: Color, amount: float) -> Color:
    common = rng.normal(0, amount)
    return tuple(float(np.clip(c + common + rng.normal(0, amount / 3), 8, 250)) for c in color)
