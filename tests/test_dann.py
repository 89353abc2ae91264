"""DANN: networks, gradient reversal, schedule, which network each step updates."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from conftest import built, close, gradients
from torch import nn


def test_instance_norm_removes_brightness_and_contrast():
    extractor = built("classifier", instance_norm=True).extractor.eval()
    images = torch.rand(4, 3, 32, 32)
    changed = extractor(0.5 * images + 0.25)
    torch.testing.assert_close(extractor(images), changed, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("weight", "channels"), [(0.0, [8, 16]), (0.4, [4, 8, 8, 8, 8])])
def test_the_joint_step_has_the_papers_gradient(batch, weight, channels):
    """F: d class - weight * d domain; L: d class; D: d domain. Without gradient reversal."""
    method = built("dann", domain_weight=weight, domain_schedule="fixed", channels=channels)
    x_s, y_s, x_t = batch
    features = method.extractor(torch.cat([x_s, x_t]))
    class_loss = nn.functional.cross_entropy(method.classifier(features[:16]), y_s)
    is_source = torch.cat([torch.ones(16), torch.zeros(16)])
    domain_loss = nn.functional.binary_cross_entropy_with_logits(method.domain(features), is_source)
    losses = {
        method.extractor: class_loss - weight * domain_loss,
        method.classifier: class_loss,
        method.domain: domain_loss,
    }
    expected = {network: gradients(network, loss) for network, loss in losses.items()}
    terms = method.training_step(batch)
    torch.testing.assert_close(terms["class"], class_loss)
    torch.testing.assert_close(terms["domain"], domain_loss)
    for network in losses:
        close(network, expected[network], rtol=1e-4)


GUESSING, RISING = math.log(10), np.array([0, 0.46211716, 0.98661430, 0.99990920])


@pytest.mark.parametrize(
    ("schedule", "class_loss", "shares"),
    [
        ("fixed", GUESSING, np.ones(4)),
        ("rising", GUESSING, RISING),
        ("patient", 2 * GUESSING, np.zeros(4)),
        ("patient", GUESSING / 4, RISING * 3 / 4),
    ],
)
def test_domain_weight_over_a_run(schedule, class_loss, shares):
    """The paper's schedule, to which a warm-up may be added."""
    method = built("dann", domain_weight=0.5, domain_schedule=schedule, steps=10)
    for method.step, share in zip((0, 1, 5, 10), shares, strict=True):
        weight = method.domain_weight(torch.tensor(class_loss, requires_grad=True))
        assert weight.item() == pytest.approx(0.5 * share, abs=1e-6)
        assert not weight.requires_grad


def test_alternating_updates_the_domain_classifier_alone_once_more(batch):
    method = built("dann", domain_update="alternating")
    method.training_step(batch)
    states = [optimizer.state.values() for optimizer in method.optimizers.values()]
    assert [next(iter(state))["step"].item() for state in states] == [1, 2]


def test_it_adapts_to_a_separable_toy(train, pair):
    toy = {"steps": 150, "batch_size": 20, "channels": [8, 16, 16, 16], "learning_rate": 3e-3}
    toy |= {"augmentation": "none", "target_augmentation": "none", "domain_weight": 0.1}
    method = train("dann", **toy).method
    assert method.accuracy(pair.source.test) > 0.95
    assert method.accuracy(pair.target.test) > 0.9


def test_domain_accuracy_is_the_mean_over_both_domains(pair):
    """One domain has more images than the other; D takes all of both for the source."""
    data = pair.adaptation()
    method = built("dann")
    nn.init.constant_(method.domain.layers[-2].bias, 100.0)
    short = dataclasses.replace(data, target_validation=data.target_validation[:20])
    assert method.evaluate(short)["domain_accuracy"] == 0.5


def test_the_domains_are_drawn_independently(pair):
    """An epoch of the shorter domain does not end that of the longer one."""
    data = pair.adaptation()
    short = dataclasses.replace(data, target=data.target[:20])
    off = {"augmentation": "none", "target_augmentation": "none"}
    draw = built("dann", batch_size=10, **off).batches(short, torch.device("cpu"))
    seen = torch.cat([draw(step)[0] for step in range(6)])
    assert len(seen.flatten(1).unique(dim=0)) == 60
    assert [part.shape for part in draw(7)] == [(10, 3, 32, 32), (10,), (10, 3, 32, 32)]
