"""The table of blocks: rows that are shared, shares in percent, what was read of a pattern."""

from __future__ import annotations

import io

import pytest

from stof_onnx.cli import render
from stof_onnx.cli.render_blocks import (
    MOST_ROWS,
    Row,
    block_table,
    density_cells,
    names_text,
    reading_text,
)
from stof_onnx.ir.mask import TileStatistics
from stof_onnx.report import DensityReport, MaskReport

LAYER = "/layers.{}/attn/Softmax"


def layers(*numbers: int) -> list[str]:
    return [LAYER.format(number) for number in numbers]


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (layers(3), LAYER.format(3)),
        (layers(*range(24)), "/layers.0-23/attn/Softmax (24 blocks)"),
        (layers(*range(0, 26, 2)), "/layers.0,2..24/attn/Softmax (13 blocks)"),
        (layers(1, 7), "/layers.1,7/attn/Softmax (2 blocks)"),
        (layers(0, 1, 5, 9), "/layers.0..9/attn/Softmax (4 blocks)"),
        (["s_104", "s_177", "s_250"], "s_104,177..250 (3 blocks)"),
        # Two numbers or the words differ: nothing is invented.
        (["/0/Softmax", "/1/Softmax_1"], "/0/Softmax .. /1/Softmax_1 (2 blocks)"),
        (["/0/a_0", "/1/a_1", "/2/a_2"], "/0/a_0 .. /2/a_2 (3 blocks)"),
        (["encoder", "decoder"], "encoder .. decoder (2 blocks)"),
        (layers(2, 1, 0), "/layers.2..0/attn/Softmax (3 blocks)"),
        (layers(5, 5), "/layers.5/attn/Softmax .. /layers.5/attn/Softmax (2 blocks)"),
    ],
)
def test_names_of_a_group(names, text):
    assert names_text(names) == text


def table_lines(rows, *, every):
    stream = io.StringIO()
    table = block_table(("block", "mask", "pairs", "status"), rows, every=every)
    render.console(stream).print(table)
    return [line.split() for line in stream.getvalue().splitlines()[2:]]


def alternating(count: int) -> list[Row]:
    kinds = ("window", "causal")
    return [
        Row(name, (kinds[i % 2], "50%", "fused")) for i, name in enumerate(layers(*range(count)))
    ]


def test_few_blocks_have_a_row_each():
    assert len(table_lines(alternating(MOST_ROWS), every=False)) == MOST_ROWS


def test_blocks_that_do_not_differ_share_a_row():
    window, causal = table_lines(alternating(24), every=False)
    assert window == ["/layers.0,2..22/attn/Softmax", "(12", "blocks)", "window", "50%", "fused"]
    assert causal[0] == "/layers.1,3..23/attn/Softmax"
    assert len(table_lines(alternating(24), every=True)) == 24


@pytest.mark.parametrize("cells", [("window", "49%", "fused"), ("window", "50%", "refused")])
def test_a_block_that_differs_keeps_its_row(cells):
    rows = [*alternating(24), Row("other", cells)]
    assert ["other", *cells] in table_lines(rows, every=False)


# ------------------------------------------------------------------------------------ densities


def density(share: float, not_counted: tuple[str, ...] = ()) -> MaskReport:
    tiles = (TileStatistics((64, 64), share, 0.0), TileStatistics((128, 128), 1.0, 0.0))
    found = DensityReport((1, 1, 8, 8), "model", share, tiles, not_counted)
    return MaskReport("causal", {}, "", "nan", density=found)


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.0, "0%"),
        (1.0, "100%"),
        (0.5, "50.0%"),
        (0.12345, "12.3%"),
        (0.00875, "0.88%"),
        (0.000001, "<0.01%"),
        (0.99999, ">99.9%"),
    ],
)
def test_shares_in_percent(share, text):
    assert density_cells(density(share)) == (text, text)


def test_a_share_that_is_a_bound_says_so():
    assert density_cells(density(0.5, ("padding",))) == ("<=50.0%", "<=50.0%")


def test_nothing_is_said_of_masks_that_were_not_measured():
    assert density_cells(None) == density_cells(MaskReport("none", {}, "", "nan")) == ("-", "-")


# ------------------------------------------------------------------------------ refused blocks


@pytest.mark.parametrize(
    ("read", "text"),
    [
        (["Softmax"], "Softmax <- ?"),
        (
            ["Softmax", "Cast", "Where", "Mul"],
            "Softmax <- Cast <- Where (mask) <- Mul (scale or softcap) <- ?",
        ),
        (["Softmax", "MatMul"], "Softmax <- MatMul (query x key); Softmax -> ?"),
        (
            ["Softmax", "Add", "Einsum", "Where"],
            "Softmax <- Add (mask or bias) <- Einsum (query x key);"
            " Softmax -> Where (NaN guard) -> ?",
        ),
        (
            ["Softmax", "MatMul", "Cast", "MatMul"],
            "Softmax <- MatMul (query x key); Softmax -> Cast -> MatMul (x value); operands: ?",
        ),
        (
            ["Softmax", "MatMul", "MatMul", "Transpose", "Reshape"],
            "Softmax <- MatMul (query x key); Softmax -> MatMul (x value);"
            " operands: Transpose, Reshape",
        ),
    ],
)
def test_what_was_read_of_a_pattern(read, text):
    assert reading_text(read) == text
