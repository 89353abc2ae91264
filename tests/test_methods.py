"""Properties of every method, with one test for all."""

from dataclasses import replace
from typing import Literal, get_args, get_origin
from unittest.mock import Mock

import pytest
import torch
from conftest import METHODS, before_step, built, cases, interrupt, same, settings_of, weights
from torch import Tensor
from torch.optim import Adam

from dlcvlib.config import profiles
from dlcvlib.evaluation.features import measured
from dlcvlib.training import loop
from dlcvlib.training.method import gradient_norms
from dlcvlib.training.runs import train_or_load

BASE = cases("settings")
"""Settings under which all other settings matter."""


@pytest.fixture(params=METHODS)
def name(request):
    return request.param


@pytest.mark.parametrize("case", cases("networks"), ids=lambda case: case["network"])
def test_the_originals_networks(case):
    """Outputs of each linear or convolutional layer, as in the homework's code and report."""
    name, network = case["network"].split(".")
    settings = profiles.load("original", {"dcgan": "gan"}.get(name, name)).settings
    with torch.device("meta"):
        method = METHODS[name](settings(0) if callable(settings) else settings)
    layers = [vars(module) for module in method.get_submodule(network).modules()]
    outputs = [layer.get("out_features", layer.get("out_channels")) for layer in layers]
    assert [width for width in outputs if width] == case["widths"]


def test_every_parameter_is_trained(name, data):
    """Each has a gradient, each has changed after two steps, and every loss is finite."""
    method = built(name, steps=4)
    before, batches = weights(method), method.batches(data[name], torch.device("cpu"))
    for method.step in (2, 3):
        terms = method.training_step(batches(method.step))
        assert all(value.isfinite() for value in terms.values())
    parameters = dict(method.named_parameters())
    trained = {key: value for key, value in parameters.items() if value.requires_grad}
    assert [key for key, value in trained.items() if not value.grad.abs().sum() > 0] == []
    assert [key for key, value in parameters.items() if torch.equal(value, before[key])] == []


def test_evaluation_changes_nothing(name, data):
    method = built(name)
    before = weights(method)
    assert bool(method.evaluate(data[name])) == (name != "features")
    assert same(method, before)
    assert all(module.training for module in method.modules())


# --- no waiting for the device ----------------------------------------------------------------


def take_steps(method, batches):
    """Whatever the loop does between two rows of the history."""
    for method.step in range(3):
        loop.seed_step(0, method.step)
        terms = method.training_step(batches(method.step)) | gradient_norms(method.optimizers)
        torch.stack([value.detach().float() for value in terms.values()])


@pytest.fixture
def on_meta(monkeypatch):
    """A method that takes steps on the meta device, whose tensors have no values."""
    # There is no fused Adam without values.
    unfused = Mock(side_effect=lambda weights, **how: Adam(weights, **how | {"fused": False}))
    monkeypatch.setattr("dlcvlib.training.method.Adam", unfused)
    return lambda name, **changes: built(name, steps=4, **changes).to("meta")


def test_steps_ask_for_no_values(name, data, on_meta):
    for changes in ({}, BASE.get(name, {})):
        method = on_meta(name, **changes)
        take_steps(method, method.batches(data[name], method.device))


@pytest.mark.parametrize("wait", [Tensor.item, Tensor.cpu, Tensor.__bool__, lambda x: x[x > 0]])
def test_asking_for_values_would_be_noticed(wait, data, on_meta, monkeypatch):
    method = on_meta("vae")
    objective = method.objective
    monkeypatch.setattr(method, "objective", lambda **terms: wait(objective(**terms)))
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        take_steps(method, method.batches(data["vae"], method.device))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here")
def test_steps_do_not_wait_for_a_gpu(name, data):
    method = built(name, steps=4, **BASE.get(name, {})).to("cuda")
    batches = method.batches(data[name], method.device)
    take_steps(method, batches)  # what is done once may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        take_steps(method, batches)
    finally:
        torch.cuda.set_sync_debug_mode("default")


# --- resume -----------------------------------------------------------------------------------


def test_a_run_killed_repeatedly_equals_an_uninterrupted_one(name, train, monkeypatch):
    """Bit for bit: weights, snapshots and history, whose rows average several steps."""
    changes = BASE.get(name, {})
    monkeypatch.setattr(loop, "LOG_POINTS", 3)
    whole = train(name, "whole", steps=6, **changes)
    seed_step = Mock(side_effect=loop.seed_step)
    monkeypatch.setattr(loop, "seed_step", seed_step)
    for step in (1, 2, 5):
        with before_step(METHODS[name], step, interrupt), pytest.raises(KeyboardInterrupt):
            train(name, "killed", steps=6, **changes)
    resumed = train(name, "killed", steps=6, **changes)
    begun = [call.args[1] for call in seed_step.call_args_list]
    assert begun == [0, 1, 1, 2, 2, 3, 4, 5, 5], "resumed, not begun again"
    assert resumed.provenance["files"] == whole.provenance["files"]
    assert same(resumed.method, whole.method)


# --- splits -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vae", "dcgan", "classifier"])
def test_test_images_are_unseen_and_held_out_ones_measured(name, faces, pair, params, tmp_path):
    data = pair.source if name == "classifier" else faces

    def train(folder, **splits):
        changed = replace(data, **splits)
        if name == "dcgan":
            changed = measured(params("gan", runs_dir=str(tmp_path / folder)), changed)
        return train_or_load(METHODS[name], settings_of(name), changed, tmp_path / folder)

    whole = train("whole")
    blind = train("blind", test=replace(data.test, images=data.test.images[:0]))
    assert blind.provenance["files"] == whole.provenance["files"]
    held_out = data.test
    if name == "classifier":  # all zeros are not as easy as a tenth of each
        held_out = replace(held_out, labels=torch.zeros_like(held_out.labels))
    other = train("other", validation=held_out)
    assert same(whole.method, other.method)
    columns = whole.history.columns.str.startswith("validation_")
    assert not whole.history.loc[:, columns].equals(other.history.loc[:, columns])
    assert whole.history.loc[:, ~columns].equals(other.history.loc[:, ~columns])


# --- settings ---------------------------------------------------------------------------------

OTHERS = {"threshold": 1.0, "soft_labels": [0.7, 0.9], "augmentation": ["cutout"]}
"""Where `other` would find no value that is valid and matters."""


def other(settings, name, value):
    """Another value of a setting."""
    annotation = type(settings).model_fields[name].annotation
    if name == "precision":
        return "bf16"  # "auto" may choose fp32, which the tests train in
    if get_origin(annotation) is Literal:
        return next(c for c in get_args(annotation) if c not in (value, "auto"))
    if name in OTHERS:
        return OTHERS[name]
    if isinstance(value, bool):
        return not value
    if isinstance(value, list):
        return [v / 2 for v in value] if isinstance(value[0], float) else value[::-1]
    return value // 2 or value + 1 if isinstance(value, int) else value / 2 or 0.1


def test_every_setting_changes_the_weights(name, train):
    """Each one changed by itself leads to different weights, but for those that only matter on
    several processes or on a GPU; snapshots are kept beside them.
    """
    changes = {"steps": 2, "batch_size": 8, **BASE.get(name, {})}
    before, base = train(name, **changes).method, settings_of(name, **changes)
    ignored = [
        setting
        for setting, value in base
        if setting != "backbone"  # it has one value, until a user adds another
        and same(before, train(name, **changes | {setting: other(base, setting, value)}).method)
    ]
    elsewhere = ["sync_batch_norm", "deterministic", "compile"]
    assert ignored == elsewhere + ["keep_snapshots"] * (name == "dcgan")
