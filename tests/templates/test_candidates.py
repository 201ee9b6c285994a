"""Settings of masked_attention_mma: which are usable, and why others are not."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from stof_onnx.ir.operators.masked_attention import TableInput
from stof_onnx.ir.target import Target
from stof_onnx.templates import masked_attention_mma as template
from stof_onnx.templates.masked_attention_mma import Parameters
from tests.templates.attention_nodes import attention_node, block_table

SM_80 = Target.parse("sm_80")


def reasons(node, target):
    return {
        (one.tile_q, one.tile_k): reason
        for one, reason in template.candidates(node, Target.parse(target))
    }


@pytest.mark.parametrize(
    ("dtype", "head_dim", "target", "refused"),
    [
        ("float16", 64, "sm_86", set()),
        ("float32", 128, "sm_86", {(64, 64)}),
        ("float32", 256, "sm_86", {(64, 64), (64, 32), (32, 32)}),
        ("float32", 256, "portable", {(64, 64), (64, 32), (32, 32)}),
        ("float32", 256, "sm_120", {(64, 64), (64, 32), (32, 32)}),
        ("float32", 256, "sm_80", {(64, 64)}),
        ("float32", 256, "sm_90", set()),
        ("float16", 256, "sm_89", {(64, 64)}),
        ("float16", 256, "sm_100", set()),
    ],
)
def test_settings_that_need_too_much_shared_memory_are_refused(dtype, head_dim, target, refused):
    node = attention_node(dtype=dtype, head_dim=head_dim)
    found = reasons(node, target)
    assert {tile for tile, reason in found.items() if reason} == refused
    for tile in refused:
        need = template.shared_bytes(node, Parameters(*tile))
        assert re.fullmatch(rf"{need} bytes of shared memory, {target} has \d+", found[tile])


@pytest.mark.parametrize(
    ("tile", "usable"),
    [
        ((64, 64), {(64, 64), (64, 32), (32, 32), (32, 16), (16, 16)}),
        ((128, 96), {(64, 32), (32, 32), (32, 16), (16, 16)}),
        ((32, 64), {(32, 32), (32, 16), (16, 16)}),
        ((64, 48), {(32, 16), (16, 16)}),
        ((16, 16), {(16, 16)}),
    ],
)
@pytest.mark.parametrize("kind", ["constant", "run-time"])
def test_tiles_that_span_several_of_a_table_are_refused(tile, usable, kind):
    node = with_table(tile, kind)
    assert template.refusal(node.record) is None
    found = reasons(node, "sm_80")
    assert {own for own, reason in found.items() if reason is None} == usable
    for own, reason in found.items():
        wanted = f"a tile of {own[0]}x{own[1]} spans several of the mask table's {tile}"
        assert own in usable or reason == wanted


def with_table(tile, kind):
    node = attention_node("table" if kind == "constant" else "run-time table")
    mask = node.record.mask
    if kind == "constant":
        mask = replace(mask, operands=(block_table("table", tile),))
        return replace(node, record=replace(node.record, mask=mask))
    return replace(node, record=replace(node.record, table=TableInput(tile, True, False)))


@pytest.mark.parametrize("kind", ["constant", "run-time"])
@pytest.mark.parametrize("tile", [(8, 16), (16, 8), (24, 64), (64, 40)])
def test_tables_of_tiles_that_no_setting_divides_are_refused(tile, kind):
    assert "wanted multiples of 16" in template.refusal(with_table(tile, kind).record)


@pytest.mark.parametrize(("head_dim", "value_dim"), [(257, 64), (64, 264)])
def test_too_large_head_dims_are_refused(head_dim, value_dim):
    large = attention_node(head_dim=head_dim, value_dim=value_dim)
    assert "above 256" in template.refusal(large.record)
    assert template.refusal(attention_node(head_dim=256, value_dim=256).record) is None


def test_shared_memory_counts_a_cursor_for_each_table():
    one, two = attention_node("table"), attention_node("two tables")
    parameters = Parameters()
    difference = template.shared_bytes(two, parameters) - template.shared_bytes(one, parameters)
    assert difference == 4 * parameters.threads


def test_first_settings_are_the_recommended_ones():
    firsts = {
        (dtype, dim): next(template.candidates(attention_node(dtype=dtype, head_dim=dim), SM_80))[0]
        for dtype, dim in [("float16", 64), ("float16", 256), ("float32", 64)]
    }
    assert [(one.tile_q, one.tile_k) for one in firsts.values()] == [(64, 64), (64, 32), (64, 32)]
    assert dict(firsts["float16", 64].tactic()) == {
        "template": template.NAME,
        "tile_q": 64,
        "tile_k": 64,
    }
