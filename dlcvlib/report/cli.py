"""A reproducible report on VAE, DCGAN, DANN and PixelDA.

  python -m dlcvlib report                          the quick report on the embedded data
  python -m dlcvlib report --data folder:hw3_data   on your own images
  python -m dlcvlib report --only 1-3,1-4 --set vae.kld_weight=0.5
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
    report.add_argument("--only", metavar="N-M,…", help="problems or chapters, such as 1-1,1-3,2")
    report.add_argument("--jobs", type=count, help="notebooks at once (default: by cores, up to 4)")
    report.add_argument("--cell-timeout", type=count, help="seconds until a cell counts as hanging")
    report.add_argument("--explain", action="store_true", help="only say what would run, and why")
    report.add_argument("--authors", nargs="+", default=[], metavar="NAME", help="of the report")
    report.add_argument("--out", type=absolute, default=ROOT / "report", help="default: report")

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

    compare = commands.add_parser(
        "compare",
        help="show two reports side by side",
        description="Exit status 0 if they agree within their spread over the seeds, 1 if not.",
    )
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
    arguments = parser().parse_args(argv)
    try:
        if tracker := getattr(arguments, "log_with", None):
            tracking.check(tracker)
            os.environ[tracking.VARIABLE] = tracker
        act = {"report": _report, "train": _train, "params": _params}
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
    given = {"data": arguments.data, "runs_dir": arguments.runs_dir}
    given = {name: value for name, value in given.items() if value is not None}
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
    if first is None:
        return {}
    seeds = {name: value for name, value in params.items() if name.endswith(("seed", "seeds"))}
    return {
        name: [first + n for n in range(len(value))] if isinstance(value, list) else first
        for name, value in seeds.items()
    }


def _report(arguments: argparse.Namespace) -> int:
    params = chapters(arguments)
    from dlcvlib.report import execute, progress, uptodate
    from dlcvlib.utils.process import run_in_subprocess

    out = Path(arguments.out)
    only = [] if arguments.only is None else [name.strip() for name in arguments.only.split(",")]
    # A folder may well hold faces only, or digits only.
    problems = uptodate.chosen(only)
    used = {name: params[name] for name in map(uptodate.chapter_of, problems)}
    # Of the faces' problems the first three need none, not even for the features of a KID.
    attributes = any("1-3" < problem < "3" for problem in problems)
    uptodate.declared()  # mistakes in notebooks and a wrong folder, before the data are prepared
    if not arguments.explain:
        execute.refuse(out)
    # torch and the images take hundreds of megabytes; what follows needs neither.
    with progress.lines(lambda _: "preparing the data"):
        fingerprints, gpu = run_in_subprocess("dlcvlib.data.source:inspect_data", used, attributes)
    if arguments.explain:
        print(uptodate.explain(uptodate.plan(params, fingerprints, only, out)))
        for folder in sorted({chapter.runs_dir for chapter in used.values()}):
            print(uptodate.explain_runs(Path(folder)))
        return 0
    command = "python -m dlcvlib " + shlex.join(sys.argv[1:])
    about = {"profile": arguments.profile, "command": command, "authors": arguments.authors}
    jobs = arguments.jobs or execute.side_by_side(gpu)
    how = {"only": only, "jobs": jobs, "cell_timeout": arguments.cell_timeout, "out": out}
    return 0 if execute.make_report(params, fingerprints, about, **how) else 1


def _train(arguments: argparse.Namespace) -> int:
    params = chapters(arguments)[arguments.chapter]
    from accelerate import PartialState

    from dlcvlib.data.source import load
    from dlcvlib.report import progress

    with progress.lines(lambda status: progress.training(status) or "preparing data or evaluating"):
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
