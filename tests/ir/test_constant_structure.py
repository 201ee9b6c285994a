"""Structure of constant masks: what is named rebuilds the table, near misses are not named."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stof_onnx.ir.block_table import BlockTable
from stof_onnx.ir.expr import Load
from stof_onnx.ir.expr.build import add, and_, integer, not_, sub
from stof_onnx.ir.mask import MaskKind, MaskProgram, Operand, classify
from stof_onnx.ir.mask.constant_structure import find_structure
from stof_onnx.ir.mask.program import B_INDEX, H_INDEX, K_INDEX, KEYS, Q_INDEX, QUERIES

Mask = npt.NDArray[np.bool_]
Parameters = dict[str, Any]


def axes(queries: int, keys: int) -> tuple[Any, Any]:
    return np.arange(queries)[:, None], np.arange(keys)


def named(keep: Mask) -> tuple[str, Parameters] | None:
    found = find_structure(keep[None] if keep.ndim == 2 else keep)
    if found is None:
        return None
    assert {type(value) for value in found.parameters.values()} <= {int, float, str}
    return found.name, found.parameters


def rebuilt(name: str, p: Parameters, queries: int, keys: int) -> Mask:
    """The mask that a name and its parameters say."""
    q, k = axes(queries, keys)
    position = q + (keys - queries if p.get("alignment") == "end" else 0)
    d = position - k
    keep = np.ones((queries, keys), np.bool_)
    parts = name.split("+")
    if parts[0].startswith("causal"):
        keep &= d >= 0
    kind = parts[-1]
    near = (d <= p.get("window_left", keys + queries)) & (-d <= p.get("window_right", keys))
    if "chunk" in p:
        far = position // p["chunk"] - k // p["chunk"]
        is_own = "chunks_left" not in p and "chunks_right" not in p
        widest = 0 if is_own else queries + keys
        near = (far <= p.get("chunks_left", widest)) & (-far <= p.get("chunks_right", widest))
    if kind == "prefix":
        near = (d >= 0) | (k < p["prefix"])
    if kind == "dilated":
        near &= d % p["dilation"] == 0
    if kind == "strided" and "stride_keys" in p:
        near |= k % p["stride"] >= p["stride"] - p["stride_keys"]
    elif kind == "strided":
        near |= d % p["stride"] == 0
    near |= k < p.get("global_tokens", p.get("global_keys", 0))
    near |= q < p.get("global_tokens", p.get("global_queries", 0))
    return keep & near


def has_more(name: str, parameters: Parameters) -> bool:
    """Whether there is more to the mask than its parameters."""
    return "block" in name or "bigbird" in name or "global_positions" in parameters


def window(left: int | None, right: int | None, queries: int, keys: int, offset: int = 0) -> Mask:
    q, k = axes(queries, keys)
    d = q + offset - k
    keep: Mask = (d <= (left if left is not None else queries + keys)) & (
        -d <= (right if right is not None else queries + keys)
    )
    return keep


def longformer(size: int, left: int, right: int, tokens: int) -> Mask:
    q, k = axes(size, size)
    return window(left, right, size, size) | (q < tokens) | (k < tokens)


def bigbird(blocks: int, block: int, seed: int = 0, further: int = 2) -> Mask:
    """Window of three blocks, one global block, some random blocks in each row."""
    coarse = longformer(blocks, 1, 1, 1)
    rng = np.random.default_rng(seed)
    for row in range(1, blocks):
        coarse[row, rng.integers(0, blocks, further)] = True
    return coarse.repeat(block, 0).repeat(block, 1)


Q100, K100 = axes(100, 100)
TRIANGLE = Q100 >= K100
START = {"alignment": "start"}
END = {"alignment": "end"}

FOUND: dict[str, tuple[Mask, str, Parameters]] = {
    "causal": (window(None, 0, 50, 50), "causal", START),
    "causal, longer": (window(None, 0, 50, 80), "causal", START),
    "causal at the end": (window(None, 0, 50, 80, 30), "causal", END),
    "causal, rows without keys": (window(None, 0, 80, 50, -30), "causal", END),
    "causal window": (
        window(9, 0, 100, 100),
        "causal_sliding_window",
        {"window_left": 9, "window_right": 0, **START},
    ),
    "causal window at the end": (
        window(9, 0, 40, 100, 60),
        "causal_sliding_window",
        {"window_left": 9, "window_right": 0, **END},
    ),
    "window": (
        window(5, 8, 100, 70),
        "sliding_window",
        {"window_left": 5, "window_right": 8, **START},
    ),
    "symmetric window at the end": (
        window(5, 5, 70, 100, 30),
        "sliding_window",
        {"window_left": 5, "window_right": 5, **END},
    ),
    "one side": (window(5, None, 100, 100), "sliding_window", {"window_left": 5, **START}),
    "prefix": (TRIANGLE | (K100 < 13), "prefix", {"prefix": 13, **START}),
    "chunks": (Q100 // 16 == K100 // 16, "chunked", {"chunk": 16, **START}),
    "causal chunks": (
        TRIANGLE & (Q100 // 16 == K100 // 16),
        "causal+chunked",
        {"chunk": 16, **START},
    ),
    "chunks before": (
        (Q100 // 10 >= K100 // 10) & (Q100 // 10 - K100 // 10 <= 2),
        "chunked",
        {"chunk": 10, "chunks_left": 2, "chunks_right": 0, **START},
    ),
    "causal by chunks": (
        Q100 // 10 >= K100 // 10,
        "chunked",
        {"chunk": 10, "chunks_right": 0, **START},
    ),
    "documents": (
        np.searchsorted([10, 45, 60], Q100, "right")
        == np.searchsorted([10, 45, 60], K100, "right"),
        "block_diagonal",
        {"blocks": 4},
    ),
    "causal documents": (
        TRIANGLE
        & (np.searchsorted([10, 45], Q100, "right") == np.searchsorted([10, 45], K100, "right")),
        "causal+block_diagonal",
        {"blocks": 3},
    ),
    "dilated": (
        window(12, 12, 100, 100) & ((Q100 - K100) % 3 == 0),
        "dilated",
        {"window_left": 12, "window_right": 12, "dilation": 3, **START},
    ),
    "causal dilated": (
        window(12, 0, 100, 100) & ((Q100 - K100) % 4 == 0),
        "dilated",
        {"window_left": 12, "window_right": 0, "dilation": 4, **START},
    ),
    "dilated everywhere": ((Q100 - K100) % 4 == 0, "dilated", {"dilation": 4, **START}),
    "strided": (
        TRIANGLE & ((Q100 - K100 < 8) | ((Q100 - K100) % 8 == 0)),
        "causal+strided",
        {"window_left": 7, "stride": 8, **START},
    ),
    "strided both ways": (
        window(3, 2, 100, 100) | ((Q100 - K100) % 8 == 0),
        "strided",
        {"window_left": 3, "window_right": 2, "stride": 8, **START},
    ),
    "fixed": (
        TRIANGLE & ((Q100 // 16 == K100 // 16) | (K100 % 16 >= 14)),
        "causal+strided",
        {"chunk": 16, "stride": 16, "stride_keys": 2, **START},
    ),
    "fixed both ways": (
        (Q100 // 16 == K100 // 16) | (K100 % 16 == 15),
        "strided",
        {"chunk": 16, "stride": 16, "stride_keys": 1, **START},
    ),
    "longformer": (
        longformer(100, 4, 4, 2),
        "longformer",
        {"window_left": 4, "window_right": 4, "global_tokens": 2, **START},
    ),
    "global keys": (
        window(4, 4, 100, 100) | (K100 < 2),
        "longformer",
        {"window_left": 4, "window_right": 4, "global_keys": 2, **START},
    ),
    "sinks": (
        TRIANGLE & (window(4, 0, 100, 100) | (K100 < 2)),
        "causal+longformer",
        {"window_left": 4, "global_keys": 2, **START},
    ),
    "global tokens anywhere": (
        window(4, 4, 100, 100) | np.isin(K100, [0, 50]) | np.isin(Q100, [0, 50]),
        "longformer",
        {
            "window_left": 4,
            "window_right": 4,
            "global_tokens": 2,
            "global_positions": "0, 50",
            **START,
        },
    ),
    "longformer in blocks": (
        longformer(12, 1, 1, 1).repeat(16, 0).repeat(16, 1),
        "longformer",
        {"chunk": 16, "chunks_left": 1, "chunks_right": 1, "global_tokens": 16, **START},
    ),
}

MISSED: dict[str, Mask] = {
    "everything": np.ones((64, 64), np.bool_),
    "nothing": np.zeros((64, 64), np.bool_),
    "noise": np.random.default_rng(1).random((100, 100)) < 0.5,
    "every second key": np.broadcast_to(K100 % 2 == 0, (100, 100)).copy(),
    "the first keys of the own chunk": (Q100 // 10 == K100 // 10) & (K100 % 10 < 7),
    "an anti-diagonal": Q100 + K100 < 100,
    "the second of three": (Q100 - K100) % 3 == 1,
    "two windows": window(2, 2, 100, 100) | window(-20, 22, 100, 100),
    "a window and one block, no globals": window(2, 2, 96, 96)
    | np.pad(np.ones((32, 32), np.bool_), ((64, 0), (0, 64))),
    "a longformer and noise": longformer(128, 4, 4, 2)
    | (np.random.default_rng(1).random((128, 128)) < 0.02),
    "a longformer with too many blocks": longformer(128, 4, 4, 2)
    | (np.add.outer(np.arange(128) // 16, np.arange(128) // 16) % 2 == 0),
}


@pytest.mark.parametrize("case", FOUND.values(), ids=list(FOUND))
def test_structure_is_found(case: tuple[Mask, str, Parameters]) -> None:
    keep, name, parameters = case
    assert named(keep) == (name, parameters)
    if not has_more(name, parameters):
        assert (rebuilt(name, parameters, *keep.shape) == keep).all()


@pytest.mark.parametrize("keep", MISSED.values(), ids=list(MISSED))
def test_near_misses_are_not_named(keep: Mask) -> None:
    assert named(keep) is None


@pytest.mark.parametrize("case", FOUND.values(), ids=list(FOUND))
@given(st.data())
@settings(max_examples=15, deadline=None)
def test_one_other_pair_is_never_overlooked(
    case: tuple[Mask, str, Parameters], data: st.DataObject
) -> None:
    keep, name, parameters = case
    changed = keep.copy()
    place = tuple(data.draw(st.integers(0, size - 1)) for size in keep.shape)
    changed[place] ^= True
    found = named(changed)
    if found is not None and not has_more(*found):
        assert found != (name, parameters)
        assert (rebuilt(*found, *keep.shape) == changed).all()


sizes = st.integers(20, 140)


@given(sizes, sizes, st.data())
@settings(max_examples=200, deadline=None)
def test_what_is_named_rebuilds_the_mask(queries: int, keys: int, data: st.DataObject) -> None:
    q, k = axes(queries, keys)
    left, right = data.draw(st.integers(0, 30)), data.draw(st.integers(-3, 30))
    tokens = data.draw(st.integers(0, 6))
    step = data.draw(st.integers(2, 20))
    pick = data.draw(
        st.sampled_from(["window", "dilated", "strided", "chunked", "fixed", "globals"])
    )
    offset = data.draw(st.sampled_from([0, keys - queries]))
    near = window(left, right, queries, keys, offset)
    keep = {
        "window": near,
        "dilated": near & ((q - k) % step == 0),
        "strided": near | ((q - k) % step == 0),
        "chunked": (q // step <= k // step + left // 8) & (k // step <= q // step + tokens % 3),
        "fixed": (q // step == k // step) | (k % step >= step - 1),
        "globals": near | (k < tokens) | (q < tokens),
    }[pick]
    if data.draw(st.booleans()):
        keep = keep & (q >= k)
    found = named(keep)
    if found is not None and not has_more(*found):
        assert (rebuilt(*found, queries, keys) == keep).all(), found


def test_stripes_join_seamlessly(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = {name: named(keep) for name, (keep, *_) in FOUND.items()}
    monkeypatch.setattr("stof_onnx.ir.mask.constant_structure._STRIPE_PAIRS", 1)
    monkeypatch.setattr("stof_onnx.ir.mask.constant_unions._STRIPE_ROWS", 16)
    assert {name: named(keep) for name, (keep, *_) in FOUND.items()} == expected


@pytest.mark.parametrize("block", [16, 64])
def test_bigbird(block: int) -> None:
    keep = bigbird(20, block)
    known = longformer(20, 1, 1, 1).repeat(block, 0).repeat(block, 1)
    share = round(float((keep & ~known).mean()), 4)
    assert named(keep) == (
        "bigbird",
        {
            "chunk": block,
            "chunks_left": 1,
            "chunks_right": 1,
            "global_tokens": block,
            "block_size": block,
            "random_share": share,
            **START,
        },
    )


def test_bigbird_with_a_window_of_tokens() -> None:
    keep = longformer(256, 5, 5, 3)
    keep[64:96, 192:224] = keep[160:192, 32:64] = True
    found = named(keep)
    assert found is not None
    assert found[0] == "bigbird"
    assert (found[1]["window_left"], found[1]["global_tokens"]) == (5, 3)
    assert found[1]["block_size"] == 32
    keep[70, 200] = False
    assert named(keep) is None


def test_random_blocks_may_differ_from_head_to_head() -> None:
    heads = np.stack([bigbird(20, 16, seed) for seed in range(3)])
    one = named(heads[0])
    found = named(heads)
    assert one is not None
    assert found is not None
    assert found[0] == "bigbird"
    assert {**found[1], "random_share": 0} == {**one[1], "random_share": 0}


def test_heads_of_other_structure_are_arbitrary() -> None:
    causal, near = window(None, 0, 64, 64), window(3, 3, 64, 64)
    assert named(np.stack([causal, causal])) == ("causal", START)
    assert named(np.stack([causal, near])) is None
    assert named(np.stack([bigbird(20, 16), bigbird(10, 32)])) is None


# ---- through classify -------------------------------------------------------------------------

AT_END = sub(add(Q_INDEX, KEYS), QUERIES)


def program(load: Any, shape: tuple[int, int, int]) -> MaskProgram:
    operand = Operand("table", "block_table", 3, shape, (64, 64))
    padding = Operand("padding", "tensor", 2)
    return MaskProgram(load, operands=(operand, padding))


def of_table(keep: Mask, load: Any) -> MaskKind:
    found = program(load, (1, *keep.shape))
    table = BlockTable.from_dense(keep)
    kind = classify(found, {"table": table})
    assert kind == classify(found, {"table": table.to_dense()})
    assert classify(found).parameters == {**classify(found).parameters, "table": "100x100"}
    return kind


def test_classify_reads_tables() -> None:
    load = Load("table", (integer(0), Q_INDEX, K_INDEX), "bool")
    padding = Load("padding", (B_INDEX, K_INDEX), "bool")
    assert of_table(TRIANGLE, load) == MaskKind("causal", {**START, "table": "100x100"})
    assert of_table(~TRIANGLE, not_(load)).name == "causal"
    assert of_table(TRIANGLE, and_(load, padding)).name == "causal+padding"
    assert of_table(MISSED["noise"], load) == MaskKind("arbitrary", {"table": "100x100"})
    assert of_table(longformer(100, 4, 4, 2), load).parameters["global_tokens"] == 2


def test_a_buffer_cut_at_the_end_is_aligned_there() -> None:
    load = Load("table", (integer(0), AT_END, K_INDEX), "bool")
    assert of_table(TRIANGLE, load) == MaskKind("causal", {**END, "table": "100x100"})


@pytest.mark.parametrize(
    "index",
    [
        (integer(0), K_INDEX, Q_INDEX),
        (integer(0), Q_INDEX, add(K_INDEX, H_INDEX)),
        (integer(0), add(Q_INDEX, integer(1)), K_INDEX),
    ],
    ids=["transposed", "moved by head", "moved"],
)
def test_tables_read_elsewhere_are_arbitrary(index: Any) -> None:
    assert of_table(TRIANGLE, Load("table", index, "bool")).name == "arbitrary"
