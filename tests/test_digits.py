"""Digits from three sources, and one-line errors for bad input."""

import bz2
import gzip
import shutil
import struct
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import scipy.io
import torch
import torch.nn.functional as F
from conftest import digit_folder, shaded, shades, write_csv, write_pictures
from PIL import Image
from sklearn.datasets import dump_svmlight_file
from torchvision import datasets
from torchvision.datasets import SVHN

from dlcvlib.data import augment, prepare, scans
from dlcvlib.data.digits import load_digits
from dlcvlib.utils.errors import UserError

ALL_PAIRS = ["usps->mnistm", "mnistm->svhn", "svhn->usps"]


@pytest.fixture
def load(params):
    """Load digits under profile smoke."""
    return lambda data, **changes: load_digits(
        params("dann", **{"data": data, "validation_size": 4} | changes)
    )


@pytest.fixture
def root(tmp_path):
    """Three domains in the homework's layout."""
    return digit_folder(tmp_path / "hw3", ["usps", "mnistm", "svhn"])


def splits(domain):
    return domain.train, domain.validation, domain.test


# --- embedded ---------------------------------------------------------------------------------


def test_embedded(load, monkeypatch):
    digits = load("embedded", validation_size=20)
    assert list(digits.domains) == ["usps", "mnistm", "svhn"]
    assert list(digits.pairs) == ALL_PAIRS
    for domain in digits.domains.values():
        for split in splits(domain):
            assert split.images.shape == (len(split.labels), 3, 32, 32)
            assert (split.images.dtype, split.labels.dtype) == (torch.uint8, torch.int64)
        assert domain.train.labels.unique().tolist() == list(range(10))
    assert [d.synthetic for d in digits.domains.values()] == [False, False, True]
    for text in ("not USPS itself", "blended with photographs", "street numbers drawn"):
        assert text in digits.summary()
    corners = digits.domains["mnistm"].train.images[:, :, 0, 0]  # of photographs, each of its own
    assert len(corners.unique(dim=0)) > len(corners) / 2
    monkeypatch.setattr(prepare, "fill", None)
    again = load("embedded", validation_size=20, pairs=["usps->mnistm"])
    assert list(again.domains) == ["usps", "mnistm"]
    for name, domain in again.domains.items():
        assert domain.fingerprint == digits.domains[name].fingerprint
        assert torch.equal(domain.train.images, digits.domains[name].train.images)


def test_blending_follows_the_paper():
    picture = np.full((40, 40, 3), [10, 100, 200], np.uint8)
    digit = np.zeros((28, 28), np.uint8)
    digit[5, 5] = 255
    blended = scans.blend(digit, [picture], np.random.default_rng(0))
    assert blended.shape == (28, 28, 3)
    assert blended[0, 0].tolist() == [10, 100, 200]
    assert blended[5, 5].tolist() == [245, 155, 55]


def test_training_and_test_digits_are_blended_with_other_parts_of_the_photographs(tmp_path):
    picture = np.arange(120, dtype=np.uint8)[None, :, None].repeat(40, 0).repeat(3, 2)
    Image.fromarray(picture).save(tmp_path / "grey.png")
    (left,), (right,) = scans.parts((str(tmp_path / "grey.png"),))
    assert sorted([*left[0, :, 0], *right[0, :, 0]]) == list(range(120))


# --- folder -----------------------------------------------------------------------------------


def test_folder(load, root):
    digits = load(f"folder:{root}")
    assert list(digits.pairs) == ALL_PAIRS
    usps = digits.domains["usps"]
    assert [len(split) for split in splits(usps)] == [16, 4, 10]
    assert usps.test.labels.tolist() == list(range(10))
    for split in splits(usps):
        assert shades(split.images) == split.labels.tolist()
    assert len(load(f"folder:{root}", image_limit=7).domains["usps"].train) == 3


def test_a_missing_domain_drops_its_pairs_and_says_so(load, tmp_path):
    odd = digit_folder(tmp_path / "h*w*3", ["usps", "mnistm"])
    digits = load(f"folder:{odd}")
    assert list(digits.pairs) == ["usps->mnistm"]
    for line, pair in zip(digits.left_out, ALL_PAIRS[1:], strict=True):
        assert line == f"The pair {pair} is left out: folder:{odd} has no svhn."
    assert r"h\*w\*3 has no svhn" in digits.summary()
    assert list(load(f"folder:{odd}", pairs=["mnistm->usps"]).pairs) == ["mnistm->usps"]
    with pytest.raises(UserError, match="none can be run"):
        load(f"folder:{odd}", pairs=["svhn->usps"])


def test_a_domain_of_ones_own_stands_beside_those_of_the_package(load, tmp_path):
    place = tmp_path / "mine" / "digits" / "my_digits"
    write_pictures(place / "images", [n % 10 for n in range(100)], side=28, label=int)
    place.joinpath("images.csv").rename(place / "labels.csv")
    mine = tmp_path / "mine"
    pairs = ["usps->my_digits", "my_digits->svhn"]
    digits = load(f"embedded+folder:{mine}", pairs=pairs)
    assert list(digits.pairs) == pairs
    assert digits.domains["usps"].source.startswith("UCI")
    domain = digits.domains["my_digits"]
    assert [len(split) for split in splits(domain)] == [76, 4, 20]
    assert shades(domain.test.images) == domain.test.labels.tolist()
    assert "A fifth of the images" in domain.description()
    with pytest.raises(UserError, match=r"no usps.* no svhn"):
        load(f"folder:{mine}", pairs=pairs)


@pytest.mark.parametrize("data", ["embedded", "torchvision:here"])
def test_an_unknown_domain_is_named_before_anything_is_read(load, data):
    with pytest.raises(UserError, match="no domain 'mnitsm': did you mean 'mnistm'"):
        load(data, pairs=["usps->mnistm", "usps->mnitsm"])
    with pytest.raises(UserError, match="is not one of embedded"):
        load("embedded+torchvision:here")


def write_labels(root, domain, labels):
    rows = [(f"{i}.png", label) for i, label in enumerate(labels)]
    write_csv(root / f"digits/{domain}/train.csv", ["image_name", "label"], rows)


def test_fingerprints_distinguish_labels_and_images(load, root):
    """A missing class is allowed and reported as well."""
    before = load(f"folder:{root}").domains["mnistm"]
    write_labels(root, "mnistm", [i % 9 for i in range(20)])
    after = load(f"folder:{root}").domains["mnistm"]
    assert before.fingerprint != after.fingerprint
    assert before.images_fingerprint == after.images_fingerprint
    assert "No 9 among its train images." in after.description()


def test_ten_is_zero_for_svhn_alone(load, root):
    write_labels(root, "svhn", [i % 10 or 10 for i in range(20)])
    svhn = load(f"folder:{root}").domains["svhn"]
    assert shades(svhn.train.images) == svhn.train.labels.tolist()
    assert "In train.csv 10 stands for 0: 'label'." in svhn.notes
    write_labels(root, "svhn", [i % 11 for i in range(20)])
    with pytest.raises(UserError, match="line 12: 'label' is '10'"):  # and what is 0 then?
        load(f"folder:{root}")
    write_labels(root, "usps", [3, 10])
    with pytest.raises(UserError, match=r"line 3: 'label' is '10', not one of 0, 1, .*, 9: "):
        load(f"folder:{root}")


# --- torchvision ------------------------------------------------------------------------------


def write_idx(path, array):
    """Write an array in the MNIST files' format."""
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    path.write_bytes(header + array.tobytes())


@pytest.fixture
def torchvision_root(tmp_path, monkeypatch):
    """Tiny files in the formats of torchvision's MNIST, USPS and SVHN, shaded by their labels."""
    root = tmp_path / "tv"
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for labels, mnist, usps, svhn in (
        ([*range(10)] * 2, "train", "usps", "train"),
        ([*range(10)], "t10k", "usps.t", "test"),
    ):
        grey = np.stack([shaded(label, 28, 28) for label in labels])
        write_idx(raw / f"{mnist}-images-idx3-ubyte", grey)
        write_idx(raw / f"{mnist}-labels-idx1-ubyte", np.array(labels, np.uint8))
        pixels = grey.reshape(-1, 784)[:, :256] / 127.5 - 1
        with bz2.open(root / f"{usps}.bz2", "wb") as file:
            dump_svmlight_file(pixels, np.add(labels, 1), file, zero_based=False)
        coloured = np.stack([shaded(label, 32, 32, 3) for label in labels], axis=3)
        ten = [[label or 10] for label in labels]  # SVHN writes a 0 as 10
        scipy.io.savemat(root / f"{svhn}_32x32.mat", {"X": coloured, "y": ten})
    unchecked = {split: [url, name, None] for split, (url, name, _) in SVHN.split_list.items()}
    monkeypatch.setattr(SVHN, "split_list", unchecked)
    return root


def test_torchvision(load, torchvision_root):
    digits = load(f"torchvision:{torchvision_root}")
    assert list(digits.pairs) == ALL_PAIRS
    for name, domain in digits.domains.items():
        assert [len(split) for split in splits(domain)] == [16, 4, 10]
        assert domain.test.labels.tolist() == list(range(10))
        assert not domain.synthetic
        for split in splits(domain) if name != "mnistm" else ():  # which is blended
            assert shades(split.images) == split.labels.tolist()
    # Each digit is there twice or three times, on parts of photographs of its own.
    blended = torch.cat([split.images for split in splits(digits.domains["mnistm"])])
    assert len(blended.flatten(1).unique(dim=0)) == 30


def test_mnistm_of_a_folder_of_photographs(load, torchvision_root):
    folder = torchvision_root / "photographs"
    folder.mkdir()
    Image.new("RGB", (200, 40), (200, 100, 50)).save(folder / "wall.png")
    domain = load(f"torchvision:{torchvision_root}", pairs=["mnistm->usps"]).domains["mnistm"]
    assert "1 photographs in photographs/" in domain.source
    for split in splits(domain):
        assert shades(200 - split.images[:, :1].int()) == split.labels.tolist()
    Image.new("RGB", (20, 20)).save(folder / "wall.png")
    scans.parts.cache_clear()  # in which the old one is, by its name
    with pytest.raises(UserError, match="no photograph of at least"):
        load(f"torchvision:{torchvision_root}", pairs=["mnistm->usps"])


def test_pickled_mnist_and_failed_downloads_are_named(load, torchvision_root, monkeypatch):
    (torchvision_root / "MNIST" / "processed").mkdir()
    with pytest.raises(UserError, match="never read"):
        load(f"torchvision:{torchvision_root}")
    monkeypatch.setattr(SVHN, "download", mock.Mock(side_effect=OSError("no network")))
    with pytest.raises(UserError, match=r"svhn is not in .* put the files of torchvision"):
        load(f"torchvision:{torchvision_root}/none", pairs=["svhn->usps"])


def test_mnist_is_unpacked(load, torchvision_root, monkeypatch):
    """Where its files were put by hand as they come, offline."""
    data, raw = f"torchvision:{torchvision_root}", torchvision_root / "MNIST" / "raw"
    expected = load(data).fingerprint
    for path in [*raw.iterdir()]:
        path.with_suffix(".gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    unchecked = [(name, None) for name, _ in datasets.MNIST.resources]
    monkeypatch.setattr(datasets.MNIST, "resources", unchecked)
    assert load(data).fingerprint == expected


def test_an_interrupted_download_starts_over(load, torchvision_root, tmp_path, monkeypatch):
    """What it has left is neither read nor in the way."""
    expected = load(f"torchvision:{torchvision_root}").domains["usps"].fingerprint
    root, stages = tmp_path / "new", iter([KeyboardInterrupt, None, None])
    shutil.copytree(torchvision_root, root)
    (root / "usps.bz2").write_bytes((root / "usps.bz2").read_bytes()[:-100])
    (root / "usps.t.bz2").unlink()

    def download(url, folder, filename, md5):
        whole = (torchvision_root / filename).read_bytes()
        (Path(folder) / filename).write_bytes(whole[:-100])
        if stage := next(stages):
            raise stage
        (Path(folder) / filename).write_bytes(whole)

    monkeypatch.setattr(datasets.usps, "download_url", download)
    with pytest.raises(KeyboardInterrupt):
        load(f"torchvision:{root}")
    (root / ".tmp-usps-killed").mkdir()
    assert load(f"torchvision:{root}").domains["usps"].fingerprint == expected
    assert not list(root.glob(".tmp-*"))


# --- augmentation -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["geometric", "strong"])
def test_augmentation_differs_by_image_and_stays_in_range(name):
    torch.manual_seed(0)
    same = torch.rand(1, 3, 32, 32).expand(64, -1, -1, -1)
    changed = augment.AUGMENTATIONS[name](same)
    assert changed.shape == same.shape
    assert 0 <= changed.min() <= changed.max() <= 1
    assert len(changed.flatten(1).unique(dim=0)) == 64


def test_geometric_without_reach_changes_nothing(monkeypatch):
    for name in ("ROTATION", "SCALE", "SHIFT", "SHEAR"):
        monkeypatch.setattr(augment, name, 0)
    images = torch.rand(5, 3, 6, 9)
    torch.testing.assert_close(augment.geometric(images), images)


def test_sampling_as_products_is_grid_sample():
    """Also where the grid leaves the image, and in its gradient."""
    torch.manual_seed(0)
    grid, weights = 1.5 * (2 * torch.rand(5, 6, 9, 2) - 1), torch.randn(5, 3, 6, 9)
    images = torch.rand(5, 3, 6, 9, requires_grad=True)
    ours = augment.sample(images, grid)
    theirs = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    torch.testing.assert_close(ours, theirs)
    gradients = [torch.autograd.grad((weights * x).sum(), images)[0] for x in (ours, theirs)]
    torch.testing.assert_close(*gradients)


def test_photometric_inverts_half_and_a_single_channel_in_a_quarter():
    torch.manual_seed(0)
    gradient = torch.linspace(0, 1, 32).expand(800, 3, 32, 32)
    changed = augment.photometric(gradient)
    rising = changed[..., -8:].mean((2, 3)) > changed[..., :8].mean((2, 3))
    assert ((rising.float().mean(0) > 0.4) & (rising.float().mean(0) < 0.6)).all()
    odd = rising.sum(1) % 3 != 0
    assert 0.2 < odd.float().mean() < 0.3
