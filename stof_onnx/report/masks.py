"""The masks of a report: each distinct one is measured, and drawn if that is wanted, once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto

from stof_onnx.accuracy.domains import graph_inputs
from stof_onnx.ir.block_table import BlockTable
from stof_onnx.ir.errors import InputError
from stof_onnx.ir.expr import Const, Expr, Load, evaluate, loads, variables
from stof_onnx.ir.expr.build import TRUE
from stof_onnx.ir.expr.ops import Array
from stof_onnx.ir.mask.classify import MaskKind
from stof_onnx.ir.mask.program import MaskProgram
from stof_onnx.ir.mask.statistics import MaskStatistics, measure
from stof_onnx.report.mask_plot import MaskPicture, MaskPlots
from stof_onnx.report.records import DensityReport, LengthsFrom, MaskReport

ASSUMED_LENGTH = 1024
"""Queries and keys where they are dynamic and nobody gave them."""

Dims = tuple[Expr | None, Expr | None, Expr | None, Expr | None]
_UNKNOWN: Dims = (None, None, None, None)


def given_dims(
    model: ModelProto, input_shapes: Mapping[str, Sequence[int]] | None
) -> dict[str, int]:
    """The dimensions that the user's input shapes fix, named as the rewriter names them.

    Args:
        model: whose inputs they are.
        input_shapes: by input name; checked before.
    """
    given: dict[str, int] = {}
    for value in graph_inputs(model):
        dims = value.type.tensor_type.shape.dim
        shape = (input_shapes or {}).get(value.name, ())
        for axis, (dim, size) in enumerate(zip(dims, shape, strict=False)):
            given[dim.dim_param or f"{value.name}.{axis}"] = int(size)
    return given


@dataclass(frozen=True)
class _Sized:
    """A mask at the sizes that it is looked at.

    Attributes:
        keep: which pairs it keeps.
        tables: the block tables that it loads, by operand name.
        sizes: (B, H, Sq, Sk).
        lengths: where Sq and Sk come from.
    """

    keep: Expr
    tables: tuple[tuple[str, BlockTable], ...]
    sizes: tuple[int, int, int, int]
    lengths: LengthsFrom

    @property
    def size_of(self) -> dict[str, int]:
        return dict(zip(("B", "H", "Sq", "Sk"), self.sizes, strict=True))


class MaskReports:
    """Writes the mask entries of one model's report.

    Args:
        given: the dimensions that the user gave, by name.
        plots: draws the masks; None to draw none.

    Attributes:
        notes: what a user should know of masks that couldn't be measured.
    """

    def __init__(
        self, given: Mapping[str, int] | None = None, plots: MaskPlots | None = None
    ) -> None:
        self._given = given or {}
        self._plots = plots
        self._measured: dict[_Sized, MaskStatistics | None] = {}
        self._drawn: dict[tuple[str, _Sized], str] = {}
        self.notes: list[str] = []

    def entry(
        self,
        program: MaskProgram,
        kind: MaskKind,
        *,
        empty_row: str,
        tables: Mapping[str, BlockTable],
        dims: Dims = _UNKNOWN,
        proof: str = "",
    ) -> MaskReport:
        """The entry of one mask.

        Args:
            program: of the mask.
            kind: what it was classified as.
            empty_row: what a row without keys yields.
            tables: the constant tables that the program loads, by operand name.
            dims: B, H, Sq and Sk, None where a dimension isn't known even by name.
            proof: how the program was proven.

        Raises:
            OutputError: a picture can't be written.
        """
        sized = self._sized(program, tables, dims)
        report = MaskReport(kind.name, dict(kind.parameters), program.to_text(), empty_row, proof)
        measured = self._measure(sized)
        if measured is None:
            return report
        density = DensityReport(
            measured.sizes,
            sized.lengths,
            measured.token_density,
            measured.tiles,
            measured.not_counted,
        )
        picture = self._draw(report.title, kind.name, program, sized)
        return MaskReport(
            report.kind,
            report.parameters,
            report.expression,
            empty_row,
            proof,
            density,
            picture,
        )

    def _measure(self, sized: _Sized) -> MaskStatistics | None:
        if sized not in self._measured:
            program = MaskProgram(sized.keep)
            found: MaskStatistics | None = None
            try:
                found = measure(program, sized.size_of, dict(sized.tables))
            except (IndexError, InputError) as error:
                queries, keys = sized.sizes[2:]
                what = "beyond its constant table" if isinstance(error, IndexError) else error
                self.notes.append(
                    f"a mask can't be measured at {queries} queries and {keys} keys: {what}"
                )
            self._measured[sized] = found
        return self._measured[sized]

    def _draw(self, title: str, kind: str, program: MaskProgram, sized: _Sized) -> str:
        """The picture's file; none of a mask that keeps everything."""
        if self._plots is None or sized.keep == TRUE:
            return ""
        key = (title, sized)
        if key not in self._drawn:
            picture = MaskPicture(kind, title, program, sized.size_of, dict(sized.tables))
            self._drawn[key] = str(self._plots.draw(picture))
        return self._drawn[key]

    def _sized(self, program: MaskProgram, tables: Mapping[str, BlockTable], dims: Dims) -> _Sized:
        batch, heads, queries, keys = (self._number(dim) for dim in dims)
        used = {load.source for load in loads(program.keep)}
        known = {name: table for name, table in sorted(tables.items()) if name in used}
        lengths: LengthsFrom = "input shapes"
        if all(isinstance(dim, Const) for dim in dims[2:]):
            lengths = "model"
        elif queries is None or keys is None:
            lengths = "assumed"
        for assumed_q, assumed_k in _assumed_lengths(list(known.values())):
            sizes = (batch or 1, heads or 1, queries or assumed_q, keys or assumed_k)
            if lengths not in ("assumed", "table") or _fits(program.keep, sizes, known):
                break
            lengths = "table"
        return _Sized(program.keep, tuple(known.items()), sizes, lengths)

    def _number(self, dim: Expr | None) -> int | None:
        """A dimension's size, where it follows from the model and the given dimensions."""
        if dim is None or loads(dim) or not variables(dim) <= self._given.keys():
            return None
        size = int(evaluate(dim, self._given, {}))
        # With the inputs' shapes alone a length may be 0: there is nothing to measure at it.
        return size if size > 0 else None


def _assumed_lengths(tables: Sequence[BlockTable]) -> list[tuple[int, int]]:
    """Queries and keys to try, the longest first: a buffer's last rows are read from Sk - Sq on."""
    lengths = [(ASSUMED_LENGTH, ASSUMED_LENGTH)]
    if tables:
        queries, keys = (
            min(ASSUMED_LENGTH, *(table.shape[axis] for table in tables)) for axis in (1, 2)
        )
        lengths += [(queries, keys), (min(queries, keys),) * 2]
    return lengths


def _fits(keep: Expr, sizes: tuple[int, int, int, int], tables: Mapping[str, BlockTable]) -> bool:
    """Whether the tables are loaded inside of what they hold, at the corners of the mask."""
    batch, heads, queries, keys = sizes
    values: dict[str, Array | int] = {
        "B": batch,
        "H": heads,
        "Sq": queries,
        "Sk": keys,
        "b": 0,
        "h": 0,
        "q": np.array([[0], [queries - 1]]),
        "k": np.array([[0, keys - 1]]),
    }
    return all(
        _is_inside(load, tables[load.source], values)
        for load in loads(keep)
        if load.source in tables
    )


def _is_inside(load: Load, table: BlockTable, values: Mapping[str, Array | int]) -> bool:
    if any(loads(index) for index in load.index):
        return True  # what run-time values choose isn't counted
    for index, size in zip(load.index[1:], table.shape[1:], strict=True):
        at = evaluate(index, values, {})
        if at.min() < 0 or at.max() >= size:
            return False
    return True
