"""`fit`: the one training loop. Devices, precision, progress, history, checkpoints, resume.

A method is an object with `modules`, `optimizers` and `step(batch) -> dict of scalar tensors`
(the step moves its optimisers itself, by `move`).

All randomness of step t comes from (seed, t): weights aside, no generator has a state that must
survive. A run that is killed and resumed, as often as you like, is therefore the uninterrupted
run, bit for bit on one device.

Under `accelerate launch` each process takes its share of every batch, with noise of its own, and
the gradients are averaged; BatchNorm knows a process's share alone, and the history has the main
process's losses. Such a run goes on with as many processes as it began with.
"""

import contextlib
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from torch import Tensor, nn
from tqdm.auto import tqdm

from dlcvlib.config.schema import TrainingSettings
from dlcvlib.training import device
from dlcvlib.training.device import Method
from dlcvlib.utils import storage
from dlcvlib.utils.errors import UserError
from dlcvlib.utils.stopwatch import timed

CHECKPOINT_SECONDS = 30.0
CHECKPOINT_COST = 0.6
"""Seconds that a checkpoint may take; slower ones come less often, so that they stay at 2 %."""
LOG_POINTS = 200
LOG_STEPS_MAX = 50
GRADIENT = "gradient_"
"""Prefix of a gradient's length in the history."""
VALIDATIONS = 10
VALIDATION_STEPS = 80
WARM_UP = 0.1
"""Share of a cosine schedule in which the learning rate rises."""


class TrainingError(UserError):
    """A run that cannot go on, with the step and the last good checkpoint named."""


class Stopped(KeyboardInterrupt):
    """An interrupt that arrived between two steps and was saved."""


def learning_rate_factor(schedule: str, progress: float) -> float:
    """Share of the highest learning rate at a progress in 0..1 (a pure function).

    "halvings" is the original's: after epochs 150, 300 and 450 of 1,000.
    """
    if schedule == "halvings":
        return 0.5 ** sum(progress >= mark for mark in (0.15, 0.30, 0.45))
    if schedule == "cosine":
        warm_up = min(1.0, (progress + 1e-3) / WARM_UP)
        return warm_up * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))
    return 1.0


def schedule_marks(schedule: str, steps: int) -> dict[str, float]:
    """What happens to the learning rate along a run: description -> step."""
    if schedule == "halvings":
        return {f"halved at step {steps * m:,.0f}": steps * m for m in (0.15, 0.30, 0.45)}
    if schedule == "cosine":
        return {f"end of the warm-up (step {steps * WARM_UP:,.0f})": steps * WARM_UP}
    return {}


def seed_step(seed: int, step: int) -> None:
    """Seed torch's generators for one step; neighbouring seeds and steps do not collide."""
    number = (seed * 0x9E3779B1 + step * 0x85EBCA77 + 1) % 2**63
    if torch.accelerator.is_available():
        torch.manual_seed(number)
    else:
        # `torch.manual_seed` would note the whole stack, for a GPU that might yet be woken.
        torch.default_generator.manual_seed(number)


def fit(
    method: Method,
    batch: Callable[[int], Any],
    settings: TrainingSettings,
    folder: Path,
    *,
    label: str,
    evaluate: Callable[[], dict[str, float]] | None = None,
) -> dict[str, Any]:
    """Train a method for `settings.steps` steps, going on from `folder`'s checkpoint if any.

    Args:
        method: modules in their initial state; trained in place.
        batch: step -> the batch of that step, on the device; may draw random numbers.
        settings: steps, seed, learning rate and its schedule, precision.
        folder: where checkpoints are kept.
        label: the run's name in the progress line.
        evaluate: called about `VALIDATIONS` times along the way, in short runs less often; its
            values join the history.

    Returns:
        {"history": rows as dicts, "seconds": time spent training, "device", "precision", …}.

    Raises:
        UserError: if batches cannot be shared out among the processes, or others have begun it.
        TrainingError: if a loss or a gradient is not finite.
        Stopped: on an interrupt, after saving a checkpoint.
    """
    processes = PartialState().num_processes
    checkpoint = _checkpoint(folder)
    if checkpoint and checkpoint[1]["processes"] != processes:
        raise UserError(
            f"{folder} was begun by {checkpoint[1]['processes']} processes: go on with as many, or "
            "remove it"
        )
    # A run goes on as it began, whatever a trial of the precisions would find today.
    state = Progress(
        checkpoint[1]["precision"] if checkpoint else device.choose(settings, method, batch)
    )
    precision, why = state.precision
    accelerator = device.prepare(method, precision)
    modules, optimizers = method.modules, method.optimizers
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    storage.make_dir(folder)
    if checkpoint:
        state.restore(*checkpoint, method)
    del checkpoint  # else it would be held all along: three times the model's weights

    log_every = min(max(1, settings.steps // LOG_POINTS), LOG_STEPS_MAX)
    validations = min(VALIDATIONS, max(2, settings.steps // VALIDATION_STEPS))
    validate_every = math.ceil(settings.steps / validations)
    started = saved = time.monotonic()
    pause = CHECKPOINT_SECONDS
    before = state.seconds
    with (
        _interrupts() as interrupted,
        _progress(label, settings.steps, state.step) as progress,
        timed(f"training: {label}"),
    ):
        while state.step < settings.steps:
            rank = accelerator.process_index
            seed_step(settings.seed, state.step * processes + rank)
            factor = learning_rate_factor(
                settings.learning_rate_schedule, state.step / settings.steps
            )
            for optimizer in optimizers.values():
                for group in optimizer.param_groups:
                    group["lr"] = factor * group["initial_lr"]
            method.done = state.step
            drawn = batch(state.step)
            losses = method.step(_share(drawn, rank, processes) if processes > 1 else drawn)
            losses |= gradient_norms(method.optimizers)
            state.pending.append({name: value.detach() for name, value in losses.items()})
            state.step += 1
            method.done = state.step

            last = state.step == settings.steps
            validating = evaluate is not None and (state.step % validate_every == 0 or last)
            if state.step % log_every == 0 or last or validating:
                row = state.flush(folder)
                row["learning_rate"] = factor * settings.learning_rate
                if validating:
                    with timed("validation"):
                        values = evaluate()
                    row |= {f"validation_{name}": value for name, value in values.items()}
                progress(state.step, row)
            now, stopping = time.monotonic(), interrupted()
            if stopping or (now - saved > pause and not last):
                state.seconds = before + now - started
                if accelerator.is_main_process:
                    state.save(folder, method)
                saved = time.monotonic()
                pause = CHECKPOINT_SECONDS * max(1.0, (saved - now) / CHECKPOINT_COST)
            if stopping:
                raise Stopped(
                    f"{label} stopped after step {state.step} of {settings.steps}; "
                    "run it again to go on from there"
                )
    for name, module in modules.items():
        setattr(method, name, accelerator.unwrap_model(module, keep_fp32_wrapper=False))
    return {
        "history": state.history,
        "seconds": before + time.monotonic() - started,
        "device": device.name_of(accelerator.device),
        "precision": precision,
        "precision_why": why,
        "threads": torch.get_num_threads(),
        "processes": processes,
    }


class Progress:
    """How far a run has come: what a checkpoint holds besides the method's own state.

    Args:
        precision: what it is trained in, and why, as `device.choose` says.
    """

    def __init__(self, precision: tuple[str, str]) -> None:
        self.precision = precision
        self.step = 0
        self.seconds = 0.0
        self.history: list[dict[str, float]] = []
        self.pending: list[dict[str, Tensor]] = []

    def flush(self, folder: Path) -> dict[str, float]:
        """Average what has been noted since the last flush into one row of the history.

        Raises:
            TrainingError: as `finite`.
        """
        means = self.finite(folder).mean(0).tolist()
        row = {"step": float(self.step)} | dict(zip(self.pending[0], means, strict=True))
        self.history.append(row)
        self.pending = []
        return row

    def finite(self, folder: Path) -> Tensor:
        """What has been noted since the last flush: (steps, terms).

        Raises:
            TrainingError: naming the first step and term that is not finite.
        """
        names = list(self.pending[0])
        # A schedule's value, or what a checkpoint held, may lie on another device than a loss.
        device = next(iter(self.pending[-1].values())).device
        rows = [torch.stack([row[n].float().to(device) for n in names]) for row in self.pending]
        table = torch.stack(rows)
        if table.isfinite().all():
            return table
        at, term = (~table.isfinite()).nonzero()[0].tolist()
        what = f"the loss {names[term]!r}"
        if names[term].startswith(GRADIENT):
            what = f"the gradient of {names[term].removeprefix(GRADIENT)!r}"
        pointer = _pointer(folder)
        good = f"step {pointer['step']} in {folder}" if pointer else "none yet"
        raise TrainingError(
            f"{what} is not finite at step {self.step - len(self.pending) + at + 1} "
            f"(last good checkpoint: {good}); try a lower learning_rate or precision: fp32"
        )

    def save(self, folder: Path, method: Method) -> None:
        """Write a checkpoint, then the pointer that makes it the current one.

        Raises:
            TrainingError: as `finite`; the last good checkpoint then stays.
        """
        if self.pending:
            self.finite(folder)
        tensors = {f"module.{k}": v for k, v in module_tensors(method).items()}
        plain_state: dict[str, Any] = {}
        for name, optimizer in method.optimizers.items():
            for index, slots in optimizer.state_dict()["state"].items():
                for slot, value in slots.items():
                    key = f"optimizer.{name}.{index}.{slot}"
                    if isinstance(value, Tensor):
                        tensors[key] = value
                    else:
                        plain_state[key] = value
        meta = {
            "precision": self.precision,
            "processes": PartialState().num_processes,
            "step": self.step,
            "seconds": self.seconds,
            "history": self.history,
            "pending": [{k: float(v) for k, v in row.items()} for row in self.pending],
            "optimizer_values": plain_state,
        }
        old = _pointer(folder)
        path = folder / f"checkpoint-{self.step}.safetensors"
        storage.write_tensors(path, tensors, meta)
        pointer = {"file": path.name, "sha256": storage.sha256(path), "step": self.step}
        storage.write_sealed(folder / "checkpoint.json", pointer)
        if old and old["file"] != path.name:
            (folder / old["file"]).unlink(missing_ok=True)

    def restore(self, tensors: dict[str, Tensor], meta: dict[str, Any], method: Method) -> None:
        """Take up what `save` wrote."""
        load_modules(method, {k[7:]: v for k, v in tensors.items() if k.startswith("module.")})
        values = tensors | meta["optimizer_values"]
        for name, optimizer in method.optimizers.items():
            state: dict[int, dict[str, Any]] = {}
            for key, value in values.items():
                if key.startswith(f"optimizer.{name}."):
                    index, slot = key.removeprefix(f"optimizer.{name}.").split(".")
                    state.setdefault(int(index), {})[slot] = value
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": state, "param_groups": groups})
            _match_layout(optimizer)
        self.step, self.seconds, self.history = meta["step"], meta["seconds"], meta["history"]
        self.pending = [{k: torch.tensor(v) for k, v in row.items()} for row in meta["pending"]]


def adam(modules: Iterable[nn.Module], settings: TrainingSettings) -> torch.optim.Adam:
    """Adam over several modules' parameters."""
    return torch.optim.Adam(
        [parameter for module in modules for parameter in module.parameters()],
        lr=settings.learning_rate,
        betas=tuple(settings.adam_betas),
        weight_decay=settings.weight_decay,
        fused=True,
    )


def move(loss: Tensor, optimizers: Collection[torch.optim.Optimizer]) -> None:
    """One step of these optimisers down the loss."""
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    loss.backward()
    for optimizer in optimizers:
        if PartialState().num_processes > 1:
            _average(_gradients(optimizer))
        optimizer.step()


def _gradients(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    return [weight.grad for weight in weights if weight.grad is not None]


def _average(gradients: Sequence[Tensor]) -> None:
    """Over the processes, in one message; in place."""
    mean = reduce(torch.cat([gradient.flatten() for gradient in gradients]), "mean")
    for gradient, part in zip(gradients, mean.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def gradient_norms(optimizers: Mapping[str, torch.optim.Optimizer]) -> dict[str, Tensor]:
    """Length of the gradient that each optimiser moved by last: GRADIENT + its name -> scalar."""
    return {
        GRADIENT + name: torch.nn.utils.get_total_norm(_gradients(optimizer))
        for name, optimizer in optimizers.items()
    }


def _share(batch: Sequence[Tensor], rank: int, processes: int) -> list[Tensor]:
    """What one of several processes takes of a batch.

    Raises:
        UserError: if they would not all have as much, and two rows or more.
    """
    if any(len(rows) % processes or len(rows) < 2 * processes for rows in batch):
        raise UserError(
            f"a batch of {len(batch[0])} cannot be shared out evenly, two or more each, among "
            f"{processes} processes: begin fewer, or change batch_size"
        )
    return [rows.chunk(processes)[rank] for rows in batch]


@contextlib.contextmanager
def evaluating(modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """Modules in evaluation mode for a while: BatchNorm's statistics are used, not moved."""
    modes = {name: module.training for name, module in modules.items()}
    for module in modules.values():
        module.eval()
    try:
        yield
    finally:
        for name, module in modules.items():
            module.train(modes[name])


def _match_layout(optimizer: torch.optim.Optimizer) -> None:
    """Lay loaded moments out in memory like their parameters.

    Files hold row-major tensors; fused optimisers walk memory, so that a moment in another order
    than its channels_last weight would belong to the wrong elements.
    """
    for parameter, slots in optimizer.state.items():
        for name, value in slots.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                slots[name] = torch.empty_like(parameter).copy_(value)


def module_tensors(method: Method) -> dict[str, Tensor]:
    """Parameters and buffers of all modules: "encoder.blocks.0.weight" -> tensor."""
    return {
        f"{name}.{key}": value
        for name, module in method.modules.items()
        for key, value in module.state_dict().items()
    }


def load_modules(method: Method, tensors: Mapping[str, Tensor]) -> None:
    """Fill modules from what `module_tensors` gave of them."""
    for name in dict.fromkeys(key.split(".")[0] for key in tensors):
        prefix = f"{name}."
        method.modules[name].load_state_dict(
            {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        )


def clear_checkpoints(folder: Path) -> None:
    """Remove a run's checkpoints and what a kill left behind."""
    for pattern in ("checkpoint-*.safetensors", "checkpoint.json"):
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)
    storage.sweep(folder)


def _checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The current checkpoint of a run, if any; a damaged one is named and set aside."""
    if (pointer := _pointer(folder)) is None:
        return None
    try:
        return storage.read_tensors(folder / pointer["file"], pointer["sha256"])
    except storage.DamagedFileError as error:
        print(f"{error}; starting this run anew")
        clear_checkpoints(folder)
        return None


def _pointer(folder: Path) -> dict[str, Any] | None:
    path = folder / "checkpoint.json"
    if not path.is_file():
        return None
    try:
        return storage.read_sealed(path)
    except storage.DamagedFileError as error:
        print(f"{error}; starting this run anew")
        return None


@contextlib.contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Hold back Ctrl-C until a step is whole; a second one gets through at once."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    came = threading.Event()
    previous = signal.getsignal(signal.SIGINT)

    def note(*_: Any) -> None:
        came.set()
        signal.signal(signal.SIGINT, previous)

    signal.signal(signal.SIGINT, note)
    try:
        yield came.is_set
    finally:
        signal.signal(signal.SIGINT, previous)


@contextlib.contextmanager
def _progress(
    label: str, steps: int, done: int
) -> Iterator[Callable[[int, Mapping[str, float]], None]]:
    """One progress line; in a headless notebook, a status file that the report shows instead.

    DLCV_STATUS names the folder of these files, one a process.
    """
    status = os.environ.get("DLCV_STATUS")
    with tqdm(total=steps, initial=done, desc=label, leave=False, disable=bool(status)) as bar:
        begun = time.monotonic()

        def show(step: int, row: Mapping[str, float]) -> None:
            hidden = ("step", "learning_rate", GRADIENT)
            losses = {k: f"{v:.4g}" for k, v in row.items() if not k.startswith(hidden)}
            bar.set_postfix(losses, refresh=False)
            bar.update(step - bar.n)
            if status:
                rate = (step - done) / (time.monotonic() - begun)
                left = tqdm.format_interval((steps - step) / rate)
                text = f"{label} {step}/{steps} · {rate:.1f} steps/s · {left} left"
                with contextlib.suppress(OSError):
                    Path(status, str(os.getpid())).write_text(text, encoding="utf-8")

        yield show
