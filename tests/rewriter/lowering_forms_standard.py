"""Forms of ONNX Attention."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from onnx import TensorProto

from tests.rewriter.lowering_forms import (
    LOWEST,
    PRESENT,
    Dim,
    Form,
    In,
    Values,
    hidden_rows,
    lengths,
    zero_one,
)

_LENGTHS = ({"B": 2, "S": 5, "L": 7}, {"B": 1, "S": 6, "L": 3}, {"B": 3, "S": 4, "L": 4})
_CACHED = ({"B": 2, "S": 3, "P": 4, "T": 7}, {"B": 1, "S": 1, "P": 6, "T": 7})
_FRESH = ({"B": 2, "S": 4, "P": 0, "T": 4},)


def _qkv(
    heads: int = 2, kv_heads: int = 2, keys: Dim = "L", dtype: str = "float32", value: int = 4
) -> dict[str, In | None]:
    return {
        "Q": In(("B", heads, "S", 4), dtype),
        "K": In(("B", kv_heads, keys, 4), dtype),
        "V": In(("B", kv_heads, keys, value), dtype),
    }


def _flat(
    heads: int = 2, kv_heads: int = 2, keys: Dim = "L", value: int = 4
) -> dict[str, In | None]:
    return {
        "Q": In(("B", "S", heads * 4)),
        "K": In(("B", keys, kv_heads * 4)),
        "V": In(("B", keys, kv_heads * value)),
    }


def _standard(inputs: Mapping[str, In | None], **options: Any) -> Form:
    options.setdefault("sizes", _LENGTHS)
    names = {"opset", "sizes", "oracle", "outputs"}
    given = {name: value for name, value in options.items() if name in names}
    rest = {name: value for name, value in options.items() if name not in names}
    return Form(inputs, rest, **given)


def _mask(*dims: Dim, dtype: str = "bool", values: Values = zero_one) -> dict[str, In | None]:
    return {"mask": In(dims, dtype, values)}


def _past(kv_heads: int = 2, value: int = 4) -> dict[str, In | None]:
    return {
        "past_key": In(("B", kv_heads, "P", 4)),
        "past_value": In(("B", kv_heads, "P", value)),
    }


_NO_MASK: dict[str, In | None] = {"mask": None}
_NO_PAST: dict[str, In | None] = {"mask": None, "past_key": None, "past_value": None}
_NONPAD = {**_NO_PAST, "nonpad": In(("B",), "int64", lengths(0, "L"))}
_FLOAT_MASK = {"dtype": "float32", "values": hidden_rows(-math.inf)}
_HALF = {"dtype": "float16"}

STANDARD: dict[str, Form] = {
    "4d": _standard(_qkv()),
    "3d": _standard(_flat(), q_num_heads=2, kv_num_heads=2),
    "one head": _standard(_qkv(1, 1)),
    "value dim": _standard(_qkv(value=3)),
    "3d value dim": _standard(_flat(value=6), q_num_heads=2, kv_num_heads=2),
    "gqa 4d": _standard(_qkv(6, 2)),
    "gqa 3d": _standard(_flat(6, 3), q_num_heads=6, kv_num_heads=3),
    "mqa 3d": _standard(_flat(4, 1), q_num_heads=4, kv_num_heads=1),
    "scale": _standard(_qkv(), scale=0.3),
    "softcap": _standard(_qkv(), softcap=0.7),
    "softcap and mask": _standard({**_qkv(), **_mask("S", "L")}, softcap=0.7),
    "bool mask 2d": _standard({**_qkv(), **_mask("S", "L")}),
    "bool mask 3d": _standard({**_qkv(), **_mask(2, "S", "L")}),
    "bool mask 4d": _standard({**_qkv(), **_mask("B", 1, "S", "L")}),
    "bool mask with heads": _standard({**_qkv(), **_mask("B", 2, "S", "L")}),
    "bool mask 1d": _standard({**_qkv(), **_mask("L")}, oracle="reference"),
    "bool padding": _standard({**_qkv(), **_mask("B", 1, 1, "L")}, oracle="reference"),
    "float mask": _standard({**_qkv(), **_mask("S", "L", **_FLOAT_MASK)}),
    "float mask 4d": _standard({**_qkv(), **_mask("B", 2, "S", "L", **_FLOAT_MASK)}),
    "lowest float mask": _standard(
        {**_qkv(), **_mask("S", "L", dtype="float32", values=hidden_rows(LOWEST))},
        oracle="reference",
    ),
    "int mask": _standard({**_qkv(), **_mask("S", "L", dtype="int64")}),
    "causal": _standard(_qkv(), is_causal=1),
    "causal 3d": _standard(_flat(), is_causal=1, q_num_heads=2, kv_num_heads=2),
    "causal self": _standard(_qkv(keys="S"), is_causal=1),
    "causal and bool mask": _standard({**_qkv(), **_mask("B", 1, "S", "L")}, is_causal=1),
    "causal and float mask": _standard({**_qkv(), **_mask("S", "L", **_FLOAT_MASK)}, is_causal=1),
    "past": _standard({**_qkv(keys="S"), **_NO_MASK, **_past()}, outputs=PRESENT, sizes=_CACHED),
    "past 3d": _standard(
        {**_flat(keys="S"), **_NO_MASK, **_past()},
        outputs=PRESENT,
        sizes=_CACHED,
        q_num_heads=2,
        kv_num_heads=2,
    ),
    "past causal": _standard(
        {**_qkv(keys="S"), **_NO_MASK, **_past()},
        outputs=PRESENT,
        sizes=(*_CACHED, *_FRESH),
        is_causal=1,
    ),
    "past causal gqa": _standard(
        {**_qkv(4, 2, "S", value=3), **_NO_MASK, **_past(value=3)},
        outputs=PRESENT,
        sizes=_CACHED,
        is_causal=1,
    ),
    "past causal 3d gqa": _standard(
        {**_flat(4, 2, "S"), **_NO_MASK, **_past()},
        outputs=PRESENT,
        sizes=_CACHED,
        is_causal=1,
        q_num_heads=4,
        kv_num_heads=2,
    ),
    "past and mask": _standard(
        {**_qkv(keys="S"), **_mask("B", 1, "S", "T"), **_past()}, outputs=PRESENT, sizes=_CACHED
    ),
    "past causal and float mask": _standard(
        {**_qkv(keys="S"), **_mask("S", "T", **_FLOAT_MASK), **_past()},
        outputs=PRESENT,
        sizes=_CACHED,
        is_causal=1,
    ),
    "past, present unused": _standard(
        {**_qkv(keys="S"), **_NO_MASK, **_past()},
        outputs=("Y", "", ""),
        sizes=_CACHED,
        is_causal=1,
        oracle="reference",
    ),
    "present without past": _standard(_qkv(), outputs=PRESENT),
    "present without past 3d": _standard(_flat(), outputs=PRESENT, q_num_heads=2, kv_num_heads=2),
    "softmax in float": _standard(_qkv(), softmax_precision=TensorProto.FLOAT),
    "softmax in double": _standard(
        _qkv(), softmax_precision=TensorProto.DOUBLE, oracle="reference"
    ),
    "half": _standard(_qkv(**_HALF)),
    "half, softmax in float": _standard(
        _qkv(**_HALF), softmax_precision=TensorProto.FLOAT, is_causal=1
    ),
    "half and bool mask": _standard({**_qkv(**_HALF), **_mask("S", "L")}),
    "half and float mask": _standard(
        {**_qkv(**_HALF), **_mask("S", "L", dtype="float16", values=hidden_rows(-math.inf))}
    ),
    "opset 24": _standard(_qkv(), opset=24, is_causal=1),
    "opset 24 mask": _standard({**_qkv(), **_mask("B", 1, "S", "L")}, opset=24),
    "nonpad": _standard({**_qkv(), **_NONPAD}, opset=24),
    "nonpad 3d": _standard({**_flat(), **_NONPAD}, opset=24, q_num_heads=2, kv_num_heads=2),
    "nonpad and mask": _standard({**_qkv(), **_NONPAD, **_mask("B", 1, "S", "L")}, opset=24),
    "nonpad causal": _standard({**_qkv(), **_NONPAD}, opset=24, is_causal=1, oracle="reference"),
    "nonpad causal and mask": _standard(
        {**_qkv(), **_NONPAD, **_mask("B", 1, "S", "L")},
        opset=24,
        is_causal=1,
        oracle="reference",
    ),
    "short bool mask": _standard(
        {**_qkv(), **_mask("S", "M")},
        opset=24,
        oracle="reference",
        sizes=({"B": 2, "S": 5, "L": 7, "M": 4}, {"B": 2, "S": 3, "L": 4, "M": 4}),
    ),
    "short float mask": _standard(
        {**_qkv(keys=7), **_mask("B", 1, "S", 4, **_FLOAT_MASK)},
        opset=24,
        oracle="reference",
        sizes=({"B": 2, "S": 5},),
    ),
    "short mask and nonpad": _standard(
        {**_qkv(), **_NONPAD, **_mask("S", "M")},
        opset=24,
        oracle="reference",
        sizes=({"B": 2, "S": 5, "L": 7, "M": 4},),
    ),
    "window": _standard(
        _qkv(), opset=25, left_window_size=2, right_window_size=1, oracle="reference"
    ),
    "left window": _standard(
        _qkv(keys="S"), opset=25, left_window_size=1, is_causal=1, oracle="reference"
    ),
    "right window": _standard(_qkv(), opset=25, right_window_size=1, oracle="reference"),
    "window with past": _standard(
        {**_qkv(keys="S"), **_NO_MASK, **_past()},
        outputs=PRESENT,
        sizes=_CACHED,
        opset=25,
        left_window_size=2,
        is_causal=1,
        oracle="reference",
    ),
    "window and nonpad": _standard(
        {**_qkv(), **_NONPAD},
        opset=25,
        left_window_size=1,
        right_window_size=1,
        oracle="reference",
    ),
}
