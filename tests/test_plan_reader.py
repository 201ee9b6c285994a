"""The plugin's reader of plans, against Python's: both accept and refuse the same bytes."""

from __future__ import annotations

import ctypes
import dataclasses
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stof_onnx import plugin_library
from stof_onnx.ir.errors import MalformedNodeError, MissingDependencyError
from stof_onnx.ir.plan import Plan, decode, encode
from stof_onnx.ir.plan.codec import pack, unpack
from tests.ir.plan_strategies import (
    NEAR_MISSES,
    Damage,
    Path,
    attention_plan,
    damages,
    plans,
    unchecked,
    with_value,
)
from tests.ir.test_plan_golden import golden_bytes

ENCODED = encode(attention_plan())


def load_reader() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(str(plugin_library.path()))
        library.stof_check_plan.argtypes = (ctypes.c_char_p, ctypes.c_int64)
        library.stof_check_plan.restype = ctypes.c_int32
        library.stof_last_error.argtypes = ()
        library.stof_last_error.restype = ctypes.c_char_p
    except MissingDependencyError:
        pytest.skip("stof-onnx isn't installed here: no plugin library", allow_module_level=True)
    except AttributeError as error:
        reason = f"the installed plugin library can't check plans: {error}"
        pytest.skip(reason, allow_module_level=True)
    return library


READER = load_reader()


def plugin_error(data: bytes) -> str:
    """Why the plugin refuses the bytes; "" if it accepts them."""
    if READER.stof_check_plan(data, len(data)) == 0:
        return ""
    message: bytes = READER.stof_last_error()
    assert message
    return message.decode("ascii", "backslashreplace")


def assert_same_verdict(data: bytes) -> None:
    try:
        decode(data)
        python = ""
    except MalformedNodeError as error:
        python = str(error)
    plugin = plugin_error(data)
    # Tactics are for people: the plugin doesn't parse them.
    if "].tactic" in python and "JSON" in python:
        return
    assert bool(plugin) == bool(python), f"the plugin says {plugin!r}, Python {python!r}"


@given(plans())
def test_sound_plans_are_accepted(plan: Plan) -> None:
    assert plugin_error(encode(plan)) == ""


@pytest.mark.parametrize(("path", "sound", "unsound", "message"), NEAR_MISSES, ids=str)
def test_both_refuse_the_near_misses(path: Path, sound: Any, unsound: Any, message: str) -> None:
    assert plugin_error(unchecked(with_value(path, sound))) == ""
    refusal = plugin_error(unchecked(with_value(path, unsound)))
    assert "run `stof-onnx optimize` again" in refusal, message


def test_the_golden_plan_is_accepted() -> None:
    assert plugin_error(golden_bytes()) == ""


def test_another_version_is_named_by_both() -> None:
    data = ENCODED[:8] + (7).to_bytes(4, "little") + ENCODED[12:]
    assert "version 7" in plugin_error(data)
    assert_same_verdict(data)


def test_truncated_envelopes_and_payloads_get_the_same_verdict() -> None:
    payload = unpack(ENCODED)
    for size in range(len(ENCODED)):
        assert plugin_error(ENCODED[:size])
    for size in range(0, len(payload), 7):
        assert plugin_error(pack(payload[:size]))


def test_every_flipped_bit_of_an_envelope_gets_the_same_verdict() -> None:
    for at in range(8 * len(ENCODED)):
        data = bytearray(ENCODED)
        data[at // 8] ^= 1 << at % 8
        assert_same_verdict(bytes(data))


@settings(max_examples=300)
@given(damages())
def test_damaged_envelopes_get_the_same_verdict(damage: Damage) -> None:
    assert_same_verdict(damage(ENCODED))


@settings(max_examples=300)
@given(plans(), st.lists(damages(), min_size=1, max_size=8))
def test_damaged_payloads_get_the_same_verdict(plan: Plan, changes: list[Damage]) -> None:
    # Size and CRC are made right again, so that the checks behind them are reached.
    payload = unpack(encode(plan))
    for damage in changes:
        assert_same_verdict(pack(damage(payload)))


def test_every_byte_of_a_payload_matters_alike() -> None:
    plan = attention_plan()
    payload = unpack(encode(dataclasses.replace(plan, variants=plan.variants[:1])))
    verdicts = set()
    for at in range(len(payload)):
        for value in (0, 2, 0xFF):
            changed = pack(payload[:at] + bytes([value]) + payload[at + 1 :])
            assert_same_verdict(changed)
            verdicts.add(bool(plugin_error(changed)))
    assert verdicts == {True, False}
