"""The DCGAN: shapes, losses and steps of both networks, and the effect of each trick."""

import math
from unittest.mock import Mock

import pandas as pd
import pytest
import torch
from conftest import built, close, gradients, same, settings_of, updated, weights
from torch import nn

from dlcvlib.data.batches import to_float
from dlcvlib.evaluation import gan_health
from dlcvlib.evaluation.features import measured
from dlcvlib.methods import averaging, dcgan
from dlcvlib.methods.diffaugment import augment
from dlcvlib.training import runs

CPU = torch.device("cpu")
OFF = {"soft_labels": [1.0, 1.0], "ema_decay": 0.0}
"""Every trick is off."""


def gan_of(**changes):
    return built("dcgan", **OFF | changes)


@pytest.fixture
def images(faces):
    return to_float(faces.train.images[:16])


# --- networks ---------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["batch", "spectral"])
def test_initial_weights(norm):
    for value in gan_of(channels=16, discriminator_norm=norm).parameters():
        if value.dim() > 1 and value.numel() > 5000:
            assert value.std().item() == pytest.approx(0.02, rel=0.05)


def test_spectral_norms_are_one(images):
    gan = gan_of(discriminator_norm="spectral", learning_rate=4e-4)
    for _ in range(30):
        gan.training_step((images,))
    for layer in gan.discriminator.layers[::2]:  # LeakyReLU alone is between the convolutions
        largest = torch.linalg.matrix_norm(layer.weight.flatten(1), 2)
        assert largest.item() == pytest.approx(1, abs=0.05)


# --- losses -----------------------------------------------------------------------------------


def test_bce_of_large_logits():
    huge = torch.tensor([500.0, -500.0])
    assert dcgan.discriminator_loss("bce", huge, torch.tensor([0.0, 1.0])) == 500
    assert dcgan.generator_loss("bce", -huge[:1]) == 500


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
    gan, labels = gan_of(flip_labels=0.2, generator_steps=3, **early), Mock(wraps=dcgan.labels)
    monkeypatch.setattr(dcgan, "labels", labels)
    for gan.step in range(4):
        gan.training_step((images,))
    states = [optimizer.state_dict()["state"][0] for optimizer in gan.optimizers.values()]
    assert [state["step"].item() for state in states] == [3 + 3 + 1 + 1, 4]
    assert [call.args[2] for call in labels.call_args_list] == [0.2, 0.2, 0.0, 0.0]


@pytest.mark.parametrize(("annealed", "share"), [(False, 1.0), (True, 0.25)])
def test_noise_and_blur_anneal(annealed, share):
    torch.manual_seed(0)
    gan = gan_of(steps=12, input_noise=0.4, input_noise_annealed=annealed)
    for gan.step, left in ((0, 1), (9, share)):
        shown = gan.shown(torch.zeros(64, 3, 64, 64))
        assert shown.std().item() == pytest.approx(0.4 * left, rel=0.02)
    gan = gan_of(steps=12, input_blur=4.0, input_blur_annealed=annealed)
    images = torch.randn(8, 3, 64, 64)
    for gan.step, left in ((0, 1), (9, share)):
        torch.testing.assert_close(gan.shown(images), dcgan.blurred(images, 4 * left, reach=12))


@pytest.mark.parametrize("deviation", [0.5, 2.0, 8.0])
def test_blur_is_torchvisions(deviation):
    from torchvision.transforms.v2.functional import gaussian_blur

    reach = math.ceil(3 * deviation)
    images = torch.rand(2, 3, 64, 64)
    theirs = gaussian_blur(images, [2 * reach + 1] * 2, [deviation] * 2)
    torch.testing.assert_close(dcgan.blurred(images, deviation, reach), theirs)


# --- differentiable augmentation --------------------------------------------------------------


@pytest.mark.parametrize("policy", ["color", "translation", "cutout"])
def test_augmentation_differs_by_image_and_is_differentiable(policy):
    images = torch.rand(1, 3, 64, 64).repeat(8, 1, 1, 1).requires_grad_()
    changed = augment(images, [policy])
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


@pytest.mark.parametrize(("loss", "label"), [("bce", 0.9), ("hinge", 1.0)])
def test_the_step_matches_the_paper(images, loss, label, monkeypatch):
    """Each network's gradient is that of the loss of [1], [3] or [5] on images as D sees them.

    And it updates that player alone.
    """
    gan = gan_of(loss=loss, soft_labels=[label, label])
    monkeypatch.setattr(gan, "shown", lambda images: -images)
    real, fake = 2 * images - 1, gan.generator(gan.noise(16, CPU))
    on_real, on_fake = gan.discriminator(-real), gan.discriminator(-fake.detach())
    p_real, p_fake = on_real.sigmoid(), on_fake.sigmoid()
    soft = label * p_real.log() + (1 - label) * (1 - p_real).log() + (1 - p_fake).log()
    hinge = (1 - on_real).relu() + (1 + on_fake).relu()
    d_loss = (-soft if loss == "bce" else hinge).mean()
    of_discriminator, before = gradients(gan.discriminator, d_loss), weights(gan)
    terms = gan._train_discriminator(real, fake.detach())
    torch.testing.assert_close(terms["discriminator"], d_loss)
    torch.testing.assert_close(terms["d_real"], p_real.mean())
    torch.testing.assert_close(terms["d_fake"], p_fake.mean())
    close(gan.discriminator, of_discriminator)
    assert updated(gan, before) == {"discriminator"}

    fooled = gan.discriminator(-fake)
    g_loss = {"bce": -fooled.sigmoid().log().mean(), "hinge": -fooled.mean()}[loss]
    expected, before = gradients(gan.generator, g_loss), weights(gan)
    torch.testing.assert_close(gan._train_generator(fake)["generator"], g_loss)
    close(gan.generator, expected)
    close(gan.discriminator, of_discriminator)  # of which the history holds the norm
    assert updated(gan, before) == {"generator"}


def test_the_average_is_exponential():
    module = nn.Linear(3, 2)
    average = averaging.averaged(module, 0.5)
    for count in range(12):
        nn.init.normal_(module.weight)
        decay = min(0.5, (1 + count) / (10 + count)) if count else 0.0  # the first update copies
        expected = decay * average.module.weight + (1 - decay) * module.weight
        average.update_parameters(module)
        torch.testing.assert_close(average.module.weight, expected.detach())
    assert not any(p.requires_grad for p in average.parameters())


def test_averaging_does_not_touch_training(train):
    with_and_without = [train("dcgan", steps=3, ema_decay=decay).method for decay in (0.0, 0.9)]
    assert same(*(gan.generator for gan in with_and_without))


def test_samples_come_from_the_average_unless_requested_otherwise():
    gan, z = gan_of(ema_decay=0.9), torch.randn(5, 8)
    nn.init.constant_(gan.averaged.module.blocks[-2].bias, 100.0)
    assert (gan.sample(z) == 1).all()
    assert gan.sample(z, averaged=False).mean().item() == pytest.approx(0.5, abs=0.1)


# --- what is measured along a run -------------------------------------------------------------


def test_samples_are_compared_with_a_limited_number_of_held_out_images(faces, params, monkeypatch):
    monkeypatch.setattr("dlcvlib.evaluation.metrics.COMPARED", 5)
    data = measured(params("gan"), faces)
    held_out = faces.validation.images[: data.held_out].float() / 255
    assert len(held_out) == 5
    assert data.quality(held_out)["diversity"] == pytest.approx(1)
    found = built("dcgan", ema_decay=0.9).evaluate(data)
    assert list(found) == ["kid", "diversity", "kid_averaged", "diversity_averaged"]
    other = measured(params("gan", extractor_steps=3), faces)
    assert other.fingerprint != data.fingerprint


# --- signs of failure -------------------------------------------------------------------------


SOFT = {"soft_labels": [0.9, 0.9], "flip_labels": 0.1}
LEAST = sum(-x * math.log(x) - (1 - x) * math.log(1 - x) for x in (0.9 * 0.9, 0.1 * 0.9))
"""D's lowest loss with these labels."""


@pytest.mark.parametrize(
    ("signs", "discriminator", "others", "changes"),
    [
        ([], [0.9] * 20, {}, {}),
        (["discriminator loss near zero"], [0.9] * 15 + [0.01] * 5, {}, {}),
        ([], [0.9, 0.01] * 10, {}, {}),  # now and then is not for long
        (["discriminator at chance"], [1.38] * 10, {"d_real": 0.5, "d_fake": 0.5}, {}),
        (["generator collapsed"], [0.9] * 4, {"validation_diversity": [0.9, 0.8, 0.4, 0.2]}, {}),
        (["discriminator loss near zero"], [LEAST + 0.001] * 10, {}, SOFT),
        (["discriminator loss near zero"], [0.401] * 10, {}, {"flip_labels": 0.1, "loss": "hinge"}),
        # Labels that say nothing and images that do not vary.
        ([], [1.385] * 10, {"validation_diversity": math.nan}, {"flip_labels": 0.5}),
        ([], [1.999] * 10, {}, {"flip_labels": 0.5, "loss": "hinge"}),
    ],
)
def test_signs_of_failure(signs, discriminator, others, changes):
    history = {"step": range(len(discriminator)), "discriminator": discriminator, "d_real": 0.8}
    history = pd.DataFrame(history | {"d_fake": 0.2, "validation_diversity": 0.9} | others)
    history["step"] = 10.0 * (history["step"] + 1)
    settings = settings_of("dcgan", **OFF, flip_labels_until=1000).replace(**changes)
    found = gan_health.signs(runs.Run("r", None, settings, history, {}, None))
    assert found.loc[found["seen"], "sign"].tolist() == signs


def test_the_lowest_loss_is_higher_while_labels_are_soft_or_flipped():
    settings = settings_of("dcgan", **OFF).replace(**SOFT, flip_labels_until=1000)
    assert gan_health.least_loss(settings, 10) == pytest.approx(LEAST)
    hinge = settings.replace(loss="hinge", soft_labels=[1.0, 1.0])
    assert [gan_health.least_loss(hinge, step) for step in (10, 2000)] == pytest.approx([0.4, 0])
