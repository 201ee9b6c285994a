"""SymbolicGraph: shapes and elements of a graph's tensors as expressions."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from stof_onnx.ir.expr import Const, Expr, Kind, Load, Poly, Var, loads, walk
from stof_onnx.ir.expr.build import add, integer, mul, where
from stof_onnx.ir.expr.ops import Array
from stof_onnx.rewriter.symbolic import (  # noqa: F401 - rules
    neural_shapes,
    pointwise,
    shapes,
    sources,
    views,
)
from stof_onnx.rewriter.symbolic.registry import (
    ELEMENT_RULES,
    SHAPE_RULES,
    VIEW_RULES,
    Index,
    Node,
    Shape,
    Tensor,
    Unliftable,
)

# A tensor of more elements than this is never read element by element.
_MAX_VALUES = 64
# Beyond these, a tensor is read at run time instead of as an expression.
_MAX_SIZE = 2000
_MAX_DEPTH = 100


class SymbolicGraph:
    """Reads a graph as index arithmetic on its inputs and constants.

    Dimensions of graph inputs are symbols (named ones by their name). Shapes of all
    tensors are computed once, in graph order.

    Args:
        graph: topologically sorted, without Constant nodes.
        positive: names of dimensions that are at least 1.

    Attributes:
        leaf_reasons: for each tensor read as a run-time input, why it wasn't read
            through; graph inputs aren't listed.
        tables: dense bool tables that loads of constants refer to, by load source.
        narrowed: integer tensors whose numbers are converted to float16 on the way.
    """

    def __init__(self, graph: gs.Graph, positive: frozenset[str] = frozenset()) -> None:
        self.leaf_reasons: dict[str, str] = {}
        self.tables: dict[str, Array] = {}
        self.narrowed: set[str] = set()
        self.tensors: dict[str, Tensor] = graph.tensors()
        self._shapes: dict[int, Shape | Unliftable] = {}
        self._depth = 0
        self._positive = positive
        self._elements: dict[tuple[int, Index], Expr] = {}
        self._constants: dict[tuple[int, str], Expr | None] = {}
        for tensor in graph.inputs:
            self._shapes[id(tensor)] = self._declared_shape(tensor)
        for node in graph.nodes:
            for position, output in enumerate(node.outputs):
                self._shapes[id(output)] = self._infer(node, position, output)

    def shape(self, tensor: Tensor) -> Shape:
        """Symbolic shape.

        Raises:
            Unliftable: if it isn't known.
        """
        if isinstance(tensor, gs.Constant):
            return tuple(integer(n) for n in tensor.shape)
        found = self._shapes.get(id(tensor))
        if found is None and not tensor.inputs:
            # An input's default: no input of the graph for graphsurgeon, and no constant.
            found = self._shapes[id(tensor)] = self._declared_shape(tensor)
        if found is None:
            raise Unliftable(f"tensor {tensor.name!r} has no known shape")
        if isinstance(found, Unliftable):
            raise found
        return found

    def _infer(self, node: Node, position: int, output: Tensor) -> Shape | Unliftable:
        rule = SHAPE_RULES.get(node.op)
        try:
            if rule is None:
                raise Unliftable(f"no shape rule for {node.op}")
            found = rule(self, node, position)
            if any(loads(dim) for dim in found) and not _is_blank(output.shape or [None]):
                raise Unliftable("a dimension that run-time values decide")
            return found
        # A node that breaks its specification must not take the others along.
        except (Unliftable, ArithmeticError, LookupError, ValueError, TypeError) as error:
            reason = error if isinstance(error, Unliftable) else Unliftable(str(error))
            if output.shape is not None and not _is_blank(output.shape):
                return self._declared_shape(output)
            return reason

    def _declared_shape(self, tensor: Tensor) -> Shape | Unliftable:
        if tensor.shape is None:
            return Unliftable(f"tensor {tensor.name!r} has no declared shape")
        dims: list[Expr] = []
        for axis, dim in enumerate(tensor.shape):
            if isinstance(dim, int) and dim > 0:
                dims.append(integer(dim))
            else:
                name = dim if isinstance(dim, str) and dim else f"{tensor.name}.{axis}"
                dims.append(Var(name, positive=name in self._positive))
        return tuple(dims)

    def element(self, tensor: Tensor, index: Index) -> Expr:
        """The element of a tensor at an index, as an expression.

        What can't be read through becomes a load of the tensor that stopped it.
        """
        key = (id(tensor), index)
        if key not in self._elements:
            self._depth += 1
            try:
                self._elements[key] = self._element(tensor, index)
            finally:
                self._depth -= 1
        return self._elements[key]

    def value(self, tensor: Tensor, index: Index) -> Expr:
        """Like :meth:`element`, where a table that a run-time matrix indexes is read as it is.

        A relative position bias is ``weights[bucket[q, k], h]``: where the buckets come from a
        tensor over queries and keys, the bias itself is one too, and cheaper to read.
        """
        found = self.element(tensor, index)
        if found.kind != "float" or not isinstance(found, Load):
            return found
        inner = [load for at in found.index for load in loads(at)]
        if not any(len(_index_names(load)) > 1 for load in inner):
            return found
        # Expanded over the batch it would only be longer.
        while tensor.inputs and tensor.inputs[0].op in ("Expand", "Identity"):
            step = self.view(tensor, index)
            if step is None:
                break
            tensor, index = step
        self.leaf_reasons[tensor.name] = f"{found.source!r} is read where a run-time matrix says"
        return Load(tensor.name, index, "float")

    def _element(self, tensor: Tensor, index: Index) -> Expr:
        if not isinstance(tensor, gs.Constant) and not tensor.inputs:
            return Load(tensor.name, index, kind_of(tensor))
        try:
            found = self._computed_element(tensor, index)
            if found.size > _MAX_SIZE:
                raise Unliftable(f"an expression of {found.size} terms")
            return found
        except (Unliftable, NotImplementedError, ArithmeticError) as reason:
            self.leaf_reasons[tensor.name] = str(reason)
            return Load(tensor.name, index, kind_of(tensor))

    def _computed_element(self, tensor: Tensor, index: Index) -> Expr:
        if isinstance(tensor, gs.Constant):
            return self._constant_element(tensor, index)
        if self._depth > _MAX_DEPTH:
            raise Unliftable(f"more than {_MAX_DEPTH} operators deep")
        node = tensor.inputs[0]
        position = output_position(node, tensor)
        if node.op in VIEW_RULES:
            source, moved = VIEW_RULES[node.op](self, node, position, index)
            return self.element(source, moved)
        if node.op in ELEMENT_RULES:
            return ELEMENT_RULES[node.op](self, node, position, index)
        raise Unliftable(f"operator {node.op} is not index arithmetic")

    def view(self, tensor: Tensor, index: Index) -> tuple[Tensor, Index] | None:
        """One step through the view that produced a tensor; None at anything else."""
        if isinstance(tensor, gs.Constant) or not tensor.inputs:
            return None
        node = tensor.inputs[0]
        if node.op not in VIEW_RULES:
            return None
        try:
            return VIEW_RULES[node.op](self, node, output_position(node, tensor), index)
        except Unliftable:
            return None

    def values(self, tensor: Tensor) -> tuple[Expr, ...]:
        """The elements of a small tensor of rank 0 or 1, such as a target shape.

        Raises:
            Unliftable: if it isn't small or its length is unknown.
        """
        dims = self.shape(tensor)
        if len(dims) > 1:
            raise Unliftable(f"{tensor.name!r} has rank {len(dims)}, wanted 0 or 1")
        if not dims:
            return (self.element(tensor, ()),)
        length = dims[0]
        if not isinstance(length, Const) or length.value > _MAX_VALUES:
            raise Unliftable(f"{tensor.name!r} has no fixed length")
        return tuple(self.element(tensor, (integer(i),)) for i in range(int(length.value)))

    def integers(self, tensor: Tensor) -> tuple[int, ...]:
        """Like :meth:`values`, where every element must be a known integer."""
        found = self.values(tensor)
        if not all(isinstance(value, Const) for value in found):
            raise Unliftable(f"{tensor.name!r} is not constant")
        return tuple(int(value.value) for value in found if isinstance(value, Const))

    def _constant_element(self, tensor: gs.Constant, index: Index) -> Expr:
        if all(isinstance(i, Const) for i in index):
            at = tuple(int(i.value) for i in index if isinstance(i, Const))
            return _literal(tensor.values[at])
        # Axes read at a known position are cut out first: a tensor of index pairs is two
        # ramps, neither of which shows in the whole.
        fixed = tuple(int(i.value) if isinstance(i, Const) else slice(None) for i in index)
        key = (id(tensor), str(fixed))
        if key not in self._constants:
            self._constants[key] = _arithmetic(tensor.values[fixed])
        structure = self._constants[key]
        if structure is not None:
            return _at(structure, tuple(i for i in index if not isinstance(i, Const)))
        return self._table_element(tensor, index)

    def _table_element(self, tensor: gs.Constant, index: Index) -> Expr:
        """A constant without arithmetic structure: a bool table where it is two-valued."""
        array = tensor.values
        if array.dtype == np.bool_:
            self.tables[tensor.name] = array
            return Load(tensor.name, index, "bool")
        if np.issubdtype(array.dtype, np.integer) and np.isin(array, (0, 1)).all():
            self.tables[tensor.name] = array != 0
            return where(Load(tensor.name, index, "bool"), Const(1), Const(0))
        if np.issubdtype(array.dtype, np.floating):
            # An additive mask of two values is a boolean table: true where it is 0.
            low, high = array.min(), array.max()
            if high == 0 and np.all((array == low) | (array == high)):
                self.tables[tensor.name] = array == high
                condition = Load(tensor.name, index, "bool")
                return where(condition, _literal(high), _literal(low))
        return Load(tensor.name, index, kind_of(tensor))


def _index_names(expr: Expr) -> set[str]:
    """Names of the index variables that an expression reads."""
    return {v.name for v in walk(expr) if isinstance(v, Var) and v.bound is not None}


def output_position(node: Node, tensor: Tensor) -> int:
    """Which output of a node a tensor is."""
    return next(i for i, output in enumerate(node.outputs) if output is tensor)


def kind_of(tensor: Tensor) -> Kind:
    """Expression kind of a tensor's elements; float where the type is unknown."""
    if tensor.dtype is None:
        return "float"
    try:
        dtype = np.dtype(tensor.dtype)
    except TypeError:  # bfloat16 and float8 come as ONNX enum values
        return "float"
    if dtype == np.bool_:
        return "bool"
    return "int" if np.issubdtype(dtype, np.integer) else "float"


def _is_blank(declared: Any) -> bool:
    """Exporters write a dimension they don't know as 0 or leave it unnamed."""
    return any(not dim for dim in declared)


def _literal(value: Any) -> Const:
    if isinstance(value, np.bool_ | bool):
        return Const(bool(value))
    if np.issubdtype(type(value), np.integer):
        return Const(int(value))
    return Const(float(value))


def _arithmetic(array: Array) -> Expr | None:
    """A constant as arithmetic on its index variables ``i0``, ``i1``, ...

    Recognises a uniform constant and an integer one that grows linearly along its axes
    (position buffers).
    """
    if array.size == 0:
        return None
    first = array.reshape(-1)[0]
    if not np.isnan(np.asarray(first, np.float64)) and np.all(array == first):
        return _literal(first)
    if not np.issubdtype(array.dtype, np.integer):
        return None
    total: Expr = integer(int(first))
    predicted = np.full(array.shape, int(first), np.int64)
    for axis, size in enumerate(array.shape):
        if size < 2:
            continue
        step = int(array[tuple(int(a == axis) for a in range(array.ndim))]) - int(first)
        ramp = np.arange(size) * step
        predicted = predicted + ramp.reshape([-1 if a == axis else 1 for a in range(array.ndim)])
        total = add(total, mul(integer(step), Var(f"i{axis}", integer(size))))
    return total if np.array_equal(predicted, array) else None


def _at(structure: Expr, index: Index) -> Expr:
    result: Expr = Const(0)
    for monomial, coefficient in Poly.of(structure).terms.items():
        term: Expr = integer(coefficient)
        for atom in monomial:
            assert isinstance(atom, Var)
            term = mul(term, index[int(atom.name[1:])])
        result = add(result, term)
    return structure if isinstance(structure, Const) else result
