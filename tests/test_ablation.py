"""What a handful of runs may be taken to say."""

import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import scores_of

from dlcvlib.evaluation import dann_ablation, gan_ablation, metrics, significance, vae_ablation
from dlcvlib.evaluation.features import Extractor
from dlcvlib.methods import averaging


def verdict(worse, better):
    return significance.compare("it is better", "error", pd.Series(worse), pd.Series(better))[
        "verdict"
    ]


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
    found = significance.compare("claim", "error", pd.Series([1, 2, 3]), pd.Series([0, 0, 6]))
    assert found["difference"] == 0
    assert found["standard_error"] == pytest.approx(math.sqrt(1 / 3 + 12 / 3))


def test_mean_and_spread():
    assert significance.mean_and_spread([1.0, 3.0]) == pytest.approx((2.0, math.sqrt(2)))
    assert math.isnan(significance.mean_and_spread([1.0])[1])


def test_the_rule_says_how_often_chance_passes_it():
    rng = np.random.default_rng(0)
    runs = rng.normal(size=(4000, 2, 2))
    error = np.sqrt(runs.var(2, ddof=1).sum(1) / 2)
    passed = (abs(runs.mean(2)[:, 0] - runs.mean(2)[:, 1]) > 2 * error).mean()
    # 1 - 2 / sqrt(6) of the time, by Student's t with two degrees of freedom.
    assert passed == pytest.approx(1 - 2 / math.sqrt(6), abs=0.02)
    assert "by chance 18% of the time" in significance.rule(2)
    assert "With one seed nothing can be told" in significance.rule(1)


def test_the_rule_counts_the_claims_of_a_table():
    assert significance.rule(2, 7).endswith("Of 7 such claims that is about 1.3.")
    assert "such claims" not in significance.rule(2)
    assert significance.rule(1, 7) == significance.rule(1)


def test_tally_and_seeds():
    verdicts = pd.DataFrame({"verdict": ["holds", "cannot be told here", "cannot be told here"]})
    assert significance.tally(verdicts) == "1 holds, 0 do not and 2 cannot be told"
    assert significance.over([0]) == "over 1 seed"
    assert significance.over([0, 1]) == "over 2 seeds"


def test_plain_dcgan_is_not_its_own_best_variant():
    frame = pd.DataFrame({"variant": ["plain DCGAN", "a", "b"], "kid_late": [1.0, 1.5, 1.2]})
    name, gain = gan_ablation.best(frame)
    assert (name, gain) == ("b", pytest.approx(-0.2))
    assert gan_ablation.best_sentence(frame).endswith("mean KID lies 20% above plain DCGAN's.")


@pytest.mark.parametrize("plain", [0.0, -0.01])
def test_of_a_kid_that_is_not_above_zero_no_share_is_told(plain):
    frame = pd.DataFrame({"variant": ["plain DCGAN", "a"], "seed": 0, "kid_late": [plain, -0.02]})
    assert gan_ablation.best_sentence(frame) == "The best variant is “a”."
    assert gan_ablation.verdicts(frame, {"a": "a helps"})["change"].isna().all()


@pytest.mark.parametrize("steps", [1, 2, 30])
def test_the_decay_told_is_that_of_the_last_update(steps):
    module = torch.nn.Linear(1, 1, bias=False)
    average = averaging.averaged(module, gan_ablation.AVERAGED)
    for step in range(steps):
        module.weight.data.fill_(step == steps - 1)
        average.update_parameters(module)
    # The last of them brings the first 1 into an average of zeros; the first is taken as it is.
    expected = 1.0 if steps == 1 else 1 - gan_ablation.decay_reached(steps)
    assert average.module.weight.item() == pytest.approx(expected)


def test_the_decay_told_has_its_bound():
    assert gan_ablation.decay_reached(10**6) == gan_ablation.AVERAGED


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


def runs_of(column, **values):
    """One row a run: variant, seed and a column, whose values are given by variant."""
    rows = [(name.replace("_", " "), seed, value) for name, two in values.items()
            for seed, value in enumerate(two)]  # fmt: skip
    return pd.DataFrame(rows, columns=["variant", "seed", column])


def test_the_vaes_verdicts_point_the_right_way():
    # Seed by seed the other weights agree; between them they lie far apart.
    sweep = runs_of("kid", **{"0.01": [0.40, 0.41], "0.1": [0.10, 0.11], "1": [0.42, 0.40]})
    errors = {
        "Sigmoid,_LeakyReLU": [0.20, 0.21],
        "with_vertical_flips": [0.30, 0.31],
        "Tanh_output": [0.10, 0.11],
        "ReLU_in_the_decoder": [0.20, 0.22],
    }
    variants = runs_of("mse", **errors)
    verdicts = vae_ablation.verdicts(sweep, variants.assign(kid=variants["mse"]))
    holds, fails, untold = "holds", "does not hold", "cannot be told here"
    assert verdicts["verdict"].tolist() == [holds, holds, holds, fails, fails, untold, untold]


def test_the_gans_verdicts_point_the_right_way():
    frame = runs_of("kid_late", plain_DCGAN=[1.0, 1.1], good=[0.5, 0.55], bad=[2.0, 2.1])
    verdicts = gan_ablation.verdicts(frame, {"good": "good helps", "bad": "bad helps"})
    assert verdicts["verdict"].tolist() == ["holds", "does not hold"]
    assert verdicts["change"].tolist() == pytest.approx([-0.5, 1.0 / 1.05 * (1.0)], abs=1e-6)


def test_danns_verdicts_point_the_right_way():
    chosen = SimpleNamespace(domain_weight=0.1, domain_schedule="patient")
    reads = {
        "0, no adaptation": [0.50, 0.51],
        "0.1, patient": [0.70, 0.71],
        "1, patient": [0.60, 0.61],
        "0.1, rising": [0.66, 0.67],
        "0.1, fixed": [0.64, 0.65],
        "1, rising": [0.20, 0.21],
        "1, fixed": [0.30, 0.31],
    }
    sweep = runs_of("accuracy", **reads)
    sweep["weight"] = sweep["variant"].str.split(",").str[0].astype(float)
    waits = runs_of("accuracy", rising=[0.4, 0.41], patient=[0.7, 0.71])
    before, after = (
        scores_of(name, pd.DataFrame(rows | {"method": name, "accuracy": read}))
        for name, read in (("source only", [0.5, 0.51]), ("DANN", [0.7, 0.71]))
        for rows in [{"pair": "a->b", "seed": [0, 1]}]
    )
    verdicts = dann_ablation.verdicts(sweep, waits, before, after, chosen)
    holds = "holds"
    assert verdicts["verdict"].tolist() == [holds, holds, holds, "does not hold", holds, holds]


def test_weights_that_no_claim_is_about_leave_the_others_judged():
    runs = pd.DataFrame({"seed": [0, 1] * 4, "mse": np.arange(8.0), "kid": np.arange(8.0) % 3})
    names = ["Sigmoid, LeakyReLU", "with vertical flips", "Tanh output", "ReLU in the decoder"]
    variants = runs.assign(variant=np.repeat(names, 2))
    sweep = runs.iloc[:4].assign(variant=np.repeat(["2", "5"], 2))
    assert len(vae_ablation.verdicts(sweep, variants)) == 6
    good = runs.assign(variant=np.repeat(["0.1", "0.5", "1", "2"], 2))
    assert len(vae_ablation.verdicts(good, variants)) == 6


def test_sides_that_are_one_variant_make_no_claim():
    chosen = SimpleNamespace(domain_weight=0.0, domain_schedule="patient")
    names = ["0, no adaptation", "1, patient", "1, rising", "1, fixed"]
    sweep = runs_of("accuracy", **{name: [0.5, 0.6] for name in names})
    sweep["weight"] = sweep["variant"].str.split(",").str[0].astype(float)
    waits = runs_of("accuracy", rising=[0.5, 0.6], patient=[0.5, 0.6])
    frame = pd.DataFrame({"pair": "a->b", "seed": [0, 1], "accuracy": [0.5, 0.6]})
    before, after = (scores_of(name, frame.assign(method=name)) for name in ("alone", "DANN"))
    verdicts = dann_ablation.verdicts(sweep, waits, before, after, chosen)
    assert verdicts["claim"].tolist() == [
        "a weight of 1 is worse than 0",
        "letting the weight rise is better than keeping it fixed (weight 1)",
        "DANN is better than alone on a->b",
    ]


def test_the_weight_is_chosen_on_held_out_images():
    """On the test images 0.1 would be chosen."""
    sweep = pd.DataFrame(
        {
            "variant": ["0.1", "1"],
            "mse": 0.01,
            "kid": [0.1, 0.9],
            "held_out_mse": [0.02, 0.03],
            "held_out_kid": [0.8, 0.2],
        }
    )
    text = vae_ablation.chosen_weight(sweep, 1.0)
    assert "lowest (0.0200, at 0.1). It chooses 1, with a held-out error of 0.0300" in text
    assert text.endswith("That is the weight of the main run.")


def test_a_vaes_samples_are_measured_once_against_both_splits(smoke, faces, tmp_path):
    seen = []

    def features(images):
        seen.append(images)
        return images.float().flatten(1)[:, :50] / (255 if images.dtype == torch.uint8 else 1)

    chosen = smoke(runs_dir=str(tmp_path), ablation_seeds=[0], precision="fp32")
    found = vae_ablation.train(chosen, faces, Extractor("few", "k", features), {"as it is": {}})
    test, validation, samples = seen
    assert torch.equal(test, faces.test.images)
    assert torch.equal(validation, faces.validation.images)
    (row,) = found.frame.itertuples()
    of_test, of_validation, drawn = map(features, (test, validation, samples))
    assert row.kid == metrics.kid(of_test, drawn)[0]
    assert row.held_out_kid == metrics.kid(of_validation, drawn)[0]
    (run,) = found.runs
    redrawn = run.method.reconstruct(test)
    assert row.mse == pytest.approx((test / 255 - redrawn).square().mean().item(), rel=1e-4)
    torch.manual_seed(0)
    again = run.method.evaluate(validation)["mse"] / validation[0].numel()
    assert row.held_out_mse == pytest.approx(again, rel=0.02)  # but for the draw of z
