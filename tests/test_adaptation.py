"""Properties of every adaptation method, above all that target labels stay unseen; measures."""

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import built, class_of, settings_of

from dlcvlib.data.augment import AUGMENTATIONS
from dlcvlib.data.types import DigitData, LabelledImages, Pair
from dlcvlib.evaluation import adaptation, latent
from dlcvlib.training.runs import train_or_load

USPS, BACK = "usps->mnistm", "mnistm->usps"


@pytest.fixture(params=["dann", "pixelda", "adamatch"])
def name(request):
    return request.param


# --- every method -----------------------------------------------------------------------------


def test_the_adaptation_contains_no_target_label(pair):
    held = dataclasses.asdict(pair.adaptation())
    tensors = [value for value in held.values() if isinstance(value, torch.Tensor)]
    assert len(tensors) == 2
    assert all(tensor.ndim == 4 for tensor in tensors)
    assert "mnistm labelled" not in held["fingerprint"]


@pytest.mark.parametrize("change", ["shuffled", "removed"])
def test_target_labels_change_nothing_bit_for_bit(name, pair, change, tmp_path):
    """Nor does the test data of either domain."""
    labels = pair.target.train.labels
    other = labels[torch.randperm(len(labels))] if change == "shuffled" else torch.empty(0)
    train = LabelledImages(pair.target.train.images, other)
    blind = LabelledImages(pair.target.validation.images, torch.empty(0))
    splits = {"train": train, "validation": blind, "fingerprint": "other"}
    nothing = LabelledImages(pair.target.test.images[:0], torch.empty(0))
    changed = Pair(
        dataclasses.replace(pair.source, test=nothing),
        dataclasses.replace(pair.target, test=nothing, **splits),
    )
    one, two = (
        train_or_load(class_of(name), settings_of(name), data.adaptation(), tmp_path / str(i))
        for i, data in enumerate((pair, changed))
    )
    assert one.name == two.name
    assert one.provenance["files"] == two.provenance["files"]


STRONG, GEOMETRIC = 0.75, 0.25
SEEN = {"dann": (STRONG, GEOMETRIC), "pixelda": (GEOMETRIC, GEOMETRIC)}
"""The augmentation of either domain; AdaMatch makes its views in its step."""


def test_each_domain_has_its_own_augmentation(name, pair, monkeypatch):
    """T's colour augmentation is part of PixelDA's step: G and D see only the geometric part."""
    for kind, value in (("strong", STRONG), ("geometric", GEOMETRIC)):
        monkeypatch.setitem(AUGMENTATIONS, kind, lambda x, value=value: torch.full_like(x, value))
    method = built(name, augmentation="strong", target_augmentation="geometric")
    x_s, _, x_t = method.batches(pair.adaptation(), torch.device("cpu"))(0)
    if name in SEEN:
        assert (x_s.unique().tolist(), x_t.unique().tolist()) == tuple([v] for v in SEEN[name])
    else:
        assert len(x_s.unique()) > 10
        assert len(x_t.unique()) > 10


def test_predictions_are_the_classifiers_of_its_features(name, pair):
    method, images = built(name), pair.target.test.images
    found = method.predict(images)
    assert found.shape == pair.target.test.labels.shape
    assert set(found.tolist()) <= set(range(10))
    assert torch.equal(method.classify(method.features(images)), found)
    assert method.accuracy(LabelledImages(images, found)) == 1


# --- training and scores ----------------------------------------------------------------------


def test_scores_are_shares_of_the_targets_test_images(params, pair):
    fewer = LabelledImages(pair.target.test.images[:25], pair.target.test.labels[:25])
    pair = Pair(pair.source, dataclasses.replace(pair.target, test=fewer))
    digits = DigitData({}, {pair.name: pair, "back": Pair(pair.target, pair.source)}, (), "f")
    runs = adaptation.train(params("dann", seeds=[0, 1]), digits, [adaptation.SOURCE_ONLY])
    assert list(runs) == [("source only", name, s) for name in digits.pairs for s in (0, 1)]
    found, at_home = adaptation.score(runs, digits), adaptation.source_accuracy(runs, digits)
    assert list(found) == list(at_home) == ["method", "pair", "seed", "accuracy"]
    accuracies = found.set_index(["method", "pair", "seed"])["accuracy"].sort_index()
    home = at_home.set_index(["method", "pair", "seed"])["accuracy"].sort_index()
    for key, predicted in adaptation.predictions(runs, digits).items():
        chosen = digits.pairs[key[1]]
        labels = chosen.target.test.labels
        assert len(predicted) == len(labels) == (60 if key[1] == "back" else 25)
        assert accuracies[key] == pytest.approx((predicted == labels).double().mean().item())
        assert home[key] == runs[key].method.accuracy(chosen.source.validation)
    assert (
        adaptation.by_pair(found)["back"]["accuracy"] == accuracies["source only", "back"].tolist()
    )
    firsts = adaptation.first_seed(runs, "source only")
    assert {name: run.settings.seed for name, run in firsts.items()} == dict.fromkeys(
        digits.pairs, 0
    )


def test_runs_are_shared_by_pairs_and_chapters(params, digits):
    third, fourth = (
        adaptation.train(params(chapter, seeds=[0], **changes), digits, methods)
        for chapter, changes, methods in (
            ("dann", {}, ["source only", "DANN", "target only"]),
            ("pixelda", {"dann_changes": {"precision": "fp32"}}, adaptation.ALL),
        )
    )
    assert list(dict.fromkeys(key[0] for key in fourth)) == list(adaptation.ALL)
    assert {key: fourth[key].name for key in third} == {k: run.name for k, run in third.items()}
    for one, other in ((USPS, BACK), (BACK, USPS)):
        assert third["target only", one, 0].name == third["source only", other, 0].name
    with pytest.raises(KeyError):
        adaptation.train(params("dann"), digits, ["DAN"])


def scores(**methods):
    """Scores with given accuracies: a method's {pair: [one per seed]}."""
    rows = [
        {"method": method.replace("_", " "), "pair": pair, "seed": seed, "accuracy": value}
        for method, pairs in methods.items()
        for pair, values in pairs.items()
        for seed, value in enumerate(values)
    ]
    return pd.DataFrame(rows)


def test_gap_closed_on_a_small_example():
    found = adaptation.gap_closed(
        scores(
            source_only={"a->b": [0.4, 0.5], "b->c": [0.9]},
            DANN={"a->b": [0.6, 0.4], "b->c": [0.9]},
            target_only={"a->b": [0.9, 0.9], "b->c": [0.9]},
        ),
        "DANN",
    )
    assert list(found) == ["pair", "seed", "low", "method", "high", "closed"]
    assert found["closed"].tolist()[:2] == pytest.approx([0.4, -0.25])
    assert math.isnan(found["closed"].iloc[2])  # there is no gap


def test_a_claim_is_tested_pair_by_pair():
    found = adaptation.verdicts(
        scores(
            source_only={"a->b": [0.5, 0.52], "b->c": [0.8, 0.82], "c->a": [0.1, 0.9]},
            DANN={"a->b": [0.7, 0.72], "b->c": [0.5, 0.52], "c->a": [0.2, 0.9]},
        ),
        [("source only", "DANN")],
    )
    assert found["verdict"].tolist() == ["supported", "contradicted", "inconclusive"]
    assert found["claim"].iloc[0] == "DANN is better than source only on a->b"
    assert found["difference"].iloc[0] == pytest.approx(0.2)  # in the error rate


def test_accuracies_are_shown_beside_reported_ones():
    found = adaptation.beside_original(scores(DANN={USPS: [0.5, 0.7], "usps->svhn": [0.4]}))
    first, second = found.itertuples()
    assert (first.accuracy, first.seeds, first.original) == ("0.600 ± 0.141", 2, 0.548)
    assert (second.accuracy, second.seeds) == ("0.400", 1)
    assert math.isnan(second.original)


def test_a_dann_is_measured_on_the_target_and_at_its_end(train, pair):
    run = train("dann")
    found = adaptation.dann_measures(run, pair)
    assert found["accuracy"] == run.method.accuracy(pair.target.test)
    assert found["source"] == run.method.accuracy(pair.source.validation)
    at_the_end = run.method.evaluate(pair.adaptation())["domain_accuracy"]
    assert found["domain_accuracy"] == pytest.approx(at_the_end)


def test_plateaus_last_until_the_loss_is_below_chance():
    def run(*losses):
        return SimpleNamespace(history=pd.DataFrame({"step": [10, 20], "class": losses}))

    found = adaptation.plateaus(
        {
            ("source only", "a->b", 0): run(2.3, 1.0),
            ("source only", "b->c", 0): run(2.3, 2.3),
            ("DANN", "a->b", 0): run(1.0, 1.0),
        }
    )
    assert found["pair"].tolist() == ["b->c", "a->b"]
    assert math.isnan(found["steps"].iloc[0])
    assert found["steps"].iloc[1] == 20


# --- feature spaces ---------------------------------------------------------------------------


def test_proxy_a_distance():
    torch.manual_seed(0)
    is_source = np.arange(200) < 100
    mixed = torch.randn(200, 5)
    separated = mixed + 10 * torch.from_numpy(is_source)[:, None]
    assert latent.proxy_a_distance(mixed, is_source) < 0.5
    assert latent.proxy_a_distance(separated, is_source) == pytest.approx(2.0)


def test_a_feature_map_is_computed_once(params, digits, monkeypatch):
    chosen, pair = params("dann"), digits.pairs[USPS]
    runs = adaptation.train(chosen, digits, ["source only"])
    run = adaptation.first_seed(runs, "source only")[USPS]
    first = latent.feature_map(pair, "source only", run, chosen)
    assert first.points.shape == (80, 2)
    assert first.is_source.sum() == 40
    assert np.array_equal(first.predictions, run.method.predict(first.images).numpy())
    (row,) = latent.map_summary([first]).itertuples()
    right = first.labels == first.predictions
    assert (row.pair, row.features, row.distance) == (USPS, "source only", first.distance)
    assert (row.source, row.target) == (right[:40].mean(), right[40:].mean())
    monkeypatch.setattr(latent, "TSNE", None)
    second = latent.feature_map(pair, "source only", run, chosen)
    assert np.array_equal(first.points, second.points)
