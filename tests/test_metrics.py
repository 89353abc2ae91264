"""Measures of images and features against slow loops and closed forms."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics.pairwise import polynomial_kernel
from sklearn.neighbors import NearestNeighbors

from dlcvlib.evaluation import features, latent, metrics


def test_squared_mmd_by_scikit_learns_kernel():
    x, y = torch.randn(6, 4).double(), torch.randn(6, 4).double() + 0.5
    others = ~np.eye(6, dtype=bool)
    xx, yy, xy = (
        polynomial_kernel(a, b, degree=3, gamma=1 / 4, coef0=1) for a, b in ((x, x), (y, y), (x, y))
    )
    expected = xx[others].mean() + yy[others].mean() - 2 * xy.mean()
    assert metrics.squared_mmd(x, y).item() == pytest.approx(expected)


def test_kid_separates_sets():
    """It has no deviation if every draw is the whole set."""
    torch.manual_seed(0)
    a, b = torch.randn(2, 300, 8)
    same, error = metrics.kid(a, b)
    assert abs(same) < 6 * error + 0.05
    assert metrics.kid(a, b + 1)[0] > 10 * abs(same)
    whole = metrics.squared_mmd(a[:60].double(), b[:60].double()).item()
    assert metrics.kid(a[:60], b[:60]) == pytest.approx((whole, math.nan), nan_ok=True)


def test_fid_in_closed_form():
    """Moving a Gaussian adds the squared shift; scaling it by s, (s - 1)^2 times its variance."""
    torch.manual_seed(0)
    a = torch.randn(5000, 3).double()
    a -= a.mean(0)
    variance = float(torch.cov(a.T).trace())
    assert metrics.fid(a, 3 * a + 2) == pytest.approx(12 + 4 * variance, rel=1e-6)


def measured(real, **sets):
    """Distances by the means of the three colours: one row per set."""
    means = {"means": lambda images: images.float().flatten(2).mean(2)}
    return metrics.distances(means, real, sets).set_index("images")


def test_distances_give_shares_of_the_real_images():
    torch.manual_seed(0)
    real = torch.randint(0, 256, (60, 3, 16, 16), dtype=torch.uint8)
    blurred = F.avg_pool2d(real.float() / 255, 3, 1, 1)
    found = measured(real, same=real, floats=real / 255, blurred=blurred, one=real[[0] * 60])
    same = found.loc["same"]
    assert (same.fid, same.diversity, same.sharpness) == pytest.approx((0, 1, 1), abs=1e-5)
    assert found.loc["floats", "sharpness"] == pytest.approx(1)
    assert found.loc["blurred", "sharpness"] < 0.2
    assert found.loc["one", "diversity"] == pytest.approx(0, abs=1e-3)


def test_nearest_against_a_loop():
    torch.manual_seed(0)
    images = torch.rand(40, 3, 2, 2)
    candidates = torch.randint(256, (120, 3, 2, 2), dtype=torch.uint8)  # more than one piece
    index, distance = metrics.nearest(images, candidates)
    slow = [min((float((a - b / 255).norm()), j) for j, b in enumerate(candidates)) for a in images]
    assert index.tolist() == [j for _, j in slow]
    assert distance.tolist() == pytest.approx([d for d, _ in slow], abs=1e-3)


def test_diversity_is_the_mean_distance():
    assert metrics.diversity(torch.tensor([[0.0], [1.0], [2.0]])) == pytest.approx(4 / 3)


def test_tsne_keeps_neighbours(tmp_path):
    torch.manual_seed(0)
    labels = np.arange(120) % 4
    features = 20 * torch.randn(4, 10)[labels] + torch.randn(120, 10)
    points = latent.tsne(features, 200, 0, tmp_path)  # more than 120 points permit
    nearest = NearestNeighbors(n_neighbors=10).fit(points).kneighbors(return_distance=False)
    assert (labels[nearest] == labels[:, None]).mean() > 0.95
    before = NearestNeighbors(n_neighbors=10).fit(features).kneighbors(return_distance=False)
    kept = [len(set(a) & set(b)) / 10 for a, b in zip(before, nearest, strict=True)]
    assert latent.neighbours_kept(features, points) == pytest.approx(np.mean(kept))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "features",
    [
        torch.zeros(64, 8),
        torch.rand(1, 8) + 1e-8 * torch.rand(64, 8),
        torch.arange(64.0)[:, None] % 5,
        torch.eye(2).repeat(32, 4),
    ],
    ids=["equal", "nearly", "one column", "two places"],
)
def test_features_that_hardly_vary_are_measured(features, tmp_path):
    """scikit-learn's t-SNE would crash the process."""
    points = latent.tsne(features, 200, 0, tmp_path)
    assert np.isfinite(points).all()
    assert 0 <= latent.neighbours_kept(features, points) <= 1
    assert latent.proxy_a_distance(features, np.arange(64) < 32) < 0.5
    assert (metrics.diversity(features) > 0) == (features.std(0).max() > 0.01)


@pytest.mark.parametrize("level", [0, 128])
def test_shares_of_real_images_that_are_all_the_same_are_undefined(level):
    real = torch.full((40, 3, 16, 16), level, dtype=torch.uint8)
    found = measured(real, same=real, other=torch.rand(40, 3, 16, 16))
    assert found[["diversity", "sharpness"]].isna().all(axis=None)
    assert found[["kid", "fid"]].notna().all(axis=None)


def test_the_extractor_learns_an_attribute(train, faces):
    run = train("features", steps=40, batch_size=20, learning_rate=2e-3)
    found = run.method.features(faces.test.images)
    # A generated picture is rounded like a real one, so that equal pictures have equal features.
    torch.testing.assert_close(run.method.features(faces.test.images.float() / 255), found)
    probability = run.method.probability(faces.train.images, "Male")
    male = faces.train.attributes["Male"].bool()
    assert probability[male].mean() > probability[~male].mean() + 0.3


def test_inceptions_weights_give_features_and_are_not_downloaded(monkeypatch, tmp_path):
    from safetensors.torch import save_file
    from torchvision.models import Inception_V3_Weights, inception_v3

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert features.inception() is None
    assert Inception_V3_Weights.IMAGENET1K_V1.url.endswith(f"/{features.INCEPTION}")
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    weights = inception_v3(init_weights=False).state_dict()
    save_file(weights, (folder / features.INCEPTION).with_suffix(".safetensors"))
    extract = features.inception()
    images = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)
    found = extract(images)
    # A generated picture is rounded like a real one, and the margin is seen too.
    assert torch.equal(extract(images.float() / 255 + 0.001), found)
    images[:, :, :2] = 0
    assert not torch.equal(extract(images), found)
