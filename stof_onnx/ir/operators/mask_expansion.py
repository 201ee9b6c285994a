"""Write a mask program's expressions as standard ONNX operators."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import TensorProto

from stof_onnx.ir.expr import Const, Expr, Load, Op, Var
from stof_onnx.ir.expr.ops import OPS, Array
from stof_onnx.ir.mask.program import H_INDEX, K_INDEX, Q_INDEX
from stof_onnx.ir.operators.builder import Builder

_INDEX_AXES = {"b": 0, "h": 1, "q": 2, "k": 3}
_AXIS_SIZES = ("B", "H", "Sq", "Sk")
_LOAD_TYPES = {"bool": TensorProto.BOOL, "int": TensorProto.INT64, "float": TensorProto.FLOAT}


class MaskEmitter:
    """Emits expressions as tensors that broadcast to [B, H, Sq, Sk].

    Integers become INT64, booleans BOOL, floats FLOAT.

    Args:
        builder: receives the operators.
        sizes: name of an INT64 tensor of shape [1] for each of B, H, Sq, Sk.
        tensors: name of the tensor of each "tensor" operand.
        tables: dense bool array [group, query, key] of each "block_table" operand.
    """

    def __init__(
        self,
        builder: Builder,
        sizes: Mapping[str, str],
        tensors: Mapping[str, str],
        tables: Mapping[str, Array],
    ) -> None:
        self._builder = builder
        self._sizes = sizes
        self._tensors = tensors
        self._tables = tables
        self._memo: dict[Expr, str] = {}

    def emit(self, expr: Expr) -> str:
        """Name of a tensor with the expression's values."""
        if expr not in self._memo:
            self._memo[expr] = self._emit(expr)
        return self._memo[expr]

    def _emit(self, expr: Expr) -> str:
        if isinstance(expr, Const):
            types = {"bool": np.bool_, "int": np.int64, "float": np.float32}
            return self._builder.const(expr.value, types[expr.kind])
        if isinstance(expr, Var):
            return self._variable(expr)
        if isinstance(expr, Load):
            return self._table_load(expr) if expr.source in self._tables else self._load(expr)
        assert isinstance(expr, Op)
        return self._operation(expr)

    def _variable(self, var: Var) -> str:
        build = self._builder
        if var.name not in _INDEX_AXES:
            return self._sizes[var.name]
        size = build.op(
            "Squeeze", self._sizes[_AXIS_SIZES[_INDEX_AXES[var.name]]], build.const([0], np.int64)
        )
        values = build.op("Range", build.const(0, np.int64), size, build.const(1, np.int64))
        shape = [1, 1, 1, 1]
        shape[_INDEX_AXES[var.name]] = -1
        return build.reshape(values, *shape)

    def _operation(self, expr: Op) -> str:
        build = self._builder
        args = [self.emit(arg) for arg in expr.args]
        zero = build.const(0, np.int64)
        if expr.name == "ge0":
            return build.op("GreaterOrEqual", args[0], zero)
        if expr.name == "eq0":
            return build.op("Equal", args[0], zero)
        if expr.name == "float":
            return build.op("Cast", args[0], to=TensorProto.FLOAT)
        if expr.name == "floordiv":
            # ONNX Div truncates; subtracting the (non-negative) remainder first makes it floor.
            return build.op("Div", build.op("Sub", args[0], build.op("Mod", *args)), args[1])
        info = OPS[expr.name]
        if not info.infix:
            return build.op(info.onnx, *args)
        result = args[0]
        for arg in args[1:]:
            result = build.op(info.onnx, result, arg)
        return result

    def _load(self, load: Load) -> str:
        build = self._builder
        value = build.op("Cast", self._tensors[load.source], to=_LOAD_TYPES[load.kind])
        axes = [_INDEX_AXES.get(i.name) if isinstance(i, Var) else None for i in load.index]
        fixed = [i.value if isinstance(i, Const) else None for i in load.index]
        if any(a is None and f is None for a, f in zip(axes, fixed, strict=True)):
            return self._gather(value, load.index)
        for position in reversed(range(len(axes))):
            if axes[position] is None:
                at = build.const(fixed[position], np.int64)
                value = build.op("Gather", value, at, axis=position)
        kept = [axis for axis in axes if axis is not None]
        if len(set(kept)) != len(kept):
            return self._gather(
                build.op("Cast", self._tensors[load.source], to=_LOAD_TYPES[load.kind]),
                load.index,
            )
        for position, axis in enumerate(kept):
            # The tensor may be larger than the sequence: a mask for the longest one.
            value = build.slice(value, position, 0, self._sizes[_AXIS_SIZES[axis]])
        if kept != sorted(kept):
            value = build.op(
                "Transpose", value, perm=[int(p) for p in np.argsort(kept, kind="stable")]
            )
        return build.unsqueeze(value, *(axis for axis in range(4) if axis not in kept))

    def _table_load(self, load: Load) -> str:
        build = self._builder
        table = self._tables[load.source]
        group, row, column = load.index
        if row == Q_INDEX and column == K_INDEX and (group == H_INDEX or isinstance(group, Const)):
            chosen = table[[int(group.value)]] if isinstance(group, Const) else table
            value = build.slice(build.const(chosen[None], np.bool_), 2, 0, self._sizes["Sq"])
            return build.slice(value, 3, 0, self._sizes["Sk"])
        return self._gather(build.const(table, np.bool_), load.index)

    def _gather(self, value: str, index: tuple[Expr, ...]) -> str:
        """value[index...] for any index expressions, through GatherND."""
        build = self._builder
        parts = [self.emit(i) for i in index]
        # Adding zero times all the others gives every index tensor the common shape.
        total = self._broadcast_zero(parts)
        last = [build.unsqueeze(build.op("Add", part, total), -1) for part in parts]
        return build.op("GatherND", value, build.op("Concat", *last, axis=-1))

    def _broadcast_zero(self, parts: list[str]) -> str:
        build = self._builder
        total = parts[0]
        for part in parts[1:]:
            total = build.op("Add", total, part)
        return build.op("Mul", total, build.const(np.zeros((1, 1, 1, 1)), np.int64))
