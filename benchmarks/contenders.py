"""What is timed for each method: the plain loop, our loop, and our step alone on a fixed batch."""

import functools
import math
import multiprocessing
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import plain
from dlcvlib.config import profiles
from dlcvlib.config.schema import TrainingSettings
from dlcvlib.data.digits import load_digits
from dlcvlib.data.faces import load_faces
from dlcvlib.data.types import MeasuredFaces
from dlcvlib.methods.adamatch import AdaMatch
from dlcvlib.methods.dann import DANN
from dlcvlib.methods.dcgan import DCGAN
from dlcvlib.methods.pixelda import PixelDA
from dlcvlib.methods.vae import VAE
from dlcvlib.plots.images import to_png
from dlcvlib.training import checkpoint, device, loop
from dlcvlib.training.method import Batch, Method, Progress
from dlcvlib.utils import storage

WARM_UP = 10
"""Steps before the clock starts."""
KERNELS = ("convolution", "addmm", "aten::mm")
"""What the profiler calls convolutions and matrix products, forward and backward."""


def train(
    kind: type[Method],
    settings: TrainingSettings,
    data: Any,
    folder: Path,
    watch: Callable[[int], None],
) -> None:
    """Train by `loop.fit` without evaluation; checkpoints are written when they are due.

    Args:
        kind: class of the method.
        settings: its settings.
        data: what it trains on.
        folder: of the checkpoints, which are removed at the end.
        watch: called with each step's number before its batch is drawn.
    """
    method = create(kind, settings)
    draw = method.batches(data, device.default())
    progress = Progress(*device.choose(method, draw), processes=1)
    device.prepare(method, progress.precision)
    device.compile_networks(method)

    def batch(step: int) -> Batch:
        watch(step)
        return draw(step)

    storage.make_dir(folder)
    save = functools.partial(checkpoint.save, folder, method, progress)
    loop.fit(method, batch, progress, save, evaluate=dict, log=lambda row: None)
    checkpoint.clear(folder)


def create(kind: type[Method], settings: TrainingSettings) -> Method:
    """An untrained method on its device, the same at each call."""
    torch.manual_seed(0)
    return kind(settings).to(device.default(), memory_format=torch.channels_last)


def fit_rate(
    kind: type[Method], settings: TrainingSettings, data: Any, steps: int, folder: Path
) -> float:
    """Steps per second of `train`, after a few to warm up."""
    times = []

    def watch(step: int) -> None:
        if step in (WARM_UP, WARM_UP + steps):
            times.append(now())

    # One step more than is timed: its batch is requested once the last timed step is complete.
    train(kind, settings.replace(steps=WARM_UP + steps + 1), data, folder, watch)
    started, ended = times
    return steps / (ended - started)


def now() -> float:
    """The time in seconds, once the device has finished its queued work."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter()


@dataclass(frozen=True)
class Contender:
    """A method with the settings of profile quick.

    Attributes:
        name: of the method.
        kind: its class.
        settings: its settings.
        data: what it trains on.
        plain: makes the plain loop from settings and folders of PNGs, a generator that yields
            after each step.
        folders: of PNGs, those of `data`.
    """

    name: str
    kind: type[Method]
    settings: TrainingSettings
    data: Any
    plain: Callable[..., Iterator[None]]
    folders: tuple[Path, ...]

    def precision(self) -> str:
        """The precision it is trained in."""
        method = create(self.kind, self.settings)
        return device.choose(method, method.batches(self.data, device.default()))[0]

    def plain_rate(self, steps: int) -> float:
        """Steps per second of the plain loop."""
        torch.manual_seed(0)
        steps_taken = self.plain(self.settings, *self.folders)
        for _ in range(WARM_UP):
            next(steps_taken)
        started = now()
        for _ in range(steps):
            next(steps_taken)
        seconds = now() - started
        steps_taken.close()
        return steps / seconds

    def our_rate(self, steps: int, folder: Path) -> float:
        """Steps per second of `loop.fit`, with everything except evaluation."""
        return fit_rate(self.kind, self.settings, self.data, steps, folder)

    def step_rate(self, steps: int) -> float:
        """Steps per second of the method's step alone, on one batch that is on the device."""
        step = self.step_alone()
        started = now()
        for _ in range(steps):
            step()
        return steps / (now() - started)

    def kernel_share(self, steps: int) -> float:
        """Share of the step alone that convolutions and matrix products take on a CPU, 0 to 1.

        No change outside of these kernels can save that share. Their time is from the profiler; the
        step's is measured without it, since it slows down everything else. NaN on a GPU: networks
        this small leave it waiting for the next kernel, so that the share is meaningless.
        """
        if torch.accelerator.is_available():
            return math.nan
        step = self.step_alone()
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            for _ in range(steps):
                step()
        started = now()
        for _ in range(steps):
            step()
        seconds = now() - started
        times = {event.key: event.self_cpu_time_total for event in profiler.key_averages()}
        kernels = sum(t for name, t in times.items() if any(k in name for k in KERNELS))
        return kernels / 1e6 / seconds

    def step_alone(self) -> Callable[[], Any]:
        """A function that takes one step, on one batch that is on the device."""
        method = create(self.kind, self.settings)
        device.prepare(method, self.precision())
        batch = method.batches(self.data, device.default())(0)
        for _ in range(WARM_UP):
            method.training_step(batch)
        return lambda: method.training_step(batch)


@functools.cache
def contenders(precision: str, folder: Path) -> list[Contender]:
    """All five methods on profile quick's embedded data, whose images are PNGs in `folder` too.

    PixelDA twice: with a step for T alone, and as quick trains it, with T updated by G's step,
    which is what the plain loop does.
    """
    changes = {"precision": precision, "runs_dir": str(folder / "runs")}
    face, gan, digit, pixel = (
        profiles.load("quick", chapter, changes) for chapter in ("vae", "gan", "dann", "pixelda")
    )
    faces = load_faces(face)
    measured = MeasuredFaces(faces, 0, lambda generated: {}, faces.fingerprint)
    pair = load_digits(digit).pairs["usps->mnistm"]
    write(faces.train.images, torch.zeros(len(faces.train.images)), folder / "faces")
    for name, domain in (("source", pair.source), ("target", pair.target)):
        write(domain.train.images, domain.train.labels, folder / name)
    digits = pair.adaptation()
    face_files, digit_files = (folder / "faces",), (folder / "source", folder / "target")
    d, p, a = digit.settings(0), pixel.settings(0), pixel.adamatch(0)
    p_apart = p.replace(classifier_with_generator=False)
    return [
        Contender("VAE", VAE, face.settings, faces, plain.train_vae, face_files),
        Contender("DCGAN", DCGAN, gan.settings, measured, plain.train_dcgan, face_files),
        Contender("DANN", DANN, d, digits, plain.train_dann, digit_files),
        Contender("PixelDA", PixelDA, p_apart, digits, plain.train_pixelda, digit_files),
        Contender("PixelDA, T with G", PixelDA, p, digits, plain.train_pixelda, digit_files),
        Contender("AdaMatch", AdaMatch, a, digits, plain.train_adamatch, digit_files),
    ]


def plain_rate(name: str, precision: str, folder: Path, steps: int) -> float:
    """Steps per second of a contender's plain loop, for a process of the plain loops' own.

    Our own training leaves a heap behind in its process from which they would benefit.
    """
    # Otherwise the loaders' workers would be spawned as this process was: seconds per epoch.
    multiprocessing.set_start_method(multiprocessing.get_all_start_methods()[0], force=True)
    (contender,) = (each for each in contenders(precision, folder) if each.name == name)
    return contender.plain_rate(steps)


def write(images: torch.Tensor, labels: torch.Tensor, folder: Path) -> None:
    """Images (N, 3, H, W) uint8 as PNGs named by label and number, unless the folder exists."""
    if folder.exists():
        return
    folder.mkdir(parents=True)
    for number, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        (folder / f"{int(label)}-{number:06d}.png").write_bytes(to_png(image, scale=1))
