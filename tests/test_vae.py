"""The VAE against closed forms, and that it learns."""

import pytest
import torch
from torch.distributions import Normal
from torch.distributions import kl_divergence as reference_kl

from dlcvlib.data.batches import to_float
from dlcvlib.methods import vae


@pytest.mark.parametrize("kernel", [2, 4])
@pytest.mark.parametrize("normalise", [False, True])
def test_shapes_and_range(kernel, normalise):
    encoder = vae.Encoder((4, 8, 8, 8), 16, normalise)
    decoder = vae.Decoder((4, 8, 8, 8), 16, kernel, normalise_output=normalise)
    mean, log_variance = encoder(torch.rand(3, 3, 64, 64))
    assert mean.shape == log_variance.shape == (3, 16)
    images = decoder(mean)
    assert images.shape == (3, 3, 64, 64)
    assert images.min() >= 0
    assert images.max() <= 1


def test_tanh_covers_the_same_range():
    decoder = vae.Decoder((4, 8), 6, output="tanh")
    images = decoder(50 * torch.randn(4, 6))
    assert images.min() >= 0
    assert images.max() <= 1


def test_original_size():
    encoder = vae.Encoder()
    assert encoder.mean.in_features == 8192
    assert encoder.mean.out_features == 1024


def test_kl_against_torch_distributions():
    mean, log_variance = torch.randn(5, 7), torch.randn(5, 7)
    exact = reference_kl(Normal(mean, (0.5 * log_variance).exp()), Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(vae.kl_divergence(mean, log_variance), exact)


def test_kl_of_the_prior_is_zero():
    assert vae.kl_divergence(torch.zeros(2, 9), torch.zeros(2, 9)).abs().max() == 0


def test_reconstruction_error_against_a_loop():
    a, b = torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4)
    slow = [
        sum((x - y) ** 2 for x, y in zip(i.flatten(), j.flatten(), strict=True))
        for i, j in zip(a, b, strict=True)
    ]
    torch.testing.assert_close(vae.reconstruction_error(a, b), torch.stack(slow))


def test_reparameterisation_has_the_right_mean_and_spread():
    torch.manual_seed(0)
    mean, log_variance = torch.full((200_000, 1), 3.0), torch.full((200_000, 1), 2 * 0.7)
    z = vae.reparameterise(mean, log_variance)
    assert z.mean() == pytest.approx(3.0, abs=0.03)
    assert z.std() == pytest.approx(torch.e**0.7, rel=0.01)


def test_reparameterisation_lets_gradients_through():
    mean, log_variance = (
        torch.zeros(4, 3, requires_grad=True),
        torch.zeros(4, 3, requires_grad=True),
    )
    vae.reparameterise(mean, log_variance).square().sum().backward()
    assert mean.grad.abs().sum() > 0
    assert log_variance.grad.abs().sum() > 0


def test_the_loss_is_its_formula(smoke, faces):
    settings = smoke(kld_weight=0.25).settings
    torch.manual_seed(0)
    model = vae.VAE(settings)
    images = to_float(faces.train.images[:8])
    torch.manual_seed(1)
    before = model.terms(images, sample=True)
    loss = before["mse"] + 0.25 * before["kld"]
    (expected,) = torch.autograd.grad(loss, [model.encoder.mean.weight])
    torch.manual_seed(1)
    terms = model.step((images,))
    torch.testing.assert_close(terms["mse"], before["mse"])
    torch.testing.assert_close(model.encoder.mean.weight.grad, expected)


def test_every_parameter_gets_a_gradient(smoke, faces):
    model = vae.VAE(smoke().settings)
    model.step((to_float(faces.train.images[:8]),))
    silent = [
        f"{module}.{name}"
        for module, net in model.modules.items()
        for name, value in net.named_parameters()
        if value.grad is None or not value.grad.abs().sum() > 0
    ]
    assert silent == []


def test_a_change_of_activation_changes_the_network(smoke):
    kinds = {type(m) for m in vae.VAE(smoke(activation="relu").settings).decoder.modules()}
    assert torch.nn.ReLU in kinds
    assert torch.nn.LeakyReLU not in kinds


def test_it_overfits_eight_images(smoke, faces):
    torch.manual_seed(0)
    settings = smoke(channels=[16, 32, 32, 32], latent_dim=32, kld_weight=0.01, learning_rate=0.005)
    model = vae.VAE(settings.settings)
    images = to_float(faces.train.images[:8])
    errors = [model.step((images,))["mse"].item() for _ in range(400)]
    # Not the last one: at this rate Adam jumps out of its valley now and then.
    assert min(errors[-50:]) < 0.1 * errors[0]


def test_evaluation_moves_nothing(smoke, faces):
    model = vae.VAE(smoke().settings)
    before = {n: v.clone() for n, v in model.encoder.state_dict().items()}
    model.evaluate(faces.test.images)
    assert model.encoder.training
    assert all(torch.equal(v, before[n]) for n, v in model.encoder.state_dict().items())


def test_prior_samples_depend_on_the_seed_alone():
    assert torch.equal(vae.prior_samples(4, 5, 1), vae.prior_samples(4, 5, 1))
    assert not torch.equal(vae.prior_samples(4, 5, 1), vae.prior_samples(4, 5, 2))


def test_fitted_samples_follow_the_latents():
    torch.manual_seed(0)
    centres = torch.tensor([[8.0, 0.0], [-8.0, 0.0]])
    latents = centres[torch.arange(400) % 2] + torch.randn(400, 2)
    z = vae.fitted_samples(latents, 500, seed=0, components=2)
    assert z.shape == (500, 2)
    assert (z[:, 0].abs() > 4).float().mean() > 0.98
    assert (z[:, 0] > 0).float().mean() == pytest.approx(0.5, abs=0.1)
    assert torch.equal(z, vae.fitted_samples(latents, 500, seed=0, components=2))


def test_training_latents_are_computed_once(smoke, faces, tmp_path, monkeypatch):
    run = vae.train_or_load(smoke().settings, faces, tmp_path)
    latents = vae.training_latents(run, faces)
    assert torch.equal(latents, run.method.encode(faces.train.images))
    monkeypatch.setattr(vae.VAE, "encode", None)
    assert torch.equal(vae.training_latents(run, faces), latents)
