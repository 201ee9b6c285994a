"""The mask entries of a report: sizes, densities, and that each distinct mask is measured once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from stof_onnx.ir.block_table import BlockTable
from stof_onnx.ir.expr import Expr, Load, Var
from stof_onnx.ir.expr.build import add, and_, floordiv, ge0, integer, sub
from stof_onnx.ir.mask import MaskKind, MaskProgram, classify
from stof_onnx.ir.mask.program import B_INDEX, K_INDEX, KEYS, Q_INDEX, QUERIES
from stof_onnx.report import MaskReport
from stof_onnx.report import masks as module
from stof_onnx.report.masks import Dims, MaskReports, given_dims
from tests.rewriter.graphs import Attention, build

CAUSAL = ge0(sub(Q_INDEX, K_INDEX))
PADDING = Load("padding", (B_INDEX, K_INDEX), "bool")
LENGTH, PAST = Var("length"), Var("past")
TABLE = BlockTable.from_dense(np.tril(np.ones((96, 160), np.bool_)))


def loaded(q: Expr, k: Expr) -> Expr:
    return Load("table", (integer(0), q, k), "bool")


def entry(reports: MaskReports, keep: Expr, dims: Dims, **tables: BlockTable) -> MaskReport:
    program = MaskProgram(keep)
    kind = classify(program, tables)
    return reports.entry(program, kind, empty_row="nan", tables=tables, dims=dims)


@pytest.mark.parametrize(
    ("dims", "sizes", "lengths"),
    [
        ((integer(2), integer(3), integer(8), integer(9)), (2, 3, 8, 9), "model"),
        ((None, integer(3), integer(8), None), (1, 3, 8, 1024), "assumed"),
        ((None, None, None, None), (1, 1, 1024, 1024), "assumed"),
        ((Var("batch"), integer(3), LENGTH, LENGTH), (5, 3, 20, 20), "input shapes"),
        ((Var("batch"), integer(3), integer(8), LENGTH), (5, 3, 8, 20), "input shapes"),
        ((Var("batch"), integer(3), LENGTH, add(LENGTH, PAST)), (5, 3, 20, 1024), "assumed"),
        ((Var("batch"), integer(3), LENGTH, add(LENGTH, LENGTH)), (5, 3, 20, 40), "input shapes"),
        # The lengths that were given leave no query.
        ((None, None, sub(LENGTH, integer(20)), LENGTH), (1, 1, 1024, 20), "assumed"),
        ((None, None, Load("n", (integer(0),), "int"), LENGTH), (1, 1, 1024, 20), "assumed"),
    ],
)
def test_sizes(dims: Dims, sizes: tuple[int, ...], lengths: str) -> None:
    density = entry(MaskReports({"batch": 5, "length": 20}), CAUSAL, dims).density
    assert density is not None
    assert (density.sizes, density.lengths) == (sizes, lengths)


@pytest.mark.parametrize(
    ("q", "k", "sizes", "lengths"),
    [
        (Q_INDEX, K_INDEX, (96, 160), "table"),
        # One entry for several pairs: 1024 fit.
        (floordiv(Q_INDEX, integer(16)), floordiv(K_INDEX, integer(16)), (1024, 1024), "assumed"),
        (floordiv(Q_INDEX, integer(16)), K_INDEX, (96, 160), "table"),
        # Which row is known at run time only, so that the table isn't counted.
        (Load("row", (Q_INDEX,), "int"), K_INDEX, (1024, 1024), "assumed"),
        # A buffer's last rows: 96 queries at the end of 160 keys would reach row 159.
        (add(Q_INDEX, sub(KEYS, QUERIES)), K_INDEX, (96, 96), "table"),
    ],
)
def test_assumed_lengths_stay_inside_constant_tables(
    q: Expr, k: Expr, sizes: tuple[int, int], lengths: str
) -> None:
    reports = MaskReports()
    density = entry(reports, loaded(q, k), (None,) * 4, table=TABLE).density
    assert density is not None
    assert not reports.notes
    assert (density.sizes[2:], density.lengths) == (sizes, lengths)


def test_lengths_beyond_a_table_that_were_given_are_noted_once() -> None:
    reports = MaskReports({"length": 97})
    for _ in range(2):
        found = entry(reports, loaded(Q_INDEX, K_INDEX), (None, None, LENGTH, LENGTH), table=TABLE)
        assert found.density is None
    assert reports.notes == [
        "a mask can't be measured at 97 queries and 97 keys: beyond its constant table"
    ]


def test_what_is_known_at_run_time_only_is_named() -> None:
    dims = (None, None, integer(64), integer(64))
    density = entry(MaskReports(), and_(CAUSAL, PADDING), dims).density
    assert density is not None
    assert density.not_counted == ("padding",)
    assert density.token_density == pytest.approx(65 / 128)


def test_each_distinct_mask_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[Any] = []
    real = module.measure

    def measure(program: MaskProgram, sizes: Any, sources: Any) -> Any:
        measured.append((program, sizes, sources))
        return real(program, sizes, sources)

    monkeypatch.setattr(module, "measure", measure)
    reports = MaskReports()
    equal = BlockTable.from_dense(TABLE.to_dense()[0])
    other = BlockTable.from_dense(np.triu(TABLE.to_dense()[0]))
    dims = (None, integer(2), integer(96), integer(160))
    keep = loaded(Q_INDEX, K_INDEX)
    for table in (TABLE, equal, TABLE):
        entry(reports, keep, dims, table=table)
    assert len(measured) == 1
    entry(reports, keep, dims, table=other)
    entry(reports, CAUSAL, dims)
    entry(reports, CAUSAL, (None, integer(4), integer(96), integer(160)))
    entry(reports, CAUSAL, dims, unused=TABLE)
    assert len(measured) == 4


def test_nothing_is_drawn_without_being_asked() -> None:
    reports = MaskReports()
    kind = MaskKind("causal", {"alignment": "start"})
    found = reports.entry(MaskProgram(CAUSAL), kind, empty_row="nan", tables={})
    assert (found.picture, found.title) == ("", "causal (alignment=start)")


def test_dimensions_are_named_as_the_rewriter_names_them() -> None:
    model = build(Attention(packing="inputs")).model()
    first = model.graph.input[0]
    first.type.tensor_type.shape.dim[0].ClearField("dim_param")
    shape = tuple(range(3, 3 + len(first.type.tensor_type.shape.dim)))
    given = given_dims(model, {first.name: shape})
    assert given[f"{first.name}.0"] == 3
    assert {name: size for name, size in given.items() if name.isidentifier()} == {
        dim.dim_param: size
        for dim, size in zip(first.type.tensor_type.shape.dim, shape, strict=True)
        if dim.dim_param
    }
    assert given_dims(model, None) == {}
