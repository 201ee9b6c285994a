"""Lift a block's mask stages to one MaskProgram over b, h, q, k.

The operands are read as index arithmetic; whatever they load becomes an input of the
stof node: run-time vectors and dense masks as they are, constant tables as block
tables.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from stof_onnx.ir.block_table import DEFAULT_TILE, BlockTable
from stof_onnx.ir.expr import Const, Expr, Kind, Load, Op, Poly, Var, substitute, variables, walk
from stof_onnx.ir.expr.build import TRUE, and_, eq0, fadd, floordiv, fmul, integer, not_, sub, where
from stof_onnx.ir.expr.evaluate import rebuild
from stof_onnx.ir.expr.node import children
from stof_onnx.ir.expr.ops import Array
from stof_onnx.ir.mask.program import (
    BATCH,
    HEADS,
    KEYS,
    QUERIES,
    VARIABLES,
    MaskProgram,
    Operand,
)
from stof_onnx.rewriter.attention.block import AttentionBlock, MaskStage, Refused
from stof_onnx.rewriter.masks.additive import Additive, hides, read_additive
from stof_onnx.rewriter.masks.fills import NotLiftable, StageRead, UnknownDimension, combine_fills
from stof_onnx.rewriter.symbolic import SymbolicGraph

# A bias of more terms than this, computed for each pair, is read from the tensor instead.
_MOST_BIAS_TERMS = 32


@dataclass(frozen=True)
class OperandSource:
    """Where a program operand comes from.

    Attributes:
        operand: as the program names it.
        tensor: name of the graph's tensor; "" for a block table.
        kind: of the elements the program loads.
        table: the block table, for a constant mask.
    """

    operand: Operand
    tensor: str
    kind: Kind
    table: BlockTable | None = None


@dataclass(frozen=True)
class LiftedMask:
    """A program, its operands' sources, and the dimensions its symbols stand for.

    Attributes:
        program: over the variables of ``ir.mask.program``.
        sources: one for each operand, in order.
        assumptions: what the reading relies on, for the report.
    """

    program: MaskProgram
    sources: tuple[OperandSource, ...]
    assumptions: tuple[str, ...] = ()


def lift(sym: SymbolicGraph, block: AttentionBlock) -> LiftedMask:
    """The program of a block's stages.

    Raises:
        NotLiftable: with the reason.
    """
    read = [_read_stage(sym, stage, block) for stage in block.chain.stages]
    keep: Expr = and_(*(stage.keep for stage in read))
    bias: Expr | None = None
    for stage in read:
        if stage.bias is not None:
            bias = stage.bias if bias is None else fadd(bias, stage.bias)
    filled = combine_fills(read, block.chain.score_dtype)
    names = _dimension_names(block)
    parts = _Parts(keep, bias, filled.again)
    parts, sources = _bind(sym, parts.map(lambda expr: _rename(expr, names)))
    program = MaskProgram(
        keep=parts.keep,
        bias=parts.bias,
        fill=filled.fill,
        fill_mode=filled.mode,
        again=parts.again,
        nan_to_zero=block.nan_to_zero,
        operands=tuple(source.operand for source in sources),
    )
    assumptions = [a for stage in read for a in stage.assumptions]
    assumptions += [
        f"{source.tensor!r} is taken to hold integers that float16 holds exactly"
        for source in sources
        if source.tensor in sym.narrowed
    ]
    return LiftedMask(program, sources, tuple(dict.fromkeys(assumptions)))


@dataclass(frozen=True)
class _Parts:
    """The expressions of a program."""

    keep: Expr
    bias: Expr | None
    again: Expr

    def map(self, change: Callable[[Expr], Expr]) -> _Parts:
        """Each changed."""
        bias = None if self.bias is None else change(self.bias)
        return _Parts(change(self.keep), bias, change(self.again))


def _read_stage(sym: SymbolicGraph, stage: MaskStage, block: AttentionBlock) -> StageRead:
    if stage.mode == "floor":
        if not hides(stage.written, block.chain.score_dtype):
            raise Refused(stage.node, f"limits scores from below by {stage.written}")
        return StageRead(stage, TRUE, None, frozenset())
    expr = sym.value(stage.tensor, stage.index)
    if stage.mode == "add":
        scaled = fmul(Const(stage.factor), expr)
        return _read_add(stage, scaled, block.chain.score_dtype)
    keep = expr if stage.mode == "keep" else not_(expr)
    fill = stage.written
    if keep != TRUE and not hides(fill, block.chain.score_dtype):
        raise NotLiftable(f"{stage.node.name!r} writes {fill}, which hides nothing")
    return StageRead(stage, keep, None, frozenset() if keep == TRUE else frozenset({fill}))


def _read_add(stage: MaskStage, expr: Expr, score_dtype: str) -> StageRead:
    assumed: list[str] = []
    selected = _zero_one_as_selection(expr, assumed)
    found = read_additive(selected, score_dtype)
    if assumed and found.bias is not None and not found.fills:
        assumed, found = [], read_additive(expr, score_dtype)
    if found.keep == TRUE and found.bias is not None and found.bias.size > _MOST_BIAS_TERMS:
        # Many operations for each pair cost a kernel more than one load.
        load = Load(stage.tensor.name, stage.index, "float")
        found = Additive(TRUE, fmul(Const(stage.factor), load), frozenset())
    notes = tuple(f"{name!r} is taken to hold only 0 and 1" for name in sorted(set(assumed)))
    return StageRead(stage, found.keep, found.bias, found.fills, found.is_joint, notes)


def _zero_one_as_selection(expr: Expr, assumed: list[str]) -> Expr:
    """Read ``(1 - float(mask)) * fill`` of a 0/1 vector as a selection.

    The names of the vectors that must hold only 0 and 1 for this are appended.
    """
    if not isinstance(expr, Op):
        return expr
    if expr.name == "float" and isinstance(expr.args[0], Load):
        assumed.append(expr.args[0].source)
        return where(eq0(expr.args[0]), Const(0.0), Const(1.0))
    if expr.name in ("fadd", "fmul", "where"):
        args = [_zero_one_as_selection(arg, assumed) for arg in expr.args]
        return rebuild(expr.name, tuple(args))
    return expr


def _dimension_names(block: AttentionBlock) -> dict[str, Expr]:
    """What each symbol of the graph is in terms of B, H, Sq and Sk."""
    names: dict[str, Expr] = {}
    for dim, name in zip(block.dims, (BATCH, HEADS, QUERIES, KEYS), strict=True):
        poly = Poly.of(dim)
        unknown = [
            atom for atom in poly.atoms() if isinstance(atom, Var) and atom.name not in names
        ]
        if len(unknown) != 1:
            continue
        parts = poly.split(unknown[0])
        factor = None if parts is None else parts[0].constant
        if parts is not None and factor is not None and factor > 0:
            rest = substitute(parts[1].expr(), lambda e: names.get(getattr(e, "name", "")))
            # Other dimensions may hide in a minimum.
            if variables(rest) <= set(VARIABLES):
                names[unknown[0].name] = floordiv(sub(name, rest), integer(factor))
    for other, ours in block.chain.equal.items():
        known = substitute(ours, lambda e: names.get(getattr(e, "name", "")))
        if other not in names and variables(known) <= set(VARIABLES):
            names[other] = known
    return names


def _rename(expr: Expr, names: dict[str, Expr]) -> Expr:
    """Replace the graph's symbols by the program's variables."""

    def replace(node: Expr) -> Expr | None:
        if not isinstance(node, Var):
            return None
        if node.bound is not None:
            return VARIABLES[node.name]
        if node.name not in names:
            raise UnknownDimension(node.name)
        return names[node.name]

    return substitute(expr, replace)


def _bind(sym: SymbolicGraph, parts: _Parts) -> tuple[_Parts, tuple[OperandSource, ...]]:
    """Make each load an operand and rewrite the loads accordingly."""
    operands = _Operands()
    keep, again = _truth_of_integers(parts.keep, parts.again)

    def replace(node: Expr) -> Expr | None:
        if not isinstance(node, Load):
            return None
        if node.source in sym.tables:
            source, index = _bind_table(sym, node)
        else:
            source, index = _bind_tensor(node), node.index
        return Load(operands.add(source), index, node.kind)

    bound = _Parts(keep, parts.bias, again).map(lambda expr: substitute(expr, replace))
    return bound, operands.sources


class _Operands:
    """Operands by name; one tensor that is loaded in two ways has two names."""

    def __init__(self) -> None:
        self._sources: list[OperandSource] = []

    @property
    def sources(self) -> tuple[OperandSource, ...]:
        return tuple(self._sources)

    def add(self, source: OperandSource) -> str:
        """The name under which the program loads this source."""
        taken = set()
        for known in self._sources:
            taken.add(known.operand.name)
            if dataclasses.replace(known, operand=source.operand) == source and (
                dataclasses.replace(known.operand, name="")
                == dataclasses.replace(source.operand, name="")
            ):
                return known.operand.name
        name = source.operand.name
        while name in taken:
            name += "'"
        operand = dataclasses.replace(source.operand, name=name)
        self._sources.append(dataclasses.replace(source, operand=operand))
        return name


def _truth_of_integers(keep: Expr, again: Expr) -> tuple[Expr, Expr]:
    """An integer vector that is only compared with 0 is loaded as booleans."""
    numeric = {
        child.source
        for expr in (keep, again)
        for node in walk(expr)
        if not (isinstance(node, Op) and node.name == "eq0")
        for child in children(node)
        if isinstance(child, Load) and child.kind == "int"
    }

    def visit(node: Expr) -> Expr:
        if not isinstance(node, Op):
            return node
        if node.name == "eq0" and isinstance(node.args[0], Load):
            load = node.args[0]
            if load.source not in numeric:
                return not_(Load(load.source, load.index, "bool"))
        return rebuild(node.name, tuple(visit(arg) for arg in node.args))

    return visit(keep), visit(again)


def _bind_tensor(load: Load) -> OperandSource:
    operand = Operand(load.source, "tensor", len(load.index))
    return OperandSource(operand, load.source, load.kind)


def _bind_table(sym: SymbolicGraph, load: Load) -> tuple[OperandSource, tuple[Expr, ...]]:
    """A constant table as [group, query, key]; fixed indices are cut out of it."""
    array = sym.tables[load.source]
    load = _without_equal_batches(load, array)
    fixed = tuple(int(i.value) if isinstance(i, Const) else slice(None) for i in load.index)
    free = [i for i in load.index if not isinstance(i, Const)]
    dense = array[fixed]
    if len(free) == 2 and not {"b", "h"} & (variables(free[0]) | variables(free[1])):
        dense, index = dense[None], (integer(0), *free)
    elif len(free) == 3 and free[0] == VARIABLES["h"]:
        index = tuple(free)
    else:
        raise NotLiftable(f"constant {load.source!r} varies with more than head, query and key")
    table = BlockTable.from_dense(np.ascontiguousarray(dense), DEFAULT_TILE)
    operand = Operand(load.source, "block_table", 3, table.shape, table.tile)
    return OperandSource(operand, "", "bool", table), tuple(index)


def _without_equal_batches(load: Load, array: Array) -> Load:
    """A table that says the same for each sequence of the batch, read for the first."""
    index = tuple(
        integer(0)
        if at == VARIABLES["b"] and np.array_equal(array, array.take([0] * size, axis))
        else at
        for axis, (at, size) in enumerate(zip(load.index, array.shape, strict=True))
    )
    return Load(load.source, index, load.kind)


def lift_dense(sym: SymbolicGraph, block: AttentionBlock) -> LiftedMask:
    """The mask operands themselves as dense run-time inputs: no structure, but exact.

    A number that is written over scores comes last, unless it is infinite: the program adds
    biases first.

    Raises:
        Refused: where the stages can't be kept even in this form.
    """
    keep: Expr = TRUE
    bias: Expr | None = None
    fill: float | None = None
    names = _dimension_names(block)
    operands = _Operands()
    for stage in block.chain.stages:
        if stage.mode == "floor":
            raise Refused(stage.node, "masks that are read as they are are limited from below")
        if stage.is_shifted:
            raise Refused(stage.node, "a mask is added to scores less their maximum")
        kind: Kind = "float" if stage.mode == "add" else "bool"
        load = Load(stage.tensor.name, tuple(_rename(i, names) for i in stage.index), kind)
        load = Load(operands.add(_bind_tensor(load)), load.index, kind)
        if stage.mode == "add":
            if fill is not None and not math.isinf(fill):
                raise Refused(stage.node, "a mask is added after the scores were overwritten")
            scaled = fmul(Const(stage.factor), load)
            bias = scaled if bias is None else fadd(bias, scaled)
            continue
        written = stage.written
        if not hides(written, block.chain.score_dtype):
            raise Refused(stage.node, f"it writes {written}, which hides nothing")
        if fill not in (None, written):
            raise Refused(stage.node, f"scores are overwritten by {fill} and by {written}")
        fill = written
        keep = and_(keep, load if stage.mode == "keep" else not_(load))
    program = MaskProgram(
        keep=keep,
        bias=bias,
        fill=-math.inf if fill is None else fill,
        nan_to_zero=block.nan_to_zero,
        operands=tuple(source.operand for source in operands.sources),
    )
    return LiftedMask(program, operands.sources)
