"""What 4-4 measures of PixelDA: digits kept, style taken on, losses balanced, two slips undone."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from dlcvlib.config.schema import PixelDAParams
from dlcvlib.data.types import CLASSES, DigitData, LabelledImages, Pair
from dlcvlib.evaluation import adaptation, feature_spaces, significance
from dlcvlib.evaluation.adaptation import Scores
from dlcvlib.methods import classifier, pixelda
from dlcvlib.methods.classifier import Classifier
from dlcvlib.training.runs import Run

LABELS = {
    "variant": "variant",
    "accuracy": "target accuracy",
    "kept": "digits kept",
    "distance": "distance to target",
}
DIGITS = {"accuracy": 3, "kept": 3, "distance": 2}
DRAWS = 4
"""Versions of each source image that are judged of the main runs."""


@dataclass(frozen=True)
class Redrawn:
    """Source test images in the target's style, several times each, and what a judge sees in them.

    The judge is a classifier that was trained on the target's labels and never saw a generated
    image.

    Attributes:
        pair: its name.
        source: the source's test images.
        versions: (draws, N, 3, 32, 32) uint8.
        judge: its run.
        before: what the judge takes the source images for, (N,).
        after: what it takes each version for, (draws, N).
    """

    pair: str
    source: LabelledImages
    versions: Tensor
    judge: Run[Classifier]
    before: Tensor
    after: Tensor

    @property
    def kept(self) -> Tensor:
        """Whether a version is taken for its digit: (draws, N) bool."""
        return self.after == self.source.labels


def judge(params: PixelDAParams, pair: Pair, seed: int) -> Run[Classifier]:
    """The target-only classifier of 3-3."""
    return classifier.train_or_load(params.dann.classifier(seed), pair.target, params.runs_dir)


def redraw(
    run: Run[pixelda.PixelDA], pair: Pair, judge: Run[Classifier], draws: int = DRAWS
) -> Redrawn:
    """Draw each source test image so many times, with noise that only the run's seed decides."""
    torch.manual_seed(run.settings.seed)
    images = pair.source.test.images
    versions = torch.stack(
        [run.method.redraw(images, run.method.noise(len(images))) for _ in range(draws)]
    )
    return Redrawn(
        pair.name,
        pair.source.test,
        versions,
        judge,
        judge.method.predict(images),
        torch.stack([judge.method.predict(drawn) for drawn in versions]),
    )


def redraw_all(
    params: PixelDAParams, digits: DigitData, scores: Scores
) -> dict[tuple[str, int], Redrawn]:
    """`redraw` for every pair and seed of PixelDA's scores."""
    return {
        (name, seed): redraw(run, digits.pairs[name], judge(params, digits.pairs[name], seed))
        for (name, seed), run in scores.trained.items()
    }


def preservation(redrawn: Mapping[tuple[str, int], Redrawn]) -> pd.DataFrame:
    """One row a run: pair, seed, before, kept (shares of digits the judge reads), spread.

    `spread` is the standard deviation of a pixel over the draws, as a share of the range: how much
    the noise changes.
    """
    rows = []
    for (pair, seed), found in redrawn.items():
        right = (found.before == found.source.labels).float().mean().item()
        # By NumPy: torch takes nearly ten times as long over so short a dimension.
        spread = found.versions.numpy().std(0, ddof=1).mean() / 255
        kept = found.kept.float().mean().item()
        row = {"pair": pair, "seed": seed, "before": right, "kept": kept, "spread": spread}
        rows.append(row)
    return pd.DataFrame(rows)


def kept_by_digit(redrawn: Mapping[tuple[str, int], Redrawn]) -> pd.DataFrame:
    """One row a pair, seed and digit: pair, seed, digit, kept."""
    return pd.DataFrame(
        {"pair": pair, "seed": seed, "digit": digit, "kept": kept.float().mean().item()}
        for (pair, seed), found in redrawn.items()
        for digit in range(CLASSES)
        if (kept := found.kept[:, found.source.labels == digit]).numel()
    )


def survival_sentence(preserved: pd.DataFrame, by_digit: pd.DataFrame) -> str:
    """How many images still show their digit, and which digit does worst, pair by pair.

    Args:
        preserved: of `preservation`.
        by_digit: of `kept_by_digit`.
    """
    digits = by_digit.groupby(["pair", "digit"])["kept"].mean()
    parts = [
        f"{adaptation.mean_of(rows['kept'])} on {pair} ({adaptation.mean_of(rows['before'])} "
        f"before they were redrawn; worst the {digits[pair].idxmin()}, {digits[pair].min():.0%})"
        for pair, rows in preserved.groupby("pair", sort=False)
    ]
    return (
        f"Of PixelDA's redrawn source images a classifier of the target reads {'; '.join(parts)}."
    )


def failures(found: Redrawn, count: int = 16) -> tuple[list[Tensor], list[str]]:
    """Versions that the judge takes for another digit, one an image, spread over the digits.

    Of images that it could read before; where there are none, of the others.

    Returns:
        Two rows of at most `count` images, source and version; and a text a column, such as "3→8".
    """
    labels = found.source.labels
    lost = (~found.kept).any(0)
    chosen = lost & (found.before == labels)
    indices = (chosen if chosen.any() else lost).nonzero().flatten()
    # In turns over the digits, so that the commonest failure does not fill the row.
    digit = pd.Series(labels[indices].numpy())
    turn = digit.groupby(digit).cumcount()
    order = indices[np.lexsort((digit, turn))][:count].sort().values
    draw = (~found.kept[:, order]).int().argmax(0)
    rows = [found.source.images[order], found.versions[draw, order]]
    taken = found.after[draw, order]
    return rows, [f"{a}→{b}" for a, b in zip(labels[order].tolist(), taken.tolist(), strict=True)]


# --- one thing changed ------------------------------------------------------------------------


def train(
    params: PixelDAParams, pair: Pair, variants: Mapping[str, Mapping[str, Any]]
) -> tuple[pd.DataFrame, list[Run[Classifier]], dict[str, Redrawn]]:
    """PixelDAs that differ in one thing, over the seeds; `ablation_steps` long if it is not that.

    Args:
        params: the chapter's parameters.
        pair: what they are trained on.
        variants: name -> changed settings.

    Returns:
        One row a run: variant, seed, accuracy (target test), kept (share of digits that the judge
        reads in redrawn source test images), distance (proxy A-distance of those from the target's
        test images, in the judge's features); the runs, the judges' too; and each variant's redrawn
        images of the first seed.
    """
    rows, trained, shown = [], [], {}
    for name, changes in variants.items():
        for seed in params.seeds:
            settings = params.settings(seed).replace(**{"steps": params.ablation_steps, **changes})
            run = pixelda.train_or_load(settings, pair.adaptation(), params.runs_dir)
            found = redraw(run, pair, judge(params, pair, seed), draws=1)
            rows.append(
                {
                    "variant": name,
                    "seed": seed,
                    "accuracy": run.method.accuracy(pair.target.test),
                    "kept": found.kept.float().mean().item(),
                    "distance": distance(found, pair.target.test.images),
                }
            )
            trained += [run, found.judge]
            shown.setdefault(name, found)
    return pd.DataFrame(rows), trained, shown


def distance(found: Redrawn, target: Tensor) -> float:
    """Proxy A-distance of redrawn and target images in the judge's features: 0 alike, 2 apart."""
    count = min(len(found.source), len(target), 1000)
    features = found.judge.method.features(torch.cat([found.versions[0, :count], target[:count]]))
    return feature_spaces.proxy_a_distance(features, np.arange(2 * count) < count)


def balance(params: PixelDAParams) -> dict[str, dict[str, Any]]:
    """The weights of the task loss that are compared: variant -> changed settings."""
    weights = sorted({params.task_weight, *params.task_weights})
    return {_weight(weight): {"task_weight": weight} for weight in weights}


def _weight(weight: float) -> str:
    return f"task weight {weight:g}"


def balance_sentence(frame: pd.DataFrame, params: PixelDAParams) -> str:
    """At which weight most digits are kept, and how far it moves the target's accuracy."""
    kept = frame.groupby("variant", sort=False)["kept"].mean()
    text = significance.not_chosen(frame, "the weights", _weight(params.task_weight))
    return f"{text} Most digits are kept at {kept.idxmax()} ({kept.max():.0%})."


WAITS, HASTY = "waits", "does not wait"


def waiting(params: PixelDAParams) -> dict[str, dict[str, Any]]:
    """A patient T and one that is not, as long as the main runs: variant -> changed settings."""
    return {
        name: {"steps": params.steps, "patient": patient, "classifier_with_generator": False}
        for name, patient in ((WAITS, True), (HASTY, False))
    }


NEITHER = "neither slip"
SLIPS = {
    name: {"softmax_twice": twice, "classifier_with_generator": with_g, "patient": False}
    for name, twice, with_g in (
        (NEITHER, False, False),
        ("Softmax twice", True, False),
        ("T moves with G", False, True),
        ("both slips", True, True),
    )
}
"""The original's two slips, one by one and together; a T that moves with G cannot be patient."""


def verdicts(slips: pd.DataFrame, waits: pd.DataFrame) -> pd.DataFrame:
    """The claims that each slip, and haste, cost target accuracy, by `significance.compare`.

    Args:
        slips: of `train` with `SLIPS`.
        waits: of `train` with `waiting`.
    """
    rows = [(slips, slip, slip, NEITHER) for slip in SLIPS if slip != NEITHER]
    rows.append((waits, "T does not wait", HASTY, WAITS))
    return pd.DataFrame(
        significance.better(frame, f"it costs accuracy: {name}", worse, better)
        for frame, name, worse, better in rows
    )


def verdict_sentence(verdicts: pd.DataFrame) -> str:
    """What each slip, and haste, cost, in words."""
    parts = [
        f"{row.claim.removeprefix('it costs accuracy: ')} {100 * row.difference:+.1f} "
        f"(*{row.verdict}*)"
        for row in verdicts.itertuples()
    ]
    return f"What each adds to the target's error rate, in percentage points: {'; '.join(parts)}."
