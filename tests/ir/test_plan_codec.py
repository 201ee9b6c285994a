"""Plans to bytes and JSON and back; damage is always one clear error."""

from __future__ import annotations

import json
import pickle
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from stof_onnx.ir.errors import MalformedNodeError
from stof_onnx.ir.plan import (
    Float32,
    Plan,
    Tactic,
    as_array,
    as_tensor,
    decode,
    encode,
    from_json,
    plan_bytes_of,
    to_json,
)
from stof_onnx.ir.plan.codec import pack, unpack
from stof_onnx.ir.plan.documents import to_document
from tests.ir.plan_strategies import Damage, attention_plan, damages, plans, unchecked

ENCODED = encode(attention_plan())
PAYLOAD = unpack(ENCODED)
HEADER = struct.Struct("<8sIIQII")


# ---------------------------------------------------------------------------------- round trips


@given(plans())
def test_bytes_round_trip(plan: Plan) -> None:
    data = encode(plan)
    again = decode(data)
    assert again == plan
    assert encode(again) == data


@given(plans())
def test_json_round_trips(plan: Plan) -> None:
    text = json.dumps(to_json(plan), allow_nan=False)
    again = from_json(json.loads(text))
    assert again == plan
    assert json.dumps(to_json(again), allow_nan=False) == text


@given(plans())
def test_plans_hash_and_pickle(plan: Plan) -> None:
    assert pickle.loads(pickle.dumps(plan)) == plan
    assert hash(decode(encode(plan))) == hash(plan)


def test_images_and_kernels_are_stored_once() -> None:
    plan = attention_plan()
    document = to_json(plan)
    assert [len(variant["kernels"]) for variant in document["variants"]] == [3, 3, 3]
    assert len(document["images"]) == 2 * 3 + 1  # "combine" is one for all
    assert PAYLOAD.count(b"combine") == 1 + 3 * 2  # and the names of the kernels


def test_unused_kernels_and_images_are_dropped() -> None:
    document = to_document(attention_plan())
    document["images"].append(b"unused")
    document["variants"][0]["kernels"].append(document["variants"][0]["kernels"][0])
    assert decode(unchecked(document)) == attention_plan()


def test_floats_are_rounded_to_32_bits() -> None:
    assert Float32(0.1).value == float(np.float32(0.1))
    assert Float32(1e300).value == float("inf")
    assert Float32(-1e300).value == float("-inf")


def test_tactics_are_frozen_mappings() -> None:
    tactic = Tactic({"tile": (64, 32), "stages": 2})
    assert tactic.text == '{"stages":2,"tile":[64,32]}'
    assert list(tactic) == ["stages", "tile"]
    assert tactic["tile"] == [64, 32]
    tactic["tile"].append(1)
    assert dict(tactic) == {"stages": 2, "tile": [64, 32]}
    assert {tactic} == {Tactic({"stages": 2, "tile": [64, 32]})}
    with pytest.raises(TypeError):
        Tactic({"tile": object()})
    with pytest.raises(ValueError, match="Out of range"):
        Tactic({"scale": float("nan")})


# ------------------------------------------------------------------------------------- envelope


def envelope(payload: bytes = PAYLOAD, **changes: object) -> bytes:
    fields = {
        "magic": b"STOFPLAN",
        "version": 1,
        "compression": 1,
        "size": len(payload),
        "checksum": zlib.crc32(payload),
        "reserved": 0,
        "compressed": pack(payload)[HEADER.size :],
        **changes,
    }
    compressed = fields.pop("compressed")
    return HEADER.pack(*fields.values()) + compressed


def test_envelope_is_as_documented() -> None:
    assert envelope() == ENCODED
    assert decode(envelope()) == attention_plan()


def raw_deflate(payload: bytes, **options: int) -> bytes:
    compressor = zlib.compressobj(wbits=-15, **options)
    return compressor.compress(payload) + compressor.flush()


@pytest.mark.parametrize("level", [0, 1, 6])
def test_any_deflate_stream_is_read(level: int) -> None:
    assert decode(envelope(compressed=raw_deflate(PAYLOAD, level=level))) == attention_plan()


DAMAGED_ENVELOPES = {
    "empty": (b"", "a plan of 0 bytes that starts with b''; wanted b'STOFPLAN'"),
    "magic": (envelope(magic=b"STOFPLAM"), "starts with b'STOFPLAM'"),
    "magic alone": (b"STOFPLAN", "a plan of 8 bytes"),
    "cut in the version": (ENCODED[:11], "a plan of 11 bytes"),
    "cut in the header": (ENCODED[:31], "the header of 31 bytes; wanted 32"),
    "header alone": (ENCODED[:32], "a payload of 4"),
    "version 0": (envelope(version=0), "plan of version 0; wanted 1"),
    "compression": (envelope(compression=0), "compression 0; wanted 1"),
    "reserved": (envelope(reserved=1), "the last word of the header 1; wanted 0"),
    "size less": (envelope(size=len(PAYLOAD) - 1), "that yield more than"),
    "size more": (envelope(size=len(PAYLOAD) + 1), "compressed bytes that yield"),
    "size 0": (envelope(size=0), "that yield more than 0 bytes"),
    "size over the limit": (envelope(size=2**30 + 1), "at most 1073741824"),
    "size over the ratio": (envelope(size=1032 * (len(ENCODED) - 32) + 1), "and 1032 to 1"),
    "size of the ratio": (envelope(size=1032 * (len(ENCODED) - 32)), "that yield"),
    "size of all": (envelope(size=2**64 - 1), "at most 1073741824"),
    "CRC": (envelope(checksum=zlib.crc32(PAYLOAD) ^ 1), "the payload of CRC-32"),
    "stream cut": (ENCODED[:-1], "compressed bytes that yield"),
    "after the stream": (ENCODED + b"\0", "compressed bytes followed by 1"),
    "not a stream": (envelope(compressed=b"\xff" * 100), "compressed bytes that are damaged"),
    "zlib's header": (envelope(compressed=zlib.compress(PAYLOAD)), "compressed bytes"),
    "empty payload": (envelope(b""), "operator that needs 4 bytes where 0 are left"),
    "after the payload": (envelope(PAYLOAD + b"\0"), "the payload followed by 1 bytes"),
}


@pytest.mark.parametrize("name", DAMAGED_ENVELOPES)
def test_a_damaged_envelope_is_refused(name: str) -> None:
    data, message = DAMAGED_ENVELOPES[name]
    with pytest.raises(MalformedNodeError) as caught:
        decode(data)
    assert message in str(caught.value)
    assert "run `stof-onnx optimize` again" in str(caught.value)


@pytest.mark.parametrize("version", [2, 2**32 - 1])
def test_another_version_says_so_whatever_follows(version: int) -> None:
    message = f"plan of version {version}; wanted 1; run `stof-onnx optimize` again"
    for data in (envelope(version=version), struct.pack("<8sI", b"STOFPLAN", version)):
        with pytest.raises(MalformedNodeError) as caught:
            decode(data)
        assert str(caught.value) == message
    with pytest.raises(MalformedNodeError, match=f"^plan of version {version}; wanted 1; run"):
        from_json({**to_json(attention_plan()), "version": version})


@pytest.mark.parametrize("size", [2**30, 1032 * (len(ENCODED) - 32)])
def test_a_damaged_size_allocates_nothing(size: int) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(MalformedNodeError):
            decode(envelope(size=size))
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


# --------------------------------------------------------------------------------------- damage


def is_refused(data: bytes) -> bool:
    """Whether decode refuses, and by the right error."""
    try:
        decode(data)
    except MalformedNodeError:
        return True
    return False


def test_every_truncation_is_refused() -> None:
    assert all(is_refused(ENCODED[:size]) for size in range(len(ENCODED)))
    assert all(is_refused(pack(PAYLOAD[:size])) for size in range(len(PAYLOAD)))


def test_every_flipped_bit_of_the_envelope_is_refused() -> None:
    for at in range(8 * len(ENCODED)):
        data = bytearray(ENCODED)
        data[at // 8] ^= 1 << at % 8
        # DEFLATE has unused bits at its end, and what they are changes nothing.
        assert is_refused(bytes(data)) or decode(bytes(data)) == attention_plan(), at


@given(damages())
def test_damage_of_the_envelope_is_malformed_or_nothing(damage: Damage) -> None:
    data = damage(ENCODED)
    assert is_refused(data) or decode(data) == attention_plan()


@given(plans(), damages())
def test_damage_of_the_payload_is_malformed_or_another_sound_plan(
    plan: Plan, damage: Damage
) -> None:
    data = pack(damage(unpack(encode(plan))))
    if not is_refused(data):
        again = decode(data)
        assert decode(encode(again)) == again


@pytest.mark.parametrize("count", [2**32 - 1, 2**31, 10**6])
def test_a_damaged_count_allocates_nothing(count: int) -> None:
    names = b"".join(struct.pack("<I", len(text)) + text for text in (b"operator", b"producer"))
    payload = names + struct.pack("<3I", 1, 1, count) + b"\0" * 100
    with pytest.raises(MalformedNodeError, match=f"types of {count} elements where 100 bytes"):
        decode(pack(payload))


@given(st.binary(max_size=200))
def test_random_bytes_are_refused(data: bytes) -> None:
    assert is_refused(data)
    assert is_refused(pack(data))


# ------------------------------------------------------------------------------------ attribute


def test_the_attribute_is_an_int8_tensor() -> None:
    tensor = as_tensor(ENCODED)
    assert (tensor.name, tensor.data_type, list(tensor.dims)) == (
        "plan",
        TensorProto.INT8,
        [len(ENCODED)],
    )
    assert tensor.raw_data == ENCODED
    assert plan_bytes_of(tensor) == ENCODED
    assert plan_bytes_of(as_array(ENCODED)) == ENCODED
    unpacked = helper.make_tensor("plan", TensorProto.INT8, [3], [-1, 0, 1])
    assert plan_bytes_of(unpacked) == b"\xff\0\1"


@pytest.mark.parametrize(
    "value",
    [
        np.frombuffer(ENCODED, np.uint8),
        np.frombuffer(ENCODED, np.int8)[None],
        numpy_helper.from_array(np.frombuffer(ENCODED, np.uint8)),
        numpy_helper.from_array(np.frombuffer(ENCODED, np.int8)[None]),
        TensorProto(data_type=TensorProto.INT8, dims=[5], raw_data=b"1234"),
        "STOFPLAN",
        None,
    ],
    ids=["uint8", "rank 2", "uint8 tensor", "tensor of rank 2", "short", "text", "none"],
)
def test_another_attribute_is_refused(value: object) -> None:
    with pytest.raises(MalformedNodeError, match="wanted INT8 of rank 1"):
        plan_bytes_of(value)
