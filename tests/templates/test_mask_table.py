"""The template of StofMaskTable: its launch, its code, and the kernel itself, run on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from stof_onnx.ir.errors import InputError, MalformedNodeError
from stof_onnx.ir.expr import Const, Expr, loads, variables
from stof_onnx.ir.expr.build import and_, ge, gt, integer, not_, or_
from stof_onnx.ir.expr.ops import Array
from stof_onnx.ir.mask.program import (
    B_INDEX,
    H_INDEX,
    K_INDEX,
    Q_INDEX,
    MaskProgram,
    Operand,
)
from stof_onnx.ir.operators.mask_table import SHARED_BY_BATCHES, MaskTable, words_per_tile
from stof_onnx.ir.operators.masked_attention import TableInput
from stof_onnx.ir.operators.tensor_info import TensorInfo
from stof_onnx.ir.plan import (
    Bucket,
    DataType,
    Kernel,
    Plan,
    ResolvedLaunch,
    Variant,
    encode,
    launches,
)
from stof_onnx.ir.target import Target
from stof_onnx.jit.compile import compile_kernels
from stof_onnx.jit.job import CompileJob
from stof_onnx.templates import mask_table
from stof_onnx.templates.mask_source import MaskSource, mask_source
from stof_onnx.templates.mask_table import Parameters
from stof_onnx.templates.table_node import LARGEST_KEY_TILES, TableNode
from tests.ir.mask_tables import blocky, expected
from tests.templates.kernel_on_cpu import KernelOnCpu
from tests.templates.mask_cases import (
    CAUSAL,
    documents,
    load,
    padding,
    random_bool,
    same_document,
    window,
)
from tests.templates.mask_on_cpu import FIRST_INPUT, Case, CompiledMasks, dense_states
from tests.templates.mask_on_cpu import check as check_mask

b, h, q, k = B_INDEX, H_INDEX, Q_INDEX, K_INDEX
SIZES = Operand("sizes", "tensor", 3)
"""An operand that nothing loads: [B, Sq, Sk] tells the sizes."""
DENSE = load("m", b, h, q, k)
TYPES = {"bool": DataType.INT8, "int32": DataType.INT32, "int64": DataType.INT64}


def node_of(
    keep: Expr, sources: Mapping[str, Array], heads: int, tile: tuple[int, int]
) -> TableNode:
    """A node whose last input is SIZES."""
    operands = tuple(Operand(name, "tensor", x.ndim) for name, x in sources.items())
    last = len(operands)
    has_batches = bool({"b", "B"} & variables(keep))
    batch = (last, 0) if has_batches else SHARED_BY_BATCHES
    record = MaskTable(
        MaskProgram(keep, operands=(*operands, SIZES)), heads, (batch, (last, 1), (last, 2)), tile
    )
    types = [TYPES[str(x.dtype)] for x in sources.values()]
    infos = [TensorInfo(dtype, (None,) * o.rank) for dtype, o in zip(types, operands, strict=True)]
    record = MaskTable.from_attributes(record.attributes(), "table")
    return TableNode(record, (*infos, TensorInfo(DataType.INT8, (None,) * 3)))


def plan_of(node: TableNode, parameters: Parameters) -> Plan:
    """The plan with a kernel that nobody compiled."""
    limit = mask_table.max_dynamic_shared(node, parameters)
    kernel = Kernel(mask_table.NAME, mask_table.ENTRY, "cubin", b"code", 32, 0, limit)
    launch = mask_table.launch(node, parameters, kernel)
    workspace = mask_table.workspace(node, parameters)
    bucket = Bucket((), parameters.tactic(), workspace, (launch,))
    plan = Plan(
        node.operator,
        "test",
        node.input_types,
        node.output_types,
        mask_table.symbols(node),
        node.checks,
        (Variant.of(Target.parse("sm_80"), (bucket,)),),
    )
    encode(plan)  # it is sound
    return plan


Shapes = list[tuple[int, ...]]


def output_shapes(node: TableNode, sizes: tuple[int, int, int, int]) -> Shapes:
    """As docs/operators.md has them."""
    batch, heads, queries, keys = sizes
    (tile_q, tile_k), groups = node.record.tile, batch * heads
    rows, columns = -(-queries // tile_q), -(-keys // tile_k)
    words = words_per_tile(node.record.tile)
    return [(groups, rows, 2), (groups, rows, columns), (groups, rows, columns, words)]


def launch_of(
    node: TableNode, sizes: tuple[int, int, int, int], shapes: Shapes, threads: int = 128
) -> tuple[ResolvedLaunch, ...]:
    """What is launched at these shapes of the inputs."""
    return launches(plan_of(node, Parameters(threads)), (8, 0), shapes, output_shapes(node, sizes))


# ---------------------------------------------------------------------------------------
# The launch.


@pytest.mark.parametrize(
    ("sizes", "tile", "grid", "shared"),
    [
        ((1, 1, 1, 1), (64, 64), 1, 1),
        ((1, 1, 64, 64), (64, 64), 1, 1),
        ((2, 3, 65, 129), (64, 64), 12, 3),
        ((2, 3, 65, 129), (16, 8), 30, 17),
        ((4, 1, 5, 0), (64, 64), 4, 0),
    ],
)
def test_a_block_a_row_of_tiles_and_a_byte_a_tile(
    sizes: tuple[int, int, int, int], tile: tuple[int, int], grid: int, shared: int
) -> None:
    batch, heads, queries, keys = sizes
    node = node_of(DENSE, {"m": np.zeros((0, 0, 0, 0), bool)}, heads, tile)
    (launch,) = launch_of(node, sizes, [sizes, (batch, queries, keys)])
    assert (launch.grid, launch.block, launch.shared) == ((grid, 1, 1), (128, 1, 1), shared)
    kinds = [(one.kind, one.tensor, one.value, one.alignment) for one in launch.arguments[:3]]
    assert kinds == [("output", 0, 0, 4), ("output", 1, 0, 4), ("output", 2, 0, 8)]
    assert [one.value for one in launch.arguments[3:]] == [*sizes, 0, *sizes]


def test_a_mask_that_batches_share_is_made_once() -> None:
    node = node_of(load("m", q, k), {"m": np.zeros((0, 0), bool)}, 1, (64, 64))
    assert "B" not in {symbol.name for symbol in mask_table.symbols(node)}
    (launch,) = launch_of(node, (1, 1, 70, 70), [(70, 70), (5, 70, 70)])
    assert launch.grid == (2, 1, 1)


@pytest.mark.parametrize("sizes", [(0, 1, 5, 5), (2, 1, 0, 5)])
def test_nothing_is_launched_where_nothing_is_written(sizes: tuple[int, int, int, int]) -> None:
    node = node_of(DENSE, {"m": np.zeros((0, 0, 0, 0), bool)}, 1, (64, 64))
    assert launch_of(node, sizes, [sizes, (sizes[0], *sizes[2:])]) == ()


@pytest.mark.parametrize(
    ("sizes", "symbol"),
    [
        ((2**24 + 1, 1, 8, 8), "B"),
        ((1, 1, 2**24 + 1, 8), "Sq"),
        ((1, 1, 8, LARGEST_KEY_TILES * 8 + 1), "Sk"),
        ((2**20, 1, 2**16, 2**3), "tiles"),
    ],
)
def test_sizes_beyond_the_limits_are_named(sizes: tuple[int, int, int, int], symbol: str) -> None:
    node = node_of(DENSE, {"m": np.zeros((0, 0, 0, 0), bool)}, 1, (8, 8))
    with pytest.raises(InputError, match=rf"^{symbol} = "):
        launch_of(node, sizes, [(1, 1, 1, 1), (sizes[0], *sizes[2:])])


def test_settings_and_refusals() -> None:
    node = node_of(DENSE, {"m": np.zeros((0, 0, 0, 0), bool)}, 1, (64, 64))
    assert mask_table.refusal(node.record) is None
    found = list(mask_table.candidates(node, Target.parse("portable")))
    assert [reason for _, reason in found] == [None] * 3
    assert dict(found[0][0].tactic()) == {"template": "mask_table", "threads": 256}


def test_an_operand_of_a_wrong_type_is_refused() -> None:
    node = node_of(DENSE, {"m": np.zeros((0, 0, 0, 0), bool)}, 1, (64, 64))
    wrong = replace(node, inputs=(TensorInfo(DataType.FLOAT, (None,) * 4), node.inputs[1]))
    with pytest.raises(MalformedNodeError, match="'m' of type FLOAT, loaded as bool"):
        mask_table.source(wrong, Parameters())


# ---------------------------------------------------------------------------------------
# The kernel.


@dataclass(frozen=True)
class TableCase:
    """A program and what it is run on; every array is made for sizes (B, H, Sq, Sk)."""

    keep: Expr
    sizes: tuple[int, int, int, int]
    sources: Mapping[str, Array] = field(default_factory=dict)
    tile: tuple[int, int] = (16, 24)

    @property
    def node(self) -> TableNode:
        return node_of(self.keep, self.sources, self.sizes[1], self.tile)

    def wanted_keep(self) -> Array:
        """By numpy."""
        names = dict(zip(("B", "H", "Sq", "Sk"), self.sizes, strict=True))
        keep = self.node.record.mask.evaluate_keep(names, dict(self.sources))
        return np.broadcast_to(keep, self.sizes)


_RNG = np.random.default_rng(11)


def dense_case(sizes: tuple[int, int, int, int], tile: tuple[int, int]) -> TableCase:
    return TableCase(DENSE, sizes, {"m": blocky(_RNG, sizes, 16)}, tile)


DENSE_CASES = [
    dense_case(sizes, tile)
    for sizes in [(1, 1, 1, 1), (2, 3, 37, 53), (1, 2, 64, 128), (2, 1, 9, 300), (1, 1, 70, 64)]
    for tile in [(8, 8), (64, 64), (24, 40)]
] + [
    dense_case((1, 1, 10, 8 * 150), (16, 8)),  # more tiles than threads
    TableCase(DENSE, (1, 1, 40, 40), {"m": np.zeros((1, 1, 40, 40), bool)}, (16, 16)),
    TableCase(DENSE, (1, 1, 40, 40), {"m": np.ones((1, 1, 40, 40), bool)}, (16, 16)),
]
_37x53 = (2, 4, 37, 53)
PROGRAMS = {
    # Of what Ranges decide as a whole nothing is looked at.
    "no mask": TableCase(Const(True), (1, 1, 37, 53)),
    "nothing kept": TableCase(Const(False), (1, 1, 37, 53)),
    "causal window": TableCase(window(9), (1, 1, 37, 53), tile=(8, 8)),
    "everything at once": TableCase(
        and_(or_(load("m", b, integer(0), q, k), not_(window(20))), CAUSAL, load("p", b, k)),
        _37x53,
        {"m": blocky(_RNG, (2, 1, 37, 53), 16), "p": padding(50, 20)},
        (8, 16),
    ),
    "documents, 64 bits": TableCase(
        same_document("d"), (2, 1, 53, 53), {"d": documents("int64")}, (8, 8)
    ),
    "own window a head": TableCase(
        and_(ge(integer(9), k), gt(load("n", h, kind="int"), q)),
        (1, 4, 37, 53),
        {"n": np.array([0, 5, 37, 20], np.int32)},
    ),
    "transposed, shared by batches": TableCase(
        load("m", k, q), (1, 1, 37, 53), {"m": random_bool(53, 37)}, (8, 8)
    ),
}


def run(
    kernel: KernelOnCpu, case: TableCase, threads: int, *, backwards: bool = False
) -> list[Array]:
    """The table that the kernel makes of a case."""
    batch, _, queries, keys = case.sizes
    held = [x.astype(np.int8) if x.dtype == bool else x for x in case.sources.values()]
    inputs = [*held, np.zeros((batch, queries, keys), np.int8)]
    shapes = [x.shape for x in inputs]
    (launch,) = launch_of(case.node, case.sizes, shapes, threads)
    outputs = [(shape, "int32") for shape in output_shapes(case.node, case.sizes)]
    return kernel.launch(launch, inputs, outputs, backwards=backwards)


def compiled(case: TableCase, threads: int, directory: Path) -> KernelOnCpu:
    """The kernel of a case's program and tile."""
    directory.mkdir(exist_ok=True)
    source = mask_table.source(case.node, Parameters(threads))
    shared = ("states", "TileState")
    return KernelOnCpu(source, mask_table.HEADERS, mask_table.ENTRY, shared, directory)


def check(case: TableCase, got: list[Array]) -> None:
    for array, wanted in zip(got, expected(case.wanted_keep(), case.tile), strict=True):
        np.testing.assert_array_equal(array, wanted, err_msg=str(case.keep))


@pytest.fixture(scope="module")
def dense_kernels(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, int], KernelOnCpu]:
    tiles = {case.tile: case for case in DENSE_CASES}
    return {
        tile: compiled(case, 64, tmp_path_factory.mktemp("dense")) for tile, case in tiles.items()
    }


@pytest.mark.parametrize("case", DENSE_CASES, ids=lambda c: f"{c.sizes}-{c.tile}")
def test_the_kernel_makes_the_table_of_a_dense_mask(
    case: TableCase, dense_kernels: dict[tuple[int, int], KernelOnCpu]
) -> None:
    kernel = dense_kernels[case.tile]
    check(case, run(kernel, case, 64))
    check(case, run(kernel, case, 64, backwards=True))


def test_rows_without_keys_are_counted(
    dense_kernels: dict[tuple[int, int], KernelOnCpu],
) -> None:
    case = TableCase(DENSE, (2, 1, 40, 0), {"m": np.zeros((2, 1, 40, 0), bool)}, (8, 8))
    counts, columns, bitmaps = run(dense_kernels[8, 8], case, 64)
    assert counts.shape == (2, 5, 2)
    assert not counts.any()
    assert (columns.size, bitmaps.size) == (0, 0)


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_kernel_makes_the_table_of_any_program(name: str, tmp_path: Path) -> None:
    case = PROGRAMS[name]
    check(case, run(compiled(case, 128, tmp_path), case, 128))


TARGETS = ["sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ["dense", "everything at once"])
def test_the_template_compiles(name: str, target: str) -> None:
    case = DENSE_CASES[1] if name == "dense" else PROGRAMS[name]
    node = replace(case.node, record=replace(case.node.record, tile=(64, 64)))
    folder = Path(mask_table.__file__).parents[1] / "kernels"
    headers = tuple((header, (folder / header).read_text()) for header in mask_table.HEADERS)
    parameters = [setting for setting, _ in mask_table.candidates(node, Target.parse(target))]
    jobs = [
        CompileJob(
            mask_table.source(node, setting),
            mask_table.ENTRY,
            Target.parse(target).architecture,
            headers,
        )
        for setting in parameters
    ]
    for setting, kernel in zip(parameters, compile_kernels(jobs, cache=None), strict=True):
        resources = kernel.resources
        assert resources is not None
        assert not kernel.warnings
        assert resources.spill_stores_bytes == resources.spill_loads_bytes == 0
        assert resources.local_bytes == resources.static_shared_bytes == 0
        # A block fits into the 65536 registers of a multiprocessor.
        assert resources.registers * setting.threads <= 65536


# ---------------------------------------------------------------------------------------
# Reading the table in an attention kernel.


@dataclass(frozen=True)
class ReadCase(Case):
    """A mask of which a run-time table is read; the operands are there, but not needed."""

    table: TableInput = field(default=TableInput((16, 16), by_batch=True, by_head=True))

    def inputs(self) -> list[Array]:
        keep = self.wanted_keep()
        keep = keep if self.table.by_batch else keep[:1]
        keep = keep if self.table.by_head else keep[:, :1]
        return [*super().inputs(), *expected(np.ascontiguousarray(keep), self.table.tile)]

    def source(self) -> MaskSource:
        loaded = {name for name, value in self.sources.items() if value.dtype == bool}
        types = [DataType.HALF] * FIRST_INPUT
        types += [DataType.INT8 if name in loaded else DataType.FLOAT for name in self.sources]
        types += [DataType.INT32] * 3
        return mask_source(self.program, tuple(types), FIRST_INPUT, table=self.table)


def read_case(
    keep: Expr,
    sources: Mapping[str, Array],
    *,
    by_batch: bool,
    by_head: bool,
    bias: Expr | None = None,
    tile: tuple[int, int] = (16, 16),
) -> ReadCase:
    operands = tuple(Operand(name, "tensor", x.ndim) for name, x in sources.items())
    program = MaskProgram(keep, bias, operands=operands)
    table = TableInput(tile, by_batch, by_head)
    table.validate(program)
    return ReadCase(program, _37x53, sources, (16, 8), table=table)


READ = {
    "by batch and head": read_case(
        DENSE, {"m": blocky(_RNG, _37x53, 16)}, by_batch=True, by_head=True
    ),
    "by batch": read_case(
        load("m", b, integer(0), q, k),
        {"m": blocky(_RNG, (2, 1, 37, 53), 16)},
        by_batch=True,
        by_head=False,
    ),
    "by head": read_case(
        load("m", h, q, k), {"m": blocky(_RNG, (1, 4, 37, 53), 16)[0]}, by_batch=False, by_head=True
    ),
    "shared": read_case(
        load("m", q, k),
        {"m": blocky(_RNG, (1, 1, 37, 53), 16)[0, 0]},
        by_batch=False,
        by_head=False,
        tile=(32, 8),
    ),
    "with a bias": read_case(
        load("m", b, q, k),
        {"m": blocky(_RNG, (2, 1, 37, 53), 16)[:, 0], "s": _RNG.random(4).astype(np.float32)},
        by_batch=True,
        by_head=False,
        bias=load("s", h, kind="float"),
    ),
    "bias of the mask's own tensor": read_case(
        load("m", b, q, k),
        {"m": random_bool(2, 37, 53)},
        by_batch=True,
        by_head=False,
        bias=Const(0.5),
    ),
}


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> CompiledMasks:
    return CompiledMasks(READ.values(), tmp_path_factory.mktemp("readers"))


@pytest.mark.parametrize("name", READ)
def test_attention_kernels_read_the_table(name: str, readers: CompiledMasks) -> None:
    case = READ[name]
    (outcome,) = readers.run([case])
    check_mask(case, outcome)
    # Where the kernel's tile is the table's, nothing is left open.
    whole = replace(case, tile=case.table.tile)
    (outcome,) = readers.run([whole])
    dropped, kept = dense_states(whole.wanted_keep(), whole.tile)
    np.testing.assert_array_equal(outcome.can_be_true, kept)
    np.testing.assert_array_equal(outcome.can_be_false, dropped)


def test_operands_of_keep_alone_are_no_arguments() -> None:
    source = READ["with a bias"].source()
    assert "operand0" not in source.text
    assert {load.source for load in loads(READ["with a bias"].program.keep)} == {"m"}
    pointers = [p.name for p in source.parameters if "*" in p.declaration]
    assert pointers == ["operand1", "table_tile_counts", "table_tile_columns", "table_bitmaps"]
