"""What is timed: for each method the plain loop, our loop, and our step alone on a fixed batch."""

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
from dlcvlib.data.augment import AUGMENTATIONS
from dlcvlib.data.batches import Batches, random_flips
from dlcvlib.data.digits import load_digits
from dlcvlib.data.faces import load_faces
from dlcvlib.methods import adamatch, dann, dcgan, pixelda, vae
from dlcvlib.plots.images import to_png
from dlcvlib.training import device, loop
from dlcvlib.utils import memory

WARM_UP = 10
"""Steps before the clock starts."""
KERNELS = ("convolution", "addmm", "aten::mm")
"""What the profiler calls convolutions and matrix products, forward and backward."""


Batch = Callable[[int], Any]


def fit_rate(
    settings: TrainingSettings,
    create: Callable[[], device.Method],
    batches: Callable[[torch.device], Batch],
    steps: int,
    folder: Path,
) -> float:
    """Steps a second of `loop.fit` without evaluation, after a few to warm up."""
    torch.manual_seed(0)
    draw, times = batches(device.default()), []

    def batch(step: int) -> Any:
        if step in (WARM_UP, WARM_UP + steps):
            times.append(now())
        return draw(step)

    # One step more than is timed: its batch is asked for when the last timed one has been taken.
    settings = settings.replace(steps=WARM_UP + steps + 1)
    loop.fit(create(), batch, settings, folder, label="benchmark")
    loop.clear_checkpoints(folder)
    started, ended = times
    return steps / (ended - started)


def now() -> float:
    """Seconds, once the device has done all that it was given."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter()


@dataclass(frozen=True)
class Contender:
    """A method with profile quick's settings.

    Attributes:
        name: of the method.
        settings: its settings.
        create: makes it.
        batches: device -> (step -> batch).
        plain: the plain loop on PNGs, a generator that yields after each step.
    """

    name: str
    settings: TrainingSettings
    create: Callable[[], device.Method]
    batches: Callable[[torch.device], Batch]
    plain: Callable[[], Iterator[None]]

    def precision(self) -> str:
        """What `fit` trains it in."""
        batch = self.batches(device.default())
        return device.choose(self.settings, self.create(), batch)[0]

    def plain_rate(self, steps: int) -> float:
        """Steps a second of the plain loop."""
        torch.manual_seed(0)
        loop = self.plain()
        for _ in range(WARM_UP):
            next(loop)
        started = now()
        for _ in range(steps):
            next(loop)
        seconds = now() - started
        loop.close()
        return steps / seconds

    def our_rate(self, steps: int, folder: Path) -> float:
        """Steps a second of `loop.fit`, with all that it does but evaluation."""
        return fit_rate(self.settings, self.create, self.batches, steps, folder)

    def step_rate(self, steps: int) -> float:
        """Steps a second of the method's step alone, on one batch that lies on the device."""
        with memory.kept_between_steps():
            step = self._step_alone()
            started = now()
            for _ in range(steps):
                step()
            return steps / (now() - started)

    def kernel_share(self, steps: int) -> float:
        """Share of the step alone that convolutions and matrix products take on a CPU, 0 to 1.

        It is what no change around these kernels can save. Their time is the profiler's, that of
        the step is without it, since it slows down all else. NaN on a GPU: networks this small keep
        it waiting for the next kernel, so that the share of its time says nothing.
        """
        if torch.accelerator.is_available():
            return math.nan
        with memory.kept_between_steps():
            step = self._step_alone()
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

    def _step_alone(self) -> Callable[[], None]:
        torch.manual_seed(0)
        method = self.create()
        device.prepare(method, self.precision())
        batch = self.batches(device.default())(0)
        for _ in range(WARM_UP):
            method.step(batch)
        return lambda: method.step(batch)


@functools.cache
def contenders(precision: str, folder: Path) -> list[Contender]:
    """All five methods on profile quick's embedded data, whose images are PNGs in `folder` too.

    PixelDA twice: as quick trains it, with a step for T alone, and with T moved by G's step, which
    is what the plain loop does.
    """
    changes = {"precision": precision, "runs_dir": str(folder / "runs")}
    face, gan, digit, pixel = (
        profiles.load("quick", chapter, changes) for chapter in ("vae", "gan", "dann", "pixelda")
    )
    faces, digits = load_faces(face), load_digits(digit)
    pair = digits.pairs["usps->mnistm"]
    data = pair.adaptation()
    write(faces.train.images, torch.zeros(len(faces.train.images)), folder / "faces")
    for name, domain in (("source", pair.source), ("target", pair.target)):
        write(domain.train.images, domain.train.labels, folder / name)

    def face_batches(settings: TrainingSettings) -> Callable:
        flips = random_flips(settings.horizontal_flip, vertical=False)
        images = [faces.train.images]
        return lambda device: Batches(images, settings.batch_size, settings.seed, device, flips)

    def pair_batches(settings: TrainingSettings, source: str, target: str) -> Callable:
        views = AUGMENTATIONS[source], AUGMENTATIONS[target]
        return dann.two_domains(data, settings, settings.seed, *views)

    places = folder / "source", folder / "target"

    def of_pixelda(name: str, settings: TrainingSettings) -> Contender:
        return Contender(
            name,
            settings,
            lambda: pixelda.PixelDA(settings),
            pair_batches(settings, "geometric", "geometric"),
            lambda: plain.train_pixelda(settings, *places),
        )

    v, g, d = face.settings, gan.settings, digit.settings(0)
    p, a = pixel.settings(0), pixel.adamatch(0)
    return [
        Contender(
            "VAE",
            v,
            lambda: vae.VAE(v),
            face_batches(v),
            lambda: plain.train_vae(v, folder / "faces"),
        ),
        Contender(
            "DCGAN",
            g,
            lambda: dcgan.DCGAN(g),
            face_batches(g),
            lambda: plain.train_dcgan(g, folder / "faces"),
        ),
        Contender(
            "DANN",
            d,
            lambda: dann.DANN(d),
            pair_batches(d, "strong", "geometric"),
            lambda: plain.train_dann(d, *places),
        ),
        of_pixelda("PixelDA", p),
        of_pixelda("PixelDA, T with G", p.replace(classifier_with_generator=True, patient=False)),
        Contender(
            "AdaMatch",
            a,
            lambda: adamatch.AdaMatch(a),
            pair_batches(a, "none", "none"),
            lambda: plain.train_adamatch(a, *places),
        ),
    ]


def plain_rate(name: str, precision: str, folder: Path, steps: int) -> float:
    """Steps a second of a contender's plain loop, for a process of the plain loops' own.

    Where ours has trained it leaves a heap behind of which they would gain too.
    """
    # Else the loaders' workers would be begun as this process was, which takes seconds an epoch.
    multiprocessing.set_start_method(multiprocessing.get_all_start_methods()[0], force=True)
    (contender,) = (each for each in contenders(precision, folder) if each.name == name)
    return contender.plain_rate(steps)


def write(images: torch.Tensor, labels: torch.Tensor, folder: Path) -> None:
    """Images (N, 3, H, W) uint8 as PNGs that are named by label and number, if they are not yet."""
    if folder.exists():
        return
    folder.mkdir(parents=True)
    for number, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        (folder / f"{int(label)}-{number:06d}.png").write_bytes(to_png(image, scale=1))
