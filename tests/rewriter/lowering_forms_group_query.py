"""Forms of com.microsoft GroupQueryAttention."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tests.rewriter.lowering_forms import (
    LOWEST,
    PRESENT,
    Form,
    In,
    Sizes,
    Values,
    cosines,
    full,
    hidden_rows,
    lengths,
    some_positions,
)

_PROMPT = ({"B": 2, "S": 5, "T": 5}, {"B": 3, "S": 4, "T": 4})
_GROWING = ({"B": 1, "S": 3, "P": 4, "T": 7}, {"B": 2, "S": 1, "P": 4, "T": 5})
_EMPTY_CACHE = ({"B": 2, "S": 4, "P": 0, "T": 4},)
_BUFFER = (
    {"B": 2, "S": 1, "P": 9, "T": 6},
    {"B": 1, "S": 3, "P": 9, "T": 6},
    {"B": 2, "S": 4, "P": 9, "T": 4},
)


def _gqa(
    *,
    query: Mapping[str, In | None] | None = None,
    heads: tuple[int, int] = (4, 2),
    head_dim: int = 16,
    past: bool = False,
    seqlens: Values | None = None,
    caches: int = 0,
    positions: bool = False,
    attention_bias: In | None = None,
    sink: bool = False,
    dtype: str = "float32",
    outputs: Sequence[str] = PRESENT,
    sizes: Sequence[Sizes] = (),
    **attributes: Any,
) -> Form:
    each, kv = heads[0] * head_dim, heads[1] * head_dim
    cache = In(("B", heads[1], "P", head_dim), dtype) if past else None
    table = In((16, caches), dtype, cosines) if caches else None
    given: dict[str, In | None] = {
        "query": In(("B", "S", each), dtype),
        "key": In(("B", "S", kv), dtype),
        "value": In(("B", "S", kv), dtype),
        **(query or {}),
        "past_key": cache,
        "past_value": cache,
        "seqlens_k": In(("B",), "int32", seqlens or full("T", 1)),
        "total_sequence_length": In((), "int32", full("T")),
        "cos_cache": table,
        "sin_cache": table,
        "position_ids": In(("B", "S"), "int64", some_positions) if positions else None,
        "attention_bias": attention_bias,
        "head_sink": In((heads[0],), dtype) if sink else None,
    }
    return Form(
        given,
        {"num_heads": heads[0], "kv_num_heads": heads[1], **attributes},
        outputs,
        "com.microsoft::GroupQueryAttention",
        opset=13,
        sizes=sizes or (_GROWING if past else _PROMPT),
    )


_RAGGED = lengths(1, "T", minus=1)
_PACKED = {"query": In(("B", "S", 8 * 16)), "key": None, "value": None}
_ROTARY = {"caches": 8, "do_rotary": 1}
_ONE_NEW = ({"B": 3, "S": 1, "P": 6, "T": 7},)

GROUP_QUERY: dict[str, Form] = {
    "prompt": _gqa(),
    "prompt, present unused": _gqa(outputs=("Y",)),
    "prompt, ragged": _gqa(seqlens=_RAGGED),
    "all heads": _gqa(heads=(2, 2)),
    "one key head": _gqa(heads=(4, 1)),
    "packed": _gqa(query=_PACKED),
    "scale": _gqa(scale=0.4),
    "softcap": _gqa(softcap=0.5),
    "window": _gqa(local_window_size=2),
    "window of one": _gqa(local_window_size=1),
    "wide window": _gqa(local_window_size=100),
    "sink": _gqa(sink=True),
    "smooth softmax": _gqa(smooth_softmax=1),
    "smooth softmax, window": _gqa(smooth_softmax=1, local_window_size=2),
    "not causal": _gqa(causal=0),
    "not causal, ragged": _gqa(causal=0, seqlens=_RAGGED),
    "attention_bias": _gqa(attention_bias=In(("B", 4, "S", "T"))),
    "attention_bias, shared": _gqa(attention_bias=In((1, 1, "S", "T"))),
    "attention_bias, lowest": _gqa(
        attention_bias=In((1, 1, "S", "T"), values=hidden_rows(LOWEST, rows=2))
    ),
    "attention_bias, -inf": _gqa(
        attention_bias=In(("B", 1, "S", "T"), values=hidden_rows(-math.inf, rows=2))
    ),
    "attention_bias, softcap": _gqa(attention_bias=In(("B", 1, "S", "T")), softcap=0.5),
    "empty cache": _gqa(past=True, sizes=_EMPTY_CACHE),
    "empty cache, ragged": _gqa(past=True, sizes=_EMPTY_CACHE, seqlens=_RAGGED),
    "growing cache": _gqa(past=True),
    "growing cache, ragged": _gqa(past=True, sizes=_ONE_NEW, seqlens=_RAGGED),
    "growing cache, not causal": _gqa(past=True, sizes=_ONE_NEW, seqlens=_RAGGED, causal=0),
    "growing cache, window": _gqa(past=True, local_window_size=3),
    "growing cache, ragged, window": _gqa(
        past=True, sizes=_ONE_NEW, seqlens=_RAGGED, local_window_size=3
    ),
    "growing cache, attention_bias": _gqa(past=True, attention_bias=In((1, 4, "S", "T"))),
    "static cache": _gqa(past=True, sizes=_BUFFER),
    "static cache, ragged": _gqa(past=True, sizes=_BUFFER[:1], seqlens=_RAGGED),
    "static cache, ragged prompt": _gqa(past=True, sizes=_BUFFER[2:], seqlens=_RAGGED),
    "static cache, attention_bias": _gqa(
        past=True, sizes=_BUFFER, attention_bias=In(("B", 1, "S", "T"))
    ),
    "rotary": _gqa(**_ROTARY),
    "rotary, interleaved": _gqa(**_ROTARY, rotary_interleaved=1),
    "rotary, part of the channels": _gqa(head_dim=32, caches=8, do_rotary=1),
    "rotary, part, interleaved": _gqa(head_dim=32, caches=8, do_rotary=1, rotary_interleaved=1),
    "rotary, packed": _gqa(query=_PACKED, **_ROTARY),
    "rotary, ragged": _gqa(seqlens=_RAGGED, **_ROTARY),
    "rotary, cache": _gqa(past=True, **_ROTARY),
    "rotary, cache, ragged": _gqa(past=True, sizes=_ONE_NEW, seqlens=_RAGGED, **_ROTARY),
    "rotary, static cache": _gqa(past=True, sizes=_BUFFER, **_ROTARY),
    "rotary, position_ids": _gqa(positions=True, **_ROTARY),
    "rotary, position_ids, cache": _gqa(past=True, positions=True, **_ROTARY),
    "rotary, position_ids, empty cache": _gqa(
        past=True, positions=True, sizes=_EMPTY_CACHE, **_ROTARY
    ),
    "caches without do_rotary": _gqa(caches=8),
    "half": _gqa(dtype="float16"),
    "half, rotary, cache": _gqa(dtype="float16", past=True, **_ROTARY),
}
