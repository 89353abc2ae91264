"""A trained run's networks for use without this project: `torch.export`, ONNX, a model card."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any, get_type_hints

import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.export import Dim

from dlcvlib.methods import adapting
from dlcvlib.methods.attributes import AttributeClassifier
from dlcvlib.methods.classifier import IMAGE_SIZE, Classifier
from dlcvlib.methods.dcgan import DCGAN
from dlcvlib.methods.pixelda import PixelDA
from dlcvlib.methods.vae import VAE
from dlcvlib.report import template
from dlcvlib.training import runs
from dlcvlib.training.method import Method
from dlcvlib.utils import storage
from dlcvlib.utils.errors import UserError

METHODS: dict[str, type[Method]] = {
    kind.name: kind
    for kind in (VAE, DCGAN, Classifier, AttributeClassifier, *vars(adapting).values())
    if isinstance(kind, type)
}
TOLERANCE = {"rtol": 1e-3, "atol": 1e-4}
"""How far outputs of an exported network may be from the original's, in float32."""
BATCH = 4
"""Images in the batch that exported networks are checked on; they take any number."""
Exported = tuple[nn.Module, dict[str, Tensor]]
"""A network, and an example of its inputs by name."""


def export(folder: Path, out: Path, report: Path) -> list[Path]:
    """Write the networks of a finished run, each checked against the original's outputs.

    Args:
        folder: the run's, such as `runs/vae-0123456789`.
        out: a new or empty folder. Of each network it gets `<network>.pt2` (`torch.export`) and
            `<network>.onnx`, both for batches of any size; besides, model.safetensors, history.csv
            and README.md, a model card.
        report: folder of a report; if it has used the run, the card has its values.

    Returns:
        What was written.

    Raises:
        UserError: if `folder` is no finished run of this project, or is not intact, `out` holds
            something, ONNX is not installed, or an exported network computes something else.
    """
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401 torch.onnx needs it
    except ImportError as error:
        raise UserError(f"{error.name} is missing: pip install -e '.[export]'") from None
    run = open_run(folder)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out: {out} exists and is not an empty folder: name another")
    storage.make_dir(out.parent)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=storage.TEMPORARY) as temporary:
        made = storage.make_dir(Path(temporary) / out.name)
        _write(run, made, report)
        made.replace(out)  # whole, or not at all
    return sorted(out.iterdir())


def _write(run: runs.Run[Any], out: Path, report: Path) -> None:
    exported = networks(run.method)
    for name, (network, inputs) in exported.items():
        network = network.cpu().eval()
        dynamic = {each: {0: Dim("batch")} for each in inputs}
        program = torch.export.export(network, (), dict(inputs), dynamic_shapes=dynamic)
        torch.export.save(program, out / f"{name}.pt2")
        onnx = torch.onnx.export(program, dynamo=True)
        onnx.save(out / f"{name}.onnx", external_data=False)
        fewer = {each: value[: BATCH - 1] for each, value in inputs.items()}
        expected = network(**fewer)
        again = torch.export.load(out / f"{name}.pt2").module()(**fewer)
        _check(name, "torch.export", expected, again)
        _check(name, "ONNX", expected, onnx(**fewer))
    for file in (runs.MODEL, runs.HISTORY):
        shutil.copyfile(run.folder / file, out / file)
    values = {"run": run, "exported": exported, "last": run.history.iloc[-1].dropna().to_dict()}
    reported, problems = {}, []
    if (file := report / "results.json").is_file():
        reported = json.loads(file.read_text(encoding="utf-8"))
        used = [one for one in reported["provenance"]["runs"] if one["run"] == run.name]
        problems = used[0].get("problems", []) if used else []
    values |= {"reported": {problem: reported[problem] for problem in problems}}
    card = template("model_card.md.j2").render(values, about=type(run.method))
    storage.write_text(out / "README.md", card)


def open_run(folder: Path) -> runs.Run[Any]:
    """A finished run, by its folder alone.

    Raises:
        UserError: if it is none, or is not intact.
    """
    kind = METHODS.get(folder.name.rpartition("-")[0])
    if kind is None or not (folder / runs.MARK).is_file():
        raise UserError(
            f"{folder} is not a finished run: name a folder such as runs/vae-0123456789"
        )
    try:
        settings = storage.read_sealed(folder / runs.MARK)["settings"]
        return runs.load(folder, kind, get_type_hints(kind.__init__)["settings"](**settings))
    except storage.DamagedFileError as error:
        raise UserError(str(error)) from None
    except (ValidationError, RuntimeError):  # other settings, or other networks
        raise UserError(f"{folder} was trained by other code than this: train it again") from None


def networks(method: Method) -> dict[str, Exported]:
    """What of a method is of use by itself: name -> network and example inputs."""
    settings = method.settings
    if isinstance(method, VAE):
        faces = torch.rand(BATCH, 3, settings.image_size, settings.image_size)
        encoder = (method.encoder, {"images": faces})
        return {"encoder": encoder, "decoder": (method.decoder, {"z": _noise(settings)})}
    if isinstance(method, DCGAN):
        return {"generator": (method.sampler(), {"z": _noise(settings)})}
    if isinstance(method, AttributeClassifier):
        return {"classifier": (method.net, {"images": torch.rand(BATCH, 3, 64, 64)})}
    digits = torch.rand(BATCH, 3, IMAGE_SIZE, IMAGE_SIZE)
    classifier = _DigitClassifier(method.extractor, method.classifier)
    found: dict[str, Exported] = {"classifier": (classifier, {"images": digits})}
    if isinstance(method, PixelDA):
        found["generator"] = (method.generator, {"images": digits, "z": method.noise(BATCH)})
    return found


class _DigitClassifier(nn.Sequential):
    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 3, 32, 32) in 0..1 -> logits (N, 10)."""
        return super().forward(images)


def _noise(settings: Any) -> Tensor:
    return torch.randn(BATCH, settings.latent_dim)


def _check(network: str, form: str, expected: Any, found: Any) -> None:
    """Raise a UserError if outputs differ by more than `TOLERANCE`."""
    outputs = [[each] if isinstance(each, Tensor) else list(each) for each in (expected, found)]
    if not all(torch.allclose(a, b, **TOLERANCE) for a, b in zip(*outputs, strict=True)):
        raise UserError(f"the {form} of the {network} computes something else than the network")
