"""The records of a plan: what a stof node carries to run on a GPU (docs/plan.md).

All are frozen and compare by content. Symbols are referred to by name, kernels and images by
the object; the codec turns both into indices and stores each kernel and image once.
The records themselves check nothing: :mod:`stof_onnx.ir.plan.codec` does.
"""

from __future__ import annotations

import enum
import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from stof_onnx.ir.plan.quantities import Quantity
from stof_onnx.ir.target import Match, Target

Source = Literal["input", "output"]
ImageKind = Literal["cubin", "ptx"]


class DataType(enum.IntEnum):
    """Element types of tensors, with the numbers of TensorRT's ``nvinfer1::DataType``."""

    FLOAT = 0
    HALF = 1
    INT8 = 2
    INT32 = 3
    BOOL = 4
    UINT8 = 5
    FP8 = 6
    BF16 = 7
    INT64 = 8


@dataclass(frozen=True)
class Symbol:
    """A number read from a tensor's shape: the product of some of its dimensions.

    Attributes:
        name: what quantities call it ("Sq").
        source: whether the tensor is an input or an output of the node.
        tensor: its number among these.
        axes: the dimensions, at least one.
    """

    name: str
    source: Source
    tensor: int
    axes: tuple[int, ...]


@dataclass(frozen=True)
class Range:
    """Bounds of a symbol, both inclusive."""

    symbol: str
    min: int
    max: int

    def __str__(self) -> str:
        """As "Sq = 64" or "Sq in 1 ... 128"."""
        if self.min == self.max:
            return f"{self.symbol} = {self.min}"
        return f"{self.symbol} in {self.min} ... {self.max}"


@dataclass(frozen=True)
class Cover:
    """An axis that broadcasts: of size 1, or at least as long as it is read.

    Attributes:
        symbol: the size of the axis.
        length: how many of its elements are read where it isn't 1.
    """

    symbol: str
    length: Quantity

    def __str__(self) -> str:
        """As "mask_keys is 1 or at least Sk"."""
        return f"{self.symbol} is 1 or at least {self.length}"


@dataclass(frozen=True)
class Kernel:
    """A function of a compiled image.

    Attributes:
        template: the kernel template it was made from.
        entry: name of the function in the image.
        kind: what the image is.
        image: the cubin, or the text of the PTX without a final NUL.
        registers: of a thread; 0 if not known, as for PTX.
        static_shared: bytes of shared memory.
        max_dynamic_shared: the most bytes of dynamic shared memory that a launch asks for.
    """

    template: str
    entry: str
    kind: ImageKind
    image: bytes = field(repr=False)
    registers: int
    static_shared: int
    max_dynamic_shared: int


@dataclass(frozen=True)
class TensorPointer:
    """Kernel argument: the address of an input or output, plus an offset in bytes."""

    source: Source
    tensor: int
    offset: int = 0
    alignment: int = 1


@dataclass(frozen=True)
class WorkspacePointer:
    """Kernel argument: an address in the workspace; the offset is in bytes."""

    offset: Quantity
    alignment: int = 1


@dataclass(frozen=True)
class Int32:
    """Kernel argument: a 32-bit integer."""

    value: Quantity


@dataclass(frozen=True)
class Int64:
    """Kernel argument: a 64-bit integer."""

    value: Quantity


@dataclass(frozen=True)
class Float32:
    """Kernel argument: a 32-bit float, to which the value is rounded."""

    value: float

    def __post_init__(self) -> None:
        try:
            (rounded,) = struct.unpack("<f", struct.pack("<f", self.value))
        except OverflowError:  # finite, but beyond float32
            rounded = float("inf") if self.value > 0 else float("-inf")
        object.__setattr__(self, "value", rounded)


Argument = TensorPointer | WorkspacePointer | Int32 | Int64 | Float32


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel.

    Attributes:
        kernel: what is launched.
        grid: blocks in x, y and z.
        block: threads in x, y and z.
        shared: bytes of dynamic shared memory.
        arguments: in the order of the kernel's parameters.
    """

    kernel: Kernel
    grid: tuple[Quantity, Quantity, Quantity]
    block: tuple[int, int, int]
    shared: Quantity
    arguments: tuple[Argument, ...]


class Tactic(Mapping[str, Any]):
    """The parameters that a template was compiled with; frozen, keys sorted, hashable.

    Args:
        parameters: what JSON can write. Tuples become lists.

    Raises:
        TypeError, ValueError: JSON can't write it.
    """

    def __init__(self, parameters: Mapping[str, Any]) -> None:
        self.text = canonical_json(dict(parameters))

    def __getitem__(self, key: str) -> Any:
        return json.loads(self.text)[key]

    def __iter__(self) -> Iterator[str]:
        return iter(json.loads(self.text))

    def __len__(self) -> int:
        return len(json.loads(self.text))

    def __eq__(self, other: object) -> bool:
        return self.text == other.text if isinstance(other, Tactic) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.text)

    def __repr__(self) -> str:
        return f"Tactic({self.text})"

    def __str__(self) -> str:
        return ", ".join(f"{key} {json.dumps(value)}" for key, value in self.items())


def canonical_json(value: Any) -> str:
    """The one text of a JSON value: ASCII, keys sorted, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


@dataclass(frozen=True)
class Bucket:
    """How the node runs for some shapes.

    Attributes:
        ranges: all must hold; none in a variant's last bucket.
        tactic: the template's parameters, for people.
        workspace: bytes.
        launches: in stream order.
    """

    ranges: tuple[Range, ...]
    tactic: Tactic
    workspace: Quantity
    launches: tuple[Launch, ...]


@dataclass(frozen=True)
class Variant:
    """How the node runs on some GPUs.

    Attributes:
        target: name of the target ("sm_90").
        capability: compute capability (major, minor).
        match: which GPUs can run it, see :attr:`stof_onnx.ir.target.Target.match`.
        buckets: the first whose ranges hold is taken.
    """

    target: str
    capability: tuple[int, int]
    match: Match
    buckets: tuple[Bucket, ...]

    @classmethod
    def of(cls, target: Target, buckets: tuple[Bucket, ...]) -> Variant:
        """The variant for a target."""
        return cls(target.name, target.capability, target.match, buckets)

    @cached_property
    def kernels(self) -> tuple[Kernel, ...]:
        """What the launches use, each once, in order of first use."""
        launches = (launch for bucket in self.buckets for launch in bucket.launches)
        return tuple(dict.fromkeys(launch.kernel for launch in launches))


@dataclass(frozen=True)
class Plan:
    """How a stof node runs.

    Attributes:
        operator: the node's operator ("StofMaskedAttention").
        producer: who wrote the plan ("stof-onnx 0.1.0").
        input_types: element types of the node's inputs.
        output_types: element types of its outputs, at least one.
        symbols: what the quantities may use.
        checks: must hold for any shape; the plan doesn't fit the node otherwise.
        variants: one a target.
        covers: must hold for any shape; the node's inputs don't fit each other otherwise.
    """

    operator: str
    producer: str
    input_types: tuple[DataType, ...]
    output_types: tuple[DataType, ...]
    symbols: tuple[Symbol, ...]
    checks: tuple[Range, ...]
    variants: tuple[Variant, ...]
    covers: tuple[Cover, ...] = ()

    @cached_property
    def images(self) -> tuple[bytes, ...]:
        """The compiled code, each image once, in order of first use."""
        kernels = (kernel for variant in self.variants for kernel in variant.kernels)
        return tuple(dict.fromkeys(kernel.image for kernel in kernels))
