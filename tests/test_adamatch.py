"""AdaMatch: the whole step, warm-up and pseudo-labels by hand."""

import copy
from unittest.mock import Mock

import pytest
import torch
from conftest import built, close, gradients
from torch import nn

from dlcvlib.config import profiles
from dlcvlib.data import augment
from dlcvlib.methods import adamatch


def test_alignment_handles_a_class_that_is_never_predicted():
    target = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    aligned = adamatch.align(target, torch.full((2, 2), 0.5))
    assert aligned.isfinite().all()
    torch.testing.assert_close(aligned.sum(1), torch.ones(2))


def test_warm_up():
    found = [adamatch.warm_up(progress) for progress in (0, 0.125, 0.25, 0.5, 0.75, 1)]
    assert found == pytest.approx([0, 0.1464466, 0.5, 1, 1, 1], abs=1e-6)


def test_the_step_matches_the_paper(batch, monkeypatch):
    """The gradient of one step, written out without the library's helpers.

    A random number of its own interpolates each logit.
    """
    monkeypatch.setitem(augment.AUGMENTATIONS, "geometric", lambda x: x)
    monkeypatch.setitem(augment.AUGMENTATIONS, "strong", lambda x: 1 - x)
    between = torch.rand(32, 10)
    monkeypatch.setattr(torch, "rand_like", lambda x: between)
    method = built("adamatch", steps=8, threshold=1.0)
    method.step = 2
    x_s, y_s, x_t = batch
    network = copy.deepcopy(method.trained)
    joint = network(torch.cat([x_s, 1 - x_s, x_t, 1 - x_t]))
    statistics = {name: value.clone() for name, value in network.named_buffers()}
    alone = network(torch.cat([x_s, 1 - x_s]))
    source = between * joint[:32] + (1 - between) * alone
    p_s, p_t = source[:16].softmax(1), joint[32:48].softmax(1)
    p_t = p_t * (p_s.mean(0) / p_t.mean(0))
    p_t = (p_t / p_t.sum(1, keepdim=True)).detach()
    mask = p_t.max(1).values >= p_s.max(1).values.mean()
    each = -joint[48:].log_softmax(1)[range(16), p_t.argmax(1)]
    source_loss = nn.functional.cross_entropy(source, torch.cat([y_s, y_s]))
    loss = source_loss + 0.5 * (each * mask).mean()
    expected = gradients(network, loss)
    terms = method.training_step(batch)
    assert 0 < terms["kept"] < 1
    torch.testing.assert_close(terms["class"], source_loss)
    torch.testing.assert_close(terms["target"], (each * mask).mean())
    close(method.trained, expected)
    # The pass over the source alone leaves the running statistics to the joint one.
    for name, value in method.trained.named_buffers():
        if name.endswith(("mean", "var")):
            torch.testing.assert_close(value, statistics[name])


def test_plain_pseudo_labels_are_the_networks_own(batch, monkeypatch):
    """Neither the source's logits alone nor its class frequencies and confidence play a part."""
    monkeypatch.delattr(adamatch, "without_statistics")
    method = built("adamatch", plain=True, threshold=0.5)
    method.training_step(batch)
    target = torch.tensor([[0.6, 0.4], [0.7, 0.3], [0.4, 0.6], [0.45, 0.55]])
    source = torch.tensor([[0.1, 0.9], [0.1, 0.9]])
    labels, mask = method.select(target, source)
    assert (labels.tolist(), mask.tolist()) == ([0, 0, 1, 1], [True] * 4)


def test_the_average_predicts(batch):
    method = built("adamatch")
    nn.init.constant_(method.averaged.module[1].output.bias[3:4], 100.0)
    assert method.predict((batch[0] * 255).byte()).tolist() == [3] * 16


def test_the_method_makes_its_own_views():
    """Where chapter 3 augments nothing, AdaMatch still has a weak and a strong view."""
    chosen = profiles.load("original", "pixelda").adamatch(0)
    assert (chosen.augmentation, chosen.target_augmentation) == ("strong", "geometric")


def test_pseudo_labels_are_aligned_and_masked(pair, monkeypatch):
    """By hand: nine in ten predict 0 at .6, one predicts 1 at .9; the source, both alike."""
    method = built("adamatch", threshold=0.58)
    source, target = torch.eye(10)[torch.arange(60) % 2], torch.zeros(60, 10)
    target[:, :2] = torch.tensor([0.6, 0.4])
    target[::10, :2] = torch.tensor([0.1, 0.9])
    monkeypatch.setattr(method, "over", Mock(side_effect=[source, target]))
    labels, sure = method.pseudo_labels(pair.adaptation())
    assert labels.tolist() == ([1] + [0] * 9) * 6
    # Means: .55 and .45 of the target against .5 and .5, so times .909 and 1.111: .6 becomes .551.
    assert sure.tolist() == ([True] + [False] * 9) * 6
