"""`train_or_load`: where a run is stored, when it is reused, and who holds its lock.

A run is `runs/<method>-<hash>/`; the hash covers what determines the result: the method's settings,
the data's fingerprint, the source of the code that trains it and the versions of torch and
accelerate. The device and the number of threads and processes are recorded beside it.
Notebooks that need the same run share it.

    history.csv          losses over the steps
    model.safetensors    parameters and buffers
    snapshot-*           networks saved during training, in half precision
    provenance.json      what was trained, device, time, files' hashes; written last: it is finished
    checkpoint*          only during training
"""

import copy
import gc
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Generic, Protocol, TypeVar

import pandas as pd
import torch
from accelerate import PartialState

from dlcvlib.data.batches import memory_format
from dlcvlib.training import checkpoint, device, loop, processes, tracking
from dlcvlib.training.method import Method, Progress
from dlcvlib.utils import fingerprints, storage

M = TypeVar("M", bound=Method)
CODE = ("methods/", "training/", "data/")
"""Packages whose code determines a trained model; settings count by value, not by schema."""
NOT_DECISIVE = {"deterministic", "compile"}
"""Settings that, like the device, change a result by rounding alone; they are recorded."""
HISTORY, MODEL, MARK = "history.csv", "model.safetensors", "provenance.json"

handed_out: list[str] = []
"""Names of the runs that this process has requested, some repeatedly; the page lists them."""
_plan: dict[str, tuple[Any, ...]] | None = None
"""Within `planning`, what has been requested."""


class Data(Protocol):
    """What a method trains on."""

    fingerprint: str


@dataclass(frozen=True)
class Run(Generic[M]):
    """A finished training run.

    Attributes:
        name: `<method>-<hash>`.
        method: the trained method, in evaluation mode.
        settings: what it was trained with.
        history: one row every few steps: step, losses, learning_rate, validation_*.
        provenance: settings, versions, device, precision, seconds, images_per_second, …
        folder: where it is stored.
    """

    name: str
    method: M
    settings: Any
    history: pd.DataFrame
    provenance: dict[str, Any]
    folder: Path

    @property
    def snapshots(self) -> dict[int, M]:
        """Step -> the method with its saved networks as of that step; damaged ones are skipped."""
        methods = {}
        for path in sorted(self.folder.glob("snapshot-*.safetensors")):
            try:
                tensors, meta = storage.read_tensors(path, self.provenance["files"][path.name])
            except storage.DamagedFileError as error:
                print(f"{error}; it is skipped")
                continue
            method = methods[meta["step"]] = copy.deepcopy(self.method)
            method.load_state_dict(tensors, strict=False)
        return methods

    @property
    def seconds(self) -> float:
        """Time spent training, over all resumes."""
        return self.provenance["seconds"]


@contextmanager
def planning() -> Iterator[dict[str, tuple[Any, ...]]]:
    """Have `train_or_load` neither train nor load but note what it is asked for.

    What it returns then has no more of a `Run` than its name and settings.

    Yields:
        Name of a run -> arguments with which `train_or_load` trains it; filled by and by.
    """
    global _plan
    _plan = {}
    try:
        yield _plan
    finally:
        _plan = None


def identity_of(method: type[Method], settings: Any, data: Data) -> dict[str, Any]:
    """Everything that determines a trained model.

    The code is hashed module by module, without comments and docstrings: the method's own, and
    all in `CODE` that it, the loop, devices and checkpoints import.
    """
    own, *shared = (Path(inspect.getfile(part)) for part in (method, loop, device, checkpoint))
    hashes = fingerprints.import_hashes(own, *shared)
    return {
        "settings": settings.model_dump(exclude=NOT_DECISIVE),
        "data": data.fingerprint,
        "code": {n: h for n, h in hashes.items() if n.startswith(CODE) or n == own.name},
        **fingerprints.versions("torch", "accelerate"),
    }


def train_or_load(method: type[M], settings: Any, data: Data, runs_dir: Path | str) -> Run[M]:
    """The trained run of a method with these settings on this data, from disk or trained now.

    Args:
        method: a class of `dlcvlib.methods`.
        settings: of that method.
        data: passed to its `batches` and `evaluate`.
        runs_dir: folder of the runs.

    Raises:
        UserError: if `runs_dir` cannot be written, or a loss or a gradient is not finite.
        KeyboardInterrupt: with a message that says where the training was interrupted.
    """
    identity = identity_of(method, settings, data)
    name = f"{method.name}-{fingerprints.json_hash(identity)[:10]}"
    handed_out.append(name)
    if _plan is not None:
        _plan[name] = method, settings, data, runs_dir
        return SimpleNamespace(name=name, settings=settings)
    folder = storage.make_dir(Path(runs_dir)) / name
    state = PartialState()
    # Under `accelerate launch` the main process holds the lock for all.
    lock = storage.exclusive_lock(folder, "trained")
    with lock if state.is_main_process else nullcontext():
        state.wait_for_everyone()
        if (folder / MARK).is_file():
            try:
                return load(folder, method, settings)
            except storage.DamagedFileError as error:
                print(f"{error}; training {name} again")
                (folder / MARK).unlink(missing_ok=True)
        gc.freeze()  # existing objects need not be searched: saves half a second per run
        try:
            _train(folder, method, settings, data, identity)
        finally:
            gc.collect()  # autocast leaves modules and gradients in reference cycles
            gc.unfreeze()
        state.wait_for_everyone()  # until the main process has written it
        return load(folder, method, settings)


def _create(method: type[M], settings: Any) -> M:
    """The untrained method on its device; its initial weights depend on the seed alone."""
    torch.manual_seed(settings.seed)
    where = device.default()
    return method(settings).to(where, memory_format=memory_format(where))


def _train(
    folder: Path, kind: type[Method], settings: Any, data: Data, identity: Mapping[str, Any]
) -> None:
    storage.sweep(folder)
    method = _create(kind, settings)
    batch = method.batches(data, method.device)
    # A resumed run keeps the precision it started with, whatever a trial would choose now.
    progress = checkpoint.restore(folder, method) or Progress(
        *device.choose(method, batch), PartialState().num_processes
    )
    device.prepare(method, progress.precision)
    device.compile_networks(method)
    main = PartialState().is_main_process
    save = partial(checkpoint.save, folder, method, progress)

    def evaluate() -> dict[str, float]:
        if main:
            checkpoint.save_snapshot(folder, method)
        # Otherwise each size of a chunk of images would be compiled.
        compiled = device.compiling(method)
        with torch.compiler.set_stance("force_eager") if compiled else nullcontext():
            return method.evaluate(data)

    alone = PartialState().num_processes == 1
    try:
        with (
            nullcontext() if alone else processes.ending_together(),
            tracking.tracked(folder, settings, progress.history) as log,
        ):
            loop.fit(method, batch, progress, save, evaluate, log)
    except KeyboardInterrupt:
        stopped = f"{method.name} stopped after step {progress.step} of {settings.steps}"
        raise KeyboardInterrupt(f"{stopped}; run it again to continue") from None
    if main:
        _write(folder, method, progress, identity, len(batch(0)[0]))


def _write(
    folder: Path, method: Method, progress: Progress, identity: Mapping[str, Any], size: int
) -> None:
    """Write a finished run, the provenance last; `size` is that of its batches."""
    storage.write_text(folder / HISTORY, pd.DataFrame(progress.history).to_csv(index=False))
    storage.write_tensors(folder / MODEL, method.state_dict(), {})
    files = [folder / HISTORY, folder / MODEL, *sorted(folder.glob("snapshot-*.safetensors"))]
    provenance = {
        **identity,
        "settings": method.settings.model_dump(),
        "seconds": progress.seconds,
        "device": device.name_of(method.device),
        "precision": progress.precision,
        "precision_why": progress.precision_why,
        "threads": torch.get_num_threads(),
        "processes": progress.processes,
        "images_per_second": progress.step * size / progress.seconds,
        # A moving average duplicates the parameters and is not trained.
        "parameters": sum(p.numel() for p in method.parameters() if p.requires_grad),
        "files": {file.name: storage.sha256(file) for file in files},
    }
    storage.write_sealed(folder / MARK, provenance)


def load(folder: Path, kind: type[M], settings: Any) -> Run[M]:
    """The finished run in `folder`.

    Raises:
        DamagedFileError: if it is not intact.
    """
    provenance = storage.read_sealed(folder / MARK)
    storage.check(folder / HISTORY, provenance["files"][HISTORY])
    history = pd.read_csv(folder / HISTORY)
    tensors, _ = storage.read_tensors(folder / MODEL, provenance["files"][MODEL])
    checkpoint.clear(folder)
    method = _create(kind, settings)
    method.load_state_dict(tensors)
    method.eval().requires_grad_(False)
    return Run(folder.name, method, settings, history, provenance, folder)
