"""Conclusions from several runs: variants of settings, and verdicts on claims."""

import math

import pandas as pd
import pytest
from conftest import settings_of

from dlcvlib.evaluation import significance
from dlcvlib.evaluation.sweep import train_variants
from dlcvlib.methods.vae import VAE
from dlcvlib.utils.errors import UserError


def test_paired_differences_have_students_interval():
    gains = pd.Series([0.1, 0.3, 0.2])
    row = significance.compare("it is better", "error", gains)
    half = 4.302653 * 0.1 / math.sqrt(3)  # t of two degrees of freedom at 97.5%
    assert row == {
        "claim": "it is better",
        "measure": "error",
        "seeds": 3,
        "difference": pytest.approx(0.2),
        "low": pytest.approx(0.2 - half),
        "high": pytest.approx(0.2 + half),
        "p": pytest.approx(0.0741799),
    }


@pytest.mark.parametrize("gains", [[0.5], [0.5, 0.5], [0.0] * 5])
def test_differences_without_a_spread_have_no_interval(gains):
    row = significance.compare("", "", pd.Series(gains))
    assert all(math.isnan(row[name]) for name in ("low", "high", "p"))
    found = significance.verdicts([row], least=2)["verdict"].item()
    assert found == ("inconclusive" if len(gains) > 1 else "not judged")


def test_claims_are_judged_together():
    """By Holm: the smallest p times the number of claims, the next times one less."""
    claims = {"a": (5, 0.02, 1), "b": (5, 0.001, -1), "c": (5, 0.03, 1), "few": (4, 1e-9, 1)}
    rows = [
        {"claim": name, "seeds": n, "p": p, "difference": sign}
        for name, (n, p, sign) in claims.items()
    ]
    table = significance.verdicts(rows).set_index("claim")
    assert table["p_holm"].tolist() == pytest.approx([0.04, 0.003, 0.04, math.nan], nan_ok=True)
    found = ["supported", "contradicted", "supported", "not judged"]
    assert table["verdict"].tolist() == found
    assert significance.verdicts(rows, least=4).set_index("claim").loc["few"].verdict == "supported"


def test_means_with_their_spread():
    frame = pd.DataFrame({"variant": ["b", "b", "a"], "kid": [1, 3, 2], "mse": [0.1, 0.2, 0.3]})
    found = significance.summary(frame, {"kid": 1, "mse": 2})
    assert list(found) == ["variant", "kid", "mse"]
    assert found.to_numpy().tolist() == [["b", "2.0 ± 1.4", "0.15 ± 0.07"], ["a", "2.0", "0.30"]]
    assert significance.mean_text([0.5, 0.7], 0, percent=True) == "60 ± 14%"
    assert significance.mean_text([], 2) == significance.mean_text([math.nan], 2) == "–"


def test_variants_differ_from_the_base_only_in_their_change(faces, tmp_path):
    base, changes = settings_of("vae", steps=2), {"as it is": {}, "heavy": {"kld_weight": 5.0}}
    data = faces, tmp_path, lambda variant, run: {"name": variant, "run": run.name}
    found = train_variants(VAE, base, changes, [0, 1], *data)
    assert list(found.runs) == [(variant, seed) for variant in changes for seed in (0, 1)]
    for (variant, seed), run in found.runs.items():
        assert run.settings == base.replace(seed=seed, **changes[variant])
    assert list(found.frame) == ["variant", "seed", "name", "run"]
    rows = [(*key, key[0], run.name) for key, run in found.runs.items()]
    assert list(found.frame.itertuples(index=False, name=None)) == rows
    assert found.first() == {variant: found.runs[variant, 0] for variant in changes}
    with pytest.raises(UserError, match="did you mean 'kld_weight'"):
        train_variants(VAE, base, {"x": {"kld_wieght": 1}}, [0], *data)
