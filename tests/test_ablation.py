"""What a handful of runs may be taken to say."""

import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from dlcvlib import ablation, dann_ablation, gan_ablation, vae_ablation


def verdict(worse, better):
    return ablation.compare("it is better", "error", pd.Series(worse), pd.Series(better))["verdict"]


@pytest.mark.parametrize(
    ("worse", "better", "expected"),
    [
        ([0.5, 0.52], [0.3, 0.32], "holds"),
        ([0.3, 0.32], [0.5, 0.52], "does not hold"),
        ([0.3, 0.7], [0.4, 0.5], "cannot be told here"),
        ([0.5], [0.3], "cannot be told here"),
        ([0.5, 0.5], [0.3, 0.3], "cannot be told here"),
    ],
)
def test_verdicts(worse, better, expected):
    """One seed, and seeds without a spread, say nothing."""
    assert verdict(worse, better) == expected


def test_standard_error_of_a_difference():
    found = ablation.compare("claim", "error", pd.Series([1, 2, 3]), pd.Series([0, 0, 6]))
    assert found["difference"] == 0
    assert found["standard_error"] == pytest.approx(math.sqrt(1 / 3 + 12 / 3))


def test_mean_and_spread():
    assert ablation.mean_and_spread([1.0, 3.0]) == pytest.approx((2.0, math.sqrt(2)))
    assert math.isnan(ablation.mean_and_spread([1.0])[1])


def test_the_rule_says_how_often_chance_passes_it():
    rng = np.random.default_rng(0)
    runs = rng.normal(size=(4000, 2, 2))
    error = np.sqrt(runs.var(2, ddof=1).sum(1) / 2)
    passed = (abs(runs.mean(2)[:, 0] - runs.mean(2)[:, 1]) > 2 * error).mean()
    # 1 - 2 / sqrt(6) of the time, by Student's t with two degrees of freedom.
    assert passed == pytest.approx(1 - 2 / math.sqrt(6), abs=0.02)
    assert "by chance 18% of the time" in ablation.rule(2)
    assert "With one seed nothing can be told" in ablation.rule(1)


def test_tally_and_seeds():
    verdicts = pd.DataFrame({"verdict": ["holds", "cannot be told here", "cannot be told here"]})
    assert ablation.tally(verdicts) == "1 holds, 0 do not and 2 cannot be told"
    assert ablation.over([0]) == "over 1 seed"
    assert ablation.over([0, 1]) == "over 2 seeds"


def test_plain_dcgan_is_not_its_own_best_variant():
    frame = pd.DataFrame({"variant": ["plain DCGAN", "a", "b"], "kid_late": [1.0, 1.5, 1.2]})
    name, gain = gan_ablation.best(frame)
    assert (name, gain) == ("b", pytest.approx(-0.2))


def source_only(*losses):
    histories = [pd.DataFrame({"step": [10, 20], "class": values}) for values in losses]
    runs = [SimpleNamespace(history=history) for history in histories]
    return SimpleNamespace(trained={(f"{n}->x", 0): run for n, run in enumerate(runs)})


def test_labels_that_are_never_learned_are_not_learned_at_the_end():
    found = dann_ablation.plateaus(source_only([2.3, 1.0], [2.3, 2.3]))
    assert found["pair"].tolist() == ["1->x", "0->x"]
    assert math.isnan(found["steps"].iloc[0])
    sentence = dann_ablation.plateau_sentence(found)
    assert "it takes longer than the runs on 1->x, 20 steps on 0->x" in sentence


def test_where_every_digit_loses_none_gains():
    recalls = pd.DataFrame({"pair": "a->b", "digit": [0, 1], "change": [-0.1, -0.25]})
    sentence = dann_ablation.hurt_sentence(recalls)
    assert "2 of 2 digits lose, most of all the 1 (-25)" in sentence
    assert "gains" not in sentence


def test_weights_that_no_claim_is_about_leave_the_others_judged():
    runs = pd.DataFrame({"seed": [0, 1] * 4, "mse": np.arange(8.0), "kid": np.arange(8.0) % 3})
    names = ["as the main run", "with vertical flips", "Tanh output", "ReLU in the decoder"]
    variants = runs.assign(variant=np.repeat(names, 2))
    sweep = runs.iloc[:4].assign(variant=np.repeat(["2", "5"], 2))
    assert len(vae_ablation.verdicts(sweep, variants)) == 6
