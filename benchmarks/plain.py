"""The loops that a competent user would copy from well-known tutorials, as baselines.

float32, channels first, a DataLoader with two workers that decodes PNGs and augments them with
torchvision's transforms on PIL images, and `.item()` of every loss in every step, on a GPU if
there is one. Networks, batch sizes and optimiser settings are this project's. Each loop is an
endless generator that yields after a step.

References:
    VAE: pytorch/examples, vae. DCGAN: the DCGAN tutorial of pytorch.org. DANN: fungtion/DANN.
    PixelDA: eriklindernoren/PyTorch-GAN, pixelda. AdaMatch: the pseudo-code of arXiv:2106.04732.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from dlcvlib.config.schema import (
    AdaMatchSettings,
    ClassifierFields,
    DANNSettings,
    GANSettings,
    PixelDASettings,
    VAESettings,
)
from dlcvlib.data.types import CLASSES
from dlcvlib.methods import adamatch, dann, dcgan, pixelda, vae
from dlcvlib.methods.classifier import FeatureExtractor, LabelClassifier, learned

DEVICE = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
TO_TENSOR = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
FLIP = v2.Compose([v2.RandomHorizontalFlip(), *TO_TENSOR])
WEAK = v2.Compose([v2.RandomAffine(10, (0.06, 0.06), (0.85, 1.15), 8), *TO_TENSOR])
STRONG = v2.Compose(
    [
        v2.RandomAffine(10, (0.06, 0.06), (0.85, 1.15), 8),
        v2.RandomInvert(),
        v2.ColorJitter(0.3, 0.5, 0.3, 0.2),
        *TO_TENSOR,
        v2.GaussianNoise(sigma=0.05),
    ]
)


class Folder(Dataset):
    """PNGs of a folder; the label is the first part of the name, such as 3-00017.png."""

    def __init__(self, folder: Path, *views: Callable) -> None:
        self.files, self.views = sorted(folder.glob("*.png")), views

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple:
        file = self.files[index]
        image = Image.open(file).convert("RGB")
        return *(view(image) for view in self.views), int(file.name.split("-")[0])


def batches(folder: Path, batch_size: int, *views: Callable) -> Iterator[list[Tensor]]:
    """Shuffled batches without end: the views of the images, then their labels."""
    loader = DataLoader(
        Folder(folder, *views), batch_size, shuffle=True, drop_last=True, num_workers=2
    )
    while True:
        for batch in loader:
            yield [tensor.to(DEVICE) for tensor in batch]


def adam(settings, *modules: nn.Module) -> torch.optim.Adam:
    parameters = [p for module in modules for p in module.parameters()]
    return torch.optim.Adam(parameters, settings.learning_rate, tuple(settings.adam_betas))


def train_vae(settings: VAESettings, faces: Path) -> Iterator[None]:
    """Kingma and Welling's, as in pytorch/examples, with the calibrated decoder of `quick`."""
    encoder, decoder = vae.Encoder(settings).to(DEVICE), vae.Decoder(settings).to(DEVICE)
    optimizer = adam(settings, encoder, decoder)
    for images, _ in batches(faces, settings.batch_size, FLIP):
        optimizer.zero_grad()
        mean, log_variance = encoder(images)
        z = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        mse = F.mse_loss(decoder(z), images)
        likelihood = -images[0].numel() / 2 * torch.log(mse)
        kld = -0.5 * torch.sum(1 + log_variance - mean**2 - log_variance.exp()) / len(images)
        (kld - likelihood).backward()
        optimizer.step()
        mse.item(), kld.item()
        yield


def train_dcgan(settings: GANSettings, faces: Path) -> Iterator[None]:
    """The DCGAN tutorial of pytorch.org, with a moving average of the generator as in ours."""
    generator = dcgan.Generator(settings).to(DEVICE)
    discriminator = dcgan.Discriminator(settings).to(DEVICE)
    averaged = torch.optim.swa_utils.AveragedModel(
        generator, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(settings.ema_decay)
    )
    g_optimizer, d_optimizer = adam(settings, generator), adam(settings, discriminator)
    criterion = nn.BCEWithLogitsLoss()
    for images, _ in batches(faces, settings.batch_size, FLIP):
        real = 2 * images - 1
        ones = torch.ones(len(real), device=DEVICE)
        zeros = torch.zeros(len(real), device=DEVICE)
        discriminator.zero_grad()
        on_real = criterion(discriminator(real), 0.9 * ones)
        on_real.backward()
        fake = generator(torch.randn(len(real), settings.latent_dim, device=DEVICE))
        on_fake = criterion(discriminator(fake.detach()), zeros)
        on_fake.backward()
        d_optimizer.step()
        generator.zero_grad()
        g_loss = criterion(discriminator(fake), ones)
        g_loss.backward()
        g_optimizer.step()
        averaged.update_parameters(generator)
        (on_real + on_fake).item(), g_loss.item()
        yield


def networks(settings: ClassifierFields) -> tuple[FeatureExtractor, LabelClassifier]:
    """F and L."""
    extractor = FeatureExtractor(settings.channels).to(DEVICE)
    sizes = extractor.size, settings.classifier_width
    return extractor, LabelClassifier(*sizes, settings.normalise_classifier).to(DEVICE)


def train_dann(settings: DANNSettings, source: Path, target: Path) -> Iterator[None]:
    """fungtion/DANN: the source's pass, then the target's; D and its weight as in `quick`."""
    extractor, classifier = networks(settings)
    domain = dann.DomainClassifier(CLASSES * settings.classifier_width, settings)
    domain.to(DEVICE)
    optimizer = adam(settings, extractor, classifier, domain)
    pairs = zip(
        batches(source, settings.batch_size, STRONG),
        batches(target, settings.batch_size, WEAK),
        strict=False,
    )
    for step, ((x_s, y_s), (x_t, _)) in enumerate(pairs):
        weight = settings.domain_weight * dann.rising(min(1.0, step / settings.steps))
        optimizer.zero_grad()
        domain_losses = []
        for images, is_source in ((x_s, True), (x_t, False)):
            hidden = classifier.hidden(extractor(images))
            predicted = classifier.output(hidden)
            if is_source:
                class_loss = F.cross_entropy(predicted, y_s)
                weight *= learned(class_loss)
            seen = dann.multilinear(hidden, predicted)
            logits = domain(dann.reverse_gradient(seen, weight))
            truth = torch.full_like(logits, float(is_source))
            domain_losses.append(F.binary_cross_entropy_with_logits(logits, truth))
        domain_loss = sum(domain_losses) / 2
        (class_loss + domain_loss).backward()
        optimizer.step()
        class_loss.item(), domain_loss.item()
        yield


def train_pixelda(settings: PixelDASettings, source: Path, target: Path) -> Iterator[None]:
    """eriklindernoren/PyTorch-GAN: generator and classifier, then the discriminator."""
    extractor, classifier = networks(settings)
    task = nn.Sequential(extractor, classifier)
    generator = pixelda.Generator(settings).to(DEVICE)
    discriminator = pixelda.Discriminator(settings).to(DEVICE)
    optimizers = [adam(settings, network) for network in (generator, discriminator, task)]
    g_optimizer, d_optimizer, t_optimizer = optimizers
    pairs = zip(
        batches(source, settings.batch_size, STRONG),
        batches(target, settings.batch_size, WEAK),
        strict=False,
    )
    for (x_s, y_s), (x_t, _) in pairs:
        z = 2 * torch.rand(len(x_s), settings.latent_dim, device=DEVICE) - 1
        g_optimizer.zero_grad()
        t_optimizer.zero_grad()
        fake = generator(x_s, z)
        logits = discriminator(fake)
        g_loss = F.mse_loss(logits, torch.ones_like(logits))
        t_loss = (F.cross_entropy(task(fake), y_s) + F.cross_entropy(task(x_s), y_s)) / 2
        (settings.adversarial_weight * g_loss + settings.task_weight * t_loss).backward()
        g_optimizer.step()
        t_optimizer.step()
        d_optimizer.zero_grad()
        on_real, on_fake = discriminator(x_t), discriminator(fake.detach())
        d_loss = F.mse_loss(on_real, torch.ones_like(on_real))
        d_loss = d_loss + F.mse_loss(on_fake, torch.zeros_like(on_fake))
        d_loss.backward()
        d_optimizer.step()
        g_loss.item(), t_loss.item(), d_loss.item()
        yield


def train_adamatch(settings: AdaMatchSettings, source: Path, target: Path) -> Iterator[None]:
    """The paper's pseudo-code, both views of each image made by the DataLoader."""
    model = nn.Sequential(*networks(settings))
    averaged = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(settings.ema_decay)
    )
    optimizer = adam(settings, model)
    pairs = zip(
        batches(source, settings.batch_size, WEAK, STRONG),
        batches(target, settings.batch_size, WEAK, STRONG),
        strict=False,
    )
    for step, ((weak_s, strong_s, y_s), (weak_t, strong_t, _)) in enumerate(pairs):
        both = torch.cat([weak_s, strong_s])
        joint = model(torch.cat([both, weak_t, strong_t]))
        alone = adamatch.without_statistics(model, both)
        on_source = adamatch.interpolate(joint[: len(both)], alone)
        on_weak, on_strong = joint[len(both) :].chunk(2)
        with torch.no_grad():
            reference = on_source[: len(weak_s)].softmax(1)
            pseudo = adamatch.align(on_weak.softmax(1), reference)
            mask = adamatch.confident(pseudo, reference, settings.threshold).float()
        source_loss = F.cross_entropy(on_source, torch.cat([y_s, y_s]))
        losses = F.cross_entropy(on_strong, pseudo.argmax(1), reduction="none")
        target_loss = (mask * losses).mean()
        optimizer.zero_grad()
        weight = adamatch.warm_up(min(1.0, step / settings.steps))
        (source_loss + weight * target_loss).backward()
        optimizer.step()
        averaged.update_parameters(model)
        source_loss.item(), target_loss.item()
        yield
