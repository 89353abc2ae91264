"""DANN: networks, gradient reversal, schedule, which network each step updates."""

import dataclasses
import math

import pytest
import torch
from conftest import built, close, gradients
from torch import nn

from dlcvlib.methods import dann


@pytest.mark.parametrize("statistics", ["joint", "separate"])
@pytest.mark.parametrize(
    ("weight", "looks_at"), [(0.4, "features"), (0.4, "hidden"), (0.0, "hidden")]
)
def test_the_joint_step_has_the_papers_gradient(batch, weight, looks_at, statistics):
    """F and L: d class - weight * d domain; D: d domain. Without gradient reversal."""
    fixed = {"domain_schedule": "fixed", "domain_update": "joint", "domain_input": looks_at}
    method = built("dann", domain_weight=weight, batch_statistics=statistics, **fixed)
    x_s, y_s, x_t = batch
    parts = [torch.cat([x_s, x_t])] if statistics == "joint" else [x_s, x_t]
    outputs = [method.extractor(part) for part in parts]
    hidden = torch.cat([method.classifier.hidden(part) for part in outputs])
    class_loss = nn.functional.cross_entropy(method.classifier.output(hidden[:16]), y_s)
    seen = hidden if looks_at == "hidden" else torch.cat(outputs)
    is_source = torch.cat([torch.ones(16), torch.zeros(16)])
    domain_loss = nn.functional.binary_cross_entropy_with_logits(method.domain(seen), is_source)
    losses = {
        method.extractor: class_loss - weight * domain_loss,
        method.classifier: class_loss - weight * domain_loss * (looks_at == "hidden"),
        method.domain: domain_loss,
    }
    expected = {network: gradients(network, loss) for network, loss in losses.items()}
    terms = method.training_step(batch)
    torch.testing.assert_close(terms["class"], class_loss)
    torch.testing.assert_close(terms["domain"], domain_loss)
    for network in losses:
        close(network, expected[network], rtol=1e-4)


def test_the_products_of_hidden_units_and_probabilities():
    hidden, logits = torch.randn(4, 3), torch.randn(4, 10, requires_grad=True)
    seen = dann.multilinear(hidden, logits)
    both = zip(logits.softmax(1), hidden, strict=True)
    expected = torch.stack([torch.outer(p, h).flatten() for p, h in both])
    torch.testing.assert_close(seen, expected)
    assert not seen.requires_grad


def test_each_domain_has_its_own_statistics(batch):
    """In training those of the batch; in evaluation the running ones of the image's domain."""
    x_s, _, x_t = batch
    method = built("dann", batch_statistics="separate", domain_weight=0.0)
    apart = [method.represent(x_s, source=True)[2], method.represent(x_t)[2]]
    alone = built("classifier")
    for x, logits in zip((x_s, x_t), apart, strict=True):
        torch.testing.assert_close(alone.logits(x), logits)
    method = built("dann", batch_statistics="separate", domain_weight=0.0)
    for _ in range(3):
        method.training_step((x_s, torch.zeros(16, dtype=torch.long), 0.2 * x_t))
    own, of_source = (method.get_buffer(name) for name in next(iter(method.of_source.items())))
    assert not torch.equal(own, of_source)
    images = (255 * x_s).byte()
    assert not torch.equal(method.features(images), method.features(images, source=True))


def test_without_a_weight_source_only_is_trained_bit_for_bit(train):
    """With separate statistics; its evaluation on the target is then AdaBN's, with running ones."""
    run, alone = train("dann", domain_weight=0, batch_statistics="separate"), train("classifier")
    trained = dict(run.method.named_parameters())
    assert all(torch.equal(w, trained[name]) for name, w in alone.method.named_parameters())


GUESSING = math.log(10)


SCHEDULES = [
    ("fixed", GUESSING, [1, 1, 1]),
    ("rising", GUESSING, [0, 0.98661430, 0.99990920]),  # the paper's
    ("patient", 2 * GUESSING, [0, 0, 0]),
    ("patient", GUESSING / 4, [0, 0.75 * 0.98661430, 0.75 * 0.99990920]),
]


@pytest.mark.parametrize(("schedule", "class_loss", "shares"), SCHEDULES)
def test_domain_weight_over_a_run(schedule, class_loss, shares):
    method, weights = built("dann", domain_weight=0.5, domain_schedule=schedule, steps=8), []
    for method.step in (0, 4, 8):
        weights.append(method.domain_weight(torch.tensor(class_loss, requires_grad=True)))
    assert not any(weight.requires_grad for weight in weights)
    assert [2 * weight.item() for weight in weights] == pytest.approx(shares, abs=1e-6)


@pytest.mark.parametrize(("update", "steps"), [("joint", [1, 1]), ("alternating", [1, 2])])
def test_alternating_updates_the_domain_classifier_alone_once_more(batch, update, steps):
    method = built("dann", domain_update=update)
    method.training_step(batch)
    states = [optimizer.state.values() for optimizer in method.optimizers.values()]
    assert [next(iter(state))["step"].item() for state in states] == steps


def test_it_adapts_to_a_separable_toy(train, pair):
    toy = {"steps": 150, "batch_size": 20, "channels": [8, 16, 16, 16], "learning_rate": 3e-3}
    toy |= {"augmentation": "none", "target_augmentation": "none", "classifier_width": 32}
    method = train("dann", **toy).method
    assert method.accuracy(pair.source.test, source=True) > 0.95
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
