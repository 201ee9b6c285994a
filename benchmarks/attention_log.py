"""Times the attention kernels for the log in docs/kernels.md, beside PyTorch's own.

    python benchmarks/attention_log.py [--quick] [--json FILE]
    python benchmarks/attention_log.py --table FILE.json    (the Markdown table of a result)

Each cell runs StofMaskedAttention through the plugin library, and scaled_dot_product_attention with
the same mask: as a dense tensor, or, for the full and causal masks, without one. Both are compared
with float64 on sampled rows before they are timed; a wrong answer has no time. Times are medians
of CUDA-graph replays, each over another one of several input sets that together exceed the L2
cache. Needs a GPU and PyTorch.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stof_onnx import planning
from stof_onnx.gpu_detect import survey_gpus
from stof_onnx.ir.block_table import BlockTable
from stof_onnx.ir.expr import Const, Expr, Load
from stof_onnx.ir.expr.build import absolute, add, and_, eq0, ge0, integer, mod, mul, or_
from stof_onnx.ir.mask.program import B_INDEX, K_INDEX, Q_INDEX, MaskProgram, Operand
from stof_onnx.ir.operators.masked_attention import OP_TYPE, MaskedAttention, TensorLayout
from stof_onnx.ir.operators.tensor_info import TensorInfo
from stof_onnx.ir.plan import DataType, Plan, as_array, encode
from stof_onnx.ir.target import Target
from stof_onnx.jit.cache import KernelCache
from stof_onnx.jit.nvrtc import find_nvrtc
from stof_onnx.plugin_host import Plugin, TensorDesc
from stof_onnx.templates.attention_node import AttentionNode

SHAPES = ((8, 12, 512, 64), (8, 12, 2048, 64), (4, 12, 4096, 64), (1, 32, 4096, 128))
LONG = (1, 32, 16384, 128)
INPUT_SETS = 6
REPLAYS = 30
SAMPLED_ROWS = 64
# Measured on an H100 80GB HBM3: an 8192^3 float16 product, and a copy within the device.
PEAK_FLOPS, PEAK_BYTES = 790e12, 3.0e12


def minus(a: Expr, b: Expr) -> Expr:
    """a - b."""
    return add(a, mul(integer(-1), b))


DISTANCE = minus(Q_INDEX, K_INDEX)
CAUSAL = ge0(DISTANCE)


def within(width: int) -> Expr:
    """|q - k| <= width."""
    return ge0(minus(integer(width), absolute(DISTANCE)))


@dataclass(frozen=True)
class Mask:
    """A mask as the node carries it and as a dense array.

    Attributes:
        program: of the node.
        dense: keep [B or 1, 1, S, S].
        operands: the node's inputs from 3 on.
    """

    program: MaskProgram
    dense: np.ndarray[Any, np.dtype[np.bool_]]
    operands: tuple[np.ndarray[Any, Any], ...] = ()


def arithmetic(keep: Expr, dense: np.ndarray[Any, Any]) -> Mask:
    """A mask without operands."""
    return Mask(MaskProgram(keep=keep), dense[None, None])


def make_mask(name: str, batch: int, length: int) -> Mask:
    """One of the masks, each written twice: as a program and as an array."""
    q, k = (np.arange(length, dtype=np.int32).reshape(shape) for shape in ((-1, 1), (1, -1)))
    if name == "full":
        return arithmetic(MaskProgram().keep, np.ones((length, length), bool))
    if name == "causal":
        return arithmetic(CAUSAL, q >= k)
    if name == "window":
        return arithmetic(within(128), abs(q - k) <= 128)
    if name == "causal window":
        near = ge0(minus(integer(1023), DISTANCE))
        return arithmetic(and_(CAUSAL, near), (q >= k) & (q - k < 1024))
    if name == "dilated":
        even = eq0(mod(DISTANCE, integer(2)))
        return arithmetic(and_(within(256), even), (abs(q - k) <= 256) & ((q - k) % 2 == 0))
    if name == "longformer":
        first = [ge0(minus(integer(63), index)) for index in (Q_INDEX, K_INDEX)]
        return arithmetic(or_(within(256), *first), (abs(q - k) <= 256) | (q < 64) | (k < 64))
    if name == "bigbird":
        return bigbird(length)
    return documents(batch, length)


def bigbird(length: int) -> Mask:
    """Neighbouring 64-blocks, the first 128 rows and columns, 3 random blocks a row."""
    rng, blocks = np.random.default_rng(0), length // 64
    i = np.arange(blocks)
    keep = abs(i[:, None] - i) <= 1
    keep[:2] = keep[:, :2] = True
    for row in range(2, blocks):
        keep[row, rng.choice(blocks, 3, replace=False)] = True
    dense = np.kron(keep, np.ones((64, 64), bool))
    table = BlockTable.from_dense(dense, tile=(64, 64))
    operand = Operand("t", "block_table", 3, (1, length, length), (64, 64))
    load = Load("t", (Const(0), Q_INDEX, K_INDEX), "bool")
    program = MaskProgram(keep=load, operands=(operand,))
    return Mask(program, dense[None, None], tuple(table.arrays().values()))


def documents(batch: int, length: int) -> Mask:
    """Packed sequences of 512 tokens on average, told apart by their numbers."""
    rng = np.random.default_rng(0)
    starts = rng.random((batch, length)) < 1 / 512
    numbers = np.cumsum(starts, axis=1).astype(np.int32)
    loads = [Load("d", (B_INDEX, index), "int") for index in (Q_INDEX, K_INDEX)]
    program = MaskProgram(keep=eq0(minus(*loads)), operands=(Operand("d", "tensor", 2),))
    dense = numbers[:, None, :, None] == numbers[:, None, None, :]
    return Mask(program, dense, (numbers,))


MASKS = (
    "full",
    "causal",
    "window",
    "causal window",
    "dilated",
    "longformer",
    "bigbird",
    "document",
)


def node_of(mask: Mask, heads: int, dim: int) -> AttentionNode:
    """A float16 node on [B, S, H * D] tensors."""
    layout = TensorLayout("BSHD", 0, dim)
    record = MaskedAttention(
        num_heads=heads,
        kv_num_heads=heads,
        head_dim=dim,
        value_head_dim=dim,
        scale=dim**-0.5,
        query=layout,
        key=layout,
        value=layout,
        output="BSHD",
        output_rank=3,
        mask=mask.program,
        score_dtype="float16",
        dtype="float16",
    )
    types = {"int32": DataType.INT32}
    operands = [TensorInfo(types[str(a.dtype)], (None,) * a.ndim) for a in mask.operands]
    rows = [TensorInfo(DataType.HALF, (None, None, heads * dim))] * 3
    return AttentionNode(record, (*rows, *operands))


class Ours:
    """The plugin on one set of tensors after the other."""

    def __init__(self, node: AttentionNode, plan: Plan, mask: Mask, inputs: list[Any]) -> None:
        attributes = {**node.record.attributes(), "plan": as_array(encode(plan))}
        self._plugin = Plugin.from_attributes(OP_TYPE, attributes).attach()
        self._operands = [torch.from_numpy(np.array(a)).cuda() for a in mask.operands]
        self._inputs = inputs
        self.outputs = [torch.full_like(q, torch.nan) for q, _, _ in inputs]
        tensors = [*inputs[0], *self._operands]
        self._in = [
            TensorDesc(t, tuple(x.shape)) for t, x in zip(node.input_types, tensors, strict=True)
        ]
        self._out = [TensorDesc(node.element_type, tuple(self.outputs[0].shape))]
        self._plugin.on_shape_change(self._in, self._out)

    def run(self, number: int) -> torch.Tensor:
        """Launch on input set `number`; returns the output, [B, S, H * D]."""
        tensors = [*self._inputs[number], *self._operands]
        self._plugin.enqueue(
            self._in,
            self._out,
            input_addresses=[t.data_ptr() for t in tensors],
            output_addresses=[self.outputs[number].data_ptr()],
            stream=torch.cuda.current_stream().cuda_stream,
        )
        return self.outputs[number]


def pytorch(name: str, mask: Mask, inputs: list[Any], heads: int) -> Callable[[int], torch.Tensor]:
    """PyTorch's attention; dense masks only where it has no better way to say it."""
    dense = None if name in ("full", "causal") else torch.from_numpy(mask.dense).cuda()
    split = [[t.unflatten(2, (heads, -1)).transpose(1, 2) for t in tensors] for tensors in inputs]

    def run(number: int) -> torch.Tensor:
        return torch.nn.functional.scaled_dot_product_attention(
            *split[number], attn_mask=dense, is_causal=name == "causal"
        )

    return run


def sampled_error(output: torch.Tensor, mask: Mask, tensors: list[Any], heads: int) -> float:
    """Largest absolute error on some rows of one head of each batch, against float64."""
    rng = np.random.default_rng(1)
    errors = []
    for b in range(len(output)):
        h = int(rng.integers(heads))
        q, k, v, got = (t[b].unflatten(1, (heads, -1))[:, h].double() for t in (*tensors, output))
        rows = torch.from_numpy(rng.choice(len(q), min(SAMPLED_ROWS, len(q)), replace=False)).cuda()
        keep = torch.from_numpy(mask.dense[min(b, len(mask.dense) - 1), 0]).cuda()[rows]
        scores = (q[rows] @ k.T * q.shape[1] ** -0.5).masked_fill(~keep, -torch.inf)
        wanted = torch.softmax(scores, dim=-1) @ v
        errors.append(float((got[rows] - wanted).abs().max()))
    return float(np.max(errors))  # Python's max would lose a NaN


def median_us(run: Callable[[int], object]) -> float:
    """Median time of a call, in microseconds."""
    for number in range(INPUT_SETS):
        run(number)
    torch.cuda.synchronize()
    graphs = []
    for number in range(INPUT_SETS):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run(number)
        graphs.append(graph)
    times = []
    for replay in range(REPLAYS + INPUT_SETS):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graphs[replay % INPUT_SETS].replay()
        stop.record()
        stop.synchronize()
        if replay >= INPUT_SETS:
            times.append(start.elapsed_time(stop) * 1e3)
    return statistics.median(times)


def measure(name: str, shape: tuple[int, int, int, int], mask: Mask, plan: Plan) -> dict[str, Any]:
    """One cell."""
    batch, heads, length, dim = shape
    generator = torch.Generator("cuda").manual_seed(0)
    inputs = [
        [
            torch.randn(batch, length, heads * dim, device="cuda", generator=generator).half()
            for _ in range(3)
        ]
        for _ in range(INPUT_SETS)
    ]
    ours = Ours(node_of(mask, heads, dim), plan, mask, inputs)
    peer = pytorch(name, mask, inputs, heads)
    errors = [
        sampled_error(ours.run(0), mask, inputs[0], heads),
        sampled_error(peer(0).transpose(1, 2).flatten(2), mask, inputs[0], heads),
    ]
    kept = float(mask.dense.mean())
    flops = 4 * batch * heads * length * length * dim * kept
    floor = max(flops / PEAK_FLOPS, 8 * batch * heads * length * dim / PEAK_BYTES) * 1e6
    # Each against the other's error; NaN is never right.
    right = [errors[i] <= 2 * errors[1 - i] + 1e-3 for i in (0, 1)]
    return {
        "mask": name,
        "shape": shape,
        "density": round(kept, 4),
        "ours_us": round(median_us(ours.run), 1) if right[0] else None,
        "sdpa_us": round(median_us(peer), 1) if right[1] else None,
        "floor_us": round(floor, 1),
        "max_err": errors[0],
        "sdpa_max_err": errors[1],
        "tactic": dict(plan.variants[0].buckets[-1].tactic),
    }


def markdown(facts: dict[str, Any]) -> str:
    """A result as a Markdown table."""
    keys = ("device", "driver_cuda", "torch", "compiler", "commit", "command")
    lines = [", ".join(f"{key} {facts[key]}" for key in keys) + ". Times in microseconds.", ""]
    lines += [
        "| mask | (B, H, S, D) | density | ours | SDPA | SDPA / ours | floor / ours | floor"
        " | error | SDPA's |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in facts["rows"]:
        ours, peer = row["ours_us"], row["sdpa_us"]
        cells = (
            row["mask"],
            tuple(row["shape"]),
            f"{row['density']:.3f}",
            ours,
            peer,
            "-" if ours is None or peer is None else f"{peer / ours:.2f}",
            "-" if ours is None else f"{row['floor_us'] / ours:.0%}",
            row["floor_us"],
            f"{row['max_err']:.1e}",
            f"{row['sdpa_max_err']:.1e}",
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main() -> int:
    """Measure every cell and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="leave the longest sequence out")
    parser.add_argument("--json", metavar="FILE", help="write the rows there")
    parser.add_argument("--table", metavar="FILE", help="print a result as Markdown, measure none")
    arguments = parser.parse_args()
    if arguments.table:
        text = markdown(json.loads(Path(arguments.table).read_text(encoding="utf-8")))
        print(text)  # noqa: T201
        return 0
    shapes = SHAPES if arguments.quick else (*SHAPES, LONG)
    masks = {(n, s): make_mask(n, s[0], s[2]) for s in shapes for n in MASKS}
    major, minor = torch.cuda.get_device_capability()
    nodes = {f"{n} {s}": node_of(mask, s[1], s[3]) for (n, s), mask in masks.items()}
    target = Target.parse(f"sm_{major}{minor}")
    plans = planning.make_plans(nodes, [target], producer="benchmark", cache=KernelCache())
    rows = []
    for (name, shape), mask in masks.items():
        row = measure(name, shape, mask, plans[f"{name} {shape}"])
        rows.append(row)
        print(  # noqa: T201 - the table is the program's result
            f"{name:<14}{shape!s:<22}{row['density']:>7.3f} ours {row['ours_us']!s:>8} us"
            f"  SDPA {row['sdpa_us']!s:>8} us  floor {row['floor_us']:>7} us"
            f"  errors {row['max_err']:.1e} {row['sdpa_max_err']:.1e}",
            flush=True,
        )
    if arguments.json:
        facts = {
            "device": torch.cuda.get_device_name(),
            "driver_cuda": survey_gpus().cuda_version,
            "torch": torch.__version__,
            "compiler": find_nvrtc().compiler,
            "commit": os.environ.get("STOF_COMMIT", ""),
            "command": "python " + " ".join(sys.argv),
            "rows": rows,
        }
        Path(arguments.json).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return 1 if any(row["ours_us"] is None for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
