"""PixelDA, chapter 4: source images translated to the target's style, and a classifier for both.

A generator G maps a source image and noise to an image that a discriminator D should mistake for a
target image; a task classifier T learns the source's labels on source images and on G's
translations:

    D minimises  adversarial loss,    T minimises  task loss,
    G minimises  adversarial_weight * (D loss of fakes labelled target) + task_weight * task loss
                 + content_weight * content loss

References:
    [1] Bousmalis et al.: Unsupervised Pixel-Level Domain Adaptation with Generative Adversarial
        Networks. CVPR 2017. arXiv:1612.05424
    [2] Mao et al.: Least Squares Generative Adversarial Networks. ICCV 2017. arXiv:1611.04076
    [3] Heusel et al.: GANs Trained by a Two Time-Scale Update Rule. NIPS 2017. arXiv:1706.08500
    [4] Sønderby et al.: Amortised MAP Inference for Image Super-resolution. ICLR 2017.
        arXiv:1610.04490 (instance noise)

T is the network of chapter 3, whereas the original gives it D's architecture; source and generated
images pass through it in one batch, so that BatchNorm sees both. Under strong augmentation, G and D
see only the geometric part and T the photometric part too, since G should not learn to imitate
augmented colours. Half of the source images that T sees keep their own colours; without them, T can
stay at chance for most of a short run. Generated images are augmented again before T sees them, so
that G and T cannot agree on patterns that are not digits.

Departures from [1], all of them parameters, because D otherwise overpowers G within a few hundred
steps: a "residual" G that begins as the identity, with coarse noise; learning rates of their own
for G and D ([3]); noise on D's input that falls to 0 ([4]); a content loss that lets G change the
colours and invert them. With `patient` (a label warm-up), the adversarial loss counts in G's only
as far as T has `learned` the source's labels: before, nothing would keep the digits. The task loss
is the mean of those on source and generated images, where [1] adds them: our `task_weight` is twice
that of [1]. `classifier_with_generator` updates T in the step of G, as the original homework's code
does; in [1] it is updated with D, which takes a second pass through T. `softmax_twice` is an
implementation error of that code: a Softmax before a cross-entropy that contains one.
"""

import itertools
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlcvlib.config.schema import PixelDAParams, PixelDASettings
from dlcvlib.data.augment import photometric, strong
from dlcvlib.methods.classifier import IMAGE_SIZE, TwoDomains, learned
from dlcvlib.training.method import Batch, update


class ResidualBlock(nn.Module):
    """x + Conv, BatchNorm, ReLU, Conv, BatchNorm of x ([1], fig. 2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> the same shape."""
        return x + self.layers(x)


COARSE = 4
"""Side of the residual generator's noise maps, which are enlarged to that of the image."""


class Enlarge(nn.Module):
    """Maps (N, C, COARSE, COARSE) -> (N, C, 32, 32), smoothed by a mean over 7 × 7 pixels.

    As matrix products: a pooling layer takes a sixth of a training step, and the gradient of
    bilinear interpolation on a GPU depends on the order of its sums.
    """

    def __init__(self) -> None:
        super().__init__()
        factor = IMAGE_SIZE // COARSE
        nearest = torch.eye(COARSE).repeat_interleave(factor, 1)
        smooth = F.avg_pool1d(nearest, factor - 1, 1, factor // 2 - 1, count_include_pad=False)
        self.register_buffer("smooth", smooth, persistent=False)

    def forward(self, maps: Tensor) -> Tensor:
        return self.smooth.mT @ maps @ self.smooth


class Generator(nn.Module):
    """G: noise mapped to three channels beside the image's, then residual blocks and Tanh.

    "direct" maps the noise to full size, as in [1]. "residual" maps it to `COARSE` maps, enlarged
    and smoothed, and adds the last convolution, 0 at first, to the source's logits: G begins as
    the identity.

    Args:
        settings: `generator`, one of these; `latent_dim`, length of the noise vector;
            `generator_channels`, width of the residual blocks; `residual_blocks`, their number.
    """

    def __init__(self, settings: PixelDASettings) -> None:
        super().__init__()
        channels, self.residual = settings.generator_channels, settings.generator == "residual"
        side = COARSE if self.residual else IMAGE_SIZE
        self.spread = nn.Sequential(
            nn.Linear(settings.latent_dim, 3 * side**2),
            nn.Unflatten(1, (3, side, side)),
            *[Enlarge()] * self.residual,
        )
        self.layers = nn.Sequential(
            nn.Conv2d(6, channels, 3, padding=1),
            nn.ReLU(),
            *(ResidualBlock(channels) for _ in range(settings.residual_blocks)),
            nn.Conv2d(channels, 3, 3, padding=1, bias=not self.residual),
        )
        if self.residual:
            nn.init.zeros_(self.layers[-1].weight)

    def forward(self, images: Tensor, z: Tensor) -> Tensor:
        """Images (N, 3, 32, 32) in 0..1 and noise (N, latent_dim) -> images in 0..1, float32."""
        joined = torch.cat([2 * images - 1, self.spread(z)], 1)
        # Tanh of half the logit is 2 * images - 1; limited, so that no logit is infinite.
        start = images.logit(0.02) / 2 if self.residual else 0.0
        return ((self.layers(joined).float() + start).tanh() + 1) / 2


class Discriminator(nn.Module):
    """D: four stride-2 Conv + normalisation + LeakyReLU blocks, then a value for each of 4 patches.

    The first block has no normalisation.

    Args:
        settings: `discriminator_channels`, number after the first convolution, doubled by each that
            follows; `discriminator_norm`, "instance" normalises by each image's own mean and
            deviation, which removes its colours, "batch" by those of the batch.
    """

    def __init__(self, settings: PixelDASettings) -> None:
        super().__init__()
        widths = [settings.discriminator_channels << stage for stage in range(4)]
        norms = {"instance": nn.InstanceNorm2d, "batch": nn.BatchNorm2d}
        normalise = norms[settings.discriminator_norm]
        conv = partial(nn.Conv2d, kernel_size=3, stride=2, padding=1)
        layers = [conv(3, widths[0]), nn.LeakyReLU(0.2)]
        for in_channels, out_channels in itertools.pairwise(widths):
            layers += [conv(in_channels, out_channels), normalise(out_channels), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 3, padding=1))

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, 32, 32) in 0..1 -> 1 for the target, 0 for G, per patch (N, 1, 2, 2)."""
        return self.layers(2 * images - 1)


def adversarial_loss(outputs: Tensor, target: bool) -> Tensor:
    """Loss of D's outputs if all patches are from the target, or none of them: scalar.

    The mean of (output - label)^2 ([2], eq. 2, without its factor 1/2), as in the original's code;
    [1] has a cross-entropy.
    """
    return F.mse_loss(outputs, torch.full_like(outputs, float(target)))


def task_loss(logits: Tensor, labels: Tensor, softmax_twice: bool = False) -> Tensor:
    """Cross-entropy of logits (N, 10) and labels (N,): scalar ([1], eq. 3).

    `softmax_twice` applies a Softmax to the logits first. Whatever the logits, it cannot fall below
    log(e + 9) - 1, or 1.46, and its gradient hardly distinguishes a confident prediction from a
    correct one.
    """
    return F.cross_entropy(logits.softmax(1) if softmax_twice else logits, labels)


def content_loss(images: Tensor, others: Tensor) -> Tensor:
    """1 minus the squared correlation of grey values, image by image: scalar, 0 to 1.

    It is in place of the masked pairwise squared error of [1], eq. 5: these digits have no mask,
    and a translation may invert them. Colours, contrast and inversion cost nothing.

    Args:
        images: (N, 3, H, W).
        others: (N, 3, H, W).
    """
    greys = (batch.mean(1).flatten(1) for batch in (images, others))
    x, y = (grey - grey.mean(1, keepdim=True) for grey in greys)
    products, squares = (x * y).sum(1), x.square().sum(1) * y.square().sum(1)
    return (1 - products.square() / (squares + 1e-3)).mean()


class PixelDA(TwoDomains):
    """G, D and T; T is an extractor and a classifier."""

    name, title = "pixelda", "PixelDA"
    settings_of = staticmethod(PixelDAParams.settings)

    def __init__(self, settings: PixelDASettings) -> None:
        super().__init__(settings)
        self.trains |= {"generator": ["generator"], "discriminator": ["discriminator"]}
        self.rates["generator"] = settings.generator_rate
        self.rates["discriminator"] = settings.discriminator_rate
        self.generator, self.discriminator = Generator(settings), Discriminator(settings)

    @property
    def augmentations(self) -> tuple[str, str]:
        """Of "strong", source images get the photometric part only before T."""
        source, target = super().augmentations
        return "geometric" if source == "strong" else source, target

    def training_step(self, batch: Batch) -> dict[str, Tensor]:
        """A step of D and T, then one of G ([1], section 3)."""
        x_s, y_s, x_t = batch
        fake = self.generator(x_s, self.noise(len(x_s), x_s.device))
        terms = self._train_discriminator(x_t, fake.detach())
        if not self.settings.classifier_with_generator:
            losses = self._task_losses(x_s, y_s, fake.detach())
            update(sum(losses) / 2, [self.optimizers["classifier"]])
        return terms | self._train_generator(x_s, y_s, fake)

    def _train_discriminator(self, x_t: Tensor, fake: Tensor) -> dict[str, Tensor]:
        on_target, on_fake = self._discriminate(x_t), self._discriminate(fake)
        loss = adversarial_loss(on_target, True) + adversarial_loss(on_fake, False)
        update(loss, [self.optimizers["discriminator"]])
        correct = (on_target > 0.5).float().mean() + (on_fake <= 0.5).float().mean()
        outputs = {"d_real": on_target.mean(), "d_fake": on_fake.mean()}
        return {"discriminator": loss, "discriminator_accuracy": correct / 2} | outputs

    def _discriminate(self, images: Tensor) -> Tensor:
        """D's outputs for images with the instance noise of this step."""
        if std := self.settings.instance_noise * (1 - self.step / self.settings.steps):
            # Not randn_like: drawing in the order of a channels_last tensor is many times slower.
            images = images + std * torch.randn(images.shape, device=images.device)
        return self.discriminator(images)

    def _train_generator(self, x_s: Tensor, y_s: Tensor, fake: Tensor) -> dict[str, Tensor]:
        settings, updated = self.settings, [self.optimizers["generator"]]
        if settings.classifier_with_generator:
            updated.append(self.optimizers["classifier"])
        adversarial = adversarial_loss(self._discriminate(fake), True)
        on_source, on_fake = self._task_losses(x_s, y_s, fake)
        content = content_loss(x_s, fake)
        weight = learned(on_source) if settings.patient else 1.0
        loss = (
            weight * settings.adversarial_weight * adversarial
            + settings.task_weight * (on_source + on_fake) / 2
            + settings.content_weight * content
        )
        update(loss, updated)
        return {
            "generator": adversarial,
            "class": on_source,
            "class_generated": on_fake,
            "content": content,
        }

    def _task_losses(self, x_s: Tensor, y_s: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        """T's losses on source and generated images, augmented."""
        if self.settings.augmentation == "strong":
            recoloured = torch.rand(len(x_s), 1, 1, 1, device=x_s.device) < 0.5
            x_s, fake = torch.where(recoloured, photometric(x_s), x_s), strong(fake)
        on_source, on_fake = self.logits(torch.cat([x_s, fake])).chunk(2)
        twice = self.settings.softmax_twice
        return task_loss(on_source, y_s, twice), task_loss(on_fake, y_s, twice)

    def noise(self, count: int, device: torch.device | str = "cpu") -> Tensor:
        """z, uniform in -1..1: (count, latent_dim)."""
        return torch.empty(count, self.settings.latent_dim, device=device).uniform_(-1, 1)

    def translate(self, images: Tensor, z: Tensor) -> Tensor:
        """Source images (N, 3, 32, 32) uint8 and noise (N, latent_dim) -> the target's style.

        Returns:
            (N, 3, 32, 32) uint8 on the CPU.
        """
        return self.over(self.generator, images, z).mul(255).round().byte()
