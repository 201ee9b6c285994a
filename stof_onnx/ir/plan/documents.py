"""Records to documents and back: names and objects become indices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from stof_onnx.ir.plan.layout import Document, unsound
from stof_onnx.ir.plan.quantities import Ceil, Quantity, Term
from stof_onnx.ir.plan.records import (
    Argument,
    Bucket,
    Cover,
    DataType,
    Float32,
    Int32,
    Int64,
    Kernel,
    Launch,
    Plan,
    Range,
    Symbol,
    Tactic,
    TensorPointer,
    Variant,
    WorkspacePointer,
)

_T = TypeVar("_T")


def to_document(plan: Plan) -> Document:
    """The plan in plain values, not checked.

    Raises:
        MalformedNodeError: a quantity, range or cover uses a symbol that the plan doesn't have.
    """
    writer = _Writer(plan)
    types = [*plan.input_types, *plan.output_types]
    return {
        "operator": plan.operator,
        "producer": plan.producer,
        "inputs": len(plan.input_types),
        "outputs": len(plan.output_types),
        "types": [int(element_type) for element_type in types],
        "symbols": [
            {
                "name": symbol.name,
                "source": symbol.source,
                "tensor": symbol.tensor,
                "axes": list(symbol.axes),
            }
            for symbol in plan.symbols
        ],
        "checks": writer.ranges(plan.checks),
        "covers": [writer.cover(cover) for cover in plan.covers],
        "images": list(plan.images),
        "variants": [writer.variant(variant) for variant in plan.variants],
    }


class _Writer:
    """What turns a plan's names and images into indices."""

    def __init__(self, plan: Plan) -> None:
        self._symbols = {symbol.name: i for i, symbol in enumerate(plan.symbols)}
        self._images = {image: i for i, image in enumerate(plan.images)}

    def variant(self, variant: Variant) -> Document:
        major, minor = variant.capability
        kernels = {kernel: i for i, kernel in enumerate(variant.kernels)}
        return {
            "target": variant.target,
            "major": major,
            "minor": minor,
            "match": variant.match,
            "kernels": [self._kernel(kernel) for kernel in variant.kernels],
            "buckets": [
                {
                    "ranges": self.ranges(bucket.ranges),
                    "tactic": dict(bucket.tactic),
                    "workspace": self._quantity(bucket.workspace),
                    "launches": [
                        self._launch(launch, kernels[launch.kernel]) for launch in bucket.launches
                    ],
                }
                for bucket in variant.buckets
            ],
        }

    def ranges(self, ranges: Sequence[Range]) -> list[Document]:
        return [
            {"symbol": self._symbol(bounds.symbol), "min": bounds.min, "max": bounds.max}
            for bounds in ranges
        ]

    def cover(self, cover: Cover) -> Document:
        return {"symbol": self._symbol(cover.symbol), "length": self._quantity(cover.length)}

    def _kernel(self, kernel: Kernel) -> Document:
        return {
            "template": kernel.template,
            "entry": kernel.entry,
            "kind": kernel.kind,
            "image": self._images[kernel.image],
            "registers": kernel.registers,
            "static_shared": kernel.static_shared,
            "max_dynamic_shared": kernel.max_dynamic_shared,
        }

    def _launch(self, launch: Launch, kernel: int) -> Document:
        return {
            "kernel": kernel,
            "grid": [self._quantity(size) for size in launch.grid],
            "block": list(launch.block),
            "shared": self._quantity(launch.shared),
            "arguments": [self._argument(argument) for argument in launch.arguments],
        }

    def _argument(self, argument: Argument) -> Document:
        match argument:
            case TensorPointer(source, tensor, offset, alignment):
                return {"kind": source, "tensor": tensor, "offset": offset, "alignment": alignment}
            case WorkspacePointer(place, alignment):
                offset_terms = self._quantity(place)
                return {"kind": "workspace", "offset": offset_terms, "alignment": alignment}
            case Int32(value):
                return {"kind": "i32", "value": self._quantity(value)}
            case Int64(value):
                return {"kind": "i64", "value": self._quantity(value)}
            case Float32(number):
                return {"kind": "f32", "value": repr(number)}

    def _quantity(self, quantity: Quantity) -> list[Document]:
        return [
            {
                "factor": term.factor,
                "parts": [
                    {"symbol": self._symbol(part.symbol), "divisor": part.divisor}
                    for part in term.parts
                ],
            }
            for term in quantity.terms
        ]

    def _symbol(self, name: str) -> int:
        if name not in self._symbols:
            known = ", ".join(self._symbols) or "none, as it has no symbols"
            raise unsound("a quantity, range or cover", f"of symbol {name!r}", known)
        return self._symbols[name]


def from_document(document: Document) -> Plan:
    """The plan of a document that has been checked."""
    reader = _Reader(document)
    types = [DataType(number) for number in document["types"]]
    return Plan(
        operator=document["operator"],
        producer=document["producer"],
        input_types=tuple(types[: document["inputs"]]),
        output_types=tuple(types[document["inputs"] :]),
        symbols=tuple(
            Symbol(entry["name"], entry["source"], entry["tensor"], tuple(entry["axes"]))
            for entry in document["symbols"]
        ),
        checks=reader.ranges(document["checks"]),
        variants=_tuple(reader.variant, document["variants"]),
        covers=_tuple(reader.cover, document["covers"]),
    )


def _tuple(read: Callable[[Any], _T], entries: Sequence[Any]) -> tuple[_T, ...]:
    return tuple(read(entry) for entry in entries)


class _Reader:
    """What turns a document's indices into names and images."""

    def __init__(self, document: Document) -> None:
        self._symbols: list[str] = [entry["name"] for entry in document["symbols"]]
        self._images: list[bytes] = document["images"]

    def variant(self, entry: Document) -> Variant:
        kernels = _tuple(self._kernel, entry["kernels"])
        return Variant(
            target=entry["target"],
            capability=(entry["major"], entry["minor"]),
            match=entry["match"],
            buckets=tuple(
                Bucket(
                    ranges=self.ranges(bucket["ranges"]),
                    tactic=Tactic(bucket["tactic"]),
                    workspace=self._quantity(bucket["workspace"]),
                    launches=tuple(
                        self._launch(launch, kernels[launch["kernel"]])
                        for launch in bucket["launches"]
                    ),
                )
                for bucket in entry["buckets"]
            ),
        )

    def ranges(self, entries: Sequence[Document]) -> tuple[Range, ...]:
        return tuple(
            Range(self._symbols[entry["symbol"]], entry["min"], entry["max"]) for entry in entries
        )

    def cover(self, entry: Document) -> Cover:
        return Cover(self._symbols[entry["symbol"]], self._quantity(entry["length"]))

    def _kernel(self, entry: Document) -> Kernel:
        return Kernel(**{**entry, "image": self._images[entry["image"]]})

    def _launch(self, entry: Document, kernel: Kernel) -> Launch:
        x, y, z = map(self._quantity, entry["grid"])
        threads_x, threads_y, threads_z = entry["block"]
        return Launch(
            kernel=kernel,
            grid=(x, y, z),
            block=(threads_x, threads_y, threads_z),
            shared=self._quantity(entry["shared"]),
            arguments=_tuple(self._argument, entry["arguments"]),
        )

    def _argument(self, entry: Document) -> Argument:
        match entry["kind"]:
            case "workspace":
                return WorkspacePointer(self._quantity(entry["offset"]), entry["alignment"])
            case "i32":
                return Int32(self._quantity(entry["value"]))
            case "i64":
                return Int64(self._quantity(entry["value"]))
            case "f32":
                return Float32(float(entry["value"]))
            case source:
                return TensorPointer(source, entry["tensor"], entry["offset"], entry["alignment"])

    def _quantity(self, entries: Sequence[Document]) -> Quantity:
        return Quantity(
            tuple(
                Term(
                    entry["factor"],
                    tuple(
                        Ceil(self._symbols[part["symbol"]], part["divisor"])
                        for part in entry["parts"]
                    ),
                )
                for entry in entries
            )
        )
