"""Comparisons of chapter 2: plain DCGAN, and one trick at a time, over several seeds."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
from torch import Tensor

from dlcvlib.config.schema import GANParams
from dlcvlib.data.types import FaceData
from dlcvlib.evaluation import metrics
from dlcvlib.evaluation.features import Extractor
from dlcvlib.evaluation.gan_health import COLLAPSED
from dlcvlib.evaluation.significance import compare
from dlcvlib.methods import averaging, dcgan
from dlcvlib.methods.vae import prior_samples
from dlcvlib.training.runs import Run

PLAIN = {
    "loss": "bce",
    "discriminator_norm": "batch",
    "soft_labels": [1.0, 1.0],
    "flip_labels": 0.0,
    "generator_steps": 1,
    "input_noise": 0.0,
    "input_blur": 0.0,
    "augmentation": [],
    "ema_decay": 0.0,
}
"""DCGAN as published: no trick, no remedy."""

LABELS = {
    "variant": "variant",
    "kid_late": "KID, second half",
    "kid": "KID, end (test)",
    "diversity": "diversity, end",
    "cost": "time",
}
DIGITS = {"kid_late": 3, "kid": 3, "diversity": 2, "cost": 2}
AVERAGED = 0.995
"""Highest decay of the average that every run keeps; see `decay_reached`."""
SHOWN = 10


@dataclass(frozen=True)
class Comparison:
    """Runs that differ in one thing.

    Attributes:
        frame: one row a run: variant, seed, kid_late (validation, mean over the measurements in
            the run's second half), kid and diversity (test, at the end), cost (training time as a
            multiple of plain DCGAN's at the same seed).
        curves: one row a measurement: variant, seed, step, kid (validation).
        samples: variant -> some samples of its first seed, (SHOWN, 3, 64, 64) in 0..1.
        runs: all of them.
    """

    frame: pd.DataFrame
    curves: pd.DataFrame
    samples: dict[str, Tensor]
    runs: list[Run]


def train(
    params: GANParams,
    faces: FaceData,
    extractor: Extractor,
    variants: Mapping[str, Mapping[str, Any]],
) -> Comparison:
    """Train plain DCGAN and each variant of it for each seed, and measure them.

    Averaging the generator does not touch its training: every run keeps the average, and a
    variant that sets `ema_decay` is measured by it. "plain DCGAN" and averaging share their runs.

    Args:
        params: the chapter's parameters.
        faces: the data.
        extractor: features for KID and diversity.
        variants: name -> changed settings.
    """
    variants = {"plain DCGAN": {}, **variants}
    trained = {
        (name, seed): dcgan.train_or_load(
            _settings(params, seed, changes), faces, extractor, params.runs_dir
        )
        for name, changes in variants.items()
        for seed in params.ablation_seeds
    }
    real = faces.test.images[: metrics.COMPARED]
    of_real = extractor.features(real)
    varied = metrics.diversity(of_real)
    z = prior_samples(len(real), params.latent_dim, params.seed)
    rows, curves, samples = [], [], {}
    for (name, seed), run in trained.items():
        averaged = "ema_decay" in variants[name]
        pictures = run.method.sample(z, averaged=averaged)
        samples.setdefault(name, pictures[:SHOWN].clone())  # a view would keep all of them
        drawn = extractor.features(pictures)
        curve = _curve(run, averaged)
        row = {"variant": name, "seed": seed}
        rows.append(
            row
            | {
                "kid_late": curve.loc[curve["step"] > run.settings.steps / 2, "kid"].mean(),
                "kid": metrics.kid(of_real, drawn)[0],
                "diversity": metrics.diversity(drawn) / varied,
                "cost": run.seconds / trained["plain DCGAN", seed].seconds,
            }
        )
        curves.append(curve.assign(**row))
    return Comparison(pd.DataFrame(rows), pd.concat(curves), samples, list(trained.values()))


def _settings(params: GANParams, seed: int, changes: Mapping[str, Any]):
    smaller = {
        "seed": seed,
        "steps": params.ablation_steps,
        "batch_size": params.ablation_batch_size,
        "channels": params.ablation_channels,
        "learning_rate": params.ablation_learning_rate,
        "keep_snapshots": False,
    }
    always = {"ema_decay": AVERAGED}
    return params.settings.replace(**PLAIN | smaller | dict(changes) | always)


def _curve(run: Run, averaged: bool) -> pd.DataFrame:
    column = "validation_kid_averaged" if averaged else "validation_kid"
    measured = run.history.dropna(subset=column)
    return pd.DataFrame({"step": measured["step"], "kid": measured[column]})


def decay_reached(steps: int) -> float:
    """Decay of the average at the last of so many steps."""
    return averaging.decay_after(steps - 1, AVERAGED)


def verdicts(frame: pd.DataFrame, claims: Mapping[str, str]) -> pd.DataFrame:
    """Each claim that a variant is better than plain DCGAN, judged by `ablation.compare`.

    Args:
        frame: `Comparison.frame`.
        claims: variant -> the claim in words.

    Returns:
        Of `compare`, and change: that of the mean KID, as a share of plain DCGAN's; NaN where that
        is not above zero, as an unbiased KID can be.
    """
    late = dict(list(frame.groupby("variant")["kid_late"]))
    rows = [
        compare(claim, "KID, second half", late["plain DCGAN"], late[variant])
        for variant, claim in claims.items()
    ]
    found = pd.DataFrame(rows)
    plain = late["plain DCGAN"].mean()
    return found.assign(change=-found["difference"] / plain if plain > 0 else math.nan)


def best(frame: pd.DataFrame) -> tuple[str, float]:
    """The variant with the lowest mean KID, and by what share of plain DCGAN's it lies below that.

    Above 1 where the variant's is negative; NaN where plain DCGAN's is not above zero.
    """
    means = frame.groupby("variant", sort=False)["kid_late"].mean()
    plain = means.pop("plain DCGAN")
    return means.idxmin(), 1 - means.min() / plain if plain > 0 else math.nan


def best_sentence(frame: pd.DataFrame) -> str:
    """`best` in words."""
    name, gain = best(frame)
    text = f"The best variant is “{name}”"
    if not math.isnan(gain):
        side = "below" if gain > 0 else "above"
        text += f": its mean KID lies {abs(gain):.0%} {side} plain DCGAN's"
    return f"{text}."


def collapsed(frame: pd.DataFrame) -> list[str]:
    """Variants whose mean diversity is so low that the generator counts as collapsed."""
    means = frame.groupby("variant", sort=False)["diversity"].mean()
    return means.index[means < COLLAPSED].tolist()
