"""The pass that gives dense run-time masks a table: which, how many, and what is in them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from stof_onnx.expansion import expand_model
from stof_onnx.ir.mask.program import conjunction
from stof_onnx.ir.operators import mask_table
from stof_onnx.ir.operators.mask_table import OUTPUT_NAMES, MaskTable
from stof_onnx.ir.operators.masked_attention import OP_TYPE, MaskedAttention, node_attributes
from stof_onnx.ir.operators.tensor_info import TensorInfo
from stof_onnx.ir.plan import DataType
from stof_onnx.rewriter import rewrite as rewriting
from stof_onnx.rewriter.passes.mask_tables import (
    TILE,
    add_mask_tables,
)
from tests.ir.mask_tables import expected
from tests.rewriter.graphs import Attention, Graph, Sizes, add_block, build
from tests.rewriter.mask_terms import Bias, Mask, Term
from tests.rewriter.running import DEFAULT_SIZES, assert_close, check_graph, feeds_of, run

DENSE, PADDING, CAUSAL = Term("dense"), Term("padding"), Term("causal")


def terms(*given: Term) -> Mask:
    return Mask(given)


def tables(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == mask_table.OP_TYPE]


def attentions(model: onnx.ModelProto) -> Iterator[tuple[onnx.NodeProto, MaskedAttention]]:
    for node in model.graph.node:
        if node.op_type == OP_TYPE:
            record = MaskedAttention.from_attributes(node_attributes(node), node.name)
            assert len(node.input) == record.input_count()
            yield node, record


def rewritten(*blocks: Attention) -> onnx.ModelProto:
    """A graph of some attentions, rewritten; expanded, it computes what it did."""
    graph = Graph()
    for number, block in enumerate(blocks):
        add_block(graph, block, f"output_{number}")
    sizes = [{**size, "mask_batch": size["batch"]} for size in DEFAULT_SIZES]
    model: onnx.ModelProto = check_graph(graph, 1e-5, sizes, mask_tables=True).model
    onnx.checker.check_model(model)
    return model


# name: (masks, further fields, size_axes, num_heads, by_batch, by_head)
WITH: dict[str, tuple[tuple[Any, ...], dict[str, Any], list[int], int, list[int]]] = {
    "dense": ((terms(DENSE),), {}, [0, 0, 0, 2, 0, 3], 1, [1, 0]),
    "dense, another length of keys": (
        (terms(DENSE),), {"keys": "memory"}, [0, 0, 0, 2, 0, 3], 1, [1, 0],
    ),
    "dense by head": (
        (terms(Term("dense", 0, "heads")),), {}, [0, 0, 0, 2, 0, 3], 2, [1, 1],
    ),
    "dense, shared by batches": (
        (terms(Term("dense", 0, "rank2")),), {}, [-1, 0, 0, 0, 0, 1], 1, [0, 0],
    ),
    "dense and padding": ((terms(DENSE, PADDING),), {}, [0, 0, 0, 2, 0, 3], 1, [1, 0]),
    "dense, shared, and padding": (
        (terms(Term("dense", 0, "rank2"), PADDING),), {}, [1, 0, 0, 0, 0, 1], 1, [1, 0],
    ),
    "dense and causal": ((terms(DENSE, CAUSAL),), {}, [0, 0, 0, 2, 0, 3], 1, [1, 0]),
    "dense and a bias": ((Bias("input"), terms(DENSE)), {}, [0, 0, 0, 2, 0, 3], 1, [1, 0]),
    "static": ((terms(DENSE),), {"batch": 2, "queries": 5}, [0, 0, 0, 2, 0, 3], 1, [1, 0]),
}  # fmt: skip
WITHOUT: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "no mask": ((), {}),
    "causal": ((terms(CAUSAL),), {}),
    "padding, a vector": ((terms(PADDING, CAUSAL),), {}),
    "documents, two vectors": ((terms(Term("documents")),), {}),
    "dense numbers that are added": ((Bias("input"),), {}),
    "dense numbers beside a mask": ((Bias("input"), terms(CAUSAL)), {}),
    "a constant table": ((terms(Term("table")),), {}),
    # StofMaskTable has no constant tables.
    "a constant table and a dense mask": ((terms(Term("table"), DENSE),), {}),
    # Its axes don't have the scores' sizes.
    "dense, longer than the sequence": ((terms(Term("dense", 0, "buffer")),), {}),
    # Nothing says that its batch is the scores'.
    "dense, of another batch": ((terms(DENSE),), {"mask_dims": ("mask_batch", "sequence")}),
}


@pytest.mark.parametrize("name", WITH)
def test_a_dense_mask_gets_a_table(name: str) -> None:
    masks, fields, size_axes, heads, shared = WITH[name]
    model = rewritten(Attention(masks=masks, **fields))
    (table,) = tables(model)
    ((attention, record),) = attentions(model)
    attributes = node_attributes(table)
    assert (attributes["plugin_version"], attributes["plugin_namespace"]) == ("1", "stof")
    assert list(attributes["size_axes"]) == size_axes
    assert record.table is not None
    assert record.table.numbers() == [*TILE, *shared]
    assert list(attention.input)[-3:] == list(table.output)
    read = MaskTable.from_attributes(attributes, table.name)
    assert (read.num_heads, read.tile, read.mask.keep) == (heads, TILE, record.mask.keep)
    operands = attention.input[3:-3]
    assert set(table.input) <= set(operands)
    assert len(table.input) == len(read.mask.operands)
    # The bias isn't in the table.
    assert len(table.input) == len(conjunction(record.mask.keep)) - ("causal" in name)


@pytest.mark.parametrize("name", WITHOUT)
def test_other_masks_get_none(name: str) -> None:
    masks, fields = WITHOUT[name]
    model = rewritten(Attention(masks=masks, **fields))
    assert not tables(model)
    ((_, record),) = attentions(model)
    assert record.table is None


def test_one_table_serves_all_layers() -> None:
    layer = Attention(masks=(terms(DENSE, PADDING),))
    model = rewritten(layer, layer, Attention(masks=(Bias("keys"), terms(DENSE, PADDING))))
    (table,) = tables(model)
    found = list(attentions(model))
    assert len(found) == 3
    assert all(list(node.input)[-3:] == list(table.output) for node, _ in found)


def test_different_masks_have_different_tables() -> None:
    model = rewritten(
        Attention(masks=(terms(DENSE),)),
        Attention(masks=(terms(DENSE, CAUSAL),)),
        Attention(masks=(terms(Term("dense", 0, "rank2")),)),
        Attention(masks=(terms(CAUSAL),)),
        Attention(masks=(terms(DENSE),)),
    )
    assert len(tables(model)) == 3
    used = [tuple(node.input)[-3:] for node, r in attentions(model) if r.table is not None]
    assert sorted(Counter(used).values()) == [1, 1, 2]
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", WITH)
def test_the_table_holds_what_the_original_mask_says(name: str) -> None:
    """The table's node, expanded and run, against the mask that the original graph applies."""
    masks, fields, *_ = WITH[name]
    graph = build(Attention(masks=masks, **fields))
    model = rewriting.rewrite(graph.model(), mask_tables=True).model
    (table,) = tables(model)
    ((_, record),) = attentions(model)
    expanded = onnx.ModelProto()
    expanded.CopyFrom(model)
    for output, rank in zip(table.output, (3, 3, 4), strict=True):
        dims = [f"{output}_{axis}" for axis in range(rank)]
        info = helper.make_tensor_value_info(output, TensorProto.INT32, dims)
        expanded.graph.output.append(info)
    expanded = expand_model(expanded)
    assert record.table is not None
    for sizes in [*DEFAULT_SIZES, {"batch": 2, "sequence": 70, "memory": 130}]:
        for feeds in feeds_of(graph.inputs.values(), sizes):
            keep = kept(masks, graph, feeds)
            keep = keep if record.table.by_batch else keep[:1]
            keep = keep if record.table.by_head else keep[:, :1]
            *_, counts, columns, bitmaps = run(expanded, feeds)
            for got, wanted in zip((counts, columns, bitmaps), expected(keep, TILE), strict=True):
                np.testing.assert_array_equal(got, wanted)


def kept(masks: Any, graph: Graph, feeds: Any) -> np.ndarray:
    """What the mask terms keep, computed by the graph that the original writes for them."""
    g = Graph()
    for entry in graph.inputs.values():
        g.input(entry.name, entry.dims, entry.dtype, entry.holds)
    hidden = "hidden"
    lengths = g.dim(hidden, 1)
    keys = g.dim("memory", 1) if "memory" in graph.inputs else lengths
    (mask,) = [mask for mask in masks if isinstance(mask, Mask)]
    wanted = Sizes(g.dim(hidden, 0), lengths, keys)
    attention = Attention(
        masks=masks,
        keys="memory" if "memory" in graph.inputs else None,
        **({"batch": 2, "queries": 5} if graph.inputs[hidden].dims[0] == 2 else {}),
    )
    shape = g.op("Concat", wanted.batch, g.ints(attention.heads), lengths, keys, axis=0)
    keep = g.op("Expand", mask.keep(g, attention, wanted), shape)
    g.output(keep, ["b", "h", "q", "k"], "bool", "keep")
    (result,) = run(g.model(), feeds)
    return result


@pytest.mark.parametrize(("style", "groups"), [("", 2), ("heads", 4), ("rank2", 1)])
def test_the_outputs_types_and_shapes_are_written(style: str, groups: int) -> None:
    model = rewritten(Attention(masks=(terms(Term("dense", 0, style)),), batch=2, queries=70))
    declared = {
        value.name.rpartition("/")[2]: value.type.tensor_type
        for value in model.graph.value_info
        if value.name.rpartition("/")[2] in OUTPUT_NAMES
    }
    assert {value.elem_type for value in declared.values()} == {TensorProto.INT32}
    shapes = {name: [dim.dim_value for dim in t.shape.dim] for name, t in declared.items()}
    assert shapes == {
        "tile_counts": [groups, 2, 2],
        "tile_columns": [groups, 2, 2],
        "bitmaps": [groups, 2, 2, 128],
    }


def test_equal_programs_on_different_tensors_have_different_tables() -> None:
    layer = Attention(masks=(terms(DENSE),))
    model = rewritten(layer, replace(layer, keys="memory"))
    first, second = tables(model)
    assert list(first.input) != list(second.input)


def test_what_a_plan_needs_of_a_table_is_told() -> None:
    both = terms(DENSE, Term("documents"))
    graph = Graph()
    add_block(graph, Attention(masks=(both,)), "output_0")
    add_block(graph, Attention(masks=(terms(CAUSAL),)), "output_1")
    done = rewriting.rewrite(graph.model(), mask_tables=True)
    (table,) = tables(done.model)
    (added,) = done.tables
    read = MaskTable.from_attributes(node_attributes(table), table.name)
    assert (added.node, added.attributes) == (table.name, read)
    assert added.inputs == (
        TensorInfo(DataType.INT8, (None,) * 4),
        TensorInfo(DataType.INT64, (None,) * 2),
    )


def test_without_kernels_there_is_no_table() -> None:
    graph = build(Attention(masks=(terms(DENSE),)))
    done = rewriting.rewrite(graph.model())
    assert (tables(done.model), done.tables) == ([], ())


def test_a_second_run_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []
    after = rewriting.sink_head_transposes

    def again(imported: Any, sym: Any) -> int:
        done = after(imported, sym)
        counts.append(add_mask_tables(imported, sym))
        return done

    monkeypatch.setattr(rewriting, "sink_head_transposes", again)
    graph = build(Attention(masks=(terms(DENSE),)))
    model = rewriting.rewrite(graph.model(), mask_tables=True).model
    assert counts == [0]
    assert len(tables(model)) == 1
    for feeds in feeds_of(graph.inputs.values(), DEFAULT_SIZES[0]):
        assert_close(run(graph.model(), feeds), run(expand_model(model), feeds), 1e-5)
