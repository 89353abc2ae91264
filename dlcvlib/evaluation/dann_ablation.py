"""Comparisons of chapter 3: DANN with one thing changed, and where it helps or hurts."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from dlcvlib.config.schema import DANNParams
from dlcvlib.data.types import CLASSES, DigitData, Pair
from dlcvlib.evaluation import adaptation, significance
from dlcvlib.evaluation.adaptation import Scores
from dlcvlib.methods import dann
from dlcvlib.training.runs import Run

LABELS = {
    "variant": "variant",
    "accuracy": "target accuracy",
    "source": "source accuracy",
    "domain_accuracy": "domain accuracy",
}
SCHEDULES = ("patient", "rising", "fixed")
DIGITS = {"accuracy": 3, "source": 3, "domain_accuracy": 3}


def train(
    params: DANNParams, pair: Pair, variants: Mapping[str, Mapping[str, Any]]
) -> tuple[pd.DataFrame, list[Run[dann.DANN]]]:
    """DANNs that differ in one thing, over the seeds; `ablation_steps` long unless it changes that.

    Args:
        params: the chapter's parameters.
        pair: what they are trained on.
        variants: name -> changed settings.

    Returns:
        One row a run: variant, seed, accuracy (target test), source (source held out),
        domain_accuracy (both held out; 0.5 is chance); and the runs.
    """
    rows, trained = [], []
    for name, changes in variants.items():
        for seed in params.seeds:
            settings = params.settings(seed).replace(**{"steps": params.ablation_steps, **changes})
            run = dann.train_or_load(settings, pair.adaptation(), params.runs_dir)
            held_out = run.history.dropna(subset="validation_accuracy").iloc[-1]
            rows.append(
                {
                    "variant": name,
                    "seed": seed,
                    "accuracy": run.method.accuracy(pair.target.test),
                    "source": held_out["validation_accuracy"],
                    "domain_accuracy": held_out["validation_domain_accuracy"],
                }
            )
            trained.append(run)
    return pd.DataFrame(rows), trained


# --- the weight of the domain loss ------------------------------------------------------------


def weight_sweep(params: DANNParams, pair: Pair) -> tuple[pd.DataFrame, list[Run[dann.DANN]]]:
    """Each weight of the domain loss, patient, rising and fixed; the frame has both as columns.

    A weight of 0 knows no schedule. The domain classifier then still learns, but nobody listens.
    """
    variants = {
        _variant(weight, schedule): {"domain_weight": weight, "domain_schedule": schedule}
        for schedule in SCHEDULES
        for weight in sorted({0.0, params.domain_weight, *params.domain_weights})
        if weight or schedule == SCHEDULES[0]
    }
    frame, trained = train(params, pair, variants)
    chosen = frame["variant"].map(variants)
    frame["weight"] = [changes["domain_weight"] for changes in chosen]
    frame["schedule"] = [changes["domain_schedule"] for changes in chosen]
    return frame, trained


def _variant(weight: float, schedule: str) -> str:
    return f"{weight:g}, {schedule}" if weight else "0, no adaptation"


def verdicts(
    sweep: pd.DataFrame,
    waits: pd.DataFrame,
    before: Scores,
    after: Scores,
    params: DANNParams,
) -> pd.DataFrame:
    """The claims of 3-6, each judged by `significance.compare`.

    Args:
        sweep: of `weight_sweep`.
        waits: of `waiting`.
        before: source only.
        after: DANN.
        params: the chapter's parameters.
    """
    main, most = params.domain_weight, sweep["weight"].max()
    name = _variant(main, params.domain_schedule)
    claims = [(f"a weight of {main:g} is better than none", _variant(0, ""), name)]
    if most > main:
        heavy = _variant(most, params.domain_schedule)
        claims.append((f"a weight of {most:g} is worse than {main:g}", heavy, name))
    for weight in dict.fromkeys([main, most]):
        fixed, rising = (_variant(weight, schedule) for schedule in ("fixed", "rising"))
        claim = f"letting the weight rise is better than keeping it fixed (weight {weight:g})"
        claims.append((claim, fixed, rising))
    # Of a weight of 0 there is one variant, whatever the schedule.
    rows = [significance.better(sweep, *claim) for claim in claims if claim[1] != claim[2]]
    if main:
        (hasty,) = set(waits["variant"]) - {"patient"}
        claim = f"the domain classifier should wait for the labels (against {hasty})"
        rows.append(significance.better(waits, claim, hasty, "patient"))
    return pd.concat([pd.DataFrame(rows), adaptation.helps(before, after)], ignore_index=True)


def chosen_weight(sweep: pd.DataFrame, params: DANNParams) -> str:
    """How far the weight moves the target's accuracy; it is not chosen by it, and says so."""
    main = _variant(params.domain_weight, params.domain_schedule)
    return significance.not_chosen(sweep, "the weights and schedules", main)


# --- before the labels are learned ------------------------------------------------------------


def plateaus(before: Scores) -> pd.DataFrame:
    """How long a classifier of the source alone only guesses: one row a run, slowest pair first.

    Returns:
        pair, seed, steps: the first logged step with a class loss below 90 % of guessing's; NaN if
        there is none.
    """
    rows = []
    for (pair, seed), run in before.trained.items():
        better = run.history.loc[run.history["class"] < 0.9 * math.log(CLASSES), "step"]
        rows.append((pair, seed, better.min()))
    frame = pd.DataFrame(rows, columns=["pair", "seed", "steps"])
    slowness = -frame["steps"].fillna(math.inf).groupby(frame["pair"]).transform("mean")
    return frame.iloc[slowness.argsort(kind="stable")]


def plateau_sentence(frame: pd.DataFrame) -> str:
    """How long each pair's source is only guessed at, on the mean of the seeds.

    Args:
        frame: of `plateaus`.
    """
    parts = [
        f"longer than the runs on {pair}"
        if steps.isna().any()
        else f"{steps.mean():,.0f} steps on {pair}"
        for pair, steps in frame.groupby("pair", sort=False)["steps"]
    ]
    return (
        "Until a classifier of the source alone is better than a guess, its class loss 10% below "
        f"that of guessing, it takes {', '.join(parts)}."
    )


def waiting(params: DANNParams, pair: Pair) -> tuple[pd.DataFrame, list[Run[dann.DANN]]]:
    """`train` with a patient schedule and without, as long as the main runs, which are one of them.

    The variant of the main runs is the last.
    """
    main = params.domain_schedule
    other = "rising" if main == "patient" else "patient"
    return train(
        params,
        pair,
        {name: {"steps": params.steps, "domain_schedule": name} for name in (other, main)},
    )


def class_losses(frame: pd.DataFrame, trained: Sequence[Run[dann.DANN]]) -> pd.DataFrame:
    """The class loss along runs of `train`: variant, seed, step, class."""
    return pd.concat(
        [
            run.history[["step", "class"]].assign(variant=row.variant, seed=row.seed)
            for row, run in zip(frame.itertuples(), trained, strict=True)
        ],
        ignore_index=True,
    )


# --- where it hurts ---------------------------------------------------------------------------


def recalls(before: Scores, after: Scores, digits: DigitData) -> pd.DataFrame:
    """One row a pair, seed and digit: pair, seed, digit, before, after (shares read), change."""
    rows = []
    for name, seed in before.predictions:
        labels = digits.pairs[name].target.test.labels
        for digit in range(CLASSES):
            if not (of_digit := labels == digit).any():
                continue
            shares = [
                (scores.predictions[name, seed][of_digit] == digit).double().mean().item()
                for scores in (before, after)
            ]
            rows.append((name, seed, digit, *shares, shares[1] - shares[0]))
    return pd.DataFrame(rows, columns=["pair", "seed", "digit", "before", "after", "change"])


def hurt_sentence(frame: pd.DataFrame) -> str:
    """Which digits adaptation costs something, pair by pair, on the mean of the seeds.

    Args:
        frame: of `recalls`.
    """
    parts = []
    for pair, rows in frame.groupby("pair", sort=False):
        change = rows.groupby("digit")["change"].mean()
        lost = change[change < 0]
        text = f"on {pair} {len(lost)} of {len(change)} digits lose"
        if len(lost):
            text += f", most of all the {lost.idxmin()} ({100 * lost.min():+.0f})"
        if change.max() > 0:
            text += f"; the {change.idxmax()} gains most ({100 * change.max():+.0f})"
        parts.append(text)
    lead = "Measured by the share of a digit that is read, in percentage points,"
    return f"{lead} {'. '.join(parts)}.".replace(". on", ". On")
