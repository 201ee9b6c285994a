"""Masks for the GPU tests: programs, operands, and the same masks built without them.

A family is a function of the sizes; its program doesn't depend on them, so that one kernel is
tested at many shapes. Dense masks come from tests/reference or from numpy, never from the program.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np

from stof_onnx.ir.block_table import BlockTable
from stof_onnx.ir.expr import Const, Expr, Load
from stof_onnx.ir.expr.build import (
    TRUE,
    add,
    and_,
    eq,
    floordiv,
    fmul,
    ge,
    ge0,
    gt,
    integer,
    mod,
    or_,
    sub,
    to_float,
)
from stof_onnx.ir.mask.program import (
    B_INDEX,
    H_INDEX,
    K_INDEX,
    Q_INDEX,
    QUERIES,
    MaskProgram,
    Operand,
)
from tests.ir.attention_cases import (
    ALL,
    END,
    START,
    Array,
    Mask,
    Sizes,
    alibi,
    arithmetic,
    bias_by_head,
    causal,
    causal_end,
    dense_bool,
    dense_diagonal,
    dense_for_longer_sequences,
    dense_transposed,
    hidden_twice,
    hidden_twice_beside_bias,
    left_padding_causal,
    no_mask,
    padding,
    tensor,
)
from tests.reference.attention import (
    bigbird_keep,
    causal_keep,
    causal_window_keep,
    padding_keep,
    sliding_window_keep,
)

Family = Callable[[Sizes, np.random.Generator], Mask]

WINDOW = 70
BIGBIRD_LENGTH = 330
TABLE_LENGTH = 1024
FLOAT32_MIN = float(np.finfo(np.float32).min)
FLOAT16_MIN = float(np.finfo(np.float16).min)

FIRST_GROUP = integer(0)
_WIDTH = integer(WINDOW)


def sliding_window(s: Sizes, rng: np.random.Generator) -> Mask:
    keep = sliding_window_keep(s.queries, s.keys, window=WINDOW)
    return Mask(MaskProgram(and_(ge0(add(START, _WIDTH)), ge0(sub(_WIDTH, START)))), keep)


def causal_window(s: Sizes, rng: np.random.Generator) -> Mask:
    """A causal window that ends with the last key; the first queries may see nothing."""
    keep = causal_window_keep(s.queries, s.keys, window=WINDOW, query_offset=s.keys - s.queries)
    return Mask(MaskProgram(and_(ge0(END), gt(_WIDTH, END))), keep)


def dilated(s: Sizes, rng: np.random.Generator) -> Mask:
    """Every third key up to the query's own."""
    distance = np.arange(s.queries)[:, None] - np.arange(s.keys)
    program = MaskProgram(and_(ge0(START), eq(mod(START, integer(3)), integer(0))))
    return Mask(program, (distance >= 0) & (distance % 3 == 0))


def block_diagonal(s: Sizes, rng: np.random.Generator) -> Mask:
    """Blocks of 48, which don't fit the kernels' tiles; queries beyond the keys see nothing."""
    blocks = [np.arange(n) // 48 for n in (s.queries, s.keys)]
    program = MaskProgram(eq(floordiv(Q_INDEX, integer(48)), floordiv(K_INDEX, integer(48))))
    return Mask(program, blocks[0][:, None] == blocks[1])


def padding_left(s: Sizes, rng: np.random.Generator) -> Mask:
    lengths = rng.integers(1, s.keys + 1, s.batch).tolist()
    return _key_vector(padding_keep(lengths, s.keys, side="left"))


def padding_holes(s: Sizes, rng: np.random.Generator) -> Mask:
    keep = rng.random((s.batch, 1, 1, s.keys)) < 0.7
    keep[..., 0] = True
    return _key_vector(keep)


def padding_everything(s: Sizes, rng: np.random.Generator) -> Mask:
    """The last batch keeps no key at all."""
    lengths = [*rng.integers(1, s.keys + 1, s.batch - 1).tolist(), 0]
    return _key_vector(padding_keep(lengths, s.keys))


def _key_vector(keep: Array) -> Mask:
    """A padding mask [B, 1, 1, Sk] as the operand that exporters leave."""
    load = Load("padding", (B_INDEX, integer(0), integer(0), K_INDEX), "bool")
    return Mask(MaskProgram(load, operands=(tensor("padding", 4),)), keep, (keep.astype(np.int8),))


def documents(s: Sizes, rng: np.random.Generator) -> Mask:
    """Documents of about 40 tokens; the ids are INT64 [B, S]."""
    ids = np.cumsum(rng.random((s.batch, max(s.queries, s.keys))) < 1 / 40, axis=1)
    loads = [Load("ids", (B_INDEX, index), "int") for index in (Q_INDEX, K_INDEX)]
    keep = ids[:, None, : s.queries, None] == ids[:, None, None, : s.keys]
    program = MaskProgram(eq(*loads), operands=(tensor("ids", 2),))
    return Mask(program, keep, (ids.astype(np.int64),))


def causal_padding(s: Sizes, rng: np.random.Generator) -> Mask:
    """Causal, and a padding of keys on the left that leaves the first rows nothing."""
    held = padding_left(s, rng)
    keep = held.keep & causal_keep(s.queries, s.keys)
    program = MaskProgram(and_(ge0(START), held.program.keep), operands=held.program.operands)
    return Mask(program, keep, held.operands)


# ---- constant tables ---------------------------------------------------------------------------


@cache
def _bigbird() -> Array:
    blocks = np.random.default_rng(3).random((11, 11)) < 0.15
    length = BIGBIRD_LENGTH
    return bigbird_keep(length, length, window=20, global_tokens=3, block=32, random_blocks=blocks)


def bigbird(s: Sizes, rng: np.random.Generator) -> Mask:
    """Window, global tokens and random blocks, for sequences of at most BIGBIRD_LENGTH."""
    return _table(_bigbird()[None], (64, 64), s)


@cache
def _tile_states(groups: int) -> Array:
    """Masks whose 64x64 tiles are empty, full or random."""
    rng, count = np.random.default_rng(groups), TABLE_LENGTH // 64
    states = np.kron(rng.integers(0, 3, (groups, count, count)), np.ones((64, 64), np.int8))
    keep = (states == 2) | ((states == 1) & (rng.random(states.shape) < 0.3))
    keep[:, :, 0] = True
    return keep


def table(s: Sizes, rng: np.random.Generator) -> Mask:
    """A constant mask of 1024 x 1024, larger than any sequence here."""
    return _table(_tile_states(1), (64, 64), s)


def table_by_head(s: Sizes, rng: np.random.Generator) -> Mask:
    """A constant mask for each head, in tiles that the kernel's own have to fit into."""
    return _table(_tile_states(s.heads), (32, 64), s, H_INDEX)


def table_or_causal(s: Sizes, rng: np.random.Generator) -> Mask:
    held = _table(_tile_states(1), (128, 64), s)
    program = MaskProgram(or_(held.program.keep, ge0(START)), operands=held.program.operands)
    return Mask(program, held.keep | causal_keep(s.queries, s.keys), held.operands)


def table_last_rows(s: Sizes, rng: np.random.Generator) -> Mask:
    """The last rows of a constant mask, as with a KV cache: not the kernel's own tiles."""
    keep = _tile_states(1)
    row = add(Q_INDEX, sub(integer(TABLE_LENGTH), QUERIES))
    load = Load("table", (integer(0), row, K_INDEX), "bool")
    held = _table(keep, (64, 64), s)
    program = MaskProgram(load, operands=held.program.operands)
    return Mask(program, keep[0, TABLE_LENGTH - s.queries :, : s.keys], held.operands)


@cache
def _stored(groups: int, tile: tuple[int, int], length: int) -> BlockTable:
    dense = _bigbird()[None] if length == BIGBIRD_LENGTH else _tile_states(groups)
    return BlockTable.from_dense(dense, tile)


def _table(keep: Array, tile: tuple[int, int], s: Sizes, group: Expr = FIRST_GROUP) -> Mask:
    stored = _stored(len(keep), tile, keep.shape[1])
    load = Load("table", (group, Q_INDEX, K_INDEX), "bool")
    program = MaskProgram(
        load, operands=(Operand("table", "block_table", 3, stored.shape, stored.tile),)
    )
    return Mask(program, keep[:, : s.queries, : s.keys], (stored,))


# ---- biases ------------------------------------------------------------------------------------


def distance_bias(s: Sizes, rng: np.random.Generator) -> Mask:
    """k - q, divided by 8: ALiBi with its slope in the program."""
    slope = fmul(to_float(sub(K_INDEX, Q_INDEX)), Const(0.125))
    bias = (np.arange(s.keys) - np.arange(s.queries)[:, None]) * 0.125
    return Mask(MaskProgram(ge0(START), slope), causal_keep(s.queries, s.keys), (), bias)


def bias_with_infinities(s: Sizes, rng: np.random.Generator) -> Mask:
    """A float32 bias [B, 1, Sq, Sk] that hides pairs with -inf; every row sees key 0."""
    return _bias(s, rng, (s.batch, 1, s.queries, s.keys), -np.inf, np.float32)


def bias_with_lowest(s: Sizes, rng: np.random.Generator) -> Mask:
    """The same with the lowest float32 number, which hides all of query 0's keys."""
    mask = _bias(s, rng, (s.batch, 1, s.queries, s.keys), FLOAT32_MIN, np.float32)
    assert mask.bias is not None
    mask.bias[:, :, 0] = FLOAT32_MIN
    return mask


def bias_float16(s: Sizes, rng: np.random.Generator) -> Mask:
    """A float16 bias [H, Sq, Sk] with float16's lowest number."""
    return _bias(s, rng, (s.heads, s.queries, s.keys), FLOAT16_MIN, np.float16)


def bias_all_hidden(s: Sizes, rng: np.random.Generator) -> Mask:
    """A float32 bias that is -inf for every key of every third query."""
    mask = _bias(s, rng, (s.batch, 1, s.queries, s.keys), -np.inf, np.float32)
    assert mask.bias is not None
    mask.bias[:, :, ::3] = -np.inf
    return mask


def _bias(
    s: Sizes, rng: np.random.Generator, shape: tuple[int, ...], hidden: float, dtype: type
) -> Mask:
    # Eighths are exact in every type: PyTorch gets the same bias in the type of the query.
    bias = (rng.integers(-16, 17, shape) / 8).astype(dtype)
    bias[rng.random(shape) < 0.3] = hidden
    bias[..., 0] = 0.5
    leading = (B_INDEX, integer(0)) if len(shape) == 4 else (H_INDEX,)
    load = Load("bias", (*leading, Q_INDEX, K_INDEX), "float")
    program = MaskProgram(TRUE, load, operands=(tensor("bias", len(shape)),))
    return Mask(program, ALL, (bias,), bias)


def few_rows(s: Sizes, rng: np.random.Generator) -> Mask:
    """Causal from query 5 on: the rows before see no key, whatever the sizes."""
    shifted = sub(START, integer(5))
    return Mask(
        MaskProgram(ge(shifted, integer(0))), causal_keep(s.queries, s.keys, query_offset=-5)
    )


# ---- biases that hide what the program keeps ---------------------------------------------------


def hidden_lowest(s: Sizes, rng: np.random.Generator) -> Mask:
    """Causal, and a float mask [B, 1, 1, Sk] that pads with the lowest float32 number."""
    return _hiding_keys(s, rng, FLOAT32_MIN, np.float32)


def hidden_infinite(s: Sizes, rng: np.random.Generator) -> Mask:
    """Causal, and a float mask [B, 1, 1, Sk] that pads with -inf."""
    return _hiding_keys(s, rng, -np.inf, np.float32)


def hidden_float16(s: Sizes, rng: np.random.Generator) -> Mask:
    """Causal, and a float16 mask [B, 1, 1, Sk] that pads with float16's lowest number."""
    return _hiding_keys(s, rng, FLOAT16_MIN, np.float16)


def _hiding_keys(s: Sizes, rng: np.random.Generator, hidden: float, dtype: type) -> Mask:
    # Padding on the left takes the first rows all they keep; the last batch has nothing else.
    bias = (rng.integers(-16, 17, (s.batch, 1, 1, s.keys)) / 8).astype(dtype)
    bias[:, :, :, : s.keys // 4 + 1] = hidden
    bias[-1] = hidden
    load = Load("bias", (B_INDEX, integer(0), integer(0), K_INDEX), "float")
    program = MaskProgram(ge0(START), load, operands=(tensor("bias", 4),))
    return Mask(program, causal_keep(s.queries, s.keys), (bias,), bias)


def hidden_rows(s: Sizes, rng: np.random.Generator) -> Mask:
    """A window, and a bias [B, 1, Sq, Sk] that hides by turns all, some or none of a row's keys."""
    bias = (rng.integers(-16, 17, (s.batch, 1, s.queries, s.keys)) / 8).astype(np.float32)
    keep = sliding_window_keep(s.queries, s.keys, window=9)
    kept, row = np.broadcast_to(keep, bias.shape), np.arange(s.queries)[:, None] % 5
    bias[kept & (row == 0)] = FLOAT32_MIN
    bias[kept & (row == 1)] = -np.inf
    bias[kept & (row == 2)] = np.where(rng.random(bias.shape) < 0.5, FLOAT32_MIN, -np.inf)[
        kept & (row == 2)
    ]
    bias[kept & (row == 3) & (rng.random(bias.shape) < 0.5)] = FLOAT32_MIN
    bias[~kept & (row < 3) & (rng.random(bias.shape) < 0.3)] = FLOAT32_MIN
    load = Load("bias", (B_INDEX, integer(0), Q_INDEX, K_INDEX), "float")
    edge = integer(9)
    program = MaskProgram(
        and_(ge0(add(START, edge)), ge0(sub(edge, START))), load, operands=(tensor("bias", 4),)
    )
    return Mask(program, keep, (bias,), bias)


# ---- pairs that are hidden twice ---------------------------------------------------------------


def hidden_twice_by_table(s: Sizes, rng: np.random.Generator) -> Mask:
    """A window; a constant mask and a vector say what is hidden twice, of some rows every pair."""
    held = _table(_tile_states(s.heads), (64, 64), s, H_INDEX)
    chosen = rng.random((s.batch, s.keys)) < 0.7
    chosen[0] = True
    row = eq(mod(Q_INDEX, integer(3)), integer(0))
    again = and_(or_(held.program.keep, row), Load("chosen", (B_INDEX, K_INDEX), "bool"))
    distance = sub(START, integer(4))
    program = MaskProgram(
        and_(ge0(distance), ge(integer(6), distance)),
        fill=FLOAT32_MIN,
        operands=(*held.program.operands, tensor("chosen", 2)),
        again=again,
    )
    q, k = np.ogrid[: s.queries, : s.keys]
    keep = (q - k >= 4) & (q - k <= 10)
    operands = (*held.operands, chosen.astype(np.int8))
    return Mask(program, keep, operands, again=(held.keep | (q % 3 == 0)) & chosen[:, None, None])


# ---- tables that only one setting of the kernel fits -------------------------------------------


def _table_of(tile: tuple[int, int]) -> Family:
    return lambda s, rng: _table(_tile_states(1), tile, s)


FAMILIES: dict[str, Family] = {
    family.__name__: family
    for family in (
        no_mask,
        causal,
        causal_end,
        sliding_window,
        causal_window,
        dilated,
        block_diagonal,
        padding,
        padding_left,
        padding_holes,
        padding_everything,
        documents,
        causal_padding,
        left_padding_causal,
        bigbird,
        table,
        table_by_head,
        table_or_causal,
        table_last_rows,
        distance_bias,
        alibi,
        bias_by_head,
        bias_with_infinities,
        bias_with_lowest,
        bias_float16,
        dense_bool,
        dense_for_longer_sequences,
        dense_diagonal,
        dense_transposed,
        arithmetic,
    )
}
"""The families that the table of cases is made of."""

EMPTY_ROW_FAMILIES: dict[str, Family] = {
    family.__name__: family for family in (few_rows, padding_everything, bias_all_hidden)
}
"""Families with rows that see no key, for the rules of such rows."""

HIDING_FAMILIES: dict[str, Family] = {
    family.__name__: family
    for family in (hidden_lowest, hidden_infinite, hidden_float16, hidden_rows)
}
"""Families with rows whose kept keys a bias hides."""

TWICE_FAMILIES: dict[str, Family] = {
    family.__name__: family
    for family in (hidden_twice, hidden_twice_by_table, hidden_twice_beside_bias)
}
"""Families some of whose pairs get the fill twice."""

SETTINGS: dict[str, tuple[int, int]] = {
    "table_64x32": (64, 32),
    "table_32x32": (32, 32),
    "table_32x16": (32, 16),
    "table_16x16": (16, 32),
}
"""Families of constant tables whose tiles, given here, only the named setting's fit best."""

SETTING_FAMILIES: dict[str, Family] = {name: _table_of(tile) for name, tile in SETTINGS.items()}
ALL_FAMILIES = {
    **FAMILIES,
    **EMPTY_ROW_FAMILIES,
    **HIDING_FAMILIES,
    **TWICE_FAMILIES,
    **SETTING_FAMILIES,
}
