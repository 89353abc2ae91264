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
    ("worse", "better", "error", "verdict"),
    [
        ([0.5, 0.52], [0.3, 0.32], 0.01 * math.sqrt(2), "supported"),
        ([0.3, 0.32], [0.5, 0.52], 0.01 * math.sqrt(2), "contradicted"),
        ([1, 2, 3], [0, 0, 6], math.sqrt(1 / 3 + 12 / 3), "inconclusive"),
        ([0.5], [0.3], math.nan, "inconclusive"),
        ([0.5, 0.5], [0.3, 0.3], 0, "inconclusive"),
    ],
)
def test_verdicts(worse, better, error, verdict):
    """A single seed, or seeds without a spread, are inconclusive."""
    found = significance.compare("it is better", "error", pd.Series(worse), pd.Series(better))
    assert found["difference"] == pytest.approx(np.mean(worse) - np.mean(better))
    assert found["standard_error"] == pytest.approx(error, nan_ok=True)
    assert found["verdict"] == verdict


def test_the_rule_passes_by_chance_as_often_as_stated():
    draws = np.random.default_rng(0).normal(size=(2000, 2, 2))
    found = [significance.compare("", "", *map(pd.Series, runs))["verdict"] for runs in draws]
    passed = 1 - np.mean([verdict == "inconclusive" for verdict in found])
    assert passed == pytest.approx(significance.chance(2), abs=0.03)
    assert math.isnan(significance.chance(1))


def test_means_with_their_spread():
    frame = pd.DataFrame({"variant": ["b", "b", "a"], "kid": [1, 3, 2], "mse": [0.1, 0.2, 0.3]})
    found = significance.summary(frame, {"kid": 1, "mse": 2})
    assert found.to_numpy().tolist() == [["b", "2.0 ± 1.4", "0.15 ± 0.07"], ["a", "2.0", "0.30"]]
    assert significance.mean_text([0.5, 0.7], 0, percent=True) == "60 ± 14%"
    assert significance.mean_text([], 2) == significance.mean_text([math.nan], 2) == "–"


def test_variants_differ_from_the_base_only_in_their_change(faces, tmp_path):
    base, changes = settings_of("vae", steps=2), {"as it is": {}, "heavy": {"kld_weight": 5.0}}
    data = faces, tmp_path, lambda variant, run: {"measured": variant, "run": run.name}
    found = train_variants(VAE, base, changes, [0, 1], *data)
    names = found.frame.set_index(["variant", "seed", "measured"])["run"]
    assert list(names.index) == [(name, seed, name) for name in changes for seed in (0, 1)]
    for (variant, seed), run in found.runs.items():
        assert run.settings == base.replace(seed=seed, **changes[variant])
        assert run.name == names[variant, seed, variant]
    assert found.first() == {variant: found.runs[variant, 0] for variant in changes}
    with pytest.raises(UserError, match="did you mean 'kld_weight'"):
        train_variants(VAE, base, {"x": {"kld_wieght": 1}}, [0], *data)
