"""The DCGAN: both players' shapes, losses and moves, and that each trick does what it says."""

import copy
import itertools
import math

import pytest
import torch
from torch import nn

from dlcvlib.config import profiles
from dlcvlib.data.batches import Batches, to_float
from dlcvlib.evaluation import gan_health, layers
from dlcvlib.evaluation.features import Extractor
from dlcvlib.methods import dcgan
from dlcvlib.training import device, loop, runs
from dlcvlib.utils.errors import UserError

CPU = torch.device("cpu")


@pytest.fixture
def settings():
    """Settings of chapter 2 under profile smoke, changed by keyword; every trick is off."""
    off = {"soft_labels": [1.0, 1.0], "ema_decay": 0.0, "precision": "fp32"}
    return lambda **changes: profiles.load("smoke", "gan", off | changes).settings


@pytest.fixture
def images(faces):
    return to_float(faces.train.images[:16])


def pixels(count):
    return Extractor("pixels", "pixels", lambda images: images.float().flatten(1)[:, :count])


# --- networks ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", [4, 5])
@pytest.mark.parametrize("spectral", [False, True])
def test_shapes_and_range(kernel, spectral):
    images = dcgan.Generator(4, 8, kernel)(torch.randn(3, 8))
    assert images.shape == (3, 3, 64, 64)
    assert images.abs().max() <= 1
    assert dcgan.Discriminator(4, kernel, spectral)(images).shape == (3,)


def test_original_size():
    """As in the homework's code: 100 -> 8192 -> 256-128-64-3, and 64-128-256-512 -> 1, all 5x5."""
    generator, discriminator = dcgan.Generator(64, 100, 5), dcgan.Discriminator(64, 5)

    def convolutions(widths):
        return sum(25 * a * b for a, b in itertools.pairwise(widths))

    batch_norms = 2 * (8192 + 256 + 128 + 64)
    assert layers.layers(generator, (1, 100)).parameters.sum() == (
        100 * 8192 + convolutions([512, 256, 128, 64, 3]) + 3 + batch_norms
    )
    assert layers.layers(discriminator, (1, 3, 64, 64)).parameters.sum() == (
        convolutions([3, 64, 128, 256, 512]) + 64 + 2 * (128 + 256 + 512) + 16 * 512 + 1
    )


def test_five_upsampling_stages_and_no_pooling():
    table = layers.layers(dcgan.Generator(4, 8), (1, 8))
    sides = [shape.split("×")[-1] for shape in table["output"]]
    assert list(dict.fromkeys(sides))[1:] == ["4", "8", "16", "32", "64"]
    kinds = {type(m) for m in dcgan.Discriminator(4).modules()}
    assert not kinds & {nn.MaxPool2d, nn.AvgPool2d, nn.Sigmoid}
    norms = [m for m in dcgan.Discriminator(4).modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 3


def test_initial_weights():
    torch.manual_seed(0)
    model = nn.Sequential(dcgan.Generator(16, 100), dcgan.Discriminator(16))
    for layer in model.modules():
        if (
            isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)
            and layer.weight.numel() > 5000
        ):
            assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05)
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.weight.mean().item() == pytest.approx(1, abs=0.02)
    for layer in dcgan.Discriminator(16, spectral=True).layers[2:-2:2]:
        assert layer.parametrizations.weight.original.std().item() == pytest.approx(0.02, rel=0.05)


def test_spectral_norm_is_one(settings, images):
    torch.manual_seed(0)
    gan = dcgan.DCGAN(settings(discriminator_norm="spectral", learning_rate=4e-4))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in gan.discriminator.modules())
    for _ in range(30):
        gan.step((images,))
    for layer in gan.discriminator.modules():
        if isinstance(layer, nn.Conv2d):
            largest = torch.linalg.matrix_norm(layer.weight.flatten(1), 2)
            assert largest.item() == pytest.approx(1, abs=0.05)


def test_layers_of_a_spectral_network_are_counted():
    plain, spectral = dcgan.Discriminator(8, 4), dcgan.Discriminator(8, 4, spectral=True)
    frame = layers.layers(spectral, (1, 3, 64, 64))
    assert (frame["layer"] == "Conv 4×4, stride 2").sum() == 4
    convolutions = layers.layers(plain, (1, 3, 64, 64))["mult_adds"].max()
    assert frame["mult_adds"].max() == pytest.approx(convolutions, rel=0.02)


# --- losses -----------------------------------------------------------------------------------


def test_bce_is_the_formula():
    logits, target = torch.randn(50), torch.rand(50)
    said = torch.sigmoid(logits)
    plain = -(target * said.log() + (1 - target) * (1 - said).log()).mean()
    torch.testing.assert_close(dcgan.discriminator_loss("bce", logits, target), plain)
    torch.testing.assert_close(dcgan.generator_loss("bce", logits), -said.log().mean())


def test_bce_survives_large_logits():
    huge = torch.tensor([500.0, -500.0])
    assert dcgan.discriminator_loss("bce", huge, torch.tensor([0.0, 1.0])) == 500
    assert dcgan.generator_loss("bce", -huge[:1]) == 500


def test_hinge():
    logits = torch.tensor([2.0, 0.5, -3.0])
    ones, zeros = torch.ones(3), torch.zeros(3)
    assert dcgan.discriminator_loss("hinge", logits, ones) == pytest.approx((0 + 0.5 + 4) / 3)
    assert dcgan.discriminator_loss("hinge", logits, zeros) == pytest.approx((3 + 1.5 + 0) / 3)
    assert dcgan.generator_loss("hinge", logits) == pytest.approx(0.5 / 3)


# --- tricks -----------------------------------------------------------------------------------


def test_hard_labels():
    real, fake = dcgan.labels(100, [1.0, 1.0], 0.0, CPU)
    assert (real == 1).all()
    assert (fake == 0).all()


def test_labels_flip_at_the_set_rate():
    torch.manual_seed(0)
    real, fake = dcgan.labels(20_000, [1.0, 1.0], 0.15, CPU)
    assert (real == 0).float().mean() == pytest.approx(0.15, abs=0.01)
    assert (fake == 1).float().mean() == pytest.approx(0.15, abs=0.01)
    assert ((real == 0) & (fake == 1)).float().mean() == pytest.approx(0.0225, abs=0.005)


def test_soft_labels_fill_their_range():
    real, fake = dcgan.labels(5000, [0.7, 0.95], 0.0, CPU)
    assert real.min() >= 0.7
    assert real.max() <= 0.95
    assert real.mean() == pytest.approx(0.825, abs=0.01)
    assert (fake == 0).all()


def test_flips_end_when_they_should(settings):
    gan = dcgan.DCGAN(settings(flip_labels=0.2, flip_labels_until=5))
    rates = []
    for gan.done in range(8):
        rates.append(gan.flip_labels())
    assert rates == [0.2] * 5 + [0.0] * 3


def test_generator_steps_are_counted(settings, images):
    gan = dcgan.DCGAN(settings(generator_steps=3, generator_steps_until=2))
    for gan.done in range(4):
        gan.step((images,))

    def moved(player):
        optimizer = gan.optimizers[player]
        return {int(slots["step"]) for slots in optimizer.state.values()}

    assert moved("discriminator") == {4}
    assert moved("generator") == {3 + 3 + 1 + 1}


@pytest.mark.parametrize(("annealed", "share"), [(False, 1.0), (True, 0.25)])
def test_noise_level(settings, annealed, share):
    gan = dcgan.DCGAN(settings(steps=12, input_noise=0.4, input_noise_annealed=annealed))
    images = torch.zeros(64, 3, 64, 64)
    assert gan.shown(images).std().item() == pytest.approx(0.4, rel=0.02)
    gan.done = 9
    assert gan.shown(images).std().item() == pytest.approx(0.4 * share, rel=0.02)


def test_blur_smooths_and_anneals(settings):
    torch.manual_seed(0)
    gan = dcgan.DCGAN(settings(steps=12, input_blur=2.0, input_blur_annealed=True))
    images = torch.randn(8, 3, 64, 64)

    def left():
        return float(gan.shown(images).std() / images.std())

    # Of white noise, a Gaussian of deviation s keeps 1 / (2 s sqrt(pi)) of the deviation.
    assert left() == pytest.approx(1 / (2 * 2 * math.sqrt(math.pi)), rel=0.1)
    gan.done = 6
    assert left() == pytest.approx(1 / (2 * 1 * math.sqrt(math.pi)), rel=0.1)
    constant = dcgan.DCGAN(settings(steps=12, input_blur=2.0, input_blur_annealed=False))
    constant.done = 11
    assert constant.input_blur() == 2.0


@pytest.mark.parametrize("deviation", [0.5, 2.0, 8.0])
def test_blur_is_torchvisions(deviation):
    from torchvision.transforms.v2.functional import gaussian_blur

    reach = math.ceil(3 * deviation)
    images = torch.rand(2, 3, 64, 64, requires_grad=True)
    theirs = gaussian_blur(images, [2 * reach + 1] * 2, [deviation] * 2)
    ours = dcgan.blurred(images, deviation, reach)
    torch.testing.assert_close(ours, theirs)
    noise = torch.randn_like(ours)
    torch.testing.assert_close(
        *(torch.autograd.grad((found * noise).sum(), images)[0] for found in (ours, theirs))
    )


def test_without_tricks_images_are_shown_as_they_are(settings):
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(dcgan.DCGAN(settings()).shown(images), images)


def test_tricks_that_do_not_fit_are_refused(settings):
    with pytest.raises(UserError, match="hinge loss knows no soft labels"):
        settings(loss="hinge", soft_labels=[0.9, 1.0])
    with pytest.raises(UserError, match="the range must rise"):
        settings(soft_labels=[1.0, 0.8])


# --- differentiable augmentation --------------------------------------------------------------


@pytest.mark.parametrize("policy", ["color", "translation", "cutout"])
def test_augmentation_differs_by_image_and_lets_gradients_through(policy):
    torch.manual_seed(0)
    images = torch.rand(1, 3, 64, 64).repeat(8, 1, 1, 1).requires_grad_()
    changed = dcgan.augment(images, [policy])
    assert changed.shape == images.shape
    assert not torch.equal(changed[0], changed[1])
    changed.square().sum().backward()
    assert (images.grad.flatten(1).abs().sum(1) > 0).all()


def test_translation_moves_by_whole_pixels_and_fills_with_zeros():
    torch.manual_seed(0)
    images = torch.zeros(200, 3, 64, 64)
    images[:, :, 32, 20] = 1
    moved = dcgan.augment(images, ["translation"])
    assert torch.equal(moved.sum((1, 2, 3)), torch.full((200,), 3.0))
    rows, columns = (moved[:, 0].nonzero()[:, i] for i in (1, 2))
    assert {int(rows.min()), int(rows.max())} == {24, 40}
    assert {int(columns.min()), int(columns.max())} == {12, 28}
    edges = dcgan.augment(torch.ones(50, 3, 64, 64), ["translation"])
    assert set(edges.unique().tolist()) == {0.0, 1.0}


def test_cutout_hides_at_most_a_square_of_half_the_side():
    torch.manual_seed(0)
    hidden = (dcgan.augment(torch.ones(300, 3, 64, 64), ["cutout"])[:, 0] == 0).flatten(1).sum(1)
    assert hidden.max() == 32 * 32
    assert hidden.min() >= 16 * 16


def test_color_keeps_shape_and_is_the_identity_on_average():
    torch.manual_seed(0)
    image = torch.rand(1, 3, 8, 8) * 2 - 1
    many = dcgan.augment(image.repeat(20_000, 1, 1, 1), ["color"])
    torch.testing.assert_close(many.mean(0, keepdim=True), image, atol=0.02, rtol=0)


# --- the game ---------------------------------------------------------------------------------


def weights(module):
    return [p.detach().clone() for p in module.parameters()]


def same(before, module):
    return all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))


def test_only_the_player_whose_turn_it_is_moves(settings, images):
    gan = dcgan.DCGAN(settings())
    real = 2 * images - 1
    before = weights(gan.generator), weights(gan.discriminator)
    fake = gan.generator(gan.noise(16, CPU))
    gan._train_discriminator(real, fake.detach())
    assert same(before[0], gan.generator)
    assert not same(before[1], gan.discriminator)
    after = weights(gan.discriminator)
    gan._train_generator(fake)
    assert same(after, gan.discriminator)
    assert not same(before[0], gan.generator)
    assert all(p.requires_grad for p in gan.discriminator.parameters())


@pytest.mark.parametrize("loss", ["bce", "hinge"])
def test_the_step_is_the_papers(settings, images, loss, monkeypatch):
    """Each player's gradient is that of the loss of [1] or [5] on images as D is shown them."""
    gan = dcgan.DCGAN(settings(loss=loss))
    monkeypatch.setattr(gan, "shown", lambda images: -images)
    real = 2 * images - 1
    fake = gan.generator(gan.noise(16, CPU))

    def gradients(player, value):
        return torch.autograd.grad(value, list(player.parameters()), retain_graph=True)

    of_real, of_fake = gan.discriminator(-real), gan.discriminator(-fake.detach())
    d_loss = {
        "bce": -(of_real.sigmoid().log().mean() + (1 - of_fake.sigmoid()).log().mean()),
        "hinge": (1 - of_real).relu().mean() + (1 + of_fake).relu().mean(),
    }[loss]
    wanted = gradients(gan.discriminator, d_loss)
    terms = gan._train_discriminator(real, fake.detach())
    torch.testing.assert_close(terms["discriminator"], d_loss)
    for weight, gradient in zip(gan.discriminator.parameters(), wanted, strict=True):
        torch.testing.assert_close(weight.grad, gradient, rtol=1e-3, atol=1e-6)

    fooled = gan.discriminator(-fake)
    g_loss = {"bce": -fooled.sigmoid().log().mean(), "hinge": -fooled.mean()}[loss]
    wanted = gradients(gan.generator, g_loss)
    torch.testing.assert_close(gan._train_generator(fake)["generator"], g_loss)
    for weight, gradient in zip(gan.generator.parameters(), wanted, strict=True):
        torch.testing.assert_close(weight.grad, gradient, rtol=1e-3, atol=1e-6)


def test_every_weight_moves(settings, images):
    gan = dcgan.DCGAN(settings())
    gan.step((images,))
    for player in ("generator", "discriminator"):
        for name, value in gan.modules[player].named_parameters():
            assert value.grad is not None, name
            assert value.grad.abs().sum() > 0, name


def test_the_discriminator_learns_to_tell(settings, images):
    torch.manual_seed(0)
    gan = dcgan.DCGAN(settings(learning_rate=0.002))
    real = 2 * images - 1
    with torch.no_grad():
        fake = gan.generator(gan.noise(16, CPU))
    for _ in range(30):
        terms = gan._train_discriminator(real, fake)
    assert terms["d_real"] > 0.9
    assert terms["d_fake"] < 0.1


def test_average_is_exponential(settings, images):
    gan = dcgan.DCGAN(settings(ema_decay=0.9))
    expected = None
    for count in range(12):
        gan.step((images,))
        now = [p.detach().clone() for p in gan.generator.parameters()]
        if expected is None:  # the first update copies
            expected = now
            continue
        decay = min(0.9, (1 + count) / (10 + count))
        expected = [decay * e + (1 - decay) * n for e, n in zip(expected, now, strict=True)]
    averaged = list(gan.averaged.module.parameters())
    torch.testing.assert_close(averaged, expected)
    assert not any(p.requires_grad for p in averaged)


def test_averaging_does_not_touch_training(settings, images):
    results = []
    for decay in (0.0, 0.9):
        torch.manual_seed(0)
        gan = dcgan.DCGAN(settings(ema_decay=decay))
        for step in range(3):
            loop.seed_step(0, step)
            gan.step((images,))
        results.append(weights(gan.generator))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_sampling_moves_nothing(settings):
    gan = dcgan.DCGAN(settings(ema_decay=0.9))
    before = copy.deepcopy(gan.generator.state_dict())
    pictures = gan.sample(torch.randn(5, 8), averaged=False)
    assert pictures.shape == (5, 3, 64, 64)
    assert pictures.min() >= 0
    assert pictures.max() <= 1
    assert gan.generator.training
    assert all(torch.equal(v, before[k]) for k, v in gan.generator.state_dict().items())


def test_samples_are_the_averages_unless_the_raw_ones_are_asked_for(settings, images):
    gan = dcgan.DCGAN(settings(ema_decay=0.9))
    for _ in range(3):
        gan.step((images,))
    z = torch.randn(5, 8)
    for averaged, generator in ((False, gan.generator), (True, gan.averaged.module)):
        with torch.no_grad():
            expected = (copy.deepcopy(generator).eval()(z) + 1) / 2
        torch.testing.assert_close(gan.sample(z, averaged=averaged), expected)
    assert not torch.equal(gan.sample(z), gan.sample(z, averaged=False))


# --- runs -------------------------------------------------------------------------------------


def fit(settings, faces, folder, until=None):
    """Train a DCGAN; interrupted after `until` steps if given."""
    torch.manual_seed(settings.seed)
    gan = dcgan.DCGAN(settings)
    batches = Batches([faces.train.images], settings.batch_size, settings.seed, device.default())

    def batch(step):
        if step == until:
            signal_now()
        return batches(step)

    loop.fit(gan, batch, settings, folder, label="t")
    return gan


def signal_now():
    import os
    import signal

    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("changes", [{}, {"discriminator_norm": "spectral", "loss": "hinge"}])
def test_a_resumed_run_is_the_uninterrupted_one(settings, faces, tmp_path, changes):
    chosen = settings(steps=9, ema_decay=0.9, input_noise=0.2, augmentation=["color"], **changes)
    whole = fit(chosen, faces, tmp_path / "whole")
    for until in (3, 6):
        with pytest.raises(loop.Stopped):
            fit(chosen, faces, tmp_path / "cut", until)
    cut = fit(chosen, faces, tmp_path / "cut")
    left, right = loop.module_tensors(whole), loop.module_tensors(cut)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)
    for player in ("generator", "discriminator"):
        one, other = (gan.optimizers[player].state_dict()["state"] for gan in (whole, cut))
        assert one.keys() == other.keys()
        for a, b in ((one[index], other[index]) for index in one):
            assert a["step"] == b["step"] == 9
            assert torch.equal(a["exp_avg"], b["exp_avg"])
            assert torch.equal(a["exp_avg_sq"], b["exp_avg_sq"])


def test_runs_are_kept_with_their_snapshots(settings, faces, tmp_path, capsys):
    chosen = settings(steps=6, ema_decay=0.9, keep_snapshots=True)
    run = dcgan.train_or_load(chosen, faces, pixels(40), tmp_path)
    assert {"validation_kid", "validation_kid_averaged", "validation_diversity"} <= {*run.history}
    assert run.snapshots == [3, 6]
    z = torch.randn(4, 8)
    early, late = (run.at(step).sample(z) for step in run.snapshots)
    torch.testing.assert_close(late, run.method.sample(z), atol=0.01, rtol=0)
    assert not torch.equal(early, late)
    again = dcgan.train_or_load(chosen, faces, pixels(40), tmp_path)
    assert again.provenance == run.provenance
    (snapshot,) = tmp_path.glob("*/snapshot-3.safetensors")
    snapshot.write_bytes(snapshot.read_bytes()[:-10])
    third = dcgan.train_or_load(chosen, faces, pixels(40), tmp_path)
    assert "snapshot-3.safetensors is damaged" in capsys.readouterr().out
    assert torch.equal(third.at(3).sample(z), early)


def test_ablation_runs_keep_no_snapshots(settings, faces, tmp_path):
    run = dcgan.train_or_load(settings(keep_snapshots=False), faces, pixels(40), tmp_path)
    assert run.snapshots == []
    assert list(run.folder.glob("snapshot*")) == []


def test_the_run_depends_on_who_measures_it(settings, faces, tmp_path):
    one = dcgan.train_or_load(settings(steps=2), faces, pixels(40), tmp_path)
    other = Extractor("other", "other", pixels(40).features)
    assert dcgan.train_or_load(settings(steps=2), faces, other, tmp_path).name != one.name


# --- signs of failure -------------------------------------------------------------------------


def played(settings, **columns):
    """A finished run with this history."""
    import pandas as pd

    count = len(columns["discriminator"])
    history = pd.DataFrame(
        {"step": [10.0 * (i + 1) for i in range(count)], "generator": 1.0, "d_real": 0.8}
        | {"d_fake": 0.2, "validation_diversity": 0.9}
        | columns
    )
    return runs.Run("r", None, settings, history, {}, None)


def seen(run):
    frame = gan_health.signs(run)
    return frame.loc[frame["seen"], "sign"].tolist()


def test_a_healthy_game_shows_no_sign(settings):
    run = played(settings(), discriminator=[0.9] * 20)
    assert seen(run) == []
    assert gan_health.verdict(gan_health.signs(run)).startswith("No sign")


def test_a_discriminator_at_zero_loss_is_seen(settings):
    assert seen(played(settings(), discriminator=[0.9] * 15 + [0.01] * 5)) == [
        "the discriminator is at zero loss"
    ]
    # Now and then is not for long.
    assert seen(played(settings(), discriminator=[0.9, 0.01] * 10)) == []


def test_zero_loss_is_what_the_labels_allow(settings):
    soft = settings(soft_labels=[0.9, 0.9], flip_labels=0.1, flip_labels_until=1000)
    least = gan_health.least_loss(soft, 10)
    p, q = 0.9 * 0.9, 0.1 * 0.9
    expected = sum(-x * math.log(x) - (1 - x) * math.log(1 - x) for x in (p, q))
    assert least == pytest.approx(expected)
    assert gan_health.least_loss(settings(), 10) == 0
    hinge = settings(loss="hinge", flip_labels=0.1, flip_labels_until=1000)
    assert gan_health.least_loss(hinge, 10) == pytest.approx(0.4)
    assert gan_health.least_loss(hinge, 2000) == 0
    assert "zero loss" in seen(played(soft, discriminator=[least + 0.001] * 10))[0]


def test_a_fooled_discriminator_is_seen(settings):
    run = played(settings(), discriminator=[1.38] * 10, d_real=[0.5] * 10, d_fake=[0.5] * 10)
    assert seen(run) == ["the discriminator is fooled"]


def test_a_collapsed_generator_is_seen(settings):
    run = played(settings(), discriminator=[0.9] * 4, validation_diversity=[0.9, 0.8, 0.4, 0.2])
    assert seen(run) == ["the generator has collapsed"]
    assert "went badly: the generator has collapsed" in gan_health.verdict(gan_health.signs(run))


def test_slerp_keeps_the_length_of_noise():
    from dlcvlib.evaluation.latent import arc

    torch.manual_seed(0)
    a, b = torch.nn.functional.normalize(torch.randn(2, 100), dim=1) * 10
    walk = arc(a, b, 7)
    torch.testing.assert_close(walk.norm(dim=1), torch.full((7,), 10.0))
    torch.testing.assert_close(walk[0], a)
    torch.testing.assert_close(walk[-1], b)
