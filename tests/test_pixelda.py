"""PixelDA: networks, each loss against its formula, which network each step updates."""

import math

import pytest
import torch
from conftest import built, close, gradients, updated, weights
from torch import nn

from dlcvlib.methods import pixelda

PAPER = {"generator": "direct", "instance_noise": 0.0, "patient": False}
PAPER |= {"classifier_with_generator": False}


@pytest.fixture
def method():
    return built("pixelda", augmentation="none", **PAPER)


@pytest.fixture
def fake(method, batch):
    return method.generator(batch[0], method.noise(16))


# --- networks ---------------------------------------------------------------------------------


def test_shapes_and_ranges(method, fake):
    assert fake.shape == (16, 3, 32, 32)
    assert torch.equal(fake, fake.clamp(0, 1))
    assert method.discriminator(fake).shape == (16, 1, 2, 2)
    noise = method.noise(5000)
    assert noise.shape == (5000, 8)
    assert [noise.min().item(), noise.max().item()] == pytest.approx([-1, 1], abs=0.01)


def test_a_translation_depends_on_noise_and_source(method, pair):
    images = pair.source.train.images  # more than one chunk
    z = method.noise(len(images))
    first = method.translate(images, z)
    assert (first.dtype, first.shape) == (torch.uint8, images.shape)
    assert torch.equal(first.flip(0), method.translate(images.flip(0), z.flip(0)))
    assert not torch.equal(first, method.translate(images, -z))
    assert not torch.equal(first, method.translate(images.flip(0), z))


def test_the_classifier_sees_half_of_the_source_in_its_own_colours(monkeypatch):
    method, seen = built("pixelda", augmentation="strong"), []
    monkeypatch.setattr(method, "logits", lambda x: seen.append(x) or torch.zeros(len(x), 10))
    x_s, fake = torch.rand(2, 64, 3, 32, 32)
    method._task_losses(x_s, torch.zeros(64, dtype=torch.long), fake)
    source, generated = seen[0].chunk(2)
    assert 16 < (source == x_s).all((1, 2, 3)).sum() < 48
    assert not (generated == fake).all((1, 2, 3)).any()


def test_a_residual_generator_begins_as_the_identity_and_its_noise_is_smooth(method):
    torch.manual_seed(0)
    generator = built("pixelda", generator="residual").generator
    images = 0.02 + 0.96 * torch.rand(4, 3, 32, 32)
    torch.testing.assert_close(generator(images, torch.randn(4, 8)), images)
    coarse, fine = (g.spread(torch.ones(1, 8)) for g in (generator, method.generator))
    assert coarse.shape == fine.shape == (1, 3, 32, 32)
    relative = [maps.diff(dim=3).abs().mean() / maps.std() for maps in (coarse, fine)]
    assert relative[0] < 0.3 < relative[1]


# --- losses -----------------------------------------------------------------------------------


def test_task_loss():
    logits, labels = 3 * torch.randn(9, 10), torch.arange(9)
    chosen = logits.softmax(1)[range(9), labels]
    torch.testing.assert_close(pixelda.task_loss(logits, labels), -chosen.log().mean())
    twice = -logits.softmax(1).softmax(1)[range(9), labels].log().mean()
    torch.testing.assert_close(pixelda.task_loss(logits, labels, softmax_twice=True), twice)


def test_content_loss():
    """It is 1 - r^2 of grey values, which neither inversion nor contrast changes."""
    images, others = torch.rand(4, 3, 8, 8), torch.rand(4, 3, 8, 8)
    greys = zip(images.mean(1), others.mean(1), strict=True)
    r = torch.stack([torch.corrcoef(torch.stack(pair).flatten(1))[0, 1] for pair in greys])
    expected = (1 - r**2).mean().item()
    assert pixelda.content_loss(images, others).item() == pytest.approx(expected, abs=0.01)
    assert pixelda.content_loss(images, 1 - images / 2).item() < 0.01


# --- each step: its loss, and which network it updates ----------------------------------------


@pytest.mark.parametrize(("patient", "knows"), [(True, True), (True, False), (False, False)])
def test_the_generators_loss_is_the_weighted_sum(method, batch, patient, knows):
    """Its gradient is that of the three terms, each with its weight; D and T do not change.

    With warm-up the adversarial one counts as far as T has learned the source's labels.
    """
    chosen = {"adversarial_weight": 0.5, "task_weight": 2.0, "content_weight": 0.3}
    method.settings = method.settings.replace(patient=patient, **chosen)
    x_s = batch[0]
    method.training_step(batch)
    fake = method.generator(x_s, method.noise(16))
    logits = method.logits(torch.cat([x_s, fake]))
    # Labels that T happens to think likely, or unlikely.
    y_s = logits[:16].argmax(1) if knows else logits[:16].argmin(1)
    on_source, on_fake = (nn.functional.cross_entropy(z, y_s) for z in logits.chunk(2))
    share = max(0.0, 1 - on_source.item() / math.log(10)) if patient else 1.0
    assert (share > 0) == (knows or not patient)
    loss = (
        share * 0.5 * ((method.discriminator(fake) - 1) ** 2).mean()
        + 2.0 * (on_source + on_fake) / 2
        + 0.3 * pixelda.content_loss(x_s, fake)
    )
    expected, before = gradients(method.generator, loss), weights(method)
    passive = [method.discriminator, method.extractor, method.classifier]
    last = [[p.grad.clone() for p in network.parameters()] for network in passive]
    method._train_generator(x_s, y_s, fake)
    close(method.generator, expected)
    assert updated(method, before) == {"generator"}
    for network, kept in zip(passive, last, strict=True):
        close(network, kept)  # of which the history holds the norm
    assert all(p.requires_grad for p in method.parameters())


def test_the_discriminators_step(method, batch, fake):
    on_target, on_fake = method.discriminator(batch[2]), method.discriminator(fake.detach())
    loss = ((on_target - 1) ** 2).mean() + (on_fake**2).mean()
    expected, before = gradients(method.discriminator, loss), weights(method)
    terms = method._train_discriminator(batch[2], fake.detach())
    close(method.discriminator, expected)
    assert updated(method, before) == {"discriminator"}
    correct = torch.cat([on_target > 0.5, on_fake <= 0.5]).float().mean()
    torch.testing.assert_close(terms["discriminator_accuracy"], correct)


def test_the_noise_on_the_discriminators_input_falls_to_zero(method, batch, monkeypatch):
    method.settings = method.settings.replace(instance_noise=0.4, steps=8)
    monkeypatch.setattr(method, "discriminator", nn.Identity())
    deviations = []
    for method.step in (0, 4, 8):
        deviations.append((method._discriminate(batch[2]) - batch[2]).std().item())
    assert deviations == pytest.approx([0.4, 0.2, 0], rel=0.05)


@pytest.mark.parametrize("with_generator", [True, False])
def test_the_classifier_is_updated_once_per_step(batch, monkeypatch, with_generator):
    """With D by the mean of both losses, as in the paper, or with G, as by the original."""
    method = built("pixelda", **PAPER | {"classifier_with_generator": with_generator})
    original, updates = pixelda.update, []
    monkeypatch.setattr(pixelda, "update", lambda *x: updates.append(x[1]) or original(*x))
    method.training_step(batch)
    found = [method.optimizers["classifier"] in optimizers for optimizers in updates]
    assert found == ([False, True] if with_generator else [False, True, False])
