"""The benchmarks' loops run and learn something; their measurements are not tested."""

import itertools
import math
from types import SimpleNamespace
from unittest.mock import Mock

import pandas as pd
import pytest
import torch
from conftest import settings_of

from benchmarks import __main__ as command
from benchmarks import contenders, gpu, growth, plain, quality, speed
from dlcvlib.config import profiles
from dlcvlib.data.types import LabelledImages
from dlcvlib.methods.classifier import Classifier
from dlcvlib.utils import storage

IMAGES = torch.randint(0, 256, (20, 3, 32, 32), dtype=torch.uint8)
LABELLED = LabelledImages(IMAGES, torch.arange(20) % 10)


@pytest.mark.parametrize("name", ["vae", "dcgan", "dann", "pixelda", "adamatch"])
def test_plain_loops_update_the_weights(tmp_path, monkeypatch, name):
    contenders.write(IMAGES.repeat(1, 1, 2, 2), LABELLED.labels, tmp_path / "faces")
    contenders.write(IMAGES, LABELLED.labels, tmp_path / "digits")
    adam = Mock(wraps=plain.adam)
    monkeypatch.setattr(plain, "adam", adam)
    files = ["faces"] if name in ("vae", "dcgan") else ["digits", "digits"]
    train = getattr(plain, f"train_{name}")
    loop = train(settings_of(name, batch_size=8), *(tmp_path / file for file in files))
    next(loop)
    made = itertools.chain(*(call.args[1:] for call in adam.call_args_list))
    parameters = [p for module in made for p in module.parameters()]
    before = [p.clone() for p in parameters]
    next(loop)
    loop.close()
    assert all(p.isfinite().all() for p in parameters)
    changed = [not torch.equal(p, q) for p, q in zip(before, parameters, strict=True)]
    assert sum(changed) > 0.9 * len(changed) > 0


def test_summary_uses_ratios_per_round():
    rounds = {"plain": [1.0, 2.0, 4.0], "ours": [3.0, 6.0, 8.0], "bound": [5.0, 4.0, 6.0]}
    shares = {"against_plain": [3.0, 3.0, 2.0], "share_of_step": [0.9, 1.0, 0.8]}
    fixed = {"method": "VAE", "wanted": "auto", "precision": "bf16", "batch_size": 10}
    (row,) = speed.summary(pd.DataFrame(fixed | rounds | shares)).to_dict("records")
    assert row["plain, images/s"] == 20
    assert (row["against_plain"], row["bound"]) == (3.0, 5.0)
    assert row["share_of_step, quartiles"] == "0.85 to 0.95"


def test_speed_is_measured(tmp_path, monkeypatch):
    """Without evaluation, and without a clock: a busy machine's would show anything."""
    monkeypatch.setattr(contenders, "now", itertools.count(0, 60).__next__)
    data = SimpleNamespace(train=LABELLED)  # none held out
    timed = contenders.Contender("", Classifier, settings_of("classifier"), data, None, ())
    assert timed.our_rate(4, tmp_path) == timed.step_rate(4) == 4 / 60
    if not torch.accelerator.is_available():  # it is NaN there
        assert 0 < 60 * timed.kernel_share(2) < 60
    assert not list(tmp_path.iterdir())


def test_growth_is_an_exponent():
    """From the previous size of the same quantity, even if another quantity has that size too."""
    sizes = [("steps", 20), ("steps", 80), ("batch size", 10), ("batch size", 20)]
    frame = pd.DataFrame(2 * sizes, columns=["quantity", "size"])
    table = growth.summary(frame.assign(cost=3.0 * frame["size"] ** 2))
    assert table["size"].tolist() == [20, 80, 10, 20]
    assert table["exponent"].tolist() == pytest.approx([math.nan, 2, math.nan, 2], nan_ok=True)
    assert table["cost"].tolist() == [1200, 19200, 300, 1200]


def test_orders_of_variants_are_compared():
    """Per measure, over the variants that both sizes have; two are too few."""
    small = {"a": {"kid": 3, "recall": 1}, "b": {"kid": 1, "recall": 2}, "c": {"kid": 2}}
    full = {"a": {"kid": 9, "recall": 1}, "b": {"kid": 4, "recall": 3}, "c": {"kid": 5}}
    found = [quality.flat({"comparison_x": one, "other": 1}) for one in (small, full)]
    names = ["comparison", "variant", "measure"]
    frame = pd.DataFrame(dict(zip(["small", "full"], map(pd.Series, found), strict=True)))
    table = quality.summary(frame.rename_axis(names).reset_index().assign(problem="1-6"))
    assert table[["measure", "variants", "rho"]].to_numpy().tolist() == [["kid", 3, 1]]
    main = profiles.load("quick", "pixelda")
    assert quality.full_size("pixelda") == {"ablation_steps": main.steps, "ablation_seeds": [0]}


def test_quality_is_measured_chapter_by_chapter(tmp_path, monkeypatch):
    """Those that are not asked for keep their results; each is written before the next begins."""
    frame = pd.DataFrame({"variant": list("abc"), "full": [1, 2, 3]})
    frame = frame.assign(comparison="x", measure="kid")
    outcomes = [("3-5", 1.0), ("1-6", 2.0), ("3-5", 3.0)]
    measured = [frame.assign(problem=problem, small=[n, 8, 9]) for problem, n in outcomes]
    monkeypatch.setattr(quality, "measure", Mock(side_effect=measured))

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["benchmarks", *arguments, "--out", str(tmp_path)])
        command.main()

    def kept():
        rows = storage.sealed(tmp_path / "results.json")["quality"]["measured"]
        return [(row["problem"], row["small"]) for row in rows[::3]]

    run("quality", "dann", "vae")
    assert kept() == [("1-6", 2), ("3-5", 1)]
    with pytest.raises(StopIteration):
        run("quality", "dann", "pixelda")
    assert kept() == [("1-6", 2), ("3-5", 3)]


def test_a_device_is_measured(tmp_path, monkeypatch):
    """Each variant against the plain loop and the peak; those a CPU lacks fall back."""
    data, settings = SimpleNamespace(train=LABELLED), settings_of("classifier", batch_size=10)
    plain_loop = Mock(side_effect=lambda *_: (None for _ in itertools.count()))
    method = contenders.Contender("Small", Classifier, settings, data, plain_loop, ())
    monkeypatch.setattr(gpu, "contenders", lambda *_: [method])
    monkeypatch.setattr(gpu, "SIDE", 64)
    monkeypatch.delitem(gpu.VARIANTS, "bf16, compiled")  # minutes
    for module in (gpu, contenders):
        monkeypatch.setattr(module, "now", itertools.count(0, 60).__next__)
    frame = gpu.measure(rounds=2, steps=4)
    table = gpu.summary(frame)
    assert (len(frame), table["variant"].tolist()) == (8, list(gpu.VARIANTS))
    assert (table["images/s"] == 10 * 4 / 60).all()
    assert (frame["against_plain"] == 1).all()
    layers = [module for module in Classifier(settings).modules() if hasattr(module, "weight")]
    assert gpu.operations(method) > 2 * 10 * sum(layer.weight.numel() for layer in layers)
    expected = gpu.operations(method) * 4 / (gpu.PRODUCTS * 2 * 64**3)
    assert frame["share_of_peak"].tolist() == pytest.approx([expected] * 8)
    gpu.plot(frame).savefig(tmp_path / "gpu.svg")
    monkeypatch.setattr(gpu, "SECONDS", -1.0)
    assert gpu.measure(rounds=1, steps=4).empty
