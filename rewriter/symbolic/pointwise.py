"""Element rules of operators that compute each element from the inputs' elements."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto

from stof_onnx.ir.expr import Const, Expr, Load, Op, Poly, loads
from stof_onnx.ir.expr import build as b
from stof_onnx.ir.expr.bounds import is_nonnegative, is_positive
from stof_onnx.rewriter.symbolic.indexing import broadcast_index
from stof_onnx.rewriter.symbolic.registry import Index, Node, Unliftable, element

if TYPE_CHECKING:
    from stof_onnx.rewriter.symbolic.graph import SymbolicGraph

_WIDE_INTEGERS = {TensorProto.INT64, TensorProto.INT32}
_FLOATS = {
    TensorProto.FLOAT,
    TensorProto.FLOAT16,
    TensorProto.BFLOAT16,
    TensorProto.DOUBLE,
}
# Arithmetic in other integer types wraps early; index arithmetic doesn't use them.
_WIDE_DTYPES = ("int64", "int32")


def operands(sym: SymbolicGraph, node: Node, index: Index) -> list[Expr]:
    """Elements of all inputs, broadcast to the output's index."""
    return [sym.value(tensor, broadcast_index(index, sym.shape(tensor))) for tensor in node.inputs]


def _pointwise(
    *op_types: str,
) -> Callable[[Callable[..., Expr]], Callable[..., Expr]]:
    def register(compute: Callable[..., Expr]) -> Callable[..., Expr]:
        def rule(sym: SymbolicGraph, node: Node, position: int, index: Index) -> Expr:
            result = compute(*operands(sym, node, index))
            if result.kind == "int" and not _is_wide(node):
                raise Unliftable(f"{node.op} in a narrow integer type")
            return _half_numbers(result) if _is_half(node) else result

        element(*op_types)(rule)
        return compute

    return register


def _is_wide(node: Node) -> bool:
    dtype = node.outputs[0].dtype
    try:
        return dtype is None or np.dtype(dtype).name in _WIDE_DTYPES
    except TypeError:
        return False


def _is_half(node: Node) -> bool:
    dtype = node.outputs[0].dtype
    try:
        return dtype is not None and np.dtype(dtype) == np.float16
    except TypeError:
        return False


def _half_numbers(value: Expr) -> Expr:
    """The numbers that a selection is between, as float16 holds them."""
    if isinstance(value, Const) and value.kind == "float":
        with np.errstate(over="ignore"):
            return Const(float(np.float16(value.value)))
    if isinstance(value, Op) and value.name == "where":
        condition, yes, no = value.args
        return b.where(condition, _half_numbers(yes), _half_numbers(no))
    return value


def _is_float(*values: Expr) -> bool:
    return any(value.kind == "float" for value in values)


def _need_int(op_type: str, *values: Expr) -> None:
    if any(value.kind != "int" for value in values):
        raise Unliftable(f"{op_type} on run-time floats")


def _need_ordered(op_type: str, *values: Expr) -> None:
    """Order is read off a difference, which run-time integers could overflow."""
    _need_int(op_type, *values)
    if any(loads(value) for value in values):
        raise Unliftable(f"{op_type} on run-time integers")


@_pointwise("Add")
def add(left: Expr, right: Expr) -> Expr:
    """Sum."""
    return b.fadd(left, right) if _is_float(left, right) else b.add(left, right)


@_pointwise("Sub")
def sub(left: Expr, right: Expr) -> Expr:
    """Difference."""
    return b.fsub(left, right) if _is_float(left, right) else b.sub(left, right)


@_pointwise("Mul")
def mul(left: Expr, right: Expr) -> Expr:
    """Product."""
    return b.fmul(left, right) if _is_float(left, right) else b.mul(left, right)


@_pointwise("Neg")
def neg(value: Expr) -> Expr:
    """Negation."""
    return b.fmul(Const(-1.0), value) if _is_float(value) else b.neg(value)


@_pointwise("Div")
def div(left: Expr, right: Expr) -> Expr:
    """Quotient: of constants, or of integers for which truncation is floor."""
    if isinstance(left, Const) and isinstance(right, Const) and _is_float(left, right):
        with np.errstate(all="ignore"):
            return Const(float(np.float32(left.value) / np.float32(right.value)))
    _need_int("Div", left, right)
    if not (is_nonnegative(Poly.of(left)) and is_positive(Poly.of(right))):
        raise Unliftable("Div of integers that may be negative")
    return b.floordiv(left, right)


@_pointwise("Sqrt")
def sqrt(value: Expr) -> Expr:
    """Square root of a constant (scale factors computed in the graph)."""
    if not isinstance(value, Const) or value.value < 0:
        raise Unliftable("Sqrt of a run-time value")
    return Const(float(np.sqrt(np.float32(value.value))))


@_pointwise("Pow")
def power(base: Expr, exponent: Expr) -> Expr:
    """Power of constants."""
    if not isinstance(base, Const) or not isinstance(exponent, Const):
        raise Unliftable("Pow of a run-time value")
    return Const(float(np.float32(base.value) ** np.float32(exponent.value)))


@_pointwise("Reciprocal")
def reciprocal(value: Expr) -> Expr:
    """Reciprocal of a constant."""
    return div(Const(1.0), value)


@element("Mod")
def mod(sym: SymbolicGraph, node: Node, position: int, index: Index) -> Expr:
    """Integer remainder with the divisor's sign (fmod=0)."""
    left, right = operands(sym, node, index)
    _need_int("Mod", left, right)
    if node.attrs.get("fmod", 0):
        raise Unliftable("Mod with fmod=1")
    return b.mod(left, right)


@_pointwise("Abs")
def absolute(value: Expr) -> Expr:
    """Magnitude."""
    _need_int("Abs", value)
    return b.absolute(value)


@_pointwise("Min")
def minimum(*values: Expr) -> Expr:
    """Smallest."""
    _need_int("Min", *values)
    result = values[0]
    for value in values[1:]:
        result = b.minimum(result, value)
    return result


@_pointwise("Max")
def maximum(*values: Expr) -> Expr:
    """Largest."""
    _need_int("Max", *values)
    result = values[0]
    for value in values[1:]:
        result = b.maximum(result, value)
    return result


@_pointwise("Equal")
def equal(left: Expr, right: Expr) -> Expr:
    """Equality; of floats where both sides are trees of constants."""
    if _is_float(left, right):
        return _compare_leaves("Equal", operator.eq, left, right)
    return b.eq(left, right)


@_pointwise("Less")
def less(left: Expr, right: Expr) -> Expr:
    """left < right."""
    if _is_float(left, right):
        return _compare_leaves("Less", operator.lt, left, right)
    _need_ordered("Less", left, right)
    return b.gt(right, left)


@_pointwise("LessOrEqual")
def less_or_equal(left: Expr, right: Expr) -> Expr:
    """left <= right."""
    if _is_float(left, right):
        return _compare_leaves("LessOrEqual", operator.le, left, right)
    _need_ordered("LessOrEqual", left, right)
    return b.ge(right, left)


@_pointwise("Greater")
def greater(left: Expr, right: Expr) -> Expr:
    """left > right."""
    return less(right, left)


@_pointwise("GreaterOrEqual")
def greater_or_equal(left: Expr, right: Expr) -> Expr:
    """left >= right."""
    return less_or_equal(right, left)


def _compare_leaves(
    op_type: str, compare: Callable[[float, float], bool], left: Expr, right: Expr
) -> Expr:
    """A comparison of floats that are selections between constants."""
    if isinstance(left, Op) and left.name == "where":
        condition, yes, no = left.args
        return b.where(
            condition,
            _compare_leaves(op_type, compare, yes, right),
            _compare_leaves(op_type, compare, no, right),
        )
    if isinstance(right, Op) and right.name == "where":
        condition, yes, no = right.args
        return b.where(
            condition,
            _compare_leaves(op_type, compare, left, yes),
            _compare_leaves(op_type, compare, left, no),
        )
    if isinstance(left, Const) and isinstance(right, Const):
        return Const(bool(compare(left.value, right.value)))
    if op_type == "Equal":
        for value, number in ((left, right), (right, left)):
            if isinstance(number, Const):
                return b.equals_number(value, float(number.value))
    raise Unliftable(f"{op_type} on run-time floats")


@_pointwise("And")
def and_(left: Expr, right: Expr) -> Expr:
    """Conjunction."""
    return b.and_(left, right)


@_pointwise("Or")
def or_(left: Expr, right: Expr) -> Expr:
    """Disjunction."""
    return b.or_(left, right)


@_pointwise("Xor")
def xor(left: Expr, right: Expr) -> Expr:
    """Exclusive or."""
    return b.not_(b.eq(left, right))


@_pointwise("Not")
def not_(value: Expr) -> Expr:
    """Negation."""
    return b.not_(value)


@_pointwise("Where")
def where(condition: Expr, yes: Expr, no: Expr) -> Expr:
    """Selection."""
    return b.where(condition, yes, no)


@element("Cast")
def cast(sym: SymbolicGraph, node: Node, position: int, index: Index) -> Expr:
    """Conversion between kinds; narrow float types round their constants."""
    (value,) = operands(sym, node, index)
    target = node.attrs["to"]
    if not isinstance(target, int):
        target = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(target))
    if target == TensorProto.BOOL:
        return b.to_bool(value)
    if target in _WIDE_INTEGERS or (target not in _FLOATS and _is_zero_one(value)):
        return b.to_int(value)
    if target not in _FLOATS:
        raise Unliftable("Cast to a narrow integer type")
    result = b.to_float(value)
    return _round_half(sym, result) if target == TensorProto.FLOAT16 else result


def _is_zero_one(value: Expr) -> bool:
    """Whether a value is 0 or 1, which every integer type holds."""
    if isinstance(value, Op) and value.name == "where":
        return all(_is_zero_one(arg) for arg in value.args[1:])
    return value.kind == "bool" or (isinstance(value, Const) and value.value in (0, 1))


def _round_half(sym: SymbolicGraph, value: Expr) -> Expr:
    if isinstance(value, Const):
        return _half_numbers(value)
    if isinstance(value, Op) and value.name == "where":
        condition, yes, no = value.args
        return b.where(condition, _round_half(sym, yes), _round_half(sym, no))
    if isinstance(value, Op) and value.name == "float" and isinstance(value.args[0], Load):
        # A padding mask: its numbers are small.
        sym.narrowed.add(value.args[0].source)
        return value
    raise Unliftable("a run-time float rounded to float16")
