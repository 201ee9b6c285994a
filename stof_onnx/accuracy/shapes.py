"""Concrete shapes for a model's inputs: dimensions of the same name get the same size."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from onnx import ModelProto, ValueInfoProto

from stof_onnx.accuracy.domains import graph_inputs
from stof_onnx.ir.errors import InputError

Sizes = dict[str, int]
Shapes = dict[str, tuple[int, ...]]

# Dynamic dimensions that the model gives no name.
_UNNAMED_BATCH = "batch"
_UNNAMED_LENGTH = "length"
# A leading axis with one of these in its name counts tokens, not sequences.
_LENGTH_WORDS = ("seq", "len", "token", "position")


@dataclass(frozen=True)
class Sizing:
    """Sizes for the dimensions that are free to choose.

    Attributes:
        batch: size of every batch dimension.
        length: size of the first other dimension.
        ratio: each further dimension is this times the one before it. Queries and keys
            of cross-attention may have different lengths, other pairs may not.
    """

    batch: int
    length: int
    ratio: Fraction = Fraction(1)


@dataclass(frozen=True)
class Relation:
    """A dimension that is computed from others: the sum of some, less the sum of others.

    Attributes:
        target: name of the dimension.
        plus: names of dimensions, or numbers.
        minus: names of dimensions, or numbers.
    """

    target: str
    plus: tuple[int | str, ...]
    minus: tuple[int | str, ...] = ()

    def __str__(self) -> str:
        return f"{self.target} = {self.text}"

    @property
    def text(self) -> str:
        """The right-hand side: "past_sequence + sequence"."""
        return " - ".join([" + ".join(map(str, self.plus)), *map(str, self.minus)])

    def value(self, sizes: Sizes) -> int:
        """The size of :attr:`target`, given those of the others."""
        added, taken = (
            sum(term if isinstance(term, int) else sizes[term] for term in terms)
            for terms in (self.plus, self.minus)
        )
        return added - taken


class SymbolicShapes:
    """The input shapes of a model, some of their dimensions named instead of known.

    Args:
        model: an ONNX model.
        overrides: shapes that the user gave for some inputs.
        relations: dimensions to compute instead of choosing them, in an order in which
            they can be computed.
        apart: give dimensions without a name one of their own each, by input and axis,
            instead of one for all.

    Raises:
        InputError: an override names no input, contradicts the model, or another one.
    """

    def __init__(
        self,
        model: ModelProto,
        overrides: Mapping[str, Sequence[int]] | None = None,
        *,
        relations: Sequence[Relation] = (),
        apart: bool = False,
    ) -> None:
        self._dims = {value.name: _dims(value, apart=apart) for value in graph_inputs(model)}
        self.relations = tuple(relations)
        self._overrides = {
            name: tuple(int(size) for size in shape) for name, shape in (overrides or {}).items()
        }
        plain = self._plain_names()
        self._expressions = {
            dim: expression
            for dims in self._dims.values()
            for dim in dims
            if isinstance(dim, str) and (expression := _expression(dim, plain)) is not None
        }
        self._fixed: Sizes = {}
        for name, shape in self._overrides.items():
            self._bind(name, shape)
        # A sum of dimensions can be checked once all of its terms are bound.
        self.resolve(dict.fromkeys(self.free, 1))

    @property
    def free(self) -> list[str]:
        """Names of the dimensions that nothing fixes, batch dimensions first."""
        names: dict[str, None] = {}
        for dims in self._dims.values():
            for dim in dims:
                if dim in self._expressions:
                    names.update(dict.fromkeys(_names(self._expressions[str(dim)])))
                elif isinstance(dim, str):
                    names[dim] = None
        taken = {*self._fixed, *(relation.target for relation in self.relations)}
        open_names = [name for name in names if name not in taken]
        return sorted(open_names, key=lambda name: not self.is_batch(name))

    def is_batch(self, name: str) -> bool:
        """Whether a dimension counts sequences, rather than positions in one."""
        if "batch" in name.lower():
            return True
        places = [
            (source, axis, len(dims))
            for source, dims in self._dims.items()
            for axis, dim in enumerate(dims)
            if dim == name
        ]
        own = name
        for source, _, rank in places:
            # torch.onnx.export names dimensions after their input: "position_ids_dynamic_axes_1".
            own = own.removeprefix(source) if rank > 1 else own
        return {axis for _, axis, _ in places} == {0} and not any(
            word in own.lower() for word in _LENGTH_WORDS
        )

    def sizes(self, sizing: Sizing) -> Sizes:
        """A size for each free dimension.

        Args:
            sizing: the batch size and the length to use.
        """
        sizes: Sizes = {}
        length = Fraction(sizing.length)
        for name in self.free:
            if self.is_batch(name):
                sizes[name] = sizing.batch
                continue
            sizes[name] = max(1, int(length))
            length *= sizing.ratio
        return sizes

    def known(self, sizes: Sizes) -> Sizes:
        """The size of each named dimension: chosen, given by the user, or from a relation.

        Args:
            sizes: a size for each name in :attr:`free`.
        """
        known = {**self._fixed, **sizes}
        for relation in self.relations:
            known[relation.target] = relation.value(known)
        return known

    def is_expression(self, name: str) -> bool:
        """Whether the model declares a dimension as a sum of others."""
        return name in self._expressions

    def dims(self) -> Mapping[str, Sequence[int | str]]:
        """The dimensions of each input: numbers, names, or sums that the model declares."""
        return self._dims

    def resolve(self, sizes: Sizes) -> Shapes:
        """The shape of each input.

        Args:
            sizes: a size for each name in :attr:`free`.

        Raises:
            InputError: a shape given by the user isn't the sum that the model declares.
        """
        known = self.known(sizes)
        shapes: Shapes = {}
        for name, dims in self._dims.items():
            if name in self._overrides:
                shapes[name] = self._overrides[name]
                self._require_sums(name, known, sizes)
                continue
            shapes[name] = tuple(
                dim
                if isinstance(dim, int)
                else max(1, _evaluate(self._expressions[dim], known))
                if dim in self._expressions
                else known[dim]
                for dim in dims
            )
        return shapes

    def _plain_names(self) -> set[str]:
        return {
            dim
            for dims in self._dims.values()
            for dim in dims
            if isinstance(dim, str) and dim.isidentifier()
        }

    def _bind(self, name: str, shape: tuple[int, ...]) -> None:
        """Take over a shape that the user gave."""
        given = f"shape {list(shape)} for input '{name}'"
        if name not in self._dims:
            raise InputError(
                f"the model has no input '{name}'",
                f"one of {self.describe()}",
                "correct the input shapes",
            )
        dims = self._dims[name]
        if len(shape) != len(dims):
            raise InputError(
                f"{given} has {len(shape)} dimensions",
                f"{len(dims)}: {_text(dims)}",
                "correct the input shapes",
            )
        for axis, (size, dim) in enumerate(zip(shape, dims, strict=True)):
            if size < 1:
                raise InputError(f"{given} has size {size} in axis {axis}", "sizes of at least 1")
            if isinstance(dim, int) and dim != size:
                raise InputError(
                    f"{given} has size {size} in axis {axis}",
                    f"{dim}, which is fixed in the model",
                    "correct the input shapes",
                )
            if not isinstance(dim, str) or dim in self._expressions:
                continue
            if self._fixed.setdefault(dim, size) != size:
                raise InputError(
                    f"{given} makes dimension '{dim}' {size}",
                    f"{self._fixed[dim]} as in another input: available are {self.describe()}",
                    "correct the input shapes",
                )

    def _require_sums(self, name: str, known: Sizes, chosen: Sizes) -> None:
        for axis, dim in enumerate(self._dims[name]):
            expression = self._expressions.get(str(dim))
            if expression is None or any(term in chosen for term in _names(expression)):
                continue
            wanted = _evaluate(expression, known)
            if self._overrides[name][axis] != wanted:
                raise InputError(
                    f"shape {list(self._overrides[name])} for input '{name}' has size"
                    f" {self._overrides[name][axis]} in axis {axis}",
                    f"'{dim}' = {wanted}",
                    "correct the input shapes",
                )

    def describe(self) -> str:
        """The inputs and their shapes, for messages."""
        return ", ".join(f"{name} {_text(dims)}" for name, dims in self._dims.items()) or "none"


def _dims(value: ValueInfoProto, *, apart: bool) -> list[int | str]:
    dims: list[int | str] = []
    rank = len(value.type.tensor_type.shape.dim)
    for axis, dim in enumerate(value.type.tensor_type.shape.dim):
        # Exporters write 0 or -1 for "unknown" too.
        if dim.HasField("dim_value") and dim.dim_value > 0:
            dims.append(dim.dim_value)
        elif dim.dim_param:
            dims.append(dim.dim_param)
        elif axis == 0 and (rank > 1 or not apart):
            dims.append(_UNNAMED_BATCH)
        else:
            dims.append(f"{value.name}[{axis}]" if apart else _UNNAMED_LENGTH)
    return dims


def _text(dims: Sequence[int | str]) -> str:
    return f"[{', '.join(str(dim) for dim in dims)}]"


# ------------------------------------------------------------------------------ expressions


def _expression(dim: str, plain: set[str]) -> ast.expr | None:
    """A dimension such as ``past_sequence + 1``; None if it is only a name.

    ``batch-size`` is a name, though it reads like a difference: so at least one
    operand has to be the name of another dimension.
    """
    if dim in plain:
        return None
    try:
        tree = ast.parse(dim, mode="eval").body
    except (SyntaxError, ValueError):
        return None
    if isinstance(tree, ast.BinOp) and _is_arithmetic(tree) and plain & set(_names(tree)):
        return tree
    return None


def _is_arithmetic(tree: ast.expr) -> bool:
    if isinstance(tree, ast.BinOp):
        return (
            isinstance(tree.op, (ast.Add, ast.Sub, ast.Mult, ast.FloorDiv))
            and _is_arithmetic(tree.left)
            and _is_arithmetic(tree.right)
        )
    return isinstance(tree, ast.Name) or (
        isinstance(tree, ast.Constant) and isinstance(tree.value, int)
    )


def _names(tree: ast.expr) -> list[str]:
    return [node.id for node in ast.walk(tree) if isinstance(node, ast.Name)]


def _evaluate(tree: ast.expr, sizes: Sizes) -> int:
    if isinstance(tree, ast.Name):
        return sizes[tree.id]
    if isinstance(tree, ast.Constant):
        return int(tree.value)  # type: ignore[arg-type]  # _is_arithmetic let only ints through
    assert isinstance(tree, ast.BinOp)
    left, right = _evaluate(tree.left, sizes), _evaluate(tree.right, sizes)
    if isinstance(tree.op, ast.Add):
        return left + right
    if isinstance(tree.op, ast.Sub):
        return left - right
    if isinstance(tree.op, ast.Mult):
        return left * right
    return left // max(right, 1)
