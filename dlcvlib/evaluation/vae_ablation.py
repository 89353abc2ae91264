"""Comparisons of chapter 1: one change at a time, several seeds."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
from torch import Tensor

from dlcvlib.config.schema import VAEParams
from dlcvlib.data.batches import to_float
from dlcvlib.data.types import FaceData
from dlcvlib.evaluation import metrics
from dlcvlib.evaluation.features import Extractor
from dlcvlib.evaluation.significance import compare
from dlcvlib.methods import vae
from dlcvlib.training.runs import Run

LABELS = {
    "variant": "variant",
    "mse": "error a value",
    "kld": "KL (nats)",
    "kid": "KID, prior",
    "diversity": "diversity",
}
DIGITS = {"mse": 5, "kld": 1, "kid": 3, "diversity": 2}
SHOWN = 10
SLACK = 0.5
"""How far above the lowest reconstruction error a weight may lie to be considered."""


@dataclass(frozen=True)
class Comparison:
    """Runs that differ in one thing.

    Attributes:
        frame: one row a run: variant, seed, mse (a value, test), kld (nats an image, test), kid
            and diversity of prior samples (against test images), and for choosing by held_out_mse
            (the run's own last measurement, z drawn as in training) and held_out_kid (of the same
            samples) on validation images.
        samples: variant -> some prior samples of its first seed, (SHOWN, 3, 64, 64) in 0..1.
        runs: all of them.
    """

    frame: pd.DataFrame
    samples: dict[str, Tensor]
    runs: list[Run]


def train(
    params: VAEParams,
    faces: FaceData,
    extractor: Extractor,
    variants: Mapping[str, Mapping[str, Any]],
) -> Comparison:
    """Train a VAE for each variant and seed, `ablation_steps` long, and measure it.

    Args:
        params: the chapter's parameters.
        faces: the data.
        extractor: features for KID and diversity.
        variants: name -> changed settings.
    """
    trained = {
        (name, seed): vae.train_or_load(
            params.settings.replace(steps=params.ablation_steps, seed=seed, **changes),
            faces,
            params.runs_dir,
        )
        for name, changes in variants.items()
        for seed in params.ablation_seeds
    }
    real, held_out = (s.images[: metrics.COMPARED] for s in (faces.test, faces.validation))
    of_real, of_held_out = extractor.features(real), extractor.features(held_out)
    varied = metrics.diversity(of_real)
    z = vae.prior_samples(len(real), params.latent_dim, params.seed)
    rows, samples = [], {}
    for (name, seed), run in trained.items():
        pictures = run.method.decode(z)
        samples.setdefault(name, pictures[:SHOWN].clone())  # a view would keep all of them
        drawn = extractor.features(pictures)
        held_out_error = run.history["validation_mse"].dropna().iloc[-1]
        rows.append(
            {"variant": name, "seed": seed}
            | _reconstruction(run, real)
            | {
                "kid": metrics.kid(of_real, drawn)[0],
                "diversity": metrics.diversity(drawn) / varied,
                "held_out_mse": held_out_error / real[0].numel(),
                "held_out_kid": metrics.kid(of_held_out, drawn)[0],
            }
        )
    return Comparison(pd.DataFrame(rows), samples, list(trained.values()))


def _reconstruction(run: Run[vae.VAE], images: Tensor) -> dict[str, float]:
    mean, log_variance = run.method.posterior(images)
    error = vae.reconstruction_error(to_float(images), run.method.decode(mean))
    return {
        "mse": error.mean().item() / images[0].numel(),
        "kld": vae.kl_divergence(mean, log_variance).mean().item(),
    }


def verdicts(sweep: pd.DataFrame, variants: pd.DataFrame) -> pd.DataFrame:
    """The original's claims about its VAE, each judged by `compare`.

    Args:
        sweep: `train` over KLD weights; the variant is the weight.
        variants: `train` over the other choices, first of them the original's.
    """
    weight = sweep["variant"].astype(float)
    low, others = sweep[weight == weight.min()], sweep[weight.between(0.1, 1)]
    good = others.groupby("seed", as_index=False)["kid"].mean()  # a value a seed, as `low` has
    first = variants["variant"].iloc[0]
    chosen = dict(list(variants.groupby("variant")))
    claims = []
    if len(good) and weight.min() < 0.1:
        claims = [(f"a KLD weight of {weight.min():g} is worse than 0.1 to 1", "kid", low, good)]
    for claim, variant in (
        ("vertical flips do harm", "with vertical flips"),
        ("Sigmoid is better than Tanh", "Tanh output"),
        ("LeakyReLU is better than ReLU", "ReLU in the decoder"),
    ):
        claims += [(claim, measure, chosen[variant], chosen[first]) for measure in ("mse", "kid")]
    names = {"kid": "KID of prior samples", "mse": "reconstruction error a value"}
    return pd.DataFrame(
        compare(claim, names[column], worse[column], better[column])
        for claim, column, worse, better in claims
    )


def chosen_weight(sweep: pd.DataFrame, weight: float) -> str:
    """What the sweep says of the weight that the main run uses, by a rule that is part of the text.

    It goes by validation images: test images choose nothing.

    Args:
        sweep: `train` over KLD weights; the variant is the weight.
        weight: the main run's.
    """
    weights = sweep["variant"].astype(float)
    means = sweep.groupby(weights)[["held_out_mse", "held_out_kid"]].mean()
    errors, kids = means["held_out_mse"], means["held_out_kid"]
    choice = kids[errors <= (1 + SLACK) * errors.min()].idxmin()
    text = (
        "The rule for the weight goes by held-out images: the lowest KID among those whose "
        f"reconstruction error lies at most {SLACK:.0%} above the lowest ({errors.min():.4f}, at "
        f"{errors.idxmin():g}). It chooses {choice:g}, with a held-out error of "
        f"{errors[choice]:.4f} and a KID of {kids[choice]:.3f}. "
    )
    if choice == weight:
        return text + "That is the weight of the main run."
    return text + f"The main run uses {weight:g}: `kld_weight` is worth another try."
