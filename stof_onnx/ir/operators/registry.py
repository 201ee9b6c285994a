"""The stof operators by type: one line each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from stof_onnx.ir.expr.ops import Array
from stof_onnx.ir.operators import mask_table, masked_attention
from stof_onnx.ir.operators.builder import Builder

DOMAIN = "stof"
PLUGIN_VERSION = "1"


class Operator(Protocol):
    """A node's attributes as a record that can expand itself."""

    def expand(
        self,
        builder: Builder,
        inputs: Sequence[str],
        outputs: Sequence[str],
        constants: Mapping[str, Array],
        node: str,
    ) -> None:
        """Write the node as standard operators."""


class ReadOperator(Protocol):
    """Reads a record from a node's attributes."""

    def __call__(self, attributes: Mapping[str, Any], node: str) -> Operator:
        """Raises MalformedNodeError naming the node."""


OPERATORS: dict[str, ReadOperator] = {
    masked_attention.OP_TYPE: masked_attention.MaskedAttention.from_attributes,
    mask_table.OP_TYPE: mask_table.MaskTable.from_attributes,
}
