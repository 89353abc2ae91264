"""DANN: networks, gradient reversal, schedule, who moves when."""

import copy
import dataclasses
import math

import pytest
import torch
from conftest import moved, weights
from torch import nn

from dlcvlib.config import profiles
from dlcvlib.evaluation import dann_ablation
from dlcvlib.methods import classifier, dann
from dlcvlib.training import runs

CPU = torch.device("cpu")


@pytest.fixture
def chapter(tmp_path):
    """Parameters of chapter 3 under profile smoke, changed by keyword."""
    fixed = {"precision": "fp32", "runs_dir": str(tmp_path / "runs"), "augmentation": "geometric"}
    return lambda **changes: profiles.load("smoke", "dann", fixed | changes)


@pytest.fixture
def settings(chapter):
    return lambda **changes: chapter(**changes).settings(0)


# --- networks ---------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [[8, 16, 16, 32], [4, 8, 8, 8, 8]])
def test_shapes(settings, batch, channels):
    method = dann.DANN(settings(channels=channels))
    features = method.extractor(batch[0])
    assert features.shape == (16, method.extractor.size)
    assert method.classifier(features).shape == (16, 10)
    assert method.domain(features).shape == (16,)


def test_the_networks_are_the_originals():
    method = dann.DANN(profiles.load("original", "dann").settings(0))
    kinds = [type(layer).__name__ for layer in method.extractor.layers]
    # Pooled before ReLU, which gives the same.
    assert kinds == ["Conv2d", "BatchNorm2d", "MaxPool2d", "ReLU"] * 4 + ["Flatten"]
    assert sum(isinstance(layer, nn.Linear) for layer in method.classifier.layers) == 3
    assert sum(isinstance(layer, nn.Linear) for layer in method.domain.layers) == 5
    assert sum(isinstance(layer, nn.BatchNorm1d) for layer in method.domain.layers) == 4


def test_pooling_before_relu_changes_neither_outputs_nor_gradients():
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    found = []
    for layers in ([nn.ReLU(), nn.MaxPool2d(2)], [nn.MaxPool2d(2), nn.ReLU()]):
        leaf = images.clone().requires_grad_()
        output = nn.Sequential(*layers)(leaf)
        output.square().sum().backward()
        found.append((output, leaf.grad))
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


def test_original_is_the_homeworks_setting():
    original = profiles.load("original", "dann")
    assert (original.batch_size, original.learning_rate) == (32, 1e-4)
    assert original.adam_betas == [0.5, 0.999]
    assert (original.domain_weight, original.domain_update) == (0.07, "alternating")
    assert (original.augmentation, original.target_augmentation) == ("none", "none")
    assert (original.learning_rate_schedule, original.domain_schedule) == ("constant", "fixed")


def test_every_parameter_gets_a_gradient(settings, batch):
    method = dann.DANN(settings(domain_schedule="fixed"))
    method.step(batch)
    for name, module in method.modules.items():
        for key, parameter in module.named_parameters():
            assert parameter.grad is not None, f"{name}.{key}"
            assert parameter.grad.abs().sum() > 0, f"{name}.{key}"


def test_instance_norm_takes_light_and_contrast_away():
    extractor = classifier.FeatureExtractor([4, 4], instance_norm=True).eval()
    images = torch.rand(4, 3, 32, 32)
    torch.testing.assert_close(
        extractor(images), extractor(0.5 * images + 0.25), rtol=1e-3, atol=1e-3
    )


# --- gradient reversal ------------------------------------------------------------------------


def test_reversal_is_identity_forward():
    x = torch.randn(5, 3)
    assert torch.equal(dann.reverse_gradient(x, 0.3), x)


def test_reversal_against_finite_differences():
    """The gradient that autograd reports is -weight times the one that differences measure."""
    weight, step = 0.7, 1e-6
    x = torch.randn(6, dtype=torch.float64, requires_grad=True)
    scale = torch.randn(6, dtype=torch.float64)

    def function(x):
        return (scale * x.sin() + x**3).sum()

    (reported,) = torch.autograd.grad(function(dann.reverse_gradient(x, weight)), x)
    measured = torch.stack(
        [
            (function(x + step * unit) - function(x - step * unit)) / (2 * step)
            for unit in torch.eye(6, dtype=torch.float64)
        ]
    )
    torch.testing.assert_close(reported, -weight * measured.detach(), rtol=1e-6, atol=1e-7)


def test_the_joint_step_is_the_papers_gradient(settings, batch):
    """F: d class - weight * d domain; L: d class; D: d domain. Written out without the layer."""
    method = dann.DANN(settings(domain_schedule="fixed", domain_weight=0.4))
    x_s, y_s, x_t = batch
    features = method.extractor(torch.cat([x_s, x_t]))
    class_loss = nn.functional.cross_entropy(method.classifier(features[:16]), y_s)
    is_source = torch.cat([torch.ones(16), torch.zeros(16)])
    domain_loss = nn.functional.binary_cross_entropy_with_logits(method.domain(features), is_source)
    of_f, of_l, of_d = (
        list(method.modules[n].parameters()) for n in ("extractor", "classifier", "domain")
    )
    wanted = [
        *torch.autograd.grad(class_loss - 0.4 * domain_loss, of_f, retain_graph=True),
        *torch.autograd.grad(class_loss, of_l, retain_graph=True),
        *torch.autograd.grad(domain_loss, of_d),
    ]
    terms = method.step(batch)
    torch.testing.assert_close(terms["class"], class_loss)
    torch.testing.assert_close(terms["domain"], domain_loss)
    for parameter, gradient in zip([*of_f, *of_l, *of_d], wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("progress", "value"), [(0, 0), (0.1, 0.46211716), (0.5, 0.98661430), (1, 0.99990920)]
)
def test_the_papers_schedule(progress, value):
    assert dann.rising(progress) == pytest.approx(value, abs=1e-7)


GUESSING = math.log(10)


@pytest.mark.parametrize(
    ("schedule", "class_loss", "value"),
    [
        ("fixed", GUESSING, lambda progress: 0.5),
        ("rising", GUESSING, lambda progress: 0.5 * dann.rising(progress)),
        ("patient", GUESSING, lambda progress: 0.0),
        ("patient", 2 * GUESSING, lambda progress: 0.0),
        ("patient", GUESSING / 4, lambda progress: 0.5 * dann.rising(progress) * 3 / 4),
        ("patient", 0.0, lambda progress: 0.5 * dann.rising(progress)),
    ],
)
def test_weight_along_a_run(settings, schedule, class_loss, value):
    method = dann.DANN(settings(domain_weight=0.5, domain_schedule=schedule))
    for done in (0, 4, 8):
        method.done = done
        weight = method.domain_weight(torch.tensor(class_loss, requires_grad=True))
        assert weight.item() == pytest.approx(value(done / 8), abs=1e-6)
        assert not weight.requires_grad


# --- who moves when ---------------------------------------------------------------------------


def test_the_domain_classifiers_own_step_leaves_the_others_alone(settings, batch):
    method = dann.DANN(settings())
    before = {name: weights(module) for name, module in method.modules.items()}
    features = method.extractor(torch.cat([batch[0], batch[2]])).detach()
    method._train_domain_classifier(features, torch.cat([torch.ones(16), torch.zeros(16)]))
    assert moved(method.domain, before["domain"])
    assert not moved(method.extractor, before["extractor"])
    assert not moved(method.classifier, before["classifier"])


@pytest.mark.parametrize(("update", "steps"), [("joint", [1, 1]), ("alternating", [1, 2])])
def test_alternating_moves_the_domain_classifier_twice(settings, batch, update, steps):
    method = dann.DANN(settings(domain_update=update))
    method.step(batch)
    counts = [
        next(iter(method.optimizers[name].state.values()))["step"].item()
        for name in ("classifier", "domain")
    ]
    assert counts == steps


def test_without_weight_the_features_do_not_hear_of_the_domain(settings, batch):
    """F's gradient at weight 0 is that of the class loss alone."""
    method = dann.DANN(settings(domain_weight=0.0, domain_schedule="fixed"))
    alone = copy.deepcopy(method)
    method.step(batch)
    features = alone.extractor(torch.cat([batch[0], batch[2]]))
    nn.functional.cross_entropy(alone.classifier(features[:16]), batch[1]).backward()
    for ours, theirs in zip(
        method.extractor.parameters(), alone.extractor.parameters(), strict=True
    ):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)


# --- training ---------------------------------------------------------------------------------


def test_it_learns_a_separable_toy(chapter, pair):
    toy = chapter(
        steps=300, batch_size=20, channels=[8, 16, 16, 16], augmentation="none", learning_rate=3e-3
    )
    run = classifier.train_or_load(toy.classifier(0), pair.source, toy.runs_dir)
    assert run.method.accuracy(pair.source.test) == 1.0
    adapted = dann.train_or_load(
        toy.settings(0).replace(target_augmentation="none", domain_weight=0.1),
        pair.adaptation(),
        toy.runs_dir,
    )
    assert adapted.method.accuracy(pair.target.test) == 1.0


def test_the_domains_are_drawn_independently(pair, settings):
    """An epoch of the shorter domain does not end that of the longer one."""
    data = pair.adaptation()
    short = dataclasses.replace(data, target=data.target[:20])
    same = lambda images: images  # noqa: E731
    draw = dann.two_domains(short, settings(batch_size=10), 0, same, same)(CPU)
    seen = torch.cat([draw(step)[0] for step in range(6)])
    assert len(seen.flatten(1).unique(dim=0)) == 60
    x_s, y_s, x_t = draw(7)
    assert x_s.shape == x_t.shape == (10, 3, 32, 32)
    assert y_s.shape == (10,)


def test_another_line_of_code_is_another_run(settings):
    names = {
        runs.run_name("dann", runs.identity_of(settings(), "data", code))
        for code in (["classifier"], ["classifier", "dann"])
    }
    assert len(names) == 2


def test_weight_sweep(chapter, pair):
    chosen = chapter(domain_weights=[0.1, 1.0], domain_weight=0.1)
    frame, trained = dann_ablation.weight_sweep(chosen, pair)
    some = [f"{w}, {schedule}" for schedule in ("patient", "rising", "fixed") for w in (0.1, 1)]
    assert list(frame["variant"].unique()) == ["0, no adaptation", *some]
    assert len(frame) == len(trained) == 7 * len(chosen.seeds)
    assert all(run.settings.steps == chosen.ablation_steps for run in trained)
    assert frame["accuracy"].between(0, 1).all()
    assert "would need labels" in dann_ablation.chosen_weight(frame, chosen)


@pytest.mark.parametrize(("main", "other"), [("patient", "rising"), ("fixed", "patient")])
def test_waiting_for_the_labels_or_not(chapter, pair, main, other):
    chosen = chapter(domain_schedule=main, seeds=[0])
    frame, trained = dann_ablation.waiting(chosen, pair)
    assert frame["variant"].tolist() == [other, main]
    assert trained[1].settings == chosen.settings(0)
    curves = dann_ablation.class_losses(frame, trained)
    assert curves.groupby("variant")["step"].max().to_dict() == {
        main: chosen.steps,
        other: chosen.steps,
    }
