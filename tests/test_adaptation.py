"""What holds for every method of adaptation, and what is measured of them."""

import dataclasses
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import interrupt, scores_of, weights

from dlcvlib.config import profiles
from dlcvlib.data.augment import AUGMENTATIONS
from dlcvlib.data.types import DigitData, LabelledImages, Pair
from dlcvlib.evaluation import adaptation, dann_ablation, feature_spaces, significance
from dlcvlib.methods import adamatch, dann, pixelda
from dlcvlib.training import loop, runs
from dlcvlib.utils import storage

METHODS = {"dann": (dann, dann.DANN), "pixelda": (pixelda, pixelda.PixelDA)}
METHODS["adamatch"] = (adamatch, adamatch.AdaMatch)


@pytest.fixture
def chapter(tmp_path):
    """Parameters of a chapter under profile smoke, changed by keyword."""
    fixed = {"precision": "fp32", "runs_dir": str(tmp_path / "runs")}
    return lambda name="dann", **changes: profiles.load("smoke", name, fixed | changes)


@pytest.fixture(params=METHODS)
def method(request, chapter):
    """(module, class, seed and changes -> settings) of each method, every trick switched on."""
    module, kind = METHODS[request.param]

    def settings(seed=0, **changes):
        if request.param == "dann":
            chosen = chapter("dann").settings(seed).replace(domain_update="alternating")
        elif request.param == "pixelda":
            chosen = chapter("pixelda").settings(seed).replace(content_weight=0.1)
        else:
            chosen = chapter("pixelda").adamatch(seed)
        return chosen.replace(precision="fp32", **changes)

    return module, kind, settings


# --- every method -----------------------------------------------------------------------------


def test_every_trained_parameter_moves(method, batch):
    """Two steps move every parameter, the average's included, and all is finite."""
    _, kind, settings = method
    built = kind(settings(steps=4))
    before = {name: weights(module) for name, module in built.modules.items()}
    for done in (2, 3):
        built.done = done
        terms = built.step(batch)
        assert all(value.isfinite() for value in terms.values())
    for name, module in built.modules.items():
        for key, parameter in module.named_parameters():
            assert not torch.equal(parameter, before[name][key]), f"{name}.{key} has not moved"


def test_predictions_are_labels(method, pair):
    _, kind, settings = method
    found = kind(settings()).predict(pair.target.test.images)
    assert found.shape == pair.target.test.labels.shape
    assert set(found.tolist()) <= set(range(10))


# --- label secrecy ----------------------------------------------------------------------------


def test_the_adaptation_holds_no_target_label(pair):
    held = dataclasses.asdict(pair.adaptation())
    tensors = [value for value in held.values() if isinstance(value, torch.Tensor)]
    assert all(tensor.ndim == 4 for tensor in tensors)
    assert held["target"] is not None
    assert "mnistm labelled" not in held["fingerprint"]


@pytest.mark.parametrize("change", ["shuffled", "removed"])
def test_target_labels_change_nothing_bit_for_bit(method, pair, change, tmp_path):
    """Nor does what either domain is tested on."""
    module, _, settings = method
    labels = pair.target.train.labels
    other = labels[torch.randperm(len(labels))] if change == "shuffled" else torch.empty(0)
    train = LabelledImages(pair.target.train.images, other)
    blind = LabelledImages(pair.target.validation.images, torch.empty(0))
    nothing = LabelledImages(pair.target.test.images[:0], torch.empty(0))
    changed = Pair(
        dataclasses.replace(pair.source, test=nothing),
        dataclasses.replace(
            pair.target, train=train, validation=blind, test=nothing, fingerprint="other"
        ),
    )
    found = [
        module.train_or_load(settings(), two.adaptation(), tmp_path / name)
        for name, two in (("as it is", pair), (change, changed))
    ]
    assert found[0].name == found[1].name
    tensors = [loop.module_tensors(run.method) for run in found]
    assert all(torch.equal(value, tensors[1][name]) for name, value in tensors[0].items())
    assert found[0].history.equals(found[1].history)


# --- augmentation -----------------------------------------------------------------------------

STRONG, GEOMETRIC = 0.75, 0.25
SEEN = {"dann": (STRONG, GEOMETRIC), "pixelda": (GEOMETRIC, GEOMETRIC)}
"""What the images of either domain become; AdaMatch makes its views in its step."""


def test_each_domain_has_the_augmentation_of_its_own(method, pair, monkeypatch):
    """T's change of light comes in PixelDA's step: G and D see the geometric part alone."""
    module, _, settings = method
    for name, value in (("strong", STRONG), ("geometric", GEOMETRIC)):
        monkeypatch.setitem(AUGMENTATIONS, name, lambda x, value=value: torch.full_like(x, value))
    asked = []
    monkeypatch.setattr(runs, "train_or_load", lambda *arguments, **_: asked.append(arguments))
    chosen = settings(augmentation="strong", target_augmentation="geometric")
    module.train_or_load(chosen, pair.adaptation(), "unused")
    (kind, _, batches, _), *_ = asked
    x_s, _, x_t = batches(torch.device("cpu"))(0)
    if kind in SEEN:
        assert (x_s.unique().tolist(), x_t.unique().tolist()) == tuple([v] for v in SEEN[kind])
    else:
        assert len(x_s.unique()) > 10
        assert len(x_t.unique()) > 10


# --- resume and determinism -------------------------------------------------------------------


def test_resume_is_exact_even_twice(method, pair, tmp_path, monkeypatch, before_step):
    module, kind, settings = method
    chosen, data = settings(steps=9), pair.adaptation()
    whole = module.train_or_load(chosen, data, tmp_path / "whole")
    original, taken = kind.step, []

    def counted(self, batch):
        taken.append(self.done)
        return original(self, batch)

    monkeypatch.setattr(kind, "step", counted)
    for stop in (3, 7):
        with before_step(kind, stop, interrupt), pytest.raises(KeyboardInterrupt):
            module.train_or_load(chosen, data, tmp_path / "resumed")
    resumed = module.train_or_load(chosen, data, tmp_path / "resumed")
    ours, theirs = (loop.module_tensors(run.method) for run in (resumed, whole))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert resumed.history.equals(whole.history)
    assert taken == list(range(9)), "each step once: resumed, not begun again"


def test_two_runs_are_the_same_and_another_seed_is_not(method, pair, tmp_path):
    module, _, settings = method
    found = [
        module.train_or_load(settings(seed), pair.adaptation(), tmp_path / str(n))
        for n, seed in enumerate((0, 0, 1))
    ]
    first, same, other = (
        torch.cat([p.flatten() for p in r.method.extractor.parameters()]) for r in found
    )
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


# --- what is measured -------------------------------------------------------------------------


def scores(method, accuracies):
    """Scores with given accuracies: {pair: [one a seed]}."""
    rows = [
        {"method": method, "pair": pair, "seed": seed, "accuracy": value}
        for pair, values in accuracies.items()
        for seed, value in enumerate(values)
    ]
    return scores_of(method, pd.DataFrame(rows))


def test_scores(chapter, pair):
    chosen = chapter(seeds=[0, 1])
    fewer = LabelledImages(pair.target.test.images[:25], pair.target.test.labels[:25])
    pair = Pair(pair.source, dataclasses.replace(pair.target, test=fewer))
    digits = DigitData({}, {pair.name: pair, "back": Pair(pair.target, pair.source)}, (), "f")
    found = adaptation.source_only(chosen, digits)
    assert set(found.by_pair()) == set(digits.pairs)
    for (name, seed), predicted in found.predictions.items():
        labels = digits.pairs[name].target.test.labels
        assert len(predicted) == len(labels) == (60 if name == "back" else 25)
        row = found.frame.set_index(["pair", "seed"]).loc[name, seed]
        assert row["accuracy"] == pytest.approx((predicted == labels).double().mean().item())
    assert all(len(values["accuracy"]) == 2 for values in found.by_pair().values())


def test_one_pairs_target_runs_are_anothers_source_runs(chapter, digits):
    chosen = chapter()
    source, target = adaptation.source_only(chosen, digits), adaptation.target_only(chosen, digits)
    there, back = ("usps->mnistm", 0), ("mnistm->usps", 0)
    for one, other in ((there, back), (back, there)):
        assert target.trained[one].name == source.trained[other].name
    assert source.trained[there].name != source.trained[back].name


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
    assert adaptation.gap_sentence(gaps).endswith(
        "on usps->mnistm, nothing on mnistm->svhn, where there is none."
    )


def test_a_seed_without_a_gap_is_left_out_of_the_share():
    gaps = pd.DataFrame(
        {"pair": "a->b", "low": 0.5, "high": [0.9, 0.5], "closed": [0.75, math.nan]}
    )
    assert adaptation.gap_summary(gaps)["closed"].tolist() == ["75.0%"]
    assert "closes 75.0% on a->b." in adaptation.gap_sentence(gaps)
    accuracies = {"source only": [0.5, 0.5], "DANN": [0.8, 0.5], "target only": [0.9, 0.5]}
    methods = [scores(method, {"a->b": values}) for method, values in accuracies.items()]
    assert adaptation.standings(methods).set_index("method").loc["DANN", "closed"] == "75.0%"


def test_helps_is_judged_pair_by_pair():
    before = scores("source only", {"a->b": [0.5, 0.52], "b->c": [0.8, 0.82], "c->a": [0.1, 0.9]})
    after = scores("DANN", {"a->b": [0.7, 0.72], "b->c": [0.5, 0.52], "c->a": [0.2, 0.9]})
    found = adaptation.helps(before, after)
    assert found["verdict"].tolist() == ["holds", "does not hold", "cannot be told here"]
    sentence = adaptation.verdict_sentence(found, "DANN", "source only")
    assert "1 of 3 pairs" in sentence
    assert "on 1 it is the other way round" in sentence
    assert "on 1 it cannot be told" in sentence


def test_told_apart_is_judged_by_the_mean_over_the_seeds():
    accuracies = pd.DataFrame(
        {
            "pair": ["a->b", "a->b", "b->c", "c->a", "c->b"],
            "accuracy": [0.94, 0.9, 0.7, 0.5, 0.3],
        }
    )
    found = adaptation.told_apart(accuracies)
    assert found["told"].tolist() == [
        "nearly always",
        "often",
        "hardly",
        "often, the wrong way round",
    ]
    assert found["accuracy"].tolist() == ["0.920 ± 0.028", "0.700", "0.500", "0.300"]


def test_confusions_and_recalls(chapter, digits):
    chosen = chapter()
    found = adaptation.source_only(chosen, digits)
    for matrix in adaptation.confusions(found, digits).values():
        np.testing.assert_allclose(matrix.sum(1), 1)
    other = {key: predicted.clone() for key, predicted in found.predictions.items()}
    labels = digits.pairs["usps->mnistm"].target.test.labels
    found.predictions["usps->mnistm", 0][:] = torch.where(labels == 3, 0, labels)
    other["usps->mnistm", 0][:] = torch.where(labels == 7, 0, labels)
    after = dataclasses.replace(found)
    object.__setattr__(after, "predictions", other)
    changes = dann_ablation.recalls(found, after, digits)
    assert len(changes) == 2 * len(chosen.seeds) * 10
    of_pair = changes[(changes["pair"] == "usps->mnistm") & (changes["seed"] == 0)]
    change = of_pair.set_index("digit")["change"]
    assert (change[3], change[7]) == (1.0, -1.0)
    assert (change.drop([3, 7]) == 0).all()


def test_worst_confusion():
    matrix = np.diag([0.9] * 10)
    matrix[4, 9] = 0.1
    assert adaptation.worst_confusion(matrix) == (4, 9, 0.1)


def test_proxy_a_distance():
    torch.manual_seed(0)
    is_source = np.arange(200) < 100
    same = torch.randn(200, 5)
    apart = same + 10 * torch.from_numpy(is_source)[:, None]
    assert feature_spaces.proxy_a_distance(same, is_source) < 0.5
    assert feature_spaces.proxy_a_distance(apart, is_source) == pytest.approx(2.0)


def test_closer_counts_pairs():
    rows = [("a->b", "source only", 1.5), ("b->c", "source only", 1.0)]
    rows += [("a->b", "DANN", 1.0), ("b->c", "DANN", 1.2)]
    summary = pd.DataFrame(rows, columns=["pair", "features", "distance"])
    assert feature_spaces.closer(summary) == (
        "In the features of DANN the domains lie closer than in those of source only on 1 of 2 "
        "pairs, by the first seed's runs."
    )


def test_every_method_is_held_against_the_first():
    rows = [("source only", 1.5, 0.3), ("DANN", 1.0, 0.5), ("AdaMatch", 1.6, 0.9)]
    rows = [(pair, *row) for row in rows for pair in ("a->b", "b->c")]
    summary = pd.DataFrame(rows, columns=["pair", "features", "distance", "target"])
    assert "on 2 of 2 pairs, in AdaMatch's on 0, by" in feature_spaces.closer(summary)
    first, second = feature_spaces.distance_sentence(summary).split("\n\n")
    assert first.startswith("From source only to DANN, with the first seed: on a->b the A-distance")
    assert "; on b->c the A-distance rises (1.50 to 1.60) and the target accuracy rises" in second


def test_a_change_too_small_to_tell_is_called_so():
    rows = [("a->b", "source only", 1.98, 0.5), ("a->b", "DANN", 1.97, 0.6)]
    summary = pd.DataFrame(rows, columns=["pair", "features", "distance", "target"])
    assert "on 0 of 1 pairs" in feature_spaces.closer(summary)
    sentence = feature_spaces.distance_sentence(summary)
    assert "the A-distance hardly changes (1.98 to 1.97)" in sentence
    assert "the target accuracy rises (0.50 to 0.60)" in sentence


def test_feature_map_is_computed_once(chapter, digits, monkeypatch):
    chosen = chapter()
    found = adaptation.source_only(chosen, digits)
    pair = digits.pairs["usps->mnistm"]
    first = feature_spaces.feature_map(pair, found, chosen)
    assert first.points.shape == (80, 2)
    assert first.is_source.sum() == 40
    predicted = found.first(pair.name).method.predict(first.images)
    assert np.array_equal(first.predictions, predicted.numpy())
    monkeypatch.setattr("dlcvlib.embedding.TSNE", lambda **_: pytest.fail("computed again"))
    second = feature_spaces.feature_map(pair, found, chosen)
    assert np.array_equal(first.points, second.points)


def test_mean_text_of_one_seed_has_no_spread():
    assert significance.mean_text([0.5], 2) == "0.50"
    assert significance.mean_text([0.5, 0.7], 2) == "0.60 ± 0.14"


def five(**accuracies):
    """Five methods with one accuracy a pair each."""
    names = ["source only", "DANN", "PixelDA", "AdaMatch", "target only"]
    return [scores(n, {p: [v[i]] for p, v in accuracies.items()}) for i, n in enumerate(names)]


def test_standings_on_a_hand_made_case():
    methods = five(**{"usps->mnistm": [0.2, 0.4, 0.6, 0.8, 1.0], "usps->svhn": [0.5] * 5})
    found = adaptation.standings(methods).set_index(["pair", "method"])
    assert len(found) == 10
    row = found.loc["usps->mnistm", "PixelDA"]
    assert (row["accuracy"], row["closed"], row["original"]) == ("0.600", "50.0%", 0.603)
    # (.603 - .355) / (.958 - .355), of what the original reports.
    assert row["original_closed"] == pytest.approx(0.41128, abs=1e-4)
    assert found.loc["usps->mnistm", "target only"]["closed"] == "–"
    assert found.loc["usps->svhn", "PixelDA"]["closed"] == "–"
    assert math.isnan(found.loc["usps->mnistm", "AdaMatch"]["original"])


def test_where_adamatch_is_not_the_best_its_labels_are_blamed():
    methods = five(a=[0.2, 0.4, 0.6, 0.8, 1.0], b=[0.2, 0.7, 0.6, 0.5, 1.0])
    assert adaptation.best(methods) == {"a": ["AdaMatch"], "b": ["DANN"]}

    def sentence(*rows):
        columns = ["pair", "seed", "covered", "right_covered", "right"]
        return adaptation.best_sentence(methods, pd.DataFrame(rows, columns=columns))

    text = sentence(("a", 0, 0.9, 0.9, 0.8), ("b", 0, 0.5, 0.75, 0.6))
    assert "on 1 of 2 pairs. On b DANN reads more. There AdaMatch ends sure of 50%" in text
    assert "25% of those pseudo-labels are wrong" in text
    assert "sure of nothing" in sentence(("b", 0, 0.0, math.nan, 0.6))


def test_a_setback_is_told_with_what_is_read_of_the_source(monkeypatch):
    methods = five(a=[0.5, 0.6, 0.3, 0.8, 1.0], b=[0.5, 0.4, 0.5, 0.8, 1.0])
    home = {"source only": 0.9, "DANN": 0.88, "PixelDA": 0.7}
    monkeypatch.setattr(adaptation.Scores, "at_home", lambda self, *_: home[self.method])
    for method in methods:  # a second seed of nearly the same accuracies: differences can be told
        second = method.frame.assign(seed=1, accuracy=method.frame["accuracy"] + 0.01)
        object.__setattr__(method, "frame", pd.concat([method.frame, second], ignore_index=True))
    pairs = SimpleNamespace(pairs=["a", "b"])
    first, second = adaptation.setbacks(methods[0], methods[1:-1], pairs)
    assert first.startswith("On a PixelDA reads less of the target than source only does.")
    assert "70.0%, source only 90.0%: it has learned the labels less well" in first
    assert second.startswith("On b DANN")
    assert "88.0%, source only 90.0%: it knows its source about as well" in second


def test_a_tie_is_told():
    tied = five(a=[0.2, 0.8, 0.6, 0.8, 1.0], b=[0.2, 0.4, 0.6, 0.8, 1.0])
    assert adaptation.best(tied) == {"a": ["DANN", "AdaMatch"], "b": ["AdaMatch"]}
    assert adaptation.best_sentence(tied, pd.DataFrame()) == (
        "AdaMatch reads the most of the target on 1 of 2 pairs. On a DANN and AdaMatch read "
        "equally much."
    )


def test_pseudo_labels_are_judged_by_the_true_ones(chapter, digits):
    params = chapter("pixelda")

    def train(pair, seed):
        return adamatch.train_or_load(params.adamatch(seed), pair.adaptation(), params.runs_dir)

    (found,) = adaptation.score({"AdaMatch": train}, digits, [0])
    worth = adaptation.pseudo_label_worth(found, digits)
    for row in worth.itertuples():
        pair = digits.pairs[row.pair]
        labels, sure = found.trained[row.pair, 0].method.pseudo_labels(pair.adaptation())
        right = (labels == pair.target.train.labels).double()
        assert row.right == pytest.approx(right.mean().item())
        assert row.right_covered == pytest.approx(right[sure].mean().item(), nan_ok=True)
        assert row.covered == pytest.approx(sure.double().mean().item())


def test_chapter_4_uses_chapter_3s_runs(chapter, digits):
    third, fourth = chapter("dann"), chapter("pixelda")
    methods = adaptation.all_methods(fourth.replace(dann_changes={"precision": "fp32"}), digits)
    assert [s.method for s in methods] == [
        "source only", "DANN", "PixelDA", "AdaMatch", "target only"
    ]  # fmt: skip
    theirs = [adaptation.source_only(third, digits), adaptation.adversarial(third, digits)]
    for ours, expected in zip(methods[:2], theirs, strict=True):
        assert [run.name for run in ours.runs] == [run.name for run in expected.runs]


def test_while_another_process_trains_one_method_another_is_trained(chapter, digits, monkeypatch):
    trained, pixel, pseudo = [], pixelda.train_or_load, adamatch.train_or_load

    def theirs(*args):
        if not trained:
            raise storage.BusyError(Path("a run"))
        return pixel(*args)

    def ours(*args):
        trained.append(pseudo(*args))
        return trained[-1]

    monkeypatch.setattr(pixelda, "train_or_load", theirs)
    monkeypatch.setattr(adamatch, "train_or_load", ours)
    methods = adaptation.all_methods(chapter("pixelda", dann_changes={"precision": "fp32"}), digits)
    assert methods[3].runs == trained
