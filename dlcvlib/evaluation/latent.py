"""Latent spaces and feature spaces: maps, how far to trust them, directions, walks and probes.

References:
    [1] van der Maaten, Hinton: Visualizing Data using t-SNE. JMLR 2008
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.manifold import TSNE
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from dlcvlib.data.types import FaceData
from dlcvlib.utils import fingerprints, storage
from dlcvlib.utils.stopwatch import timed

PCA_DIMENSIONS = 50
ITERATIONS = 500
"""Of t-SNE: 1,000, the usual number, take twice the time, and keep hardly more neighbours."""
AT_ONCE = 5000
"""Images whose pixels become floats at a time, some 250 MB: a whole set can take gigabytes."""


def carried(perplexity: float, points: int) -> float:
    """The perplexity that t-SNE is run with on so many points."""
    return min(perplexity, (points - 1) / 3)


def tsne(features: Tensor, perplexity: float, seed: int, runs_dir: Path | str) -> np.ndarray:
    """t-SNE ([1]) of features reduced by PCA: (N, D) -> (N, 2); computed once and kept.

    A perplexity that N cannot carry is lowered to what it can (`carried`).

    Args:
        features: (N, D).
        perplexity: about how many neighbours count.
        seed: of its random choices.
        runs_dir: folder of the runs; the map is kept in its `maps`.
    """
    identity = {
        "features": fingerprints.arrays_hash([features.numpy()]),
        "perplexity": perplexity,
        "seed": seed,
        "code": fingerprints.module_hashes(["evaluation/latent"]),
        **fingerprints.versions("scikit-learn", "scipy", "numpy"),
    }

    @timed("t-SNE")
    def make() -> tuple[dict[str, Tensor], dict]:
        reduced = PCA(min(PCA_DIMENSIONS, *features.shape), random_state=seed)
        layout = TSNE(
            perplexity=carried(perplexity, len(features)),
            max_iter=ITERATIONS,
            random_state=seed,
        )
        points = layout.fit_transform(reduced.fit_transform(features.numpy()))
        return {"points": torch.from_numpy(points)}, {}

    path = Path(runs_dir) / "maps" / f"tsne-{fingerprints.json_hash(identity)[:16]}.safetensors"
    return storage.cached(path, make)[0]["points"].numpy()


def _neighbours(points: np.ndarray, count: int) -> np.ndarray:
    """Indices of each point's nearest others: (N, D) -> (N, count)."""
    return NearestNeighbors(n_neighbors=count).fit(points).kneighbors(return_distance=False)


def neighbours_kept(features: Tensor, points: np.ndarray, count: int = 10) -> float:
    """Share of each feature's nearest neighbours that are still neighbours in the map."""
    pairs = zip(_neighbours(features.numpy(), count), _neighbours(points, count), strict=True)
    return float(np.mean([len(np.intersect1d(a, b)) / count for a, b in pairs]))


def neighbour_agreement(points: np.ndarray, labels: np.ndarray, count: int = 10) -> float:
    """Share of each point's nearest neighbours that carry its label."""
    return float((labels[_neighbours(points, count)] == labels[:, None]).mean())


def direction(latents: Tensor, labels: Tensor) -> Tensor:
    """From the mean of those without an attribute to the mean of those with it: (D,).

    Zero where all or none have it.
    """
    chosen = labels.bool()
    if chosen.all() or not chosen.any():
        return torch.zeros(latents.shape[1])
    return latents[chosen].mean(0) - latents[~chosen].mean(0)


def between(start: Tensor, end: Tensor, count: int) -> Tensor:
    """Points on the straight line between two latents, both ends included: (count, D)."""
    return torch.stack([torch.lerp(start, end, float(t)) for t in torch.linspace(0, 1, count)])


def slerp(start: Tensor, end: Tensor, share: float) -> Tensor:
    """A point on the arc between draws of N(0, I): (…, D) twice, share 0..1 -> (…, D).

    A straight line would pass through shorter vectors than a generator has ever seen (White:
    Sampling Generative Networks. 2016. arXiv:1609.04468, section 2.1).
    """
    cosine = F.cosine_similarity(start, end, dim=-1).clamp(-1 + 1e-6, 1 - 1e-6)[..., None]
    angle = torch.arccos(cosine)
    ends = torch.sin((1 - share) * angle) * start + torch.sin(share * angle) * end
    return ends / torch.sin(angle)


def arc(start: Tensor, end: Tensor, count: int) -> Tensor:
    """Points on the arc between two draws of N(0, I), both ends included: (count, D)."""
    return torch.stack([slerp(start, end, float(t)) for t in torch.linspace(0, 1, count)])


def principal_directions(latents: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Unit principal axes and the standard deviation along each: (count, D) and (count,).

    Where the latents have fewer dimensions than `count`, or are fewer, as many as there are.
    """
    pca = PCA(min(count, *latents.shape), svd_solver="full").fit(latents.numpy())
    scale = torch.from_numpy(np.sqrt(pca.explained_variance_)).float()
    return torch.from_numpy(pca.components_).float(), scale


def travels(centre: Tensor, axes: Tensor, deviations: Tensor, strengths: Sequence[float]) -> Tensor:
    """The centre moved along each axis by so many deviations: (axes, strengths, D)."""
    steps = torch.tensor(strengths)[None, :, None] * deviations[:, None, None]
    return centre + steps * axes[:, None, :]


def pixel_components(images: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """Principal components of the pixels, fitted to the first of "train": each (N, count)."""

    def flat(some: Tensor) -> np.ndarray:
        return some.flatten(1).float().div_(255).numpy()

    first = flat(images["train"][:AT_ONCE])
    # By itself scikit-learn takes seven rounds: three times as long, for as much of the variance.
    pca = PCA(
        min(count, *first.shape), svd_solver="randomized", iterated_power=3, random_state=0
    ).fit(first)
    return {
        name: torch.cat([torch.from_numpy(pca.transform(flat(p))) for p in split.split(AT_ONCE)])
        for name, split in images.items()
    }


def probe_auc(train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor) -> float:
    """Area under the ROC curve of a logistic regression on features (N, D); 0.5 is chance.

    NaN if a split has one class only.
    """
    if len(train_labels.unique()) < 2 or len(test_labels.unique()) < 2:
        return float("nan")
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500))
    probe.fit(train.numpy(), train_labels.numpy())
    return float(roc_auc_score(test_labels.numpy(), probe.decision_function(test.numpy())))


def probes(features: Mapping[str, Mapping[str, Tensor]], faces: FaceData) -> pd.DataFrame:
    """`probe_auc` of every attribute on several kinds of features.

    Args:
        features: kind -> {"train": (N, D), "test": (M, D)}.
        faces: whose attributes are read.

    Returns:
        One row an attribute: attribute, share (of test images that have it), a column a kind.
    """
    rows = []
    for name, labels in faces.test.attributes.items():
        row = {"attribute": name, "share": labels.float().mean().item()}
        for kind, splits in features.items():
            known = faces.train.attributes[name]
            row[kind] = probe_auc(splits["train"], known, splits["test"], labels)
        rows.append(row)
    return pd.DataFrame(rows)
