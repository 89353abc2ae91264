"""One way to compare settings: the same method, one change at a time, over several seeds."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from dlcvlib.config.schema import TrainingSettings
from dlcvlib.training.method import Method
from dlcvlib.training.runs import Data, Run, train_or_load


@dataclass(frozen=True)
class Variants:
    """Runs that differ in one thing.

    Attributes:
        frame: one row per run: variant, seed and what was measured.
        runs: (variant, seed) -> run.
    """

    frame: pd.DataFrame
    runs: dict[tuple[str, int], Run]

    def first(self) -> dict[str, Run]:
        """Each variant's run with the first seed."""
        seed = next(iter(self.runs))[1]
        return {name: run for (name, s), run in self.runs.items() if s == seed}


def train_variants(
    method: type[Method],
    base: TrainingSettings,
    changes: Mapping[str, Mapping[str, Any]],
    seeds: Sequence[int],
    data: Data,
    runs_dir: Path | str,
    measure: Callable[[str, Run], Mapping[str, float]],
) -> Variants:
    """Train a method for each variant and seed, or load it, and measure every run.

    Args:
        method: a class of `dlcvlib.methods`.
        base: settings that all variants share.
        changes: variant -> settings in which it differs from `base`.
        seeds: every variant is trained with each.
        data: what the method trains on.
        runs_dir: folder of the runs.
        measure: variant and run -> measures by name.
    """
    jobs = {
        (name, seed): (method, base.replace(seed=seed, **change), data)
        for name, change in changes.items()
        for seed in seeds
    }
    runs = {key: train_or_load(*job, runs_dir) for key, job in jobs.items()}
    frame = pd.DataFrame(
        {"variant": name, "seed": seed, **measure(name, run)} for (name, seed), run in runs.items()
    )
    return Variants(frame, runs)
