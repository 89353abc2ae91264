"""Data sets that are larger than the memory: prepared in pieces, read where they lie."""

import shutil
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from conftest import interrupt, start

from dlcvlib.data import batches, decode, prepare
from dlcvlib.data.batches import Batches, random_flips
from dlcvlib.data.faces import load_faces
from dlcvlib.utils import storage
from dlcvlib.utils.errors import UserError

CPU = torch.device("cpu")


# --- pieces -----------------------------------------------------------------------------------


@pytest.fixture
def load(params, tmp_path, monkeypatch):
    """Load 40 drawn faces, prepared in pieces of 9, from a folder of runs."""
    monkeypatch.setattr(prepare, "PIECE", 9)
    few = {"drawn_train": 30, "drawn_test": 10, "validation_size": 3}
    return lambda runs: load_faces(params("vae", **few, runs_dir=str(tmp_path / runs)))


@pytest.mark.parametrize("harmed", ["nothing", "images.u8", "1.json"])
def test_a_killed_preparation_continues_with_what_is_whole(load, tmp_path, monkeypatch, harmed):
    fill = mock.Mock(wraps=decode.fill)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "fill", lambda *a: interrupt() if a[4] == 18 else decode.fill(*a))
        with pytest.raises(KeyboardInterrupt):
            load("runs")
    assert not list(tmp_path.glob("runs/data/*/images.u8"))
    for path in tmp_path.glob(f"runs/data/*/.tmp-images.u8/{harmed}"):
        path.write_bytes(path.read_bytes()[:-100])
    monkeypatch.setattr(prepare, "fill", fill)
    resumed = load("runs")
    firsts = [call.args[4] for call in fill.call_args_list]
    assert firsts == ([18, 27, 36] if harmed == "nothing" else [9, 18, 27, 36])
    assert not list(tmp_path.rglob(f"{storage.TEMPORARY}*"))
    monkeypatch.setattr(prepare, "PIECE", 1000)
    whole = load("whole")
    assert resumed.fingerprint == whole.fingerprint
    assert torch.equal(resumed.train.images, whole.train.images)


def test_a_disk_without_room_is_refused_before_the_start(load, monkeypatch, capsys):
    room = mock.Mock(return_value=SimpleNamespace(free=491_519))
    monkeypatch.setattr(shutil, "disk_usage", room)
    with pytest.raises(UserError, match=r"images\.u8 .* needs 0\.492 MB, and 0\.492 MB are free"):
        load("runs")
    assert "preparing" not in capsys.readouterr().err
    room.return_value.free += 1
    load("runs")
    assert "preparing faces, 492kB: " in capsys.readouterr().err


# --- batches ----------------------------------------------------------------------------------


def test_batches_read_in_advance_are_the_same(monkeypatch):
    """Bit for bit, from any step on; the next ones are being read."""
    images = torch.randint(0, 256, (20, 3, 8, 8), dtype=torch.uint8)
    tensors = [images, torch.arange(20)]
    resident = Batches(tensors, 6, 1, CPU, random_flips(horizontal=True, vertical=True))
    monkeypatch.setattr(batches, "is_resident", lambda tensors, device: False)
    streamed = Batches(tensors, 6, 1, CPU, random_flips(horizontal=True, vertical=True))
    for step in (0, 1, 2, 3, 9, 10, 4):
        torch.manual_seed(step)
        expected = resident(step)
        torch.manual_seed(step)
        assert all(map(torch.equal, streamed(step), expected))
        assert list(streamed.ahead) == [step, step + 1, step + 2]


GB = 2**30
PLACES = [("cpu", 0, True), ("mps", GB, False), ("cuda", 3 * GB, True), ("cuda", 2 * GB, False)]


@pytest.mark.parametrize(("kind", "free", "expected"), PLACES)
def test_data_are_on_a_gpu_that_has_room(monkeypatch, kind, free, expected):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 80 * GB))
    assert batches.is_resident([torch.empty(GB, dtype=torch.uint8)], torch.device(kind)) == expected


LIMITED = """
import resource, sys
from conftest import settings_of
from dlcvlib.data.prepare import mapped
from dlcvlib.data.types import FaceData, ImageSet
from dlcvlib.methods.vae import VAE
from dlcvlib.training.runs import train_or_load

images = mapped(f"{sys.argv[1]}/images.u8", 87_382, 3, 64, 64)
parts = [ImageSet(images[a:b], {}) for a, b in ((8, None), (4, 8), (0, 4))]
data = FaceData(*parts, "zeros", True, (), "f")
own = int(next(line for line in open("/proc/self/status") if "VmData" in line).split()[1]) << 10
resource.setrlimit(resource.RLIMIT_DATA, (own + (600 << 20),) * 2)
print(train_or_load(VAE, settings_of("vae", steps=3), data, sys.argv[1]).history["step"].max())
images.clone()
"""


def test_training_on_more_than_the_memory(tmp_path):
    """A GB of faces in a process that may allocate 600 MB; copying them fails."""
    with (tmp_path / "images.u8").open("wb") as file:
        file.truncate(12288 * 87_382)
    out, err = start("-c", LIMITED, tmp_path).communicate(timeout=300)
    assert out == "3.0\n", err
    assert "DefaultCPUAllocator: can't allocate memory" in err
