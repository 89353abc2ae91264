"""How cost grows: with the number of images, the batch, the steps, and the points of a t-SNE."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch
from matplotlib import pyplot as plt
from matplotlib.ticker import LogLocator, NullLocator

from benchmarks.contenders import fit_rate
from dlcvlib.config import profiles
from dlcvlib.data.types import LabelledImages
from dlcvlib.evaluation import latent
from dlcvlib.methods.classifier import Classifier

SIZES = {
    "training images": (1_000, 10_000, 50_000, 200_000),
    "batch size": (8, 16, 32, 64, 128, 256),
    "steps": (50, 100, 200, 400),
    "t-SNE points": (250, 500, 1_000, 2_000),
}
UNITS = {
    "training images": "ms per step",
    "batch size": "ms per image",
    "steps": "s",
    "t-SNE points": "s",
}
STEPS = 60


def measure(rounds: int) -> pd.DataFrame:
    """One row per quantity, size and round: cost in the unit of `UNITS`; sizes alternate.

    Chapter 3's classifier represents the methods: `fit` and the batches are the same for all.
    """
    settings = profiles.load("quick", "dann").classifier(0)
    images = torch.randint(0, 256, (max(SIZES["training images"]), 3, 32, 32), dtype=torch.uint8)
    labels = torch.arange(len(images)) % 10
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def rate(count: int, batch_size: int, steps: int) -> float:
            data = SimpleNamespace(train=LabelledImages(images[:count], labels[:count]))
            chosen = settings.replace(batch_size=batch_size)
            return fit_rate(Classifier, chosen, data, steps, folder / "run")

        def tsne(points: int, turn: int) -> float:
            features = torch.randn(points, 256, generator=torch.Generator().manual_seed(turn))
            started = time.perf_counter()
            latent.tsne(features, 30.0, 0, folder)
            return time.perf_counter() - started

        batch = settings.batch_size
        costs: dict[str, Callable[[int, int], float]] = {
            "training images": lambda size, _: 1e3 / rate(size, batch, STEPS),
            "batch size": lambda size, _: 1e3 / rate(10_000, size, STEPS) / size,
            "steps": lambda size, _: size / rate(10_000, batch, size),
            "t-SNE points": tsne,
        }
        rows = [
            {"quantity": quantity, "size": size, "round": turn, "cost": cost(size, turn)}
            for quantity, cost in costs.items()
            for turn in range(rounds)
            for size in SIZES[quantity]
        ]
    return pd.DataFrame(rows)


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Median and quartiles of the cost, and the exponent of its growth from the previous size."""
    groups = frame.groupby(["quantity", "size"], sort=False)["cost"]
    table = groups.quantile([0.25, 0.5, 0.75]).unstack(sort=False)
    table.columns = ["low", "cost", "high"]
    table = table.reset_index()
    table["unit"] = table["quantity"].map(UNITS)
    before = table.groupby("quantity", sort=False)[["size", "cost"]].shift()
    size_ratio, cost_ratio = table["size"] / before["size"], table["cost"] / before["cost"]
    table["exponent"] = np.log(cost_ratio) / np.log(size_ratio)
    return table[["quantity", "size", "cost", "unit", "low", "high", "exponent"]]


def plot(frame: pd.DataFrame) -> plt.Figure:
    """Cost over size on two logarithmic axes, one panel per quantity."""
    figure, axes = plt.subplots(1, len(SIZES), figsize=(12, 2.8), layout="constrained")
    for ax, (quantity, rows) in zip(axes, frame.groupby("quantity", sort=False), strict=True):
        ax.loglog(rows["size"], rows["cost"], "k.", markersize=4)
        medians = rows.groupby("size")["cost"].median()
        ax.loglog(medians.index, medians)
        ax.set_xlabel(quantity)
        ax.set_ylabel(UNITS[quantity])
        # Sizes as measured; a range of less than a decade would otherwise have no labels.
        ax.set_xticks(medians.index, [f"{size:,}" for size in medians.index])
        ax.set_xticks([], minor=True)
        low, high = rows["cost"].min(), rows["cost"].max()
        ax.set_ylim(min(low, high / 4) / 1.3, high * 1.3)
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_minor_locator(NullLocator())
        ax.yaxis.set_major_formatter("{x:g}")
    return figure
