"""Networks of trained runs for use elsewhere."""

import json
import re
import subprocess
import sys
import types

import pytest
import torch
from conftest import METHODS, ROOT
from huggingface_hub import ModelCard

from dlcvlib.report import cli, export
from dlcvlib.training import runs


@pytest.mark.parametrize("method", METHODS)
def test_the_card_is_all_that_one_needs(method, train, tmp_path):
    """Its code runs without this project, and gives what the trained networks give."""
    run, out = train(method), tmp_path / "out"
    used = {"run": run.name, "problems": ["1-3"]}
    values = {"psnr_mean": 12.34, "a->b": {"accuracy": [0.5, 0.7]}, "ssim": [1.0]}
    results = {"provenance": {"runs": [used]}, "1-3": values, "1-4": {"kid_prior": 9.87}}
    (tmp_path / "results.json").write_text(json.dumps(results))
    report = ["--report", str(tmp_path)]
    assert cli.main(["export", str(run.folder), "--out", str(out), *report]) == 0
    card = (out / "README.md").read_text()
    assert re.findall(r"^\| 1-.*", card, re.MULTILINE) == [
        "| 1-3 | psnr_mean | 12.34 |",
        "| 1-3 | a->b, mean accuracy | 0.6 |",
    ]
    validated = run.history.filter(like="validation_").iloc[-1].rename(lambda name: name[11:])
    found = ModelCard.load(out / "README.md").data.eval_results or []
    assert {result.metric_type: result.metric_value for result in found} == dict(validated)
    codes = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    networks = export.networks(run.method)
    assert len(codes) == len(networks)
    for code, (name, (network, inputs)) in zip(codes, networks.items(), strict=True):
        assert len(code.splitlines()) <= 10
        save = f"torch.save([[{', '.join(inputs)}], outputs], '{name}.pt')"
        isolated = [sys.executable, "-I", "-c", code + save]
        subprocess.run(isolated, cwd=out, check=True)
        given, outputs = torch.load(out / f"{name}.pt")
        with torch.no_grad():
            expected = network.cpu().eval()(*given)
        torch.testing.assert_close(outputs, expected, rtol=1e-3, atol=1e-4)
        assert (out / f"{name}.onnx").is_file()
    assert run.name in card
    assert all(f"`{name}`" in card for name in type(run.settings).model_fields)


def test_the_readme_shows_how_to_use_one(train, tmp_path):
    readme = (ROOT / "README.md").read_text()
    (code,) = re.findall(r"```python\n(import torch\n.*?)```", readme, re.DOTALL)
    assert len(code.splitlines()) <= 10
    run = train("dcgan", latent_dim=100, image_size=64)
    assert cli.main(["export", str(run.folder), "--out", str(tmp_path / "faces")]) == 0
    code += "assert images.shape == (16, 3, 64, 64) and 0 <= images.min() <= images.max() <= 1"
    subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, check=True)


def test_an_averaged_generator_is_exported_as_it_is_sampled_from(train):
    run = train("dcgan", ema_decay=0.9)
    ((network, inputs),) = export.networks(run.method).values()
    with torch.no_grad():
        samples = (network(**inputs) + 1) / 2
    torch.testing.assert_close(samples, run.method.sample(inputs["z"]))


def test_outputs_are_checked(train, tmp_path, monkeypatch, capsys):
    other = types.SimpleNamespace(module=lambda: lambda images: torch.ones(len(images), 10))
    monkeypatch.setattr(torch.export, "load", lambda path: other)
    run = train("classifier")
    assert cli.main(["export", str(run.folder), "--out", str(tmp_path / "out")]) == 2
    assert "computes something else" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda run, out: (run.folder / runs.MARK).unlink(), "is not a finished run"),
        (lambda run, out: (run.folder / runs.MODEL).write_bytes(b""), runs.MODEL),
        (lambda run, out: out.mkdir() or (out / "mine").touch(), "is not an empty folder"),
    ],
)
def test_what_cannot_be_exported(train, tmp_path, capsys, spoil, message):
    run, out = train("classifier"), tmp_path / "out"
    spoil(run, out)
    before = sorted(out.iterdir()) if out.exists() else None
    assert cli.main(["export", str(run.folder), "--out", str(out)]) == 2
    assert message in capsys.readouterr().err
    assert (sorted(out.iterdir()) if out.exists() else None) == before
