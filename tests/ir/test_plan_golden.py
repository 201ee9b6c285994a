"""A plan of format version 1 that never changes.

If a test here fails, the layout has changed: then VERSION and docs/plan.md have to change with
it, and this file. The bytes are written by hand from docs/plan.md. Covers came into version 1 on
purpose, before its first release.
"""

from __future__ import annotations

import zlib

from stof_onnx.ir.plan import (
    VERSION,
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
    decode,
    encode,
)
from stof_onnx.ir.plan.codec import unpack

PAYLOAD = """
04000000 53746f66                                   operator "Stof"
02000000 7630                                       producer "v0"
02000000 01000000                                   inputs 2, outputs 1
03000000 01000000 03000000 07000000                 types HALF, INT32, BF16
02000000                                            symbols: 2
  02000000 5371 00 01000000 01000000 02000000       "Sq", input 1, axes [2]
  01000000 72 01 00000000 02000000 00000000 01000000  "r", output 0, axes [0, 1]
01000000                                            checks: 1
  01000000 feffffffffffffff 0c00000000000000        "r" in -2 ... 12
02000000                                            covers: 2
  00000000 01000000 0100000000000000 01000000       "Sq": 1 or at least 1 term of 1 part
    01000000 0100000000000000                       r
  01000000 01000000 0c00000000000000 00000000       "r": 1 or at least 12
02000000                                            images: 2
  04000000 7f454c46
  01000000 70
02000000                                            variants: 2
  05000000 736d5f3930 09000000 00000000 00          "sm_90", 9.0, exact
  01000000                                          kernels: 1
    01000000 74 01000000 65 00                      template "t", entry "e", cubin
    00000000 a8000000 80000000 00000100             image 0, 168 registers, 128 B, 64 KiB
  02000000                                          buckets: 2
    01000000                                        ranges: 1
      00000000 0100000000000000 4000000000000000    "Sq" in 1 ... 64
    0a000000 7b2274696c65223a347d                   tactic {"tile":4}
    02000000                                        workspace: 2 terms
      0400000000000000 01000000 00000000 1000000000000000  4 * ceil(Sq / 16)
      0001000000000000 00000000                     256
    01000000                                        launches: 1
      00000000                                      kernel 0
      01000000 0100000000000000 02000000            grid x: 1 term of 2 parts
        00000000 1000000000000000                   ceil(Sq / 16)
        01000000 0100000000000000                   r
      01000000 0100000000000000 00000000            grid y: 1
      01000000 0100000000000000 00000000            grid z: 1
      80000000 01000000 01000000                    block 128, 1, 1
      00000000                                      shared: no terms
      06000000                                      arguments: 6
        00 01000000 4000000000000000 10000000       input 1, offset 64, alignment 16
        01 00000000 0000000000000000 01000000       output 0, offset 0, alignment 1
        02 00000000 00010000                        workspace, offset 0, alignment 256
        03 01000000 ffffffffffffffff 00000000       i32 -1
        04 01000000 0100000000000000 01000000 00000000 0100000000000000  i64 Sq
        05 0000003e                                 f32 0.125
    00000000                                        ranges: none
    02000000 7b7d                                   tactic {}
    00000000                                        workspace: no terms
    01000000 00000000 00000000 00000000 00000000    launches: 1, kernel 0, grid of no terms
      20000000 01000000 01000000 00000000 00000000  block 32, 1, 1, no shared, no arguments
  01000000 70 08000000 00000000 02                  "p", 8.0, newer
  01000000                                          kernels: 1
    01000000 74 01000000 65 01                      template "t", entry "e", PTX
    01000000 00000000 00000000 00000000             image 1, the rest 0
  01000000                                          buckets: 1
    00000000 02000000 7b7d 00000000                 no ranges, tactic {}, workspace 0
    01000000 00000000 00000000 00000000 00000000    launches: 1, kernel 0, grid of no terms
      20000000 01000000 01000000 00000000 00000000  block 32, 1, 1, no shared, no arguments
"""


def _simple(kernel: Kernel) -> Bucket:
    nothing = Quantity()
    launch = Launch(kernel, (nothing, nothing, nothing), (32, 1, 1), nothing, ())
    return Bucket((), Tactic({}), nothing, (launch,))


def golden_plan() -> Plan:
    """The plan that the bytes stand for."""
    cubin = Kernel("t", "e", "cubin", b"\x7fELF", 168, 128, 65536)
    ptx = Kernel("t", "e", "ptx", b"p", 0, 0, 0)
    tiles = Ceil("Sq", 16)
    launch = Launch(
        kernel=cubin,
        grid=(Quantity((Term(1, (tiles, Ceil("r"))),)), Quantity.of(1), Quantity.of(1)),
        block=(128, 1, 1),
        shared=Quantity(),
        arguments=(
            TensorPointer("input", 1, 64, 16),
            TensorPointer("output", 0),
            WorkspacePointer(Quantity(), 256),
            Int32(Quantity.of(-1)),
            Int64(Quantity.of("Sq")),
            Float32(0.125),
        ),
    )
    workspace = Quantity((Term(4, (tiles,)), Term(256)))
    bucket = Bucket((Range("Sq", 1, 64),), Tactic({"tile": 4}), workspace, (launch,))
    return Plan(
        operator="Stof",
        producer="v0",
        input_types=(DataType.HALF, DataType.INT32),
        output_types=(DataType.BF16,),
        symbols=(Symbol("Sq", "input", 1, (2,)), Symbol("r", "output", 0, (0, 1))),
        checks=(Range("r", -2, 12),),
        variants=(
            Variant("sm_90", (9, 0), "exact", (bucket, _simple(cubin))),
            Variant("p", (8, 0), "newer", (_simple(ptx),)),
        ),
        covers=(Cover("Sq", Quantity.of("r")), Cover("r", Quantity.of(12))),
    )


def golden_payload() -> bytes:
    """The hexadecimal columns of PAYLOAD: what stands before two spaces and a comment."""
    return bytes.fromhex("".join(line.strip().split("  ")[0] for line in PAYLOAD.splitlines()))


def golden_bytes() -> bytes:
    """The payload in a stored DEFLATE block, behind a header written by hand."""
    payload = golden_payload()
    size = len(payload).to_bytes(2, "little")
    block = b"\1" + size + bytes(255 - octet for octet in size) + payload
    header = [b"STOFPLAN", (1).to_bytes(4, "little"), (1).to_bytes(4, "little")]
    header += [len(payload).to_bytes(8, "little"), zlib.crc32(payload).to_bytes(4, "little")]
    return b"".join([*header, bytes(4), block])


def test_version_1_is_read() -> None:
    assert decode(golden_bytes()) == golden_plan()


def test_version_1_is_written() -> None:
    assert VERSION == 1
    data = encode(golden_plan())
    assert data[:28] == golden_bytes()[:28]
    assert unpack(data) == golden_payload()
