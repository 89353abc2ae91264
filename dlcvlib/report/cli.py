"""A reproducible report on VAE, DCGAN, DANN and PixelDA.

  python -m dlcvlib report                          the quick report on the embedded data
  python -m dlcvlib report --data folder:hw3_data   on your own images
  python -m dlcvlib report --only 1-3,1-4 --set vae.kld_weight=0.5
  python -m dlcvlib sweep --profile full            all its runs side by side, here or on a cluster
  python -m dlcvlib train vae --profile original    a chapter's main runs, which notebooks then use
  python -m dlcvlib params vae --profile original   what can be set, and to what it is set
  python -m dlcvlib compare report other/report     two reports side by side; do they agree?
  python -m dlcvlib export runs/vae-0123456789      a trained run's networks, for use elsewhere

Profiles: smoke is a check; quick, the default, is for two CPU cores; full has the best settings
known; original has the homework's.

A report consists of report.html, report.pdf, results.json, the executed notebooks and every figure
with its values; index.html leads to all of them. What is up to date is reused; an interrupted
report continues where it stopped.

On several devices: accelerate launch -m dlcvlib train vae --profile original
"""

# The text above is what `--help` shows. Modules are imported where they are needed, so that help
# and errors come at once.
import argparse
import functools
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlcvlib.config.paths import ROOT, absolute
from dlcvlib.training import tracking
from dlcvlib.utils.errors import UserError

if TYPE_CHECKING:
    from dlcvlib.config.schema import Chapter

CHAPTERS = ("vae", "gan", "dann", "pixelda")
PROFILES = ("smoke", "quick", "full", "original")


def parser() -> argparse.ArgumentParser:
    """The whole command line, without importing anything heavy."""
    chosen = argparse.ArgumentParser(add_help=False)
    chosen.add_argument("--profile", default="quick", choices=PROFILES, help="default: quick")
    chosen.add_argument("--data", help="embedded (default), folder:PATH or torchvision:PATH")
    chosen.add_argument("--runs-dir", type=absolute, help="trained runs and prepared data")
    chosen.add_argument("--seed", type=int, help="first seed of every chapter")
    several = {"action": "append", "default": [], "metavar": "CHAPTER.NAME=VALUE"}
    chosen.add_argument("--set", **several, help="such as vae.kld_weight=0.5; can be repeated")
    trackers = ", ".join(tracking.TRACKERS)
    chosen.add_argument("--log-with", metavar="TRACKER", help=f"train with one of {trackers}")
    raw = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser("python -m dlcvlib", description=__doc__, formatter_class=raw)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    report = commands.add_parser("report", parents=[chosen], help="run the notebooks headless")
    sweep = commands.add_parser("sweep", parents=[chosen], help="train all runs, side by side")
    for command in (report, sweep):
        several = "problems or chapters, such as 1-1,1-3,2"
        command.add_argument("--only", metavar="N-M,…", help=several)
        address = "of an existing Dask cluster that trains: its address or file"
        command.add_argument("--scheduler", default="", help=address)
    by_cores = "(default: one a GPU, else by cores, up to 4)"
    report.add_argument("--jobs", type=count, help=f"runs and notebooks at once {by_cores}")
    report.add_argument("--cell-timeout", type=count, help="seconds until a cell counts as hanging")
    report.add_argument("--explain", action="store_true", help="only say what would run, and why")
    report.add_argument("--authors", nargs="+", default=[], metavar="NAME", help="of the report")
    report.add_argument("--out", type=absolute, default=ROOT / "report", help="default: report")

    sweep.add_argument("--workers", type=count, help=f"runs at once {by_cores}")
    sweep.add_argument("--run", metavar="NAME", help="train only this one, such as vae-0123456789")
    sweep.add_argument("--dry-run", action="store_true", help="only list runs and their cost")
    sweep.add_argument("--export", choices=["slurm"], help="only write an array job for it")
    sweep.add_argument("--out", type=absolute, default=absolute("sweep"), help="default: sweep")

    train = commands.add_parser("train", parents=[chosen], help="train without notebooks")
    params = commands.add_parser("params", parents=[chosen], help="show a chapter's parameters")
    for command in (train, params):
        command.add_argument("chapter", choices=CHAPTERS)
    params.add_argument("--write-notebooks", action="store_true", help="update parameters cells")

    export = commands.add_parser("export", help="a trained run's networks for use elsewhere")
    export.add_argument("run", type=absolute, help="its folder, such as runs/vae-0123456789")
    export.add_argument("--out", type=absolute, help="default: export/, and the run's name")
    whose = {"type": absolute, "default": ROOT / "report"}
    export.add_argument("--report", **whose, help="for the model card (default: report)")

    compare = commands.add_parser("compare", help="show two reports; status 1 if they do not agree")
    for name in "ab":
        compare.add_argument(name, type=absolute, help="a report's folder, or its results.json")
    out = {"type": absolute, "default": absolute("compare.html")}
    compare.add_argument("--out", **out, help="default: compare.html")
    return top


def count(text: str) -> int:
    """At least 1, of an argument's text."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return number


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status is 0 only if all that was asked for was done."""
    words = sys.argv[1:] if argv is None else list(argv)
    arguments = parser().parse_args(words, argparse.Namespace(words=words))
    try:
        if tracker := getattr(arguments, "log_with", None):
            tracking.check(tracker)
            os.environ[tracking.VARIABLE] = tracker
        act = {"report": _report, "sweep": _sweep, "train": _train, "params": _params}
        act |= {"compare": _compare, "export": _export}
        return act[arguments.command](arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        how = str(error) or "run the same command again to continue"
        print(f"\nstopped: {how}", file=sys.stderr)
        return 130


def chapters(arguments: argparse.Namespace) -> dict[str, "Chapter"]:
    """The parameters of all chapters, as the command line has them.

    2-4 compares with the VAE of chapter 1, and chapter 4 with chapter 3, whatever has been changed
    there; which images are used is their own.
    """
    from dlcvlib.config.profiles import parse_assignments
    from dlcvlib.config.schema import CHAPTERS, load

    changes = parse_assignments(arguments.set)
    given = {n: v for n in ("data", "runs_dir") if (v := getattr(arguments, n)) is not None}
    for chapter, own in changes.items():
        of_profile = load(arguments.profile, chapter).model_dump()
        used = {
            f"{other}_changes": of_profile[f"{other}_changes"] | changes[other]
            for other in CHAPTERS[chapter].used
        }
        changes[chapter] = _seeds(arguments.seed, of_profile) | used | given | own
    return {chapter: load(arguments.profile, chapter, own) for chapter, own in changes.items()}


def _seeds(first: int | None, params: Mapping[str, Any]) -> dict[str, Any]:
    """`--seed` as a chapter has it: where it has several, they count up from it."""
    return {
        name: [first + n for n in range(len(value))] if isinstance(value, list) else first
        for name, value in params.items()
        if first is not None and name.endswith(("seed", "seeds"))
    }


def _report(arguments: argparse.Namespace) -> int:
    params = chapters(arguments)
    from dlcvlib.report import execute, uptodate

    out = Path(arguments.out)
    if not arguments.explain:
        execute.refuse(out)
    only, fingerprints, gpus = _inspect(arguments, params)
    if arguments.explain:
        lines = [*uptodate.explain(uptodate.plan(params, fingerprints, only, out))]
        for folder in sorted({params[name].runs_dir for name in fingerprints}):
            lines += uptodate.stale(Path(folder))
        print(*lines, sep="\n")
        return 0
    command = "python -m dlcvlib " + shlex.join(arguments.words)
    about = {"profile": arguments.profile, "command": command, "authors": arguments.authors}
    how = {"only": only, "jobs": arguments.jobs or execute.side_by_side(gpus), "gpus": gpus}
    how |= {"cell_timeout": arguments.cell_timeout, "scheduler": arguments.scheduler, "out": out}
    return 0 if execute.make_report(params, fingerprints, about, **how) else 1


def _inspect(
    arguments: argparse.Namespace, params: Mapping[str, "Chapter"]
) -> tuple[list[str], dict[str, str], int]:
    """The problems asked for, fingerprints of the data that they need, and the number of GPUs."""
    from dlcvlib.report import progress, uptodate
    from dlcvlib.utils.process import run_in_subprocess

    only = [] if arguments.only is None else [name.strip() for name in arguments.only.split(",")]
    # A folder may well hold faces only, or digits only.
    problems = uptodate.chosen(only)
    used = {name: params[name] for name in map(uptodate.chapter_of, problems)}
    # Of the faces' problems the first three need none, not even for the features of a KID.
    attributes = any("1-3" < problem < "3" for problem in problems)
    uptodate.declared()  # mistakes in notebooks and a wrong folder, before the data are prepared
    # torch and the images take hundreds of megabytes; what follows needs neither.
    with progress.lines("preparing the data"):
        return only, *run_in_subprocess("dlcvlib.data.source:inspect_data", used, attributes)


def _sweep(arguments: argparse.Namespace) -> int:
    params = chapters(arguments)
    from dlcvlib.report import execute, progress, sweep, uptodate

    only, fingerprints, gpus = _inspect(arguments, params)
    tasks = uptodate.plan(params, fingerprints, only, ROOT / "report")
    notebooks = {task.problem: task.cells for task in tasks if task.trains}
    with progress.lines("planning the runs"):
        runs, failed = sweep.plan(notebooks, timed=arguments.dry_run)
    if arguments.run:
        if arguments.run not in runs:
            raise UserError(f"--run: no notebook needs {arguments.run} with this code and data")
        runs = {arguments.run: runs[arguments.run]}
    missing = {name: run for name, run in runs.items() if not run.done}
    print(f"runs: {len(runs)} needed, {len(runs) - len(missing)} done")
    if arguments.dry_run:
        print(sweep.table(runs))
    elif arguments.export and not arguments.run:  # a task of the job has both
        print(*sweep.export(missing, arguments.words, Path(arguments.out)), sep="\n")
    elif missing:
        workers = min(arguments.workers or execute.side_by_side(gpus), len(missing))
        where = {"workers": workers, "gpus": gpus, "scheduler": arguments.scheduler}
        environment = functools.partial(execute.kernel_environment, workers)
        failed |= sweep.train(missing, notebooks, environment, **where)
    for name, error in failed.items():
        print(f"\n{name} failed: {error}", file=sys.stderr)
    return 1 if failed else 0


def _train(arguments: argparse.Namespace) -> int:
    params = chapters(arguments)[arguments.chapter]
    import torch
    from accelerate import PartialState

    # Without a GPU, processes that were launched together would not find each other by themselves.
    PartialState(cpu=not torch.accelerator.is_available())

    from dlcvlib.data.source import load
    from dlcvlib.report import progress

    with progress.lines("preparing data or evaluating"):
        data = load(params)
        for line in getattr(data, "left_out", ()):
            print(line)
        runs = _main_runs(arguments.chapter, params, data)
    for run in {run.name: run for run in runs}.values():
        print(f"{run.name}: {run.settings.steps} steps in {run.seconds:.0f} s")
        print(run.history.iloc[-1].to_string())
    # Otherwise its threads may release tensors after Python has ended, which aborts the process.
    PartialState().destroy_process_group()
    return 0


def _main_runs(chapter: str, params: Any, data: Any) -> list[Any]:
    """The runs that the notebooks of a chapter share, trained or loaded."""
    from dlcvlib.evaluation import adaptation, features
    from dlcvlib.methods.dcgan import DCGAN
    from dlcvlib.methods.vae import VAE
    from dlcvlib.training.runs import train_or_load

    if chapter == "vae":
        return [train_or_load(VAE, params.settings, data, params.runs_dir)]
    if chapter == "gan":
        measured = features.measured(params, data)
        return [train_or_load(DCGAN, params.settings, measured, params.runs_dir)]
    methods = adaptation.ALL if chapter == "pixelda" else adaptation.CHAPTER_3
    return list(adaptation.train(params, data, methods).values())


def _params(arguments: argparse.Namespace) -> int:
    from dlcvlib.config.profiles import write_parameters_cells
    from dlcvlib.config.schema import as_text

    if arguments.write_notebooks:
        print(f"{write_parameters_cells(arguments.chapter)} notebooks changed")
        return 0
    params = chapters(arguments)[arguments.chapter]
    for name, value in params.model_dump().items():
        print(f"{name}: {as_text(value)}  # {type(params).model_fields[name].description}")
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    from dlcvlib.report.compare import compare

    agree = compare(*map(Path, (arguments.a, arguments.b, arguments.out)))
    print(arguments.out)
    return 0 if agree else 1


def _export(arguments: argparse.Namespace) -> int:
    from dlcvlib.report.export import export

    run = Path(arguments.run)
    out = Path(arguments.out or Path("export", run.name))
    print(*export(run, out, Path(arguments.report)), sep="\n")
    return 0
