"""MaskProgram: the mask of one attention block as a function of its indices.

A program says for batch b, query head h, query q and key k whether the pair is kept,
what is added to its score, and what the original graph does where it isn't kept. It
was lifted from an exported graph and proven against it; kernels, `expand`, pictures
and statistics are all made from it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from stof_onnx.ir.errors import MalformedNodeError
from stof_onnx.ir.expr import (
    Const,
    Expr,
    Load,
    Op,
    Var,
    evaluate,
    from_json,
    loads,
    to_json,
    to_text,
)
from stof_onnx.ir.expr.build import FALSE, TRUE
from stof_onnx.ir.expr.ops import Array

FORMAT_VERSION = 1

BATCH, HEADS, QUERIES, KEYS = (Var(name, positive=True) for name in ("B", "H", "Sq", "Sk"))
B_INDEX, H_INDEX = Var("b", BATCH), Var("h", HEADS)
Q_INDEX, K_INDEX = Var("q", QUERIES), Var("k", KEYS)
VARIABLES: dict[str, Var] = {
    v.name: v for v in (BATCH, HEADS, QUERIES, KEYS, B_INDEX, H_INDEX, Q_INDEX, K_INDEX)
}

# Largest magnitude of a score, by its float type, that readings of masks rely on: a fill this far
# below it leaves a probability of exactly 0 (docs/operators.md, "Score bound").
SCORE_BOUND = {"float32": 2.0**24, "bfloat16": 2.0**24, "float16": 2.0**14}
# The exponential of a difference below this is 0 in float32.
UNDERFLOW = 110.0

EmptyRow = Literal["nan", "zero", "mean", "softmax"]
FillMode = Literal["add", "replace"]
OperandKind = Literal["tensor", "block_table"]


@dataclass(frozen=True)
class Operand:
    """One input of a mask program, named in its loads.

    Attributes:
        name: used in the program's loads.
        kind: "tensor" occupies one node input; "block_table" occupies one for each
            array of :class:`stof_onnx.ir.block_table.BlockTable` and is loaded as
            [group, query, key] booleans.
        rank: number of indices of a load.
        shape: of a block table (groups, queries, keys); empty for a tensor.
        tile: of a block table (queries, keys); empty for a tensor.
    """

    name: str
    kind: OperandKind
    rank: int
    shape: tuple[int, ...] = ()
    tile: tuple[int, ...] = ()


@dataclass(frozen=True)
class MaskProgram:
    """The mask of one attention block.

    The score of a kept pair is ``s + bias``. Where a pair is not kept, the original
    graph adds (``fill_mode`` "add") or writes ("replace") ``fill``. After the
    softmax it may turn NaN into 0 (``nan_to_zero``).

    Attributes:
        keep: bool expression over b, h, q, k and the dimensions B, H, Sq, Sk.
        bias: float expression, or None.
        fill: negative; -inf or finite.
        fill_mode: how the fill meets the score.
        nan_to_zero: NaN probabilities become 0, as PyTorch's exporters write it.
        operands: the run-time vectors and constant tables that are loaded.
        again: of the pairs that aren't kept, those to which the fill is added a second time, as
            where two masks are added one after the other; it matters in rows without a key.
    """

    keep: Expr = TRUE
    bias: Expr | None = None
    fill: float = -math.inf
    fill_mode: FillMode = "replace"
    nan_to_zero: bool = False
    operands: tuple[Operand, ...] = ()
    again: Expr = FALSE

    @property
    def is_empty(self) -> bool:
        """Whether nothing is masked and nothing added."""
        return self.keep == TRUE and self.bias is None

    def empty_row(self, score_dtype: str) -> EmptyRow:
        """What a row without any key yields.

        Args:
            score_dtype: "float32", "float16" or "bfloat16": the type in which the
                original graph adds the fill.

        Returns:
            "nan" or "zero" for a fill that is infinite in score_dtype, by
            ``nan_to_zero``; "mean" of all values where the fill swallows every score;
            "softmax" of score + fill, rounded to score_dtype, where it doesn't.
        """
        if overflows(self.fill, score_dtype):
            return "zero" if self.nan_to_zero else "nan"
        if self.again != FALSE:
            return "softmax"
        if self.fill_mode == "replace" or swallows_scores(self.fill, score_dtype):
            return "mean"
        return "softmax"

    def empty_below(self, score_dtype: str) -> float:
        """Beside which scores the pairs that aren't kept weigh something.

        Args:
            score_dtype: as in :meth:`empty_row`.

        Returns:
            The number that the maximum of a row's kept scores, bias included, doesn't exceed if a
            score that the fill was added to or written over can have a weight above 0: -inf for
            an infinite fill. Only a bias that hides makes kept scores that low.
        """
        if overflows(self.fill, score_dtype):
            return -math.inf
        return self.fill + SCORE_BOUND[score_dtype] + UNDERFLOW

    def evaluate_keep(self, sizes: Mapping[str, int], sources: Mapping[str, Array]) -> Array:
        """Kept pairs as a bool array of shape [B, H, Sq, Sk] (axes of size 1 broadcast).

        Args:
            sizes: B, H, Sq and Sk.
            sources: array for each operand; block tables in their dense form.
        """
        return np.asarray(evaluate(self.keep, index_grid(sizes), sources), bool)

    def to_text(self) -> str:
        """The program in words."""
        text = "all pairs" if self.keep == TRUE else to_text(self.keep)
        return text if self.bias is None else f"{text}; bias {to_text(self.bias)}"

    def to_json(self) -> str:
        """Canonical JSON text, the value of a stof node's `mask` attribute."""
        data: dict[str, Any] = {
            "version": FORMAT_VERSION,
            "keep": to_json(self.keep),
            "bias": None if self.bias is None else to_json(self.bias),
            "fill": repr(self.fill),
            "fill_mode": self.fill_mode,
            "nan_to_zero": self.nan_to_zero,
            "operands": [
                {
                    "name": o.name,
                    "kind": o.kind,
                    "rank": o.rank,
                    "shape": list(o.shape),
                    "tile": list(o.tile),
                }
                for o in self.operands
            ],
        }
        if self.again != FALSE:
            data["again"] = to_json(self.again)
        return json.dumps(data, separators=(",", ":"), sort_keys=True)

    @staticmethod
    def from_json(text: str) -> MaskProgram:
        """Read a `mask` attribute.

        Raises:
            MalformedNodeError: if the text is not a program of a known version.
        """
        try:
            data: dict[str, Any] = json.loads(text)
            version = data["version"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise MalformedNodeError("the mask attribute is not a mask program") from error
        if version != FORMAT_VERSION:
            raise MalformedNodeError(
                f"mask program of version {version}",
                f"version {FORMAT_VERSION}",
                "optimize the model again with this release",
            )
        try:
            program = MaskProgram(
                keep=from_json(data["keep"], VARIABLES),
                bias=None if data["bias"] is None else from_json(data["bias"], VARIABLES),
                fill=float(data["fill"]),
                fill_mode=data["fill_mode"],
                nan_to_zero=bool(data["nan_to_zero"]),
                operands=tuple(_operand(entry) for entry in data["operands"]),
                again=from_json(data["again"], VARIABLES) if "again" in data else FALSE,
            )
        except KeyError as error:
            raise MalformedNodeError(f"a mask program without {error}") from error
        except (TypeError, ValueError, OverflowError) as error:
            raise MalformedNodeError(f"damaged mask program: {error}") from error
        program.validate()
        return program

    def validate(self) -> None:
        """Check that loads and operands fit together.

        Raises:
            MalformedNodeError: naming the first contradiction.
        """
        if self.keep.kind != "bool" or (self.bias is not None and self.bias.kind != "float"):
            raise MalformedNodeError("a mask program whose keep is not bool or bias not float")
        if self.again.kind != "bool":
            raise MalformedNodeError("a mask program whose again is not bool")
        if self.fill_mode not in ("add", "replace") or not self.fill < 0:
            raise MalformedNodeError(
                f"mask fill {self.fill} with mode {self.fill_mode!r}", "a negative fill"
            )
        operands = {operand.name: operand for operand in self.operands}
        if len(operands) != len(self.operands):
            raise MalformedNodeError("a mask program with two operands of one name")
        for operand in self.operands:
            _check_form(operand)
        used = loads(self.keep) + loads(self.again)
        used += loads(self.bias) if self.bias is not None else []
        for load in used:
            found = operands.get(load.source)
            if found is None or found.rank != len(load.index):
                raise MalformedNodeError(
                    f"mask program loads {load.source!r} with {len(load.index)} indices",
                    f"one of its operands { ({name: o.rank for name, o in operands.items()}) }",
                )
            if found.kind == "block_table":
                _check_table_load(load, found)


def _check_form(operand: Operand) -> None:
    is_table = operand.kind == "block_table"
    lengths = (operand.rank, len(operand.shape), len(operand.tile))
    if lengths != (3, 3, 2) if is_table else lengths[1:] != (0, 0) or operand.rank < 0:
        raise MalformedNodeError(
            f"mask operand {operand.name!r} of kind {operand.kind} and rank {operand.rank} with "
            f"shape {operand.shape} and tile {operand.tile}",
            "rank 3, three sizes and a tile of two" if is_table else "a rank, no shape, no tile",
        )


def _check_table_load(load: Load, table: Operand) -> None:
    if load.kind != "bool":
        raise MalformedNodeError(
            f"mask program loads block table {load.source!r} as {load.kind}", "bool"
        )
    group = load.index[0]
    if isinstance(group, Const) and not 0 <= group.value < table.shape[0]:
        raise MalformedNodeError(
            f"mask program loads group {group.value} of block table {load.source!r}",
            f"0 to {table.shape[0] - 1}",
        )


def _operand(entry: dict[str, Any]) -> Operand:
    if entry["kind"] not in ("tensor", "block_table"):
        raise ValueError(f"operand kind {entry['kind']!r}")
    return Operand(
        name=str(entry["name"]),
        kind=entry["kind"],
        rank=int(entry["rank"]),
        shape=tuple(int(n) for n in entry["shape"]),
        tile=tuple(int(n) for n in entry["tile"]),
    )


def swallows_scores(fill: float, score_dtype: str) -> bool:
    """Whether score + fill rounds to fill for every score below 2**24 in magnitude.

    True for finfo.min of float32 and bfloat16, whose neighbours are more than 1e29
    away; false for float16, whose smallest value has a neighbour 32 away.
    """
    mantissa_bits = {"float32": 24, "bfloat16": 8, "float16": 11, "float64": 53}[score_dtype]
    spacing = 2.0 ** (math.floor(math.log2(-fill)) + 1 - mantissa_bits)
    return spacing / 2 > 2.0**24


def overflows(fill: float, score_dtype: str) -> bool:
    """Whether the fill is -inf when it is rounded to score_dtype."""
    exponent, mantissa_bits = {
        "float32": (128, 24),
        "bfloat16": (128, 8),
        "float16": (16, 11),
        "float64": (1024, 53),
    }[score_dtype]
    # Numbers from halfway between the largest one and the next power of 2 on are infinite.
    return math.isinf(fill) or -math.ldexp(fill, -exponent) >= 1 - 2.0 ** (-mantissa_bits - 1)


def index_grid(sizes: Mapping[str, int]) -> dict[str, Array | int]:
    """Values of a program's variables as arrays that broadcast to [B, H, Sq, Sk]."""
    grid: dict[str, Array | int] = {name: sizes[name] for name in ("B", "H", "Sq", "Sk")}
    for axis, (index, size) in enumerate((("b", "B"), ("h", "H"), ("q", "Sq"), ("k", "Sk"))):
        shape = [1, 1, 1, 1]
        shape[axis] = -1
        grid[index] = np.arange(sizes[size]).reshape(shape)
    return grid


def conjunction(expr: Expr) -> tuple[Expr, ...]:
    """The terms of a conjunction; none for "true"."""
    if isinstance(expr, Op) and expr.name == "and":
        return expr.args
    return () if expr == TRUE else (expr,)
