"""TensorRT's own plugin registry loads the library and creates plugins, on a CPU.

TensorRT's lean runtime has the registry and no builder. A registry belongs to a process, and so
do the libraries in it: every case has a process of its own. The library under test is that of the
installed package, or in the directory that STOF_TEST_PLUGIN_DIR names (a CMake build's
`plugins`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest

from stof_onnx import plugin_library
from stof_onnx.ir.mask.program import MaskProgram, Operand
from stof_onnx.ir.operators.mask_table import MaskTable
from stof_onnx.ir.operators.masked_attention import MaskedAttention, TensorLayout
from stof_onnx.ir.plan import (
    Bucket,
    DataType,
    Kernel,
    Launch,
    Plan,
    Quantity,
    Symbol,
    Tactic,
    TensorPointer,
    Variant,
    encode,
)
from stof_onnx.ir.target import Target

pytest.importorskip("tensorrt_lean_bindings")

ATTENTION, TABLE = "StofMaskedAttention", "StofMaskTable"
ONE = Quantity.of(1)

# Runs in the other process: a request on stdin, a JSON answer on the last line of stdout.
PROBE = r"""
import base64, ctypes, json, sys
import numpy as np

request = json.load(sys.stdin)
if request["before"]:  # loaded before TensorRT is
    ctypes.CDLL(request["before"])

import tensorrt_lean_bindings as trt

alive = []  # a PluginField doesn't keep its array
ARRAYS = {"INT32": np.int32, "INT64": np.int64, "FLOAT32": np.float32, "FLOAT64": np.float64}

def field(name, kind, value):
    if kind in ARRAYS:
        data = np.atleast_1d(np.array(value, ARRAYS[kind]))
    else:  # CHAR, INT8
        data = np.frombuffer(base64.b64decode(value), np.int8)
    alive.append(data)
    return trt.PluginField(name, data, getattr(trt.PluginFieldType, kind))

def create(registry, name, fields, phase):
    creator = registry.get_creator(name, "1", "stof")
    collection = trt.PluginFieldCollection([field(*f) for f in fields])
    plugin = creator.create_plugin("layer_7", collection, getattr(trt.TensorRTPhase, phase))
    if plugin is None:
        return None
    kinds = {}
    for kind in ("CORE", "BUILD", "RUNTIME"):
        found = plugin.get_capability_interface(getattr(trt.PluginCapabilityType, kind))
        info = found.interface_info
        kinds[kind] = [info.kind, info.major, info.minor]
    return kinds

registry = trt.get_plugin_registry()
answer = {}
if request["load"]:
    answer["loaded"] = registry.load_library(request["load"]) is not None
for path in request["dlopen"]:
    ctypes.CDLL(path)
answer["creators"] = sorted(
    c.name for c in registry.all_creators
    if c.plugin_namespace == "stof" and c.plugin_version == "1"
)
if request["fields_of"]:
    creator = registry.get_creator(request["fields_of"], "1", "stof")
    answer["fields"] = {f.name: f.type.name for f in creator.field_names}
answer["created"] = [create(registry, *c) for c in request["create"]]
print(json.dumps(answer), flush=True)
"""


def library(name: str) -> str:
    """Path of the library under test."""
    directory = os.environ.get("STOF_TEST_PLUGIN_DIR")
    return str(Path(directory) / name if directory else plugin_library.path().with_name(name))


def plugins() -> str:
    return library(plugin_library.FILE_NAME)


def autoload() -> str:
    return library(plugin_library.AUTOLOAD_FILE_NAME)


def probe(
    *,
    load: str = "",
    dlopen: tuple[str, ...] = (),
    before: str = "",
    fields_of: str = "",
    create: tuple[Any, ...] = (),
) -> tuple[dict[str, Any], str]:
    """What another process found, and what it wrote to its error stream."""
    request = {
        "load": load,
        "dlopen": dlopen,
        "before": before,
        "fields_of": fields_of,
        "create": create,
    }
    done = subprocess.run(
        [sys.executable, "-c", PROBE],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer, done.stderr


def base64(data: bytes) -> str:
    return b64encode(data).decode("ascii")


def plan(operator: str, inputs: tuple[DataType, ...], outputs: tuple[DataType, ...]) -> bytes:
    """The smallest sound plan."""
    target = Target.parse("sm_80")
    kernel = Kernel("template", "entry", "cubin", b"image", 32, 0, 0)
    launch = Launch(kernel, (ONE, ONE, ONE), (32, 1, 1), Quantity(), (TensorPointer("output", 0),))
    bucket = Bucket((), Tactic({"tile_q": 64}), Quantity(), (launch,))
    return encode(
        Plan(
            operator=operator,
            producer="stof-onnx 0.1.0",
            input_types=inputs,
            output_types=outputs,
            symbols=(Symbol("B", "input", 0, (0,)),),
            checks=(),
            variants=(Variant.of(target, (bucket,)),),
        )
    )


def attention_plan(dtype: DataType = DataType.HALF) -> bytes:
    return plan(ATTENTION, (dtype, dtype, dtype, DataType.INT8), (dtype,))


def attention() -> MaskedAttention:
    rows = TensorLayout("BSHD", 0, 64)
    return MaskedAttention(
        num_heads=8,
        kv_num_heads=2,
        head_dim=64,
        value_head_dim=64,
        scale=0.125,
        query=rows,
        key=rows,
        value=rows,
        output="BSHD",
        output_rank=3,
        mask=MaskProgram(),
        dtype="float16",
    )


def table() -> MaskTable:
    program = MaskProgram(operands=(Operand("padding", "tensor", rank=2),))
    return MaskTable(program, 1, size_axes=((0, 0), (0, 1), (0, 1)), tile=(64, 64))


def as_field(value: int | float | str | list[int]) -> tuple[str, Any]:
    """An attribute as TensorRT's ONNX importer passes it: type and value."""
    if isinstance(value, str):
        return "CHAR", base64(value.encode())
    return ("FLOAT32" if isinstance(value, float) else "INT32"), value


def attention_fields(plan_data: bytes | None, **changes: tuple[str, Any]) -> list[list[Any]]:
    """A node's fields; a change to the type "" leaves one out."""
    values = {name: as_field(value) for name, value in attention().attributes().items()}
    values["key_layout"] = ("CHAR", base64(b"BSHD\0"))  # the importer may append a NUL
    if plan_data is not None:
        values["plan"] = ("INT8", base64(plan_data))
    values.update(changes)
    return [[name, *value] for name, value in values.items() if value[0]]


def table_fields(**changes: tuple[str, Any]) -> list[list[Any]]:
    values = {name: as_field(value) for name, value in table().attributes().items()}
    data = plan(TABLE, (DataType.INT8,), (DataType.INT32,) * 3)
    values["plan"] = ("INT8", base64(data))
    values.update(changes)
    return [[name, *value] for name, value in values.items()]


# What this node has none of.
OPTIONAL_FIELDS = [
    ["table", "INT32", None],
    ["softcap", "FLOAT32", None],
    ["sinks", "INT32", None],
]

KINDS = {
    "CORE": ["PLUGIN_V3ONE_CORE", 1, 0],
    "BUILD": ["PLUGIN_V3ONE_BUILD", 1, 0],
    "RUNTIME": ["PLUGIN_V3ONE_RUNTIME", 1, 0],
}


@pytest.mark.parametrize(
    ("operator", "fields"),
    [
        (ATTENTION, [*attention_fields(b""), *OPTIONAL_FIELDS]),
        (TABLE, table_fields()),
    ],
)
def test_load_library_registers_creators_of_all_attributes(
    operator: str, fields: list[list[Any]]
) -> None:
    answer, _ = probe(load=plugins(), fields_of=operator)
    assert answer["loaded"]
    assert answer["creators"] == [TABLE, ATTENTION]
    assert answer["fields"] == {name: kind for name, kind, _ in fields}


@pytest.mark.parametrize("phase", ["BUILD", "RUNTIME"])
def test_created_plugins_have_all_capabilities(phase: str) -> None:
    answer, log = probe(
        load=plugins(),
        create=(
            (ATTENTION, attention_fields(attention_plan()), phase),
            (TABLE, table_fields(), phase),
            (TABLE, table_fields(tile=("INT64", [8, 128]), num_heads=("INT64", 12)), phase),
        ),
    )
    assert answer["created"] == [KINDS] * 3
    assert "stof:" not in log


DAMAGED = bytearray(attention_plan())
DAMAGED[-1] ^= 0xFF

# Fields that are refused, and what the message says.
REFUSED: dict[str, tuple[list[list[Any]], str]] = {
    "no plan": (attention_fields(None), "stof-onnx optimize --target"),
    "damaged": (attention_fields(bytes(DAMAGED)), "stof-onnx optimize"),
    "empty": (attention_fields(b""), "stof-onnx optimize"),
    "of another operator": (
        attention_fields(plan(TABLE, (DataType.HALF,) * 3, (DataType.HALF,))),
        "made for StofMaskTable",
    ),
    "of another type": (attention_fields(attention_plan(DataType.FLOAT)), "type 0"),
    "of two inputs": (
        attention_fields(plan(ATTENTION, (DataType.HALF,) * 2, (DataType.HALF,))),
        "2 inputs",
    ),
    "of a mask of BOOL": (
        attention_fields(plan(ATTENTION, (*(DataType.HALF,) * 3, DataType.BOOL), (DataType.HALF,))),
        "mask operand 3",
    ),
    "plan as text": (attention_fields(None, plan=("CHAR", base64(b"x"))), "'plan'"),
    "unknown": (attention_fields(attention_plan(), speed=("INT32", 9)), "'speed'"),
    "missing": (attention_fields(attention_plan(), scale=("", None)), "'scale' is missing"),
    "list": (attention_fields(attention_plan(), num_heads=("INT32", [8, 8])), "'num_heads'"),
    "double": (attention_fields(attention_plan(), scale=("FLOAT64", 1.0)), "'scale'"),
    "layout": (
        attention_fields(attention_plan(), key_layout=("CHAR", base64(b"SBHD"))),
        "key_layout is 'SBHD'",
    ),
    "dtype": (
        attention_fields(attention_plan(), dtype=("CHAR", base64(b"int8"))),
        "dtype is 'int8'",
    ),
    "groups": (attention_fields(attention_plan(), kv_num_heads=("INT32", 3)), "multiple of"),
    "no heads": (attention_fields(attention_plan(), num_heads=("INT32", 0)), "num_heads is 0"),
    "rank": (attention_fields(attention_plan(), output_rank=("INT32", 5)), "output_rank is 5"),
    "flat BHSD": (
        attention_fields(attention_plan(), output_layout=("CHAR", base64(b"BHSD"))),
        "output_rank is 3",
    ),
}


def test_refused_attributes_are_named() -> None:
    create = tuple((ATTENTION, fields, "BUILD") for fields, _ in REFUSED.values())
    answer, log = probe(load=plugins(), create=create)
    assert answer["created"] == [None] * len(REFUSED)
    lines = [line for line in log.splitlines() if line.startswith("stof:")]
    assert len(lines) == len(REFUSED)
    for line, (case, (_, wanted)) in zip(lines, REFUSED.items(), strict=True):
        assert "node 'layer_7' (StofMaskedAttention)" in line, case
        assert wanted in line, case


def test_autoload_registers_when_loaded() -> None:
    answer, log = probe(
        dlopen=(autoload(),), create=((ATTENTION, attention_fields(attention_plan()), "BUILD"),)
    )
    assert answer["creators"] == [TABLE, ATTENTION]
    assert answer["created"] == [KINDS]
    assert "stof:" not in log


def test_both_libraries_in_one_process() -> None:
    answer, log = probe(load=plugins(), dlopen=(autoload(), autoload()))
    assert answer["creators"] == [TABLE, ATTENTION]
    assert "stof:" not in log


def test_autoload_says_that_tensorrt_is_missing() -> None:
    answer, log = probe(before=autoload())
    assert answer["creators"] == []
    assert log.count("stof:") == 1
    assert "no TensorRT is loaded" in log
