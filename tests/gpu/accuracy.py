"""PyTorch's attention in the same precision, and both errors against the oracle."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import pad, scaled_dot_product_attention

from tests.gpu.harness import to_device
from tests.gpu.problem import Problem
from tests.ir.attention_cases import Array

# Half the distance of neighbouring numbers above 1: what rounding a result alone may cost.
_ROUNDING = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24}

# PyTorch's error can be nothing at all by chance: with one key both results are the value itself,
# with few numbers the largest error of one is luck. So much is forgiven in any case, in units of
# that rounding at the size of the results: four (two units in the last place) for the largest
# error, a quarter for the mean, which the rounding of the output alone makes about a half.
_FREE_MAXIMUM, _FREE_MEAN = 4.0, 0.25
_FACTOR = 2.0


@dataclass(frozen=True)
class Errors:
    """Absolute errors of finite results."""

    maximum: float
    mean: float


@dataclass(frozen=True)
class Comparison:
    """Errors of a kernel and of PyTorch, and what the kernel's may be.

    Attributes:
        ours: errors of the plugin.
        pytorch: errors of PyTorch.
        limit: what ``ours`` may be at most.
    """

    ours: Errors
    pytorch: Errors
    limit: Errors

    @property
    def used(self) -> tuple[float, float]:
        """The share of the limit that maximum and mean take."""
        pairs = ((self.ours.maximum, self.limit.maximum), (self.ours.mean, self.limit.mean))
        one, other = (0.0 if mine == 0 else mine / allowed for mine, allowed in pairs)
        return one, other

    @property
    def ratio(self) -> tuple[float, float]:
        """Our error in PyTorch's, NaN where PyTorch's is 0."""
        pairs = (
            (self.ours.maximum, self.pytorch.maximum),
            (self.ours.mean, self.pytorch.mean),
        )
        one, other = (mine / theirs if theirs else float("nan") for mine, theirs in pairs)
        return one, other


def compare(problem: Problem, output: torch.Tensor) -> Comparison:
    """Compare a result [B, H, Sq, Dv] with the oracle, and PyTorch's with it.

    Rows that are NaN or 0 by rule must be exactly that; an AssertionError says if they aren't.
    """
    wanted, rows = problem.wanted, problem.equivalent.rows
    got = output.double().cpu().numpy()
    assert got.shape == wanted.shape
    special = wanted[~rows]
    np.testing.assert_array_equal(got[~rows], special, err_msg="rows that see no key")
    assert np.isfinite(got[rows]).all(), "NaN or infinity in a row that sees keys"
    if not rows.any():
        nothing = Errors(0.0, 0.0)
        return Comparison(nothing, nothing, nothing)
    ours = _errors(got[rows], wanted[rows])
    theirs = _errors(pytorch_attention(problem).double().cpu().numpy()[rows], wanted[rows])
    size = np.abs(wanted[rows])
    unit = _ROUNDING[str(problem.query.dtype)]
    limit = Errors(
        _FACTOR * theirs.maximum + _FREE_MAXIMUM * unit * float(size.max()),
        _FACTOR * theirs.mean + _FREE_MEAN * unit * float(size.mean()),
    )
    return Comparison(ours, theirs, limit)


def _errors(got: Array, wanted: Array) -> Errors:
    difference = np.abs(got - wanted)
    return Errors(float(difference.max()), float(difference.mean()))


def pytorch_attention(problem: Problem) -> torch.Tensor:
    """PyTorch's result in the precision of the inputs, [B, H, Sq, Dv].

    A bias that the type of the query can't hold exactly would give PyTorch an error of its own
    making; such problems go to :func:`_mixed_attention`, with those of which its kernels know
    nothing.
    """
    torch.backends.cuda.matmul.allow_tf32 = False
    query_array, mask_array, _ = problem.equivalent
    query, key, value = map(to_device, (query_array, problem.key, problem.value))
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    exact = to_device(mask_array)
    mask = exact.to(query.dtype)
    is_exact = torch.equal(mask.double(), exact)
    if not is_exact or problem.softcap or problem.sinks is not None:
        return _mixed_attention(query, key, value, exact.float(), problem)
    # Zeros behind the head dim change nothing; the memory-efficient kernels want multiples of 8.
    width = value.shape[3]
    query, key, value = (pad(x, (0, -x.shape[3] % 8)) for x in (query, key, value))
    # With half types the math backend computes in float32: another precision, thus second.
    with sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
        result = scaled_dot_product_attention(query, key, value, mask, scale=problem.scale)
    return result[..., :width]


def _mixed_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    problem: Problem,
) -> torch.Tensor:
    """What fused kernels compute: scores and softmax in float32, weights in the inputs' type."""
    scores = problem.scale * (query.float() @ key.float().transpose(2, 3))
    if problem.softcap:
        scores = problem.softcap * torch.tanh(scores / problem.softcap)
    logits = scores + mask
    if problem.sinks is not None:
        column = to_device(problem.sinks)[:, None, None].expand(*scores.shape[:3], 1)
        logits = torch.cat([logits, column], dim=-1)
    weights = torch.softmax(logits, dim=-1)[..., : scores.shape[-1]]
    return weights.to(value.dtype) @ value
