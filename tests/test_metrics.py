"""Measures of images and features against slow loops and closed forms."""

import math

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from dlcvlib.evaluation import features, latent, metrics


def test_squared_mmd_against_a_loop():
    torch.manual_seed(0)
    x, y = torch.randn(6, 4).double(), torch.randn(6, 4).double() + 0.5

    def kernel(a, b):
        return (float(a @ b) / 4 + 1) ** 3

    xx = sum(kernel(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j) / 30
    yy = sum(kernel(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j) / 30
    xy = sum(kernel(a, b) for a in x for b in y) / 36
    assert float(metrics.squared_mmd(x, y)) == pytest.approx(xx + yy - 2 * xy)


def test_kid_separates_sets():
    torch.manual_seed(0)
    a, b, far = torch.randn(300, 8), torch.randn(300, 8), torch.randn(300, 8) + 1
    same, error = metrics.kid(a, b)
    other, _ = metrics.kid(a, far)
    assert abs(same) < 6 * error + 0.05
    assert other > 10 * abs(same)
    assert metrics.kid(a, b) == metrics.kid(a, b)


def test_kid_has_no_deviation_if_every_draw_is_the_whole_set():
    torch.manual_seed(0)
    a, b = torch.randn(60, 8), torch.randn(60, 8)
    value, spread = metrics.kid(a, b)
    assert value == pytest.approx(float(metrics.squared_mmd(a.double(), b.double())))
    assert math.isnan(spread)


def test_fid_in_closed_form():
    torch.manual_seed(0)
    a = torch.randn(5000, 3).double()
    assert metrics.fid(a, a) == pytest.approx(0, abs=1e-6)
    assert metrics.fid(a, a + 2) == pytest.approx(12, rel=1e-6)
    # Scaling a Gaussian by s moves it by (s - 1)^2 times its variance.
    centred = a - a.mean(0)
    assert metrics.fid(centred, 3 * centred) == pytest.approx(
        4 * float(torch.cov(a.T).trace()), rel=1e-6
    )


def test_distances_give_shares_of_the_real_images():
    torch.manual_seed(0)
    means = lambda images: images.float().flatten(2).mean(2)  # noqa: E731
    real = torch.randint(0, 256, (60, 3, 16, 16), dtype=torch.uint8)
    sets = {
        "same": real,
        "blurred": torch.nn.functional.avg_pool2d(real.float() / 255, 3, 1, 1),
        "one": real[:1].repeat(60, 1, 1, 1),
    }
    measured = metrics.distances(means, "means", real, sets).set_index("images")
    assert set(measured["features"]) == {"means"}
    assert set(measured["n"]) == {60}
    same = measured.loc["same"]
    assert same["diversity"] == same["sharpness"] == pytest.approx(1)
    assert same["fid"] == pytest.approx(0, abs=1e-5)
    assert measured.loc["blurred", "sharpness"] < 0.2
    assert measured.loc["one", "diversity"] == pytest.approx(0, abs=1e-3)


def test_nearest_against_a_loop():
    torch.manual_seed(0)
    images = torch.rand(40, 3, 2, 2)
    candidates = torch.randint(256, (120, 3, 2, 2), dtype=torch.uint8)  # more than one piece
    index, distance = metrics.nearest(images, candidates)
    slow = [min((float((a - b / 255).norm()), j) for j, b in enumerate(candidates)) for a in images]
    assert index.tolist() == [j for _, j in slow]
    assert distance.tolist() == pytest.approx([d for d, _ in slow], abs=1e-3)


def test_sharpness_and_diversity():
    images = torch.rand(8, 3, 32, 32)
    blurred = torch.nn.functional.avg_pool2d(images, 5, 1, 2)
    assert metrics.sharpness(blurred) < 0.1 * metrics.sharpness(images)
    assert metrics.sharpness((images * 255).byte()) == pytest.approx(
        metrics.sharpness(images), rel=0.05
    )
    assert metrics.diversity(torch.ones(5, 3)) == 0
    assert metrics.diversity(torch.tensor([[0.0], [1.0], [2.0]])) == pytest.approx(4 / 3)


def test_tsne_keeps_neighbours(tmp_path):
    torch.manual_seed(0)
    labels = np.arange(120) % 4
    features = 20 * torch.randn(4, 10)[labels] + torch.randn(120, 10)
    points = latent.tsne(features, 200, 0, tmp_path)  # more than 120 points permit
    assert points.shape == (120, 2)
    nearest = NearestNeighbors(n_neighbors=10).fit(points).kneighbors(return_distance=False)
    assert (labels[nearest] == labels[:, None]).mean() > 0.95
    assert 10 / 120 < latent.neighbours_kept(features, points) < 1
    assert latent.neighbours_kept(torch.from_numpy(points), points) == 1
    assert latent.tsne(torch.randn(60, 1), 10, 0, tmp_path).shape == (60, 2)


def test_the_extractor_learns_an_attribute(train, faces):
    run = train("features", steps=40, batch_size=20, learning_rate=2e-3)
    found = run.method.features(faces.test.images)
    assert found.shape == (12, 128)
    # A generated picture is rounded like a real one, so that equal pictures have equal features.
    torch.testing.assert_close(run.method.features(faces.test.images.float() / 255), found)
    probability = run.method.probability(faces.train.images, "Male")
    male = faces.train.attributes["Male"].bool()
    assert probability[male].mean() > probability[~male].mean() + 0.3


def test_both_chapters_of_faces_use_one_extractor(faces, params):
    names = {features.extractor(params(c), faces).key for c in ("vae", "gan")}
    assert len(names) == 1
    (own,) = features.extractors(params("vae"), faces)
    assert {own.key} == names


def test_inceptions_weights_give_features_and_are_not_downloaded(monkeypatch, tmp_path):
    from safetensors.torch import save_file
    from torchvision.models import Inception_V3_Weights, inception_v3

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert features.inception() is None
    assert Inception_V3_Weights.IMAGENET1K_V1.url.endswith(f"/{features.INCEPTION}")
    torch.manual_seed(0)
    weights = inception_v3(init_weights=False).state_dict()
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    save_file(weights, (folder / features.INCEPTION).with_suffix(".safetensors"))
    extract = features.inception().features
    images = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)
    found = extract(images)
    assert found.shape == (2, 2048)
    assert found.isfinite().all()
    # A generated picture is rounded like a real one, and the margin is seen too.
    assert torch.equal(extract(images.float() / 255 + 0.001), found)
    images[:, :, :2] = 0
    assert not torch.equal(extract(images), found)
