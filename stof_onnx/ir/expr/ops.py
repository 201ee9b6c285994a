"""The table of expression operations: one line each.

Integer sums and products are kept as polynomials (see ``poly``), so ``add`` and
``mul`` appear only in the canonical order that ``poly`` writes. Adding an operation
takes one line here and a constructor in ``build``; evaluation, text, the ONNX form and
the CUDA form follow from the columns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from stof_onnx.ir.expr.node import Kind

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class OpInfo:
    """One operation.

    Attributes:
        kind: of the result; None means "the kind of the last argument".
        takes: kind of every argument; None means "a bool and two of one kind".
        numpy: evaluates it on broadcastable arrays.
        onnx: ONNX operator of the same meaning on tensors; "" where the emitter
            writes more than one operator.
        cuda: C++ of the same meaning on two arguments (one, or three), written with the
            functions of plugins/kernels/mask_algebra.cuh, which take elements and ranges.
        text: format string with one ``{}`` an argument, "" for infix operators.
        infix: the separator of an operator with any number of arguments.
    """

    kind: Kind | None
    takes: Kind | None
    numpy: Callable[..., Array]
    onnx: str
    cuda: str
    text: str = ""
    infix: str = ""


def _fold(function: Callable[[Array, Array], Array]) -> Callable[..., Array]:
    def folded(*args: Array) -> Array:
        result = args[0]
        for arg in args[1:]:
            result = function(result, arg)
        return result

    return folded


OPS: dict[str, OpInfo] = {
    # integers
    "add": OpInfo("int", "int", _fold(np.add), "Add", "{} + {}", infix=" + "),
    "mul": OpInfo("int", "int", _fold(np.multiply), "Mul", "{} * {}", infix=" * "),
    "floordiv": OpInfo(
        "int", "int", np.floor_divide, "", "stof::floordiv({}, {})", text="({} // {})"
    ),
    "mod": OpInfo("int", "int", np.mod, "Mod", "stof::modulo({}, {})", text="({} % {})"),
    "abs": OpInfo("int", "int", np.abs, "Abs", "stof::absolute({})", text="|{}|"),
    "min": OpInfo("int", "int", np.minimum, "Min", "stof::minimum({}, {})", text="min({}, {})"),
    "max": OpInfo("int", "int", np.maximum, "Max", "stof::maximum({}, {})", text="max({}, {})"),
    # predicates on one integer
    "ge0": OpInfo(
        "bool", "int", lambda x: np.greater_equal(x, 0), "", "stof::ge0({})", text="{} >= 0"
    ),
    "eq0": OpInfo("bool", "int", lambda x: np.equal(x, 0), "", "stof::eq0({})", text="{} == 0"),
    # booleans
    "and": OpInfo(
        "bool", "bool", _fold(np.logical_and), "And", "stof::both({}, {})", infix=" and "
    ),
    "or": OpInfo("bool", "bool", _fold(np.logical_or), "Or", "stof::either({}, {})", infix=" or "),
    "not": OpInfo("bool", "bool", np.logical_not, "Not", "stof::negated({})", text="not {}"),
    # any kind
    "where": OpInfo(
        None, None, np.where, "Where", "stof::select({}, {}, {})", text="({1} if {0} else {2})"
    ),
    # floats
    "fadd": OpInfo("float", "float", np.add, "Add", "{} + {}", text="({} + {})"),
    "fmul": OpInfo("float", "float", np.multiply, "Mul", "{} * {}", text="({} * {})"),
    "float": OpInfo(
        "float",
        "int",
        lambda x: np.asarray(x, np.float32),
        "",
        "static_cast<float>({})",
        text="float({})",
    ),
}
