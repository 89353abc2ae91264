"""Digits from three sources, and what is wrong with them said in one line."""

import bz2
import functools
import struct

import numpy as np
import pytest
import scipy.io
import torch
import torch.nn.functional as F
from conftest import HW3_DATA, digit_folder, write_csv
from PIL import Image
from torchvision.datasets import SVHN

from dlcvlib.config import profiles
from dlcvlib.data import augment, decode, scans
from dlcvlib.data.digits import load_digits
from dlcvlib.utils.errors import UserError

ALL_PAIRS = ["usps->mnistm", "mnistm->svhn", "svhn->usps"]


@pytest.fixture
def load(tmp_path):
    """Load digits under profile smoke."""

    def load(data, **changes):
        changes = {"data": data, "runs_dir": str(tmp_path / "runs"), "validation_size": 4} | changes
        return load_digits(profiles.load("smoke", "dann", changes))

    return load


def shades(images):
    """The labels that nearly flat images of `conftest.digit_folder` show."""
    return (images.float().mean((1, 2, 3)) // 20).int().tolist()


# --- embedded ---------------------------------------------------------------------------------


def test_embedded(load):
    digits = load("embedded", validation_size=20)
    assert list(digits.domains) == ["usps", "mnistm", "svhn"]
    assert list(digits.pairs) == ALL_PAIRS
    for domain in digits.domains.values():
        for split in (domain.train, domain.validation, domain.test):
            assert split.images.shape[1:] == (3, 32, 32)
            assert split.images.dtype == torch.uint8
            assert split.labels.dtype == torch.int64
            assert len(split.images) == len(split.labels)
        assert domain.train.labels.unique().tolist() == list(range(10))
        assert len(domain.validation) == 20
    assert [d.synthetic for d in digits.domains.values()] == [False, False, True]
    assert "synthetic" in digits.domains["svhn"].summary()
    assert digits.note() == (
        "Data: usps (UCI scans), mnistm (blended MNIST scans), svhn (synthetic)."
    )
    assert "not USPS itself" in digits.domains["usps"].summary()


def test_embedded_is_the_same_each_time_and_kept(load, monkeypatch):
    first = load("embedded")
    monkeypatch.setattr(decode, "fill", lambda *_, **__: pytest.fail("made again"))
    second = load("embedded")
    assert first.fingerprint == second.fingerprint
    for name, domain in first.domains.items():
        assert torch.equal(domain.train.images, second.domains[name].train.images)


def test_only_the_domains_of_the_pairs_are_made(load):
    digits = load("embedded", pairs=["usps->mnistm"])
    assert list(digits.domains) == ["usps", "mnistm"]


def test_a_damaged_cache_is_made_again(load, tmp_path, capsys):
    before = load("embedded", pairs=["usps->mnistm"])
    (file,) = (tmp_path / "runs" / "data").glob("usps-*/images.safetensors")
    content = bytearray(file.read_bytes())
    content[-1000] ^= 1
    file.write_bytes(content)
    after = load("embedded", pairs=["usps->mnistm"])
    assert "damaged" in capsys.readouterr().out
    assert torch.equal(before.domains["usps"].train.images, after.domains["usps"].train.images)


def test_blending_is_the_papers_recipe():
    picture = np.full((40, 40, 3), [10, 100, 200], np.uint8)
    digit = np.zeros((28, 28), np.uint8)
    digit[5, 5] = 255
    blended = scans.blend(digit, [picture], np.random.default_rng(0))
    assert blended.shape == (28, 28, 3)
    assert blended[0, 0].tolist() == [10, 100, 200]
    assert blended[5, 5].tolist() == [245, 155, 55]


def test_training_and_test_digits_are_blended_with_other_parts_of_the_photographs():
    picture = np.arange(100, dtype=np.uint8)[None, :, None].repeat(40, 0).repeat(3, 2)
    (left,), (right,) = (scans.halves([picture], training) for training in (True, False))
    assert not set(left.ravel()) & set(right.ravel())


# --- folder -----------------------------------------------------------------------------------


def test_folder(load, tmp_path):
    root = digit_folder(tmp_path / "hw3", ["usps", "mnistm", "svhn"])
    digits = load(f"folder:{root}")
    assert list(digits.pairs) == ALL_PAIRS
    usps = digits.domains["usps"]
    assert (len(usps.train), len(usps.validation), len(usps.test)) == (16, 4, 10)
    assert usps.test.labels.tolist() == list(range(10))
    for split in (usps.train, usps.validation, usps.test):
        assert shades(split.images) == split.labels.tolist()


def test_a_missing_domain_drops_its_pairs_and_says_so(load, tmp_path):
    root = digit_folder(tmp_path / "hw3", ["usps", "mnistm"])
    digits = load(f"folder:{root}")
    assert list(digits.pairs) == ["usps->mnistm"]
    assert len(digits.left_out) == 2
    assert "mnistm->svhn is left out" in digits.left_out[0]
    assert "has no svhn" in digits.summary()
    odd = digit_folder(tmp_path / "h*w*3", ["usps", "mnistm"])
    for text in (load(f"folder:{odd}").summary(), load(f"folder:{odd}").brief()):
        assert r"h\*w\*3" in text
    with pytest.raises(UserError, match="none can be run"):
        load(f"folder:{root}", pairs=["svhn->usps"])


def test_another_pair(load, tmp_path):
    root = digit_folder(tmp_path / "hw3", ["usps", "mnistm"])
    assert list(load(f"folder:{root}", pairs=["mnistm->usps"]).pairs) == ["mnistm->usps"]


def test_grey_and_colour_mixed(load, tmp_path):
    root = digit_folder(tmp_path / "hw3", ["usps", "mnistm"])
    grey = np.arange(784, dtype=np.uint8).reshape(28, 28)
    Image.fromarray(grey).save(root / "digits/mnistm/test/0.png")
    image = load(f"folder:{root}").domains["mnistm"].test.images[0]
    assert torch.equal(image[0], image[2])


def test_a_missing_class_is_allowed_and_said(load, tmp_path):
    root = digit_folder(tmp_path / "hw3", ["usps", "mnistm"])
    rows = [(f"{i}.png", i % 9) for i in range(20)]
    write_csv(root / "digits/usps/train.csv", ["image_name", "label"], rows)
    assert "No 9 among its train images." in load(f"folder:{root}").domains["usps"].summary()


def test_fingerprints_tell_labels_and_images_apart(load, tmp_path):
    root = digit_folder(tmp_path / "hw3", ["usps", "mnistm"])
    before = load(f"folder:{root}").domains["mnistm"]
    rows = [(f"{i}.png", (i + 1) % 10) for i in range(20)]
    write_csv(root / "digits/mnistm/train.csv", ["image_name", "label"], rows)
    after = load(f"folder:{root}").domains["mnistm"]
    assert before.fingerprint != after.fingerprint
    assert before.images_fingerprint == after.images_fingerprint


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("0.png", 10)], r"train\.csv, line 2: column 'label' is '10', not a whole number from 0"),
        ([("0.png", 3), ("1.png", -1)], "line 3"),
        ([("0.png", "seven")], "'seven'"),
        ([("0.png", 1.5)], "1.5"),
        ([("0.png", "")], "line 2"),
        ([("99.png", 1)], r"not in .*train: '99\.png'"),
        ([("0.png", 1), ("0.png", 2)], "twice"),
        ([("../test/0.png", 1)], "outside of"),
        ([], "lists no images"),
    ],
)
def test_bad_lists(load, tmp_path, rows, message):
    root = digit_folder(tmp_path / "hw3", ["usps", "mnistm"])
    write_csv(root / "digits/usps/train.csv", ["image_name", "label"], rows)
    with pytest.raises(UserError, match=message):
        load(f"folder:{root}")


def test_bad_folders(load, tmp_path):
    root = digit_folder(tmp_path / "hw3", ["usps", "mnistm"])
    with pytest.raises(UserError, match="no folder /nowhere"):
        load("folder:/nowhere")
    with pytest.raises(UserError, match="no folder 'digits'"):
        load(f"folder:{tmp_path}")
    with pytest.raises(UserError, match=r"validation_size: 20 leaves nothing .* of usps"):
        load(f"folder:{root}", validation_size=20)
    write_csv(root / "digits/usps/test.csv", ["image_name", "digit"], [("0.png", 1)])
    with pytest.raises(UserError, match="no column 'label'"):
        load(f"folder:{root}")
    write_csv(root / "digits/usps/test.csv", ["image_name", "label"], [("0.png", 1)])
    picture = (root / "digits/usps/train/3.png").read_bytes()
    (root / "digits/usps/test/0.png").write_bytes(picture)
    notes = load(f"folder:{root}").domains["usps"].notes
    assert "1 of the test images are training images too." in notes
    (root / "digits/mnistm/train/3.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"train/3\.png is not a readable picture"):
        load(f"folder:{root}")


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (["usps->cifar"], "unknown pair 'usps->cifar'; the known ones are usps->mnistm"),
        (["usps"], "unknown pair 'usps'"),
        (["usps->usps"], "unknown pair"),
        (["usps->mnistm", "usps->mnistm"], "named twice"),
        ([], "pairs"),
    ],
)
def test_bad_pairs(pairs, message):
    with pytest.raises(UserError, match=message):
        profiles.load("smoke", "dann", {"pairs": pairs})


@pytest.mark.skipif(not HW3_DATA.is_dir(), reason="no real images here")
def test_real_images(load):
    digits = load(f"folder:{HW3_DATA}", image_limit=300, validation_size=50)
    assert list(digits.pairs) == ["usps->mnistm"]
    assert len(digits.domains["usps"].train) == 250


# --- torchvision ------------------------------------------------------------------------------


def idx(array):
    """An array in the MNIST files' format."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def torchvision_root(tmp_path, monkeypatch):
    """Tiny files in the formats of torchvision's MNIST, USPS and SVHN, shaded by their labels."""
    rng = np.random.default_rng(0)

    def shaded(labels, *shape):
        shade = 20 * labels.reshape(-1, *[1] * len(shape))
        return (shade + rng.integers(0, 10, (len(labels), *shape))).astype(np.uint8)

    root = tmp_path / "tv"
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for prefix, count in (("train", 20), ("t10k", 10)):
        labels = np.arange(count, dtype=np.uint8) % 10
        images = shaded(labels.astype(int), 28, 28)
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(idx(images))
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(idx(labels))
    for name, count in (("usps.bz2", 20), ("usps.t.bz2", 10)):
        pixels = shaded(np.arange(count) % 10, 256) / 127.5 - 1
        lines = [
            f"{i % 10 + 1} " + " ".join(f"{k + 1}:{v:.3f}" for k, v in enumerate(row))
            for i, row in enumerate(pixels)
        ]
        (root / name).write_bytes(bz2.compress(("\n".join(lines) + "\n").encode()))
    for split, count in (("train", 20), ("test", 10)):
        file = root / f"{split}_32x32.mat"
        labels = (np.arange(count) % 10 + 1).astype(np.uint8)[:, None]
        images = shaded(labels[:, 0].astype(int) % 10, 32, 32, 3)
        scipy.io.savemat(file, {"X": images.transpose(1, 2, 3, 0), "y": labels})
    unchecked = {split: [url, name, None] for split, (url, name, _) in SVHN.split_list.items()}
    monkeypatch.setattr(SVHN, "split_list", unchecked)
    return root


def test_torchvision(load, torchvision_root):
    digits = load(f"torchvision:{torchvision_root}")
    assert list(digits.pairs) == ALL_PAIRS
    for name, first in (("usps", 0), ("mnistm", 0), ("svhn", 1)):
        domain = digits.domains[name]
        assert (len(domain.train), len(domain.test)) == (16, 10)
        assert domain.test.labels[0] == first
        assert not domain.synthetic
        if name != "mnistm":  # blended
            for split in (domain.train, domain.validation, domain.test):
                assert shades(split.images) == split.labels.tolist()
    # SVHN writes a 0 as 10.
    assert digits.domains["svhn"].test.labels.tolist() == [*range(1, 10), 0]


def test_a_prepared_mnistm_is_not_blended_again(load, torchvision_root, monkeypatch):
    first = load(f"torchvision:{torchvision_root}", pairs=["mnistm->usps"]).domains["mnistm"]
    assert len(first.test.images.flatten(1).unique(dim=0)) == 10
    monkeypatch.setattr(scans, "blend", lambda *_: pytest.fail("blended again"))
    again = load(f"torchvision:{torchvision_root}", pairs=["mnistm->usps"]).domains["mnistm"]
    assert torch.equal(first.train.images, again.train.images)


def test_mnistm_of_a_folder_of_photographs(load, torchvision_root):
    folder = torchvision_root / "photographs"
    folder.mkdir()
    flat = np.full((40, 200, 3), [200, 100, 50], np.uint8)
    Image.fromarray(flat).save(folder / "wall.png")
    domain = load(f"torchvision:{torchvision_root}", pairs=["mnistm->usps"]).domains["mnistm"]
    assert "1 photographs in photographs/" in domain.source
    for split in (domain.train, domain.validation, domain.test):
        assert shades(200 - split.images[:, :1].int()) == split.labels.tolist()
    small = np.full((20, 20, 3), 9, np.uint8)
    Image.fromarray(small).save(folder / "wall.png")
    with pytest.raises(UserError, match="no photograph of at least"):
        load(f"torchvision:{torchvision_root}", pairs=["mnistm->usps"])


def test_pickled_mnist_is_refused(load, torchvision_root):
    old = torchvision_root / "MNIST" / "processed"
    old.mkdir()
    (old / "training.pt").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    (old / "test.pt").write_bytes(b"")
    with pytest.raises(UserError, match="never read"):
        load(f"torchvision:{torchvision_root}")


def test_what_cannot_be_downloaded_is_named(load, tmp_path, monkeypatch):
    def refuse(self, *_, **__):
        raise OSError("no network")

    monkeypatch.setattr(SVHN, "download", refuse)
    with pytest.raises(UserError, match=r"svhn is not in .* put the files of torchvision"):
        load(f"torchvision:{tmp_path / 'none'}", pairs=["svhn->usps"])


# --- augmentation -----------------------------------------------------------------------------


@pytest.fixture
def pictures():
    return torch.rand(64, 3, 32, 32).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", ["geometric", "strong"])
def test_augmentation_is_each_images_own_and_stays_in_range(pictures, name):
    torch.manual_seed(0)
    same = pictures[:1].expand(64, -1, -1, -1)
    changed = augment.AUGMENTATIONS[name](same)
    assert changed.shape == same.shape
    assert 0 <= changed.min() <= changed.max() <= 1
    assert len(changed.flatten(1).unique(dim=0)) == 64


def test_points_are_those_of_an_affine_grid():
    theta = torch.randn(5, 2, 3)
    grid = (theta.flatten(0, 1) @ augment._points(6, 9, torch.device("cpu"))).view(5, 2, 6, 9)
    wanted = F.affine_grid(theta, [5, 3, 6, 9], align_corners=False)
    torch.testing.assert_close(grid.permute(0, 2, 3, 1), wanted)


def test_sampling_as_products_is_grid_sample():
    """Where the grid leaves the image too, and in its gradient."""
    torch.manual_seed(0)
    grid, weights = 1.5 * (2 * torch.rand(5, 6, 9, 2) - 1), torch.randn(5, 3, 6, 9)
    found = []
    for way in (
        augment.sample,
        functools.partial(F.grid_sample, padding_mode="border", align_corners=False),
    ):
        images = torch.rand(5, 3, 6, 9, generator=torch.Generator().manual_seed(1))
        sampled = way(images.requires_grad_(), grid)
        (weights * sampled).sum().backward()
        found.append((sampled, images.grad))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_geometric_moves_by_no_more_than_it_says():
    torch.manual_seed(0)
    point = torch.zeros(256, 1, 32, 32)
    point[:, :, 15:17, 15:17] = 1
    where = augment.geometric(point).flatten(1).argmax(1)
    away = torch.stack([where // 32, where % 32], 1).sub(15.5).abs().max()
    assert 0.5 < away <= 32 * augment.SHIFT + 1.5


def test_photometric_inverts_half_and_a_channel_alone_in_one_of_four():
    torch.manual_seed(0)
    gradient = torch.linspace(0, 1, 32).expand(800, 3, 32, 32)
    changed = augment.photometric(gradient)
    rising = changed[..., -8:].mean((2, 3)) > changed[..., :8].mean((2, 3))
    assert ((rising.float().mean(0) > 0.4) & (rising.float().mean(0) < 0.6)).all()
    odd = rising.sum(1) % 3 != 0
    assert 0.2 < odd.float().mean() < 0.3


def test_no_augmentation_changes_nothing(pictures):
    assert augment.AUGMENTATIONS["none"](pictures) is pictures
