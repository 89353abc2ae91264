"""Conclusions from several runs: variants of settings, and verdicts on claims."""

import math

import numpy as np
import pandas as pd
import pytest
from conftest import settings_of

from dlcvlib.evaluation import significance
from dlcvlib.evaluation.sweep import train_variants
from dlcvlib.methods.vae import VAE
from dlcvlib.utils.errors import UserError


@pytest.mark.parametrize(
    ("worse", "better", "verdict"),
    [
        ([0.5, 0.52], [0.3, 0.32], "supported"),
        ([0.3, 0.32], [0.5, 0.52], "contradicted"),
        ([0.3, 0.7], [0.4, 0.5], "inconclusive"),
        ([0.5], [0.3], "inconclusive"),
        ([0.5, 0.5], [0.3, 0.3], "inconclusive"),
    ],
)
def test_verdicts(worse, better, verdict):
    """A single seed, or seeds without a spread, are inconclusive."""
    found = significance.compare("it is better", "error", pd.Series(worse), pd.Series(better))
    assert found["verdict"] == verdict
    assert (found["claim"], found["measure"]) == ("it is better", "error")


def test_standard_error_of_a_difference():
    found = significance.compare("claim", "error", pd.Series([1, 2, 3]), pd.Series([0, 0, 6]))
    assert found["difference"] == 0
    assert found["standard_error"] == pytest.approx(math.sqrt(1 / 3 + 12 / 3))


def test_the_rule_passes_by_chance_as_often_as_stated():
    rng = np.random.default_rng(0)
    runs = rng.normal(size=(4000, 2, 2))
    error = np.sqrt(runs.var(2, ddof=1).sum(1) / 2)
    passed = (abs(runs.mean(2)[:, 0] - runs.mean(2)[:, 1]) > significance.FACTOR * error).mean()
    assert passed == pytest.approx(significance.chance(2), abs=0.02)
    # By Student's t with two degrees of freedom.
    assert significance.chance(2) == pytest.approx(1 - 2 / math.sqrt(6))
    assert math.isnan(significance.chance(1))


def test_a_more_accurate_variant_has_the_lower_error_rate():
    accuracies = {"variant": ["a", "a", "b", "b"], "accuracy": [0.5, 0.51, 0.7, 0.71]}
    found = significance.more_accurate(pd.DataFrame(accuracies), "b is better", "a", "b")
    assert found["verdict"] == "supported"
    assert found["difference"] == pytest.approx(0.2)


def test_means_with_their_spread():
    frame = pd.DataFrame({"variant": ["b", "b", "a"], "kid": [1, 3, 2], "mse": [0.1, 0.2, 0.3]})
    found = significance.summary(frame, {"kid": 1, "mse": 2})
    assert found.to_dict("list") == {
        "variant": ["b", "a"],
        "kid": ["2.0 ± 1.4", "2.0"],
        "mse": ["0.15 ± 0.07", "0.30"],
    }
    assert significance.mean_text([0.5, 0.7], 0, percent=True) == "60 ± 14%"
    assert significance.mean_text([], 2) == significance.mean_text([math.nan], 2) == "–"


def test_variants_differ_from_the_base_only_in_their_change(faces, tmp_path):
    base, measured = settings_of("vae", steps=2), []

    def measure(variant, run):
        measured.append((variant, run.settings.seed))
        return {"weight": run.settings.kld_weight}

    changes = {"as it is": {}, "heavy": {"kld_weight": 5.0}}
    found = train_variants(VAE, base, changes, [0, 1], faces, tmp_path, measure)
    order = [(variant, seed) for variant in changes for seed in (0, 1)]
    assert list(found.runs) == measured == order
    assert list(found.frame) == ["variant", "seed", "weight"]
    assert list(zip(found.frame["variant"], found.frame["seed"], strict=True)) == order
    assert found.frame["weight"].tolist() == [base.kld_weight, base.kld_weight, 5, 5]
    for (variant, seed), run in found.runs.items():
        assert run.settings == base.replace(seed=seed, **changes[variant])
    assert {name: run.settings.seed for name, run in found.first().items()} == {
        "as it is": 0,
        "heavy": 0,
    }
    with pytest.raises(UserError, match="did you mean 'kld_weight'"):
        train_variants(VAE, base, {"x": {"kld_wieght": 1}}, [0], faces, tmp_path, measure)
