"""`train_or_load`: where a run is stored, when it is reused, and who holds its lock.

A run is `runs/<method>-<hash>/`; the hash covers what determines the result: the method's settings,
the data's fingerprint, the source of the code that trains it and the versions of torch and
accelerate. The device and the number of threads and processes are recorded beside it.
Notebooks that need the same run share it.

    settings.yaml        what was trained
    history.csv          losses over the steps
    model.safetensors    parameters and buffers
    snapshot-*           networks saved during training, in half precision
    provenance.json      versions, device, time and files' hashes; written last: the run is finished
    checkpoint*          only during training
"""

import copy
import gc
import inspect
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import pandas as pd
import torch
import yaml
from accelerate import PartialState

from dlcvlib.training import checkpoint, device, loop
from dlcvlib.training.method import Method, Progress
from dlcvlib.utils import fingerprints, storage
from dlcvlib.utils.errors import UserError

K = TypeVar("K")
M = TypeVar("M", bound=Method)
CODE = ("methods/", "training/", "data/")
"""Packages whose code determines a trained model; settings count by value, not by schema."""

handed_out: list[str] = []
"""Names of the runs that this process has requested; the notebook's page lists them."""


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
        provenance: versions, device, precision, seconds, images_per_second, …
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
        for step in self.provenance["snapshots"]:
            file = _snapshot(step)
            try:
                tensors, _ = storage.read_tensors(
                    self.folder / file, self.provenance["files"][file]
                )
            except storage.DamagedFileError as error:
                print(f"{error}; it is skipped")
                continue
            methods[step] = copy.deepcopy(self.method)
            methods[step].load_state_dict(tensors, strict=False)
        return methods

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return self.method.device

    @property
    def seconds(self) -> float:
        """Time spent training, over all resumes."""
        return self.provenance["seconds"]


def identity_of(method: type[Method], settings: Any, data: Data) -> dict[str, Any]:
    """Everything that determines a trained model.

    The code is hashed module by module, without comments and docstrings: the method's own, and
    all in `CODE` that it, the loop, devices and checkpoints import.
    """
    own, *shared = (Path(inspect.getfile(part)) for part in (method, loop, device, checkpoint))
    hashes = fingerprints.import_hashes(own, *shared)
    return {
        "settings": settings.model_dump(),
        "data": data.fingerprint,
        "code": {n: h for n, h in hashes.items() if n.startswith(CODE) or n == own.name},
        **fingerprints.versions("torch", "accelerate"),
    }


def train_or_load(
    method: type[M],
    settings: Any,
    data: Data,
    runs_dir: Path | str,
    *,
    wait: bool = True,
) -> Run[M]:
    """The trained run of a method with these settings on this data, from disk or trained now.

    Args:
        method: a class of `dlcvlib.methods`.
        settings: of that method.
        data: passed to its `batches` and `evaluate`.
        runs_dir: folder of the runs.
        wait: whether to wait for another process that is training this run.

    Raises:
        UserError: if `runs_dir` cannot be written.
        TrainingError: if a loss or a gradient is not finite.
        BusyError: without `wait`, if another process is training it.
    """
    identity = identity_of(method, settings, data)
    name = f"{method.name}-{fingerprints.json_hash(identity)[:10]}"
    folder = storage.make_dir(Path(runs_dir)) / name
    run = None
    if PartialState().num_processes == 1:
        run = _load(folder, method, settings)
    if run is None:
        with _exclusive(folder, wait):
            run = _load(folder, method, settings)
            if run is None:
                gc.freeze()  # existing objects need not be searched: saves half a second per run
                try:
                    _train(folder, method, settings, data, identity)
                finally:
                    gc.collect()  # autocast leaves modules and gradients in reference cycles
                    gc.unfreeze()
    if run is None:
        # Only now has every process left the lock, so that the main one has written all of it.
        run = _load(folder, method, settings)
    if run is None:
        raise storage.DamagedFileError(f"{folder} was just written but cannot be read")
    if name not in handed_out:
        handed_out.append(name)
    return run


def train_all(
    requested: Mapping[K, tuple[type[M], Any, Data]], runs_dir: Path | str
) -> dict[K, Run[M]]:
    """`train_or_load` for each, those that another process is training last.

    Two processes that need the same runs thus share the work, where each would otherwise wait for
    the one that the other has just started. Processes that train one run together keep the order.
    """
    remaining, runs = dict(requested), {}
    while remaining and PartialState().num_processes == 1:
        for key in list(remaining):
            with suppress(storage.BusyError):
                runs[key] = train_or_load(*remaining[key], runs_dir, wait=False)
                del remaining[key]
        if remaining:
            key = next(iter(remaining))
            runs[key] = train_or_load(*remaining.pop(key), runs_dir)
    runs |= {key: train_or_load(*job, runs_dir) for key, job in remaining.items()}
    return {key: runs[key] for key in requested}


@contextmanager
def _exclusive(folder: Path, wait: bool) -> Iterator[None]:
    """An exclusive lock; under `accelerate launch` the main process holds it for all.

    All processes enter and leave together, so that they see the same files.
    """
    state = PartialState()
    lock = storage.exclusive_lock(folder, "trained", wait=wait)
    with lock if state.is_main_process else nullcontext():
        state.wait_for_everyone()
        yield
        state.wait_for_everyone()


def _train(
    folder: Path,
    kind: type[Method],
    settings: Any,
    data: Data,
    identity: Mapping[str, Any],
) -> None:
    main = PartialState().is_main_process
    storage.make_dir(folder)
    if main:
        storage.sweep(folder)
    method = _create(kind, settings)

    def keep_snapshot(step: int) -> None:
        if method.snapshots and main:
            # Half precision is enough for sample images.
            tensors = {
                key: value.half() if value.is_floating_point() else value
                for key, value in method.state_dict().items()
                if key.split(".")[0] in method.snapshots
            }
            storage.write_tensors(folder / _snapshot(step), tensors, {})

    progress = _fit(method, data, folder, keep_snapshot)
    if not main:
        return
    storage.write_text(folder / "settings.yaml", yaml.safe_dump(settings.model_dump()))
    history = pd.DataFrame(progress.history)
    storage.write_text(folder / "history.csv", history.to_csv(index=False))
    storage.write_tensors(folder / "model.safetensors", method.state_dict(), {})
    snapshots = sorted(int(path.stem[9:]) for path in folder.glob("snapshot-*.safetensors"))
    files = ["settings.yaml", "history.csv", "model.safetensors", *map(_snapshot, snapshots)]
    # A moving average duplicates the parameters and is not trained.
    trained = (p.numel() for p in method.parameters() if p.requires_grad)
    provenance = {
        "kind": method.name,
        "data": identity["data"],
        "code": identity["code"],
        "seconds": progress.seconds,
        "device": device.name_of(device.default()),
        "precision": progress.precision[0],
        "precision_why": progress.precision[1],
        "threads": torch.get_num_threads(),
        "processes": progress.processes,
        "images_per_second": settings.steps * settings.batch_size / progress.seconds,
        "parameters": sum(trained),
        "snapshots": snapshots,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "python": platform.python_version(),
        **fingerprints.versions("torch", "torchvision", "accelerate"),
        "files": {file: storage.sha256(folder / file) for file in files},
    }
    storage.write_sealed(folder / "provenance.json", provenance)
    checkpoint.clear(folder)


def _fit(
    method: Method, data: Data, folder: Path, before_validation: Callable[[int], None]
) -> Progress:
    """Train a method from the folder's checkpoint, or from the beginning.

    Raises:
        UserError: if the checkpoint was written with another number of processes.
    """
    state = PartialState()
    loaded = checkpoint.load(folder)
    if loaded and loaded[1]["processes"] != state.num_processes:
        raise UserError(
            f"{folder} was started with {loaded[1]['processes']} processes: continue with the "
            "same number, or remove it"
        )
    batch = method.batches(data, device.default())
    # A run keeps the precision it started with, whatever a trial would choose now.
    precision = loaded[1]["precision"] if loaded else device.choose(method, batch)
    accelerator = device.prepare(method, precision[0])
    if loaded:
        progress = checkpoint.restore(*loaded, method)
    else:
        progress = Progress(precision, state.num_processes)
    del loaded  # otherwise it would stay in memory: three times the model's weights

    def save() -> None:
        if state.is_main_process:
            checkpoint.save(folder, method, progress)

    loop.fit(method, data, batch, progress, save=save, before_validation=before_validation)
    device.unwrap(method, accelerator)
    return progress


def _snapshot(step: int) -> str:
    return f"snapshot-{step}.safetensors"


def _create(method: type[M], settings: Any) -> M:
    """The untrained method; its initial weights depend on the seed alone."""
    torch.manual_seed(settings.seed)
    return method(settings)


def _load(folder: Path, kind: type[M], settings: Any) -> Run[M] | None:
    """The finished run in `folder`, or None if there is no intact one."""
    mark = folder / "provenance.json"
    if not mark.is_file():
        return None
    try:
        provenance = storage.read_sealed(mark)
        digests = provenance["files"]
        for file in ("settings.yaml", "history.csv"):
            storage.check(folder / file, digests[file])
        tensors, _ = storage.read_tensors(
            folder / "model.safetensors", digests["model.safetensors"]
        )
    except storage.DamagedFileError as error:
        print(f"{error}; training {folder.name} again")
        mark.unlink(missing_ok=True)
        return None
    if any(folder.glob("checkpoint*")):
        checkpoint.clear(folder)  # left by a process killed just before it removed them
    method = _create(kind, settings)
    method.load_state_dict(tensors)
    method.to(device.default(), memory_format=torch.channels_last)
    method.eval().requires_grad_(False)
    history = pd.read_csv(folder / "history.csv")
    return Run(folder.name, method, settings, history, provenance, folder)
