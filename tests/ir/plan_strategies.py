"""Plans for tests: a realistic one, random sound ones, and ways to break one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from stof_onnx.ir.plan import (
    Argument,
    Bucket,
    Ceil,
    Cover,
    DataType,
    Float32,
    Int32,
    Int64,
    Kernel,
    Launch,
    Plan,
    Quantity,
    Range,
    Symbol,
    Tactic,
    TensorPointer,
    Term,
    Variant,
    WorkspacePointer,
)
from stof_onnx.ir.plan.codec import pack
from stof_onnx.ir.plan.documents import to_document
from stof_onnx.ir.plan.payload import PLAN
from stof_onnx.ir.target import Target

B, H, Sq, Sk = map(Quantity.of, ("B", "H", "Sq", "Sk"))
ONE = Quantity.of(1)


def attention_kernel(target: Target, tile_q: int, shared: int) -> Kernel:
    """A kernel whose image is a placeholder."""
    kind = "ptx" if target.is_portable else "cubin"
    return Kernel(
        template="masked_attention_mma",
        entry=f"attention_{tile_q}",
        kind=kind,
        image=f"{kind} of {target.architecture} with tile {tile_q}".encode(),
        registers=0 if target.is_portable else 168,
        static_shared=128,
        max_dynamic_shared=shared,
    )


def attention_bucket(target: Target, tile_q: int, *ranges: Range) -> Bucket:
    """Attention in two steps, with a workspace between them."""
    attention = attention_kernel(target, tile_q, 65536)
    combine = Kernel("combine", "combine", attention.kind, b"combine", 32, 0, 0)
    return Bucket(
        ranges=ranges,
        tactic=Tactic({"tile_q": tile_q, "tile_k": 64, "stages": 2}),
        workspace=4 * B * H * Sq.ceil(tile_q) + 256,
        launches=(
            Launch(
                kernel=attention,
                grid=(Sq.ceil(tile_q), B * H, ONE),
                block=(128, 1, 1),
                shared=Quantity.of(32768),
                arguments=(
                    TensorPointer("input", 0, alignment=16),
                    TensorPointer("input", 1, offset=64, alignment=16),
                    WorkspacePointer(4 * B * H, alignment=4),
                    Int32(Sq),
                    Int64(B * H * Sq * 64),
                    Float32(0.08838834764831845),
                ),
            ),
            Launch(
                kernel=combine,
                grid=(B * Sq, ONE, ONE),
                block=(32, 4, 1),
                shared=Quantity(),
                arguments=(
                    WorkspacePointer(Quantity(), alignment=256),
                    TensorPointer("output", 0, alignment=16),
                    Int32(Sk + -1),
                    Float32(float("-inf")),
                ),
            ),
        ),
    )


def attention_plan() -> Plan:
    """A plan as `optimize` might write it, for three targets."""
    targets = [Target.parse(name) for name in ("portable", "sm_80", "sm_90")]
    return Plan(
        operator="StofMaskedAttention",
        producer="stof-onnx 0.1.0",
        input_types=(DataType.HALF, DataType.HALF, DataType.INT8),
        output_types=(DataType.HALF,),
        symbols=(
            Symbol("B", "input", 0, (0,)),
            Symbol("H", "input", 0, (1,)),
            Symbol("Sq", "input", 0, (2,)),
            Symbol("Sk", "input", 1, (2,)),
            Symbol("rows", "output", 0, (0, 1, 2)),
            Symbol("mask_heads", "input", 2, (1,)),
            Symbol("mask_keys", "input", 2, (2,)),
        ),
        checks=(Range("H", 12, 12), Range("Sk", 1, 2**31 - 1)),
        variants=tuple(
            Variant.of(
                target,
                (
                    attention_bucket(target, 16, Range("Sq", 0, 64), Range("B", 1, 8)),
                    attention_bucket(target, 64),
                ),
            )
            for target in targets
        ),
        covers=(Cover("mask_keys", Sk), Cover("mask_heads", H)),
    )


# --------------------------------------------------------------------------------- random plans

_INT64 = st.one_of(st.integers(-4, 300), st.integers(-(2**63), 2**63 - 1))
_UINT32 = st.one_of(st.integers(0, 300), st.integers(0, 2**32 - 1))
_NAMES = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=6)
_OFFSETS = st.integers(0, 2**63 - 1)
_ALIGNMENTS = st.integers(0, 31).map(lambda bit: 1 << bit)
_FLOATS = st.floats(width=32, allow_nan=False)
_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_NAMES, inner, max_size=3),
    max_leaves=4,
)
_BLOCKS = st.tuples(st.integers(1, 16), st.integers(1, 8), st.integers(1, 8))


def _tuples(elements: st.SearchStrategy[Any], at_least: int = 0) -> st.SearchStrategy[Any]:
    return st.lists(elements, min_size=at_least, max_size=at_least + 2).map(tuple)


def quantities(symbols: list[str]) -> st.SearchStrategy[Quantity]:
    """Quantities of any form, also such as arithmetic wouldn't build."""
    if not symbols:
        return st.builds(Quantity, _tuples(st.builds(Term, _INT64)))
    parts = st.builds(Ceil, st.sampled_from(symbols), st.integers(1, 2**63 - 1))
    return st.builds(Quantity, _tuples(st.builds(Term, _INT64, _tuples(parts))))


def _ranges(symbols: list[str]) -> st.SearchStrategy[Range]:
    bounds = st.tuples(_INT64, _INT64).map(sorted)
    return st.builds(lambda name, pair: Range(name, *pair), st.sampled_from(symbols), bounds)


def _covers(symbols: list[str]) -> st.SearchStrategy[Cover]:
    return st.builds(Cover, st.sampled_from(symbols), quantities(symbols))


def _arguments(inputs: int, outputs: int, symbols: list[str]) -> st.SearchStrategy[Argument]:
    tensors = [("input", i) for i in range(inputs)] + [("output", i) for i in range(outputs)]
    values = quantities(symbols)
    return st.one_of(
        st.builds(
            lambda tensor, offset, alignment: TensorPointer(*tensor, offset, alignment),
            st.sampled_from(tensors),
            _OFFSETS,
            _ALIGNMENTS,
        ),
        st.builds(WorkspacePointer, values, _ALIGNMENTS),
        st.builds(Int32, values),
        st.builds(Int64, values),
        st.builds(Float32, _FLOATS),
    )


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Any sound plan, small."""
    inputs, outputs = draw(st.integers(0, 3)), draw(st.integers(1, 2))
    sources = [("input", i) for i in range(inputs)] + [("output", i) for i in range(outputs)]
    names = draw(st.lists(_NAMES, unique=True, max_size=3))
    axes = _tuples(st.integers(0, 7), at_least=1)
    symbols = tuple(Symbol(name, *draw(st.sampled_from(sources)), draw(axes)) for name in names)
    kernels = st.builds(
        Kernel,
        template=_NAMES,
        entry=_NAMES,
        kind=st.sampled_from(["cubin", "ptx"]),
        image=st.sampled_from([b"\0", b"cubin", b"ptx", b"x" * 300]) | st.binary(min_size=1),
        registers=_UINT32,
        static_shared=_UINT32,
        max_dynamic_shared=_UINT32,
    )
    shared_kernels = draw(st.lists(kernels, min_size=1, max_size=3))
    values = quantities(names)
    launches = st.builds(
        Launch,
        kernel=st.sampled_from(shared_kernels),
        grid=st.tuples(values, values, values),
        block=_BLOCKS,
        shared=values,
        arguments=_tuples(_arguments(inputs, outputs, names)),
    )

    def bucket(ranges: tuple[Range, ...]) -> Bucket:
        tactic = Tactic(draw(st.dictionaries(_NAMES, _JSON, max_size=3)))
        return Bucket(ranges, tactic, draw(values), draw(_tuples(launches, at_least=1)))

    limited = _tuples(_tuples(_ranges(names), at_least=1)) if names else st.just(())
    variants = tuple(
        Variant(
            target=target,
            capability=(draw(_UINT32), draw(_UINT32)),
            match=draw(st.sampled_from(["exact", "minor", "newer"])),
            buckets=tuple(map(bucket, (*draw(limited), ()))),
        )
        for target in draw(st.lists(_NAMES, unique=True, min_size=1, max_size=2))
    )
    types = st.sampled_from(DataType)
    return Plan(
        operator=draw(_NAMES),
        producer=draw(_NAMES),
        input_types=tuple(draw(types) for _ in range(inputs)),
        output_types=tuple(draw(types) for _ in range(outputs)),
        symbols=symbols,
        checks=draw(_tuples(_ranges(names))) if names else (),
        variants=variants,
        covers=draw(_tuples(_covers(names))) if names else (),
    )


# --------------------------------------------------------------------------------- broken plans

Path = tuple[str | int, ...]
_BUCKET: Path = ("variants", 0, "buckets", 0)
_LAUNCH: Path = (*_BUCKET, "launches", 0)
_RANGE = {"symbol": 0, "min": 0, "max": 1}


def _argument(number: int, field: str) -> Path:
    return (*_LAUNCH, "arguments", number, field)


NEAR_MISSES: list[tuple[Path, Any, Any, str]] = [
    # path in the document of attention_plan(), the last sound value, the first unsound one,
    # the beginning of the message
    (("operator",), "~", "", "operator ''; wanted printable"),
    (("operator",), " ", "\x1f", "operator '"),
    (("producer",), "~", "\x7f", "producer '"),
    (("outputs",), 1, 0, "outputs 0; wanted 1 to"),
    (("inputs",), 3, 4, "types of 4 elements; wanted 5"),
    (("types",), [8, 0, 2, 1], [8, 0, 2], "types of 3 elements; wanted 4"),
    (("types", 3), 8, 9, "types[3] 9; wanted 0 to 8"),
    (("symbols", 0, "name"), "b", "", "symbols[0].name ''"),
    (("symbols", 0, "name"), "h", "H", "symbols of which two are named 'H'"),
    (("symbols", 0, "tensor"), 2, 3, "symbols[0].tensor 3; wanted a number below 3"),
    (("symbols", 4, "tensor"), 0, 1, "symbols[4].tensor 1; wanted a number below 1"),
    (("symbols", 0, "axes"), [0], [], "symbols[0].axes of 0 elements"),
    (("symbols", 0, "axes", 0), 7, 8, "symbols[0].axes[0] 8; wanted 0 to 7"),
    (("checks", 0, "symbol"), 6, 7, "checks[0].symbol 7; wanted a number below 7"),
    (("checks", 0, "min"), 12, 13, "checks[0] 13 to 12; wanted min <= max"),
    (("covers", 0, "symbol"), 6, 7, "covers[0].symbol 7; wanted a number below 7"),
    (("covers", 0, "length", 0, "parts", 0, "symbol"), 6, 7, "covers[0].length[0].parts[0].symbol"),
    (("covers", 0, "length", 0, "parts", 0, "divisor"), 1, 0, "covers[0].length[0].parts[0].div"),
    (("images", 0), b"x", b"", "images[0] that is empty"),
    (("variants",), ..., [], "variants of 0 elements"),
    (("variants", 0, "target"), "sm_81", "", "variants[0].target ''"),
    (("variants", 0, "target"), "sm_81", "sm_80", "variants of which two are named 'sm_80'"),
    (("variants", 0, "buckets"), ..., [], "variants[0].buckets of 0 elements"),
    (("variants", 0, "kernels", 0, "template"), "t", "", "variants[0].kernels[0].template ''"),
    (("variants", 0, "kernels", 0, "entry"), "e", "e\0", "variants[0].kernels[0].entry 'e"),
    (("variants", 0, "kernels", 2, "image"), 6, 7, "variants[0].kernels[2].image"),
    ((*_BUCKET, "ranges"), [_RANGE], [], "variants[0].buckets[0].ranges of 0 elements"),
    (
        ("variants", 0, "buckets", 1, "ranges"),
        [],
        [_RANGE],
        "variants[0].buckets[1].ranges that limit the last",
    ),
    ((*_BUCKET, "ranges", 0, "symbol"), 6, 7, "variants[0].buckets[0].ranges[0].symbol 7"),
    ((*_BUCKET, "ranges", 0, "max"), 0, -1, "variants[0].buckets[0].ranges[0] 0 to -1"),
    ((*_BUCKET, "workspace", 0, "parts", 0, "symbol"), 6, 7, "variants[0].buckets[0].workspace"),
    ((*_BUCKET, "workspace", 0, "parts", 0, "divisor"), 1, 0, "variants[0].buckets[0].workspace"),
    ((*_BUCKET, "workspace", 0, "parts", 0, "divisor"), 1, -1, "variants[0].buckets[0].workspace"),
    ((*_BUCKET, "launches"), ..., [], "variants[0].buckets[0].launches of 0 elements"),
    ((*_LAUNCH, "kernel"), 2, 3, "variants[0].buckets[0].launches[0].kernel 3"),
    ((*_LAUNCH, "grid", 1, 0, "parts", 1, "symbol"), 6, 7, "variants[0].buckets[0].launches[0]"),
    ((*_LAUNCH, "block", 1), 8, 9, "variants[0].buckets[0].launches[0].block 128 x 9 x 1"),
    ((*_LAUNCH, "block", 2), 1, 0, "variants[0].buckets[0].launches[0].block[2] 0"),
    (
        (*_LAUNCH, "block"),
        [1, 1, 1024],
        [2**31, 2**31, 4],
        "variants[0].buckets[0].launches[0].block 2147483648 x",
    ),
    ((*_LAUNCH, "shared", 0, "parts"), [], [{"symbol": 7, "divisor": 1}], "variants[0].buckets[0]"),
    (_argument(0, "tensor"), 2, 3, "variants[0].buckets[0].launches[0].arguments[0].tensor 3"),
    (_argument(0, "offset"), 0, -1, "variants[0].buckets[0].launches[0].arguments[0].offset -1"),
    (_argument(0, "alignment"), 2**31, 2**31 + 1, "variants[0].buckets[0].launches[0].arguments"),
    (_argument(0, "alignment"), 1, 0, "variants[0].buckets[0].launches[0].arguments[0].alignment"),
    (_argument(0, "alignment"), 32, 48, "variants[0].buckets[0].launches[0].arguments[0].align"),
    (_argument(2, "alignment"), 4, 3, "variants[0].buckets[0].launches[0].arguments[2].alignment"),
    ((*_argument(2, "offset"), 0, "parts", 0, "symbol"), 6, 7, "variants[0].buckets[0].launches"),
    ((*_argument(3, "value"), 0, "parts", 0, "symbol"), 6, 7, "variants[0].buckets[0].launches[0]"),
    ((*_argument(4, "value"), 0, "parts", 0, "symbol"), 6, 7, "variants[0].buckets[0].launches[0]"),
    (_argument(5, "value"), "inf", "nan", "variants[0].buckets[0].launches[0].arguments[5].value"),
]
"""Unsound values that both readers refuse, beside sound ones that they accept (...: as it is)."""


def with_value(path: Path, value: Any) -> dict[str, Any]:
    """The document of :func:`attention_plan` with another value at a path."""
    document = copy.deepcopy(to_document(attention_plan()))
    place: Any = document
    for step in path[:-1]:
        place = place[step]
    assert path[-1] in place if isinstance(place, dict) else path[-1] < len(place)
    if value is not ...:
        place[path[-1]] = value
    return document


def unchecked(document: dict[str, Any]) -> bytes:
    """A document in an envelope that is right, whatever the document says."""
    payload = bytearray()
    PLAN.write(document, payload)
    return pack(bytes(payload))


Damage = Callable[[bytes], bytes]


@st.composite
def damages(draw: st.DrawFn, at_most: int = 3) -> Damage:
    """Changes of a few bytes: set, flipped, dropped, doubled, cut, or a number replaced."""
    steps = draw(
        st.lists(
            st.tuples(
                st.sampled_from(["flip", "set", "drop", "double", "cut", "number"]),
                st.floats(0, 1, exclude_max=True),
                st.integers(0, 255),
            ),
            min_size=1,
            max_size=at_most,
        )
    )

    def damage(data: bytes) -> bytes:
        for kind, place, value in steps:
            data = _damaged(data, kind, int(place * len(data)), value)
        return data

    return damage


def _damaged(data: bytes, kind: str, at: int, value: int) -> bytes:
    head, tail = data[:at], data[at:]
    match kind:
        case "flip":
            return head + bytes([tail[0] ^ (1 << value % 8)]) + tail[1:] if tail else data
        case "set":
            return head + bytes([value]) + tail[1:]
        case "drop":
            return head + tail[1 + value % 8 :]
        case "double":
            return head + tail[: 1 + value % 8] + tail
        case "cut":
            return head
        case _:
            numbers = (b"\xff" * 4, b"\0" * 4, b"\0\0\0\x80", bytes([value, 0, 0, 0]), b"\xff" * 8)
            number = numbers[value % len(numbers)]
            return head + number + tail[len(number) :]
