"""The VAE against closed forms."""

from dataclasses import replace

import pytest
import torch
from conftest import built, close, gradients
from torch.distributions import Normal, kl_divergence
from torch.nn.functional import mse_loss

from dlcvlib.data.batches import to_float
from dlcvlib.data.types import ImageSet
from dlcvlib.evaluation.latent import training_latents
from dlcvlib.methods import vae


@pytest.mark.parametrize("kernel", [2, 4])
@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("output", ["sigmoid", "tanh"])
def test_images_are_in_0_to_1(kernel, normalise, output):
    method = built("vae", decoder_kernel=kernel, output=output, normalise_output=normalise)
    images = method.decoder(50 * torch.randn(3, method.settings.latent_dim))
    assert images.shape == (3, 3, 64, 64)
    assert torch.equal(images, images.clamp(0, 1))


def test_the_step_matches_the_paper(faces):
    """The loss and its gradient, with torch's own divergence and squared error."""
    method = built("vae", kld_weight=0.25)
    images = to_float(faces.train.images[:8])
    mean, log_variance = method.encoder(images)
    posterior = Normal(mean, (0.5 * log_variance).exp())
    torch.manual_seed(1)
    z = mean + posterior.stddev * torch.randn(mean.shape)
    mse = mse_loss(method.decoder(z), images, reduction="sum") / 8
    kld = kl_divergence(posterior, Normal(0.0, 1.0)).sum() / 8
    expected = gradients(method, mse + 0.25 * kld)
    torch.manual_seed(1)
    terms = method.training_step((images,))
    torch.testing.assert_close(terms, {"mse": mse, "kld": kld})
    close(method, expected, rtol=1e-4)


def test_images_are_encoded_and_reconstructed_a_chunk_at_a_time(faces):
    method = built("vae").eval()
    images = torch.cat([faces.train.images, faces.test.images])  # more than one chunk
    mean, log_variance = method.encoder(to_float(images))
    found = [*method.posterior(images), method.encode(images), method.reconstruct(images)]
    expected = [mean, log_variance, mean, method.decoder(mean)]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_validation_is_the_mean_over_all_images(faces):
    """In chunks of unequal size."""
    method, images = built("vae"), torch.cat([faces.train.images, faces.test.images])
    found = method.evaluate(replace(faces, validation=ImageSet(images, {})))
    kld = vae.kl_divergence(*method.posterior(images)).mean().item()
    assert found["kld"] == pytest.approx(kld, rel=1e-4)


def test_fitted_samples_follow_the_latents():
    torch.manual_seed(0)
    centres = torch.tensor([[8.0, 0.0], [-8.0, 0.0]])
    latents = centres[torch.arange(400) % 2] + torch.randn(400, 2)
    z = vae.fitted_samples(latents, 500, seed=0, components=2)
    assert (z[:, 0].abs() > 4).float().mean() > 0.98
    assert (z[:, 0] > 0).float().mean() == pytest.approx(0.5, abs=0.1)
    assert torch.equal(z, vae.fitted_samples(latents, 500, seed=0, components=2))


def test_training_latents_are_computed_once(train, faces, monkeypatch):
    run = train("vae")
    latents = training_latents(run, faces)
    assert torch.equal(latents, run.method.encode(faces.train.images))
    monkeypatch.setattr(vae.VAE, "encode", None)
    assert torch.equal(training_latents(run, faces), latents)
