"""How a device is used: rates by precision, kernels and compiler, within ten minutes.

Each variant of our loop is set against the plain loop, and its arithmetic against the device's
peak: floating-point operations of a step's convolutions and matrix products, forward and backward,
as a share of what a large matrix product reaches in the same precision.
"""

import dataclasses
import tempfile
import time
from pathlib import Path

import pandas as pd
import torch
from matplotlib import pyplot as plt
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.contenders import Contender, contenders, now
from dlcvlib.training import device

VARIANTS = {
    "fp32": {"precision": "fp32"},
    "tf32": {"precision": "tf32"},
    "bf16": {"precision": "bf16"},
    "bf16, fastest kernels": {"precision": "bf16", "deterministic": False},
    "bf16, compiled": {"precision": "bf16", "compile": "always"},
}
SECONDS = 540.0
"""After which nothing more is begun; the first round has every variant before any is repeated."""
SIDE = 8192 if torch.accelerator.is_available() else 1024
PRODUCTS = 20


def peak(precision: str) -> float:
    """Floating-point operations per second of large matrix products."""
    where = device.default()
    device.choose_kernels(deterministic=True, tf32=precision == "tf32")
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    square = torch.randn(SIDE, SIDE, device=where, dtype=dtype)
    _ = square @ square
    started = now()
    for _ in range(PRODUCTS):
        _ = square @ square
    return PRODUCTS * 2 * SIDE**3 / (now() - started)


def operations(contender: Contender) -> int:
    """Floating-point operations of a training step."""
    step = contender.step_alone()
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def measure(rounds: int, steps: int) -> pd.DataFrame:
    """One row per round, method and variant: steps per second, and what they are compared with."""
    rows, deadline = [], time.monotonic() + SECONDS
    peaks = {precision: peak(precision) for precision in ("fp32", "tf32", "bf16")}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        methods = contenders("fp32", folder)
        work = {method.name: operations(method) for method in methods}
        for turn in range(rounds):
            plain = {method.name: method.plain_rate(steps) for method in methods}
            for variant, changes in VARIANTS.items():
                for method in methods:
                    if time.monotonic() > deadline:
                        print(f"out of time in round {turn + 1}, at {variant} {method.name}")
                        return pd.DataFrame(rows)
                    changed = method.settings.replace(**{"compile": "never"} | changes)
                    ours = dataclasses.replace(method, settings=changed)
                    precision, rate = ours.precision(), ours.our_rate(steps, folder / "run")
                    row = {"method": method.name, "variant": variant, "precision": precision}
                    row |= {"round": turn, "batch_size": changed.batch_size, "ours": rate}
                    row["against_plain"] = rate / plain[method.name]
                    row["share_of_peak"] = rate * work[method.name] / peaks[precision]
                    rows.append(row)
                    print(f"{variant} {method.name}: {rate:.1f} steps/s", flush=True)
    return pd.DataFrame(rows)


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Medians over the rounds, one row per method and variant."""
    frame = frame.assign(**{"images/s": frame["ours"] * frame["batch_size"]})
    groups = frame.groupby(["method", "variant", "precision"], sort=False)
    return groups[["images/s", "against_plain", "share_of_peak"]].median().reset_index()


def plot(frame: pd.DataFrame) -> plt.Figure:
    """Both ratios, bars by method and variant."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    table = summary(frame)
    for ax, column in zip(axes, ("against_plain", "share_of_peak"), strict=True):
        bars = table.pivot_table(column, "method", "variant", sort=False)
        bars.plot.bar(ax=ax, legend=ax is axes[0], xlabel="", ylabel=column.replace("_", " "))
    return figure
