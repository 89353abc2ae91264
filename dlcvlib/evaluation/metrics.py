"""Measures of images and features: pure functions of tensors.

References:
    [1] Heusel et al.: GANs Trained by a Two Time-Scale Update Rule. NIPS 2017 (FID)
    [2] Binkowski et al.: Demystifying MMD GANs. ICLR 2018 (KID)
    [3] Kynkäänniemi et al.: Improved Precision and Recall Metric for Assessing Generative Models.
        NeurIPS 2019. arXiv:1904.06991
"""

from collections.abc import Callable, Mapping

import pandas as pd
import torch
from torch import Tensor

from dlcvlib.data.batches import float_chunks

COMPARED = 1000
"""Maximum number of images that are compared with real ones: time and memory grow with its square,
and a whole test set of faces takes gigabytes as floats."""
SUBSET, SUBSETS = 250, 50
"""Rows that KID draws from either set, and how often."""


def fid(real: Tensor, fake: Tensor) -> float:
    """Fréchet distance of Gaussians fitted to features ([1], eq. 6): (N, D) and (M, D).

    It depends on N and M: report them with it.
    """
    real, fake = real.double(), fake.double()
    covariances = torch.cov(real.T), torch.cov(fake.T)
    # The trace of sqrt(A B) is the sum of the roots of the eigenvalues of A B.
    roots = torch.linalg.eigvals(covariances[0] @ covariances[1]).real.clamp_min(0).sqrt().sum()
    shift = (real.mean(0) - fake.mean(0)).square().sum()
    return float(shift + covariances[0].trace() + covariances[1].trace() - 2 * roots)


def kid(real: Tensor, fake: Tensor) -> tuple[float, float]:
    """Kernel distance of features ([2], section 4): mean and deviation over random subsets.

    Unbiased squared MMD under the kernel (x.y / D + 1)^3; may be slightly negative. The standard
    deviation is NaN where neither set has more rows than are drawn, so that all draws are the same.
    The draws are the same at each call.

    Args:
        real: (N, D).
        fake: (M, D).
    """
    size = min(SUBSET, len(real), len(fake))
    generator = torch.Generator().manual_seed(0)

    def draw(rows: Tensor) -> Tensor:
        return rows[torch.randperm(len(rows), generator=generator)[:size]].double()

    values = torch.stack([squared_mmd(draw(real), draw(fake)) for _ in range(SUBSETS)])
    spread = float(values.std()) if max(len(real), len(fake)) > size else float("nan")
    return float(values.mean()), spread


def squared_mmd(x: Tensor, y: Tensor) -> Tensor:
    """Unbiased squared maximum mean discrepancy under KID's kernel: (n, D) twice -> scalar."""

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def off_diagonal_mean(k: Tensor) -> Tensor:
        n = len(k)
        return (k.sum() - k.trace()) / (n * (n - 1))

    within = off_diagonal_mean(kernel(x, x)) + off_diagonal_mean(kernel(y, y))
    return within - 2 * kernel(x, y).mean()


def precision_recall(real: Tensor, fake: Tensor, neighbours: int = 3) -> tuple[float, float]:
    """How realistic generated images are, and how much of the real variety they cover ([3], eq. 1).

    Precision is the share of generated images that lie among the real ones: within the distance of
    a real image to its `neighbours`-th nearest real one, in feature space. Recall is the share of
    real images that lie among the generated ones in the same sense.

    Args:
        real: features (N, D).
        fake: features (M, D); the measures depend on N and M.
        neighbours: of each image, at most N - 1 and M - 1.
    """

    def among(points: Tensor, others: Tensor) -> float:
        nth = 1 + min(neighbours, len(others) - 1)  # the nearest is the image itself
        radii = torch.cdist(others, others).kthvalue(nth).values
        return float((torch.cdist(points, others) <= radii).any(1).float().mean())

    return among(fake, real), among(real, fake)


def nearest(images: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
    """Index of and Euclidean distance to each image's nearest candidate: (N,) int64, (N,) float.

    Args:
        images: (N, C, H, W) float in 0..1.
        candidates: (M, C, H, W) uint8: as floats a data set takes gigabytes, so a piece at a time.
    """
    queries = images.flatten(1)
    pieces = float_chunks(candidates, images.device)
    best = torch.cat([torch.cdist(queries, piece.flatten(1)) for piece in pieces], 1).min(1)
    return best.indices, best.values


def sharpness(images: Tensor) -> float:
    """Mean variance of the Laplacian of the grey image; (N, 3, H, W), uint8 or float in 0..1.

    Grey is the mean of the three colours.
    """
    scaled = images.float() / 255 if images.dtype == torch.uint8 else images
    grey = scaled.mean(1)
    laplacian = grey.diff(n=2, dim=1)[:, :, 1:-1] + grey.diff(n=2, dim=2)[:, 1:-1]
    return float(laplacian.flatten(1).var(1).mean())


def relative(measured: float | Tensor, real: float | Tensor) -> float:
    """A measure of images as a share of real ones'; NaN where that is 0, as of equal images."""
    return float(measured / real) if real else float("nan")


def distances(
    extractors: Mapping[str, Callable[[Tensor], Tensor]], real: Tensor, sets: Mapping[str, Tensor]
) -> pd.DataFrame:
    """How far sets of images are from real ones, by each kind of features and by sharpness.

    Args:
        extractors: name of the features -> images to (N, D).
        real: (N, 3, H, W) uint8.
        sets: name -> images (M, 3, H, W), uint8 or float in 0..1.

    Returns:
        One row per features and set: images (the set's name), features (theirs), n (how many), kid,
        kid_std, fid, precision, recall, and sharpness as a share of the real images'.
    """
    rows = []
    for features, extract in extractors.items():
        of_real = extract(real)
        real_sharpness = sharpness(real)
        for images, pictures in sets.items():
            of_fake = extract(pictures)
            distance = *kid(of_real, of_fake), fid(of_real, of_fake)
            sharp = relative(sharpness(pictures), real_sharpness)
            shares = *precision_recall(of_real, of_fake), sharp
            rows.append((images, features, len(pictures), *distance, *shares))
    names = ["images", "features", "n", "kid", "kid_std", "fid", "precision", "recall", "sharpness"]
    return pd.DataFrame(rows, columns=names)
