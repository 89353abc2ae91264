"""The variational autoencoder of chapter 1.

An encoder maps an image x to a Gaussian q(z|x), a decoder maps z back to an image, and both are
trained on the evidence lower bound, here with a weight on its second term:

    loss = ||x - decode(z)||^2 + kld_weight * KL(q(z|x) || N(0, I)),   z ~ q(z|x)

References:
    [1] Kingma, Welling: Auto-Encoding Variational Bayes. ICLR 2014. arXiv:1312.6114
    [2] Higgins et al.: beta-VAE. ICLR 2017 (the weight on the KL term)
    [3] Ghosh et al.: From Variational to Deterministic Autoencoders. ICLR 2020. arXiv:1903.12436
        (a density fitted to the latents after training)

Where we depart from the original homework: both terms are summed over pixels and latents and
averaged over the batch, so that neither batch size nor image size hides in the weight; the
decoder's transposed convolutions may overlap (`decoder_kernel=4`), which its own 2x2 ones do not;
the log-variance is clamped to a range that training leaves only when it diverges.
"""

import itertools
import warnings
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from dlcvlib.config.schema import VAESettings
from dlcvlib.data.batches import CHUNK, Batches, float_chunks, random_flips
from dlcvlib.data.types import FaceData
from dlcvlib.training import runs
from dlcvlib.training.loop import adam, evaluating, move
from dlcvlib.training.runs import Run, device_of
from dlcvlib.utils import fingerprints, storage

IMAGE_SIZE = 64
LOG_VARIANCE_RANGE = (-20.0, 10.0)
"""At KL weights near zero nothing else keeps exp(log-variance) from overflowing."""

FITTED = 10_000
"""Latents that a density is fitted to, at most."""

ACTIVATIONS = {"relu": nn.ReLU, "leaky_relu": nn.LeakyReLU}


class Encoder(nn.Module):
    """Conv + BatchNorm + ReLU + MaxPool blocks, then two linear heads.

    Args:
        channels: output channels of the blocks; each halves the image.
        latent_dim: length of z.
        normalise_heads: BatchNorm on the mean and the log-variance, as in the original's code.
    """

    def __init__(
        self,
        channels: Sequence[int] = (64, 128, 256, 512),
        latent_dim: int = 1024,
        normalise_heads: bool = False,
    ) -> None:
        super().__init__()
        blocks = []
        for in_channels, out_channels in zip((3, *channels), channels, strict=False):
            blocks += [
                nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
                nn.BatchNorm2d(out_channels),
                nn.MaxPool2d(2),  # before ReLU: the same result, on a quarter of the values
                nn.ReLU(),
            ]
        self.blocks = nn.Sequential(*blocks, nn.Flatten())
        side = IMAGE_SIZE >> len(channels)
        self.mean = _head(channels[-1] * side**2, latent_dim, normalise_heads)
        self.log_variance = _head(channels[-1] * side**2, latent_dim, normalise_heads)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 3, 64, 64) in 0..1 -> mean and log-variance of q(z|x), each (N, latent_dim)."""
        features = self.blocks(images)
        return self.mean(features), self.log_variance(features).clamp(*LOG_VARIANCE_RANGE)


def _head(features: int, latent_dim: int, normalise: bool) -> nn.Module:
    linear = nn.Linear(features, latent_dim)
    return nn.Sequential(linear, nn.BatchNorm1d(latent_dim)) if normalise else linear


class Decoder(nn.Module):
    """A linear layer, then ConvTranspose + BatchNorm + activation blocks.

    Args:
        channels: the encoder's channels; the decoder runs through them backwards.
        latent_dim: length of z.
        kernel: side of the transposed convolutions, of stride 2: 2 (blocks that touch) or 4
            (blocks that overlap).
        activation: "relu" or "leaky_relu".
        output: "sigmoid", or "tanh" moved to the same range.
        normalise_output: BatchNorm before that, as in the original's code.
    """

    def __init__(
        self,
        channels: Sequence[int] = (64, 128, 256, 512),
        latent_dim: int = 1024,
        kernel: int = 4,
        activation: Literal["relu", "leaky_relu"] = "leaky_relu",
        output: Literal["sigmoid", "tanh"] = "sigmoid",
        normalise_output: bool = False,
    ) -> None:
        super().__init__()
        widths = tuple(reversed(channels))
        side = IMAGE_SIZE >> len(channels)
        act = ACTIVATIONS[activation]
        self.stem = nn.Sequential(
            nn.Linear(latent_dim, widths[0] * side**2, bias=False),
            nn.BatchNorm1d(widths[0] * side**2),
            act(),
            nn.Unflatten(1, (widths[0], side, side)),
        )

        def upsample(in_channels: int, out_channels: int) -> nn.Module:
            padding = (kernel - 2) // 2
            return nn.ConvTranspose2d(
                in_channels, out_channels, kernel, stride=2, padding=padding, bias=out_channels == 3
            )

        blocks = []
        for in_channels, out_channels in itertools.pairwise(widths):
            blocks += [upsample(in_channels, out_channels), nn.BatchNorm2d(out_channels), act()]
        last = upsample(widths[-1], 3)
        self.blocks = nn.Sequential(*blocks, last, *[nn.BatchNorm2d(3)] * normalise_output)
        self.output = output

    def forward(self, z: Tensor) -> Tensor:
        """(N, latent_dim) -> images (N, 3, 64, 64) in 0..1."""
        x = self.blocks(self.stem(z)).float()
        return torch.sigmoid(x) if self.output == "sigmoid" else (torch.tanh(x) + 1) / 2


def reparameterise(mean: Tensor, log_variance: Tensor) -> Tensor:
    """z = mean + std * noise: a sample of q(z|x) that lets gradients through ([1], section 2.4)."""
    return mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)


def reconstruction_error(images: Tensor, reconstructions: Tensor) -> Tensor:
    """Squared error summed over an image's values: (N, C, H, W) twice -> (N,)."""
    return (images - reconstructions).square().flatten(1).sum(1)


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, exp(log_variance)) || N(0, I)) in nats ([1], appendix B): (N, D) -> (N,)."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)


class VAE:
    """Encoder, decoder and Adam, for `training.fit`."""

    def __init__(self, settings: VAESettings) -> None:
        self.settings = settings
        self.encoder = Encoder(settings.channels, settings.latent_dim, settings.normalise_heads)
        self.decoder = Decoder(
            settings.channels,
            settings.latent_dim,
            settings.decoder_kernel,
            settings.activation,
            settings.output,
            settings.normalise_output,
        )
        self.modules = {"encoder": self.encoder, "decoder": self.decoder}

    @cached_property
    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Encoder's and decoder's, as one."""
        return {"adam": adam(self.modules.values(), self.settings)}

    def step(self, batch: tuple[Tensor]) -> dict[str, Tensor]:
        """One step on the evidence lower bound; images (N, 3, 64, 64) in 0..1."""
        (images,) = batch
        terms = self.terms(images, sample=True)
        loss = terms["mse"] + self.settings.kld_weight * terms["kld"]
        move(loss, self.optimizers.values())
        return terms

    def terms(self, images: Tensor, *, sample: bool) -> dict[str, Tensor]:
        """The loss's two terms, an image's mean; z is a sample of q(z|x), or else its mean."""
        mean, log_variance = self.encoder(images)
        z = reparameterise(mean, log_variance) if sample else mean
        return {
            "mse": reconstruction_error(images, self.decoder(z)).mean(),
            "kld": kl_divergence(mean, log_variance).mean(),
        }

    @torch.no_grad()
    def evaluate(self, images: Tensor) -> dict[str, float]:
        """The loss's terms on held-out images (N, 3, 64, 64) uint8, z drawn as in training."""
        with evaluating(self.modules):
            chunks = [
                [len(chunk) * value for value in self.terms(chunk, sample=True).values()]
                for chunk in float_chunks(images, device_of(self.encoder))
            ]
        mse, kld = torch.tensor(chunks).sum(0).div(len(images)).tolist()
        return {"mse": mse, "kld": kld}

    @torch.no_grad()
    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q(z|x) of images (N, 3, 64, 64) uint8, on the CPU."""
        chunks = float_chunks(images, device_of(self.encoder))
        means, log_variances = zip(*(self.encoder(chunk) for chunk in chunks), strict=True)
        return torch.cat(means).cpu(), torch.cat(log_variances).cpu()

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Means of q(z|x): (N, 3, 64, 64) uint8 -> (N, latent_dim) on the CPU."""
        chunks = float_chunks(images, device_of(self.encoder))
        return torch.cat([self.encoder(chunk)[0].cpu() for chunk in chunks])

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """(N, latent_dim) -> images (N, 3, 64, 64) in 0..1 on the CPU."""
        device = device_of(self.decoder)
        return torch.cat([self.decoder(chunk.to(device)).cpu() for chunk in z.split(CHUNK)])

    def reconstruct(self, images: Tensor) -> Tensor:
        """(N, 3, 64, 64) uint8 -> their reconstructions in 0..1, from the mean of q(z|x)."""
        return self.decode(self.encode(images))


def prior_samples(count: int, latent_dim: int, seed: int) -> Tensor:
    """z ~ N(0, I): (count, latent_dim), the same for the same seed."""
    return torch.randn(count, latent_dim, generator=torch.Generator().manual_seed(seed))


def fitted_samples(latents: Tensor, count: int, seed: int, components: int = 10) -> Tensor:
    """z from a Gaussian mixture fitted to latent means ([3], section 4): (count, latent_dim).

    To the first `FITTED` of them: more take gigabytes.
    """
    # Loaded here: scikit-learn takes more than a second, and most of this module does without it.
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    mixture = GaussianMixture(components, reg_covar=1e-3, max_iter=20, random_state=seed)
    with warnings.catch_warnings():
        # Twenty rounds of EM are enough to sample from; convergence to 1e-3 is not needed.
        warnings.simplefilter("ignore", ConvergenceWarning)
        mixture.fit(latents[:FITTED].double().numpy())
    z, _ = mixture.sample(count)
    order = np.random.default_rng(seed).permutation(count)  # sample() sorts by component
    return torch.from_numpy(z[order]).float()


def training_latents(run: Run[VAE], faces: FaceData) -> Tensor:
    """Means of q(z|x) of the training images: (N, latent_dim).

    Several notebooks fit something to them; they are computed once and kept in the runs' `latents`.
    """
    identity = [run.provenance["files"]["model.safetensors"], faces.fingerprint]
    name = f"{run.name}-{fingerprints.json_hash(identity)[:16]}"
    folder = storage.make_dir(run.folder.parent / "latents" / name)

    def encode() -> tuple[dict[str, Tensor], dict[str, str]]:
        return {"mean": run.method.encode(faces.train.images)}, {}

    return storage.cached(folder / "mean.safetensors", encode)[0]["mean"]


def train_or_load(settings: VAESettings, faces: FaceData, runs_dir: Path | str) -> Run[VAE]:
    """The VAE of these settings on these faces, trained now or by an earlier run."""
    flips = random_flips(settings.horizontal_flip, settings.vertical_flip)
    return runs.train_or_load(
        "vae",
        lambda: VAE(settings),
        lambda device: Batches(
            [faces.train.images], settings.batch_size, settings.seed, device, flips
        ),
        settings,
        data=faces.fingerprint,
        runs_dir=runs_dir,
        code=["methods/vae"],
        evaluate=lambda method: method.evaluate(faces.validation.images),
    )
