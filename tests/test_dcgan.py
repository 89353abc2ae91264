"""The DCGAN: shapes, losses and steps of both networks, and the effect of each trick."""

from dataclasses import replace

import pytest
import torch
from conftest import built, close, gradients, same, updated, weights
from torch import nn
from torchvision.transforms.v2.functional import gaussian_blur

from dlcvlib.data.batches import prior_samples, to_float
from dlcvlib.evaluation.features import attribute_classifier, marginals, measured
from dlcvlib.methods import averaging, dcgan
from dlcvlib.methods.diffaugment import augment

CPU = torch.device("cpu")
OFF = {"soft_labels": [1.0, 1.0], "ema_decay": 0.0}
"""Every trick is off."""


def gan_of(**changes):
    return built("dcgan", **OFF | changes)


@pytest.fixture
def images(faces):
    return to_float(faces.train.images[:16])


# --- networks ---------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["batch", "spectral", "none"])
def test_initial_weights(norm):
    for name, value in gan_of(channels=16, discriminator_norm=norm).named_parameters():
        he = norm == "none" and name.startswith("discriminator")
        if value.dim() > 1 and value.numel() > 5000:
            std = (2 / (1 + 0.2**2) / value[0].numel()) ** 0.5 if he else 0.02
            assert value.std().item() == pytest.approx(std, rel=0.05)


def test_spectral_norms_are_one(images):
    gan = gan_of(discriminator_norm="spectral", learning_rate=4e-4, adam_betas=[0.5, 0.999])
    for _ in range(30):
        gan.training_step((images,))
    for layer in gan.discriminator.layers[::2]:  # LeakyReLU alone is between the convolutions
        largest = torch.linalg.matrix_norm(layer.weight.flatten(1), 2)
        assert largest.item() == pytest.approx(1, abs=0.05)


def test_networks_at_32_pixels_have_one_stage_less():
    gan = gan_of(image_size=32, channels=4)
    assert gan.generator(gan.noise(2, CPU)).shape == (2, 3, 32, 32)
    convolutions = [layer for layer in gan.discriminator.layers if isinstance(layer, nn.Conv2d)]
    assert [layer.out_channels for layer in convolutions] == [4, 8, 16, 1]


# --- losses -----------------------------------------------------------------------------------


def test_bce_of_soft_labels_and_of_large_logits():
    logits, targets = torch.randn(2, 50), torch.rand(2, 50)
    p = torch.sigmoid(logits)
    plain = -(targets * p.log() + (1 - targets) * (1 - p).log()).mean(1).sum()
    torch.testing.assert_close(dcgan.discriminator_loss("bce", *logits, targets), plain)
    huge = torch.tensor([[500.0], [-500.0]])
    assert dcgan.discriminator_loss("bce", *huge, torch.tensor([[0.0], [1.0]])) == 1000
    assert dcgan.generator_loss("bce", *huge) == 500


@pytest.mark.parametrize("kind", ["bce", "hinge", "relativistic"])
def test_flipped_labels_reverse_the_loss(kind):
    logits, targets = torch.tensor([[0.3], [-0.6]]), torch.tensor([[1.0], [0.0]])
    flipped = dcgan.discriminator_loss(kind, *logits, 1 - targets)
    torch.testing.assert_close(flipped, dcgan.discriminator_loss(kind, *-logits, targets))


# --- tricks -----------------------------------------------------------------------------------


def test_labels_are_soft_and_flipped_as_set():
    torch.manual_seed(0)
    found = dcgan.labels(20_000, [1.0, 1.0], 0.15, CPU)
    flipped = found != torch.tensor([[1.0], [0.0]])
    assert flipped.float().mean(1).tolist() == pytest.approx([0.15, 0.15], abs=0.01)
    assert flipped.all(0).float().mean() == pytest.approx(0.15**2, abs=0.005)
    real, fake = dcgan.labels(5000, [0.7, 0.95], 0.0, CPU)
    assert [real.min().item(), real.max().item()] == pytest.approx([0.7, 0.95], abs=0.01)
    assert (fake == 0).all()


def test_flips_and_further_generator_steps_end_when_they_should(images, monkeypatch):
    early = {"flip_labels_until": 2, "generator_steps_until": 2}
    gan, rates, original = gan_of(flip_labels=0.2, generator_steps=3, **early), [], dcgan.labels
    monkeypatch.setattr(dcgan, "labels", lambda *a: rates.append(a[2]) or original(*a))
    for gan.step in range(4):
        gan.training_step((images,))
    states = [optimizer.state_dict()["state"][0] for optimizer in gan.optimizers.values()]
    assert [state["step"].item() for state in states] == [3 + 3 + 1 + 1, 4]
    assert rates == [0.2, 0.2, 0.0, 0.0]


def test_noise_and_blur_anneal():
    torch.manual_seed(0)
    gan = gan_of(steps=12, input_noise=0.4)
    for gan.step, left in ((0, 1), (9, 0.25)):
        shown = gan.shown(torch.zeros(64, 3, 64, 64))
        assert shown.std().item() == pytest.approx(0.4 * left, rel=0.02)
    gan, images = gan_of(steps=12, input_blur=4.0), torch.rand(2, 3, 64, 64)
    for gan.step, left in ((0, 1), (9, 0.25)):
        expected = gaussian_blur(images, [25, 25], [4.0 * left] * 2)
        torch.testing.assert_close(gan.shown(images), expected)


# --- differentiable augmentation --------------------------------------------------------------


@pytest.mark.parametrize("policy", ["color", "translation", "cutout"])
def test_augmentation_differs_by_image_and_is_differentiable(policy):
    torch.manual_seed(0)
    images = torch.rand(1, 3, 64, 64).repeat(8, 1, 1, 1).requires_grad_()
    changed = augment(images, [policy])
    assert changed.shape == images.shape
    assert not torch.equal(changed[0], changed[1])
    changed.square().sum().backward()
    assert (images.grad.flatten(1).abs().sum(1) > 0).all()


def test_translation_shifts_by_whole_pixels_and_pads_with_zeros():
    torch.manual_seed(0)
    images = torch.ones(200, 3, 64, 64)
    images[:, :, 32, 20] = 2
    moved = augment(images, ["translation"])
    assert moved.unique().tolist() == [0.0, 1.0, 2.0]
    count, row, column = (moved[:, 0] == 2).nonzero().unbind(1)
    assert torch.equal(count, torch.arange(200))
    assert [*row.aminmax(), *column.aminmax()] == [24, 40, 12, 28]


def test_cutout_hides_at_most_a_square_of_half_the_side():
    torch.manual_seed(0)
    hidden = (augment(torch.ones(300, 3, 64, 64), ["cutout"])[:, 0] == 0).flatten(1).sum(1)
    assert hidden.max() == 32 * 32
    assert hidden.min() >= 16 * 16


def test_color_is_the_identity_on_average():
    torch.manual_seed(0)
    image = torch.rand(1, 3, 8, 8) * 2 - 1
    many = augment(image.repeat(20_000, 1, 1, 1), ["color"])
    torch.testing.assert_close(many.mean(0, keepdim=True), image, atol=0.02, rtol=0)


# --- the game ---------------------------------------------------------------------------------


STEPS = [{"loss": "bce"}, {"loss": "hinge"}]
STEPS += [{"loss": "relativistic", "gradient_penalty": 0.5, "discriminator_norm": "none"}]


@pytest.mark.parametrize("changes", STEPS, ids=lambda changes: changes["loss"])
def test_the_step_matches_the_paper(images, changes, monkeypatch):
    """Each network's gradient is that of the loss of [1], [5] or [8] on images as D sees them.

    And it updates that player alone.
    """
    gan, loss = gan_of(**changes), changes["loss"]
    monkeypatch.setattr(gan, "shown", lambda images: -images)
    real, fake = 2 * images - 1, gan.generator(gan.noise(16, CPU))
    shown = [(-batch.detach()).requires_grad_() for batch in (real, fake)]
    on_real, on_fake = map(gan.discriminator, shown)
    d_loss = {
        "bce": -(on_real.sigmoid().log().mean() + (1 - on_fake.sigmoid()).log().mean()),
        "hinge": (1 - on_real).relu().mean() + (1 + on_fake).relu().mean(),
        "relativistic": -(on_real - on_fake).sigmoid().log().mean(),
    }[loss]
    slopes = torch.autograd.grad((on_real + on_fake).sum(), shown, create_graph=True)
    squares = sum(slope.square().sum() for slope in slopes) / len(images)
    weight = gan.settings.gradient_penalty / 2
    of_discriminator = gradients(gan.discriminator, d_loss + weight * squares)
    before = weights(gan)
    terms = gan._train_discriminator(real, fake.detach())
    torch.testing.assert_close(terms["discriminator"], d_loss)
    torch.testing.assert_close(terms["d_real"], on_real.sigmoid().mean())
    torch.testing.assert_close(terms["d_fake"], on_fake.sigmoid().mean())
    pairs = [real > fake for real in on_real for fake in on_fake]
    assert terms["d_accuracy"].item() == pytest.approx(sum(pairs).item() / len(pairs))
    close(gan.discriminator, of_discriminator)
    assert updated(gan, before) == {"discriminator"}

    on_real, fooled = gan.discriminator(-real), gan.discriminator(-fake)
    g_loss = {
        "bce": -fooled.sigmoid().log().mean(),
        "hinge": -fooled.mean(),
        "relativistic": -(fooled - on_real).sigmoid().log().mean(),
    }[loss]
    expected, before = gradients(gan.generator, g_loss), weights(gan)
    torch.testing.assert_close(gan._train_generator(real, fake)["generator"], g_loss)
    close(gan.generator, expected)
    close(gan.discriminator, of_discriminator)  # of which the history holds the norm
    assert updated(gan, before) == {"generator"}
    assert all(p.requires_grad for p in gan.parameters())


def test_the_average_is_exponential():
    module = nn.Linear(3, 2)
    average = averaging.Average(module, 0.5)
    for count in range(12):
        nn.init.normal_(module.weight)
        decay = min(0.5, (1 + count) / (10 + count)) if count else 0.0  # the first update copies
        expected = decay * average.module.weight + (1 - decay) * module.weight
        average.update(module, count)
        torch.testing.assert_close(average.module.weight, expected.detach())
    assert not any(p.requires_grad for p in average.parameters())


def test_averaging_does_not_touch_training(train):
    with_and_without = [train("dcgan", steps=3, ema_decay=decay).method for decay in (0.0, 0.9)]
    assert same(*(gan.generator for gan in with_and_without))


def test_statistics_are_means_over_batches():
    module, batches = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), torch.randn(4, 8, 3)
    before, inner = weights(module), module[0](batches).detach()
    estimated = averaging.with_statistics(module, batches)
    torch.testing.assert_close(estimated[1].running_mean, inner.mean((0, 1)))
    torch.testing.assert_close(estimated[1].running_var, inner.var(1).mean(0))
    assert same(module, before)
    assert module.training
    assert not estimated.training


def test_samples_come_from_the_average_unless_requested_otherwise(images):
    """Its BatchNorm statistics are those of its own activations; nothing in the method changes."""
    gan = gan_of(ema_decay=0.9)
    for _ in range(3):
        gan.training_step((images,))
    z, before = torch.randn(5, 8), weights(gan)
    found = gan.sample(z, averaged=False), gan.sample(z)
    assert same(gan, before)
    noise = prior_samples(24 * 64, 8, seed=1).split(64)
    average = averaging.with_statistics(gan.averaged.module, noise)
    for samples, generator in zip(found, (gan.generator, average), strict=True):
        torch.testing.assert_close(samples, ((generator.eval()(z) + 1) / 2).detach())
        assert torch.equal(samples, samples.clamp(0, 1))
    assert not torch.equal(*found)


# --- what is measured along a run -------------------------------------------------------------


def test_samples_are_compared_with_a_limited_number_of_held_out_images(faces, params, monkeypatch):
    monkeypatch.setattr("dlcvlib.evaluation.metrics.COMPARED", 5)
    data = measured(params("gan"), faces)
    assert data.held_out == 5
    assert data.fingerprint.startswith(faces.fingerprint + " features-")
    held_out = faces.validation.images[:5].float() / 255
    assert data.quality(held_out)["recall"] == 1
    found, names = built("dcgan", ema_decay=0.9).evaluate(data), ["kid", "precision", "recall"]
    assert list(found) == [*names, *(f"{name}_averaged" for name in names)]
    assert built("dcgan").evaluate(replace(data, held_out=0)) == {}
    other = measured(params("gan", extractor_steps=3), faces)
    assert other.fingerprint != data.fingerprint


def test_marginals_are_the_shares_that_the_classifier_finds(faces, params):
    classifier = attribute_classifier(params("gan"), faces).method
    found = marginals(classifier, {"test": faces.test.images})["test"]
    for name in faces.train.attributes:
        probability = classifier.probabilities(faces.test.images)[name]
        assert found[name.replace("_", " ")] == pytest.approx((probability > 0.5).float().mean())
