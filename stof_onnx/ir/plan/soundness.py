"""What makes a plan sound: the one place that checks documents, written or read (docs/plan.md)."""

from __future__ import annotations

from collections.abc import Sequence

from stof_onnx.ir.plan.layout import Document, unsound
from stof_onnx.ir.plan.payload import PLAN

MAX_THREADS = 1024  # of a block, on every GPU


def check_document(document: Document) -> None:
    """Check everything that both readers check of a payload.

    Raises:
        MalformedNodeError: a rule is broken; says where and by what.
    """
    PLAN.check(document, "")
    tensors = {"input": document["inputs"], "output": document["outputs"]}
    if len(document["types"]) != sum(tensors.values()):
        came = f"of {len(document['types'])} elements"
        raise unsound("types", came, f"{sum(tensors.values())}, one for each input and output")
    for i, symbol in enumerate(document["symbols"]):
        _check_index(f"symbols[{i}].tensor", symbol["tensor"], tensors[symbol["source"]])
    _check_different("symbols", [symbol["name"] for symbol in document["symbols"]])
    rules = _Rules(len(document["symbols"]), len(document["images"]), tensors)
    rules.ranges("checks", document["checks"])
    rules.covers("covers", document["covers"])
    for i, variant in enumerate(document["variants"]):
        rules.variant(f"variants[{i}]", variant)
    _check_different("variants", [variant["target"] for variant in document["variants"]])


def _check_index(where: str, index: int, count: int) -> None:
    if index >= count:
        raise unsound(where, f"{index}", f"a number below {count}")


def _check_different(where: str, names: Sequence[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise unsound(where, f"of which two are named {name!r}", "different names")
        seen.add(name)


class _Rules:
    """The rules between parts of a document, whose own types and bounds are right."""

    def __init__(self, symbols: int, images: int, tensors: dict[str, int]) -> None:
        self._symbols = symbols
        self._images = images
        self._tensors = tensors

    def variant(self, where: str, variant: Document) -> None:
        for i, kernel in enumerate(variant["kernels"]):
            _check_index(f"{where}.kernels[{i}].image", kernel["image"], self._images)
        last = len(variant["buckets"]) - 1
        for i, bucket in enumerate(variant["buckets"]):
            at = f"{where}.buckets[{i}]"
            if i == last and bucket["ranges"]:
                raise unsound(f"{at}.ranges", "that limit the last bucket", "none there")
            if i < last and not bucket["ranges"]:
                raise unsound(f"{at}.ranges", "of 0 elements", "one or more before the last bucket")
            self._bucket(at, bucket, len(variant["kernels"]))

    def ranges(self, where: str, ranges: Sequence[Document]) -> None:
        for i, bounds in enumerate(ranges):
            _check_index(f"{where}[{i}].symbol", bounds["symbol"], self._symbols)
            if bounds["min"] > bounds["max"]:
                came = f"{bounds['min']} to {bounds['max']}"
                raise unsound(f"{where}[{i}]", came, "min <= max")

    def covers(self, where: str, covers: Sequence[Document]) -> None:
        for i, cover in enumerate(covers):
            _check_index(f"{where}[{i}].symbol", cover["symbol"], self._symbols)
            self._quantity(f"{where}[{i}].length", cover["length"])

    def _bucket(self, where: str, bucket: Document, kernels: int) -> None:
        self.ranges(f"{where}.ranges", bucket["ranges"])
        self._quantity(f"{where}.workspace", bucket["workspace"])
        for i, launch in enumerate(bucket["launches"]):
            at = f"{where}.launches[{i}]"
            _check_index(f"{at}.kernel", launch["kernel"], kernels)
            for axis, size in enumerate(launch["grid"]):
                self._quantity(f"{at}.grid[{axis}]", size)
            x, y, z = launch["block"]
            if x * y * z > MAX_THREADS:
                raise unsound(f"{at}.block", f"{x} x {y} x {z}", f"at most {MAX_THREADS} threads")
            self._quantity(f"{at}.shared", launch["shared"])
            for number, argument in enumerate(launch["arguments"]):
                self._argument(f"{at}.arguments[{number}]", argument)

    def _argument(self, where: str, argument: Document) -> None:
        kind = argument["kind"]
        if kind in self._tensors:
            _check_index(f"{where}.tensor", argument["tensor"], self._tensors[kind])
        elif kind == "workspace":
            self._quantity(f"{where}.offset", argument["offset"])
        elif kind != "f32":
            self._quantity(f"{where}.value", argument["value"])

    def _quantity(self, where: str, terms: Sequence[Document]) -> None:
        for i, term in enumerate(terms):
            for j, part in enumerate(term["parts"]):
                at = f"{where}[{i}].parts[{j}].symbol"
                _check_index(at, part["symbol"], self._symbols)
