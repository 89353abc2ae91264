"""Faces from each source, and one clear error for each kind of bad input."""

import hashlib
import subprocess
import sys
import tarfile

import numpy as np
import psutil
import pytest
import sklearn.datasets
import torch
from conftest import HW3_DATA, ROOT, write_csv
from PIL import Image
from sklearn.datasets import _lfw
from sklearn.datasets._base import RemoteFileMetadata

from dlcvlib.data import decode, source
from dlcvlib.data.faces import load_faces
from dlcvlib.data.synthetic import faces as drawn_faces
from dlcvlib.evaluation import features
from dlcvlib.utils.errors import UserError


@pytest.fixture
def load(smoke, tmp_path):
    """Load a data source with a cache of its own."""

    def from_source(data, **changes):
        settings = {"validation_size": 3, "image_limit": 0, "runs_dir": str(tmp_path / "runs")}
        return load_faces(smoke(data=str(data), **settings | changes))

    return from_source


# --- drawn ------------------------------------------------------------------------------------


def test_embedded_faces_are_drawn_once(load, monkeypatch):
    data = load("embedded", drawn_train=20, drawn_test=6)
    assert (len(data.train), len(data.validation), len(data.test)) == (17, 3, 6)
    assert data.synthetic
    assert "synthetic" in data.summary()
    assert {"Black_Hair", "Male", "Smiling", "Eyeglasses", "Young"} <= set(data.train.attributes)
    monkeypatch.setattr(decode, "fill", None)
    again = load("embedded", drawn_train=20, drawn_test=6)
    assert torch.equal(data.train.images, again.train.images)
    assert data.fingerprint == again.fingerprint


def test_a_face_depends_on_its_number_alone():
    pictures, columns = drawn_faces.draw_faces(0, [5, 2])
    picture, attributes = drawn_faces.draw_face(0, 2)
    assert picture.shape == (64, 64, 3)
    assert picture.dtype == np.uint8
    assert np.array_equal(pictures[1], picture)
    assert np.array_equal(columns[1], attributes)
    assert not np.array_equal(pictures[0], pictures[1])
    assert not np.array_equal(drawn_faces.draw_face(1, 2)[0], picture)


def people(count):
    return [drawn_faces.sample_person(np.random.default_rng([0, i])) for i in range(count)]


def test_attributes_are_common_enough_to_be_learned():
    shares = np.mean([person.attributes for person in people(1500)], axis=0)
    share = dict(zip(drawn_faces.ATTRIBUTES, shares, strict=True))
    assert all(0.04 < value < 0.96 for value in share.values()), share
    assert all(0.25 < share[name] < 0.75 for name in ("Male", "Smiling", "Young", "Black_Hair"))


def test_attributes_agree_with_each_other():
    for person in people(500):
        has = dict(zip(drawn_faces.ATTRIBUTES, person.attributes, strict=True))
        colours = sum(has[name] for name in drawn_faces.HAIR)
        assert colours == (0 if has["Bald"] else 1)
        assert has["No_Beard"] or has["Male"]
        assert not (has["Bald"] and has["Bangs"])
        assert not (has["Wearing_Lipstick"] and has["Male"])


def test_attributes_show_in_the_picture():
    pictures, columns = drawn_faces.draw_faces(0, range(400))
    has = {n: columns[:, i].astype(bool) for i, n in enumerate(drawn_faces.ATTRIBUTES)}
    crown = pictures[:, 5:12, 26:38].mean((1, 2, 3))
    assert crown[has["Black_Hair"]].mean() < crown[has["Blond_Hair"]].mean() - 50
    eyes = np.abs(np.diff(pictures[:, 24:38, 14:50].mean(3), axis=2)).mean((1, 2))
    assert eyes[has["Eyeglasses"]].mean() > eyes[~has["Eyeglasses"]].mean()


def test_no_two_faces_are_alike(drawn):
    flat = drawn[0].float().flatten(1)
    distances = torch.cdist(flat, flat).fill_diagonal_(torch.inf)
    assert distances.min() / flat.shape[1] ** 0.5 > 10


# --- folder -----------------------------------------------------------------------------------


def test_folder(load, folder):
    data = load(f"folder:{folder}")
    assert (len(data.train), len(data.validation), len(data.test)) == (9, 3, 6)
    assert data.train.images.shape[1:] == (3, 64, 64)
    assert data.train.images.dtype == torch.uint8
    assert sorted(data.train.attributes) == ["Male", "Young"]
    assert any("2 images were not 64×64" in note for note in data.notes)
    gray = np.asarray(Image.open(folder / "face/test/2.png"))
    assert np.array_equal(data.test.images[2].numpy(), np.stack([gray] * 3))
    assert data.test.attributes["Male"].tolist() == [0, 1, 0, 1, 0, 1]
    assert data.test.attributes["Young"].tolist() == [1, 0, 0, 1, 0, 0]


def test_attributes_stay_with_their_images(load, folder):
    """The training images are shuffled."""
    paths = (folder / "face/train").glob("*.png")
    number = {decode.decode_file(path, 64)[0].tobytes(): int(path.stem) for path in paths}
    data = load(f"folder:{folder}")
    for split in (data.train, data.validation):
        shown = [number[image.permute(1, 2, 0).numpy().tobytes()] for image in split.images]
        assert split.attributes["Male"].tolist() == [n % 2 for n in shown]
        assert split.attributes["Young"].tolist() == [int(n % 3 == 0) for n in shown]


def test_the_central_square_is_kept(tmp_path):
    for size in ((90, 64), (64, 90)):
        left, top = ((side - 64) // 2 for side in size)
        picture = Image.new("RGB", size, "blue")
        picture.paste("red", (left, top, left + 64, top + 64))
        picture.save(tmp_path / "wide.png")
        pixels, resized = decode.decode_file(tmp_path / "wide.png", 64)
        assert resized
        assert (pixels == [255, 0, 0]).all()


def test_splits_share_no_image(load, folder):
    data = load(f"folder:{folder}")
    every = torch.cat([data.train.images, data.validation.images, data.test.images]).flatten(1)
    assert len(every.unique(dim=0)) == len(every) == 18


def test_image_limit(load, folder):
    data = load(f"folder:{folder}", image_limit=5)
    assert (len(data.train), len(data.validation), len(data.test)) == (2, 3, 5)


def test_a_changed_file_is_noticed(load, folder):
    before = load(f"folder:{folder}").fingerprint
    assert load(f"folder:{folder}").fingerprint == before
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(folder / "face/train/3.png")
    assert load(f"folder:{folder}").fingerprint != before


def test_a_damaged_cache_is_made_again(load, folder, tmp_path, capsys):
    before = load(f"folder:{folder}")
    (path,) = (tmp_path / "runs" / "data").rglob("*.safetensors")
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    after = load(f"folder:{folder}")
    assert path.name in capsys.readouterr().out
    assert torch.equal(before.train.images, after.train.images)
    assert before.fingerprint == after.fingerprint


def test_files_that_no_csv_names_are_left_out_and_said(load, folder, tmp_path):
    """Also of pictures that were prepared before there were any; they are not prepared again."""
    assert load(f"folder:{folder}").fingerprint
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(folder / "face/train/extra.png")
    assert any(
        "1 files in train/ are not in train.csv" in n for n in load(f"folder:{folder}").notes
    )
    assert len(list((tmp_path / "runs" / "data").glob("faces-*/"))) == 1


def test_a_damaged_pointer_is_named_and_the_data_made_again(load, folder, tmp_path, capsys):
    before = load(f"folder:{folder}").fingerprint
    (pointer,) = (tmp_path / "runs" / "data").rglob("images.json")
    pointer.write_text("[]")
    assert load(f"folder:{folder}").fingerprint == before
    assert f"{pointer} is damaged" in capsys.readouterr().out


def test_sixteen_bits_keep_their_shades(tmp_path):
    ramp = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    pixels, _ = decode.decode_file(tmp_path / "deep.png", 64)
    assert len(np.unique(pixels)) > 200


def test_a_picture_that_would_start_a_program_is_refused(tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "page.eps")
    (tmp_path / "page.eps").rename(tmp_path / "page.png")
    with pytest.raises(UserError, match=r"page\.png.*cannot identify"):
        decode.decode_file(tmp_path / "page.png", 64)


def test_the_line_of_a_bad_value_is_right_after_blank_lines(load, folder):
    table = folder / "face/train.csv"
    lines = table.read_text().splitlines()
    table.write_text("\n".join([lines[0], "", "", "0.png,yes,1", *lines[2:]]))
    with pytest.raises(UserError, match="line 4: attribute 'Male' is 'yes'"):
        load(f"folder:{folder}")


def test_one_image_under_two_names_is_refused(load, folder):
    table = folder / "face/train.csv"
    table.write_text(table.read_text() + "./0.png,0,0\n")
    with pytest.raises(UserError, match="twice"):
        load(f"folder:{folder}")


def test_an_attribute_of_one_csv_only_is_left_out_and_said(load, folder):
    write_csv(folder / "face/test.csv", ["image_name", "Male"], [(f"{i}.png", 1) for i in range(6)])
    data = load(f"folder:{folder}")
    assert list(data.test.attributes) == ["Male"]
    assert any("Young" in note for note in data.notes)


def test_the_wanted_attribute_or_the_most_balanced(load, folder):
    data = load(f"folder:{folder}")
    assert data.attribute("Young") == ("Young", "")
    name, note = data.attribute("Black_Hair")
    assert name == "Male"
    assert "Black_Hair" in note


def test_no_attributes_at_all(load, folder):
    for split, count in (("train", 12), ("test", 6)):
        write_csv(
            folder / f"face/{split}.csv", ["image_name"], [(f"{i}.png",) for i in range(count)]
        )
    with pytest.raises(UserError, match=r"train\.csv and test\.csv share no attributes"):
        load(f"folder:{folder}")


def test_an_attribute_that_all_faces_share_stands_for_nothing(load, folder):
    def write(**columns):
        for split, count in (("train", 12), ("test", 6)):
            rows = [(f"{i}.png", *(f(split, i) for f in columns.values())) for i in range(count)]
            write_csv(folder / f"face/{split}.csv", ["image_name", *columns], rows)

    # Male is one of the test faces' alone; Rare is in both splits, once a split.
    write(Male=lambda split, i: int(split == "test" and i == 0), Rare=lambda _, i: int(i == 5))
    data = load(f"folder:{folder}")
    assert data.attribute("Rare") == ("Rare", "")
    found, note = data.attribute("Male")
    assert found == "Rare"
    assert note.startswith("Male is the same for all training or all test images; Rare, the most")
    write(Male=lambda split, i: int(split == "test" and i == 0), All=lambda *_: 1)
    with pytest.raises(UserError, match=r"no attribute is 0 for some .* \(there are: Male, All\)"):
        load(f"folder:{folder}").attribute("Male")


def test_constant_attributes_are_refused_before_anything_runs(tmp_path, smoke):
    chosen = smoke(data=f"torchvision:{tmp_path}", runs_dir=str(tmp_path / "runs"))
    folder = tmp_path / "lfw_home" / "lfw_funneled" / "Ada_Byron"
    folder.mkdir(parents=True)
    for number in range(400):
        Image.fromarray(np.full((9, 9, 3), number % 256, np.uint8)).save(folder / f"{number}.jpg")
    with pytest.raises(UserError, match=r"no attribute is 0 for some .* \(there are: Ada_Byron\)"):
        source.look({"vae": chosen})


def test_test_images_that_were_trained_on_are_counted(load, folder):
    assert not any("training images too" in note for note in load(f"folder:{folder}").notes)
    for number in (3, 4):
        picture = (folder / f"face/train/{number}.png").read_bytes()
        (folder / f"face/test/{number}.png").write_bytes(picture)
    assert "2 of the test images are training images too." in load(f"folder:{folder}").notes


def _rows(count=12):
    return [(f"{i}.png", 1) for i in range(count)]


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (
            lambda f: (f / "train/4.png").write_bytes(b"not a picture"),
            r"train/4\.png is not a readable",
        ),
        (
            lambda f: (f / "train/4.png").write_bytes((f / "train/4.png").read_bytes()[:900]),
            r"train/4\.png is not a readable",
        ),
        (lambda f: (f / "train.csv").unlink(), r"cannot read .*train\.csv: there is no such file"),
        (
            lambda f: (f / "train.csv").write_bytes("image_name,J\xe4ger\n".encode("latin-1")),
            r"cannot read .*train\.csv: .*; save it as UTF-8",
        ),
        (lambda f: (f / "train.csv").write_text("image_name;Male\n"), "with commas between them"),
        (lambda f: (f / "train.csv").write_text(""), r"cannot read .*train\.csv"),
        (lambda f: write_csv(f / "train.csv", ["name", "Male"], _rows()), "no column 'image_name'"),
        (lambda f: write_csv(f / "train.csv", ["image_name", "Male"], []), "lists no images"),
        (
            lambda f: write_csv(f / "train.csv", ["image_name", "Male"], _rows(20)),
            r"not in .*train: '12\.png', '13\.png', '14\.png' and 5 more",
        ),
        (
            lambda f: write_csv(f / "train.csv", ["image_name", "Male"], [*_rows(), ("3.png", 0)]),
            r"twice: '3\.png'",
        ),
        (
            lambda f: write_csv(
                f / "train.csv", ["image_name", "Male"], [("0.png", 1), ("1.png", -1)]
            ),
            r"line 3: attribute 'Male' is .*-1.*, not 0 or 1",
        ),
        (
            lambda f: write_csv(
                f / "train.csv", ["image_name", "Male"], [("0.png", ""), ("1.png", 1)]
            ),
            "line 2: attribute 'Male'",
        ),
        (
            lambda f: write_csv(f / "train.csv", ["image_name", "Male"], [("../test/0.png", 1)]),
            "outside of .*test/0",
        ),
        (
            lambda f: write_csv(f / "train.csv", ["image_name", "Male"], [("/etc/passwd", 1)]),
            "outside of .*/etc/passwd",
        ),
    ],
)
def test_bad_folder(load, folder, action, message):
    action(folder / "face")
    with pytest.raises(UserError, match=message):
        load(f"folder:{folder}")


def test_a_link_out_of_the_folder_is_refused(load, folder, tmp_path):
    secret = tmp_path / "secret.png"
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(secret)
    (folder / "face/train/0.png").unlink()
    (folder / "face/train/0.png").symlink_to(secret)
    with pytest.raises(UserError, match=r"outside of .*0\.png"):
        load(f"folder:{folder}")


@pytest.mark.parametrize(
    ("side", "message"),
    [
        (9_000, "bomb.png: 9000×9000 pixels are refused"),
        (50_000, r"bomb\.png is refused.*exceeds"),  # Pillow's own limit, at 13,400
    ],
)
def test_a_bomb_is_refused_before_it_is_decoded(tmp_path, side, message):
    import struct
    import zlib

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    path = tmp_path / "bomb.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    )
    with pytest.raises(UserError, match=message):
        decode.decode_file(path, 64)


def test_sources_are_checked(load, tmp_path):
    with pytest.raises(UserError, match="no folder"):
        load(f"folder:{tmp_path / 'absent'}")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"data: .*file is no folder"):
        load(f"torchvision:{tmp_path / 'file'}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no folder 'face'"):
        load(f"folder:{tmp_path / 'empty'}")
    with pytest.raises(UserError, match="none of embedded"):
        load("imagenet")
    with pytest.raises(UserError, match="leaves nothing"):
        load("embedded", drawn_train=3)


def test_cache_that_cannot_be_written(load, folder, tmp_path):
    (tmp_path / "runs").write_text("in the way")
    with pytest.raises(UserError, match="cannot write"):
        load(f"folder:{folder}")


def test_digests_keep_their_order_over_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(decode, "CHUNK", 2)
    paths = [tmp_path / f"{number}.png" for number in range(5)]
    for path in paths:
        path.write_text(path.name)
    expected = [hashlib.sha256(path.name.encode()).hexdigest() for path in paths]
    assert decode.contents(paths) == expected
    paths[3].unlink()
    with pytest.raises(UserError, match=r"3\.png"):
        decode.contents(paths)


def test_several_processes_give_what_one_gives(tmp_path):
    """In a program of its own: workers are spawned, and must find no torch to import."""
    count = 2 * decode.CHUNK + 10
    program = f"""
import sys
import numpy as np
from functools import partial
from dlcvlib.data import decode
from dlcvlib.data.synthetic import faces as drawn_faces

decode.cores = lambda: 2
if __name__ == "__main__":
    out = np.empty(({count}, 3, 64, 64), np.uint8)
    columns = decode.fill(partial(drawn_faces.draw_faces, 0), range({count}), out, label="t")
    assert "torch" not in sys.modules
    one, attributes = drawn_faces.draw_faces(0, [{count - 1}])
    assert np.array_equal(out[-1].transpose(1, 2, 0), one[0])
    assert np.array_equal(columns[-1], attributes[0])
    print("good")
"""
    path = tmp_path / "program.py"
    path.write_text(program)
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "good\n", done.stderr


def test_workers_end_with_a_parent_that_is_killed():
    program = """
from functools import partial
from dlcvlib.data import decode
from dlcvlib.data.synthetic import faces as drawn_faces

decode.cores = lambda: 2
results = decode._results(partial(drawn_faces.draw_faces, 0), [range(5), range(5, 10)])
next(results)
print("begun", flush=True)
input()
"""
    command = [sys.executable, "-c", program]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, text=True, cwd=ROOT) as parent:
        assert parent.stdout.readline() == "begun\n"
        workers = psutil.Process(parent.pid).children()
        parent.kill()
    assert len(workers) >= 2
    assert not psutil.wait_procs(workers, timeout=60)[1]


@pytest.mark.skipif(not HW3_DATA.is_dir(), reason="real photographs are not here")
def test_real_photographs(load):
    data = load(f"folder:{HW3_DATA}", validation_size=500)
    assert (len(data.train), len(data.validation), len(data.test)) == (7500, 500, 1000)
    assert data.attribute("Black_Hair")[0] == "Male"


# --- torchvision ------------------------------------------------------------------------------


@pytest.fixture
def celeba(tmp_path, monkeypatch):
    """A tiny CelebA in its on-disk format: four training and two test pictures."""
    import hashlib

    from torchvision.datasets import CelebA

    base = tmp_path / "root" / "celeba"
    (base / "img_align_celeba").mkdir(parents=True)
    names = [f"{i:06d}.jpg" for i in range(1, 7)]
    for i, name in enumerate(names):
        pixels = np.full((218, 178, 3), 30 * i, np.uint8)
        Image.fromarray(pixels).save(base / "img_align_celeba" / name)
    splits = (0, 0, 0, 0, 2, 2)
    rows = list(zip(names, splits, strict=True))
    texts = {
        "list_eval_partition.txt": "".join(f"{n} {s}\n" for n, s in rows),
        "identity_CelebA.txt": "".join(f"{n} 1\n" for n in names),
        "list_bbox_celeba.txt": "6\nimage_id x y w h\n" + "".join(f"{n} 1 1 9 9\n" for n in names),
        "list_landmarks_align_celeba.txt": "6\na b c d e f g h i j\n"
        + "".join(f"{n}{' 1' * 10}\n" for n in names),
        "list_attr_celeba.txt": "6\nMale Smiling \n"
        + "".join(f"{n} {1 if i % 2 else -1} -1\n" for i, n in enumerate(names)),
    }
    listed = []
    for name, text in texts.items():
        (base / name).write_text(text)
        listed.append(("", hashlib.md5(text.encode()).hexdigest(), name))
    monkeypatch.setattr(CelebA, "file_list", listed)
    return tmp_path / "root"


def test_celeba_on_disk(load, celeba):
    data = load(f"torchvision:{celeba}", validation_size=1)
    assert (len(data.train), len(data.validation), len(data.test)) == (3, 1, 2)
    assert data.test.attributes["Male"].tolist() == [0, 1]
    assert data.test.attributes["Smiling"].tolist() == [0, 0]
    assert data.source == "CelebA"
    assert data.test.images[1].float().mean() == pytest.approx(150, abs=3)
    for split in (data.train, data.validation, data.test):
        number = (split.images.float().mean((1, 2, 3)) / 30).round().int()
        assert split.attributes["Male"].tolist() == (number % 2).tolist()


def test_celeba_that_cannot_be_had(load, tmp_path, monkeypatch):
    from torchvision.datasets import CelebA

    monkeypatch.setattr(CelebA, "download", refuse)
    monkeypatch.setattr(sklearn.datasets, "fetch_lfw_people", refuse)
    with pytest.raises(UserError, match=r"could not be downloaded \(refused\).*img_align_celeba"):
        load(f"torchvision:{tmp_path}")
    with pytest.raises(UserError, match=r"Nor could LFW be downloaded \(refused\)"):
        load(f"torchvision:{tmp_path}")


def refuse(*_, **__):
    raise OSError("refused")


LFW_PICTURES = {"Ada_Byron": 20, "Max_Born": 12, "Emmy_Noether": 8}


@pytest.fixture
def lfw(tmp_path):
    """A tiny LFW in its on-disk format: a grey for each person in the middle of a white frame."""
    root = tmp_path / "root"
    for grey, (person, count) in enumerate(LFW_PICTURES.items(), 1):
        folder = root / "lfw_home" / "lfw_funneled" / person
        folder.mkdir(parents=True)
        for number in range(count):
            pixels = np.full((250, 250, 3), 255, np.uint8)
            pixels[61:189, 61:189] = 50 * grey + 10 + number
            Image.fromarray(pixels).save(folder / f"{person}_{number + 1:04}.jpg", quality=95)
    return root


def test_lfw_on_disk(load, lfw):
    data = load(f"torchvision:{lfw}", validation_size=6)
    assert (len(data.train), len(data.validation), len(data.test)) == (30, 6, 4)
    assert data.source == "LFW"
    counts = dict.fromkeys(LFW_PICTURES, 0)
    for split in (data.train, data.validation, data.test):
        assert split.images.float().std((1, 2, 3)).max() < 3  # nothing of the frame
        grey = (split.images.float().mean((1, 2, 3)) / 50).floor().int()
        for number, person in enumerate(LFW_PICTURES, 1):
            assert split.attributes[person].tolist() == (grey == number).tolist()
            counts[person] += int(split.attributes[person].sum())
    assert counts == LFW_PICTURES
    few = load(f"torchvision:{lfw}", image_limit=5)
    assert (len(few.train), len(few.validation), len(few.test)) == (2, 3, 4)
    (lfw / "lfw_home" / "lfw_funneled" / "Max_Born" / "Max_Born_0003.jpg").write_bytes(b"none")
    with pytest.raises(UserError, match=r"Max_Born_0003.jpg is not a readable picture"):
        load(f"torchvision:{lfw}")


def test_lfw_is_downloaded_where_celeba_cannot_be_had(load, lfw, tmp_path, monkeypatch, capsys):
    from torchvision.datasets import CelebA

    def offered(path):
        url, digest = path.as_uri(), hashlib.sha256(path.read_bytes()).hexdigest()
        return RemoteFileMetadata(path.name, url, digest)

    with tarfile.open(tmp_path / "lfw-funneled.tgz", "w:gz") as archive:
        archive.add(lfw / "lfw_home" / "lfw_funneled", "lfw_funneled")
    (tmp_path / "pairs.txt").touch()
    monkeypatch.setattr(CelebA, "download", refuse)
    monkeypatch.setattr(_lfw, "TARGETS", (offered(tmp_path / "pairs.txt"),))
    monkeypatch.setattr(_lfw, "FUNNELED_ARCHIVE", offered(tmp_path / "lfw-funneled.tgz"))
    home = tmp_path / "empty" / "lfw_home"
    home.mkdir(parents=True)
    (home / ".tmp-killed").mkdir()
    data = load(f"torchvision:{home.parent}")
    assert data.fingerprint == load(f"torchvision:{lfw}").fingerprint
    assert "(refused)" in capsys.readouterr().out
    assert [path.name for path in home.iterdir() if path.is_dir()] == ["lfw_funneled"]
    monkeypatch.setattr(_lfw, "FUNNELED_ARCHIVE", None)
    assert load(f"torchvision:{home.parent}").fingerprint == data.fingerprint


def test_lfw_stands_in_for_no_celeba_that_is_damaged(load, lfw, monkeypatch):
    from torchvision.datasets import CelebA

    monkeypatch.setattr(CelebA, "download", refuse)
    (lfw / "celeba").mkdir()
    (lfw / "celeba" / "img_align_celeba.zip").touch()  # of a download that broke off
    assert load(f"torchvision:{lfw}").source == "LFW"
    (lfw / "celeba" / "img_align_celeba").mkdir()
    with pytest.raises(UserError, match="CelebA is not in"):
        load(f"torchvision:{lfw}")


def test_inceptions_weights_count_as_soon_as_they_are_there(smoke, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    chosen = {"vae": smoke(runs_dir=str(tmp_path / "runs"))}
    before, _ = source.look(chosen)
    assert source.look(chosen)[0] == before
    file = tmp_path / "torch" / "hub" / "checkpoints" / features.INCEPTION
    file.parent.mkdir(parents=True)
    file.with_suffix(".safetensors").touch()
    assert source.look(chosen)[0] != before


def test_a_set_too_small_for_the_report_is_refused_before_anything_runs(folder, smoke):
    chosen = smoke(data=f"folder:{folder}", validation_size=4, runs_dir=str(folder / "runs"))
    with pytest.raises(UserError, match="the faces have 8 images for train, and the report needs"):
        source.look({"vae": chosen})
    few = smoke(drawn_test=31, runs_dir=str(folder / "runs"))
    with pytest.raises(UserError, match="31 images for test, and the report needs 32"):
        source.look({"vae": few})
