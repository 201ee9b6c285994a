"""The layout of a plan's payload, as the table in docs/plan.md.

Reader, writer and the checks of types and bounds follow from it; the rules between fields are
in :mod:`stof_onnx.ir.plan.soundness`.
"""

from __future__ import annotations

from stof_onnx.ir.plan.layout import (
    I64,
    U32,
    Blob,
    Choice,
    Float,
    Integer,
    JsonObject,
    ListOf,
    Name,
    OneOf,
    PowerOfTwo,
    Record,
    Three,
)
from stof_onnx.ir.plan.records import DataType

_MAX_RANK = 8  # of a tensor in TensorRT

_POSITIVE = Integer("I", 1, 2**32 - 1)
_BYTE_OFFSET = Integer("q", 0, 2**63 - 1)
_ALIGNMENT = PowerOfTwo()
_SOURCE = Choice(("input", "output"))
_QUANTITY = ListOf(
    Record(
        factor=I64,
        parts=ListOf(Record(symbol=U32, divisor=Integer("q", 1, 2**63 - 1))),
    )
)
_TENSOR_POINTER = Record(tensor=U32, offset=_BYTE_OFFSET, alignment=_ALIGNMENT)
_INTEGER_ARGUMENT = Record(value=_QUANTITY)
_RANGES = ListOf(Record(symbol=U32, min=I64, max=I64))

_LAUNCH = Record(
    kernel=U32,
    grid=Three(_QUANTITY),
    block=Three(_POSITIVE),
    shared=_QUANTITY,
    arguments=ListOf(
        OneOf(
            input=_TENSOR_POINTER,
            output=_TENSOR_POINTER,
            workspace=Record(offset=_QUANTITY, alignment=_ALIGNMENT),
            i32=_INTEGER_ARGUMENT,
            i64=_INTEGER_ARGUMENT,
            f32=Record(value=Float()),
        )
    ),
)

_VARIANT = Record(
    target=Name(),
    major=U32,
    minor=U32,
    match=Choice(("exact", "minor", "newer")),
    kernels=ListOf(
        Record(
            template=Name(),
            entry=Name(),
            kind=Choice(("cubin", "ptx")),
            image=U32,
            registers=U32,
            static_shared=U32,
            max_dynamic_shared=U32,
        )
    ),
    buckets=ListOf(
        Record(
            ranges=_RANGES,
            tactic=JsonObject(),
            workspace=_QUANTITY,
            launches=ListOf(_LAUNCH, at_least=1),
        ),
        at_least=1,
    ),
)

PLAN = Record(
    operator=Name(),
    producer=Name(),
    inputs=U32,
    outputs=_POSITIVE,
    types=ListOf(Integer("I", 0, max(DataType))),
    symbols=ListOf(
        Record(
            name=Name(),
            source=_SOURCE,
            tensor=U32,
            axes=ListOf(Integer("I", 0, _MAX_RANK - 1), at_least=1),
        )
    ),
    checks=_RANGES,
    covers=ListOf(Record(symbol=U32, length=_QUANTITY)),
    images=ListOf(Blob()),
    variants=ListOf(_VARIANT, at_least=1),
)
"""The payload, field by field as in docs/plan.md."""
