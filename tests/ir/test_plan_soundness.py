"""The rules of docs/plan.md: for each the last value that is sound and the first that isn't."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from stof_onnx.ir.errors import MalformedNodeError
from stof_onnx.ir.plan import (
    Cover,
    Float32,
    Int32,
    Quantity,
    Range,
    decode,
    encode,
    from_json,
    to_json,
)
from stof_onnx.ir.plan.codec import pack, unpack
from stof_onnx.ir.plan.soundness import check_document
from tests.ir.plan_strategies import (
    NEAR_MISSES,
    Path,
    attention_plan,
    unchecked,
    with_value,
)


@pytest.mark.parametrize(("path", "sound", "unsound", "message"), NEAR_MISSES, ids=str)
def test_a_rule_holds_exactly(path: Path, sound: Any, unsound: Any, message: str) -> None:
    document = with_value(path, sound)
    check_document(document)
    decode(unchecked(document))

    broken = with_value(path, unsound)
    with pytest.raises(MalformedNodeError) as checked:
        check_document(broken)
    assert str(checked.value).startswith(f"a plan with {message}")
    assert str(checked.value).endswith("run `stof-onnx optimize` again")
    with pytest.raises(MalformedNodeError) as decoded:
        decode(unchecked(broken))
    assert str(decoded.value) == str(checked.value)


def replaced(**changes: Any) -> Any:
    return dataclasses.replace(attention_plan(), **changes)


def with_launch(**changes: Any) -> Any:
    plan = attention_plan()
    variant = plan.variants[0]
    bucket = variant.buckets[1]
    launch = dataclasses.replace(bucket.launches[0], **changes)
    bucket = dataclasses.replace(bucket, launches=(launch,))
    variant = dataclasses.replace(variant, buckets=(bucket,))
    return dataclasses.replace(plan, variants=(variant,))


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (replaced(checks=(Range("Sz", 0, 1),)), "of symbol 'Sz'; wanted B, H, Sq, Sk, rows, mask"),
        (replaced(covers=(Cover("Sz", Quantity.of(1)),)), "of symbol 'Sz'; wanted B, H"),
        (replaced(covers=(Cover("H", Quantity.of("Sz")),)), "of symbol 'Sz'; wanted B, H"),
        (replaced(symbols=()), "of symbol 'H'; wanted none, as it has no symbols"),
        (replaced(output_types=()), "outputs 0"),
        (replaced(operator="Größe"), "operator 'Größe'; wanted printable ASCII"),
        (with_launch(shared=Quantity.of("Sz")), "of symbol 'Sz'"),
        (with_launch(shared=Quantity.of(2**63)), "factor 9223372036854775808; wanted -922"),
        (with_launch(arguments=(Int32(Quantity.of("Sz")),)), "of symbol 'Sz'"),
        (with_launch(arguments=(Float32(float("nan")),)), "value 'nan'"),
        (with_launch(block=(32, 32, 2)), "block 32 x 32 x 2; wanted at most 1024 threads"),
        (with_launch(block=(32, 1)), "block [32, 1]; wanted three values"),
        (with_launch(block=(32.0, 1, 1)), "block[0] 32.0; wanted an integer"),
        (with_launch(block=(True, 1, 1)), "block[0] True; wanted an integer"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_unsound_plan_is_not_written(plan: Any, message: str) -> None:
    for write in (encode, to_json):
        with pytest.raises(MalformedNodeError) as caught:
            write(plan)
        assert message in str(caught.value)


RECORD = to_json(attention_plan())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": None}, "plan of version None"),
        ({"version": "1"}, "plan of version 1; wanted 1"),
        ({"extra": 1}, "the payload of ['checks', 'covers', 'extra'"),
        ({"images": None}, "images None; wanted a list"),
        ({"images": ["?"]}, "images that can't be read"),
        ({"images": [1]}, "images that can't be read"),
        ({"images": ["é"]}, "images that can't be read"),
        ({"images": []}, "kernels[0].image 0; wanted a number below 0"),
        ({"symbols": None}, "symbols None; wanted a list"),
        ({"symbols": [None]}, "symbols[0] None; wanted the fields name"),
        ({"types": [True, 1, 1, 1]}, "types[0] True; wanted an integer"),
        ({"types": ["1", 1, 1, 1]}, "types[0] '1'; wanted an integer"),
        ({"checks": [{"symbol": 0, "min": 0}]}, "checks[0] of ['min', 'symbol']; wanted the"),
        ({"checks": [{"symbol": "B", "min": 0, "max": 1}]}, "checks[0].symbol 'B'"),
        ({"covers": None}, "covers None; wanted a list"),
        ({"covers": [{"symbol": 0}]}, "covers[0] of ['symbol']; wanted the fields symbol, length"),
        ({"covers": [{"symbol": 0, "length": 1}]}, "covers[0].length 1; wanted a list"),
        ({"operator": b"x"}, "operator b'x'"),
    ],
    ids=str,
)
def test_json_of_another_form_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(MalformedNodeError) as caught:
        from_json({**RECORD, **changes})
    assert message in str(caught.value)


def test_json_without_a_field_is_refused() -> None:
    for name in RECORD:
        record = {key: value for key, value in RECORD.items() if key != name}
        with pytest.raises(MalformedNodeError):
            from_json(record)


_BUCKET: Path = ("variants", 0, "buckets", 0)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ((*_BUCKET, "tactic"), ["tile"]),
        ((*_BUCKET, "tactic"), {"tile": float("nan")}),
        ((*_BUCKET, "tactic"), {"tile": object()}),
        ((*_BUCKET, "tactic"), {1: 2}),
        ((*_BUCKET, "launches", 0, "arguments", 0), None),
        ((*_BUCKET, "launches", 0, "arguments", 0, "kind"), "pointer"),
        ((*_BUCKET, "launches", 0, "arguments", 0, "kind"), ["input"]),
        ((*_BUCKET, "launches", 0, "arguments", 0, "kind"), "f32"),
        ((*_BUCKET, "launches", 0, "arguments", 5, "value"), 1.0),
        ((*_BUCKET, "launches", 0, "arguments", 5, "value"), "1e39"),
        ((*_BUCKET, "launches", 0, "arguments", 5, "value"), "one"),
        (("variants", 0, "match"), "any"),
        (("variants", 0, "kernels", 0, "kind"), 0),
    ],
    ids=str,
)
def test_a_document_of_another_form_is_refused(path: Path, value: Any) -> None:
    with pytest.raises(MalformedNodeError, match=r"a plan with variants\[0\]"):
        check_document(with_value(path, value))


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[]", b"1", b'{"a": 1}', b'{"b":1,"a":1}', b'{"a":1,"a":1}', b'{"a":NaN}',
     b'{"a":' + b"[" * 5000, b'{"a":' + b"9" * 5000 + b"}", b'{"a":"\xc3\xa9"}'],
    ids=lambda text: text[:20],
)  # fmt: skip
def test_a_tactic_is_the_canonical_text_of_a_json_object(text: bytes) -> None:
    document = with_value((*_BUCKET, "tactic"), {"here": 1})
    old = b'{"here":1}'
    payload = unpack(unchecked(document))
    size = len(old).to_bytes(4, "little") + old
    assert payload.count(size) == 1
    changed = pack(payload.replace(size, len(text).to_bytes(4, "little") + text))
    with pytest.raises(MalformedNodeError, match=r"buckets\[0\].tactic .* keys sorted"):
        decode(changed)
