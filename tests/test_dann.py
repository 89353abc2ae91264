"""DANN: networks, gradient reversal, schedule, which network each step updates."""

import dataclasses
import math

import pytest
import torch
from conftest import built, close, updated, weights
from torch import nn

from dlcvlib.config import profiles
from dlcvlib.methods import classifier, dann

FIXED = {"domain_schedule": "fixed"}
IS_SOURCE = torch.cat([torch.ones(16), torch.zeros(16)])


@pytest.mark.parametrize("channels", [[8, 16, 16, 32], [4, 8, 8, 8, 8]])
def test_shapes(batch, channels):
    method = built("dann", channels=channels)
    features = method.extractor(batch[0])
    assert features.shape == (16, method.extractor.size)
    assert method.classifier(features).shape == (16, 10)
    assert method.domain(features).shape == (16,)


def test_the_originals_networks():
    original = profiles.load("original", "dann")
    assert (original.domain_weight, original.domain_update) == (0.07, "alternating")
    method = dann.DANN(original.settings(0))
    kinds = [type(layer).__name__ for layer in method.extractor.layers]
    # Pooled before ReLU, which gives the same.
    assert kinds == ["Conv2d", "BatchNorm2d", "MaxPool2d", "ReLU"] * 4 + ["Flatten"]
    linear = [
        [type(m) for m in net.layers].count(nn.Linear) for net in (method.classifier, method.domain)
    ]
    assert linear == [3, 5]


def test_instance_norm_removes_brightness_and_contrast():
    extractor = classifier.FeatureExtractor([4, 4], instance_norm=True).eval()
    images = torch.rand(4, 3, 32, 32)
    changed = extractor(0.5 * images + 0.25)
    torch.testing.assert_close(extractor(images), changed, rtol=1e-3, atol=1e-3)


# --- gradient reversal ------------------------------------------------------------------------


def test_reversal_is_the_identity_forward_and_negated_backward():
    """Against finite differences: -weight times the gradient that they measure."""
    weight, step = 0.7, 1e-6
    x = torch.randn(6, dtype=torch.float64, requires_grad=True)
    scale = torch.randn(6, dtype=torch.float64)
    assert torch.equal(dann.reverse_gradient(x, weight), x)

    def function(x):
        return (scale * x.sin() + x**3).sum()

    (reported,) = torch.autograd.grad(function(dann.reverse_gradient(x, weight)), x)
    ends = [(x + step * unit, x - step * unit) for unit in torch.eye(6, dtype=torch.float64)]
    measured = torch.stack([(function(a) - function(b)) / (2 * step) for a, b in ends])
    torch.testing.assert_close(reported, -weight * measured.detach(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("weight", [0.0, 0.4])
def test_the_joint_step_has_the_papers_gradient(batch, weight):
    """F: d class - weight * d domain; L: d class; D: d domain. Written out without the layer."""
    method = built("dann", domain_weight=weight, domain_update="joint", **FIXED)
    x_s, y_s, x_t = batch
    features = method.extractor(torch.cat([x_s, x_t]))
    class_loss = nn.functional.cross_entropy(method.classifier(features[:16]), y_s)
    domain_loss = nn.functional.binary_cross_entropy_with_logits(method.domain(features), IS_SOURCE)
    losses = {
        method.extractor: class_loss - weight * domain_loss,
        method.classifier: class_loss,
        method.domain: domain_loss,
    }
    expected = {
        network: torch.autograd.grad(loss, list(network.parameters()), retain_graph=True)
        for network, loss in losses.items()
    }
    terms = method.training_step(batch)
    torch.testing.assert_close(terms["class"], class_loss)
    torch.testing.assert_close(terms["domain"], domain_loss)
    for network, gradients in expected.items():
        close(network, gradients, rtol=1e-4)


@pytest.mark.parametrize(
    ("progress", "value"), [(0, 0), (0.1, 0.46211716), (0.5, 0.98661430), (1, 0.99990920)]
)
def test_the_papers_schedule(progress, value):
    assert dann.rising(progress) == pytest.approx(value, abs=1e-7)


GUESSING = math.log(10)


@pytest.mark.parametrize(
    ("schedule", "class_loss", "share"),
    [
        ("fixed", GUESSING, lambda progress: 1.0),
        ("rising", GUESSING, dann.rising),
        ("patient", GUESSING, lambda progress: 0.0),
        ("patient", 2 * GUESSING, lambda progress: 0.0),
        ("patient", GUESSING / 4, lambda progress: dann.rising(progress) * 3 / 4),
        ("patient", 0.0, dann.rising),
    ],
)
def test_domain_weight_over_a_run(schedule, class_loss, share):
    method = built("dann", domain_weight=0.5, domain_schedule=schedule, steps=8)
    for method.step in (0, 4, 8):
        weight = method.domain_weight(torch.tensor(class_loss, requires_grad=True))
        assert weight.item() == pytest.approx(0.5 * share(method.step / 8), abs=1e-6)
        assert not weight.requires_grad


# --- steps and training -----------------------------------------------------------------------


def test_the_domain_classifiers_own_step_updates_only_itself(batch):
    method = built("dann")
    before = weights(method)
    features = method.extractor(torch.cat([batch[0], batch[2]])).detach()
    method._train_domain_classifier(features, IS_SOURCE)
    assert updated(method, before) == {"domain"}


@pytest.mark.parametrize(("update", "steps"), [("joint", [1, 1]), ("alternating", [1, 2])])
def test_alternating_updates_the_domain_classifier_twice(batch, update, steps):
    method = built("dann", domain_update=update)
    method.training_step(batch)
    states = [optimizer.state.values() for optimizer in method.optimizers.values()]
    assert [next(iter(state))["step"].item() for state in states] == steps


def test_it_adapts_to_a_separable_toy(train, pair):
    toy = {"steps": 150, "batch_size": 20, "channels": [8, 16, 16, 16], "learning_rate": 3e-3}
    toy |= {"augmentation": "none", "target_augmentation": "none", "domain_weight": 0.1}
    method = train("dann", **toy).method
    assert method.accuracy(pair.source.test) > 0.95
    assert method.accuracy(pair.target.test) > 0.9
    assert 0.5 <= method.domain_accuracy(pair.source.test.images, pair.target.test.images) <= 1


def test_the_domains_are_drawn_independently(pair):
    """An epoch of the shorter domain does not end that of the longer one."""
    data = pair.adaptation()
    short = dataclasses.replace(data, target=data.target[:20])
    off = {"augmentation": "none", "target_augmentation": "none"}
    draw = built("dann", batch_size=10, **off).batches(short, torch.device("cpu"))
    seen = torch.cat([draw(step)[0] for step in range(6)])
    assert len(seen.flatten(1).unique(dim=0)) == 60
    x_s, y_s, x_t = draw(7)
    assert x_s.shape == x_t.shape == (10, 3, 32, 32)
    assert y_s.shape == (10,)
