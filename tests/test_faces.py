"""Faces from each source, and one clear error for each kind of bad input."""

import re
import shutil
from base64 import b64decode
from functools import partial
from itertools import product
from pathlib import Path
from unittest import mock

import numpy as np
import psutil
import pytest
import sklearn.datasets
import torch
from conftest import ROOT, cases, shaded, shades, start, write_csv
from PIL import ExifTags, Image, ImageOps
from torchvision.datasets import CelebA

from dlcvlib.data import decode, prepare, source, weights
from dlcvlib.data.faces import load_faces
from dlcvlib.data.synthetic.faces import draw_face
from dlcvlib.data.synthetic.people import HAIR
from dlcvlib.utils import fingerprints, storage
from dlcvlib.utils.errors import UserError


@pytest.fixture
def chosen(params, tmp_path):
    """Parameters: a data source, by default the fixture `folder`, and a cache of its own."""
    choose = partial(params, "vae", validation_size=3, image_limit=0)
    return lambda data=f"folder:{tmp_path}/data", **changes: choose(data=data, **changes)


@pytest.fixture
def load(chosen):
    return lambda *data, **changes: load_faces(chosen(*data, **changes))


def shown(data, **attributes):
    """The shades in each split, of which each attribute is a function."""
    found = []
    for split in (data.train, data.validation, data.test):
        found.append(shades(split.images))
        for name, of in attributes.items():
            assert split.attributes[name].tolist() == list(map(of, found[-1]))
    return found


def sizes(data):
    return len(data.train), len(data.validation), len(data.test)


# --- drawn ------------------------------------------------------------------------------------


def test_embedded_faces_are_drawn_once_until_their_code_changes(load, monkeypatch):
    data = load("embedded", drawn_train=20, drawn_test=6)
    assert sizes(data) == (17, 3, 6)
    assert data.synthetic
    assert "synthetic" in data.summary()
    monkeypatch.setattr(prepare, "fill", None)
    assert load("embedded", drawn_train=20, drawn_test=6).fingerprint == data.fingerprint
    for module in ("faces", "hair", "people", "brushes"):
        path = fingerprints.PACKAGE / f"data/synthetic/{module}.py"
        with monkeypatch.context() as patch:
            patch.setitem(fingerprints._LOADED, path, "changed = True")
            with pytest.raises(TypeError, match="NoneType"):
                load("embedded", drawn_train=20, drawn_test=6)


def test_drawn_attributes_agree_and_show_in_pictures_of_which_no_two_are_alike():
    pictures = np.empty((400, 3, 64, 64), np.uint8)
    columns = decode.fill(partial(draw_face, 0), range(400), pictures, "faces")
    has = {name: values.astype(bool) for name, values in columns.items()}
    assert all(0.04 < values.mean() < 0.96 for values in has.values())
    assert (sum(columns[name] for name in HAIR) == ~has["Bald"]).all()
    assert (has["No_Beard"] | has["Male"]).all()
    crown = pictures[:, :, 5:12, 26:38].mean((1, 2, 3))
    assert crown[has["Black_Hair"]].mean() < crown[has["Blond_Hair"]].mean() - 50
    eyes = np.abs(np.diff(pictures[:, :, 24:38, 14:50].mean(1), axis=2)).mean((1, 2))
    assert eyes[has["Eyeglasses"]].mean() > eyes[~has["Eyeglasses"]].mean()
    flat = torch.from_numpy(pictures).float().flatten(1)
    assert torch.pdist(flat).min() / flat.shape[1] ** 0.5 > 10


# --- pictures ---------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(90, 64), (64, 90)])
def test_the_central_square_is_used(tmp_path, size):
    picture = Image.new("RGB", size, "blue")
    left, top = ((side - 64) // 2 for side in size)
    picture.paste("red", (left, top, left + 64, top + 64))
    picture.save(tmp_path / "wide.png")
    pixels, columns = decode.decode_file(tmp_path / "wide.png", 64)
    assert columns["resized"] == 1
    assert (pixels == [255, 0, 0]).all()


DEEP = [*product(["png", "tif", "pgm", "jp2"], ["<u2"]), ("tif", ">u2"), ("tif", "<i4")]


@pytest.mark.parametrize(("ending", "dtype"), DEEP)
def test_sixteen_bits_keep_their_shades(tmp_path, ending, dtype):
    """Values of fewer bits in a file of 16 are noted, others refused."""
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64)

    def remarks(values):
        Image.fromarray(values.astype(dtype)).save(tmp_path / f"deep.{ending}")
        return decode.decode_file(tmp_path / f"deep.{ending}", 64)

    pixels, found = remarks(ramp)
    assert np.array_equal(pixels[..., 0], ramp.astype(int) >> 8)
    assert not found["dark"]
    assert remarks(ramp / 16)[1]["dark"]
    for odd in (ramp - 1, ramp + 1) if dtype == "<i4" else ():
        with pytest.raises(UserError, match="not of 8 or 16 bits"):
            remarks(odd)


INK = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
"""Black ink on a transparent ground."""
INK.paste((0, 0, 0, 255), (0, 0, 32, 64))


INKS = [(INK, ending) for ending in ("png", "webp", "tif", "ico", "gif", "avif", "jp2")]
INKS += [(INK.convert("LA"), "png"), (INK.convert("LA"), "tif"), (INK.convert("PA"), "tif")]
INKS += [(INK.quantize(), "png")]
INKS += [(b64decode(content), "png") for content in cases("transparent").values()]


@pytest.mark.parametrize(("picture", "ending"), INKS)
def test_transparency_shows_the_background(tmp_path, picture, ending):
    path = tmp_path / f"ink.{ending}"
    if isinstance(picture, bytes):
        path.write_bytes(picture)
    else:
        picture.save(path, quality=100, lossless=ending == "webp")
    for background, expected in ((), [255, 255, 255]), (("red",), [255, 0, 0]):
        found, remarks = decode.open_picture(path, *background)
        width, height = found.size
        assert np.max(found.getpixel((0, height // 2))) < 8
        assert np.abs(np.subtract(found.getpixel((width - 1, height // 2)), expected)).max() < 8
        assert remarks == {"turned": 0, "transparent": 1}


def exif(picture, orientation):
    """EXIF data with an orientation, which the picture gets as well."""
    picture.getexif()[ExifTags.Base.Orientation] = orientation
    return picture.getexif()


MODES = ["RGB", "L", "P", "1", "CMYK", "RGBA", "LA", "I;16"]
TURNED = [*product(["RGB"], ["jpg", "png", "webp", "avif"], ["raw"])]
TURNED += product(MODES, ["tif"], ["raw", "tiff_lzw"])


@pytest.mark.parametrize(("mode", "ending", "compression"), TURNED)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_a_picture_of_any_mode_upright(tmp_path, mode, ending, compression, orientation):
    picture = Image.new("RGB", (64, 40))
    picture.paste("red", (0, 0, 32, 20))
    picture.paste("blue", (32, 0, 64, 20))
    picture = Image.new(mode, (64, 40)) if mode == "I;16" else picture.convert(mode)
    orders = exif(picture, orientation)
    upright = ImageOps.exif_transpose(picture).convert("RGB")
    picture.save(tmp_path / f"a.{ending}", exif=orders, compression=compression)
    found, remarks = decode.open_picture(tmp_path / f"a.{ending}")
    assert found.size == upright.size
    difference = np.abs(np.subtract(found, upright, dtype=int)).mean()
    assert difference <= (0 if ending in ("png", "tif") else 10)
    assert remarks == {"turned": orientation > 1, "transparent": 0}


@pytest.mark.filterwarnings("ignore:.*:UserWarning:PIL")
def test_damaged_exif_data_do_not_matter(tmp_path):
    """An orientation counts even where other fields are damaged."""
    picture, rng, found = Image.new("RGB", (64, 40)), np.random.default_rng(0), set()
    picture.getexif()[ExifTags.Base.Make] = "phone"
    whole = exif(picture, 6).tobytes()
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[rng.integers(6, len(whole))] = rng.integers(256)
        picture.save(tmp_path / "phone.png", exif=bytes(damaged))
        found.add(decode.open_picture(tmp_path / "phone.png")[0].size)
    assert found == {(40, 64), (64, 40)}


@pytest.mark.parametrize("ending", ["png", "jpg", "bmp", "gif", "webp", "tif", "ppm", "avif"])
def test_formats(tmp_path, ending):
    """Whatever a file is called; of several pictures in it, the first."""
    several = {"save_all": True, "append_images": [Image.new("RGB", (64, 64), "red")]}
    animated = ending in ("png", "gif", "webp", "tif", "avif")
    first = Image.new("RGB", (64, 64), "blue")
    first.save(tmp_path / f"a.{ending}", **several if animated else {})
    (tmp_path / f"a.{ending}").rename(tmp_path / "a.x")
    pixels, remarks = decode.decode_file(tmp_path / "a.x", 64)
    assert np.abs(pixels.astype(int) - [0, 0, 255]).max() < 8
    assert not any(remarks.values())


@pytest.mark.parametrize(
    "content",
    [b"", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", b"<svg/>", b"%PDF-1.4", b"%!PS-Adobe-3.0 EPSF"],
)
def test_other_formats_are_refused(tmp_path, content):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.jpg is not a readable .* PNG, JPEG, .* such as HEIC"):
        decode.open_picture(tmp_path / "a.jpg")


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path):
    Image.new("1", (9_000, 9_000)).save(tmp_path / "bomb.png")
    with pytest.raises(UserError, match=r"bomb\.png .*81000000 pixels"):
        decode.decode_file(tmp_path / "bomb.png", 64)


# --- folder -----------------------------------------------------------------------------------


def test_folder(load, folder):
    """The training images are shuffled; attributes stay with their images."""
    data = load()
    train, validation, test = shown(data, Male=lambda s: s % 2, Young=lambda s: s % 3 == 0)
    assert sorted(train + validation) == list(range(5, 17))
    assert test == list(range(5, 11))
    assert sizes(data) == (9, 3, 6)
    assert data.notes == ("2 images were not 64×64: cropped to the central square and resized.",)
    assert "images in data/face; 9 images for training" in data.summary()
    assert sizes(load(image_limit=5)) == (2, 3, 5)


def test_changes_in_a_folder_are_noticed(load, folder, tmp_path):
    before = load()
    (folder / "face/train/extra.png").touch()
    for name in ("3.png", "4.png"):
        shutil.copy(folder / "face/train" / name, folder / "face/test" / name)
    after = load()
    assert after.fingerprint != before.fingerprint
    assert "1 files in train/ are not in train.csv: left out." in after.notes
    assert "2 of the test images are training images too." in after.notes
    (folder / "face/train/extra.png").unlink()
    assert load().fingerprint == after.fingerprint  # which was found, with notes of today
    assert not any("train.csv" in note for note in load().notes)
    assert len(list((tmp_path / "runs" / "data").glob("faces-*/"))) == 2


def write_lists(folder, **columns):
    """Both lists of a folder, of functions of split and number."""
    for split, count in (("train", 12), ("test", 6)):
        rows = [(f"{i}.png", *(f(split, i) for f in columns.values())) for i in range(count)]
        write_csv(folder / f"face/{split}.csv", ["image_name", *columns], rows)


def test_attributes_in_both_lists_are_read_whatever_their_names(load, folder):
    write_lists(folder, images=lambda _, i: i % 2, resized=lambda _, i: i % 2)
    assert sorted(load().test.attributes) == ["images", "resized"]
    write_csv(folder / "face/test.csv", ["image_name", "images"], [("0.png", 1)])
    data = load()
    assert list(data.test.attributes) == ["images"]
    assert "In one of the two CSVs only, and left out: resized." in data.notes


def first_of_test(split, i):
    return int(split == "test" and i == 0)


def test_the_requested_attribute_or_the_most_balanced(load, folder):
    data = load()
    assert data.attribute("Young") == ("Young", "")
    expected = "The data have no Black_Hair; Male, the most balanced column, is used instead."
    assert data.attribute("Black_Hair") == ("Male", expected)
    write_lists(folder, Male=first_of_test, Rare=lambda _, i: int(i == 5))
    data = load()
    assert data.attribute("Rare") == ("Rare", "")
    result, note = data.attribute("Male")
    assert result == "Rare"
    assert note.startswith("Male is the same for all training or all test images; Rare, the most")


@pytest.mark.parametrize("case", cases("bad_folders"))
def test_bad_folder(load, folder, case):
    path = folder / "face" / case["file"]
    if "name" in case:
        path.rename(path.with_name(case["name"]))
    elif "bytes_left" in case:
        path.write_bytes(path.read_bytes()[: case["bytes_left"]])
    else:
        path.write_text(case["content"], encoding="latin-1")
    with pytest.raises(UserError, match=case["message"]):
        load()


def test_sub_folders_but_no_links(load, folder, tmp_path):
    """Names in a list may lead into folders; links to folders or files are not followed."""
    place = folder / "face/train"
    (place / "a/b").mkdir(parents=True)
    for i in range(12):
        (place / f"{i}.png").rename(place / "a/b" / f"{i}.png")
    before = (folder / "face/train.csv").read_text()
    (folder / "face/train.csv").write_text(before.replace("\n", "\na/b/").removesuffix("a/b/"))
    (place / "c").symlink_to(place / "a")
    data = load()
    assert sizes(data) == (9, 3, 6)
    assert not [note for note in data.notes if "left out" in note]
    picture = place / "a/b/0.png"
    picture.symlink_to(picture.rename(tmp_path / "secret.png"))
    with pytest.raises(UserError, match=r"not in .*links are not followed.*a/b/0\.png"):
        load()


def test_remarks_on_pictures_are_noted(load, folder):
    """The background decides the images, and is part of their identity in the cache."""
    dark = Image.new("RGB", (64, 64), (0, 0, 20))
    INK.save(folder / "face/train/0.png")
    dark.save(folder / "face/train/3.png", exif=exif(dark, 3))
    white, red = load(), load(background="red")
    assert [*white.notes][1:] == [
        "1 images were turned upright, as their EXIF data say.",
        "1 images are transparent in part: laid on white.",
        "1 images are almost black, below 64 of 255, as values of 8 to 13 bits in 16 bits are.",
    ]
    assert "laid on red" in red.summary()
    assert white.fingerprint != red.fingerprint
    with pytest.raises(UserError, match=r"background.*'rot'"):
        load(background="rot")


def test_a_limit_draws_from_the_whole_list(load, folder):
    write_lists(folder, Male=lambda _, i: int(i > 5))
    assert 0 < load(image_limit=6).train.attributes["Male"].sum() < 3


SOURCES = {
    "torchvision:{}/file": "data: there is no folder .*file",
    "folder:{}": "no folder .*/face .*--only 3,4",
    "folder:": "not one of embedded",
    "embedded": "leaves none of the 3 training images of faces",
}


@pytest.mark.parametrize(("data", "message"), SOURCES.items())
def test_sources_are_checked(load, tmp_path, data, message):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=message):
        load(data.format(tmp_path), drawn_train=3)


def test_unsuitable_faces_are_refused_before_anything_runs(folder, chosen, monkeypatch):
    def refused(message, *data, **changes):
        with pytest.raises(UserError, match=message):
            source.inspect_data({"vae": chosen(*data, **changes)})

    refused("the faces have 9 images for train, but the report needs 32")
    few = {"drawn_train": 64, "drawn_test": 31, "validation_size": 32}
    refused("31 images for test, but the report needs 32", "embedded", **few)
    monkeypatch.setattr(source, "LEAST_FACES", {})
    write_lists(folder, Male=first_of_test, All=lambda *_: 1)
    refused(r"no attribute is 0 for some .* \(there are: Male, All\)")
    write_lists(folder)
    refused(r"no attribute is 0 for some .* \(there are: none\)")
    source.inspect_data({"vae": chosen()}, attributes=False)


def test_the_first_three_problems_need_no_attributes():
    """As the command line assumes when it inspects the data."""
    texts = {path.name[:3]: path.read_text() for path in (ROOT / "notebooks").glob("*.ipynb")}
    uses = re.compile(r"features\.\w+\(|\.attribute\(")
    assert {n for n in texts if uses.search(texts[n])} == {n for n in texts if "1-3" < n < "3"}


def test_inceptions_weights_count_as_soon_as_they_are_there(chosen, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(source, "LEAST_FACES", {})
    before, again = (source.inspect_data({"vae": chosen()}) for _ in range(2))
    assert before == again
    file = (tmp_path / "hub" / "checkpoints" / weights.INCEPTION).with_suffix(".safetensors")
    storage.write_bytes(file, b"")
    assert source.inspect_data({"vae": chosen()}) != before


# --- several processes ------------------------------------------------------------------------

PROGRAM = """
import os, sys, threading
import numpy as np
from dlcvlib.data import decode
from dlcvlib.data.synthetic import faces  # neither imports torch

decode.CHUNK, decode.cpu_count, parent = 20, lambda: 2, os.getpid()

def work(index):
    if {}:
        {}
    assert "torch" not in sys.modules
    return np.full((1, 1, 1), index), dict(index=index)

found = decode.fill(work, range(50), out := np.empty((50, 1, 1, 1), np.uint8), "t")
assert found["index"].tolist() == out.ravel().tolist() == [*range(50)]
"""
WHOLE = "os.getpid() == parent", "raise AssertionError"
KILLED = "os.getpid() != parent and index == 20", "os.kill(os.getpid(), 9)"


@pytest.mark.parametrize(("condition", "action"), [WHOLE, KILLED])
def test_several_processes_match_a_single_one(condition, action):
    """From a script without a `__main__` guard; also if one of the processes is killed."""
    with start("-c", PROGRAM.format(condition, action)) as process:
        assert process.wait() == 0


def test_workers_end_with_a_parent_that_is_killed():
    action = "os.write(1, b'%d\\n' % os.getpid()); threading.Event().wait()"
    with start("-c", PROGRAM.format("index % 20 == 0", action)) as parent:
        workers = [psutil.Process(int(parent.stdout.readline())) for _ in range(2)]
        parent.kill()
        assert not psutil.wait_procs(workers, timeout=60)[1]


# --- torchvision ------------------------------------------------------------------------------


@pytest.fixture
def celeba(tmp_path, monkeypatch):
    """A tiny CelebA in its own format: four training and two test pictures, odd ones male."""
    base = tmp_path / "root" / "celeba"
    (base / "img_align_celeba").mkdir(parents=True)
    names = [f"{i:06d}.jpg" for i in range(1, 7)]
    for shade, name in enumerate(names):
        Image.fromarray(shaded(shade, 218, 178, 3)).save(base / "img_align_celeba" / name)
    for list_name, header, values in (
        ("list_eval_partition", "", "000022"),
        ("list_attr_celeba", "6\nMale Smiling \n", ["-1 -1", "1 -1"] * 3),
    ):
        rows = [f"{name} {value}\n" for name, value in zip(names, values, strict=True)]
        (base / f"{list_name}.txt").write_text(header + "".join(rows))
    unchecked = [(file_id, None, name) for file_id, _, name in CelebA.file_list]
    monkeypatch.setattr(CelebA, "file_list", unchecked)  # with the digests of the true lists
    return base


def test_celeba_on_disk(load, celeba):
    data = load(f"torchvision:{celeba.parent}", validation_size=1)
    assert data.source == "CelebA"
    train, validation, test = shown(data, Male=lambda s: s % 2, Smiling=lambda s: 0)
    assert sorted(train + validation) == list(range(4))
    assert (len(validation), test) == (1, [4, 5])
    assert sizes(load(f"torchvision:{celeba.parent}", validation_size=1, image_limit=3)) == (
        2,
        1,
        2,
    )
    (celeba / "img_align_celeba/000006.jpg").unlink()
    with pytest.raises(UserError, match=r"cannot read .*000006\.jpg"):
        load(f"torchvision:{celeba.parent}")


def test_celeba_is_unpacked(load, celeba):
    """What an interruption has left is not read."""
    data, folder = f"torchvision:{celeba.parent}", celeba / "img_align_celeba"
    before = load(data)
    archive = Path(shutil.make_archive(folder, "zip", celeba, folder.name))
    (celeba.parent / ".tmp-CelebA-killed" / "celeba").mkdir(parents=True)
    folder.rename(celeba.parent / ".tmp-CelebA-killed" / "celeba" / folder.name)
    assert load(data).fingerprint == before.fingerprint
    assert not list(celeba.parent.glob(".tmp-*"))
    shutil.rmtree(folder)
    damaged = bytearray(archive.read_bytes())
    damaged[500] ^= 1
    archive.write_bytes(damaged)
    with pytest.raises(UserError, match=r"CelebA is not in .*CRC.* put img_align_celeba\.zip"):
        load(data)


LFW_PICTURES = {"Ada_Byron": 20, "Max_Born": 12, "Emmy_Noether": 8}


@pytest.fixture
def lfw(tmp_path):
    """A tiny LFW in its on-disk format: a shade per person in a white frame."""
    place = tmp_path / "root" / "lfw_home" / "lfw_funneled"
    for shade, (person, count) in enumerate(LFW_PICTURES.items()):
        (place / person).mkdir(parents=True)
        for number in range(1, count + 1):
            picture = Image.new("RGB", (250, 250), "white")
            picture.paste(Image.fromarray(shaded(shade, 128, 128, 3, seed=number)), (61, 61))
            picture.save(place / person / f"{person}_{number:04}.jpg")
    return tmp_path / "root"


def test_lfw_on_disk(load, lfw):
    data = load(f"torchvision:{lfw}", validation_size=6)
    people = {name: lambda s, n=n: int(s == n) for n, name in enumerate(LFW_PICTURES)}
    found = shown(data, **people)
    assert data.source == "LFW"
    assert list(map(len, found)) == [30, 6, 4]
    counts = [sum(split.count(person) for split in found) for person in range(3)]
    assert counts == list(LFW_PICTURES.values())
    assert sizes(load(f"torchvision:{lfw}", image_limit=5)) == (2, 3, 4)
    (lfw / "lfw_home" / "lfw_funneled" / "Max_Born" / "Max_Born_0003.jpg").write_bytes(b"none")
    with pytest.raises(UserError, match=r"Max_Born_0003.jpg is not a readable picture"):
        load(f"torchvision:{lfw}")


@pytest.fixture
def refused(monkeypatch):
    """CelebA cannot be downloaded."""
    monkeypatch.setattr(CelebA, "download", mock.Mock(side_effect=OSError("refused")))


@pytest.mark.usefixtures("refused")
def test_lfw_is_downloaded_if_celeba_is_refused(load, lfw, tmp_path, monkeypatch, capsys):
    def unpack(data_home, **_):
        shutil.copytree(lfw, data_home, dirs_exist_ok=True)

    fetch = mock.Mock(side_effect=unpack)
    monkeypatch.setattr(sklearn.datasets, "fetch_lfw_people", fetch)
    home = tmp_path / "empty" / "lfw_home"
    (home.parent / ".tmp-LFW-killed").mkdir(parents=True)
    data = load(f"torchvision:{home.parent}")
    assert data.fingerprint == load(f"torchvision:{lfw}").fingerprint
    assert "(refused)" in capsys.readouterr().out
    assert [path.name for path in home.parent.iterdir() if path.is_dir()] == ["lfw_home"]
    assert load(f"torchvision:{home.parent}").fingerprint == data.fingerprint
    fetch.assert_called_once()


@pytest.mark.usefixtures("refused")
def test_photographs_that_cannot_be_downloaded(load, lfw, tmp_path, monkeypatch):
    """And LFW does not replace a CelebA that is damaged."""
    refuse = mock.Mock(side_effect=OSError("refused"))
    monkeypatch.setattr(sklearn.datasets, "fetch_lfw_people", refuse)
    expected = r"LFW is not in .* downloaded \(refused\): .* CelebA is not in .*img_align"
    with pytest.raises(UserError, match=expected):
        load(f"torchvision:{tmp_path}/none")
    (lfw / "celeba").mkdir()
    (lfw / "celeba" / "img_align_celeba.zip").touch()  # of a download that broke off
    assert load(f"torchvision:{lfw}").source == "LFW"
    (lfw / "celeba" / "img_align_celeba").mkdir()
    with pytest.raises(UserError, match="CelebA is not in"):
        load(f"torchvision:{lfw}")
