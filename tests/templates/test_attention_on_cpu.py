"""The whole attention kernel, run on the CPU as a plan says, against the float64 oracle.

Products are float32 sums here, shared memory and barriers are those of cpu/cuda_blocks.h; the
rest is the generated code. tests/gpu runs the same cases and more on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import pytest

from stof_onnx.ir.expr import variables
from stof_onnx.ir.operators.masked_attention import MaskedAttention, TableInput
from stof_onnx.ir.operators.tensor_info import TensorInfo
from stof_onnx.ir.plan import DataType
from stof_onnx.templates.attention_node import AttentionNode
from stof_onnx.templates.masked_attention_mma import Parameters
from tests.gpu.cases import (
    DTYPES,
    Case,
    Config,
    Node,
    hiding_configs,
    node_of,
    rule_configs,
    sink_configs,
    softcap_configs,
    twice_configs,
)
from tests.gpu.masks import FLOAT32_MIN
from tests.ir.attention_cases import Array
from tests.ir.mask_tables import expected
from tests.templates.attention_on_cpu import AttentionOnCpu

# Of the largest result: what rounding weights and results to the type may cost.
TOLERANCE = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-18}
TILES = ((64, 64), (64, 32), (32, 32), (32, 16), (16, 16))


class Run(NamedTuple):
    """A node at a shape with a setting.

    Attributes:
        case: as in tests/gpu.
        tile: the setting.
        table: tile of the run-time table that the kernel reads, if any.
    """

    case: Case
    tile: tuple[int, int]
    table: tuple[int, int] | None = None

    def __str__(self) -> str:
        return f"{self.case}-tile{self.tile[0]}x{self.tile[1]}{'-table' if self.table else ''}"


def _run(
    family: str,
    dtype: str,
    tile: tuple[int, int],
    shape: tuple[int, int, int],
    *,
    table: tuple[int, int] | None = None,
    **config: Any,
) -> Run:
    config = {"heads": (1, 2), "dims": (16, 16), **config}
    return Run(Case(Config(family, dtype, **config), shape), tile, table)


# Families, tiles, head dims, layouts and heads, each with others for each type; odd lengths.
_COVERING = (
    ("causal", (64, 64), (16, 16), "rows", (1, 2), (1, 67, 70)),
    ("causal_end", (64, 32), (33, 33), "packed", (1, 1), (1, 65, 97)),
    ("padding_holes", (32, 32), (40, 24), "heads-first", (2, 1), (2, 33, 71)),
    ("documents", (32, 16), (16, 40), "gaps", (1, 2), (2, 35, 35)),
    ("table", (16, 16), (33, 33), "interleaved", (2, 1), (1, 31, 50)),
    ("table_by_head", (32, 32), (24, 16), "mixed", (1, 3), (1, 40, 33)),
    ("table_last_rows", (16, 16), (33, 40), "rank4", (1, 1), (2, 5, 130)),
    ("bias_by_head", (64, 32), (34, 36), "rank4", (1, 2), (1, 37, 41)),
    ("bias_with_infinities", (16, 16), (40, 40), "gaps", (1, 1), (1, 17, 33)),
    ("sliding_window", (32, 32), (16, 16), "mixed", (2, 2), (1, 1, 300)),
    ("left_padding_causal", (64, 64), (33, 16), "heads-first", (1, 1), (2, 65, 130)),
    ("arithmetic", (16, 16), (36, 36), "packed", (2, 1), (1, 47, 19)),
)


def _covering() -> Iterable[Run]:
    for dtype, (family, tile, dims, layout, heads, shape) in product(DTYPES, _COVERING):
        yield _run(family, dtype, tile, shape, dims=dims, layout=layout, heads=heads)


def _numbers() -> Iterable[Run]:
    """Scales and tables that the rows above leave out, and lists that are filled again."""
    for dtype in DTYPES:
        yield _run("causal", dtype, (32, 16), (1, 33, 33), scale=-0.25)
        yield _run("bias_by_head", dtype, (16, 16), (1, 20, 33), scale=-1.75)
        # A list holds as many tiles as the block has threads: 32, 64 here.
        yield _run("no_mask", dtype, (16, 16), (1, 17, 1100), heads=(1, 1))
        yield _run("padding_holes", dtype, (32, 16), (1, 33, 1050), heads=(1, 1))
        yield _run("causal_end", dtype, (16, 16), (1, 33, 1060), heads=(1, 1))
    yield _run("table", "float16", (16, 16), (1, 16, 1000), heads=(1, 1))
    for tile in TILES:
        yield _run("dense_bool", "float16", tile, (2, 70, 100), table=(64, 64))
    yield _run("dense_transposed", "bfloat16", (32, 16), (1, 70, 41), table=(32, 48))
    yield _run("dense_bool", "float32", (16, 16), (1, 20, 600), table=(16, 16), heads=(1, 1))


def _rows_without_keys() -> Iterable[Run]:
    programs = (
        {},
        {"nan_to_zero": True},
        {"fill": FLOAT32_MIN},
        {"fill": FLOAT32_MIN, "fill_mode": "add"},
        {"fill": -1e4, "fill_mode": "add"},
    )
    families = ("few_rows", "padding_everything", "bias_all_hidden")
    for number, (family, program) in enumerate(product(families, programs)):
        config = {"program": tuple(program.items()), "integers": True, "scale": 0.5}
        dtype, tile = DTYPES[number % 3], TILES[number % 5]
        yield _run(family, dtype, tile, (2, 21, 41), **config)
    for number, hiding in enumerate(hiding_configs()):
        small = replace(hiding, dims=(16, 16), heads=(1, 2 - number % 2))
        yield Run(Case(small, (2, 21, 41)), TILES[number % 5])
    lowest = {"float16": -65504.0, "bfloat16": float.fromhex("-0x1.fep127")}
    for (dtype, fill), mode in product(lowest.items(), ("replace", "add")):
        program = (("fill", fill), ("fill_mode", mode))
        config = {"score_dtype": dtype, "scale": 0.5, "integers": True, "program": program}
        yield _run("few_rows", dtype, (16, 16), (1, 21, 41), **config)


def _softcap_and_sinks() -> Iterable[Run]:
    for configs in (list(softcap_configs()), list(sink_configs())):
        kinds = len(configs) // len(DTYPES)
        for number in range(kinds):  # each in one of the types
            config = configs[number % len(DTYPES) * kinds + number]
            small = replace(config, dims=(16, 16), heads=(1, 2 + number % 2))
            yield Run(Case(small, (1, 37, 70)), TILES[number % 5])
    # Behind the sinks come a table's arrays; and a list of tiles that is filled again.
    yield _run("dense_bool", "float16", (32, 32), (2, 70, 41), table=(64, 64), sinks=0.0)
    yield _run("causal_end", "float32", (16, 16), (1, 33, 600), softcap=3.0, sinks=2.0)


def _rows_for_sinks() -> Iterable[Run]:
    for number, config in enumerate(rule_configs()):
        if config.family == "padding_everything":
            continue
        yield Run(Case(replace(config, dims=(16, 16)), (2, 21, 41)), TILES[number % 5])


def _hidden_twice() -> Iterable[Run]:
    for number, config in enumerate(twice_configs()):
        small = replace(config, dims=(16, 16), heads=(1, 1 + number % 2))
        yield Run(Case(small, (2, 21, 41)), TILES[number % 5])
    fill = (("fill", FLOAT32_MIN),)
    # A list of tiles that is filled again; a run-time table, which says nothing of it.
    yield _run("hidden_twice", "float32", (16, 16), (2, 33, 600))
    for number, tile in enumerate(((32, 32), (64, 64))):
        family = ("hidden_twice_beside_bias", "hidden_twice")[number]
        yield _run(
            family, "float32", tile, (2, 37, 70), table=(64, 64), integers=True, program=fill
        )


GROUPS = {
    "covering": tuple(_covering()),
    "numbers": tuple(_numbers()),
    "rows without keys": tuple(_rows_without_keys()),
    "softcap and sinks": tuple(_softcap_and_sinks()),
    "rows for sinks": tuple(_rows_for_sinks()),
    "hidden twice": tuple(_hidden_twice()),
}
RUNS = [(group, run) for group, runs in GROUPS.items() for run in runs]


@cache
def node_of_run(run: Run) -> Node:
    """The case's node, which reads a run-time table if the run has one."""
    node = node_of(run.case)
    if run.table is None:
        return node
    names = variables(node.record.mask.keep)
    by_batch, by_head = "b" in names, "h" in names
    kept = node.problem.kept
    arrays = expected(kept[: None if by_batch else 1, : None if by_head else 1], run.table)
    record = replace(node.record, table=TableInput(run.table, by_batch=by_batch, by_head=by_head))
    infos = tuple(TensorInfo(DataType.INT32, (None,) * x.ndim) for x in arrays)
    return Node(record, (*node.inputs, *arrays), (*node.infos, *infos), node.problem)


def setting_of(run: Run) -> tuple[AttentionNode, Parameters]:
    return node_of_run(run).template_node, Parameters(*run.tile)


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, AttentionOnCpu]:
    """Those of each group, compiled together; two compilers run side by side."""
    settings = [[setting_of(run) for run in runs] for runs in GROUPS.values()]
    directories = [tmp_path_factory.mktemp("group") for _ in GROUPS]
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(GROUPS, pool.map(AttentionOnCpu, settings, directories), strict=True))


def output_shape(record: MaskedAttention, problem_shape: tuple[int, ...]) -> tuple[int, ...]:
    """As docs/operators.md has it, from [B, H, Sq, Dv]."""
    batch, heads, queries, width = problem_shape
    if record.output == "BHSD":
        return problem_shape
    if record.output_rank == 4:
        return batch, queries, heads, width
    return batch, queries, heads * width


def heads_first(record: MaskedAttention, output: Array) -> Array:
    """An output as [B, H, Sq, Dv] in float64."""
    output = output.astype(np.float64)
    if record.output == "BHSD":
        return output
    shape = (*output.shape[:2], record.num_heads, record.value_head_dim)
    return output.reshape(shape).swapaxes(1, 2)


def check(run: Run, output: Array) -> None:
    """Compare with the oracle: NaN where it has NaN, near it elsewhere."""
    node = node_of_run(run)
    wanted = node.problem.wanted
    tolerance = TOLERANCE[run.case.config.dtype] * float(np.nanmax(np.abs(wanted), initial=1.0))
    np.testing.assert_allclose(
        heads_first(node.record, output), wanted, rtol=0, atol=tolerance, err_msg=str(run)
    )


def launch(kernels: AttentionOnCpu, run: Run, **options: bool) -> Array:
    node = node_of_run(run)
    shape = output_shape(node.record, node.problem.wanted.shape)
    return kernels.run(setting_of(run), node.inputs, shape, **options)


@pytest.mark.parametrize(("group", "run"), RUNS, ids=str)
def test_the_kernel_computes_what_the_oracle_does(
    group: str, run: Run, kernels: dict[str, AttentionOnCpu]
) -> None:
    """Whatever order threads run in and whenever copies arrive: the same, bit for bit."""
    first = launch(kernels[group], run)
    check(run, first)
    second = launch(kernels[group], run, backwards=True, late=True)
    assert second.tobytes() == first.tobytes()


# Every rule for rows without keys, without a bias and with one.
_RULE_FAMILIES = ("few_rows", "hidden_lowest", "hidden_infinite", "hidden_twice_beside_bias")
_RULES = [
    (group, run)
    for group in ("rows without keys", "rows for sinks", "hidden twice")
    for run in GROUPS[group]
    if run.case.config.family in _RULE_FAMILIES and run.table is None
]


@pytest.mark.parametrize(("group", "run"), _RULES, ids=str)
def test_no_keys_at_all_yield_zeros(
    group: str, run: Run, kernels: dict[str, AttentionOnCpu]
) -> None:
    batch, queries, _ = run.case.shape
    run = run._replace(case=Case(run.case.config, (batch, queries, 0)))
    output = launch(kernels[group], run, late=True)
    assert (output == 0).all()


@pytest.mark.parametrize(("group", "run"), _RULES, ids=str)
def test_a_row_of_nan_isn_t_one_that_sees_nothing(
    group: str, run: Run, kernels: dict[str, AttentionOnCpu]
) -> None:
    node, row = node_of_run(run), run.case.shape[1] - 1
    assert node.problem.kept[:, :, row].any()
    query = node.inputs[0].copy()
    query[:, row] = np.nan
    shape = output_shape(node.record, node.problem.wanted.shape)
    output = kernels[group].run(setting_of(run), (query, *node.inputs[1:]), shape)
    got = heads_first(node.record, output)
    is_zero = node.record.mask.nan_to_zero
    assert (got[:, :, row] == 0).all() if is_zero else np.isnan(got[:, :, row]).all()
    # The other rows are as they were.
    wanted = launch(kernels[group], run)
    np.testing.assert_array_equal(got[:, :, :row], heads_first(node.record, wanted)[:, :, :row])
