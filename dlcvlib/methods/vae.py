"""The variational autoencoder of chapter 1.

An encoder maps an image x to a Gaussian q(z|x), a decoder maps z back to an image, and both are
trained on the evidence lower bound, with a weight on its second term:

    loss = E + kld_weight * KL(q(z|x) || N(0, I)),   z ~ q(z|x)

E is the squared error SE = ||x - decode(z)||^2 ("sum", the original's) or, with a calibrated
decoder ([3], section 4.2), D/2 log(SE/D): up to a constant the negative log-likelihood of an image
of D values under a Gaussian whose variance is the best one for the batch, its mean SE/D. That needs
no weight: kld_weight is then 1.

References:
    [1] Kingma, Welling: Auto-Encoding Variational Bayes. ICLR 2014. arXiv:1312.6114
    [2] Higgins et al.: beta-VAE. ICLR 2017 (the weight on the KL term)
    [3] Rybkin, Daniilidis, Levine: Simple and Effective VAE Training with Calibrated Decoders.
        ICML 2021. arXiv:2006.13202

Departures from the original homework: the decoder is calibrated, except in profile `original`; both
terms are summed over pixels and latents and averaged over the batch, so that the weight does not
depend on the batch size; the decoder's transposed convolutions may overlap (`decoder_kernel=4`),
unlike the original's 2x2 ones; the log-variance is clamped to a range that training leaves only
when it diverges.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dlcvlib.config.schema import VAESettings
from dlcvlib.data.batches import Batches, random_flips, resized
from dlcvlib.data.types import FaceData
from dlcvlib.methods.blocks import doubling, halving, stem
from dlcvlib.training.method import Batch, Method, update
from dlcvlib.training.processes import batch_mean

LOG_VARIANCE_RANGE = (-20.0, 10.0)
"""At KL weights near zero nothing else keeps exp(log-variance) from overflowing."""

ROUNDING = 1 / (12 * 255**2)
"""Variance of rounding to 8 bits: the least that a calibrated decoder can have."""

ACTIVATIONS = {"relu": nn.ReLU, "leaky_relu": nn.LeakyReLU}


class Encoder(nn.Module):
    """Conv + BatchNorm + ReLU + MaxPool blocks, then two linear heads.

    Args:
        settings: `image_size`; `channels`, of the blocks' outputs, each of which halves the image;
            `latent_dim`; `normalise_heads`, BatchNorm on mean and log-variance, as in the
            original's code.
    """

    def __init__(self, settings: VAESettings) -> None:
        super().__init__()
        channels, latent_dim = settings.channels, settings.latent_dim
        self.blocks = nn.Sequential(*halving(channels), nn.Flatten())

        def head() -> nn.Module:
            side = settings.image_size >> len(channels)
            norm = [nn.BatchNorm1d(latent_dim)] * settings.normalise_heads
            return nn.Sequential(nn.Linear(channels[-1] * side**2, latent_dim), *norm)

        self.mean, self.log_variance = head(), head()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 3, 64, 64) in 0..1 -> mean and log-variance of q(z|x), each (N, latent_dim)."""
        features = self.blocks(images)
        return self.mean(features), self.log_variance(features).clamp(*LOG_VARIANCE_RANGE)


class Decoder(nn.Module):
    """A linear layer, then ConvTranspose + BatchNorm + activation blocks.

    Args:
        settings: `channels`, the encoder's, which are used in reverse order; `latent_dim`;
            `decoder_kernel`, the side of the transposed convolutions, of stride 2: 2 (adjacent
            patches) or 4 (overlapping ones); `activation`; `output`, "sigmoid", or "tanh" rescaled
            to the same range; `normalise_output`, BatchNorm before it, as in the original's code.
    """

    def __init__(self, settings: VAESettings) -> None:
        super().__init__()
        widths, activation = settings.channels[::-1], ACTIVATIONS[settings.activation]
        side = settings.image_size >> len(widths)
        self.stem = stem(settings.latent_dim, widths[0], side, activation)
        self.blocks = nn.Sequential(*doubling(widths, settings.decoder_kernel, activation))
        if settings.normalise_output:
            self.blocks.append(nn.BatchNorm2d(3))
        self.output = settings.output

    def forward(self, z: Tensor) -> Tensor:
        """(N, latent_dim) -> images (N, 3, 64, 64) in 0..1."""
        x = self.blocks(self.stem(z)).float()
        return torch.sigmoid(x) if self.output == "sigmoid" else (torch.tanh(x) + 1) / 2


def reparameterise(mean: Tensor, log_variance: Tensor) -> Tensor:
    """z = mean + std * noise: a sample of q(z|x) that lets gradients through ([1], section 2.4)."""
    return mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)


def reconstruction_error(images: Tensor, reconstructions: Tensor) -> Tensor:
    """Squared error summed over each image's values: (N, C, H, W) twice -> (N,)."""
    return (images - reconstructions).square().flatten(1).sum(1)


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, exp(log_variance)) || N(0, I)) in nats ([1], appendix B): (N, D) -> (N,)."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)


class VAE(Method):
    """Encoder and decoder, trained on the evidence lower bound by one Adam."""

    name = "vae"

    def __init__(self, settings: VAESettings) -> None:
        super().__init__(settings)
        self.encoder, self.decoder = Encoder(settings), Decoder(settings)

    def batches(self, data: FaceData, device: torch.device) -> Callable[[int], Batch]:
        """Training images (N, 3, 64, 64) in 0..1, flipped at random."""
        settings = self.settings
        flips = random_flips(settings.horizontal_flip, settings.vertical_flip)
        return Batches([data.train.images], settings.batch_size, settings.seed, device, flips)

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        """One step on the evidence lower bound."""
        (images,) = batch
        terms = {name: batch_mean(values) for name, values in self.terms(images).items()}
        loss = self.objective(**terms)
        update(loss, self.optimizers.values())
        return {"loss": loss, **terms}

    def objective(self, mse: Tensor, kld: Tensor) -> Tensor:
        """What is minimised, of a batch's mean `terms`: scalar."""
        if self.settings.reconstruction_loss == "calibrated":
            values = 3 * self.settings.image_size**2
            mse = values / 2 * torch.log(mse / values + ROUNDING)
        return mse + self.settings.kld_weight * kld

    def terms(self, images: Tensor) -> dict[str, Tensor]:
        """Squared error and KL divergence of images (N, 3, 64, 64), (N,) each, z ~ q(z|x)."""
        images = resized(images, self.settings.image_size)
        mean, log_variance = self.encoder(images)
        z = reparameterise(mean, log_variance)
        return {
            "mse": reconstruction_error(images, self.decoder(z)),
            "kld": kl_divergence(mean, log_variance),
        }

    def evaluate(self, data: FaceData) -> dict[str, float]:
        """Loss and its terms on validation images, z drawn as in training."""
        images = data.validation.images
        mse, kld = self.over(lambda x: torch.stack([*self.terms(x).values()], 1), images).mean(0)
        means = {"loss": self.objective(mse, kld), "mse": mse, "kld": kld}
        return {name: value.item() for name, value in means.items()}

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q(z|x), each (N, D) on the CPU, of uint8 (N, 3, 64, 64)."""

        def heads(chunk: Tensor) -> Tensor:
            return torch.stack(self.encoder(resized(chunk, self.settings.image_size)), 1)

        both = self.over(heads, images)
        return both[:, 0].contiguous(), both[:, 1].contiguous()

    def encode(self, images: Tensor) -> Tensor:
        """Means of q(z|x): (N, 3, 64, 64) uint8 -> (N, latent_dim) on the CPU."""
        return self.posterior(images)[0]

    def decode(self, z: Tensor) -> Tensor:
        """(N, latent_dim) -> images (N, 3, 64, 64) in 0..1 on the CPU."""
        return self.over(self.decoder, z)

    def reconstruct(self, images: Tensor) -> Tensor:
        """(N, 3, 64, 64) uint8 -> their reconstructions in 0..1, from the mean of q(z|x)."""
        return self.decode(self.encode(images))
