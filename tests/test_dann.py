"""DANN: gradient reversal, schedule, who moves when, and that target labels are out of reach."""

import copy
import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from dlcvlib import ablation, adaptation, classifier, dann, dann_ablation, params, runs, training
from dlcvlib.data.images import DigitData, Domain, LabelledImages, Pair

CPU = torch.device("cpu")


@pytest.fixture
def chapter(tmp_path):
    """Parameters of chapter 3 under profile smoke, changed by keyword."""
    fixed = {"precision": "fp32", "runs_dir": str(tmp_path / "runs"), "augmentation": "geometric"}
    return lambda **changes: params.load("smoke", "dann", fixed | changes)


@pytest.fixture
def settings(chapter):
    return lambda **changes: chapter(**changes).settings(0)


def digits_of(name, count=60, shift=0, seed=0):
    """A domain whose digits are bright bars: the place is the label, brightness the domain."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(3 * count) % 10
    images = torch.randint(0, 60, (3 * count, 3, 32, 32), generator=generator, dtype=torch.uint8)
    for image, label in zip(images, labels.tolist(), strict=True):
        image[:, :, 3 * label + 1 : 3 * label + 4] = 200 - shift
    parts = [LabelledImages(i, y) for i, y in zip(images.chunk(3), labels.chunk(3), strict=True)]
    return Domain(name, *parts, "bars", False, (), f"{name} labelled", f"{name} images")


@pytest.fixture
def pair():
    return Pair(digits_of("usps"), digits_of("mnistm", shift=80, seed=1))


@pytest.fixture
def batch(pair):
    x_s, x_t = (domain.train.images[:16].float() / 255 for domain in (pair.source, pair.target))
    return x_s, pair.source.train.labels[:16], x_t


def weights(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def moved(module, before):
    """Whether any parameter of a module has changed."""
    return any(not torch.equal(value, before[name]) for name, value in module.named_parameters())


# --- networks ---------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [[8, 16, 16, 32], [4, 8, 8, 8, 8]])
def test_shapes(settings, batch, channels):
    method = dann.DANN(settings(channels=channels))
    features = method.extractor(batch[0])
    assert features.shape == (16, method.extractor.size)
    assert method.classifier(features).shape == (16, 10)
    assert method.domain(features).shape == (16,)


def test_the_networks_are_the_originals():
    method = dann.DANN(params.load("original", "dann").settings(0))
    kinds = [type(layer).__name__ for layer in method.extractor.layers]
    assert kinds == ["Conv2d", "BatchNorm2d", "ReLU", "MaxPool2d"] * 4 + ["Flatten"]
    assert sum(isinstance(layer, nn.Linear) for layer in method.classifier.layers) == 3
    assert sum(isinstance(layer, nn.Linear) for layer in method.domain.layers) == 5
    assert sum(isinstance(layer, nn.BatchNorm1d) for layer in method.domain.layers) == 4


def test_original_is_the_homeworks_setting():
    original = params.load("original", "dann")
    assert (original.batch_size, original.learning_rate) == (32, 1e-4)
    assert original.adam_betas == [0.5, 0.999]
    assert (original.domain_weight, original.domain_update) == (0.07, "alternating")
    assert (original.augmentation, original.target_augmentation) == ("none", "none")


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


def test_weight_along_a_run(settings):
    rising = dann.DANN(settings(domain_weight=0.5, domain_schedule="rising"))
    fixed = dann.DANN(settings(domain_weight=0.5, domain_schedule="fixed"))
    for done in (0, 4, 8):
        rising.done = fixed.done = done
        assert rising.domain_weight() == pytest.approx(0.5 * dann.rising(done / 8))
        assert fixed.domain_weight() == 0.5


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


# --- label secrecy ----------------------------------------------------------------------------


def test_the_adaptation_holds_no_target_label(pair):
    held = dataclasses.asdict(pair.adaptation())
    tensors = [value for value in held.values() if isinstance(value, torch.Tensor)]
    assert all(tensor.ndim == 4 for tensor in tensors)
    assert held["target"] is not None
    assert "mnistm labelled" not in held["fingerprint"]


@pytest.mark.parametrize("change", ["shuffled", "removed"])
def test_target_labels_change_nothing_bit_for_bit(chapter, pair, change, tmp_path):
    labels = pair.target.train.labels
    other = labels[torch.randperm(len(labels))] if change == "shuffled" else torch.empty(0)
    train = LabelledImages(pair.target.train.images, other)
    blind = LabelledImages(pair.target.validation.images, torch.empty(0))
    changed = Pair(
        pair.source,
        dataclasses.replace(pair.target, train=train, validation=blind, fingerprint="other"),
    )
    found = [
        dann.train_or_load(chapter().settings(0), two.adaptation(), tmp_path / name)
        for name, two in (("as it is", pair), (change, changed))
    ]
    assert found[0].name == found[1].name
    tensors = [training.module_tensors(run.method) for run in found]
    assert all(torch.equal(value, tensors[1][name]) for name, value in tensors[0].items())
    assert found[0].history.equals(found[1].history)


# --- training ---------------------------------------------------------------------------------


def test_it_learns_a_separable_toy(chapter, pair):
    toy = chapter(
        steps=120, batch_size=20, channels=[8, 16, 16, 16], augmentation="none", learning_rate=3e-3
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


def test_resume_is_exact_even_twice(settings, pair, tmp_path, monkeypatch):
    chosen = settings(steps=9, domain_update="alternating")
    data = pair.adaptation()
    whole = dann.train_or_load(chosen, data, tmp_path / "whole")
    original = dann.DANN.step

    def interrupted(stop):
        def step(self, batch):
            if self.done == stop:
                raise KeyboardInterrupt
            return original(self, batch)

        return step

    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    for stop in (3, 7):
        monkeypatch.setattr(dann.DANN, "step", interrupted(stop))
        with pytest.raises(KeyboardInterrupt):
            dann.train_or_load(chosen, data, tmp_path / "resumed")
    monkeypatch.setattr(dann.DANN, "step", original)
    resumed = dann.train_or_load(chosen, data, tmp_path / "resumed")
    ours, theirs = (training.module_tensors(run.method) for run in (resumed, whole))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_two_runs_are_the_same_and_another_seed_is_not(chapter, pair, tmp_path):
    found = [
        dann.train_or_load(chapter().settings(seed), pair.adaptation(), tmp_path / str(n))
        for n, seed in enumerate((0, 0, 1))
    ]
    first, same, other = (
        torch.cat([p.flatten() for p in r.method.extractor.parameters()]) for r in found
    )
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_another_line_of_code_is_another_run(settings):
    names = {
        runs.run_name("dann", settings(), "data", code)
        for code in (["classifier"], ["classifier", "dann"])
    }
    assert len(names) == 2


# --- what is measured -------------------------------------------------------------------------


@pytest.fixture
def digits(pair):
    back = Pair(pair.target, pair.source)
    domains = {d.name: d for d in (pair.source, pair.target)}
    return DigitData(domains, {p.name: p for p in (pair, back)}, (), "f")


def scores(method, accuracies):
    """Scores with given accuracies: {pair: [one a seed]}."""
    rows = [
        {"method": method, "pair": pair, "seed": seed, "accuracy": value}
        for pair, values in accuracies.items()
        for seed, value in enumerate(values)
    ]
    return adaptation.Scores(method, pd.DataFrame(rows), {}, {})


def test_scores(chapter, digits):
    chosen = chapter(seeds=[0, 1])
    found = adaptation.source_only(chosen, digits)
    assert set(found.by_pair()) == {"usps->mnistm", "mnistm->usps"}
    for (name, seed), predicted in found.predictions.items():
        labels = digits.pairs[name].target.test.labels
        row = found.frame.set_index(["pair", "seed"]).loc[name, seed]
        assert row["accuracy"] == pytest.approx((predicted == labels).double().mean().item())
    assert all(len(values["accuracy"]) == 2 for values in found.by_pair().values())


def test_one_pairs_target_runs_are_anothers_source_runs(chapter, digits):
    chosen = chapter()
    source, target = adaptation.source_only(chosen, digits), adaptation.target_only(chosen, digits)
    assert {run.name for run in source.runs} == {run.name for run in target.runs}


def test_gap_closed_on_a_hand_made_case():
    methods = [
        scores("source only", {"usps->mnistm": [0.4, 0.5], "mnistm->svhn": [0.9]}),
        scores("DANN", {"usps->mnistm": [0.6, 0.4], "mnistm->svhn": [0.9]}),
        scores("target only", {"usps->mnistm": [0.9, 0.9], "mnistm->svhn": [0.9]}),
    ]
    gaps = adaptation.gap_closed(methods)
    assert gaps["closed"].tolist()[:2] == pytest.approx([0.4, -0.25])
    assert math.isnan(gaps["closed"].iloc[2])
    summary = adaptation.gap_summary(gaps).set_index("pair")
    # (.548 - .355) / (.958 - .355), of what the original reports.
    assert summary.loc["usps->mnistm", "original"] == pytest.approx(0.32007, abs=1e-4)
    assert summary.loc["mnistm->svhn", "closed"] == "–"


def test_helps_is_judged_pair_by_pair():
    before = scores("source only", {"a->b": [0.5, 0.52], "b->c": [0.8, 0.82], "c->a": [0.1, 0.9]})
    after = scores("DANN", {"a->b": [0.7, 0.72], "b->c": [0.5, 0.52], "c->a": [0.2, 0.9]})
    found = adaptation.helps(before, after)
    assert found["verdict"].tolist() == ["holds", "does not hold", "cannot be told here"]
    sentence = adaptation.verdict_sentence(found, "DANN", "source only")
    assert "1 of 3 pairs" in sentence
    assert "on 1 it is the other way round" in sentence


def test_confusions_and_recalls(chapter, digits):
    chosen = chapter()
    found = adaptation.source_only(chosen, digits)
    for matrix in adaptation.confusions(found, digits).values():
        np.testing.assert_allclose(matrix.sum(1), 1)
    same = dann_ablation.recalls(found, found, digits)
    assert (same["change"] == 0).all()
    assert len(same) == 2 * len(chosen.seeds) * 10


def test_worst_confusion():
    matrix = np.diag([0.9] * 10)
    matrix[4, 9] = 0.1
    assert adaptation.worst_confusion(matrix) == (4, 9, 0.1)


def test_proxy_a_distance():
    torch.manual_seed(0)
    is_source = np.arange(200) < 100
    same = torch.randn(200, 5)
    apart = same + 10 * torch.from_numpy(is_source)[:, None]
    assert adaptation.proxy_a_distance(same, is_source) < 0.5
    assert adaptation.proxy_a_distance(apart, is_source) == pytest.approx(2.0)


def test_closer_counts_pairs():
    rows = [("a->b", "source only", 1.5), ("b->c", "source only", 1.0)]
    rows += [("a->b", "DANN", 1.0), ("b->c", "DANN", 1.2)]
    summary = pd.DataFrame(rows, columns=["pair", "features", "distance"])
    assert "features of DANN the domains lie closer on 1 of 2 pairs" in adaptation.closer(summary)


def test_feature_map_is_computed_once(chapter, digits, monkeypatch):
    chosen = chapter()
    found = adaptation.source_only(chosen, digits)
    pair = digits.pairs["usps->mnistm"]
    first = adaptation.feature_map(pair, found, chosen)
    assert first.points.shape == (80, 2)
    assert first.is_source.sum() == 40
    monkeypatch.setattr("dlcvlib.embedding.TSNE", lambda **_: pytest.fail("computed again"))
    second = adaptation.feature_map(pair, found, chosen)
    assert np.array_equal(first.points, second.points)


def test_weight_sweep(chapter, pair):
    chosen = chapter(domain_weights=[0.1, 1.0], domain_weight=0.1)
    frame, trained = dann_ablation.weight_sweep(chosen, pair)
    variants = ["0, no adaptation", "0.1, rising", "1, rising", "0.1, fixed", "1, fixed"]
    assert list(frame["variant"].unique()) == variants
    assert len(frame) == len(trained) == 5 * len(chosen.seeds)
    assert all(run.settings.steps == chosen.ablation_steps for run in trained)
    assert frame["accuracy"].between(0, 1).all()
    assert "would need labels" in dann_ablation.chosen_weight(frame, chosen)


def test_mean_text_of_one_seed_has_no_spread():
    assert ablation.mean_text([0.5], 2) == "0.50"
    assert ablation.mean_text([0.5, 0.7], 2) == "0.60 ± 0.14"
