"""Random weights and inputs that make a wrong mask, bias or scale visible in the output."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from attention_zoo.model import VOCABULARY, Axis, ModelInput, ZooModel

# On the right, padding is invisible to the kept rows of a causal model; so it comes left, too.
Padding = Literal["none", "right", "left"]
PADDINGS: tuple[Padding, ...] = ("none", "right", "left")

# Parameters that are looked up or added as they are, by a part of their name.
LOOKED_UP = ("embed", "bias_table", "wte", "wpe", "token", "sinks", "relative_attention_bias")


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give each parameter random values, in place, and return the module in eval mode.

    transformers starts with biases 0, norms 1 and near-uniform attention: exporters would fold or
    share the former, and the latter would hide an error in a mask.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() != 1 and not any(part in name for part in LOOKED_UP):
                noise *= 1.6 / math.sqrt(_inputs(parameter))
            elif parameter.dim() == 1 and "sinks" not in name:
                noise = 0.1 * noise + (1.0 if name.endswith("weight") else 0.0)
            parameter.copy_(noise)
    # As under torch.no_grad(): a bias that wants a gradient makes torch.export choose another
    # attention kernel than the one that it decomposes, and fail on their different strides.
    return module.eval().requires_grad_(False)


def _inputs(weight: Tensor) -> int:
    """Count the numbers that are summed for one output: 2-D matrices come either way round."""
    if weight.dim() == 2:
        return min(weight.shape)
    # [experts, in, out], [out, in, taps]; or a convolution [out, in, height, width].
    return weight.shape[1] if weight.dim() == 3 else weight[0].numel()


def axis_sizes(model: ZooModel, case: int | None) -> dict[str, int]:
    """Return the size of each named axis in check ``case``, or as exported for None."""
    axes = {a for i in model.inputs for a in i.axes if isinstance(a, Axis)}
    sizes = {
        a.name: a.exported if case is None or model.static else a.checked[case]
        for a in axes
        if not a.sum_of
    }
    sums = {a.name: sum(sizes[p] for p in a.sum_of) + a.plus for a in axes if a.sum_of}
    return sizes | sums


def shape_of(model_input: ModelInput, sizes: dict[str, int]) -> list[int]:
    """Return the input's shape with its named axes replaced by numbers."""
    return [sizes[a.name] if isinstance(a, Axis) else a for a in model_input.axes]


def make_inputs(model: ZooModel, sizes: dict[str, int], padding: Padding) -> tuple[Tensor, ...]:
    """Random inputs; each row of a padded batch is shorter than the one before."""
    generator = torch.Generator().manual_seed(1)
    values = []
    for model_input in model.inputs:
        shape = shape_of(model_input, sizes)
        if model_input.kind == "ids":
            # The first three tokens mean padding, start and end in one family or another.
            values.append(torch.randint(3, VOCABULARY, shape, generator=generator))
        elif model_input.kind == "float":
            normal = torch.randn(*shape, generator=generator)
            values.append(normal.to(getattr(torch, model.dtype)))
        elif model_input.kind == "positions":
            values.append(torch.arange(shape[1]).repeat(shape[0], 1))
        elif model_input.kind == "first":
            values.append((torch.arange(shape[1]) < 1).to(torch.int64).repeat(shape[0], 1))
        else:
            values.append(padding_mask(shape[0], shape[1], padding))
    return tuple(values)


def padding_mask(batch: int, length: int, padding: Padding) -> Tensor:
    """Return an int64 [batch, length] mask, 1 where a token is kept."""
    kept = torch.full((batch, 1), length)
    if padding != "none":
        kept -= (torch.arange(batch)[:, None] + 1) * length // (batch + 2)
    mask = (torch.arange(length)[None] < kept).to(torch.int64)
    return mask.flip(1) if padding == "left" else mask
