"""Measures of images and features against slow loops and closed forms."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics.pairwise import polynomial_kernel
from sklearn.neighbors import NearestNeighbors

from dlcvlib.evaluation import features, latent, metrics

MEANS = {"means": lambda images: images.float().flatten(2).mean(2)}
"""Features: the mean of each colour."""


def test_squared_mmd_by_scikit_learns_kernel():
    x, y = torch.randn(6, 4).double(), torch.randn(6, 4).double() + 0.5
    others = ~np.eye(6, dtype=bool)
    xx, yy, xy = (
        polynomial_kernel(a, b, degree=3, gamma=1 / 4, coef0=1) for a, b in ((x, x), (y, y), (x, y))
    )
    expected = xx[others].mean() + yy[others].mean() - 2 * xy.mean()
    assert metrics.squared_mmd(x, y).item() == pytest.approx(expected)


def test_kid_is_a_mean_over_draws():
    """It has no deviation if every draw is the whole set."""
    torch.manual_seed(0)
    a, b = torch.randn(2, 300, 8)
    assert metrics.kid(a, b) == metrics.kid(a, b)
    assert metrics.kid(a, b + 1)[0] > 10 * metrics.kid(a, b)[1] > 0
    whole = metrics.squared_mmd(a[:60].double(), b[:60].double()).item()
    assert metrics.kid(a[:60], b[:60]) == pytest.approx((whole, math.nan), nan_ok=True)


def test_fid_in_closed_form():
    """Moving a Gaussian adds the squared shift; scaling it by s, (s - 1)^2 times its variance."""
    torch.manual_seed(0)
    a = torch.randn(5000, 3).double()
    a -= a.mean(0)
    variance = float(torch.cov(a.T).trace())
    assert metrics.fid(a, 3 * a + 2) == pytest.approx(12 + 4 * variance, rel=1e-6)


def test_distances_give_shares_of_the_real_images():
    torch.manual_seed(0)
    real = torch.randint(0, 256, (60, 3, 16, 16), dtype=torch.uint8)
    scaled = real.float() / 255
    sets = {"same": real, "scaled": scaled, "blurred": F.avg_pool2d(scaled, 3, 1, 1)}
    measured = metrics.distances(MEANS, real, sets | {"one": real[:1].repeat(60, 1, 1, 1)})
    assert set(measured["features"]) == {"means"}
    assert set(measured["n"]) == {60}
    measured = measured.set_index("images")
    found = measured.loc["same", ["fid", "precision", "recall", "sharpness"]].tolist()
    assert found == pytest.approx([0, 1, 1, 1], abs=1e-5)
    assert measured.loc["scaled", "sharpness"] == pytest.approx(1, rel=1e-5)
    assert measured.loc["blurred", "sharpness"] < 0.2
    assert measured.loc["one", "recall"] == pytest.approx(1 / 60)


def test_precision_and_recall_against_a_loop():
    torch.manual_seed(0)
    real, fake = torch.randn(30, 2), 0.5 * torch.randn(40, 2) + 0.5

    def among(points, others):
        radii = [sorted(float((a - b).norm()) for b in others)[3] for a in others]
        inside = [
            any(float((p - o).norm()) <= r for o, r in zip(others, radii, strict=True))
            for p in points
        ]
        return pytest.approx(np.mean(inside))

    assert metrics.precision_recall(real, fake) == (among(fake, real), among(real, fake))
    assert metrics.precision_recall(real, real + 100) == (0, 0)
    assert metrics.precision_recall(real[:2], real[:2]) == (1, 1)  # fewer than the neighbours


def test_nearest_against_a_loop():
    torch.manual_seed(0)
    images = torch.rand(40, 3, 2, 2)
    candidates = torch.randint(256, (120, 3, 2, 2), dtype=torch.uint8)  # more than one piece
    index, distance = metrics.nearest(images, candidates)
    slow = [min((float((a - b / 255).norm()), j) for j, b in enumerate(candidates)) for a in images]
    assert index.tolist() == [j for _, j in slow]
    assert distance.tolist() == pytest.approx([d for d, _ in slow], abs=1e-3)


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
    assert latent.tsne(torch.randn(60, 1), 10, 0, tmp_path).shape == (60, 2)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("varying", [0, 1e-8, 1])
@pytest.mark.parametrize("features", [torch.ones(64, 1), torch.eye(2).repeat(32, 4)])
def test_features_that_hardly_vary_are_measured(features, varying, tmp_path):
    """scikit-learn's t-SNE would crash the process."""
    features = features[:1] + varying * (features - features[:1])
    points = latent.tsne(features, 200, 0, tmp_path)
    assert np.isfinite(points).all()
    assert 0 <= latent.neighbours_kept(features, points) <= 1
    assert latent.proxy_a_distance(features, np.arange(64) < 32) < 0.5


@pytest.mark.parametrize("level", [0, 128])
def test_shares_of_real_images_that_are_all_the_same_are_undefined(level):
    torch.manual_seed(0)
    real = torch.full((40, 3, 16, 16), level, dtype=torch.uint8)
    measured = metrics.distances(MEANS, real, {"same": real, "other": torch.rand(40, 3, 16, 16)})
    assert measured["sharpness"].isna().all()
    assert measured[["kid", "fid", "precision", "recall"]].notna().all(axis=None)


def test_the_extractor_learns_an_attribute(train, faces):
    run = train("features", steps=40, batch_size=20, learning_rate=2e-3)
    found = run.method.features(faces.test.images)
    # A generated picture is rounded like a real one, so that equal pictures have equal features.
    torch.testing.assert_close(run.method.features(faces.test.images.float() / 255), found)
    found = run.method.probabilities(faces.train.images)
    assert list(found) == run.settings.attributes
    probability = found["Male"]
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
    assert found.shape == (2, 2048)
    # A generated picture is rounded like a real one, and the margin is seen too.
    assert torch.equal(extract(images.float() / 255 + 0.001), found)
    images[:, :, :2] = 0
    assert not torch.equal(extract(images), found)
