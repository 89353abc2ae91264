"""A full disk: one error that names path and space needed, and earlier files stay intact."""

import re
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from pkgutil import resolve_name

import pytest
from conftest import before_step, disk_full_beyond

from dlcvlib.methods import vae
from dlcvlib.report import cli, execute
from dlcvlib.utils import storage
from dlcvlib.utils.errors import UserError

NEEDS = r"cannot write .*{}.*: it needs [\d.,e+-]+ MB, and [\d.,e+-]+ MB are free there"


@contextmanager
def full_at(name):
    """A file of some name does not fit."""
    original = storage.write_bytes

    def write_bytes(path, data):
        with disk_full_beyond(len(data) // 2) if path.name == name else nullcontext():
            original(path, data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "write_bytes", write_bytes)
        yield


def test_at_a_checkpoint_the_last_good_one_stays(train, tmp_path):
    """The disk fills up after step 9; once there is space, the run ends as if undisturbed."""
    whole = train("vae", "whole", steps=20)
    failing = pytest.raises(UserError, match=NEEDS.format(r"checkpoint-10\.safetensors"))
    with ExitStack() as disk:
        fill = partial(disk.enter_context, disk_full_beyond(20_000))
        with before_step(vae.VAE, 9, fill), failing:
            train("vae", "full", steps=20)
    folder = tmp_path / "full" / whole.name
    pointer = storage.read_sealed(folder / "checkpoint.json")
    assert pointer["step"] == 9
    storage.read_tensors(folder / pointer["file"], pointer["sha256"])
    assert not list(folder.glob(f"{storage.TEMPORARY}*"))
    resumed = train("vae", "full", steps=20)
    assert resumed.provenance["files"] == whole.provenance["files"]


def test_at_prepared_data_the_command_says_so_and_fails(tmp_path, capsys):
    arguments = ["train", "vae", "--profile=smoke", f"--runs-dir={tmp_path}"]
    arguments += ["--set=vae.drawn_train=40", "--set=vae.drawn_test=4"]
    with disk_full_beyond(5000):
        assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert re.search("error: " + NEEDS.format("images"), error)
    assert "Traceback" not in error
    assert cli.main(arguments) == 0
    assert not list(tmp_path.rglob(f"{storage.TEMPORARY}*"))


@pytest.mark.usefixtures("unrendered")
def test_at_a_notebook(small, capsys):
    """The executed notebook cannot be saved: it counts as failed, and the report says so."""
    small.write(p1_1=["'before'"])
    assert small.make()
    small.write(p1_1=["'after'"])
    with full_at("1-1-test.ipynb"):
        assert not small.make()
    needs = "1-1 failed: " + NEEDS.format(r"1-1-test\.ipynb")
    assert re.search(needs, capsys.readouterr().err)
    executed = small.out / "notebooks" / "1-1-test.ipynb"
    assert "'before'" in executed.read_text()
    assert not list(small.out.rglob(f"{storage.TEMPORARY}*"))
    assert small.make()
    assert "'after'" in executed.read_text()


def test_while_writing_each_part_of_the_report(small, monkeypatch):
    """Whichever part does not fit, the old report stays complete; the index says it is not new."""
    # In this process, for the patch to reach it.
    here = lambda name, *a, **k: resolve_name(name)(*a, **k)  # noqa: E731
    monkeypatch.setattr(execute, "run_in_subprocess", here)
    small.write(p1_1=["1 + 1"])
    assert small.make()

    def contents():
        made = [*small.out.glob("re*.*"), *(small.out / "figures").glob("*")]
        return {path.name: path.read_bytes() for path in made}

    before = contents()
    for file in ("report.html", "report.pdf", "results.json"):
        with full_at(file), pytest.raises(UserError, match=NEEDS.format(re.escape(file))):
            small.make()
        assert contents() == before
        assert "still being made" in (small.out / "index.html").read_text()
        assert not list(small.out.glob(f"{storage.TEMPORARY}*"))
