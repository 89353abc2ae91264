"""The DCGAN of chapter 2, the original's training tricks, and later remedies.

A generator G maps noise z to an image, a discriminator D distinguishes real images from G's, and
they are trained against each other:

    D minimises  -log D(x) - log(1 - D(G(z))),   G minimises  -log D(G(z)),   z ~ N(0, I)

References:
    [1] Goodfellow et al.: Generative Adversarial Nets. NIPS 2014. arXiv:1406.2661
    [2] Radford et al.: Unsupervised Representation Learning with Deep Convolutional Generative
        Adversarial Networks. ICLR 2016. arXiv:1511.06434
    [3] Salimans et al.: Improved Techniques for Training GANs. NIPS 2016 (labels below 1 for real)
    [4] Soenderby et al.: Amortised MAP Inference. ICLR 2017. arXiv:1610.04490 (noise on D's input)
    [5] Miyato et al.: Spectral Normalization. ICLR 2018. arXiv:1802.05957 (also the hinge loss)
    [6] Yazici et al.: The Unusual Effectiveness of Averaging in GAN Training. ICLR 2019
    [7] Zhao et al.: Differentiable Augmentation. NeurIPS 2020. arXiv:2006.10738
    [8] Huang et al.: The GAN is Dead; Long Live the GAN! A Modern GAN Baseline. NeurIPS 2024.
        arXiv:2501.05441 (R3GAN: relativistic loss with gradient penalties)

[8] compares pairs of a real and a generated image and penalises D's gradient at both:

    D minimises  softplus(D(G(z)) - D(x)) + γ/2 (|∇D(x)|² + |∇D(G(z))|²),
    G minimises  softplus(D(x) - D(G(z)))

Departures from the original homework: D outputs a logit and the loss contains the Sigmoid, for
numerical stability; labels are flipped per image, not per batch.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from accelerate.utils import gather
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from dlcvlib.config.schema import GANSettings
from dlcvlib.data.batches import Batches, prior_samples, random_flips, resized
from dlcvlib.data.types import MeasuredFaces
from dlcvlib.methods.averaging import Average, with_statistics
from dlcvlib.methods.blocks import doubling, stem
from dlcvlib.methods.diffaugment import augment
from dlcvlib.training.method import Batch, Method, update

SMALLEST = 4
"""Side of the smallest feature maps of both networks."""
STATISTICS = 24, 64
"""Batches, and noise vectors in each, that the averaged generator's BatchNorm is estimated from."""


def widths_of(settings: GANSettings) -> list[int]:
    """Channels after each convolution that halves the side, from the image down to 4x4."""
    halvings = int(math.log2(settings.image_size // SMALLEST))
    return [settings.channels << stage for stage in range(halvings)]


class Generator(nn.Module):
    """A linear layer to 4x4, then ConvTranspose that each double the side ([2], fig. 1).

    BatchNorm and ReLU follow each but the last, which ends in Tanh.

    Args:
        settings: `channels`, number before the last stage, doubled for each stage further back;
            `latent_dim`; `kernel`, side of the transposed convolutions, 4 or 5.
    """

    def __init__(self, settings: GANSettings) -> None:
        super().__init__()
        widths = widths_of(settings)[::-1]
        self.stem = stem(settings.latent_dim, widths[0], SMALLEST, nn.ReLU)
        self.blocks = nn.Sequential(*doubling(widths, settings.kernel, nn.ReLU), nn.Tanh())
        initialise(self)

    def forward(self, z: Tensor) -> Tensor:
        """(N, latent_dim) -> images (N, 3, S, S) in -1..1."""
        return self.blocks(self.stem(z))


class Discriminator(nn.Module):
    """Stride-2 Conv + BatchNorm + LeakyReLU blocks down to 4x4, then a 4x4 convolution to a logit.

    No pooling, and no BatchNorm in the first block ([2], section 3).

    Args:
        settings: `channels`, number after the first convolution, doubled by each that follows;
            `kernel`, side of the convolutions, 4 or 5; `discriminator_norm`, "batch", or in place
            of BatchNorm "spectral" normalisation of every layer's weights ([5]), or "none", with
            initial weights by He et al. in place of small ones ([8]).
    """

    def __init__(self, settings: GANSettings) -> None:
        super().__init__()
        kernel, norm = settings.kernel, settings.discriminator_norm
        widths = widths_of(settings)
        conv = partial(nn.Conv2d, kernel_size=kernel, stride=2, padding=(kernel - 1) // 2)
        layers = [conv(3, widths[0]), nn.LeakyReLU(0.2)]
        for in_channels, out_channels in itertools.pairwise(widths):
            layers.append(conv(in_channels, out_channels, bias=norm != "batch"))
            if norm == "batch":
                layers.append(nn.BatchNorm2d(out_channels))
            layers.append(nn.LeakyReLU(0.2))
        last = nn.Conv2d(widths[-1], 1, SMALLEST)
        self.layers = nn.Sequential(*layers, last, nn.Flatten(0))
        initialise(self)
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d) and norm == "spectral":
                spectral_norm(layer)
            elif isinstance(layer, nn.Conv2d) and norm == "none":
                nn.init.kaiming_normal_(layer.weight, 0.2)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 3, S, S) in -1..1 -> logits of being real (N,)."""
        return self.layers(images)


def initialise(module: nn.Module) -> None:
    """Weights from N(0, 0.02) ([2], section 4), BatchNorm's scale from N(1, 0.02), as usual."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.normal_(layer.weight, 0.0, 0.02)
        elif isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(layer.weight, 1.0, 0.02)


# --- losses -------------------------------------------------------------------------------------


def labels(count: int, soft: Sequence[float], flipped: float, device: torch.device) -> Tensor:
    """D's targets for real and for generated images: (2, count).

    Args:
        count: images of each kind.
        soft: range from which the labels of real images are drawn ([3]); generated ones have 0.
        flipped: probability that an image gets the other kind's label.
        device: of the labels.
    """
    real = torch.empty(count, device=device).uniform_(*soft)
    fake = torch.zeros(count, device=device)
    swap = torch.stack([torch.rand(count, device=device) for _ in range(2)]) < flipped
    return torch.where(swap, torch.stack([fake, real]), torch.stack([real, fake]))


def discriminator_loss(kind: str, on_real: Tensor, on_fake: Tensor, targets: Tensor) -> Tensor:
    """D's loss on its logits of real and of generated images, (N,) each: scalar.

    Args:
        kind: "bce", binary cross-entropy with the Sigmoid inside; "hinge", which requires a margin
            of 1 on the side nearer to the target ([5], eq. 16); "relativistic", which compares each
            real image with a generated one ([8], eq. 2), the other way round if its label is
            flipped.
        on_real: logits of real images.
        on_fake: logits of generated images.
        targets: in 0..1, of both: (2, N).
    """
    logits, signs = torch.stack([on_real, on_fake]), torch.where(targets > 0.5, 1.0, -1.0)
    if kind == "bce":
        return 2 * F.binary_cross_entropy_with_logits(logits, targets)
    if kind == "hinge":
        return 2 * F.relu(1 - logits * signs).mean()
    return F.softplus(signs[0] * (on_fake - on_real)).mean()


def generator_loss(kind: str, on_real: Tensor, on_fake: Tensor) -> Tensor:
    """G's loss on D's logits of real and of generated images, (N,) each: scalar.

    "bce" is the non-saturating -log D(G(z)) ([1], section 3), "hinge" is -D(G(z)) ([5], eq. 17),
    "relativistic" is D's loss with the pairs reversed ([8], section 2).
    """
    if kind == "relativistic":
        return F.softplus(on_real - on_fake).mean()
    return F.softplus(-on_fake).mean() if kind == "bce" else -on_fake.mean()


def gradient_penalty(images: Tensor, logits: Tensor) -> Tensor:
    """Mean squared norm of D's gradient at images (N, C, S, S) with logits (N,): scalar.

    "R1" at real images, "R2" at generated ones ([8], eq. 3).
    """
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradient.square().sum((1, 2, 3)).mean()


# --- the method ---------------------------------------------------------------------------------


class DCGAN(Method):
    """Generator, discriminator and the generator's moving average; G and D have an Adam each."""

    name = "dcgan"

    def __init__(self, settings: GANSettings) -> None:
        super().__init__(settings)
        self.second_derivatives = settings.gradient_penalty > 0
        self.trains = {"generator": ["generator"], "discriminator": ["discriminator"]}
        self.generator, self.discriminator = Generator(settings), Discriminator(settings)
        if settings.ema_decay:
            self.averaged = Average(self.generator, settings.ema_decay)
        if settings.keep_snapshots:  # of the generator that samples are drawn from
            self.snapshots = ("averaged" if settings.ema_decay else "generator",)

    def batches(self, data: MeasuredFaces, device: torch.device) -> Callable[[int], Batch]:
        """Training images (N, 3, 64, 64) in 0..1, mirrored at random."""
        settings, images = self.settings, data.faces.train.images
        flips = random_flips(settings.horizontal_flip, vertical=False)
        return Batches([images], settings.batch_size, settings.seed, device, flips)

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        """One step of D, then one or several of G."""
        (images,) = batch
        real = 2 * resized(images, self.settings.image_size) - 1
        fake = self.generator(self.noise(len(real), real.device))
        terms = self._train_discriminator(real, fake.detach())
        # G's first step uses the images that D has just been trained on.
        terms |= self._train_generator(real, fake)
        if self.step < self.settings.generator_steps_until:
            for _ in range(self.settings.generator_steps - 1):
                self._train_generator(real, self.generator(self.noise(len(real), real.device)))
        if self.settings.ema_decay:
            self.averaged.update(self.generator, self.step)
        return terms

    def _train_discriminator(self, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
        settings = self.settings
        flipped = settings.flip_labels if self.step < settings.flip_labels_until else 0.0
        targets = labels(len(real), settings.soft_labels, flipped, real.device)
        penalised = settings.gradient_penalty > 0
        shown = [self.shown(images).requires_grad_(penalised) for images in (real, fake)]
        on_real, on_fake = map(self.discriminator, shown)
        loss = total = discriminator_loss(settings.loss, on_real, on_fake, targets)
        if penalised:
            penalties = map(gradient_penalty, shown, (on_real, on_fake))
            total = loss + settings.gradient_penalty / 2 * sum(penalties)
        update(total, [self.optimizers["discriminator"]])
        return {
            "discriminator": loss,
            "d_real": on_real.sigmoid().mean(),
            "d_fake": on_fake.sigmoid().mean(),
            # Of all pairs of a real and a generated image, the share in the right order.
            "d_accuracy": (on_real[:, None] > gather(on_fake)).float().mean(),
        }

    def _train_generator(self, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
        on_real = on_fake = self.discriminator(self.shown(fake))
        if self.settings.loss == "relativistic":
            with torch.no_grad():
                on_real = self.discriminator(self.shown(real))
        loss = generator_loss(self.settings.loss, on_real, on_fake)
        update(loss, [self.optimizers["generator"]])
        return {"generator": loss}

    def noise(self, count: int, device: torch.device) -> Tensor:
        """z ~ N(0, I): (count, latent_dim)."""
        return torch.randn(count, self.settings.latent_dim, device=device)

    def shown(self, images: Tensor) -> Tensor:
        """Images (N, 3, S, S) in -1..1 as D sees them: blurred, noisy and augmented."""
        settings, left = self.settings, 1 - self.step / self.settings.steps
        if blur := settings.input_blur * left:
            from torchvision.transforms.v2.functional import gaussian_blur  # loads slowly

            # As matrix products: on a GPU, the gradient of padding is not exactly reproducible.
            pixels = torch.eye(images.shape[-1], device=images.device)[None]
            size = 2 * math.ceil(3 * settings.input_blur) + 1
            matrix = gaussian_blur(pixels, [1, size], [1.0, blur])
            images = matrix @ images @ matrix.mT
        if noise := settings.input_noise * left:
            # Not randn_like: drawing in the order of a channels_last tensor is many times slower.
            images = images + noise * torch.randn(images.shape, device=images.device)
        return augment(images, settings.augmentation)

    def sampler(self) -> nn.Module:
        """The averaged generator, with BatchNorm statistics estimated anew; else the last one."""
        if not self.settings.ema_decay:
            return self.generator
        count, size = STATISTICS
        noise = prior_samples(count * size, self.settings.latent_dim, seed=1).to(self.device)
        return with_statistics(self.averaged.module, noise.split(size))

    def sample(self, z: Tensor, *, averaged: bool = True) -> Tensor:
        """(N, latent_dim) -> images (N, 3, S, S) in 0..1 on the CPU.

        Args:
            z: the noise.
            averaged: use the averaged generator, if there is one (see `sampler`).
        """
        generator = self.sampler() if averaged else self.generator
        return (self.over(generator, z) + 1) / 2

    def evaluate(self, data: MeasuredFaces) -> dict[str, float]:
        """Quality of samples compared with as many held-out faces; the noise is always the same.

        Of the generator and, under names that end in "_averaged", of its moving average. Nothing is
        measured where no faces are held out.
        """
        if not data.held_out:
            return {}
        z = prior_samples(data.held_out, self.settings.latent_dim, seed=0)
        values = data.quality(self.sample(z, averaged=False))
        if self.settings.ema_decay:
            averaged = data.quality(self.sample(z))
            values |= {f"{name}_averaged": value for name, value in averaged.items()}
        return values
