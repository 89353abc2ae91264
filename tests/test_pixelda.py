"""PixelDA: networks, each loss against its formula, which network each step updates."""

import math

import pytest
import torch
from conftest import built, close, updated, weights
from torch import nn

from dlcvlib.config import profiles
from dlcvlib.methods import pixelda
from dlcvlib.utils.errors import UserError


@pytest.fixture
def method():
    return built("pixelda")


# --- networks ---------------------------------------------------------------------------------


def test_shapes_and_ranges(method, batch):
    fake = method.generator(batch[0], method.noise(16))
    assert fake.shape == (16, 3, 32, 32)
    assert fake.min() >= 0
    assert fake.max() <= 1
    assert method.discriminator(fake).shape == (16, 1, 2, 2)
    noise = method.noise(5000)
    assert noise.shape == (5000, 8)
    assert -1 <= noise.min() < -0.99
    assert 0.99 < noise.max() <= 1


def test_the_originals_networks():
    original = profiles.load("original", "pixelda")
    assert original.dann == profiles.load("original", "dann")
    assert (original.softmax_twice, original.classifier_with_generator) == (True, True)
    method = pixelda.PixelDA(original.settings(0))
    spread = method.generator.spread[0]
    assert (spread.in_features, spread.out_features) == (1024, 3 * 32 * 32)
    blocks = [b for b in method.generator.layers if isinstance(b, pixelda.ResidualBlock)]
    assert len(blocks) == 6
    assert all(m.out_channels == 64 for b in blocks for m in b.layers if isinstance(m, nn.Conv2d))
    convolutions = [m for m in method.discriminator.layers if isinstance(m, nn.Conv2d)]
    assert [m.out_channels for m in convolutions] == [64, 128, 256, 512, 1]


def test_a_translation_depends_on_noise_and_source(method, pair):
    images = pair.source.train.images  # more than one chunk
    z = method.noise(len(images))
    first, again = method.translate(images, z), method.translate(images, z)
    assert (first.dtype, first.shape) == (torch.uint8, images.shape)
    assert torch.equal(first, again)
    assert not torch.equal(first, method.translate(images, -z))
    assert not torch.equal(first, method.translate(images.flip(0), z))


def test_the_label_stays_with_its_image(batch, monkeypatch):
    """Whatever the generator makes of an image is trained on under that image's label."""
    method = built("pixelda", augmentation="none")
    marked = torch.arange(16).view(-1, 1, 1, 1).expand(-1, 3, 32, 32) / 16
    shown, asked = [], []
    logits, task_loss = method.logits, pixelda.task_loss
    monkeypatch.setattr(method, "logits", lambda x: shown.append(x) or logits(x))
    monkeypatch.setattr(
        pixelda, "task_loss", lambda z, y, twice: asked.append(y) or task_loss(z, y, twice)
    )
    # A generator that changes an image and leaves its mark.
    weight = method.generator.spread[0].weight
    method.generator.forward = lambda images, z: images + 0.001 * z.mean() * weight.mean()
    method.training_step((marked, torch.arange(16) % 10, batch[2]))
    assert len(shown) == 2
    halves = [half for images in shown for half in images.chunk(2)]
    for images, labels in zip(halves, asked, strict=True):
        marks = (images.mean((1, 2, 3)) * 16).round().long()
        assert torch.equal(marks, torch.arange(16))
        assert torch.equal(labels, marks % 10)


def test_the_classifier_sees_half_of_the_source_in_its_own_colours(monkeypatch):
    method, seen = built("pixelda", augmentation="strong"), []
    monkeypatch.setattr(method, "logits", lambda x: seen.append(x) or torch.zeros(len(x), 10))
    x_s, fake = torch.rand(64, 3, 32, 32), torch.rand(64, 3, 32, 32)
    method._task_logits(x_s, fake)
    source, generated = seen[0].chunk(2)
    assert 16 < sum(torch.equal(a, b) for a, b in zip(source, x_s, strict=True)) < 48
    assert not any(torch.equal(a, b) for a, b in zip(generated, fake, strict=True))


# --- losses -----------------------------------------------------------------------------------


def test_adversarial_losses():
    logits = torch.randn(7, 1, 2, 2)
    loss, p = pixelda.adversarial_loss, torch.sigmoid(logits)
    torch.testing.assert_close(loss("least_squares", logits, True), ((logits - 1) ** 2).mean())
    torch.testing.assert_close(loss("least_squares", logits, False), (logits**2).mean())
    torch.testing.assert_close(loss("bce", logits, True), -p.log().mean())
    torch.testing.assert_close(loss("bce", logits, False), -(1 - p).log().mean())


def test_task_loss():
    logits, labels = 3 * torch.randn(9, 10), torch.arange(9)
    chosen = logits.softmax(1)[range(9), labels]
    torch.testing.assert_close(pixelda.task_loss(logits, labels), -chosen.log().mean())
    twice = -logits.softmax(1).softmax(1)[range(9), labels].log().mean()
    torch.testing.assert_close(pixelda.task_loss(logits, labels, softmax_twice=True), twice)
    certain = 100 * torch.eye(10)
    assert pixelda.task_loss(certain, torch.arange(10)) < 1e-6
    floor = pixelda.task_loss(certain, torch.arange(10), softmax_twice=True)
    assert floor == pytest.approx(math.log(math.e + 9) - 1, abs=1e-5)


def test_content_loss_is_the_papers():
    """Eq. 5: |d|^2 / k - (d . 1)^2 / k^2, image by image."""
    images, others = torch.rand(4, 3, 8, 8), torch.rand(4, 3, 8, 8)
    k = 3 * 8 * 8
    expected = [
        (d @ d / k - d.sum() ** 2 / k**2).item() for d in (images - others).flatten(1).unbind()
    ]
    found = pixelda.content_loss(images, others)
    assert found.item() == pytest.approx(sum(expected) / 4, rel=1e-5)
    assert pixelda.content_loss(images, images + 0.3).item() == pytest.approx(0, abs=1e-6)


def test_the_generators_loss_is_the_weighted_sum(batch):
    """Its gradient is that of the three terms, each with its weight, D and T unchanged."""
    chosen = {"adversarial_weight": 0.5, "task_weight": 2.0, "content_weight": 0.3}
    method = built("pixelda", augmentation="none", **chosen)
    x_s, y_s, _ = batch
    fake = method.generator(x_s, method.noise(16))
    logits = method.logits(torch.cat([x_s, fake]))
    loss = (
        0.5 * ((method.discriminator(fake) - 1) ** 2).mean()
        + 2.0 * nn.functional.cross_entropy(logits, torch.cat([y_s, y_s]))
        + 0.3 * pixelda.content_loss(x_s, fake)
    )
    parameters = list(method.generator.parameters())
    expected = torch.autograd.grad(loss, parameters, retain_graph=True)
    method._train_generator(x_s, y_s, fake)
    close(method.generator, expected)


@pytest.mark.parametrize(("patient", "knows"), [(True, True), (True, False), (False, False)])
def test_with_warm_up_generated_images_train_the_classifier_as_far_as_it_has_learned(
    batch, patient, knows
):
    method = built("pixelda", augmentation="none", patient=patient)
    x_s = batch[0]
    fake = method.generator(x_s, method.noise(16)).detach()
    on_source, on_fake = method.logits(torch.cat([x_s, fake])).chunk(2)
    # Labels that the untrained classifier happens to think likely, or unlikely.
    y_s = on_source.argmax(1) if knows else on_source.argmin(1)
    source, generated = (nn.functional.cross_entropy(z, y_s) for z in (on_source, on_fake))
    share = max(0.0, 1 - source.item() / math.log(10)) if patient else 1.0
    assert (share > 0) == (knows or not patient)
    parameters = list(method.extractor.parameters())
    expected = torch.autograd.grad((source + share * generated) / 2, parameters)
    method._train_classifier(x_s, y_s, fake)
    close(method.extractor, expected)


# --- which network each step updates ----------------------------------------------------------


def test_each_step_updates_its_own_network(method, batch):
    x_s, y_s, x_t = batch
    fake = method.generator(x_s, method.noise(16))
    before = weights(method)
    method._train_discriminator(x_t, fake.detach())
    assert updated(method, before) == {"discriminator"}
    before = weights(method)
    method._train_classifier(x_s, y_s, fake.detach())
    assert updated(method, before) == {"extractor", "classifier"}
    before = weights(method)
    passive = [method.discriminator, method.extractor, method.classifier]
    gradients = [[p.grad.clone() for p in network.parameters()] for network in passive]
    method._train_generator(x_s, y_s, fake)
    assert updated(method, before) == {"generator"}
    for network, expected in zip(passive, gradients, strict=True):
        close(network, expected)  # of which the history holds the norm
    assert all(p.requires_grad for p in method.parameters())


def test_the_originals_error_updates_the_classifier_with_the_generator(batch, monkeypatch):
    method = built("pixelda", classifier_with_generator=True, patient=False)
    x_s, y_s, _ = batch
    before = weights(method)
    method._train_generator(x_s, y_s, method.generator(x_s, method.noise(16)))
    assert updated(method, before) == {"generator", "extractor", "classifier"}
    monkeypatch.delattr(pixelda.PixelDA, "_train_classifier")
    method.training_step(batch)
    # One update of T a step, with the error as without it.
    taken = {s["step"].item() for s in method.optimizers["classifier"].state.values()}
    assert taken == {2}


def test_discriminator_accuracy_shows_what_it_has_learned(method):
    for _ in range(60):
        terms = method._train_discriminator(torch.ones(16, 3, 32, 32), torch.zeros(16, 3, 32, 32))
    assert terms["discriminator_accuracy"] > 0.9


# --- parameters -------------------------------------------------------------------------------


def test_the_classifier_is_chapter_3s(params):
    changes = {"channels": [4, 4], "augmentation": "geometric"}
    third, fourth = params("dann", **changes), params("pixelda", dann_changes=changes)
    for settings in (fourth.settings(0), fourth.adamatch(0)):
        assert settings.channels == third.channels
        assert settings.classifier_width == third.classifier_width
        assert settings.precision == "fp32"  # this chapter's
    assert fourth.settings(0).augmentation == "geometric"
    assert fourth.settings(0).steps == fourth.steps
    assert fourth.adamatch(0).steps == fourth.adamatch_steps
    with pytest.raises(UserError, match="did you mean 'channels'"):
        params("pixelda", dann_changes={"chanels": [4]})
    with pytest.raises(UserError, match="patient: a T that is updated with G has no warm-up"):
        params("pixelda", patient=True, classifier_with_generator=True)
