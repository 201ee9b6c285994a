"""Forms of com.microsoft Attention and MultiHeadAttention."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tests.rewriter.lowering_forms import (
    LOWEST,
    PRESENT,
    Dim,
    Form,
    In,
    Sizes,
    Values,
    lengths,
    zero_one,
)

_WORDS = ({"B": 2, "S": 5, "P": 3, "T": 8}, {"B": 3, "S": 2, "P": 1, "T": 3})
_WEIGHTS: dict[str, In | None] = {
    "X": In(("B", "S", 8)),
    "W": In((8, 24), fixed=True),
    "bias": In((24,), fixed=True),
}


def _ms(inputs: Mapping[str, In | None], **options: Any) -> Form:
    outputs = options.pop("outputs", ("Y",))
    sizes, tolerance = options.pop("sizes", _WORDS), options.pop("tolerance", 1e-6)
    attributes = {"num_heads": 2, **options}
    op = "com.microsoft::Attention"
    return Form(inputs, attributes, outputs, op, opset=13, sizes=sizes, tolerance=tolerance)


def _index(*dims: Dim, values: Values = zero_one) -> dict[str, In | None]:
    return {**_WEIGHTS, "mask_index": In(dims, "int32", values)}


_MS_PAST = {"past": In((2, "B", 2, "P", 4))}
_MS_NO_MASK: dict[str, In | None] = {**_WEIGHTS, "mask_index": None}
_MS_BIAS = {"past": None, "attention_bias": In(("B", 2, "S", "S"))}


def _ends_and_starts(rng: np.random.Generator, shape: list[int], sizes: Sizes) -> Any:
    ends = rng.integers(1, sizes["S"] + 1, shape[0] // 2)
    starts = rng.integers(0, sizes["S"] + 1, shape[0] // 2)
    return np.concatenate([ends, starts])


MS_ATTENTION: dict[str, Form] = {
    "plain": _ms(_WEIGHTS),
    "run-time weights": _ms({"X": In(("B", "S", 6)), "W": In((6, 24)), "bias": In((24,))}),
    "no bias": _ms({**_WEIGHTS, "bias": None}),
    "scale": _ms(_WEIGHTS, scale=0.3),
    "qkv_hidden_sizes": _ms(
        {"X": In(("B", "S", 6)), "W": In((6, 22)), "bias": In((22,))}, qkv_hidden_sizes=[8, 8, 6]
    ),
    "causal": _ms(_WEIGHTS, unidirectional=1),
    "padding": _ms(_index("B", "S"), tolerance=1e-4),
    "padding, lowest": _ms(_index("B", "S"), mask_filter_value=LOWEST),
    "padding, -inf": _ms(_index("B", "S"), mask_filter_value=-math.inf),
    "padding, -1e9": _ms(_index("B", "S"), mask_filter_value=-1e9),
    "padding, causal": _ms(_index("B", "S"), unidirectional=1, tolerance=1e-4),
    "padding, causal, lowest": _ms(_index("B", "S"), unidirectional=1, mask_filter_value=LOWEST),
    "padding, causal, -inf": _ms(_index("B", "S"), unidirectional=1, mask_filter_value=-math.inf),
    "negative padding": _ms(_index("B", "S", values=lambda *a: zero_one(*a) - 1)),
    "dummy padding": _ms(_index("B", 1)),
    "one token": _ms(
        {**_index("B", 1), "X": In(("B", 1, 8))}, sizes=({"B": 2},), mask_filter_value=LOWEST
    ),
    "ends": _ms(_index("B", values=lengths(0, "S"))),
    "ends, causal": _ms(_index("B", values=lengths(0, "S")), unidirectional=1),
    "ends and starts": _ms(
        {**_index(4, values=_ends_and_starts), "X": In((2, "S", 8))}, mask_filter_value=LOWEST
    ),
    "3d mask": _ms(_index("B", "S", "S")),
    "3d mask, causal, lowest": _ms(
        _index("B", "S", "S"), unidirectional=1, mask_filter_value=LOWEST
    ),
    "attention_bias": _ms({**_MS_NO_MASK, **_MS_BIAS}),
    "attention_bias, padding": _ms({**_index("B", "S"), **_MS_BIAS}, tolerance=1e-4),
    "attention_bias, padding, -1e6": _ms(
        {**_index("B", "S"), **_MS_BIAS}, mask_filter_value=-1e6, tolerance=1e-3
    ),
    "attention_bias, padding, lowest": _ms(
        {**_index("B", "S"), **_MS_BIAS}, mask_filter_value=LOWEST
    ),
    "attention_bias, padding, -1e31": _ms(
        {**_index("B", "S"), **_MS_BIAS}, mask_filter_value=-1e31
    ),
    "attention_bias of one head, causal": _ms(
        {**_MS_NO_MASK, "past": None, "attention_bias": In((1, 1, "S", "S"))}, unidirectional=1
    ),
    "past": _ms({**_MS_NO_MASK, **_MS_PAST}, outputs=("Y", "present")),
    "past, causal": _ms({**_MS_NO_MASK, **_MS_PAST}, outputs=("Y", "present"), unidirectional=1),
    "past, causal, padding": _ms(
        {**_index("B", "T"), **_MS_PAST}, outputs=("Y", "present"), unidirectional=1
    ),
    "past, ends": _ms(
        {**_index("B", values=lengths(1, "T")), **_MS_PAST}, outputs=("Y", "present")
    ),
    "present without past": _ms(_WEIGHTS, outputs=("Y", "present")),
}


_CROSS = ({"B": 2, "S": 4, "L": 6, "P": 3, "T": 9}, {"B": 1, "S": 5, "L": 2, "P": 1, "T": 3})
_MHA: dict[str, In | None] = {
    "query": In(("B", "S", 8)),
    "key": In(("B", "L", 8)),
    "value": In(("B", "L", 6)),
}
_MHA_SELF: dict[str, In | None] = {
    "query": In(("B", "S", 8)),
    "key": In(("B", "S", 8)),
    "value": In(("B", "S", 8)),
}
_MHA_PAST: dict[str, In | None] = {
    "past_key": In(("B", 2, "P", 4)),
    "past_value": In(("B", 2, "P", 4)),
}


def _mha(
    inputs: Mapping[str, In | None],
    *,
    bias: In | None = None,
    mask: In | None = None,
    attention_bias: In | None = None,
    past: Mapping[str, In | None] | None = None,
    outputs: Sequence[str] = ("Y",),
    sizes: Sequence[Sizes] = _CROSS,
    tolerance: float = 1e-6,
    **attributes: Any,
) -> Form:
    given = {
        **inputs,
        "bias": bias,
        "key_padding_mask": mask,
        "attention_bias": attention_bias,
        **(past or {}),
    }
    op = "com.microsoft::MultiHeadAttention"
    attributes = {"num_heads": 2, **attributes}
    return Form(given, attributes, outputs, op, opset=13, sizes=sizes, tolerance=tolerance)


_LONG = ({"B": 2, "S": 3, "L": 3, "P": 4, "T": 7}, {"B": 2, "S": 1, "L": 1, "P": 4, "T": 5})
_KEYS = In(("B", "L"), "int32", zero_one)
_HEADED: dict[str, In | None] = {
    "query": In(("B", "S", 8)),
    "key": In(("B", 2, "L", 4)),
    "value": In(("B", 2, "L", 4)),
}

MULTI_HEAD: dict[str, Form] = {
    "plain": _mha(_MHA),
    "scale": _mha(_MHA, scale=0.3),
    "bias": _mha(_MHA, bias=In((22,), fixed=True)),
    "run-time bias": _mha(_MHA, bias=In((22,))),
    "padding": _mha(_MHA, mask=_KEYS),
    "padding, lowest": _mha(_MHA, mask=_KEYS, mask_filter_value=LOWEST),
    "padding, -inf": _mha(_MHA, mask=_KEYS, mask_filter_value=-math.inf),
    "lengths": _mha(_MHA, mask=In(("B",), "int32", lengths(0, "L"))),
    "3d mask": _mha(_MHA, mask=In(("B", "S", "L"), "int32", zero_one)),
    "attention_bias": _mha(_MHA, attention_bias=In(("B", 2, "S", "L"))),
    "attention_bias, shared": _mha(_MHA, attention_bias=In((1, 1, "S", "L"))),
    "attention_bias, padding": _mha(_MHA, mask=_KEYS, attention_bias=In((1, 2, "S", "L"))),
    "attention_bias, padding, -1e6": _mha(
        _MHA, mask=_KEYS, attention_bias=In((1, 2, "S", "L")), mask_filter_value=-1e6
    ),
    "attention_bias, padding, lowest": _mha(
        _MHA, mask=_KEYS, attention_bias=In(("B", 1, "S", "L")), mask_filter_value=LOWEST
    ),
    "causal": _mha(_MHA_SELF, unidirectional=1),
    "causal, one query": _mha({**_MHA, "query": In(("B", 1, 8))}, unidirectional=1),
    "causal, padding": _mha(_MHA_SELF, unidirectional=1, mask=In(("B", "S"), "int32", zero_one)),
    "causal, padding, lowest": _mha(
        _MHA_SELF,
        unidirectional=1,
        mask=In(("B", "S"), "int32", zero_one),
        mask_filter_value=LOWEST,
    ),
    "key of rank 4": _mha(_HEADED),
    "key of rank 4, padding": _mha(_HEADED, mask=_KEYS),
    "present without past": _mha(_MHA_SELF, outputs=PRESENT),
    "past": _mha(_MHA_SELF, past=_MHA_PAST, outputs=PRESENT),
    "past, bias": _mha(_MHA_SELF, past=_MHA_PAST, outputs=PRESENT, bias=In((24,), fixed=True)),
    "past, causal": _mha(_MHA_SELF, past=_MHA_PAST, outputs=PRESENT, unidirectional=1, sizes=_LONG),
    "past, padding": _mha(
        _MHA_SELF,
        past=_MHA_PAST,
        outputs=PRESENT,
        mask=In(("B", "T"), "int32", zero_one),
        sizes=_LONG,
    ),
    "past, attention_bias": _mha(
        _MHA_SELF,
        past=_MHA_PAST,
        outputs=PRESENT,
        attention_bias=In((1, 2, "S", "T")),
        sizes=_LONG,
    ),
    "half": _mha({name: In(entry.dims, "float16") for name, entry in _MHA.items() if entry}),
}
