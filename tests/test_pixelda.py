"""PixelDA: networks, each loss against its formula, which network each step updates."""

import math

import pytest
import torch
from conftest import built, close, gradients, updated, weights
from torch import nn

from dlcvlib.methods import pixelda


@pytest.fixture
def method():
    return built("pixelda", augmentation="none")


@pytest.fixture
def fake(method, batch):
    return method.generator(batch[0], method.noise(16))


# --- networks ---------------------------------------------------------------------------------


def test_a_translation_depends_on_noise_and_source(method, pair):
    images = pair.source.train.images  # more than one chunk
    z = method.noise(len(images))
    assert [z.min().item(), z.max().item()] == pytest.approx([-1, 1], abs=0.05)
    first = method.translate(images, z)
    assert (first.dtype, first.shape) == (torch.uint8, images.shape)
    assert torch.equal(first.flip(0), method.translate(images.flip(0), z.flip(0)))
    assert not torch.equal(first, method.translate(images, -z))
    assert not torch.equal(first, method.translate(images.flip(0), z))


def test_the_classifier_sees_half_of_the_source_in_its_own_colours(monkeypatch):
    method = built("pixelda", augmentation="strong")
    monkeypatch.setattr(method, "logits", lambda x: x)
    x_s, fake = torch.rand(2, 64, 3, 32, 32)
    source, generated = method._task_logits(x_s, fake)
    assert 16 < (source == x_s).all((1, 2, 3)).sum() < 48
    assert not (generated == fake).all((1, 2, 3)).any()


# --- losses -----------------------------------------------------------------------------------


def test_the_originals_task_loss_has_a_floor():
    """As its Softmax is taken twice."""
    floor = pixelda.task_loss(100 * torch.eye(10), torch.arange(10), softmax_twice=True)
    assert floor == pytest.approx(math.log(math.e + 9) - 1, abs=1e-5)


# --- each step: its loss, and which network it updates ----------------------------------------


def test_the_generators_loss_is_the_weighted_sum(method, batch, fake):
    """Its gradient is that of the three terms, each with its weight; D and T do not change.

    The paper's eq. 5, |d|^2 / k - (d . 1)^2 / k^2, is the variance of an image's difference d.
    """
    chosen = {"adversarial_weight": 0.5, "task_weight": 2.0, "content_weight": 0.3}
    method.settings = method.settings.replace(**chosen)
    x_s, y_s, x_t = batch
    method._train_discriminator(x_t, fake.detach())
    logits = method.logits(torch.cat([x_s, fake]))
    loss = (
        0.5 * ((method.discriminator(fake) - 1) ** 2).mean()
        + 2.0 * nn.functional.cross_entropy(logits, torch.cat([y_s, y_s]))
        + 0.3 * (x_s - fake).flatten(1).var(1, correction=0).mean()
    )
    expected, before = gradients(method.generator, loss), weights(method)
    last = [p.grad.clone() for p in method.discriminator.parameters()]
    method._train_generator(x_s, y_s, fake)
    close(method.generator, expected)
    assert updated(method, before) == {"generator"}
    close(method.discriminator, last)  # of which the history holds the norm


@pytest.mark.parametrize(("kind", "middle"), [("least_squares", 0.5), ("bce", 0.0)])
def test_the_discriminators_step(method, batch, fake, kind, middle):
    method.settings = method.settings.replace(adversarial_loss=kind)
    on_target, on_fake = method.discriminator(batch[2]), method.discriminator(fake.detach())
    loss = ((on_target - 1) ** 2).mean() + (on_fake**2).mean()
    if kind == "bce":
        loss = -(on_target.sigmoid().log() + (1 - on_fake.sigmoid()).log()).mean()
    expected, before = gradients(method.discriminator, loss), weights(method)
    terms = method._train_discriminator(batch[2], fake.detach())
    close(method.discriminator, expected)
    assert updated(method, before) == {"discriminator"}
    correct = torch.cat([on_target > middle, on_fake <= middle]).float().mean()
    torch.testing.assert_close(terms["discriminator_accuracy"], correct)


@pytest.mark.parametrize(("patient", "knows"), [(True, True), (True, False), (False, False)])
def test_with_warm_up_generated_images_train_the_classifier_as_far_as_it_has_learned(
    method, batch, fake, patient, knows
):
    method.settings = method.settings.replace(patient=patient)
    on_source, on_fake = method.logits(torch.cat([batch[0], fake.detach()])).chunk(2)
    # Labels that the untrained classifier happens to think likely, or unlikely.
    y_s = on_source.argmax(1) if knows else on_source.argmin(1)
    source, generated = (nn.functional.cross_entropy(z, y_s) for z in (on_source, on_fake))
    share = max(0.0, 1 - source.item() / math.log(10)) if patient else 1.0
    assert (share > 0) == (knows or not patient)
    expected = gradients(method.extractor, (source + share * generated) / 2)
    before = weights(method)
    method._train_classifier(batch[0], y_s, fake.detach())
    close(method.extractor, expected)
    assert updated(method, before) == {"extractor", "classifier"}


def test_the_originals_error_updates_the_classifier_with_the_generator(batch, monkeypatch):
    method = built("pixelda", classifier_with_generator=True, patient=False)
    monkeypatch.delattr(pixelda.PixelDA, "_train_classifier")
    before = weights(method)
    method.training_step(batch)
    assert updated(method, before) == {"generator", "discriminator", "extractor", "classifier"}
    # One update of T a step, with the error as without it.
    assert {s["step"].item() for s in method.optimizers["classifier"].state.values()} == {1}


# --- parameters -------------------------------------------------------------------------------


def test_the_classifier_is_chapter_3s(params):
    changes = {"channels": [4, 4], "classifier_width": 7, "precision": "bf16"}
    fourth = params("pixelda", dann_changes=changes, steps=3, adamatch_steps=4)
    for settings, steps in ((fourth.settings(0), 3), (fourth.adamatch(0), 4)):
        assert (settings.channels, settings.classifier_width) == ([4, 4], 7)
        assert (settings.precision, settings.steps) == ("fp32", steps)  # this chapter's
