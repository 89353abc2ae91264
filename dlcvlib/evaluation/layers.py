"""What a network looks like and what a run cost: layers, blocks for the diagram, time."""

import copy
import math
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import NamedTuple

import pandas as pd
import torchinfo
from torch import nn
from torch.nn.utils import parametrize

from dlcvlib.training.runs import Run

SHORT = {
    "BatchNorm1d": "BN",
    "BatchNorm2d": "BN",
    "InstanceNorm2d": "IN",
    "MaxPool2d": "Pool",
    "LeakyReLU": "LReLU",
}


class Block(NamedTuple):
    """A weight layer and what follows it, as a diagram shows them.

    Attributes:
        name: of its layers.
        shape: of its output, as text.
        channels: of its output.
        side: of its output in pixels; 1 for a vector.
        beside: whether its input is that of the block before it, not that block's output.
    """

    name: str
    shape: str
    channels: int
    side: int
    beside: bool


def layers(
    module: nn.Module, input_shape: tuple[int, ...] | Sequence[tuple[int, ...]]
) -> pd.DataFrame:
    """One row per layer that computes: layer, input, output, parameters, mult_adds (per image).

    Args:
        module: the network.
        input_shape: with the batch dimension first, which is left out of the result; a list where
            the network has several inputs.
    """
    summary = torchinfo.summary(
        _plain(module), input_size=input_shape, verbose=0, mode="eval", depth=9
    )
    leaves = [
        info
        for info in summary.summary_list
        if info.is_leaf_layer and not isinstance(info.module, nn.Flatten)
    ]
    return pd.DataFrame(
        {
            "layer": [_title(info.module) for info in leaves],
            "input": [_shape(info.input_size) for info in leaves],
            "output": [_shape(info.output_size) for info in leaves],
            "parameters": [sum(p.numel() for p in info.module.parameters()) for info in leaves],
            "mult_adds": [_multiply_adds(info) for info in leaves],
        }
    )


def _multiply_adds(info: torchinfo.layer_info.LayerInfo) -> int:
    """torchinfo's count, corrected for the layers that it miscounts."""
    layer = info.module
    if isinstance(layer, nn.ConvTranspose2d):
        # Each weight is applied once per input pixel, not once per output pixel.
        weights = layer.weight.numel() * math.prod(info.input_size[2:])
        return weights + (math.prod(info.output_size[1:]) if layer.bias is not None else 0)
    if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d | nn.InstanceNorm2d):
        return math.prod(info.output_size[1:])
    return int(info.macs)


def _shape(size: Sequence[int]) -> str:
    return "×".join(map(str, size[1:] or [1]))


def _plain(module: nn.Module) -> nn.Module:
    """A copy without parametrisations: torchinfo counts plain weights only."""
    copied = copy.deepcopy(module)
    for layer in copied.modules():
        if parametrize.is_parametrized(layer):
            parametrize.remove_parametrizations(layer, "weight")
    return copied


def _title(layer: nn.Module) -> str:
    if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
        kind = "Conv" if isinstance(layer, nn.Conv2d) else "ConvT"
        side, stride = layer.kernel_size[0], layer.stride[0]
        return f"{kind} {side}×{side}" + (f", stride {stride}" if stride > 1 else "")
    name = type(layer).__name__
    return SHORT.get(name, name)


def blocks(frame: pd.DataFrame) -> list[Block]:
    """Layers as blocks for `architecture`: each weight layer with what follows it."""
    groups: list[list[int]] = []
    for index, row in frame.iterrows():
        if row["layer"].startswith(("Conv", "Linear")) or not groups:
            groups.append([])
        if row["layer"] != "Unflatten":
            groups[-1].append(index)
    result: list[Block] = []
    before = ""
    for group in groups:
        name, *rest = frame.loc[group, "layer"]
        shape, source = frame.loc[group[-1], "output"], frame.loc[group[0], "input"]
        sizes = [int(size) for size in shape.split("×")]
        title = name.replace(", stride 2", "/2") + ("\n" + " ".join(rest) if rest else "\n")
        beside = bool(result) and source == before != result[-1].shape
        result.append(Block(title, shape, sizes[0], sizes[-1] if len(sizes) == 3 else 1, beside))
        before = source
    return result


def together(**frames: pd.DataFrame) -> pd.DataFrame:
    """The tables of several networks stacked, with a first column naming the network.

    The inputs of layers are left out: they are the outputs of those before.
    """
    named = [frame.assign(network=name) for name, frame in frames.items()]
    joined = pd.concat(named, ignore_index=True)
    return joined[["network", *joined.columns.drop(["network", "input"], errors="ignore")]]


def cost(run: Run, networks: Mapping[str, pd.DataFrame], images: int) -> pd.DataFrame:
    """What a run cost, as rows of quantity and value.

    Args:
        run: the run.
        networks: name -> its `layers`.
        images: number of training images.
    """
    provenance, settings = run.provenance, run.settings
    seen = settings.steps * settings.batch_size
    sums = {name: frame[["parameters", "mult_adds"]].sum() for name, frame in networks.items()}
    rows = {f"parameters, {name}": f"{one.parameters:,}" for name, one in sums.items()}
    rows |= {
        f"MACs per image, {name}": f"{one.mult_adds / 1e6:,.1f} million"
        for name, one in sums.items()
    }
    rows |= {
        "training images": f"{images:,}",
        "steps": f"{settings.steps:,} of {settings.batch_size} images ({seen / images:.1f} epochs)",
        "time (h:min:s)": str(timedelta(seconds=round(run.seconds))),
        "speed": f"{provenance['images_per_second']:,.0f} images/s",
        "device": f"{provenance['device']}, threads: {provenance['threads']}",
        "precision": provenance["precision"],
    }
    return pd.DataFrame(rows.items(), columns=["quantity", "value"])
