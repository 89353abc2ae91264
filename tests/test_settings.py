"""Every setting of a method decides what is trained: changed alone, it ends in other weights."""

import pytest
import torch
from conftest import settings_of

from dlcvlib.evaluation.features import Extractor
from dlcvlib.methods import adamatch, classifier, dann, dcgan, pixelda, vae
from dlcvlib.training import loop

PIXELS = Extractor("pixels", "pixels", lambda images: images.float().flatten(1)[:, :40])
TRAINING = {
    "seed": 1,
    "steps": 4,
    "batch_size": 8,
    "learning_rate": 1e-4,
    "learning_rate_schedule": "constant",
    "adam_betas": [0.3, 0.9],
    "weight_decay": 0.1,
    "precision": "bf16",
}
CLASSIFIER = TRAINING | {
    "channels": [4, 8],
    "classifier_width": 8,
    "instance_norm": True,
    "augmentation": "none",
}
ADAPTATION = CLASSIFIER | {"target_augmentation": "none"}
TRICKS = {
    "learning_rate_schedule": "cosine",
    "soft_labels": [1.0, 1.0],
    "flip_labels": 0.3,
    "flip_labels_until": 2,
    "generator_steps": 2,
    "generator_steps_until": 2,
    "input_noise": 0.2,
    "input_noise_annealed": True,
    "input_blur": 1.0,
    "input_blur_annealed": True,
    "augmentation": ["color"],
    "ema_decay": 0.15,
    "horizontal_flip": True,
}
CHANGES = {
    "vae": TRAINING
    | {
        "channels": [4, 8],
        "latent_dim": 4,
        "decoder_kernel": 2,
        "normalise_heads": True,
        "activation": "relu",
        "output": "tanh",
        "normalise_output": True,
        "kld_weight": 3.0,
        "horizontal_flip": False,
        "vertical_flip": True,
    },
    "dcgan": TRAINING
    | {
        "channels": 2,
        "latent_dim": 4,
        "kernel": 5,
        "loss": "hinge",
        "discriminator_norm": "spectral",
        "soft_labels": [0.7, 0.9],
        "flip_labels": 0.1,
        "flip_labels_until": 1,
        "generator_steps": 3,
        "generator_steps_until": 1,
        "input_noise": 0.1,
        "input_noise_annealed": False,
        "input_blur": 2.0,
        "input_blur_annealed": False,
        "augmentation": ["cutout"],
        "ema_decay": 0.1,
        "horizontal_flip": False,
        "keep_snapshots": None,  # of a run that is the same without them
    },
    "classifier": CLASSIFIER,
    "dann": ADAPTATION
    | {
        "domain_width": 8,
        "domain_layers": 1,
        "domain_weight": 0.5,
        "domain_schedule": "fixed",
        "domain_update": "alternating",
    },
    "pixelda": ADAPTATION
    | {
        "latent_dim": 4,
        "generator_channels": 2,
        "residual_blocks": 2,
        "discriminator_channels": 2,
        "discriminator_norm": "instance",
        "adversarial_loss": "bce",
        "adversarial_weight": 0.5,
        "task_weight": 0.5,
        "content_weight": 0.5,
        "patient": False,
        "softmax_twice": True,
        "classifier_with_generator": True,
    },
    "adamatch": ADAPTATION | {"threshold": 1.0, "ema_decay": 0.1},
}
BASE = {"dcgan": TRICKS, "dann": {"domain_schedule": "rising"}, "adamatch": {"ema_decay": 0.15}}


@pytest.fixture
def trained(faces, pair, tmp_path):
    """The weights of a method under settings."""
    adaptation = pair.adaptation()
    train = {
        "vae": lambda settings: vae.train_or_load(settings, faces, tmp_path),
        "dcgan": lambda settings: dcgan.train_or_load(settings, faces, PIXELS, tmp_path),
        "classifier": lambda settings: classifier.train_or_load(settings, pair.source, tmp_path),
        "dann": lambda settings: dann.train_or_load(settings, adaptation, tmp_path),
        "pixelda": lambda settings: pixelda.train_or_load(settings, adaptation, tmp_path),
        "adamatch": lambda settings: adamatch.train_or_load(settings, adaptation, tmp_path),
    }
    return lambda name, settings: loop.module_tensors(train[name](settings).method)


@pytest.mark.parametrize("name", CHANGES)
def test_every_setting_decides_the_weights(name, trained):
    base = settings_of(name, steps=3, **BASE.get(name, {}))
    assert set(CHANGES[name]) == set(type(base).model_fields)
    before = trained(name, base)
    silent = []
    for setting, value in CHANGES[name].items():
        assert getattr(base, setting) != value, setting
        if value is None:
            continue
        if setting == "classifier_with_generator":  # which cannot be with `patient`
            base = base.replace(patient=False)
            before = trained(name, base)
        after = trained(name, base.replace(**{setting: value}))
        if before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before):
            silent.append(setting)
    assert silent == []
