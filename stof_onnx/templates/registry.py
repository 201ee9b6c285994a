"""The kernel templates of each operator: one line each, the preferred one first."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from stof_onnx.ir.operators import mask_table, masked_attention
from stof_onnx.ir.plan import Cover, DataType, Kernel, Launch, Quantity, Range, Symbol, Tactic
from stof_onnx.ir.target import Target
from stof_onnx.templates import mask_table as mask_table_template
from stof_onnx.templates import masked_attention_mma


class Node(Protocol):
    """A stof node as templates see it: its attributes and the types of its tensors."""

    @property
    def operator(self) -> str:
        """The node's operator."""

    @property
    def record(self) -> Any:
        """Its attributes."""

    @property
    def input_types(self) -> tuple[DataType, ...]:
        """Element types of the inputs."""

    @property
    def output_types(self) -> tuple[DataType, ...]:
        """Element types of the outputs."""

    @property
    def checks(self) -> tuple[Range, ...]:
        """What must hold of the symbols for any kernel."""


class Parameters(Protocol):
    """A setting of a template's compile-time parameters."""

    def tactic(self) -> Tactic:
        """The parameters as the plan shows them."""


class Template(Protocol):
    """What a template's module offers. Nodes and parameters are of the module's own types."""

    NAME: str
    ENTRY: str
    HEADERS: tuple[str, ...]

    def refusal(self, record: Any) -> str | None:
        """Why no setting of the template can run such a node; None if some can."""

    def candidates(self, node: Any, target: Target) -> Iterator[tuple[Any, str | None]]:
        """Every setting, each with the reason why it can't be used, or None."""

    def source(self, node: Any, parameters: Any) -> str:
        """The translation unit."""

    def symbols(self, node: Any) -> tuple[Symbol, ...]:
        """What the launch's quantities use."""

    def covers(self, node: Any) -> tuple[Cover, ...]:
        """Which axes of the mask's operands are broadcast or read to a known length."""

    def workspace(self, node: Any, parameters: Any) -> Quantity:
        """Bytes of workspace."""

    def max_dynamic_shared(self, node: Any, parameters: Any) -> int:
        """The most bytes of dynamic shared memory that a launch asks for."""

    def launch(self, node: Any, parameters: Any, kernel: Kernel) -> Launch:
        """The launch record."""


TEMPLATES: dict[str, tuple[Template, ...]] = {
    masked_attention.OP_TYPE: (masked_attention_mma,),
    mask_table.OP_TYPE: (mask_table_template,),
}
