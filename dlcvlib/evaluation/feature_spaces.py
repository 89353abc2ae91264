"""Feature spaces of chapters 3 and 4: maps by t-SNE, and how far apart the domains lie in them.

References:
    [1] Ben-David et al.: Analysis of Representations for Domain Adaptation. NIPS 2006 (A-distance)
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from dlcvlib.config.schema import DigitParams
from dlcvlib.data.types import Pair
from dlcvlib.evaluation import latent
from dlcvlib.evaluation.adaptation import Scores


@dataclass(frozen=True)
class FeatureMap:
    """Test images of both domains in a method's feature space, laid out by t-SNE.

    Attributes:
        pair: its name.
        method: the method's name.
        images: (N, 3, 32, 32) uint8.
        points: (N, 2).
        is_source: (N,) bool.
        labels: (N,) true labels.
        predictions: (N,) what the method takes them for.
        distance: proxy A-distance of the domains in the whole feature space, 0 to 2.
        kept: share of neighbours in feature space that are neighbours in the map.
    """

    pair: str
    method: str
    images: Tensor
    points: np.ndarray
    is_source: np.ndarray
    labels: np.ndarray
    predictions: np.ndarray
    distance: float
    kept: float


def feature_map(pair: Pair, scores: Scores, params: DigitParams) -> FeatureMap:
    """Half source, half target test images in the features of a method's first seed."""
    run = scores.first(pair.name)
    half = min(params.tsne_points // 2, len(pair.source.test), len(pair.target.test))
    tests = [pair.source.test, pair.target.test]
    images = torch.cat([test.images[:half] for test in tests])
    features = run.method.features(images)
    is_source = np.arange(len(images)) < half
    points = latent.tsne(features, params.tsne_perplexity, run.settings.seed, params.runs_dir)
    return FeatureMap(
        pair.name,
        scores.method,
        images,
        points,
        is_source,
        torch.cat([test.labels[:half] for test in tests]).numpy(),
        run.method.classify(features).numpy(),
        proxy_a_distance(features, is_source),
        latent.neighbours_kept(features, points),
    )


def proxy_a_distance(features: Tensor, is_source: np.ndarray) -> float:
    """How well a linear classifier tells the domains apart: 2 (1 - 2 error) ([1], section 4).

    0 is not at all, 2 perfectly; the error is cross-validated.

    Args:
        features: (N, D), as many of each domain.
        is_source: (N,) bool.
    """
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=300))
    right = cross_val_score(probe, features.numpy(), is_source, cv=3).mean()
    return float(np.clip(2 * (1 - 2 * (1 - right)), 0, 2))


def map_summary(maps: Sequence[FeatureMap]) -> pd.DataFrame:
    """One row a map: pair, features, distance, source and target accuracy, neighbours kept."""
    rows = []
    for found in maps:
        right = found.labels == found.predictions
        rows.append(
            {
                "pair": found.pair,
                "features": found.method,
                "distance": found.distance,
                "source": right[found.is_source].mean(),
                "target": right[~found.is_source].mean(),
                "kept": found.kept,
            }
        )
    return pd.DataFrame(rows)


def points_of(maps: Sequence[FeatureMap]) -> pd.DataFrame:
    """One row a point of each map: pair, features, x, y, domain, label, prediction."""
    frames = [
        pd.DataFrame(
            {
                "pair": found.pair,
                "features": found.method,
                "x": found.points[:, 0],
                "y": found.points[:, 1],
                "domain": np.where(found.is_source, "source", "target"),
                "label": found.labels,
                "prediction": found.predictions,
            }
        )
        for found in maps
    ]
    return pd.concat(frames, ignore_index=True)


NEAR = 0.02
"""Changes of an A-distance or an accuracy that are too small for what a map's images can tell."""


def _course(before: float, after: float) -> str:
    if abs(after - before) < NEAR:
        return "hardly changes"
    return "rises" if after > before else "falls"


def distance_sentence(summary: pd.DataFrame) -> str:
    """Whether the domains came closer, and whether that helped: a paragraph a method.

    Args:
        summary: of `map_summary`; the first features are what the others are held against.
    """
    first, *others = summary["features"].unique()
    paragraphs = []
    for method in others:
        parts = []
        for pair, rows in summary.groupby("pair", sort=False):
            before, after = (rows.set_index("features").loc[name] for name in (first, method))
            parts.append(
                f"on {pair} the A-distance {_course(before['distance'], after['distance'])} "
                f"({before['distance']:.2f} to {after['distance']:.2f}) and the target accuracy "
                f"{_course(before['target'], after['target'])} "
                f"({before['target']:.2f} to {after['target']:.2f})"
            )
        paragraphs.append(f"From {first} to {method}, with the first seed: {'; '.join(parts)}.")
    return "\n\n".join(paragraphs)


def closer(summary: pd.DataFrame) -> str:
    """On how many pairs the domains came closer, method by method, in a short sentence.

    Args:
        summary: as for `distance_sentence`.
    """
    first, *others = summary["features"].unique()
    table = summary.pivot(index="pair", columns="features", values="distance")
    counts = [
        sum(_course(*two) == "falls" for two in zip(table[first], table[method], strict=True))
        for method in others
    ]
    more = (f", in {m}'s on {n}" for m, n in zip(others[1:], counts[1:], strict=True))
    return (
        f"In the features of {others[0]} the domains lie closer than in those of {first} on "
        f"{counts[0]} of {len(table)} pairs{''.join(more)}, by the first seed's runs."
    )
