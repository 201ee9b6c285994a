"""Runs stof nodes through the plugin itself, with PyTorch's memory, streams and graphs.

The order of calls is TensorRT's: a plugin is made of the node's attributes, asked for types,
formats, workspace and tactics, configured and serialised; another one is made of what was
serialised, as an engine does; contexts are attached to that one, told shapes, and enqueued.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from stof_onnx.ir.operators.masked_attention import OP_TYPE, MaskedAttention
from stof_onnx.ir.operators.registry import DOMAIN, PLUGIN_VERSION
from stof_onnx.ir.plan import ATTRIBUTE, DataType, Plan, as_tensor, encode
from stof_onnx.ir.target import Target, parse_targets
from stof_onnx.jit.cache import DIRECTORY_VARIABLE, KernelCache
from stof_onnx.planning import make_plans
from stof_onnx.plugin_host import RUNTIME, Plugin, TensorDesc
from tests.gpu.cases import Config, Node, node_of_config
from tests.ir.attention_cases import Array

TYPES: dict[torch.dtype, DataType] = {
    torch.float32: DataType.FLOAT,
    torch.float16: DataType.HALF,
    torch.bfloat16: DataType.BF16,
    torch.int8: DataType.INT8,
    torch.int32: DataType.INT32,
    torch.int64: DataType.INT64,
}
_TORCH_TYPES = {dtype: kind for kind, dtype in TYPES.items()}
_GUARD_BYTES = 256
_GUARD = 0xA5
_POISON = -0x5A5A5A5B


def capability() -> tuple[int, int]:
    """Compute capability of the current device."""
    major, minor = torch.cuda.get_device_capability()
    return major, minor


def device_target() -> Target:
    """What "auto" stands for on this machine."""
    return parse_targets(["auto"], lambda: [capability()])[0]


def make_cache() -> KernelCache | None:
    """The kernel cache that the environment names, so that several runs compile once."""
    directory = os.environ.get(DIRECTORY_VARIABLE)
    return KernelCache(directory) if directory else None


class Plans:
    """Plans of configurations, compiled together by :meth:`prepare`."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._plans: dict[Config, Plan] = {}

    def prepare(self, configs: Iterable[Config]) -> None:
        """Compile what isn't compiled yet, on all cores."""
        missing = [config for config in configs if config not in self._plans]
        nodes = {str(config): node_of_config(config).template_node for config in missing}
        plans = make_plans(nodes, [self._target], producer="tests", cache=make_cache())
        self._plans.update((config, plans[str(config)]) for config in missing)

    def __getitem__(self, config: Config) -> Plan:
        self.prepare([config])
        return self._plans[config]


def to_device(values: Array) -> torch.Tensor:
    """An array on the GPU, bfloat16 included; written by a copy, not by a kernel."""
    values = np.array(values, order="C")  # PyTorch wants arrays that can be written
    if values.dtype.name == "bfloat16":
        return torch.from_numpy(values.view(np.int16)).cuda().view(torch.bfloat16)
    return torch.from_numpy(values).cuda()


def desc(tensor: torch.Tensor) -> TensorDesc:
    """A tensor as TensorRT describes it."""
    return TensorDesc(TYPES[tensor.dtype], tuple(tensor.shape))


@dataclass(frozen=True)
class Guarded:
    """Poisoned memory for an output, between guard bytes.

    Attributes:
        tensor: the output.
        memory: all of it.
    """

    tensor: torch.Tensor
    memory: torch.Tensor

    @classmethod
    def empty(cls, shape: Sequence[int], dtype: DataType, guard: int = _GUARD_BYTES) -> Guarded:
        """NaN (in integers a number nobody writes) in every element."""
        kind = _TORCH_TYPES[dtype]
        size = int(np.prod(shape)) * kind.itemsize
        memory = torch.full((size + 2 * guard,), _GUARD, dtype=torch.uint8, device="cuda")
        tensor = memory[guard : guard + size].view(kind).view(tuple(shape))
        tensor.fill_(float("nan") if kind.is_floating_point else _POISON)
        return cls(tensor, memory)

    def check(self) -> None:
        """Assert that nothing was written outside of the output."""
        size = self.tensor.numel() * self.tensor.element_size()
        guard = (self.memory.numel() - size) // 2
        assert bool((self.memory[:guard] == _GUARD).all()), "written before the output"
        assert bool((self.memory[guard + size :] == _GUARD).all()), "written behind the output"


class Engine:
    """A node as a built engine holds it.

    Args:
        operator: the node's operator.
        attributes: the node's attributes, the plan among them.
        serialized: False to attach contexts to the plugin that was built, without the way through
            an engine file.
    """

    def __init__(
        self, operator: str, attributes: dict[str, Any], *, serialized: bool = True
    ) -> None:
        self._built = Plugin.from_attributes(operator, attributes)
        self.operator, self._serialized = operator, serialized
        self._runtime: Plugin | None = None

    @classmethod
    def of(cls, record: MaskedAttention, plan: Plan, **options: Any) -> Engine:
        """The engine of an attention node."""
        return cls(OP_TYPE, node_attributes(record.attributes(), plan), **options)

    def build(self, inputs: Sequence[TensorDesc]) -> None:
        """What a builder does with inputs of these shapes; any shape may run afterwards."""
        built = self._built
        types = built.output_types([x.dtype for x in inputs])
        shapes = built.output_shapes(inputs)
        outputs = [TensorDesc(*pair) for pair in zip(types, shapes, strict=True)]
        for position in range(len(inputs) + len(outputs)):
            assert built.supports_format(position, inputs, outputs), f"tensor {position}"
        either = [
            [TensorDesc(x.dtype, (-1,) * len(x.dims)) for x in some] for some in (inputs, outputs)
        ]
        known = [*inputs, *outputs]
        built.configure(*either, smallest=known, usual=known, largest=known)
        assert built.workspace_size(inputs, outputs) >= 0
        tactics = built.tactics()
        if self._serialized:
            self._runtime = Plugin.create(self.operator, built.serialize(), phase=RUNTIME)
        else:
            self._runtime = built
        if tactics:
            self._runtime.set_tactic(tactics[0])

    def context(self, inputs: Sequence[torch.Tensor]) -> Context:
        """An execution context, ready for inputs of these shapes."""
        torch.cuda.current_stream()  # PyTorch makes its CUDA context current in this thread
        torch.cuda.synchronize()
        if self._runtime is None:
            self.build([desc(x) for x in inputs])
        assert self._runtime is not None
        context = Context(self._built, self._runtime.attach())
        context.set_shapes(inputs)
        return context

    def run(self, inputs: Sequence[torch.Tensor], *, guard: int = _GUARD_BYTES) -> Outputs:
        """Run once in a context of its own; what lies around the outputs is checked."""
        context = self.context(inputs)
        outputs = context.outputs(guard)
        context.enqueue(inputs, outputs)
        torch.cuda.synchronize()
        for output in outputs:
            output.check()
        return [output.tensor for output in outputs]


Outputs = list[torch.Tensor]


class Context:
    """An execution context: its own plugin, its own shapes."""

    def __init__(self, built: Plugin, attached: Plugin) -> None:
        self._built, self.plugin = built, attached
        self._inputs: list[TensorDesc] = []
        self._outputs: list[TensorDesc] = []
        self._workspace: torch.Tensor | None = None

    def set_shapes(self, inputs: Sequence[torch.Tensor]) -> None:
        """Prepare for inputs of these shapes."""
        self._inputs = [desc(x) for x in inputs]
        types = self._built.output_types([x.dtype for x in self._inputs])
        shapes = self._built.output_shapes(self._inputs)
        self._outputs = [TensorDesc(*pair) for pair in zip(types, shapes, strict=True)]
        size = self._built.workspace_size(self._inputs, self._outputs)
        self._workspace = torch.empty(size, dtype=torch.uint8, device="cuda") if size else None
        self.plugin.on_shape_change(self._inputs, self._outputs)

    def outputs(self, guard: int = _GUARD_BYTES) -> list[Guarded]:
        """Fresh, poisoned outputs."""
        return [Guarded.empty(x.dims, x.dtype, guard) for x in self._outputs]

    def enqueue(
        self,
        inputs: Sequence[torch.Tensor],
        outputs: Sequence[Guarded],
        stream: torch.cuda.Stream | None = None,
    ) -> None:
        """Launch on a stream, PyTorch's current one by default."""
        stream = stream or torch.cuda.current_stream()
        self.plugin.enqueue(
            self._inputs,
            self._outputs,
            input_addresses=[x.data_ptr() for x in inputs],
            output_addresses=[x.tensor.data_ptr() for x in outputs],
            workspace=0 if self._workspace is None else self._workspace.data_ptr(),
            stream=stream.cuda_stream,
        )


def node_attributes(attributes: dict[str, Any], plan: Plan) -> dict[str, Any]:
    """The attributes of a node in an optimized file."""
    fixed = {"plugin_version": PLUGIN_VERSION, "plugin_namespace": DOMAIN}
    return {**attributes, **fixed, ATTRIBUTE: as_tensor(encode(plan))}


def device_inputs(node: Node) -> list[torch.Tensor]:
    """The inputs of a node on the GPU."""
    return [to_device(x) for x in node.inputs]


def run_node(node: Node, plan: Plan, *, guard: int = _GUARD_BYTES) -> torch.Tensor:
    """The output of an attention node as [B, H, Sq, Dv]."""
    (output,) = Engine.of(node.record, plan).run(device_inputs(node), guard=guard)
    return heads_first(node.record, output)


def heads_first(record: MaskedAttention, output: torch.Tensor) -> torch.Tensor:
    """An output, whatever its layout, as [B, H, Sq, Dv]."""
    if record.output == "BHSD":
        return output
    shape = (*output.shape[:2], record.num_heads, record.value_head_dim)
    return output.reshape(shape).transpose(1, 2)
