"""`fit`: the one training loop, with progress, history, checkpoints and exact resume.

All randomness of step t comes from (seed, t), so that no generator's state needs to be saved. A run
that is killed and resumed, any number of times, is therefore identical to an uninterrupted one, bit
for bit on one device.

Under `accelerate launch` each process takes its share of every batch, with its own noise, and the
gradients are averaged; BatchNorm sees one process's share, and the history has the main process's
losses. Such a run must be resumed with the same number of processes.
"""

import contextlib
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor
from tqdm.auto import tqdm

from dlcvlib.training.method import Batch, Method, Progress, gradient_norms
from dlcvlib.utils.errors import UserError
from dlcvlib.utils.stopwatch import timed

CHECKPOINT_SECONDS = 30.0
CHECKPOINT_COST = 0.6
"""Seconds that a checkpoint may take; slower ones are written less often, to keep them at 2%."""
LOG_POINTS = 200
LOG_STEPS_MAX = 50
GRADIENT = "gradient_"
"""Prefix of a gradient norm in the history."""
VALIDATIONS = 10
VALIDATION_STEPS = 80
WARM_UP = 0.1
"""Share of a cosine schedule over which the learning rate rises."""


class TrainingError(UserError):
    """A run that cannot continue; names the step and the last good checkpoint."""


class Stopped(KeyboardInterrupt):
    """An interrupt that arrived between two steps, after which a checkpoint was saved."""


def learning_rate_factor(schedule: str, progress: float) -> float:
    """Share of the peak learning rate at a progress in 0..1.

    "halvings" is the original's: after epochs 150, 300 and 450 of 1,000.
    """
    if schedule == "halvings":
        return 0.5 ** sum(progress >= mark for mark in (0.15, 0.30, 0.45))
    if schedule == "cosine":
        warm_up = min(1.0, (progress + 1e-3) / WARM_UP)
        return warm_up * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))
    return 1.0


def seed_step(seed: int, step: int) -> None:
    """Seed torch's generators for one step; neighbouring seeds and steps do not collide."""
    number = (seed * 0x9E3779B1 + step * 0x85EBCA77 + 1) % 2**63
    if torch.accelerator.is_available():
        torch.manual_seed(number)
    else:
        # `torch.manual_seed` would record the call stack, for a GPU that may be initialised later.
        torch.default_generator.manual_seed(number)


def fit(
    method: Method,
    data: Any,
    batch: Callable[[int], Batch],
    progress: Progress,
    *,
    save: Callable[[], None],
    before_validation: Callable[[int], None] = lambda step: None,
) -> None:
    """Train a method up to `settings.steps` steps.

    Args:
        method: on its device; trained in place.
        data: passed to its `evaluate`.
        batch: step -> the batch of that step, on the device; may draw random numbers.
        progress: where to continue; updated in place.
        save: writes a checkpoint of method and progress.
        before_validation: called with the step before each validation, of which there are about
            `VALIDATIONS` along the way, fewer in short runs.

    Raises:
        UserError: if a batch cannot be divided among the processes.
        TrainingError: if a loss or a gradient is not finite.
        Stopped: on an interrupt, after saving a checkpoint.
    """
    settings, label = method.settings, method.name
    rank, processes = PartialState().process_index, progress.processes
    log_every = min(max(1, settings.steps // LOG_POINTS), LOG_STEPS_MAX)
    validations = min(VALIDATIONS, max(2, settings.steps // VALIDATION_STEPS))
    validate_every = math.ceil(settings.steps / validations)
    started = saved = time.monotonic()
    last_good, pause, before = progress.step, CHECKPOINT_SECONDS, progress.seconds
    with (
        _interrupts() as interrupted,
        _progress_line(label, settings.steps, progress.step) as show,
        timed(f"training: {label}"),
    ):
        while progress.step < settings.steps:
            # 1. One step, whose randomness depends on seed and step alone.
            method.step = progress.step
            seed_step(settings.seed, progress.step * processes + rank)
            factor = _set_learning_rate(method)
            losses = method.training_step(_share(batch(progress.step), rank, processes))
            norms = gradient_norms(method.optimizers)
            losses |= {GRADIENT + name: norm for name, norm in norms.items()}
            progress.pending.append({name: value.detach() for name, value in losses.items()})
            progress.step += 1
            method.step = progress.step
            # 2. The history, with validation at regular intervals.
            last = progress.step == settings.steps
            validating = progress.step % validate_every == 0 or last
            if progress.step % log_every == 0 or validating:
                row = _flush(progress, last_good)
                row["learning_rate"] = factor * settings.learning_rate
                if validating:
                    with timed("validation"):
                        before_validation(progress.step)
                        values = method.evaluate(data)
                    row |= {f"validation_{name}": value for name, value in values.items()}
                show(progress.step, row)
            # 3. A checkpoint, if one is due or the user wants to stop.
            now, stopping = time.monotonic(), interrupted()
            progress.seconds = before + now - started
            if stopping or (now - saved > pause and not last):
                _finite(progress, last_good)
                save()
                saved, last_good = time.monotonic(), progress.step
                pause = CHECKPOINT_SECONDS * max(1.0, (saved - now) / CHECKPOINT_COST)
            if stopping:
                raise Stopped(
                    f"{label} stopped after step {progress.step} of {settings.steps}; "
                    "run it again to continue from there"
                )


def _set_learning_rate(method: Method) -> float:
    """Set the learning rate for the method's step; returns its share of the peak."""
    settings = method.settings
    factor = learning_rate_factor(settings.learning_rate_schedule, method.step / settings.steps)
    for optimizer in method.optimizers.values():
        for group in optimizer.param_groups:
            group["lr"] = factor * settings.learning_rate
    return factor


def _share(batch: Batch, rank: int, processes: int) -> Batch:
    """The part of a batch for one of several processes.

    Raises:
        UserError: if the parts would not have equal sizes of at least two rows.
    """
    if processes == 1:
        return batch
    if any(len(rows) % processes or len(rows) < 2 * processes for rows in batch):
        raise UserError(
            f"a batch of {len(batch[0])} cannot be divided evenly, with at least two each, among "
            f"{processes} processes: start fewer, or change batch_size"
        )
    return tuple(rows.chunk(processes)[rank] for rows in batch)


def _flush(progress: Progress, last_good: int) -> dict[str, float]:
    """Average the pending losses into one row of the history.

    Raises:
        TrainingError: if one of them is not finite.
    """
    means = _finite(progress, last_good).mean(0).tolist()
    row = {"step": float(progress.step)} | dict(zip(progress.pending[0], means, strict=True))
    progress.history.append(row)
    progress.pending = []
    return row


def _finite(progress: Progress, last_good: int) -> Tensor:
    """The pending losses: (steps, terms).

    Raises:
        TrainingError: naming the first step and term that is not finite.
    """
    if not progress.pending:
        return torch.empty(0)
    names = list(progress.pending[0])
    # Values of schedules, or from a checkpoint, may be on a different device from the losses.
    where = next(iter(progress.pending[-1].values())).device
    rows = [torch.stack([row[n].float().to(where) for n in names]) for row in progress.pending]
    table = torch.stack(rows)
    if table.isfinite().all():
        return table
    at, term = (~table.isfinite()).nonzero()[0].tolist()
    what = f"the loss {names[term]!r}"
    if names[term].startswith(GRADIENT):
        what = f"the gradient of {names[term].removeprefix(GRADIENT)!r}"
    good = f"step {last_good}" if last_good else "none yet"
    raise TrainingError(
        f"{what} is not finite at step {progress.step - len(progress.pending) + at + 1} "
        f"(last good checkpoint: {good}); try a lower learning_rate or precision: fp32"
    )


@contextlib.contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Hold back Ctrl-C until a step is complete; a second one gets through at once."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    received = threading.Event()
    previous = signal.getsignal(signal.SIGINT)

    def note(*_: Any) -> None:
        received.set()
        signal.signal(signal.SIGINT, previous)

    signal.signal(signal.SIGINT, note)
    try:
        yield received.is_set
    finally:
        signal.signal(signal.SIGINT, previous)


@contextlib.contextmanager
def _progress_line(
    label: str, steps: int, begin: int
) -> Iterator[Callable[[int, Mapping[str, float]], None]]:
    """One progress line; in a headless notebook, a status file that the report shows instead.

    DLCV_STATUS names the folder of these files, one per process.
    """
    status = os.environ.get("DLCV_STATUS")
    with tqdm(total=steps, initial=begin, desc=label, leave=False, disable=bool(status)) as bar:
        started = time.monotonic()

        def show(step: int, row: Mapping[str, float]) -> None:
            hidden = ("step", "learning_rate", GRADIENT)
            losses = {k: f"{v:.4g}" for k, v in row.items() if not k.startswith(hidden)}
            bar.set_postfix(losses, refresh=False)
            bar.update(step - bar.n)
            if status:
                rate = (step - begin) / (time.monotonic() - started)
                left = tqdm.format_interval((steps - step) / rate)
                text = f"{label} {step}/{steps} · {rate:.1f} steps/s · {left} left"
                with contextlib.suppress(OSError):
                    Path(status, str(os.getpid())).write_text(text, encoding="utf-8")

        yield show
