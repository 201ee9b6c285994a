"""Rewrite a model: replace each attention block by a StofMaskedAttention node."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import onnx
import onnx_graphsurgeon as gs
from onnx import helper

from stof_onnx.ir.block_table import BlockTable
from stof_onnx.ir.errors import InputError
from stof_onnx.ir.expr import Const, Expr, to_text
from stof_onnx.ir.mask import classify
from stof_onnx.ir.mask.classify import MaskKind
from stof_onnx.ir.mask.program import MaskProgram
from stof_onnx.ir.operators.builder import DTYPES
from stof_onnx.ir.operators.masked_attention import MaskedAttention
from stof_onnx.ir.operators.registry import DOMAIN, PLUGIN_VERSION
from stof_onnx.ir.operators.tensor_info import ONNX_TYPES, TensorInfo
from stof_onnx.rewriter.attention.block import AttentionBlock, Refused
from stof_onnx.rewriter.attention.find import (
    find_in_bodies,
    is_attention_like,
    score_product,
    score_symbols,
)
from stof_onnx.rewriter.attention.match import match_block
from stof_onnx.rewriter.attention.replace import Replacer
from stof_onnx.rewriter.export import export_model
from stof_onnx.rewriter.functions import with_functions_inlined
from stof_onnx.rewriter.graph import (
    ImportedGraph,
    Node,
    Tensor,
    import_graph,
    node_name,
    numpy_type,
)
from stof_onnx.rewriter.lowerings.lower import Lowered, lower_all
from stof_onnx.rewriter.masks.fills import NotLiftable, UnknownDimension
from stof_onnx.rewriter.masks.lift import LiftedMask, lift, lift_dense
from stof_onnx.rewriter.masks.proof import ProofFailed, prove
from stof_onnx.rewriter.passes.head_transpose import sink_head_transposes
from stof_onnx.rewriter.passes.known_shapes import fold_known_shapes
from stof_onnx.rewriter.passes.mask_tables import AddedTable, add_mask_tables, added_tables
from stof_onnx.rewriter.passes.merge_projections import merge_projections
from stof_onnx.rewriter.symbolic import SymbolicGraph, Unliftable

Advance = Callable[[], None]
Refuse = Callable[[MaskedAttention], str | None]
"""Says why a node couldn't be run, or None."""

# How a refusal starts that is a bug of ours; tests look for it.
INTERNAL_ERROR = "stof-onnx failed on this block"
_OLDEST_OPSET = 13
_DENSE = "read at run time as it is"
_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class FusedBlock:
    """A block that became a stof node.

    Attributes:
        block: as matched.
        attributes: of the node.
        kind: of the mask.
        proof: what the mask was compared at.
        assumptions: what the reading relies on.
        query_shape, key_shape: symbolic shapes of the tensors that are read.
        node: name of the stof node.
        tables: the constant tables that the mask program loads, by operand name.
        sizes: (B, H, Sq, Sk) as far as they are numbers.
        inputs: type and shape of each of the node's inputs.
        is_proven: False where the mask is read densely, as it is.
    """

    block: AttentionBlock
    attributes: MaskedAttention
    kind: MaskKind
    proof: str
    assumptions: tuple[str, ...]
    query_shape: tuple[str, ...]
    key_shape: tuple[str, ...]
    node: str
    tables: Mapping[str, BlockTable]
    sizes: tuple[int | None, ...]
    inputs: tuple[TensorInfo, ...] = ()
    is_proven: bool = True


@dataclass(frozen=True)
class RefusedBlock:
    """A block that stays as it is.

    Attributes:
        name: of its Softmax (or of the attention operator).
        reason: naming the node that doesn't fit.
        num_heads: 0 if unknown.
        head_dim: 0 if unknown.
        read: operators that had been read when the reason was met, from the Softmax on.
    """

    name: str
    reason: str
    num_heads: int = 0
    head_dim: int = 0
    read: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rewrite:
    """The rewritten model and what happened to each attention-like block.

    Attributes:
        model: the rewritten model; the original where nothing was fused, or in place.
        blocks: each attention-like block.
        nodes_before, nodes_after: operators in the graph.
        notes: what a user should know.
        tables: the StofMaskTable nodes that were added.
    """

    model: onnx.ModelProto
    blocks: tuple[FusedBlock | RefusedBlock, ...]
    nodes_before: int
    nodes_after: int
    notes: tuple[str, ...] = ()
    tables: tuple[AddedTable, ...] = ()

    @property
    def is_changed(self) -> bool:
        """Whether any block was fused."""
        return any(isinstance(block, FusedBlock) for block in self.blocks)


@dataclass
class _Context:
    imported: ImportedGraph
    sym: SymbolicGraph
    refuse: Refuse
    replacer: Replacer
    proofs: dict[Any, str] = field(default_factory=dict)


def find_blocks(graph: gs.Graph, sym: SymbolicGraph) -> list[Node]:
    """The Softmax of each attention-like block, in graph order."""
    return [n for n in graph.nodes if n.op == "Softmax" and is_attention_like(graph, sym, n)]


def rewrite(
    model: onnx.ModelProto,
    on_found: Callable[[int], None] = lambda count: None,
    on_block: Advance = lambda: None,
    refuse: Refuse = lambda record: None,
    mask_tables: bool = False,
    *,
    in_place: bool = False,
) -> Rewrite:
    """Replace every attention block that can be read and proven.

    Args:
        model: not changed, unless ``in_place``.
        on_found: called with the number of attention-like blocks.
        on_block: called after each of them.
        refuse: asked before a block is replaced; a reason leaves it as it is.
        mask_tables: give dense run-time masks a StofMaskTable node, which lets kernels skip
            their empty tiles; without kernels it would only cost.
        in_place: make the rewritten model out of the given one, whose weights are then not
            copied.
    """
    _require_opset(model)
    whole = with_functions_inlined(model)
    imported = import_graph(whole)
    graph = imported.graph
    lowered, unlowered = lower_all(imported, SymbolicGraph(graph))
    sym = SymbolicGraph(graph)
    # Where a dimension of the scores is 0 there is nothing to compute; knowing that it is
    # not lets more shapes be decided.
    sym = SymbolicGraph(graph, score_symbols(graph, sym))
    fold_known_shapes(imported, sym)
    softmaxes = find_blocks(graph, sym)
    on_found(len(softmaxes))
    context = _Context(imported, sym, refuse, Replacer(imported, sym))
    operators = {id(operator.softmax): operator for operator in lowered}
    blocks: list[FusedBlock | RefusedBlock] = [
        RefusedBlock(refusal.name, str(refusal)) for refusal in unlowered
    ]
    blocks += [
        RefusedBlock(node_name(softmax), f"it is in the body of {owner}, which is not rewritten")
        for softmax, owner in find_in_bodies(graph)
    ]
    for softmax in softmaxes:
        blocks.append(_fuse(context, softmax, operators.pop(id(softmax), None)))
        on_block()
    for operator in operators.values():
        # A Softmax that doesn't look like attention: between constants, say.
        operator.undo()
        blocks.append(RefusedBlock(operator.name, f"{operator.name!r} multiplies constants"))
    before = len(model.graph.node)
    if not any(isinstance(block, FusedBlock) for block in blocks):
        return Rewrite(model, tuple(blocks), before, before)
    if mask_tables:
        add_mask_tables(imported, sym)
    sink_head_transposes(imported, sym)
    merge_projections(imported, sym)
    nodes = {node.name: node for node in imported.graph.nodes}
    final = tuple(_as_written(context, block, nodes) for block in blocks)
    domains = [(DOMAIN, int(PLUGIN_VERSION))]
    rewritten = export_model(imported, whole, domains, in_place=in_place)
    after = len(rewritten.graph.node)
    tables = added_tables(imported)
    return Rewrite(rewritten, final, before, after, _notes(final), tables)


def _require_opset(model: onnx.ModelProto) -> None:
    versions = [e.version for e in model.opset_import if e.domain in ("", "ai.onnx")]
    if versions and versions[0] < _OLDEST_OPSET:
        raise InputError(
            f"the model uses opset {versions[0]}",
            f"opset {_OLDEST_OPSET} or newer",
            "convert it with onnx.version_converter, or export it again",
        )


def _as_written(
    context: _Context, block: FusedBlock | RefusedBlock, nodes: Mapping[str, Node]
) -> FusedBlock | RefusedBlock:
    """The block with the attributes and inputs that the passes after the replacement left."""
    if isinstance(block, RefusedBlock):
        return block
    node = nodes[block.node]
    record = MaskedAttention.from_attributes(node.attrs, node.name)
    inputs = tuple(_tensor_info(context, tensor, record) for tensor in node.inputs)
    return replace(block, attributes=record, inputs=inputs)


def _tensor_info(context: _Context, tensor: Tensor, record: MaskedAttention) -> TensorInfo:
    """Dimensions matter for query, key and value alone, whose symbolic shapes are known."""
    if tensor.name not in context.sym.tensors or isinstance(tensor, gs.Constant):
        dims = tensor.shape or ()
    else:
        dims = [d.value if isinstance(d, Const) else None for d in context.sym.shape(tensor)]
    dtype = numpy_type(tensor)
    # What numpy has no type for is bfloat16, and so are query, key and value then.
    number = DTYPES[record.dtype] if dtype is None else helper.np_dtype_to_tensor_dtype(dtype)
    return TensorInfo(
        ONNX_TYPES[number], tuple(d if isinstance(d, int) and d > 0 else None for d in dims)
    )


def _fuse(context: _Context, softmax: Node, operator: Lowered | None) -> FusedBlock | RefusedBlock:
    """Replace one block; an operator that was lowered for it is put back where that fails."""
    result = _read_and_replace(context, softmax, operator)
    if operator is not None and isinstance(result, RefusedBlock):
        operator.undo()
    return result


def _read_and_replace(
    context: _Context, softmax: Node, operator: Lowered | None
) -> FusedBlock | RefusedBlock:
    try:
        block = match_block(context.imported.graph, context.sym, softmax)
        if operator is not None:
            block = replace(block, name=operator.name, nodes=1)
        lifted, proof = _lift_and_prove(context, block)
        attributes = _attributes(block, lifted.program)
        attributes.validate()
        unsupported = context.refuse(attributes)
        if unsupported is not None:
            raise Refused(softmax, f"no kernel runs it: {unsupported}")
    except Refused as refusal:
        return _refused(context, softmax, operator, str(refusal), refusal.read)
    except Unliftable as reason:
        return _refused(context, softmax, operator, f"a shape is unknown: {reason}")
    except Exception as error:  # a bug of ours must not cost the user the other blocks
        _LOGGER.debug("reading %s failed", softmax.name, exc_info=True)
        text = f"{INTERNAL_ERROR} ({type(error).__name__}: {error}); please report it"
        return _refused(context, softmax, operator, text)
    node = context.replacer.replace(block, lifted, attributes)
    tables = {s.operand.name: s.table for s in lifted.sources if s.table is not None}
    sizes = tuple(int(d.value) if isinstance(d, Const) else None for d in block.dims)
    queries, keys = sizes[2:]
    lengths = None if queries is None or keys is None else (queries, keys)
    return FusedBlock(
        block=block,
        attributes=attributes,
        kind=classify(lifted.program, tables, lengths),
        proof=proof,
        assumptions=(*block.assumptions, *lifted.assumptions),
        query_shape=_texts(context.sym.shape(block.query.tensor)),
        key_shape=_texts(context.sym.shape(block.key.tensor)),
        node=node.name,
        tables=tables,
        sizes=sizes,
        is_proven=not proof.startswith(_DENSE),
    )


def _refused(
    context: _Context,
    softmax: Node,
    operator: Lowered | None,
    reason: str,
    read: tuple[str, ...] = (),
) -> RefusedBlock:
    """With the sizes, as far as the score product gives them."""
    name = node_name(softmax) if operator is None else operator.name
    product = score_product(context.sym, softmax)
    try:
        heads = context.sym.shape(softmax.inputs[0])[1]
        dim = context.sym.shape(product.inputs[0])[-1] if product is not None else None
    except (Unliftable, IndexError):
        return RefusedBlock(name, reason, read=read)
    count, size = (int(d.value) if isinstance(d, Const) else 0 for d in (heads, dim))
    return RefusedBlock(name, reason, count, size, read)


def _lift_and_prove(context: _Context, block: AttentionBlock) -> tuple[LiftedMask, str]:
    """The lifted mask and its proof; the dense mask where either fails."""
    try:
        lifted = _lift(context, block)
        return lifted, _prove(context, block, lifted)
    except (NotLiftable, ProofFailed) as reason:
        dense = lift_dense(context.sym, block)
        return dense, f"{_DENSE}, because {reason}"


def _lift(context: _Context, block: AttentionBlock) -> LiftedMask:
    """The program; a dimension that only the mask has is taken to be the number of keys.

    Exporters name the length of a padding mask over past and new tokens apart.
    """
    try:
        return lift(context.sym, block)
    except UnknownDimension as unknown:
        keys = block.dims[3]
        if unknown.name in block.chain.equal or isinstance(keys, Const):
            raise
        block.chain.equal[unknown.name] = keys
        lifted = lift(context.sym, block)
        note = f"dimensions {to_text(keys)!r} and {unknown.name!r} are taken to be equal"
        return replace(lifted, assumptions=(*lifted.assumptions, note))


def _prove(context: _Context, block: AttentionBlock, lifted: LiftedMask) -> str:
    """Blocks that share mask tensors and program share the proof."""
    stages = tuple((s.mode, s.fill, s.factor, s.index, id(s.tensor)) for s in block.chain.stages)
    key = (stages, block.dims, lifted.program.to_json())
    if key not in context.proofs:
        context.proofs[key] = prove(context.imported.graph, context.sym, block, lifted)
    return context.proofs[key]


def _attributes(block: AttentionBlock, program: MaskProgram) -> MaskedAttention:
    return MaskedAttention(
        num_heads=block.query.heads,
        kv_num_heads=block.key.heads,
        head_dim=block.head_dim,
        value_head_dim=block.value_head_dim,
        scale=block.chain.scale * block.query.scale * block.key.scale,
        softcap=block.chain.softcap,
        sinks=block.sinks is not None,
        query=block.query.layout,
        key=block.key.layout,
        value=block.value.layout,
        output=block.output.layout,
        output_rank=block.output.rank,
        mask=program,
        score_dtype=block.chain.score_dtype,
        dtype=block.dtype,
    )


def _texts(dims: Iterable[Expr]) -> tuple[str, ...]:
    return tuple(to_text(dim) for dim in dims)


def _notes(blocks: Iterable[FusedBlock | RefusedBlock]) -> tuple[str, ...]:
    notes: dict[str, None] = {}
    for block in blocks:
        if isinstance(block, FusedBlock):
            notes |= dict.fromkeys(block.assumptions)
            if not block.is_proven:
                notes[f"a mask is {block.proof}"] = None
    return tuple(notes)
