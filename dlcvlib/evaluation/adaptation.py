"""What chapters 3 and 4 measure: accuracies of methods on pairs, and the gaps that they close.

Every accuracy is of the last step's weights (of AdaMatch, of their moving average) on the target's
test split; nothing was chosen by it.
"""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from torch import Tensor

from dlcvlib.config.schema import DANNParams, PixelDAParams
from dlcvlib.data.types import CLASSES, DigitData, Domain, LabelledImages, Pair
from dlcvlib.evaluation import original, significance
from dlcvlib.methods import adamatch, classifier, dann, pixelda
from dlcvlib.methods.classifier import Classifier
from dlcvlib.training import runs
from dlcvlib.training.runs import Run

SOURCE_ONLY, TARGET_ONLY = "source only", "target only"
DANN, PIXELDA, ADAMATCH = "DANN", "PixelDA", "AdaMatch"


@dataclass(frozen=True)
class Scores:
    """A method on every pair and seed; measured when first asked for, as some want its runs only.

    Attributes:
        method: its name.
        tests: pair -> the target's test images.
        trained: (pair, seed) -> its run.
    """

    method: str
    tests: dict[str, LabelledImages]
    trained: dict[tuple[str, int], Run[Classifier]]

    @functools.cached_property
    def predictions(self) -> dict[tuple[str, int], Tensor]:
        """(pair, seed) -> labels that are read in the target's test images, (N,) int64."""
        return {
            (pair, seed): run.method.predict(self.tests[pair].images)
            for (pair, seed), run in self.trained.items()
        }

    @functools.cached_property
    def frame(self) -> pd.DataFrame:
        """One row a run: method, pair, seed, accuracy (0 to 1)."""
        return pd.DataFrame(
            {
                "method": self.method,
                "pair": pair,
                "seed": seed,
                "accuracy": (found == self.tests[pair].labels).double().mean().item(),
            }
            for (pair, seed), found in self.predictions.items()
        )

    @property
    def runs(self) -> list[Run[Classifier]]:
        """All of them."""
        return list(self.trained.values())

    def first(self, pair: str) -> Run[Classifier]:
        """A pair's run of the first seed."""
        return next(run for (name, _), run in self.trained.items() if name == pair)

    def at_home(self, digits: DigitData, pair: str) -> float:
        """Mean accuracy on held-out images of a pair's own source."""
        held_out = digits.pairs[pair].source.validation
        runs = [run for (name, _), run in self.trained.items() if name == pair]
        return float(np.mean([run.method.accuracy(held_out) for run in runs]))

    def by_pair(self) -> dict[str, dict[str, list[float]]]:
        """Pair -> {"accuracy": [one a seed]}, for results.json."""
        groups = self.frame.groupby("pair", sort=False)["accuracy"]
        return {pair: {"accuracy": values.tolist()} for pair, values in groups}


Train = Callable[[Pair, int], Run[Classifier]]
"""The run of a pair and a seed, from disk or trained now."""


def score(methods: Mapping[str, Train], digits: DigitData, seeds: Sequence[int]) -> list[Scores]:
    """Train methods on every pair and seed.

    All their runs are asked for at once: while another process trains one, others are trained here.
    """
    trained = runs.several(
        {
            (method, name, seed): functools.partial(train, pair, seed)
            for method, train in methods.items()
            for name, pair in digits.pairs.items()
            for seed in seeds
        }
    )
    return [
        Scores(
            method,
            {name: pair.target.test for name, pair in digits.pairs.items()},
            {(pair, seed): run for (m, pair, seed), run in trained.items() if m == method},
        )
        for method in methods
    ]


def _third(params: DANNParams) -> dict[str, Train]:
    """The methods of chapter 3. DANN is handed the target's images without their labels."""
    folder = params.runs_dir

    def supervised(domain: Domain, seed: int) -> Run[Classifier]:
        return classifier.train_or_load(params.classifier(seed), domain, folder)

    return {
        SOURCE_ONLY: lambda pair, seed: supervised(pair.source, seed),
        DANN: lambda pair, seed: dann.train_or_load(
            params.settings(seed), pair.adaptation(), folder
        ),
        TARGET_ONLY: lambda pair, seed: supervised(pair.target, seed),
    }


def _fourth(params: PixelDAParams) -> dict[str, Train]:
    """The methods of chapter 4, which are handed the target's images without their labels."""
    folder = params.runs_dir
    return {
        PIXELDA: lambda pair, seed: pixelda.train_or_load(
            params.settings(seed), pair.adaptation(), folder
        ),
        ADAMATCH: lambda pair, seed: adamatch.train_or_load(
            params.adamatch(seed), pair.adaptation(), folder
        ),
    }


def _alone(
    method: str, trains: Mapping[str, Train], digits: DigitData, seeds: Sequence[int]
) -> Scores:
    return score({method: trains[method]}, digits, seeds)[0]


def source_only(params: DANNParams, digits: DigitData) -> Scores:
    """A classifier of the source's labels, on the target."""
    return _alone(SOURCE_ONLY, _third(params), digits, params.seeds)


def target_only(params: DANNParams, digits: DigitData) -> Scores:
    """A classifier of the target's labels, on the target: what adaptation could reach at best.

    The same network, steps and augmentation: where one pair's target is another's source, the two
    share their runs.
    """
    return _alone(TARGET_ONLY, _third(params), digits, params.seeds)


def adversarial(params: DANNParams, digits: DigitData) -> Scores:
    """DANN, which is handed the target's images without their labels."""
    return _alone(DANN, _third(params), digits, params.seeds)


def pixel_level(params: PixelDAParams, digits: DigitData) -> Scores:
    """PixelDA, which is handed the target's images without their labels."""
    return _alone(PIXELDA, _fourth(params), digits, params.seeds)


def all_methods(params: PixelDAParams, digits: DigitData) -> list[Scores]:
    """Source only, DANN, PixelDA, AdaMatch, target only; chapter 3's runs are used again."""
    # First what chapter 3 does not train, which may run beside this one.
    trains = _fourth(params) | _third(params.dann)
    found = {scores.method: scores for scores in score(trains, digits, params.seeds)}
    return [found[name] for name in (SOURCE_ONLY, DANN, PIXELDA, ADAMATCH, TARGET_ONLY)]


# --- tables -----------------------------------------------------------------------------------

HEADINGS = {"original": original.heading(), "others": "ten others"}


def together(methods: Sequence[Scores]) -> pd.DataFrame:
    """The frames of several methods under each other."""
    return pd.concat([scores.frame for scores in methods], ignore_index=True)


def beside_original(scores: Scores) -> pd.DataFrame:
    """A method's accuracies beside the original's and other solutions'.

    Returns:
        One row a pair: pair, accuracy (mean ± standard deviation), seeds, original (NaN if it has
        no such pair), others (lowest to highest).
    """
    numbers = original.report()
    theirs = numbers["digits"]["accuracy"][scores.method]
    others = numbers["others"].get(scores.method, {})
    rows = []
    for pair, group in scores.frame.groupby("pair", sort=False):
        reach = others.get(pair)
        rows.append(
            {
                "pair": pair,
                "accuracy": significance.mean_text(group["accuracy"], 3),
                "seeds": len(group),
                "original": theirs.get(pair, np.nan),
                "others": f"{reach[0]:g} to {reach[1]:g}" if reach else "–",
            }
        )
    return pd.DataFrame(rows)


def gap_closed(methods: Sequence[Scores]) -> pd.DataFrame:
    """How much of the way from source only to target only a method goes.

    Args:
        methods: source only, the method, target only.

    Returns:
        One row a pair and seed: pair, seed, low, method, high (accuracies), closed: 0 is no better
        than source only, 1 as good as the target's own labels; NaN where there is no gap.
    """
    low, method, high = (s.frame.set_index(["pair", "seed"])["accuracy"] for s in methods)
    frame = pd.DataFrame({"low": low, "method": method, "high": high}).loc[low.index]
    return frame.assign(closed=_share(frame["low"], frame["method"], frame["high"])).reset_index()


def _share(low: pd.Series, method: pd.Series, high: pd.Series) -> pd.Series:
    return (method - low) / (high - low).where(high > low)


def _closed(shares: pd.Series) -> str:
    """Mean ± deviation of the share of the gap that is closed, over the seeds that have a gap."""
    return mean_of(shares.dropna())


def gap_summary(gaps: pd.DataFrame) -> pd.DataFrame:
    """One row a pair: pair, gap (mean), DANN's closed (mean ± deviation), original (its own)."""
    theirs = pd.DataFrame(original.accuracies()).T
    shares = _share(theirs.loc[SOURCE_ONLY], theirs.loc[DANN], theirs.loc[TARGET_ONLY])
    return pd.DataFrame(
        {
            "pair": pair,
            "gap": (group["high"] - group["low"]).mean(),
            "closed": _closed(group["closed"]),
            "original": shares.get(pair, np.nan),
        }
        for pair, group in gaps.groupby("pair", sort=False)
    )


def gap_sentence(gaps: pd.DataFrame) -> str:
    """What share of the gap DANN closes, pair by pair."""
    parts = [
        f"nothing on {pair}, where there is none"
        if closed.isna().all()
        else f"{_closed(closed)} on {pair}"
        for pair, closed in gaps.groupby("pair", sort=False)["closed"]
    ]
    return f"Of the gap between source only and target only DANN closes {', '.join(parts)}."


def standings(methods: Sequence[Scores]) -> pd.DataFrame:
    """Every method on every pair, beside the original.

    Args:
        methods: source only first, target only last.

    Returns:
        One row a pair and method: pair, method, accuracy and closed (share of the gap), mean ±
        standard deviation; original and original_closed, NaN where it has none.
    """
    low, *between, high = methods
    theirs = pd.DataFrame(original.accuracies()).T
    closed = {s.method: gap_closed([low, s, high]).groupby("pair")["closed"] for s in between}
    rows = []
    for pair in low.frame["pair"].unique():
        known = theirs.get(pair, pd.Series(dtype=float))
        for scores in methods:
            mine = scores.frame.loc[scores.frame["pair"] == pair, "accuracy"]
            ends = [known.get(name, np.nan) for name in (low.method, scores.method, high.method)]
            inside = scores.method in closed
            rows.append(
                {
                    "pair": pair,
                    "method": scores.method,
                    "accuracy": significance.mean_text(mine, 3),
                    "closed": _closed(closed[scores.method].get_group(pair)) if inside else "–",
                    "original": ends[1],
                    "original_closed": _share(*map(pd.Series, ends)).item() if inside else np.nan,
                }
            )
    return pd.DataFrame(rows)


def best(methods: Sequence[Scores]) -> dict[str, list[str]]:
    """Pair -> the methods of the highest mean accuracy, source only and target only aside.

    Nearly always it is one.
    """
    means = together(methods[1:-1]).groupby(["pair", "method"], sort=False)["accuracy"].mean()
    return {
        pair: group.index[group == group.max()].get_level_values("method").tolist()
        for pair, group in means.groupby("pair", sort=False)
    }


def best_sentence(methods: Sequence[Scores], worth: pd.DataFrame) -> str:
    """On which pairs AdaMatch alone reads the most, and what its labels are worth on the others.

    Args:
        methods: as for `standings`.
        worth: of `pseudo_label_worth`.
    """
    winners = best(methods)
    won = [pair for pair, names in winners.items() if names == [ADAMATCH]]
    text = f"{ADAMATCH} reads the most of the target on {len(won)} of {len(winners)} pairs."
    for pair, names in winners.items():
        if ADAMATCH in names:
            text += f" On {pair} {' and '.join(names)} read equally much." * (len(names) > 1)
            continue
        here = worth[worth["pair"] == pair][["covered", "right_covered", "right"]].mean()
        text += f" On {pair} {' and '.join(names)} read{'s' * (len(names) == 1)} more. There "
        if not here["covered"]:
            text += f"{ADAMATCH} ends sure of nothing: it has learned from the source alone."
            continue
        text += (
            f"{ADAMATCH} ends sure of {here['covered']:.0%} of the target's training images, and "
            f"{1 - here['right_covered']:.0%} of those pseudo-labels are wrong: what it learns of "
            "the target is no better than that."
        )
    return text


def setbacks(low: Scores, methods: Sequence[Scores], digits: DigitData) -> list[str]:
    """Where a method is judged worse than source only, and what it reads of its own source.

    That tells a run that has not learned the labels from one that has lost them in adapting.
    """
    found = []
    judged = {
        scores.method: dict(zip(digits.pairs, helps(low, scores)["verdict"], strict=True))
        for scores in methods
    }
    for pair, scores in itertools.product(digits.pairs, methods):
        if judged[scores.method][pair] != significance.FAILS:
            continue
        home, usual = scores.at_home(digits, pair), low.at_home(digits, pair)
        found.append(
            f"On {pair} {scores.method} reads less of the target than {low.method} does. Of its "
            f"own source's held-out images it reads {home:.1%}, {low.method} {usual:.1%}: "
            + (
                "it has learned the labels less well, and with them what it passes on to the "
                "target."
                if usual - home > 0.05
                else "it knows its source about as well; the target is lost in adapting."
            )
        )
    return found


def pseudo_label_worth(scores: Scores, digits: DigitData) -> pd.DataFrame:
    """AdaMatch's pseudo-labels for the target's training images at the end of training.

    The true labels serve to judge them here, after training, and nothing else.

    Returns:
        One row a pair and seed: pair, seed, covered (share that it is sure of), right_covered
        (share of those that is right), right (share of all that would be).
    """
    rows = []
    for (name, seed), run in scores.trained.items():
        pair = digits.pairs[name]
        labels, sure = run.method.pseudo_labels(pair.adaptation())
        right = (labels == pair.target.train.labels).double()
        rows.append(
            {
                "pair": name,
                "seed": seed,
                "covered": sure.double().mean().item(),
                "right_covered": right[sure].mean().item(),
                "right": right.mean().item(),
            }
        )
    return pd.DataFrame(rows)


def over_seeds(frame: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """One row a pair: some columns' mean ± standard deviation over the seeds, as percentages."""
    return pd.DataFrame(
        {"pair": pair} | {column: mean_of(group[column]) for column in columns}
        for pair, group in frame.groupby("pair", sort=False)
    )


def helps(before: Scores, after: Scores) -> pd.DataFrame:
    """For each pair the claim that a method is better than another, by `significance.compare`."""
    frame = together([before, after]).rename(columns={"method": "variant"})
    return pd.DataFrame(
        significance.better(
            rows,
            f"{after.method} is better than {before.method} on {pair}",
            before.method,
            after.method,
        )
        for pair, rows in frame.groupby("pair", sort=False)
    )


def verdicts(claims: Sequence[tuple[Scores, Scores]]) -> pd.DataFrame:
    """`helps` for each (before, after) under each other."""
    return pd.concat([helps(*claim) for claim in claims], ignore_index=True)


def in_short(methods: Sequence[Scores]) -> str:
    """What the methods between source only and target only read on each pair, in a sentence."""
    pairs = methods[0].frame["pair"].unique()
    parts = []
    for scores in methods[1:-1]:
        means = scores.frame.groupby("pair")["accuracy"].mean()
        parts.append(f"{scores.method} " + " / ".join(f"{means[pair]:.1%}" for pair in pairs))
    return f"Of the target's digits on {' / '.join(pairs)} read: {'; '.join(parts)}."


def verdict_sentence(verdicts: pd.DataFrame, after: str, before: str) -> str:
    """How many of the pairs bear out that one method is better than another."""
    counts = verdicts["verdict"].value_counts()
    held, failed, rest = (
        counts.get(verdict, 0)
        for verdict in (significance.HOLDS, significance.FAILS, significance.UNTOLD)
    )
    text = f"That {after} is better than {before} holds on {held} of {len(verdicts)} pairs"
    if failed:
        text += f", on {failed} it is the other way round"
    if rest:
        text += f", on {rest} it cannot be told"
    return f"{text}."


def domain_accuracies(scores: Scores) -> pd.DataFrame:
    """One row a run: pair, seed, accuracy (the domain classifier's at the end, held out)."""
    return pd.DataFrame(
        {
            "pair": pair,
            "seed": seed,
            "accuracy": run.history["validation_domain_accuracy"].dropna().iloc[-1],
        }
        for (pair, seed), run in scores.trained.items()
    )


def told_apart(accuracies: pd.DataFrame) -> pd.DataFrame:
    """`domain_accuracies` over the seeds: pair, accuracy as text, told: in words."""
    rows = []
    for pair, values in accuracies.groupby("pair", sort=False)["accuracy"]:
        mean = values.mean()
        reach = abs(mean - 0.5)
        told = "hardly" if reach < 0.1 else "often" if reach < 0.4 else "nearly always"
        if told != "hardly" and mean < 0.5:
            told += ", the wrong way round"
        rows.append({"pair": pair, "accuracy": significance.mean_text(values, 3), "told": told})
    return pd.DataFrame(rows)


def confusions(scores: Scores, digits: DigitData) -> dict[str, np.ndarray]:
    """Pair -> share of the test images of each digit (row) that is taken for each (column)."""
    from sklearn.metrics import confusion_matrix  # for one notebook, and slow to load

    found = {}
    for (name, _), predicted in scores.predictions.items():
        labels = digits.pairs[name].target.test.labels
        counts = confusion_matrix(labels, predicted, labels=range(CLASSES))
        found[name] = found.get(name, 0) + counts
    return {name: c / np.maximum(c.sum(1, keepdims=True), 1) for name, c in found.items()}


def long_form(matrices: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """One row a pair, digit and answer: pair, digit, taken_for, share."""
    return pd.DataFrame(
        {"pair": pair, "digit": digit, "taken_for": taken, "share": share}
        for pair, matrix in matrices.items()
        for (digit, taken), share in np.ndenumerate(matrix)
    )


def hardest(scores: Scores, matrices: Mapping[str, np.ndarray]) -> str:
    """The hardest pair, and each pair's commonest confusion, in words."""
    means = scores.frame.groupby("pair", sort=False)["accuracy"].mean()
    parts = []
    for pair, matrix in matrices.items():
        digit, taken, share = worst_confusion(matrix)
        parts.append(f"on {pair} {share:.0%} of the {digit}s are taken for {taken}s")
    lead = (
        f"Least is read on {means.idxmin()}: {means.min():.1%}; guessing "
        f"would read {1 / CLASSES:.0%}. "
    )
    return lead + f"The commonest confusions: {'; '.join(parts)}."


def joined(histories: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Histories under each other, with the pair in a column of its own."""
    frames = [history.assign(pair=pair) for pair, history in histories.items()]
    return pd.concat(frames, ignore_index=True)


def worst_confusion(matrix: np.ndarray) -> tuple[int, int, float]:
    """The digit that is most often taken for another one: digit, taken for, share."""
    wrong = matrix - np.diag(np.diag(matrix))
    digit, taken = np.unravel_index(wrong.argmax(), wrong.shape)
    return int(digit), int(taken), float(wrong[digit, taken])


def mean_of(values: Sequence[float]) -> str:
    """Mean ± standard deviation as percentages; a dash where there is nothing to measure."""
    mean, spread = significance.mean_and_spread(values)
    if np.isnan(mean):
        return "–"
    return f"{mean:.1%}" + ("" if np.isnan(spread) else f" ± {spread:.1%}")
