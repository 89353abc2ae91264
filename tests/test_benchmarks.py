"""The benchmarks' loops run and learn something; their measurements are not tested."""

import itertools
import pkgutil
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from benchmarks import contenders, growth, memory, plain, speed
from dlcvlib.config import profiles
from dlcvlib.data.types import Adaptation, LabelledImages
from dlcvlib.methods.classifier import Classifier
from dlcvlib.methods.dann import DANN


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """PNGs of faces, of a source and of a target: a few noise images each."""
    base = tmp_path_factory.mktemp("png")
    for name, size in (("faces", 64), ("source", 32), ("target", 32)):
        images = torch.randint(0, 256, (20, 3, size, size), dtype=torch.uint8)
        contenders.write(images, torch.arange(20) % 10, base / name)
    return base


def test_pngs_carry_their_labels(folders):
    images, labels = next(plain.batches(folders / "source", 20, plain.FLIP))
    assert images.shape == (20, 3, 32, 32)
    assert 0 <= images.min() < 0.1 < 0.9 < images.max() <= 1
    assert sorted(labels.tolist()) == sorted([*range(10)] * 2)


@pytest.mark.parametrize("name", ["vae", "dcgan", "dann", "pixelda", "adamatch"])
def test_plain_loops_update_the_weights(folders, monkeypatch, name):
    made = []
    adam = plain.adam
    monkeypatch.setattr(plain, "adam", lambda s, *m: made.extend(m) or adam(s, *m))
    pair = folders / "source", folders / "target"
    vae, gan, dann, pixelda = (
        profiles.load("smoke", chapter, {"batch_size": 8})
        for chapter in ("vae", "gan", "dann", "pixelda")
    )
    loop = {
        "vae": lambda: plain.train_vae(vae.settings, folders / "faces"),
        "dcgan": lambda: plain.train_dcgan(gan.settings, folders / "faces"),
        "dann": lambda: plain.train_dann(dann.settings(0), *pair),
        "pixelda": lambda: plain.train_pixelda(pixelda.settings(0), *pair),
        "adamatch": lambda: plain.train_adamatch(pixelda.adamatch(0), *pair),
    }[name]()
    next(loop)
    before = [p.clone() for module in made for p in module.parameters()]
    next(loop)
    loop.close()
    after = [p for module in made for p in module.parameters()]
    assert before
    assert all(p.isfinite().all() for p in after)
    changed = [not torch.equal(p, q) for p, q in zip(before, after, strict=True)]
    assert sum(changed) > 0.9 * len(changed)


def test_summary_uses_ratios_per_round():
    frame = pd.DataFrame(
        {
            "method": "VAE",
            "wanted": "auto",
            "precision": "bf16",
            "plain": [1.0, 2.0, 4.0],
            "ours": [3.0, 6.0, 8.0],
            "batch_size": 10,
            "against_plain": [3.0, 3.0, 2.0],
            "share_of_step": [0.9, 1.0, 0.8],
            "bound": [5.0, 4.0, 6.0],
        }
    )
    (row,) = speed.summary(frame).to_dict("records")
    assert row["plain, images/s"] == 20
    assert row["against_plain"] == 3.0
    assert row["share_of_step, quartiles"] == "0.85 to 0.95"
    assert row["bound"] == 5.0


@pytest.mark.skipif(torch.accelerator.is_available(), reason="measured on a CPU only")
def test_kernels_take_a_share_of_the_step(monkeypatch):
    """With a clock that shows a minute: a busy machine's steps may take less than its kernels."""
    monkeypatch.setattr(contenders, "now", itertools.count(0, 60).__next__)
    settings = profiles.load("smoke", "dann", {"batch_size": 8, "precision": "fp32"}).settings(0)
    images = torch.randint(0, 256, (16, 3, 32, 32), dtype=torch.uint8)
    labelled = LabelledImages(images, torch.arange(16) % 10)
    data = Adaptation(labelled, labelled, images, images, "")
    contender = contenders.Contender("DANN", DANN, settings, data, plain.train_dann, ())
    assert 0.001 < 60 * contender.kernel_share(2) < 60


def test_the_loop_is_timed_without_evaluation(tmp_path):
    settings = profiles.load("smoke", "dann", {"batch_size": 8}).classifier(0)
    images = torch.randint(0, 256, (16, 3, 32, 32), dtype=torch.uint8)
    data = SimpleNamespace(train=LabelledImages(images, torch.arange(16) % 10))  # nothing held out
    assert contenders.fit_rate(Classifier, settings, data, 4, tmp_path / "run") > 0
    assert not list((tmp_path / "run").iterdir())
    steps = []
    contenders.train(Classifier, settings.replace(steps=3), data, tmp_path / "run", steps.append)
    assert steps == [0, 1, 2]


def test_growth_is_an_exponent():
    """From the previous size of the same quantity, even if another quantity has that size too."""
    sizes = {"steps": [20, 80], "batch size": [10, 20, 80]}
    frame = pd.DataFrame(
        {"quantity": quantity, "size": size, "round": turn, "cost": 3.0 * size**2}
        for quantity in sizes
        for turn in range(2)
        for size in sizes[quantity]
    )
    table = growth.summary(frame)
    assert table["size"].tolist() == [20, 80, 10, 20, 80]
    assert table["exponent"].dropna().tolist() == pytest.approx([2, 2, 2])
    assert table["exponent"].isna().tolist() == [True, False, True, False, False]
    assert table["cost"].tolist() == [1200, 19200, 300, 1200, 19200]


def test_growth_of_memory_is_measured_in_a_subprocess(monkeypatch):
    def asked(function, *arguments):
        assert pkgutil.resolve_name(function) is memory.training_mb
        assert arguments[0] == "VAE"
        return 100.0, 110.0

    monkeypatch.setattr(memory, "run_in_subprocess", asked)
    monkeypatch.setattr(memory, "contenders", lambda *_: [SimpleNamespace(name="VAE")])
    monkeypatch.setattr(memory, "prepared_mb", lambda count: (300.0, 200.0))
    table = memory.measure()
    assert table["ratio"].iloc[0] == pytest.approx(1.1)
    assert table["mb"].tolist() == [110, 300, 200]


def test_preparing_is_measured():
    """At least the interpreter with torch, and at most a few gigabytes."""
    everything, added = memory.prepared_mb(20)
    assert 0 < added < everything
    assert 100 < everything < 8000
