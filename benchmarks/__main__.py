"""`python -m benchmarks`: ratios, measured side by side, as tables, a JSON file and plots.

Rates that are compared are measured one right after the other, `--rounds` times, plain loops in a
process of their own; medians and quartiles are reported. Nothing else should run on the machine
meanwhile.
"""

import argparse
import platform
from pathlib import Path

import matplotlib as mpl
import pandas as pd
import torch
from matplotlib import pyplot as plt

from benchmarks import gpu, growth, memory, quality, speed
from dlcvlib.config import paths
from dlcvlib.training import device
from dlcvlib.utils import fingerprints, storage

HERE = Path(__file__).parent
PARTS = ("speed", "growth", "memory")
ON_REQUEST = ("gpu", "quality")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "parts",
        nargs="*",
        metavar="PART",
        help=f"some of {', '.join(PARTS)} (the default), gpu (ten minutes at most; --rounds 1 "
        f"suffices) and quality (hours). Chapters after quality ({', '.join(quality.PROBLEMS)}) "
        "limit it to them; the others' results are kept",
    )
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="default: 5")
    parser.add_argument("--steps", type=int, default=60, metavar="N", help="default: 60")
    parser.add_argument("--out", type=Path, default=HERE, metavar="DIR", help="default: benchmarks")
    arguments = parser.parse_args()
    parts = [name for name in arguments.parts if name not in quality.PROBLEMS]
    chapters = [name for name in arguments.parts if name in quality.PROBLEMS]
    if unknown := set(parts) - {*PARTS, *ON_REQUEST}:
        known = ", ".join(PARTS + ON_REQUEST)
        parser.error(f"unknown part {', '.join(sorted(unknown))} (parts: {known})")
    if chapters and "quality" not in parts:
        parser.error(f"{', '.join(chapters)}: chapters belong to quality")
    mpl.use("agg")
    out = storage.make_dir(arguments.out)
    # Parts that are not measured this time are left unchanged.
    result = storage.sealed(out / "results.json") or {}

    def keep(part: str, table: pd.DataFrame, frame: pd.DataFrame, figure: plt.Figure) -> None:
        """Print and write a part's results."""
        print(table.to_string(index=False, float_format="{:.3g}".format))
        # JSON has no NaN.
        tables = {"table": table, "measured": frame}
        result[part] = {"machine": machine()} | {
            name: one.astype(object).where(one.notna(), None).to_dict("records")
            for name, one in tables.items()
        }
        figure.savefig(out / f"{part}.svg", bbox_inches="tight")
        storage.write_sealed(out / "results.json", result)

    for part in parts or PARTS:
        if part == "speed":
            frame = speed.measure(arguments.rounds, arguments.steps)
            keep(part, speed.summary(frame), frame, speed.plot(frame))
        elif part == "gpu":
            frame = gpu.measure(arguments.rounds, arguments.steps)
            keep(part, gpu.summary(frame), frame, gpu.plot(frame))
        elif part == "growth":
            frame = growth.measure(arguments.rounds)
            keep(part, growth.summary(frame), frame, growth.plot(frame))
        elif part == "quality":
            # Written after each chapter: an interruption loses none that is finished.
            for chapter in chapters or quality.PROBLEMS:
                kept = result.get(part, {}).get("measured", [])
                frame = quality.measure(chapter, paths.ROOT / "runs")
                frame = quality.together(pd.DataFrame(kept), chapter, frame)
                keep(part, quality.summary(frame), frame, quality.plot(frame))
        else:
            frame = memory.measure()
            keep(part, frame, frame, memory.plot(frame))


def machine() -> dict[str, str | int]:
    """The machine and versions measured on."""
    return {
        "threads": torch.get_num_threads(),
        "device": str(device.default()),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        **fingerprints.versions("torch", "torchvision"),
    }


if __name__ == "__main__":
    main()
