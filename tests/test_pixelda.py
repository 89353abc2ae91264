"""PixelDA: networks, each loss against its formula, who moves when, and what 4-4 measures."""

import dataclasses
import math

import pandas as pd
import pytest
import torch
from conftest import moved, weights
from dlcvlib.evaluation.pixelda_ablation import Redrawn
from torch import nn

from dlcvlib.config import profiles
from dlcvlib.data.types import LabelledImages
from dlcvlib.evaluation import pixelda_ablation
from dlcvlib.methods import classifier, pixelda
from dlcvlib.utils.errors import UserError


@pytest.fixture
def chapter(tmp_path):
    """Parameters of chapter 4 under profile smoke, changed by keyword."""
    fixed = {"dann_changes": {"precision": "fp32"}, "precision": "fp32"}
    fixed["runs_dir"] = str(tmp_path / "runs")
    return lambda **changes: profiles.load("smoke", "pixelda", fixed | changes)


@pytest.fixture
def settings(chapter):
    return lambda **changes: chapter().settings(0).replace(**changes)


@pytest.fixture
def method(settings):
    return pixelda.PixelDA(settings())


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


def test_the_networks_are_the_originals():
    original = profiles.load("original", "pixelda")
    assert (original.batch_size, original.learning_rate) == (64, 1e-5)
    assert original.adam_betas == [0.5, 0.999]
    assert (original.adversarial_weight, original.task_weight) == (1.0, 0.08)
    assert original.learning_rate_schedule == "constant"
    assert (original.patient, original.content_weight) == (False, 0)
    assert (original.softmax_twice, original.classifier_with_generator) == (True, True)
    assert original.dann == profiles.load("original", "dann")
    assert original.adamatch(0).learning_rate == original.dann.learning_rate
    method = pixelda.PixelDA(original.settings(0))
    spread = method.generator.spread[0]
    assert (spread.in_features, spread.out_features) == (1024, 3 * 32 * 32)
    blocks = [b for b in method.generator.layers if isinstance(b, pixelda.ResidualBlock)]
    assert len(blocks) == 6
    assert all(m.out_channels == 64 for b in blocks for m in b.layers if isinstance(m, nn.Conv2d))
    convolutions = [m for m in method.discriminator.layers if isinstance(m, nn.Conv2d)]
    assert [m.out_channels for m in convolutions] == [64, 128, 256, 512, 1]
    norms = [m for m in method.discriminator.layers if isinstance(m, nn.InstanceNorm2d)]
    assert len(norms) == 3


@pytest.mark.parametrize(
    ("norm", "kind"), [("instance", "InstanceNorm2d"), ("batch", "BatchNorm2d")]
)
def test_the_discriminators_norm(norm, kind):
    layers = pixelda.Discriminator(4, norm).layers
    names = [type(layer).__name__ for layer in layers]
    assert names[:5] == ["Conv2d", "LeakyReLU", "Conv2d", kind, "LeakyReLU"]
    assert names.count(kind) == 3


def test_noise_changes_the_image_and_the_source_decides_it_too(method, batch):
    images = (batch[0] * 255).to(torch.uint8)
    z = method.noise(16)
    first, same = method.redraw(images, z), method.redraw(images, z)
    assert first.dtype == torch.uint8
    assert torch.equal(first, same)
    assert not torch.equal(first, method.redraw(images, -z))
    assert not torch.equal(first, method.redraw(images.flip(0), z))


def test_the_label_stays_with_its_image(settings, batch, monkeypatch):
    """Whatever the generator draws of an image is trained on under that image's label."""
    method = pixelda.PixelDA(settings(augmentation="none"))
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
    method.step((marked, torch.arange(16) % 10, batch[2]))
    assert len(shown) == 2
    halves = [half for images in shown for half in images.chunk(2)]
    for images, labels in zip(halves, asked, strict=True):
        marks = (images.mean((1, 2, 3)) * 16).round().long()
        assert torch.equal(marks, torch.arange(16))
        assert torch.equal(labels, marks % 10)


# --- losses -----------------------------------------------------------------------------------


def test_adversarial_losses():
    logits = torch.randn(7, 1, 2, 2)
    of = pixelda.adversarial_loss
    torch.testing.assert_close(of("least_squares", logits, True), ((logits - 1) ** 2).mean())
    torch.testing.assert_close(of("least_squares", logits, False), (logits**2).mean())
    sigmoid = torch.sigmoid(logits)
    torch.testing.assert_close(of("bce", logits, True), -sigmoid.log().mean())
    torch.testing.assert_close(of("bce", logits, False), -(1 - sigmoid).log().mean())


def test_task_loss():
    logits, labels = 3 * torch.randn(9, 10), torch.arange(9)
    chosen = logits.softmax(1)[range(9), labels]
    torch.testing.assert_close(pixelda.task_loss(logits, labels), -chosen.log().mean())
    twice = -logits.softmax(1).softmax(1)[range(9), labels].log().mean()
    torch.testing.assert_close(pixelda.task_loss(logits, labels, softmax_twice=True), twice)


def test_softmax_twice_never_comes_near_zero():
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


def test_the_generators_loss_is_the_weighted_sum(settings, batch):
    """Its gradient is that of the three terms, each with its weight, D and T standing still."""
    chosen = {"adversarial_weight": 0.5, "task_weight": 2.0, "content_weight": 0.3}
    method = pixelda.PixelDA(settings(augmentation="none", **chosen))
    x_s, y_s, _ = batch
    fake = method.generator(x_s, method.noise(16))
    logits = method.logits(torch.cat([x_s, fake]))
    loss = (
        0.5 * ((method.discriminator(fake) - 1) ** 2).mean()
        + 2.0 * nn.functional.cross_entropy(logits, torch.cat([y_s, y_s]))
        + 0.3 * pixelda.content_loss(x_s, fake)
    )
    parameters = list(method.generator.parameters())
    wanted = torch.autograd.grad(loss, parameters, retain_graph=True)
    method._train_generator(x_s, y_s, fake)
    for parameter, gradient in zip(parameters, wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("patient", "knows"), [(True, True), (True, False), (False, False)])
def test_a_patient_classifier_heeds_generated_images_as_far_as_it_knows(
    settings, batch, patient, knows
):
    method = pixelda.PixelDA(settings(augmentation="none", patient=patient))
    x_s = batch[0]
    fake = method.generator(x_s, method.noise(16)).detach()
    of_source, of_fake = method.logits(torch.cat([x_s, fake])).chunk(2)
    # Labels that the untrained classifier happens to think likely, or unlikely.
    y_s = of_source.argmax(1) if knows else of_source.argmin(1)
    source, generated = (nn.functional.cross_entropy(z, y_s) for z in (of_source, of_fake))
    share = max(0.0, 1 - source.item() / math.log(10)) if patient else 1.0
    assert (share > 0) == (knows or not patient)
    parameters = list(method.extractor.parameters())
    wanted = torch.autograd.grad((source + share * generated) / 2, parameters)
    method._train_classifier(x_s, y_s, fake)
    for parameter, gradient in zip(parameters, wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-6)


# --- who moves when ---------------------------------------------------------------------------


def states(method):
    return {name: weights(module) for name, module in method.modules.items()}


def who_moved(method, before):
    return {name for name, module in method.modules.items() if moved(module, before[name])}


def test_each_step_moves_its_own(method, batch):
    x_s, y_s, x_t = batch
    fake = method.generator(x_s, method.noise(16))
    before = states(method)
    method._train_discriminator(x_t, fake.detach())
    assert who_moved(method, before) == {"discriminator"}
    before = states(method)
    method._train_classifier(x_s, y_s, fake.detach())
    assert who_moved(method, before) == {"extractor", "classifier"}
    before = states(method)
    method._train_generator(x_s, y_s, fake)
    assert who_moved(method, before) == {"generator"}
    assert all(p.requires_grad for m in method.modules.values() for p in m.parameters())


def test_the_slip_moves_the_classifier_with_the_generator(settings, batch, monkeypatch):
    method = pixelda.PixelDA(settings(classifier_with_generator=True, patient=False))
    x_s, y_s, _ = batch
    before = states(method)
    method._train_generator(x_s, y_s, method.generator(x_s, method.noise(16)))
    assert who_moved(method, before) == {"generator", "extractor", "classifier"}
    monkeypatch.delattr(pixelda.PixelDA, "_train_classifier")
    method.step(batch)
    # One step of T a step, with the slip as without it.
    taken = {s["step"].item() for s in method.optimizers["classifier"].state.values()}
    assert taken == {2}


def test_a_discriminator_that_knows_is_seen(method, batch):
    for _ in range(60):
        terms = method._train_discriminator(torch.ones(16, 3, 32, 32), torch.zeros(16, 3, 32, 32))
    assert terms["discriminator_accuracy"] > 0.9


# --- chapter 3's runs -------------------------------------------------------------------------


def test_the_classifier_is_chapter_3s(chapter):
    fourth = chapter(dann_changes={"channels": [4, 4], "augmentation": "geometric"})
    third = profiles.load("smoke", "dann", {"channels": [4, 4], "augmentation": "geometric"})
    for settings in (fourth.settings(0), fourth.adamatch(0)):
        assert settings.channels == third.channels
        assert settings.classifier_width == third.classifier_width
    assert fourth.settings(0).augmentation == "geometric"
    assert fourth.settings(0).steps == fourth.steps
    assert fourth.adamatch(0).steps == fourth.adamatch_steps
    with pytest.raises(UserError, match="did you mean 'channels'"):
        chapter(dann_changes={"chanels": [4]})


def test_a_classifier_that_moves_with_the_generator_cannot_wait(chapter):
    with pytest.raises(UserError, match="patient: a T that moves with G does not wait"):
        chapter(patient=True, classifier_with_generator=True)


# --- what 4-4 measures ------------------------------------------------------------------------


@pytest.fixture
def found(pair):
    """Redrawn images of which the judge reads all in two draws, and 3s and 8s wrongly in two."""
    source = pair.source.test
    wrong = source.labels.clone()
    wrong[source.labels == 3] = 8
    wrong[source.labels == 8] = 0
    versions = torch.zeros(4, len(source), 3, 32, 32, dtype=torch.uint8)
    versions[1:3] = 255
    after = torch.stack([source.labels, source.labels, wrong, wrong])
    return Redrawn("usps->mnistm", source, versions, None, source.labels.clone(), after)


def test_preservation(found):
    redrawn = {("usps->mnistm", 0): found}
    (row,) = pixelda_ablation.preservation(redrawn).itertuples()
    assert (row.pair, row.seed) == ("usps->mnistm", 0)
    assert (row.before, row.kept) == (1.0, pytest.approx(0.9))
    # The standard deviation of 0, 1, 1, 0.
    assert row.spread == pytest.approx((1 / 3) ** 0.5)
    by_digit = pixelda_ablation.kept_by_digit(redrawn)
    kept = by_digit.set_index("digit")["kept"]
    assert kept[3] == kept[8] == 0.5
    assert kept[0] == 1.0
    sentence = pixelda_ablation.survival_sentence(pixelda_ablation.preservation(redrawn), by_digit)
    told = "90.0% on usps->mnistm (100.0% before they were redrawn; worst the 3, 50%)."
    assert sentence.endswith(told)


def test_failures_are_failures(found):
    rows, texts = pixelda_ablation.failures(found, count=6)
    assert [len(row) for row in rows] == [6, 6]
    assert set(texts) == {"3→8", "8→0"}
    assert texts.count("3→8") == 3
    # The version shown is one that was misread.
    assert (rows[1] == torch.stack([found.versions[2, 0]] * 6)).all()


def test_no_failure_is_no_error(found):
    perfect = dataclasses.replace(found, after=found.source.labels.expand(4, -1))
    rows, texts = pixelda_ablation.failures(perfect)
    assert [len(row) for row in rows] == [0, 0]
    assert texts == []


def test_a_digit_that_is_lacking_has_no_share(found):
    some = found.source.labels != 4
    source = LabelledImages(found.source.images[some], found.source.labels[some])
    less = dataclasses.replace(
        found,
        source=source,
        versions=found.versions[:, some],
        before=found.before[some],
        after=found.after[:, some],
    )
    by_digit = pixelda_ablation.kept_by_digit({("usps->mnistm", 0): less})
    assert set(by_digit["digit"]) == set(range(10)) - {4}
    assert by_digit["kept"].notna().all()


def test_ablation_changes_one_thing(chapter, pair):
    chosen = chapter(seeds=[0], task_weights=[0.5, 2.0])
    variants = pixelda_ablation.balance(chosen)
    assert list(variants) == ["task weight 0.5", "task weight 2", "task weight 3"]
    frame, trained, pictures = pixelda_ablation.train(chosen, pair, variants)
    assert len(frame) == 3
    assert [run.settings.task_weight for run in trained[::2]] == [0.5, 2.0, 3.0]
    assert all(run.settings.steps == chosen.ablation_steps for run in trained[::2])
    judge = classifier.train_or_load(chosen.dann.classifier(0), pair.target, chosen.runs_dir)
    assert {run.name for run in trained[1::2]} == {judge.name}
    assert frame["kept"].between(0, 1).all()
    assert list(pictures) == list(variants)
    assert "would need labels" in pixelda_ablation.balance_sentence(frame, chosen)


def test_waiting_is_as_long_as_the_main_runs(chapter, pair):
    chosen = chapter(seeds=[0])
    frame, trained, _ = pixelda_ablation.train(chosen, pair, pixelda_ablation.waiting(chosen))
    assert frame["variant"].tolist() == [pixelda_ablation.WAITS, pixelda_ablation.HASTY]
    main, hasty = trained[::2]
    assert main.settings == chosen.settings(0)
    assert hasty.settings == chosen.settings(0).replace(patient=False)


def test_slips_are_judged():
    accuracies = {
        "neither slip": [0.6, 0.61],
        "Softmax twice": [0.4, 0.41],
        "T moves with G": [0.2, 0.9],
        "both slips": [0.3, 0.31],
    }
    assert list(accuracies) == list(pixelda_ablation.SLIPS)
    frame = pd.DataFrame(
        [(n, s, a) for n, values in accuracies.items() for s, a in enumerate(values)],
        columns=["variant", "seed", "accuracy"],
    )
    waits = frame.iloc[:4].replace({"neither slip": "waits", "Softmax twice": "does not wait"})
    verdicts = pixelda_ablation.verdicts(frame, waits)
    assert verdicts["verdict"].tolist() == ["holds", "cannot be told here", "holds", "holds"]
    assert "Softmax twice +20.0 (*holds*)" in pixelda_ablation.verdict_sentence(verdicts)


def test_the_classifier_sees_half_of_the_source_in_its_own_light(settings, monkeypatch):
    torch.manual_seed(0)
    method = pixelda.PixelDA(settings(augmentation="strong"))
    seen = []
    monkeypatch.setattr(method, "logits", lambda x: seen.append(x) or torch.zeros(len(x), 10))
    x_s, fake = torch.rand(64, 3, 32, 32), torch.rand(64, 3, 32, 32)
    method._task_logits(x_s, fake)
    source, generated = seen[0].chunk(2)
    unchanged = [torch.equal(a, b) for a, b in zip(source, x_s, strict=True)]
    assert 16 < sum(unchanged) < 48
    assert not any(torch.equal(a, b) for a, b in zip(generated, fake, strict=True))
