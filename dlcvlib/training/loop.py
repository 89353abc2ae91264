"""`fit`: the one training loop, with progress, history, checkpoints and exact resume.

All randomness of step t comes from (seed, t), so that no generator's state needs to be saved. A run
that is killed and resumed, any number of times, is therefore identical to an uninterrupted one, bit
for bit on one device.

Under `accelerate launch` each process takes its share of every batch, and all together compute what
one would (`processes`), with losses that are means over the processes.
"""

import math
import time
from collections.abc import Callable, Sequence

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from torch import Tensor

from dlcvlib.training.method import Batch, Method, Progress, gradient_norms
from dlcvlib.training.processes import Share
from dlcvlib.utils.bars import bar
from dlcvlib.utils.errors import UserError
from dlcvlib.utils.stopwatch import timed

CHECKPOINT_SECONDS = 30.0
CHECKPOINT_COST = 0.6
"""Seconds that a checkpoint may take; slower ones are written less often, to keep them at 2%."""
LOG_POINTS = 200
LOG_STEPS_MAX = 50
VALIDATIONS = 10
VALIDATION_STEPS = 80
WARM_UP = 0.1
"""Share of a cosine schedule over which the learning rate rises."""


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
    batch: Callable[[int], Batch],
    progress: Progress,
    save: Callable[[], None],
    evaluate: Callable[[], dict[str, float]],
    log: Callable[[dict[str, float]], None],
) -> None:
    """Train a method up to `settings.steps` steps.

    Args:
        method: on its device; trained in place.
        batch: step -> the batch of that step, on the device; may draw random numbers.
        progress: where to continue; updated in place.
        save: writes a checkpoint of method and progress.
        evaluate: returns the measures of a validation by name; called about `VALIDATIONS` times
            along the way, less often in short runs.
        log: gets each row of the history.

    Raises:
        UserError: if a loss or a gradient is not finite, or a batch cannot be divided among the
            processes (see `Share`).
    """
    settings, state, label = method.settings, PartialState(), method.name
    steps, schedule = settings.steps, settings.learning_rate_schedule
    log_every = min(max(1, steps // LOG_POINTS), LOG_STEPS_MAX)
    validate_every = math.ceil(steps / min(VALIDATIONS, max(2, steps // VALIDATION_STEPS)))
    begun = time.monotonic() - progress.seconds
    saved, save_at = progress.step, time.monotonic() + CHECKPOINT_SECONDS
    shown = bar(total=steps, initial=progress.step, desc=label)
    with shown, timed(f"training: {label}"):
        while progress.step < steps:
            # 1. One step, whose randomness depends on seed and step alone.
            method.step = progress.step
            seed_step(settings.seed, method.step)
            factor = learning_rate_factor(schedule, method.step / steps)
            learning_rate = factor * settings.learning_rate
            for name, optimizer in method.optimizers.items():
                optimizer.param_groups[0]["lr"] = learning_rate * method.rates.get(name, 1.0)
            with Share(batch(method.step), settings.sync_batch_norm) as share:
                losses = method.training_step(share.batch)
            terms = losses | gradient_norms(method.optimizers)
            values = torch.stack([value.detach().float() for value in terms.values()])
            progress.pending.append(reduce(values, "mean"))
            method.step = progress.step = progress.step + 1
            # 2. Whatever is logged or saved is finite.
            validating = progress.step % validate_every == 0 or progress.step == steps
            logging = progress.step % log_every == 0 or validating
            saving = time.monotonic() > save_at
            if logging or saving:
                table = _finite(progress, list(terms), saved)
            # 3. The history, with validation at regular intervals.
            if logging:
                means = dict(zip(terms, table.mean(0).tolist(), strict=True))
                row = {"step": float(progress.step), **means, "learning_rate": learning_rate}
                if validating:
                    with timed("validation"):
                        values = evaluate()
                    row |= {f"validation_{name}": value for name, value in values.items()}
                progress.history.append(row)
                log(row)
                progress.pending = []
                shown.set_postfix({name: row[name] for name in losses}, refresh=False)
                shown.update(progress.step - shown.n)
            progress.seconds = time.monotonic() - begun
            # 4. A checkpoint, if one is due.
            if saving:
                started = time.monotonic()
                if state.is_main_process:
                    save()
                saved = progress.step
                now = time.monotonic()
                save_at = now + CHECKPOINT_SECONDS * max(1.0, (now - started) / CHECKPOINT_COST)


def _finite(progress: Progress, terms: Sequence[str], saved: int) -> Tensor:
    """The pending losses and gradient norms: (steps, terms).

    Raises:
        UserError: naming the first step and term that is not finite, and the checkpoint `saved`.
    """
    table = torch.stack(progress.pending)
    if table.isfinite().all():
        return table
    row, column = (~table.isfinite()).nonzero()[0].tolist()
    raise UserError(
        f"{terms[column]} is not finite at step {progress.step - len(table) + row + 1} (last "
        f"checkpoint: step {saved}): try a lower learning_rate or precision: fp32"
    )
