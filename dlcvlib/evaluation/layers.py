"""What a network looks like: its layers, and their blocks for the diagram."""

import copy
import math
from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

SHORT = {
    "BatchNorm1d": "BN",
    "BatchNorm2d": "BN",
    "InstanceNorm2d": "IN",
    "MaxPool2d": "Pool",
    "AvgPool2d": "AvgPool",
    "LeakyReLU": "LReLU",
}


def layers(module: nn.Module, *input_shapes: Sequence[int]) -> pd.DataFrame:
    """One row per layer that computes: layer, input, output, parameters, mult_adds (per image).

    Args:
        module: the network.
        input_shapes: of each input, with a batch dimension of 1, which is left out of the result.
    """
    rows = []

    def add(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        shapes = _shape(inputs[0]), _shape(output)
        parameters = sum(parameter.numel() for parameter in layer.parameters())
        rows.append((_title(layer), *shapes, parameters, _multiply_adds(layer, inputs[0], output)))

    # On the meta device tensors have shapes but no values: nothing is computed.
    network = copy.deepcopy(module).to("meta").eval()
    for name, layer in network.named_modules():
        # A parametrisation, such as spectral normalisation, is part of its layer.
        leaf = parametrize.is_parametrized(layer) or not list(layer.children())
        if leaf and "parametrizations" not in name and not isinstance(layer, nn.Flatten):
            layer.register_forward_hook(add)
    network(*(torch.empty(*shape, device="meta") for shape in input_shapes))
    return pd.DataFrame(rows, columns=["layer", "input", "output", "parameters", "mult_adds"])


def _multiply_adds(layer: nn.Module, source: Tensor, output: Tensor) -> int:
    """Products with a weight and sums with a bias, both as one; of a norm, one per value."""
    if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d | nn.InstanceNorm2d):
        return output.numel()
    if not hasattr(layer, "weight"):
        return 0
    # A weight is applied once per output pixel; a transposed convolution's once per input pixel.
    pixels = source if isinstance(layer, nn.ConvTranspose2d) else output
    biases = 0 if layer.bias is None else output.numel()
    return layer.weight.numel() * math.prod(pixels.shape[2:]) + biases


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape[1:]))


def _title(layer: nn.Module) -> str:
    if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
        kind = "Conv" if isinstance(layer, nn.Conv2d) else "ConvT"
        side, stride = layer.kernel_size[0], layer.stride[0]
        return f"{kind} {side}×{side}" + (f", stride {stride}" if stride > 1 else "")
    name = type(layer).__name__
    return SHORT.get(name, name)


def by_block(frame: pd.DataFrame) -> pd.DataFrame:
    """A network's `layers`, one row per weight layer and what follows it, their counts added."""
    starts = frame["layer"].str.startswith(("Conv", "Linear"))

    def names(layers: pd.Series) -> str:
        return " + ".join(layers[layers != "Unflatten"])  # it shows in the output's shape

    how = {"layer": names, "input": "first", "output": "last"}
    how |= dict.fromkeys(["parameters", "mult_adds"], "sum")
    return frame.groupby(starts.cumsum()).agg(how).reset_index(drop=True)


def blocks(frame: pd.DataFrame) -> pd.DataFrame:
    """What a diagram shows of a network's `layers`, block by block.

    Returns:
        One row per block: name (of its layers), shape (of its output, as text), channels and side
        (of its output; a vector's side is 1), beside (whether its input is that of the block
        before it, not that block's output).
    """
    rows = []
    source = shape = ""
    for block in by_block(frame).itertuples():
        before, source = source, block.input
        beside = source == before != shape
        shape = block.output
        channels, *sides = map(int, shape.split("×"))
        name = block.layer.replace(", stride 2", "/2").replace(" + ", " ")
        rows.append((name, shape, channels, sides[-1] if sides else 1, beside))
    return pd.DataFrame(rows, columns=["name", "shape", "channels", "side", "beside"])


def together(**frames: pd.DataFrame) -> pd.DataFrame:
    """The tables of several networks stacked, with a first column naming the network.

    Layers are put together `by_block`, without their inputs: these are the outputs of those before.
    """
    shown = {name: by_block(frame) for name, frame in frames.items()}
    return pd.concat(shown, names=["network"]).reset_index("network").drop(columns="input")
