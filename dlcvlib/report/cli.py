"""The command line: `python -m dlcvlib report | train | params`."""

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from dlcvlib.utils.environment import ROOT
from dlcvlib.utils.errors import UserError

CHAPTERS = ("vae", "gan", "dann", "pixelda")
DESCRIPTION = """\
A reproducible report on VAE, DCGAN, DANN and PixelDA.

  python -m dlcvlib report                          the quick report on the embedded data
  python -m dlcvlib report --data folder:hw3_data   on your own images
  python -m dlcvlib report --only 1-3,1-4 --set vae.kld_weight=0.5
  python -m dlcvlib params vae --profile original   what can be set, and to what it is set
"""


def parser() -> argparse.ArgumentParser:
    """The whole command line, without importing anything heavy."""
    top = argparse.ArgumentParser(
        prog="python -m dlcvlib",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    chosen = argparse.ArgumentParser(add_help=False)
    group = chosen.add_argument_group("what is run")
    group.add_argument(
        "--profile",
        default="quick",
        choices=("smoke", "quick", "full", "original"),
        help="smoke: a check that all runs; quick (default): worth reading, from two CPU cores; "
        "full: the best settings known; original: the homework's",
    )
    group.add_argument(
        "--data",
        metavar="D",
        help="embedded (default: what is drawn here or shipped with packages), folder:PATH (the "
        "homework's layout) or torchvision:PATH (its data sets, downloaded there)",
    )
    group.add_argument(
        "--runs-dir", metavar="DIR", help="trained runs and prepared data (default: runs)"
    )
    group.add_argument("--seed", type=int, metavar="N", help="first seed of every chapter")
    group.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="CHAPTER.NAME=VALUE",
        dest="assignments",
        help="change a parameter, such as vae.kld_weight=0.5; may be given several times",
    )

    report = commands.add_parser(
        "report",
        parents=[chosen],
        help="run the notebooks and write the report",
        description="Run the notebooks headless and write report.html, report.pdf, results.json, "
        "the executed notebooks and every figure with its values. What is up to date is reused; "
        "an interrupted report goes on where it stopped.",
    )
    report.add_argument(
        "--only",
        metavar="N-M,…",
        help="only these problems, or chapters, such as 1-1,1-3 or 2",
    )
    report.add_argument(
        "--jobs",
        type=count,
        metavar="N",
        help="notebooks run side by side, which share the cores out among them (default: one a "
        "core, at most four; with a GPU, one)",
    )
    report.add_argument(
        "--cell-timeout",
        type=count,
        metavar="S",
        help="seconds after which a notebook's cell counts as hanging (default: never)",
    )
    report.add_argument(
        "--explain",
        action="store_true",
        help="prepare the data, then run nothing: say what would run and why, and what would be "
        "used again",
    )
    report.add_argument("--out", type=Path, metavar="DIR", help="default: report/ in the project")

    train = commands.add_parser(
        "train",
        parents=[chosen],
        help="train a chapter's main runs, without notebooks",
        description="Train a chapter's main runs, or find them trained; the notebooks use them. "
        "For several devices: accelerate launch -m dlcvlib train vae --profile original",
    )
    train.add_argument("chapter", choices=CHAPTERS)

    params = commands.add_parser(
        "params",
        parents=[chosen],
        help="show a chapter's parameters, or refresh the notebooks' parameters cells",
        description="Show a chapter's parameters with their values and meaning, as YAML that a "
        "file under params/ or papermill's -f takes.",
    )
    params.add_argument("chapter", choices=CHAPTERS)
    params.add_argument(
        "--write-notebooks",
        action="store_true",
        help="put the values of quick into the parameters cells of the chapter's notebooks",
    )
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
        _go_to_the_project(arguments)
        return {"report": _report, "train": _train, "params": _params}[arguments.command](arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print(f"\nstopped: {str(error) or 'run the same command again to go on'}", file=sys.stderr)
        return 130


def _go_to_the_project(arguments: argparse.Namespace) -> None:
    """Work where the notebooks' kernels do; paths that were typed stay what they were."""
    from dlcvlib.config import profiles

    here = Path.cwd()

    def from_there(path: str | Path) -> str:
        path = os.path.expanduser(path)  # noqa: PTH111 - which leaves a name that nobody has
        return os.path.normpath(path if here == ROOT else here / path)

    def source(data: str) -> str:
        kind, colon, path = data.partition(":")
        return kind + colon + from_there(path) if path else data

    os.chdir(ROOT)
    arguments.changes = profiles.parse_assignments(arguments.assignments)
    for name, here_too in (("data", source), ("runs_dir", from_there)):
        if given := getattr(arguments, name):
            setattr(arguments, name, here_too(given))
        for changes in arguments.changes.values():
            if isinstance(given := changes.get(name), str):
                changes[name] = here_too(given)
    if arguments.command == "report":
        arguments.out = Path(from_there(arguments.out)) if arguments.out else Path("report")


def _parameters(arguments: argparse.Namespace) -> dict:
    from dlcvlib.config import profiles, schema

    changes = arguments.changes
    everywhere = {"data": arguments.data, "runs_dir": arguments.runs_dir}
    everywhere = {name: value for name, value in everywhere.items() if value is not None}
    # 2-4 compares with the VAE of chapter 1, and chapter 4 with chapter 3, whatever has been
    # changed there; which images are used is their own.
    for chapter, other, own in (
        ("gan", "vae", schema.FaceParams),
        ("pixelda", "dann", schema.DigitParams),
    ):
        theirs = _seeds(arguments, other) | changes[other]
        kept = {name: value for name, value in theirs.items() if name not in own.model_fields}
        named = f"{other}_changes"
        before = getattr(profiles.load(arguments.profile, chapter), named)
        changes[chapter] = {named: before | kept} | changes[chapter]
    return {
        chapter: profiles.load(
            arguments.profile,
            chapter,
            everywhere | _seeds(arguments, chapter) | changes[chapter],
        )
        for chapter in profiles.CHAPTERS
    }


def _seeds(arguments: argparse.Namespace, chapter: str) -> dict:
    """`--seed` as a chapter knows it: where it has several, they count up from it."""
    from dlcvlib.config import profiles

    first = arguments.seed
    if first is None:
        return {}
    chosen = profiles.load(arguments.profile, chapter).model_dump()
    several = {
        name: [first + number for number in range(len(chosen[name]))]
        for name in ("seeds", "ablation_seeds")
        if name in chosen
    }
    return several | ({"seed": first} if "seed" in chosen else {})


def _report(arguments: argparse.Namespace) -> int:
    chapters = _parameters(arguments)
    from dlcvlib.report import execute, uptodate
    from dlcvlib.utils import memory
    from dlcvlib.utils.process import apart

    wanted = [name.strip() for name in (arguments.only or "").split(",") if name.strip()]
    if arguments.only is not None and not wanted:
        raise UserError("--only names no problem: such as --only 1-1,1-3 or --only 2")
    # A folder may well hold faces only, or digits only.
    numbers = {int(problem[0]) for problem in uptodate.chosen(wanted)}
    needed = [name for number, name in enumerate(chapters, 1) if number in numbers]
    if not arguments.explain:
        execute.refuse(arguments.out)  # before the data, which may take long
    # torch and the images take hundreds of megabytes; what follows needs neither.
    fingerprints, gpu = apart("dlcvlib.data.source:look", {name: chapters[name] for name in needed})
    if arguments.explain:
        print(uptodate.explain(uptodate.plan(chapters, fingerprints, wanted, arguments.out)))
        for folder in sorted({chapters[name].runs_dir for name in needed}):
            print(uptodate.explain_runs(Path(folder)))
        return 0
    # A setting of the whole process, and this one is ours: nothing in it trains.
    memory.keep_no_large_blocks()
    complete = execute.make_report(
        chapters,
        fingerprints,
        profile=arguments.profile,
        only=wanted,
        jobs=arguments.jobs or execute.side_by_side(gpu),
        cell_timeout=arguments.cell_timeout,
        out=arguments.out,
        command="python -m dlcvlib " + shlex.join(sys.argv[1:]),
    )
    return 0 if complete else 1


def _train(arguments: argparse.Namespace) -> int:
    from accelerate import PartialState

    from dlcvlib.data.source import load

    params = _parameters(arguments)[arguments.chapter]
    data = load(params)
    if arguments.chapter == "vae":
        from dlcvlib.methods import vae

        runs = [vae.train_or_load(params.settings, data, params.runs_dir)]
    elif arguments.chapter == "gan":
        from dlcvlib.evaluation import features
        from dlcvlib.methods import dcgan

        extractor = features.extractor(params, data)
        runs = [dcgan.train_or_load(params.settings, data, extractor, params.runs_dir)]
    else:
        from dlcvlib.evaluation import adaptation

        for line in data.left_out:
            print(line)
        if arguments.chapter == "dann":
            methods = (adaptation.source_only, adaptation.adversarial, adaptation.target_only)
            scores = [method(params, data) for method in methods]
        else:
            scores = adaptation.all_methods(params, data)
        print(adaptation.together(scores).to_string(index=False))
        runs = [run for found in scores for run in found.runs]
    for run in {run.name: run for run in runs}.values():
        print(f"{run.name}: {run.settings.steps} steps in {run.seconds:.0f} s")
        print(run.history.iloc[-1].to_string())
    # Else its threads may still let go of tensors where Python is no more, which aborts a process.
    PartialState().destroy_process_group()
    return 0


def _params(arguments: argparse.Namespace) -> int:
    from dlcvlib.config import profiles

    if arguments.write_notebooks:
        print(f"{profiles.write_parameters_cells(arguments.chapter)} notebooks changed")
        return 0
    chosen = _parameters(arguments)[arguments.chapter]
    for name, value in chosen.model_dump().items():
        print(f"{name}: {profiles.as_text(value)}  # {type(chosen).model_fields[name].description}")
    return 0
