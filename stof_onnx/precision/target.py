"""The types a model can be lowered to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from onnx import TensorProto

PrecisionName = Literal["float16", "bfloat16"]


@dataclass(frozen=True)
class Precision:
    """A floating-point type of 16 bits.

    Attributes:
        name: "float16" or "bfloat16".
        elem_type: number of the type in ONNX.
        largest: its largest finite number.
        short: how NVIDIA's tools call it.
    """

    name: PrecisionName
    elem_type: int
    largest: float
    short: Literal["fp16", "bf16"]


FLOAT16 = Precision("float16", TensorProto.FLOAT16, 65504.0, "fp16")
BFLOAT16 = Precision("bfloat16", TensorProto.BFLOAT16, float(2.0**128 - 2.0**120), "bf16")
PRECISIONS: dict[PrecisionName, Precision] = {p.name: p for p in (FLOAT16, BFLOAT16)}
