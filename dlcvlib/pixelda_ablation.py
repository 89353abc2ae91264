"""What 4-4 measures of PixelDA: digits kept, style taken on, losses balanced, two slips undone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from dlcvlib import ablation, adaptation, classifier, feature_spaces, pixelda
from dlcvlib.adaptation import Scores
from dlcvlib.classifier import Classifier
from dlcvlib.data.images import CLASSES, DigitData, LabelledImages, Pair
from dlcvlib.params import PixelDAParams
from dlcvlib.runs import Run

LABELS = {
    "variant": "variant",
    "accuracy": "target accuracy",
    "kept": "digits kept",
    "distance": "distance to target",
}
DIGITS = {"accuracy": 3, "kept": 3, "distance": 2}
DRAWS = 4
"""Versions of each source image that are judged."""
SHOWN = 3
"""Versions of it that a figure shows."""


@dataclass(frozen=True)
class Redrawn:
    """Source test images in the target's style, several times each, and what a judge sees in them.

    The judge is a classifier that was trained on the target's labels and never saw a generated
    image.

    Attributes:
        pair: its name.
        source: the source's test images.
        versions: (DRAWS, N, 3, 32, 32) uint8.
        before: what the judge takes the source images for, (N,).
        after: what it takes each version for, (DRAWS, N).
    """

    pair: str
    source: LabelledImages
    versions: Tensor
    before: Tensor
    after: Tensor

    @property
    def kept(self) -> Tensor:
        """Whether a version is taken for its digit: (DRAWS, N) bool."""
        return self.after == self.source.labels


def judge(params: PixelDAParams, pair: Pair, seed: int) -> Run[Classifier]:
    """The target-only classifier of 3-3."""
    return classifier.train_or_load(params.dann.classifier(seed), pair.target, params.runs_dir)


def redraw(run: Run[pixelda.PixelDA], pair: Pair, judge: Classifier) -> Redrawn:
    """Draw each source test image `DRAWS` times, with noise that only the run's seed decides."""
    torch.manual_seed(run.settings.seed)
    images = pair.source.test.images
    versions = torch.stack(
        [run.method.redraw(images, run.method.noise(len(images))) for _ in range(DRAWS)]
    )
    return Redrawn(
        pair.name,
        pair.source.test,
        versions,
        judge.predict(images),
        torch.stack([judge.predict(drawn) for drawn in versions]),
    )


def redraw_all(
    params: PixelDAParams, digits: DigitData, scores: Scores
) -> dict[tuple[str, int], Redrawn]:
    """`redraw` for every pair and seed of PixelDA's scores."""
    return {
        (name, seed): redraw(
            run, digits.pairs[name], judge(params, digits.pairs[name], seed).method
        )
        for (name, seed), run in scores.trained.items()
    }


def preservation(redrawn: Mapping[tuple[str, int], Redrawn]) -> pd.DataFrame:
    """One row a pair: pair, before, kept (shares of digits the judge reads), spread.

    `spread` is the standard deviation of a pixel over the draws, in per cent of the range: how much
    the noise changes.
    """
    rows = []
    for (pair, _), found in redrawn.items():
        right = (found.before == found.source.labels).float().mean().item()
        spread = found.versions.float().std(0).mean().item() / 255
        kept = found.kept.float().mean().item()
        rows.append({"pair": pair, "before": right, "kept": kept, "spread": spread})
    groups = pd.DataFrame(rows).groupby("pair", sort=False)
    return pd.DataFrame(
        {"pair": pair}
        | {column: adaptation.mean_of(group[column]) for column in ("before", "kept", "spread")}
        for pair, group in groups
    )


def kept_by_digit(redrawn: Mapping[tuple[str, int], Redrawn]) -> pd.DataFrame:
    """One row a pair, seed and digit: pair, seed, digit, kept."""
    return pd.DataFrame(
        {"pair": pair, "seed": seed, "digit": digit, "kept": kept.float().mean().item()}
        for (pair, seed), found in redrawn.items()
        for digit in range(CLASSES)
        if len(kept := found.kept[:, found.source.labels == digit])
    )


def survival_sentence(redrawn: Mapping[tuple[str, int], Redrawn]) -> str:
    """How many digits survive, and which does worst, pair by pair."""
    frame = kept_by_digit(redrawn)
    parts = []
    for pair, rows in frame.groupby("pair", sort=False):
        kept = rows.groupby("digit")["kept"].mean()
        parts.append(
            f"{adaptation.mean_of(rows.groupby('seed')['kept'].mean())} on {pair} (worst the "
            f"{kept.idxmin()}, {kept.min():.0%})"
        )
    return (
        f"Of PixelDA's redrawn source images a classifier of the target reads {'; '.join(parts)}."
    )


# --- pictures ---------------------------------------------------------------------------------


def _examples(labels: Tensor, each: int) -> Tensor:
    """Indices of the first `each` images of every digit."""
    return torch.cat([(labels == digit).nonzero().flatten()[:each] for digit in range(CLASSES)])


def gallery(
    redrawn: Sequence[Redrawn], digits: DigitData, each: int = 2
) -> tuple[list[Tensor], list[str]]:
    """For each pair source images, their versions, and real target images of the same digits.

    Returns:
        Rows of images, and the name of each row.
    """
    rows, names = [], []
    for found in redrawn:
        source, target = found.pair.split("->")
        chosen = _examples(found.source.labels, each)
        rows += [found.source.images[chosen], *found.versions[:SHOWN, chosen]]
        rows += [_alike(digits.domains[target].test, found.source.labels[chosen])]
        names += [source, *(f"noise {n + 1}" for n in range(SHOWN)), target]
    return rows, names


def _alike(data: LabelledImages, labels: Tensor) -> Tensor:
    """An image of each label, the next one each time; grey where a digit is lacking."""
    images = []
    for index, label in enumerate(labels):
        found = data.images[data.labels == label]
        place = int((labels[:index] == label).sum())
        grey = torch.full_like(data.images[0], 128)
        images.append(found[place] if place < len(found) else grey)
    return torch.stack(images)


def headings(redrawn: Sequence[Redrawn], each: int = 2) -> list[str]:
    """The digit over the first of each digit's columns in `gallery`."""
    labels = redrawn[0].source.labels
    digits = labels[_examples(labels, each)].tolist()
    return [str(d) if d not in digits[:i] else "" for i, d in enumerate(digits)]


def failures(found: Redrawn, count: int = 16) -> tuple[list[Tensor], list[str]]:
    """Versions that the judge takes for another digit, one an image, spread over the digits.

    Images that it could read before come first; where there are none, the others.

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


def side_by_side(pictures: Mapping[str, Redrawn], each: int = 2) -> tuple[list[Tensor], list[str]]:
    """The same source images over each variant's version of them: rows, and their names."""
    first = next(iter(pictures.values()))
    chosen = _examples(first.source.labels, each)
    rows = [first.source.images[chosen], *(p.versions[0, chosen] for p in pictures.values())]
    return rows, ["source", *pictures]


# --- one thing changed ------------------------------------------------------------------------


def train(
    params: PixelDAParams, pair: Pair, variants: Mapping[str, Mapping[str, Any]]
) -> tuple[pd.DataFrame, list[Run[pixelda.PixelDA]], dict[str, Redrawn]]:
    """PixelDAs that differ in one thing, `ablation_steps` long, over the seeds.

    Args:
        params: the chapter's parameters.
        pair: what they are trained on.
        variants: name -> changed settings.

    Returns:
        One row a run: variant, seed, accuracy (target test), kept (share of digits that the judge
        reads in redrawn source test images), distance (proxy A-distance of those from the target's
        test images, in the judge's features); the runs; and each variant's first redrawn images.
    """
    rows, trained, shown = [], [], {}
    for name, changes in variants.items():
        for seed in params.seeds:
            settings = params.settings(seed).replace(steps=params.ablation_steps, **changes)
            run = pixelda.train_or_load(settings, pair.adaptation(), params.runs_dir)
            reader = judge(params, pair, seed).method
            found = redraw(run, pair, reader)
            rows.append(
                {
                    "variant": name,
                    "seed": seed,
                    "accuracy": run.method.accuracy(pair.target.test),
                    "kept": found.kept.float().mean().item(),
                    "distance": distance(reader, found.versions[0], pair.target.test.images),
                }
            )
            trained.append(run)
            shown.setdefault(name, found)
    return pd.DataFrame(rows), trained, shown


def distance(judge: Classifier, images: Tensor, others: Tensor) -> float:
    """Proxy A-distance of two sets of images in the judge's features: 0 alike, 2 told apart."""
    count = min(len(images), len(others), 1000)
    features = judge.features(torch.cat([images[:count], others[:count]]))
    return feature_spaces.proxy_a_distance(features, np.arange(2 * count) < count)


def balance_sentence(frame: pd.DataFrame, params: PixelDAParams) -> str:
    """How far the weight moves the target's accuracy; it is not chosen by it, and says so."""
    means = frame.groupby("variant", sort=False)[["accuracy", "kept"]].mean()
    return (
        f"Over the weights of the task loss the target accuracy lies between "
        f"{means['accuracy'].min():.1%} ({means['accuracy'].idxmin()}) and "
        f"{means['accuracy'].max():.1%} ({means['accuracy'].idxmax()}); most digits are kept at "
        f"{means['kept'].idxmax()} ({means['kept'].max():.0%}). The main runs use "
        f"{params.task_weight:g}: a choice by target accuracy would need labels that the method "
        "must not have."
    )


def balance(params: PixelDAParams) -> dict[str, dict[str, Any]]:
    """The weights of the task loss that are compared: variant -> changed settings."""
    weights = sorted({params.task_weight, *params.task_weights})
    return {f"task weight {weight:g}": {"task_weight": weight} for weight in weights}


NEITHER = "neither slip"
SLIPS = {
    NEITHER: {"softmax_twice": False, "classifier_with_generator": False},
    "Softmax twice": {"softmax_twice": True, "classifier_with_generator": False},
    "T moves with G": {"softmax_twice": False, "classifier_with_generator": True},
    "both slips": {"softmax_twice": True, "classifier_with_generator": True},
}
"""The original's two slips, one by one and together."""


def slip_verdicts(frame: pd.DataFrame) -> pd.DataFrame:
    """For each slip the claim that it costs target accuracy, by `ablation.compare`."""
    wrong = dict(list((1 - frame.set_index("variant")["accuracy"]).groupby("variant")))
    return pd.DataFrame(
        ablation.compare(
            f"it costs accuracy: {slip}", "target error rate", wrong[slip], wrong[NEITHER]
        )
        for slip in SLIPS
        if slip != NEITHER
    )


def slip_sentence(verdicts: pd.DataFrame) -> str:
    """What each slip costs, in words."""
    parts = [
        f"{row.claim.removeprefix('it costs accuracy: ')} {row.difference:+.1%} (*{row.verdict}*)"
        for row in verdicts.itertuples()
    ]
    return f"What the slips add to the target's error rate: {'; '.join(parts)}."
