"""Who sees which split: nothing is trained, stopped or chosen by what it is measured on."""

from dataclasses import replace

import pytest
import torch
from conftest import settings_of

from dlcvlib.data.types import ImageSet, LabelledImages
from dlcvlib.evaluation.features import Extractor
from dlcvlib.methods import classifier, dcgan, vae
from dlcvlib.training import loop

PIXELS = Extractor("pixels", "pixels", lambda images: images.float().flatten(1)[:, :40])
METHODS = {
    "vae": lambda data, folder: vae.train_or_load(settings_of("vae"), data, folder),
    "dcgan": lambda data, folder: dcgan.train_or_load(settings_of("dcgan"), data, PIXELS, folder),
    "classifier": lambda data, folder: classifier.train_or_load(
        settings_of("classifier"), data, folder
    ),
}


@pytest.fixture(params=METHODS)
def method(request, faces, pair):
    """How a method is trained, its data, and how to take a split's content away."""
    return METHODS[request.param], pair.source if request.param == "classifier" else faces


def emptied(split):
    if isinstance(split, ImageSet):
        return ImageSet(split.images[:0], {name: v[:0] for name, v in split.attributes.items()})
    return LabelledImages(split.images[:0], split.labels[:0])


def same_weights(one, other):
    ours, theirs = (loop.module_tensors(run.method) for run in (one, other))
    return all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_nothing_of_the_test_split_is_seen(method, tmp_path):
    train, data = method
    whole = train(data, tmp_path / "whole")
    blind = train(replace(data, test=emptied(data.test)), tmp_path / "blind")
    assert same_weights(whole, blind)
    assert whole.history.equals(blind.history)


def test_held_out_images_are_measured_and_not_trained_on(method, tmp_path):
    train, data = method
    whole = train(data, tmp_path / "whole")
    held_out = data.test  # of digits all zeros, which are not read as well as a tenth of each
    if isinstance(held_out, LabelledImages):
        held_out = LabelledImages(held_out.images, torch.zeros_like(held_out.labels))
    other = train(replace(data, validation=held_out), tmp_path / "other")
    assert same_weights(whole, other)
    measured = [name for name in whole.history if name.startswith("validation_")]
    assert measured
    assert not whole.history[measured].equals(other.history[measured])
    rest = whole.history.columns.difference(measured)
    assert whole.history[rest].equals(other.history[rest])
