"""Latent and feature spaces: t-SNE maps and how far to trust them, distances of domains.

References:
    [1] van der Maaten, Hinton: Visualizing Data using t-SNE. JMLR 2008
    [2] Ben-David et al.: Analysis of Representations for Domain Adaptation. NIPS 2006 (A-distance)
    [3] Ghosh et al.: From Variational to Deterministic Autoencoders. ICLR 2020. arXiv:1903.12436
        (a density fitted to the latents after training)
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import torch
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.manifold import TSNE
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import cross_val_score
from sklearn.neighbors import kneighbors_graph
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from dlcvlib.config.schema import DANNParams, PixelDAParams
from dlcvlib.data.batches import prior_samples, resized
from dlcvlib.data.types import FaceData, LabelledImages, Pair
from dlcvlib.evaluation.metrics import COMPARED, squared_mmd
from dlcvlib.methods.attributes import AttributeClassifier
from dlcvlib.methods.classifier import Classifier
from dlcvlib.methods.vae import VAE
from dlcvlib.training.runs import Run
from dlcvlib.utils import fingerprints, storage
from dlcvlib.utils.stopwatch import timed

PCA_DIMENSIONS = 50
ITERATIONS = 500
"""Of t-SNE: the usual 1,000 take twice the time and preserve hardly more neighbours."""

FITTED = 30_000
"""Maximum number of latents that a density is fitted to: more would take gigabytes."""
COMPONENTS = (1, 10, 50, 100)
"""Numbers of Gaussians that a fitted density is chosen from."""
LEAST = 100
"""Latents for each of several Gaussians: with fewer, samples come close to training images."""
VARIANCE = 0.1
"""Added to the variances of each Gaussian, beside the prior's of 1: of few latents, it would be
flat in most directions."""


def fitted_samples(
    run: Run[VAE], faces: FaceData, classifier: Run[AttributeClassifier]
) -> tuple[Tensor, pd.DataFrame]:
    """Draws from a mixture of Gaussians fitted to a run's latents, computed once and cached ([3]).

    It is fitted to a draw from q(z|x) of each training image: the means alone are less spread than
    what the decoder was trained on. Of `COMPONENTS` that number is chosen whose draws, decoded,
    have the lowest KID from validation images.

    Args:
        run: of the VAE.
        faces: what it was trained on.
        classifier: its features are those of the KID.

    Returns:
        (COMPARED, latent_dim); and for each number of components the KID, over all images at once,
        and the mean log_likelihood (nats) of validation images' latents.
    """
    code = fingerprints.hashes([Path(__file__)])
    identity = [run.provenance["files"]["model.safetensors"], faces.fingerprint, code]
    name = f"{run.name}-{fingerprints.json_hash([*identity, classifier.name])[:16]}"

    @timed("fitted densities")
    def make() -> tuple[dict[str, Tensor], dict]:
        seed = run.settings.seed
        parts = faces.train.images[:FITTED], faces.validation.images
        z, held_out = (_drawn(run, images, seed) for images in parts)
        size = run.settings.image_size
        real = classifier.method.features(resized(parts[1][:COMPARED], size)).double()
        draws, rows = [], []
        for components in [n for n in COMPONENTS if n == 1 or n * LEAST <= len(z)]:
            drawn, log_likelihood = mixture(z, held_out, components, COMPARED, seed)
            generated = classifier.method.features(run.method.decode(drawn)).double()
            draws.append(drawn)
            rows.append((components, squared_mmd(real, generated).item(), log_likelihood))
        best = np.argmin([kid for _, kid, _ in rows])
        return {"fitted": draws[best]}, {"rows": rows}

    path = run.folder.parent / "latents" / name / "fitted.safetensors"
    kept, meta = storage.cached(path, make)
    names = ["components", "kid", "log_likelihood"]
    return kept["fitted"], pd.DataFrame(meta["rows"], columns=names)


def _drawn(run: Run[VAE], images: Tensor, seed: int) -> Tensor:
    """z ~ q(z|x) of images: (N, latent_dim)."""
    mean, log_variance = run.method.posterior(images)
    return mean + (log_variance / 2).exp() * prior_samples(*mean.shape, seed)


def mixture(
    z: Tensor, held_out: Tensor, components: int, count: int, seed: int
) -> tuple[Tensor, float]:
    """Draws from a mixture of Gaussians fitted to latents z (N, D), and how well others fit it.

    Returns:
        (count, D); and the mean log-likelihood (nats) of the held-out latents.
    """
    density = GaussianMixture(components, reg_covar=VARIANCE, max_iter=20, random_state=seed)
    # Twenty iterations of EM are enough for sampling; convergence to 1e-3 is not needed.
    with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):
        density.fit(z.double().numpy())
    draws, _ = density.sample(count)
    shuffled = np.random.default_rng(seed).permutation(draws)  # sample() sorts by component
    return torch.from_numpy(shuffled).float(), density.score(held_out.double().numpy())


def tsne(features: Tensor, perplexity: float, seed: int, runs_dir: Path | str) -> np.ndarray:
    """t-SNE ([1]) of features reduced by PCA: (N, D) -> (N, 2); computed once and cached.

    A perplexity that is too large for N is lowered to (N - 1) / 3.

    Args:
        features: (N, D).
        perplexity: about the number of neighbours considered.
        seed: of PCA and t-SNE.
        runs_dir: folder of the runs; the map is cached in its `maps`.
    """
    code = fingerprints.hashes([Path(__file__)])
    packages = fingerprints.versions("scikit-learn", "scipy", "numpy")
    identity = [joblib.hash(features.numpy()), perplexity, seed, code, packages]

    @timed("t-SNE")
    def make() -> tuple[dict[str, Tensor], dict]:
        # PCA's layout needs two dimensions, and is divided by the spread along the first: of
        # features that are all equal scikit-learn makes NaN, and crashes the process.
        rows, spread = features.numpy(), False
        if np.ptp(rows, axis=0).any():
            rows = PCA(min(PCA_DIMENSIONS, *rows.shape), random_state=seed).fit_transform(rows)
            spread = rows.shape[1] > 1 and rows[:, 0].std() > 0
        init, nearby = "pca" if spread else "random", min(perplexity, (len(features) - 1) / 3)
        layout = TSNE(init=init, perplexity=nearby, max_iter=ITERATIONS, random_state=seed)
        return {"points": torch.from_numpy(layout.fit_transform(rows))}, {}

    path = Path(runs_dir) / "maps" / f"tsne-{fingerprints.json_hash(identity)[:16]}.safetensors"
    return storage.cached(path, make)[0]["points"].numpy()


def neighbours_kept(features: Tensor, points: np.ndarray, count: int = 10) -> float:
    """Share of each feature's nearest neighbours that are still neighbours in the map."""
    before, after = (kneighbors_graph(rows, count) for rows in (features.numpy(), points))
    return float((before.multiply(after).sum(1) / count).mean())


@dataclass(frozen=True)
class FeatureMap:
    """Test images of both domains in a method's feature space, laid out by t-SNE.

    Attributes:
        pair: its name.
        method: the method's name.
        images: (N, 3, 32, 32) uint8.
        points: one row per image: x, y, source (bool), label, prediction.
        kept: share of neighbours in feature space that are neighbours in the map.
    """

    pair: str
    method: str
    images: Tensor
    points: pd.DataFrame
    kept: float


def feature_map(
    pair: Pair, method: str, run: Run[Classifier], params: DANNParams | PixelDAParams
) -> FeatureMap:
    """Half source, half target test images in the features of a method's run."""
    tests = [pair.source.test, pair.target.test]
    half = min(params.tsne_points // 2, *map(len, tests))
    images = torch.cat([test.images[:half] for test in tests])
    features = torch.cat(domain_features(run, tests, half))
    layout = tsne(features, params.tsne_perplexity, run.settings.seed, params.runs_dir)
    points = pd.DataFrame(layout, columns=["x", "y"]).assign(
        source=np.arange(len(images)) < half,
        label=torch.cat([test.labels[:half] for test in tests]).numpy(),
        prediction=torch.cat(
            [run.method.predict(images[:half], source=True), run.method.predict(images[half:])]
        ).numpy(),
    )
    return FeatureMap(pair.name, method, images, points, neighbours_kept(features, layout))


def domain_features(
    run: Run[Classifier], tests: Sequence[LabelledImages], count: int
) -> list[Tensor]:
    """L's last hidden layer on the first `count` of source and target: twice (count, width)."""
    source, target = (test.images[:count] for test in tests)
    return [run.method.features(source, source=True), run.method.features(target)]


def proxy_a_distance(features: Tensor, is_source: np.ndarray) -> float:
    """2 (1 - 2 error) of a linear domain classifier, cross-validated ([2], section 4): 0 to 2.

    0 if the domains cannot be separated, 2 if they are separated perfectly.

    Args:
        features: (N, D), as many of each domain.
        is_source: (N,) bool.
    """
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=300))
    correct = cross_val_score(probe, features.numpy(), is_source, cv=3).mean()
    return float(np.clip(2 * (1 - 2 * (1 - correct)), 0, 2))
