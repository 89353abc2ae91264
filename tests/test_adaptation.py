"""Properties of every adaptation method, above all that target labels stay unseen; measures."""

import dataclasses
import math
import operator
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import METHODS, built, settings_of

from dlcvlib.data.augment import AUGMENTATIONS
from dlcvlib.data.types import LabelledImages, Pair
from dlcvlib.evaluation import adaptation, latent
from dlcvlib.methods import adabn
from dlcvlib.training.runs import train_or_load

USPS, BACK = "usps->mnistm", "mnistm->usps"


# --- every method -----------------------------------------------------------------------------


def test_the_adaptation_contains_no_target_label(pair):
    held = dataclasses.asdict(pair.adaptation())
    tensors = [value for value in held.values() if isinstance(value, torch.Tensor)]
    assert [tensor.ndim for tensor in tensors] == [4, 4]
    assert "mnistm labelled" not in held["fingerprint"]


@pytest.mark.parametrize("name", ["dann", "pixelda", "adamatch"])
def test_without_target_labels_the_same_is_trained_bit_for_bit(name, pair, tmp_path):
    """Nor does the test data of either domain change anything."""
    splits = {"test": LabelledImages(pair.target.test.images[:0], torch.empty(0))}
    source = dataclasses.replace(pair.source, **splits)
    for split in ("train", "validation"):
        images = getattr(pair.target, split).images
        splits[split] = LabelledImages(images, torch.empty(0))
    blind = Pair(source, dataclasses.replace(pair.target, **splits, fingerprint="other"))
    one, two = (
        train_or_load(METHODS[name], settings_of(name), data.adaptation(), tmp_path / str(i))
        for i, data in enumerate((pair, blind))
    )
    assert one.name == two.name
    assert one.provenance["files"] == two.provenance["files"]


SEEN = {"dann": [1.0, 0.0], "pixelda": [0.0, 0.0], "adamatch": [None, None]}


@pytest.mark.parametrize(("name", "expected"), SEEN.items())
def test_each_domain_has_its_own_augmentation(name, expected, pair, monkeypatch):
    """T's colour augmentation is part of PixelDA's step: G and D see only the geometric part.

    AdaMatch makes its views in its step, from images without augmentation.
    """
    for kind, value in (("strong", 1.0), ("geometric", 0.0)):
        monkeypatch.setitem(AUGMENTATIONS, kind, lambda x, value=value: torch.full_like(x, value))
    method = built(name, augmentation="strong", target_augmentation="geometric")
    x_s, _, x_t = method.batches(pair.adaptation(), torch.device("cpu"))(0)
    assert [x.max().item() if x.min() == x.max() else None for x in (x_s, x_t)] == expected


# --- training and scores ----------------------------------------------------------------------


def test_scores_are_accuracies_on_the_targets_test_images(params, digits):
    runs = adaptation.train(params("dann", seeds=[0, 1]), digits, [adaptation.SOURCE_ONLY])
    assert list(runs) == [("source only", name, seed) for name in digits.pairs for seed in (0, 1)]
    scores, at_home = adaptation.score(runs, digits), adaptation.source_accuracy(runs, digits)
    for frame, part in ((scores, "target.test"), (at_home, "source.validation")):
        for *key, accuracy in frame[["method", "pair", "seed", "accuracy"]].to_numpy():
            data = operator.attrgetter(part)(digits.pairs[key[1]])
            assert accuracy == pytest.approx(runs[tuple(key)].method.accuracy(data))
    assert adaptation.by_pair(scores)[BACK] == {"accuracy": scores["accuracy"].tolist()[2:]}
    firsts = adaptation.first_seed(runs, "source only")
    assert [(name, run.settings.seed) for name, run in firsts.items()] == [(USPS, 0), (BACK, 0)]


def test_runs_are_shared_by_pairs_and_chapters(params, digits):
    methods = ["source only", "DANN", "target only"]
    third = adaptation.train(params("dann", seeds=[0]), digits, methods)
    chapter_4 = params("pixelda", seeds=[0], dann_changes={"precision": "fp32"})
    fourth = adaptation.train(chapter_4, digits, adaptation.ALL)
    assert list(dict.fromkeys(key[0] for key in fourth)) == list(adaptation.ALL)
    assert {key: fourth[key].name for key in third} == {k: run.name for k, run in third.items()}
    for one, other in ((USPS, BACK), (BACK, USPS)):
        assert third["target only", one, 0].name == third["source only", other, 0].name


def scores(pairs, **methods):
    """Scores of methods, one accuracy for each run; the pair of each run."""
    frame = pd.DataFrame(methods | {"pair": pairs}).rename(columns={"source": "source only"})
    frame["seed"] = frame.groupby("pair").cumcount()
    return frame.melt(["pair", "seed"], var_name="method", value_name="accuracy")


def test_gap_closed_on_a_small_example():
    accuracies = {"source": [0.4, 0.5, 0.9], "DANN": [0.6, 0.4, 0.9], "target only": [0.9] * 3}
    found = adaptation.gap_closed(scores(["a->b", "a->b", "b->c"], **accuracies), "DANN")
    assert list(found) == ["pair", "seed", "low", "method", "high", "closed"]
    # The third has no gap.
    assert found["closed"].tolist() == pytest.approx([0.4, -0.25, math.nan], nan_ok=True)


def test_a_claim_is_tested_pair_by_pair(digits):
    """On differences per seed; the test images' own interval is that of their mean difference."""
    runs = {}
    for pair, data in digits.pairs.items():
        labels = data.target.test.labels
        for method, right in {"source only": [20, 21, 22], "DANN": [40, 42, 41]}.items():
            for seed, n in enumerate(right if pair == USPS else [60 - n for n in right]):
                found = (labels + (torch.arange(60) >= n)) % 10
                runs[method, pair, seed] = Mock(**{"method.predict.return_value": found})
    found = adaptation.verdicts(runs, digits, [("source only", "DANN")])
    assert found["verdict"].tolist() == ["supported", "contradicted"]
    assert found["claim"].iloc[0] == f"DANN is more accurate than source only on {USPS}"
    assert found["difference"].tolist() == pytest.approx([1 / 3, -1 / 3])
    assert found["test_low"].iloc[0] < 1 / 3 < found["test_high"].iloc[0]


def test_gains_are_paired_by_seed():
    values = {"variant": list("abba"), "seed": [0, 1, 0, 1], "accuracy": [0.1, 0.5, 0.3, 0.4]}
    found = adaptation.gains(pd.DataFrame(values), "a", "b")
    assert found.to_dict() == pytest.approx({0: 0.2, 1: 0.1})


def test_adabn_changes_only_the_statistics_and_only_for_the_target(train, pair):
    alone = train("classifier").method
    found = adabn.AdaBN(alone, pair.target.train.images)
    assert all(torch.equal(w, found.get_parameter(k)) for k, w in alone.named_parameters())
    source, target = pair.source.test.images, pair.target.test.images
    assert torch.equal(found.features(source, source=True), alone.features(source))
    assert not torch.equal(found.features(target), alone.features(target))
    images = (pair.target.train.images.float() / 255) * 2 - 1
    maps = alone.extractor.layers[0](images)
    mean = found.extractor.layers[1].running_mean
    torch.testing.assert_close(mean, maps.mean((0, 2, 3)), rtol=1e-3, atol=1e-3)


def test_a_dann_is_measured_on_the_target_and_at_its_end(train, pair):
    run = train("dann")
    at_the_end = run.method.evaluate(pair.adaptation())
    assert adaptation.dann_measures(run, pair) == {
        "accuracy": run.method.accuracy(pair.target.test),
        "source": run.method.accuracy(pair.source.validation, source=True),
        "domain_accuracy": pytest.approx(at_the_end["domain_accuracy"]),
        "domain_loss": pytest.approx(at_the_end["domain"]),
    }


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
    points = first.points
    assert points["source"].tolist() == [True] * 40 + [False] * 40
    assert points["prediction"].tolist() == run.method.predict(first.images).tolist()
    monkeypatch.setattr(latent, "TSNE", None)
    pd.testing.assert_frame_equal(
        latent.feature_map(pair, "source only", run, chosen).points, points
    )
