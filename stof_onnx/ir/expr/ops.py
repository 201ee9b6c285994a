"""The table of expression operations: one line each.

Integer sums and products are kept as polynomials (see ``poly``), so ``add`` and
``mul`` appear only in the canonical order that ``poly`` writes. Adding an operation
takes one line here and a constructor in ``build``; evaluation, text and the ONNX
form follow from the columns.
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
        numpy: evaluates it on broadcastable arrays.
        onnx: ONNX operator of the same meaning on tensors; "" where the emitter
            writes more than one operator.
        text: format string with one ``{}`` an argument, "" for infix operators.
        infix: the separator of an operator with any number of arguments.
    """

    kind: Kind | None
    numpy: Callable[..., Array]
    onnx: str
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
    "add": OpInfo("int", _fold(np.add), "Add", infix=" + "),
    "mul": OpInfo("int", _fold(np.multiply), "Mul", infix=" * "),
    "floordiv": OpInfo("int", np.floor_divide, "", text="({} // {})"),
    "mod": OpInfo("int", np.mod, "Mod", text="({} % {})"),
    "abs": OpInfo("int", np.abs, "Abs", text="|{}|"),
    "min": OpInfo("int", np.minimum, "Min", text="min({}, {})"),
    "max": OpInfo("int", np.maximum, "Max", text="max({}, {})"),
    # predicates on one integer
    "ge0": OpInfo("bool", lambda x: np.greater_equal(x, 0), "", text="{} >= 0"),
    "eq0": OpInfo("bool", lambda x: np.equal(x, 0), "", text="{} == 0"),
    # booleans
    "and": OpInfo("bool", _fold(np.logical_and), "And", infix=" and "),
    "or": OpInfo("bool", _fold(np.logical_or), "Or", infix=" or "),
    "not": OpInfo("bool", np.logical_not, "Not", text="not {}"),
    # any kind
    "where": OpInfo(None, np.where, "Where", text="({1} if {0} else {2})"),
    # floats
    "fadd": OpInfo("float", np.add, "Add", text="({} + {})"),
    "fmul": OpInfo("float", np.multiply, "Mul", text="({} * {})"),
    "float": OpInfo("float", lambda x: np.asarray(x, np.float32), "", text="float({})"),
}
