"""`train_or_load`: where a run lives on disk, when it is reused, who holds its lock.

A run is `runs/<method>-<hash>/`; the hash covers what decides the result: the method's settings,
the data's fingerprint, the source of the code that trains it and the versions of torch and
accelerate. On what it was trained, and by how many threads and processes, is kept beside it.
Notebooks that need the same run share it.

    settings.yaml        what was trained
    history.csv          losses over the steps
    model.safetensors    parameters and buffers
    snapshot-*           modules that were kept along the way, in half precision
    provenance.json      versions, device, time and the files' hashes; written last: the run is done
    checkpoint*          only while it trains
"""

import copy
import gc
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import pandas as pd
import torch
import yaml
from accelerate import PartialState
from torch import nn

from dlcvlib.config.schema import TrainingSettings
from dlcvlib.training import device, loop
from dlcvlib.utils import fingerprints, storage

K = TypeVar("K")
M = TypeVar("M", bound=device.Method)
Batch = Callable[[int], Any]
_waits: ContextVar[bool] = ContextVar("waits", default=True)


@dataclass(frozen=True)
class Run(Generic[M]):
    """A finished training run.

    Attributes:
        name: `<method>-<hash>`, as captions name it.
        method: the trained method, its modules in evaluation mode.
        settings: what it was trained with.
        history: one row every few steps: step, losses, learning_rate, validation_*.
        provenance: versions, device, precision, seconds, images_per_second, …
        folder: where it lies.
    """

    name: str
    method: M
    settings: TrainingSettings
    history: pd.DataFrame
    provenance: dict[str, Any]
    folder: Path

    @property
    def snapshots(self) -> list[int]:
        """Steps at which modules were kept."""
        return self.provenance["snapshots"]

    def at(self, step: int) -> M:
        """The method with its kept modules as they were after a step of `snapshots`."""
        file = _snapshot(step)
        tensors, _ = storage.read_tensors(self.folder / file, self.provenance["files"][file])
        method = copy.deepcopy(self.method)
        loop.load_modules(method, tensors)
        return method

    @property
    def device(self) -> torch.device:
        """Where the modules are."""
        return device_of(next(iter(self.method.modules.values())))

    @property
    def seconds(self) -> float:
        """Time spent training, over all resumes."""
        return self.provenance["seconds"]


def identity_of(settings: TrainingSettings, data: str, code: Iterable[str]) -> dict[str, Any]:
    """All that decides a trained model.

    Args:
        settings: the method's.
        data: fingerprint of the data.
        code: modules of this package that define the method, such as "vae".
    """
    return {
        "settings": settings.model_dump(),
        "data": data,
        "code": fingerprints.module_hashes(
            [*code, "training/device", "training/loop", "data/batches"]
        ),
        **fingerprints.versions("torch", "accelerate"),
    }


def run_name(kind: str, identity: Mapping[str, Any]) -> str:
    """`<kind>-<hash>`: the name of a run of a method of that kind."""
    return f"{kind}-{fingerprints.json_hash(identity)[:10]}"


def train_or_load(
    kind: str,
    create: Callable[[], M],
    batches: Callable[[torch.device], Batch],
    settings: TrainingSettings,
    *,
    data: str,
    runs_dir: Path | str,
    code: Iterable[str],
    evaluate: Callable[[M], dict[str, float]] | None = None,
    keep: Sequence[str] = (),
) -> Run[M]:
    """The trained run of these settings on this data: from disk if it is there, else trained now.

    Args:
        kind: the method's name.
        create: makes the untrained method; called after seeding.
        batches: device -> (step -> batch), called only if there is something to train.
        settings: what decides the run, besides data and code.
        data: fingerprint of the data.
        runs_dir: folder of the runs.
        code: modules of this package that define the method.
        evaluate: values for the history, from the method in training.
        keep: modules whose weights are kept wherever `evaluate` is called.

    Raises:
        UserError: if `runs_dir` cannot be written.
        TrainingError: if a loss or a gradient is not finite.
    """
    identity = identity_of(settings, data, code)
    folder = storage.make_dir(Path(runs_dir)) / run_name(kind, identity)
    if PartialState().num_processes == 1 and (run := _load(folder, create, settings)) is not None:
        return run
    with _sole(folder):
        if (run := _load(folder, create, settings)) is not None:
            return run
        with _swept():
            _train(folder, kind, identity, create, batches, settings, evaluate, keep)
    run = _load(folder, create, settings)
    if run is None:
        raise storage.DamagedFileError(f"{folder} was written just now and cannot be read")
    return run


@contextmanager
def _swept() -> Iterator[None]:
    """Free what autocast leaves of a training in reference cycles: modules and gradients."""
    gc.freeze()  # else all that was there before would be looked through too, a fifth of a second
    try:
        yield
    finally:
        gc.collect()
        gc.unfreeze()


@contextmanager
def _sole(folder: Path) -> Iterator[None]:
    """`storage.exclusive_lock`; under `accelerate launch` the main process holds the lock for all.

    They go in and come out together, so that all of them find the same.
    """
    state = PartialState()
    lock = storage.exclusive_lock(folder, "trained", wait=_waits.get())
    with lock if state.is_main_process else nullcontext():
        state.wait_for_everyone()
        yield
        state.wait_for_everyone()


def several(wanted: Mapping[K, Callable[[], Run[M]]]) -> dict[K, Run[M]]:
    """The runs of several calls of `train_or_load`, what another process trains as the last.

    Two processes that want the same runs thus share the work out, where each would else wait for
    what the other has just begun. Processes that train one run together keep to the order.
    """
    left, found = dict(wanted), {}
    while left and PartialState().num_processes == 1:
        for key in list(left):
            with suppress(storage.BusyError), _without_waiting():
                found[key] = left[key]()
                del left[key]
        if left:
            key = next(iter(left))
            found[key] = left.pop(key)()
    found |= {key: train() for key, train in left.items()}
    return {key: found[key] for key in wanted}


@contextmanager
def _without_waiting() -> Iterator[None]:
    """Let `train_or_load` raise where it would wait for a run; for what is soon made it waits."""
    token = _waits.set(False)
    try:
        yield
    finally:
        _waits.reset(token)


def _train(
    folder: Path,
    kind: str,
    identity: dict[str, Any],
    create: Callable[[], M],
    batches: Callable[[torch.device], Batch],
    settings: TrainingSettings,
    evaluate: Callable[[M], dict[str, float]] | None,
    keep: Sequence[str],
) -> None:
    storage.make_dir(folder)
    if PartialState().is_main_process:
        storage.sweep(folder)
    method = _create(create, settings)

    def measure() -> dict[str, float]:
        if keep and PartialState().is_main_process:
            _keep(folder / _snapshot(method.done), method, keep)
        return evaluate(method)

    outcome = loop.fit(
        method,
        batches(device.default()),
        settings,
        folder,
        label=kind,
        evaluate=measure if evaluate else None,
    )
    if not PartialState().is_main_process:
        return
    storage.write_text(folder / "settings.yaml", yaml.safe_dump(settings.model_dump()))
    history = pd.DataFrame(outcome.pop("history"))
    storage.write_text(folder / "history.csv", history.to_csv(index=False))
    storage.write_tensors(folder / "model.safetensors", loop.module_tensors(method), {})
    snapshots = sorted(int(path.stem[9:]) for path in folder.glob("snapshot-*.safetensors"))
    files = ["settings.yaml", "history.csv", "model.safetensors", *map(_snapshot, snapshots)]
    images = settings.steps * settings.batch_size
    provenance = {
        "kind": kind,
        "data": identity["data"],
        "code": identity["code"],
        **outcome,
        "images_per_second": images / outcome["seconds"],
        "parameters": _trained(method),
        "snapshots": snapshots,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "python": platform.python_version(),
        **fingerprints.versions("torch", "torchvision", "accelerate"),
        "files": {file: storage.sha256(folder / file) for file in files},
    }
    storage.write_sealed(folder / "provenance.json", provenance)
    loop.clear_checkpoints(folder)


def _trained(method: device.Method) -> int:
    """How many parameters training moves; a kept average has as many, and is not trained."""
    parameters = (p for module in method.modules.values() for p in module.parameters())
    return sum(parameter.numel() for parameter in parameters if parameter.requires_grad)


def _snapshot(step: int) -> str:
    return f"snapshot-{step}.safetensors"


def _keep(path: Path, method: device.Method, names: Sequence[str]) -> None:
    """Write some modules as they are now; half precision is enough to draw pictures from."""
    tensors = {
        key: value.half() if value.is_floating_point() else value
        for key, value in loop.module_tensors(method).items()
        if key.split(".")[0] in names
    }
    storage.write_tensors(path, tensors, {})


def _create(create: Callable[[], M], settings: TrainingSettings) -> M:
    """The untrained method; its initial weights depend on the seed alone."""
    torch.manual_seed(settings.seed)
    return create()


def _load(folder: Path, create: Callable[[], M], settings: TrainingSettings) -> Run[M] | None:
    """The finished run in `folder`, or None if there is none that is whole."""
    mark = folder / "provenance.json"
    if not mark.is_file():
        return None
    try:
        provenance = storage.read_sealed(mark)
        model = folder / "model.safetensors"
        for file, digest in provenance["files"].items():
            if file != model.name:  # which is checked where it is read
                storage.check(folder / file, digest)
        tensors, _ = storage.read_tensors(model, provenance["files"][model.name])
    except storage.DamagedFileError as error:
        print(f"{error}; training {folder.name} again")
        mark.unlink(missing_ok=True)
        return None
    if any(folder.glob("checkpoint*")):
        loop.clear_checkpoints(folder)  # a kill has kept it from doing so in its last moment
    method = _create(create, settings)
    loop.load_modules(method, tensors)
    for module in method.modules.values():
        module.to(device.default(), memory_format=torch.channels_last).eval().requires_grad_(False)
    return Run(
        folder.name, method, settings, pd.read_csv(folder / "history.csv"), provenance, folder
    )


def device_of(module: nn.Module) -> torch.device:
    """The device that a module's parameters are on."""
    return next(module.parameters()).device
