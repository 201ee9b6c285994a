"""Prove a lifted mask: compare it with the original subgraph, run by ONNX Runtime.

The subgraph from the run-time inputs to the mask operands is cut out and run at sizes
on both sides of every constant of the program, at odd sizes and with unequal numbers
of queries and keys where the graph allows it. Every element must agree exactly.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime as ort
from onnx import TensorProto

from stof_onnx.ir.expr import Const, Expr, Var, evaluate, walk
from stof_onnx.ir.expr.build import TRUE, integer
from stof_onnx.ir.expr.ops import Array
from stof_onnx.ir.mask.program import MaskProgram, index_grid
from stof_onnx.rewriter.attention.block import AttentionBlock, MaskStage
from stof_onnx.rewriter.attention.context import float_type
from stof_onnx.rewriter.graph import Node, Tensor, numpy_type
from stof_onnx.rewriter.masks.additive import hiding_threshold
from stof_onnx.rewriter.masks.lift import LiftedMask
from stof_onnx.rewriter.symbolic import SymbolicGraph, Unliftable

# Larger masks are compared up to this size only; the report then says so.
MAX_SIZE = 4100
_BASE_SIZES = (1, 2, 7, 33)
_BATCH = 2
_LEAST_SIZES = 3
# How many of the sizes a report names.
_LISTED = 12
_FEW = 4
_MOST_CONSTANTS = 8
_TELLING = 7
_RULES = ("longer", "Sk", "Sq", "B")


class ProofFailed(Exception):  # noqa: N818 - leads to the dense mask, not to a failure
    """The program and the subgraph differ, or could not be compared."""


@dataclass(frozen=True)
class Cut:
    """The subgraph from run-time values to the mask operands.

    Attributes:
        nodes: in topological order.
        loaded: tensors whose values the program loads.
        shaped: tensors of which only the shape is read.
    """

    nodes: tuple[Node, ...]
    loaded: tuple[Tensor, ...]
    shaped: tuple[Tensor, ...]


def prove(graph: gs.Graph, sym: SymbolicGraph, block: AttentionBlock, lifted: LiftedMask) -> str:
    """Compare program and subgraph at several sizes.

    Returns:
        What was compared, in words, for the report.

    Raises:
        ProofFailed: naming the first difference.
    """
    stages = [stage.tensor for stage in block.chain.stages]
    if not stages:
        return "no mask in the graph"
    loaded = {source.tensor for source in lifted.sources if source.tensor}
    cut = cut_subgraph(stages, loaded)
    session = _session(graph, cut, stages)
    run = _Run(sym, block, lifted, cut, session)
    seen: dict[str, None] = {}
    assignments = list(_sizes(sym, block, cut, lifted))
    # A size at which batch, queries and keys can't be taken for each other comes first.
    assignments.sort(key=lambda choice: sum(choice[0].values()) < _TELLING)
    for symbols, others in assignments:
        dims = [_evaluate(dim, symbols) for dim in block.dims]
        found = run.values(symbols, others, dims)
        if found is None:
            continue
        feeds, values = found
        try:
            placed = run.place(symbols, others, dims, values)
            _compare(block, lifted, dims, _program_sources(sym, lifted, feeds), placed)
        except (IndexError, ValueError) as error:
            raise ProofFailed(f"can't compare at {dims[2]}x{dims[3]}: {error}") from error
        seen[f"{dims[2]}x{dims[3]}"] = None
    if len(seen) < min(_LEAST_SIZES, len(assignments)):
        raise ProofFailed(f"the subgraph ran at {len(seen)} sizes only; it fails at {run.failure}")
    return _in_words(list(seen), lifted)


def _in_words(sizes: list[str], lifted: LiftedMask) -> str:
    text = sizes if len(sizes) <= _LISTED else [*sizes[: _LISTED - 1], "...", sizes[-1]]
    beyond = sorted(c for c in _constants(lifted.program) if c >= MAX_SIZE)
    limit = f"; not beyond its constant {beyond[0]}" if beyond else ""
    return f"equal to the original subgraph at {len(sizes)} sizes ({', '.join(text)}){limit}"


@dataclass
class _Run:
    """Runs the subgraph at one size after the other."""

    sym: SymbolicGraph
    block: AttentionBlock
    lifted: LiftedMask
    cut: Cut
    session: ort.InferenceSession
    rules: tuple[str, ...] | None = None
    failure: str = ""

    def values(
        self, symbols: Mapping[str, int], others: Sequence[str], dims: list[int]
    ) -> tuple[dict[str, Array], list[Array]] | None:
        """(feeds, mask operands); None at a size that the original can't run at.

        What dimensions of other names stand for (a longer mask of which a part is
        read, the keys, the queries, the batch) is found once, by what runs.
        """
        tried = [self.rules] if self.rules is not None else product(_RULES, repeat=len(others))
        for rules in tried:
            try:
                every = _with_others(symbols, others, dims, rules)
                feeds = _feeds(self.sym, self.cut, self.lifted, every)
                values = self.session.run(None, feeds)
                _require_shapes(self.block, dims, every, values)
            except ProofFailed:
                raise
            except Exception as error:  # onnxruntime raises its own undocumented types
                self.failure = self.failure or f"{dims[2]}x{dims[3]}: {error}"
                continue
            self.rules = tuple(rules)
            return feeds, values
        return None

    def place(
        self,
        symbols: Mapping[str, int],
        others: Sequence[str],
        dims: Sequence[int],
        values: Sequence[Array],
    ) -> list[Array]:
        """The mask of each stage as an array that broadcasts to the scores."""
        assert self.rules is not None
        every = _with_others(symbols, others, dims, self.rules)
        stages = self.block.chain.stages
        names = list({stage.tensor.name: None for stage in stages})
        by_name = dict(zip(names, values, strict=True))
        return [
            _at_scores(self.block, stage, by_name[stage.tensor.name], dims, every)
            for stage in stages
        ]


def _require_shapes(
    block: AttentionBlock,
    dims: Sequence[int],
    symbols: Mapping[str, int],
    values: Sequence[Array],
) -> None:
    """Each mask must have just the elements that the scores meet.

    Raises:
        ValueError: naming a shape.
    """
    distinct = {stage.tensor.name: stage for stage in block.chain.stages}
    for stage, value in zip(distinct.values(), values, strict=True):
        index = _positions(stage, dims, symbols)
        met = tuple(int(np.max(at)) + 1 for at in index)
        if met != value.shape:
            raise ValueError(f"the mask has shape {value.shape} where {met} is met")


def _positions(
    stage: MaskStage, dims: Sequence[int], symbols: Mapping[str, int]
) -> tuple[Array, ...]:
    """Where score (b, h, q, k) meets the mask: an index array for each axis of the mask."""
    sizes = dict(zip(("B", "H", "Sq", "Sk"), dims, strict=True))
    grid = {**symbols, **index_grid(sizes)}
    return tuple(np.asarray(evaluate(expr, grid, {})) for expr in stage.index)


def _at_scores(
    block: AttentionBlock,
    stage: MaskStage,
    value: Array,
    dims: Sequence[int],
    symbols: Mapping[str, int],
) -> Array:
    """A mask's values as an array that broadcasts to [B, H, Sq, Sk]."""
    tail = block.index.all[4 - len(stage.index) :] if len(stage.index) <= 4 else None
    if tail is not None and all(
        found in (wanted, integer(0)) for found, wanted in zip(stage.index, tail, strict=True)
    ):
        return value
    return np.asarray(value[_positions(stage, dims, symbols)])


def cut_subgraph(outputs: list[Tensor], loaded: set[str]) -> Cut:
    """The nodes between the mask operands and what they read at run time."""
    needed: dict[int, Node] = {}
    load_cut: dict[str, Tensor] = {}
    shape_cut: dict[str, Tensor] = {}
    frontier = list(outputs)
    while frontier:
        tensor = frontier.pop()
        if isinstance(tensor, gs.Constant) or tensor.is_empty():
            continue
        if tensor.name in loaded or not tensor.inputs:
            load_cut[tensor.name] = tensor
            continue
        node = tensor.inputs[0]
        if id(node) in needed:
            continue
        needed[id(node)] = node
        if node.op == "Shape" and not isinstance(node.inputs[0], gs.Constant):
            shape_cut[node.inputs[0].name] = node.inputs[0]
        else:
            frontier += node.inputs
    nodes = _producers_first(needed)
    produced = {output.name for node in nodes for output in node.outputs}
    for name in produced & set(shape_cut):
        # Computed inside the subgraph as well: no input of its own.
        del shape_cut[name]
    for name in set(shape_cut) & set(load_cut):
        del shape_cut[name]
    return Cut(nodes, tuple(load_cut.values()), tuple(shape_cut.values()))


def _producers_first(nodes: Mapping[int, Node]) -> tuple[Node, ...]:
    """Nodes in topological order; to look for them in the graph would take all of its nodes."""
    done: dict[int, Node] = {}
    stack = list(nodes.values())
    while stack:
        node = stack[-1]
        makers = [maker for tensor in node.inputs for maker in tensor.inputs]
        waiting = [m for m in makers if id(m) in nodes and id(m) not in done]
        if waiting:
            stack += waiting
        else:
            done[id(stack.pop())] = node
    return tuple(done.values())


def _session(graph: gs.Graph, cut: Cut, outputs: list[Tensor]) -> ort.InferenceSession:
    inputs = [*cut.loaded, *cut.shaped]
    distinct = {tensor.name: tensor for tensor in outputs}
    identities = [
        gs.Node("Identity", inputs=[tensor], outputs=[gs.Variable(f"{name}.proof", tensor.dtype)])
        for name, tensor in distinct.items()
    ]
    return _build_session(graph, cut, inputs, identities)


def _build_session(
    graph: gs.Graph, cut: Cut, inputs: list[Any], identities: list[Node]
) -> ort.InferenceSession:
    try:
        part = gs.Graph(
            nodes=[*cut.nodes, *identities],
            inputs=inputs,
            outputs=[node.outputs[0] for node in identities],
            opset=graph.opset,
            import_domains=graph.import_domains,
        )
        model = gs.export_onnx(part, do_type_check=False)
    finally:
        # The probes must not stay among the mask's users.
        for node in identities:
            node.inputs.clear()
    # Exporters declare dimensions they don't know as 0: no declared shape binds the feeds.
    for value in model.graph.input:
        value.type.tensor_type.ClearField("shape")
    del model.graph.value_info[:]
    _widen_bfloat16(model.graph)
    model.ir_version = 10
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime raises its own undocumented types
        raise ProofFailed(f"the mask's subgraph can't be run on its own: {error}") from error


def _widen_bfloat16(graph: onnx.GraphProto) -> None:
    """ONNX Runtime has few bfloat16 kernels; a mask's numbers are the same in float32."""
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type == TensorProto.BFLOAT16:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    tensors = [*graph.initializer, *(a.t for n in graph.node for a in n.attribute)]
    for tensor in tensors:
        if tensor.data_type == TensorProto.BFLOAT16:
            wide = onnx.numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(wide, tensor.name))
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.i == TensorProto.BFLOAT16:
                attribute.i = TensorProto.FLOAT


def _sizes(
    sym: SymbolicGraph, block: AttentionBlock, cut: Cut, lifted: LiftedMask
) -> Iterator[tuple[dict[str, int], list[str]]]:
    """(sizes of the scores' symbols, names of the other symbols) to prove at."""
    lengths = _symbols(block.dims[2:])
    batch = _symbols([block.dims[0]]) - lengths
    shapes = [dim for tensor in (*cut.loaded, *cut.shaped) for dim in _dims(sym, tensor)]
    others = _symbols(shapes) - batch - lengths - set(block.chain.equal)
    limit = _length_limit(lifted)
    around = _around(_constants(lifted.program) | _graph_constants(cut))
    sizes = sorted({s for s in (*_BASE_SIZES, *around) if s <= limit})
    if limit < MAX_SIZE:
        sizes = sorted({*sizes, limit - 1, limit} - {0})
    candidates = [{}] if not lengths else list(_length_choices(sorted(lengths), sizes))
    seen = set()
    for choice in candidates:
        symbols = {**dict.fromkeys(batch, _BATCH), **choice}
        for name, expr in block.chain.equal.items():
            if not _symbols([expr]) - set(symbols):
                symbols.setdefault(name, _evaluate(expr, symbols))
        dims = tuple(_evaluate(dim, symbols) for dim in block.dims)
        key = tuple(sorted(symbols.items()))
        if min(dims) >= 1 and max(dims[2:]) <= limit and key not in seen:
            seen.add(key)
            yield symbols, sorted(others)


def _with_others(
    symbols: Mapping[str, int], others: Sequence[str], dims: Sequence[int], rules: Sequence[str]
) -> dict[str, int]:
    """Values for dimensions that the scores don't have, by rule for each."""
    values = {"longer": 2 * max(dims) + 5, "Sk": dims[3], "Sq": dims[2], "B": dims[0]}
    return {**symbols, **{name: values[rule] for name, rule in zip(others, rules, strict=True)}}


def _length_choices(names: list[str], sizes: list[int]) -> Iterator[dict[str, int]]:
    """Equal and unequal lengths, each the longer once; 0 where a length may be a cache's."""
    for size in sizes:
        yield dict.fromkeys(names, size)
        if len(names) == 1:
            continue
        for longer in names:
            yield {name: size if name == longer else max(1, size // 2) for name in names}
            yield {name: size if name == longer else 0 for name in names}


def _dims(sym: SymbolicGraph, tensor: Tensor) -> tuple[Expr, ...]:
    try:
        return sym.shape(tensor)
    except Unliftable as reason:
        raise ProofFailed(f"shape of {tensor.name!r} unknown: {reason}") from reason


def _symbols(exprs: Any) -> set[str]:
    return {
        node.name
        for expr in exprs
        for node in walk(expr)
        if isinstance(node, Var) and node.bound is None
    }


def _length_limit(lifted: LiftedMask) -> int:
    """Largest number of queries and keys that the constant tables cover."""
    lengths = [n for s in lifted.sources if s.table is not None for n in s.table.shape[1:]]
    return min([*lengths, MAX_SIZE])


def _constants(program: MaskProgram) -> set[int]:
    """Magnitudes of the integers that a program mentions, 0 and 1 excepted."""
    constants: set[int] = set()
    for expr in (program.keep, *([program.bias] if program.bias is not None else [])):
        for node in walk(expr):
            if isinstance(node, Const) and node.kind == "int":
                constants.add(abs(int(node.value)))
    return constants - {0, 1}


def _graph_constants(cut: Cut) -> set[int]:
    """Integers that the subgraph computes with: one that the program lacks matters most."""
    found: set[int] = set()
    for tensor in (tensor for node in cut.nodes for tensor in node.inputs):
        is_small = isinstance(tensor, gs.Constant) and tensor.values.size <= _FEW
        if is_small and np.issubdtype(tensor.values.dtype, np.integer):
            found |= {abs(int(value)) for value in tensor.values.reshape(-1)}
    return set(sorted(n for n in found if 1 < n < MAX_SIZE)[-_MOST_CONSTANTS:])


def _around(constants: set[int]) -> set[int]:
    """Sizes just below, at and above each constant, and twice it."""
    sizes: set[int] = set()
    for constant in constants:
        sizes |= {constant - 1, constant, constant + 1, constant + 2, 2 * constant + 3}
    return sizes - {0}


def _evaluate(expr: Expr, symbols: Mapping[str, int]) -> int:
    try:
        return int(evaluate(expr, dict(symbols), {}))
    except KeyError as missing:
        raise ProofFailed(f"dimension {missing} can't be chosen freely") from missing


def _feeds(
    sym: SymbolicGraph,
    cut: Cut,
    lifted: LiftedMask,
    symbols: Mapping[str, int],
) -> dict[str, Array]:
    rng = np.random.default_rng(sum(symbols.values()))
    feeds: dict[str, Array] = {}
    zero_one = {s.tensor for s in lifted.sources if s.kind != "bool"}
    for tensor in (*cut.loaded, *cut.shaped):
        shape = [_evaluate(dim, symbols) for dim in _dims(sym, tensor)]
        is_bfloat16 = float_type(tensor) == "bfloat16"
        dtype = np.dtype(np.float32) if is_bfloat16 else numpy_type(tensor)
        if dtype is None:
            raise ProofFailed(f"numpy has no type for {tensor.name!r}")
        if any(tensor is shaped for shaped in cut.shaped):
            feeds[tensor.name] = np.zeros(shape, dtype)
        elif dtype == np.bool_ or np.issubdtype(dtype, np.integer):
            # What is tested for truth gets other numbers than 0 and 1 too, unless the
            # reading says that it relies on 0 and 1.
            relied = lifted.assumptions or tensor.name in zero_one
            choices = [0, 1] if relied or dtype == np.bool_ else _truths(dtype)
            feeds[tensor.name] = rng.choice(np.asarray(choices, dtype), shape)
        else:
            feeds[tensor.name] = rng.standard_normal(shape).astype(dtype)
    return feeds


def _truths(dtype: np.dtype[Any]) -> list[int]:
    """0, 1 and numbers that lose their truth when they are narrowed or negated."""
    limits = np.iinfo(dtype)
    wanted = (0, 0, 0, 1, 1, 1, 2, -1, 256, 2**32, limits.min, limits.max)
    return [number for number in wanted if limits.min <= number <= limits.max]


def _compare(
    block: AttentionBlock,
    lifted: LiftedMask,
    dims: list[int],
    sources: Mapping[str, Array],
    values: list[Array],
) -> None:
    """The stages, applied to a score of 0, against the program.

    Arrays keep size 1 where they don't vary, so that heads and batch cost nothing.
    """
    program = lifted.program
    dtype = np.dtype(_NUMPY_TYPES[block.chain.score_dtype])
    kept, scores = _staged(block, values, dtype)
    sizes = dict(zip(("B", "H", "Sq", "Sk"), dims, strict=True))
    keep = program.evaluate_keep(sizes, sources)
    if np.any(keep != kept):
        at = tuple(int(i) for i in np.argwhere(keep != kept)[0])
        raise ProofFailed(
            f"the program and the graph differ at (b, h, q, k) = {at} of {tuple(dims)}"
        )
    bias: Array = np.zeros((1, 1, 1, 1), dtype)
    if program.bias is not None:
        with np.errstate(over="ignore"):
            bias = evaluate(program.bias, index_grid(sizes), sources).astype(dtype)
    if not _same(np.where(keep, bias, 0), np.where(keep, scores, 0), dtype):
        raise ProofFailed("the program's bias and the graph's differ")
    if program.keep == TRUE:
        return
    again = np.asarray(evaluate(program.again, index_grid(sizes), sources), bool)
    with np.errstate(over="ignore", invalid="ignore"):
        fill = np.asarray(program.fill).astype(dtype)
        hidden = fill if program.fill_mode == "replace" else bias + fill
        hidden = np.where(again, hidden + fill, hidden)
    if not _same(np.where(keep, 0, hidden), np.where(keep, 0, scores), dtype):
        raise ProofFailed("hidden pairs hold another number than the program's")


_NUMPY_TYPES = {"float32": "float32", "float16": "float16", "bfloat16": "float32"}


def _staged(
    block: AttentionBlock, values: list[Array], dtype: np.dtype[Any]
) -> tuple[Array, Array]:
    """(pairs that no stage hides, what a score of 0 becomes), by the graph's own numbers."""
    kept: Array = np.ones((1, 1, 1, 1), bool)
    scores: Array = np.zeros((1, 1, 1, 1), dtype)
    threshold = hiding_threshold(block.chain.score_dtype)
    for stage, value in zip(block.chain.stages, values, strict=True):
        with np.errstate(over="ignore"):
            written = np.asarray(stage.written).astype(dtype)
            if stage.mode == "add":
                added = value.astype(dtype)
                if stage.factor != 1.0:
                    added = added * np.asarray(stage.factor, dtype)
                kept = kept & (added > threshold)
                scores = scores + added
            elif stage.mode == "floor":
                scores = np.maximum(scores, written)
            else:
                keep = value if stage.mode == "keep" else ~value
                kept, scores = kept & keep, np.where(keep, scores, written)
    return kept, scores


def _same(ours: Array, theirs: Array, dtype: np.dtype[Any]) -> bool:
    """Whether numbers agree, up to the order of sums."""
    return bool(np.allclose(ours, theirs, rtol=8 * float(np.finfo(dtype).eps), atol=0))


def _program_sources(
    sym: SymbolicGraph, lifted: LiftedMask, feeds: Mapping[str, Array]
) -> dict[str, Array]:
    sources: dict[str, Array] = {}
    for source in lifted.sources:
        if source.table is not None:
            sources[source.operand.name] = source.table.to_dense()
        else:
            tensor = sym.tensors[source.tensor]
            value = tensor.values if isinstance(tensor, gs.Constant) else feeds[source.tensor]
            sources[source.operand.name] = value != 0 if source.kind == "bool" else value
    return sources
