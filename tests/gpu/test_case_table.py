"""The table of GPU cases itself, checked without a GPU."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from stof_onnx import planning
from stof_onnx.ir.block_table import BlockTable
from stof_onnx.ir.expr import evaluate
from stof_onnx.ir.mask.program import index_grid
from stof_onnx.ir.target import Target
from stof_onnx.templates.masked_attention_mma import Parameters
from tests.gpu.cases import (
    CASES,
    DIMS,
    DTYPES,
    HEADS,
    LAYOUTS,
    SHAPES,
    Case,
    Config,
    hiding_configs,
    node_of,
    node_of_config,
    rule_configs,
    sink_configs,
    softcap_configs,
    twice_configs,
)
from tests.gpu.masks import ALL_FAMILIES, FAMILIES, SETTINGS, Family
from tests.gpu.problem import Problem
from tests.ir import attention_cases
from tests.ir.attention_cases import Sizes, bshd

SIZES = (Sizes(3, 2, 2, 70, 130), Sizes(1, 1, 4, 130, 70), Sizes(2, 2, 1, 1, 9))


@pytest.mark.parametrize("sizes", SIZES, ids=lambda s: "x".join(map(str, s)))
@pytest.mark.parametrize("family", ALL_FAMILIES.values())
def test_program_and_dense_mask_agree(family: Family, sizes: Sizes) -> None:
    mask = family(sizes, np.random.default_rng(5))
    mask.program.validate()
    names = {"B": sizes.batch, "H": sizes.heads, "Sq": sizes.queries, "Sk": sizes.keys}
    sources = {
        operand.name: held.to_dense() if isinstance(held, BlockTable) else held
        for operand, held in zip(mask.program.operands, mask.operands, strict=True)
    }
    keep = mask.program.evaluate_keep(names, sources)
    assert np.array_equal(
        np.broadcast_to(keep, sizes.scores), np.broadcast_to(mask.keep, sizes.scores)
    )
    again = np.asarray(evaluate(mask.program.again, index_grid(names), sources), bool)
    assert np.array_equal(
        np.broadcast_to(again, sizes.scores), np.broadcast_to(mask.again, sizes.scores)
    )
    assert (mask.program.bias is None) == (mask.bias is None)
    if mask.program.bias is not None:
        bias = evaluate(mask.program.bias, index_grid(names), sources)
        np.testing.assert_allclose(
            *(np.broadcast_to(x, sizes.scores) for x in (bias, mask.bias)), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_node_is_the_same_at_every_shape(family: str) -> None:
    config = Config(family)
    node = node_of_config(config)
    for shape in ((1, 1, 1), (3, 65, 20)):
        other = node_of(Case(config, shape))
        assert other.record == node.record
        assert other.infos == node.infos


def test_table_covers_what_it_should() -> None:
    factors = [(case.config, case.shape) for case in CASES]
    assert {(c.family, c.dtype) for c, _ in factors} >= {(f, d) for f in FAMILIES for d in DTYPES}
    assert {(c.dtype, c.dims) for c, _ in factors} >= {(t, d) for t in DTYPES for d in DIMS}
    assert {(c.dtype, c.layout) for c, _ in factors} >= {(t, k) for t in DTYPES for k in LAYOUTS}
    assert {(c.dtype, c.heads) for c, _ in factors} >= {(t, h) for t in DTYPES for h in HEADS}
    assert {(c.dtype, s) for c, s in factors} >= {(t, s) for t in DTYPES for s in SHAPES}
    assert {(c.layout, s) for c, s in factors} >= {(k, s) for k in LAYOUTS for s in SHAPES}
    assert {(c.dims, c.layout) for c, _ in factors} >= {(d, k) for d in DIMS for k in LAYOUTS}
    assert len(set(map(str, CASES))) == len(CASES)


def _softmax_attention(problem: Problem) -> np.ndarray:
    query, mask, _ = problem.equivalent
    groups = query.shape[1] // problem.key.shape[1]
    key, value = (
        np.repeat(x.astype(np.float64), groups, axis=1) for x in (problem.key, problem.value)
    )
    scores = problem.scale * (query.astype(np.float64) @ key.swapaxes(2, 3))
    if problem.softcap:
        scores = problem.softcap * np.tanh(scores / problem.softcap)
    logits = scores + mask
    if problem.sinks is not None:
        column = np.broadcast_to(problem.sinks[:, None, None], (*logits.shape[:3], 1))
        logits = np.concatenate([logits, column], axis=3)
    weights = np.exp(logits - logits.max(axis=3, keepdims=True))
    weights /= weights.sum(axis=3, keepdims=True)
    return weights[..., : scores.shape[3]] @ value


@pytest.mark.parametrize(
    "config",
    [
        *(Config(family) for family in ALL_FAMILIES),
        *{case.config: 0 for case in CASES if case.config.program},
        *softcap_configs(),
        *sink_configs(),
        *twice_configs(),
    ],
    ids=str,
)
def test_dense_equivalent_is_the_same_attention(config: Config) -> None:
    """What PyTorch is given means the same as what the oracle is given."""
    problem = node_of(Case(replace(config, dims=(16, 16), heads=(1, 2)), (2, 21, 34))).problem
    rows = problem.equivalent.rows
    wanted = problem.wanted
    np.testing.assert_allclose(_softmax_attention(problem)[rows], wanted[rows], atol=1e-9)
    assert not np.isnan(wanted[rows]).any()
    special = wanted[~rows]
    has_sinks = problem.sinks is not None and np.isfinite(problem.sinks).all()
    assert (special == 0 if problem.nan_to_zero or has_sinks else np.isnan(special)).all()


@pytest.mark.parametrize("shape", [(2, 21, 34), (2, 34, 21)], ids=str)
@pytest.mark.parametrize(
    "config",
    [
        config
        for config in (*hiding_configs(), *rule_configs(), *twice_configs())
        if config.dtype == "float32"
    ],
    ids=str,
)
def test_onnx_runtime_agrees_where_nothing_is_seen(
    config: Config, shape: tuple[int, int, int]
) -> None:
    """The expanded node, in the graph's own operators and type."""
    node = node_of(Case(replace(config, dims=(16, 16), heads=(1, 2)), shape))
    named = [(f"input_{i}", x) for i, x in enumerate(node.inputs)]
    positions = node.record.operand_positions()
    tables = {
        f"input_{i}"
        for operand, first, last in zip(
            node.record.mask.operands, positions, positions[1:], strict=False
        )
        for i in range(first, last)
        if operand.kind == "block_table"
    }
    held = attention_cases.Node(node.record, named, tables, node.problem.wanted)
    got = attention_cases.run(attention_cases.model_of(held), held)
    heads = got.reshape(*got.shape[:2], node.record.num_heads, -1).swapaxes(1, 2)
    np.testing.assert_allclose(heads, node.problem.wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", SETTINGS)
def test_tables_force_every_setting(family: str, dtype: str) -> None:
    node = node_of_config(Config(family, dtype, dims=(33, 40))).template_node
    chosen = planning.choose(node, Target.parse("sm_90")).parameters
    assert isinstance(chosen, Parameters)
    assert family == f"table_{chosen.tile_q}x{chosen.tile_k}"


def test_inputs_hold_nan_where_nothing_may_be_read() -> None:
    """The layouts with gaps would show a read outside of a head as NaN."""
    place = bshd([5 + 2 * 7], 7, 5)
    stored = place.store(np.zeros((1, 2, 3, 4), np.float16))
    assert np.isnan(stored).sum() == 3 * (5 + 2 * 3)
