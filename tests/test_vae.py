"""The VAE against closed forms."""

import math
from dataclasses import replace

import pandas as pd
import pytest
import torch
from conftest import built, close, gradients
from torch.distributions import MultivariateNormal, Normal, kl_divergence
from torch.nn.functional import mse_loss

from dlcvlib.data.batches import resized, to_float
from dlcvlib.data.types import ImageSet
from dlcvlib.evaluation import latent, metrics
from dlcvlib.methods import vae


@pytest.mark.parametrize("kernel", [2, 4])
@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("output", ["sigmoid", "tanh"])
def test_images_are_in_0_to_1(kernel, normalise, output):
    method = built("vae", decoder_kernel=kernel, output=output, normalise_output=normalise)
    images = method.decoder(50 * torch.randn(3, method.settings.latent_dim))
    assert images.shape == (3, 3, 64, 64)
    assert torch.equal(images, images.clamp(0, 1))


@pytest.mark.parametrize("side", [16, 32])
def test_smaller_images_are_means_over_squares_of_pixels(side):
    images = torch.rand(2, 3, 64, 64)
    means = images.unfold(2, 64 // side, 64 // side).unfold(3, 64 // side, 64 // side).mean((4, 5))
    torch.testing.assert_close(resized(images, side), means)


def test_reparameterisation_has_the_right_mean_and_spread_and_gradients():
    torch.manual_seed(0)
    mean, log_variance = (torch.full((200_000,), x, requires_grad=True) for x in (3.0, 2 * 0.7))
    z = vae.reparameterise(mean, log_variance)
    assert z.mean().item() == pytest.approx(3.0, abs=0.03)
    assert z.std().item() == pytest.approx(torch.e**0.7, rel=0.01)
    # d z / d mean is 1, d z / d log_variance half of what the noise adds.
    d_mean, d_log_variance = torch.autograd.grad(z.sum(), [mean, log_variance])
    torch.testing.assert_close(d_mean, torch.ones_like(mean))
    torch.testing.assert_close(d_log_variance, 0.5 * (z - mean).detach())


def by_hand(images, reconstructions, kind):
    """The reconstruction term: the sum of squares, or -log N(x; its decoding, MSE) by torch."""
    if kind == "sum":
        return mse_loss(images, reconstructions, reduction="sum") / len(images)
    deviation = mse_loss(images, reconstructions).sqrt()
    log_likelihood = Normal(reconstructions, deviation).log_prob(images).flatten(1).sum(1).mean()
    constant = images[0].numel() / 2 * (1 + math.log(2 * math.pi))
    return -log_likelihood - constant


@pytest.mark.parametrize("kind", ["sum", "calibrated"])
def test_the_loss_is_its_formula(faces, kind):
    method = built("vae", kld_weight=0.25, reconstruction_loss=kind)
    images = to_float(faces.train.images[:8])
    torch.manual_seed(1)
    mean, log_variance = method.encoder(images)
    reconstructions = method.decoder(vae.reparameterise(mean, log_variance))
    posterior = Normal(mean, (0.5 * log_variance).exp())
    kld = kl_divergence(posterior, Normal(0.0, 1.0)).sum(1).mean()
    loss = by_hand(images, reconstructions, kind) + 0.25 * kld
    expected = gradients(method.encoder, loss)
    torch.manual_seed(1)
    terms = method.training_step((images,))
    assert list(terms) == ["loss", "mse", "kld"]
    torch.testing.assert_close(terms["loss"], loss, rtol=1e-4, atol=0.2)
    close(method.encoder, expected, rtol=1e-2, atol=1e-3)


def test_a_calibrated_loss_of_perfect_reconstructions_is_finite():
    loss = built("vae", reconstruction_loss="calibrated").objective(torch.zeros(()), torch.ones(()))
    assert -1e5 < loss < 0


def test_images_are_encoded_and_reconstructed_a_chunk_at_a_time(faces):
    method = built("vae").eval()
    images = torch.cat([faces.train.images, faces.test.images])  # more than one chunk
    mean, log_variance = method.encoder(to_float(images))
    found = [*method.posterior(images), method.encode(images), method.reconstruct(images)]
    expected = [mean, log_variance, mean, method.decoder(mean)]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_validation_is_the_mean_over_all_images(faces):
    """In chunks of unequal size; but for the draw of z, with which it decodes."""
    method, images = built("vae"), faces.train.images.repeat(2, 1, 1, 1)[:60]
    found = method.evaluate(replace(faces, validation=ImageSet(images, {})))
    kld = vae.kl_divergence(*method.posterior(images)).mean().item()
    assert found["kld"] == pytest.approx(kld, rel=1e-4)
    errors = vae.reconstruction_error(to_float(images), method.reconstruct(images))
    assert found["mse"] == pytest.approx(errors.mean().item(), rel=0.1)
    terms = (torch.tensor(found[name]) for name in ("mse", "kld"))
    assert found["loss"] == pytest.approx(method.objective(*terms).item(), rel=1e-4)


def test_draws_from_a_mixture_follow_the_latents():
    torch.manual_seed(0)
    centres = torch.tensor([[8.0, 0.0], [-8.0, 0.0]])
    rows = centres[torch.arange(460) % 2] + torch.randn(460, 2)
    fitted, held_out = rows[:60], rows[60:]
    z, two = latent.mixture(fitted, held_out, 2, 500, seed=0)
    assert z.shape == (500, 2)
    assert (z[:, 0].abs() > 4).float().mean() > 0.98
    assert (z[:, 0] > 0).float().mean() == pytest.approx(0.5, abs=0.1)
    covariance = fitted.T.cov(correction=0) + latent.VARIANCE * torch.eye(2)
    expected = MultivariateNormal(fitted.mean(0), covariance).log_prob(held_out).mean().item()
    assert latent.mixture(fitted, held_out, 1, 1, seed=0)[1] == pytest.approx(expected, abs=0.01)
    assert two > expected
    assert torch.equal(z, latent.mixture(fitted, held_out, 2, 500, seed=0)[0])


def test_validation_images_choose_the_density_once(train, faces, monkeypatch):
    run, classifier = train("vae"), train("features")
    monkeypatch.setattr(latent, "LEAST", 4)  # of 40 images
    draws, table = latent.fitted_samples(run, faces, classifier)
    assert draws.shape == (metrics.COMPARED, run.settings.latent_dim)
    assert [*table["components"]] == [1, 10]
    size = run.settings.image_size
    sets = resized(faces.validation.images, size), run.method.decode(draws)
    kid = metrics.squared_mmd(*(classifier.method.features(one).double() for one in sets))
    assert kid.item() == pytest.approx(table["kid"].min())
    monkeypatch.setattr(vae.VAE, "posterior", None)
    again, as_before = latent.fitted_samples(run, faces, classifier)
    torch.testing.assert_close(again, draws, rtol=0, atol=0)
    pd.testing.assert_frame_equal(as_before, table)
