"""What a plan launches: variants, symbols, buckets and numbers."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stof_onnx.ir.errors import InputError
from stof_onnx.ir.plan import (
    Cover,
    Int32,
    Plan,
    Quantity,
    Range,
    ResolvedArgument,
    Symbol,
    Tactic,
    Variant,
    WorkspacePointer,
    describe,
    evaluate_symbols,
    find_variant,
    launches,
    resolve,
)
from stof_onnx.ir.target import Target
from tests.ir.plan_strategies import attention_bucket, attention_plan, plans

PLAN = attention_plan()
MASK = (2, 1, 300)
INPUTS = [(2, 12, 100, 64), (2, 12, 300, 64), MASK]
OUTPUTS = [(2, 12, 100, 64)]


def plan_for(*names: str) -> Plan:
    targets = map(Target.parse, names)
    variants = (Variant.of(target, (attention_bucket(target, 64),)) for target in targets)
    return dataclasses.replace(PLAN, variants=tuple(variants))


EVERY_TARGET = ("portable", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_103", "sm_120")


@pytest.mark.parametrize(
    ("targets", "capability", "chosen"),
    [
        (EVERY_TARGET, (8, 0), "sm_80"),
        (EVERY_TARGET, (8, 6), "sm_86"),
        (EVERY_TARGET, (8, 7), "sm_86"),
        (EVERY_TARGET, (8, 9), "sm_89"),
        (EVERY_TARGET, (9, 0), "sm_90"),
        (EVERY_TARGET, (9, 1), "portable"),
        (EVERY_TARGET, (10, 0), "sm_100"),
        (EVERY_TARGET, (10, 1), "portable"),
        (EVERY_TARGET, (10, 3), "sm_103"),
        (EVERY_TARGET, (11, 0), "portable"),
        (EVERY_TARGET, (12, 1), "sm_120"),
        (EVERY_TARGET[::-1], (8, 7), "sm_86"),
        (EVERY_TARGET, (7, 5), None),
        (("sm_80", "sm_90"), (9, 1), None),
        (("sm_86",), (8, 0), None),
        (("sm_80",), (9, 0), None),
    ],
    ids=str,
)
def test_a_device_runs_the_best_variant(
    targets: tuple[str, ...], capability: tuple[int, int], chosen: str | None
) -> None:
    plan = plan_for(*targets)
    if chosen is None:
        with pytest.raises(InputError) as caught:
            find_variant(plan, capability)
        assert f"a plan for {', '.join(targets)}; wanted one for compute" in str(caught.value)
    else:
        assert find_variant(plan, capability).target == chosen


def test_among_equals_the_first_variant_is_taken() -> None:
    first = plan_for("sm_80").variants[0]
    second = dataclasses.replace(first, target="sm_80 again")
    plan = dataclasses.replace(PLAN, variants=(first, second))
    assert find_variant(plan, (8, 6)) is first


def test_launches_are_as_computed_by_hand() -> None:
    first, second = launches(PLAN, (9, 0), INPUTS, OUTPUTS)
    assert (first.kernel.entry, first.grid, first.block) == (
        "attention_64",
        (2, 24, 1),
        (128, 1, 1),
    )
    assert first.shared == 32768
    assert first.arguments == (
        ResolvedArgument("input", 0, 0, 16),
        ResolvedArgument("input", 64, 1, 16),
        ResolvedArgument("workspace", 96, 0, 4),
        ResolvedArgument("i32", 100),
        ResolvedArgument("i64", 153600),
        ResolvedArgument("f32", 0.0883883461356163),
    )
    assert (second.grid, second.block, second.shared) == ((200, 1, 1), (32, 4, 1), 0)
    assert [argument.value for argument in second.arguments] == [0, 0, 299, float("-inf")]
    assert resolve(PLAN, (9, 0), INPUTS, OUTPUTS).workspace == 4 * 2 * 12 * 2 + 256


@pytest.mark.parametrize(
    ("batch", "queries", "tile"), [(8, 64, 16), (8, 65, 64), (9, 64, 64), (1, 0, 16), (0, 1, 64)]
)
def test_the_first_bucket_that_fits_is_taken(batch: int, queries: int, tile: int) -> None:
    shapes = [(batch, 12, queries, 64), (batch, 12, 300, 64), MASK]
    assert resolve(PLAN, (8, 0), shapes, [shapes[0]]).bucket.tactic["tile_q"] == tile


@pytest.mark.parametrize("shape", [(0, 12, 100, 64), (2, 12, 0, 64)])
def test_empty_grids_are_skipped(shape: tuple[int, ...]) -> None:
    assert launches(PLAN, (8, 0), [shape, *INPUTS[1:]], [shape]) == ()


def test_symbols_are_products_of_dimensions() -> None:
    assert evaluate_symbols(PLAN, INPUTS, OUTPUTS) == {
        "B": 2, "H": 12, "Sq": 100, "Sk": 300, "rows": 2400, "mask_heads": 1, "mask_keys": 300,
    }  # fmt: skip


HUGE = 2**40


@pytest.mark.parametrize(
    ("inputs", "outputs", "message"),
    [
        (INPUTS[:1], OUTPUTS, "shapes of 1 inputs and 1 outputs; wanted 3 and 1"),
        (INPUTS, [], "shapes of 3 inputs and 0 outputs; wanted 3 and 1"),
        ([(2, 12), INPUTS[1], MASK], OUTPUTS, "shape [2, 12] of input 0; wanted a dimension 2"),
        ([(-1, 12, 1, 1), INPUTS[1], MASK], OUTPUTS, "shape [-1, 12, 1, 1] of input 0"),
        (INPUTS, [(HUGE, HUGE, 0, 1)], "rows overflows 64 bits"),
        ([(2, 13, 100, 64), INPUTS[1], MASK], OUTPUTS, "H = 13; wanted H = 12, as the plan"),
        ([INPUTS[0], (2, 12, 0, 64), MASK], OUTPUTS, "Sk = 0; wanted Sk in 1 ... 2147483647"),
        ([(5462, 12, 1, 64), INPUTS[1], MASK], OUTPUTS, "grid size B * H = 65544"),
        ([(2, 12, HUGE, 64), INPUTS[1], MASK], OUTPUTS, "grid size ceil(Sq/64) = 17179869184"),
        ([(2, 12, 2**31, 64), INPUTS[1], MASK], OUTPUTS, "32-bit argument Sq = 2147483648"),
    ],
    ids=str,
)
def test_shapes_that_a_plan_is_not_for_are_refused(inputs: Any, outputs: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        launches(PLAN, (9, 0), inputs, outputs)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("size", "length", "fits"),
    [
        (20, 20, True), (21, 20, True), (1, 20, True), (19, 20, False), (2, 20, False),
        (0, 20, False), (0, 1, False), (1, 1, True), (2, 1, True), (1, 2, True),
        (2**31 - 2, 2**31 - 1, False),
    ],
)  # fmt: skip
def test_an_axis_broadcasts_or_is_long_enough(size: int, length: int, fits: bool) -> None:
    shapes = [INPUTS[0], (2, 12, length, 64), (2, 1, size)]
    if fits:
        assert evaluate_symbols(PLAN, shapes, OUTPUTS)["mask_keys"] == size
        return
    with pytest.raises(InputError) as caught:
        evaluate_symbols(PLAN, shapes, OUTPUTS)
    came, wanted = f"mask_keys = {size}", f"1 or at least Sk = {length}"
    assert (
        str(caught.value) == f"{came}; wanted {wanted}; give the node inputs whose sizes fit"
        " each other"
    )


@pytest.mark.parametrize(
    ("length", "message"),
    [
        (Quantity.of(12), "mask_heads = 5; wanted 1 or at least 12; give the node"),
        (Quantity.of("H"), "mask_heads = 5; wanted 1 or at least H = 12; give the node"),
        (Quantity.of("Sk") * 2 + 3, "mask_heads = 5; wanted 1 or at least 2 * Sk + 3 = 603;"),
        (Quantity.of("Sk") * 2**60, "1152921504606846976 * Sk overflows 64 bits"),
        (Quantity.of(6), "mask_heads = 5; wanted 1 or at least 6"),
        (Quantity.of(5), None),
        (Quantity(), None),
        (Quantity.of(-1), None),
    ],
    ids=str,
)
def test_an_axis_may_be_read_to_any_quantity(length: Quantity, message: str | None) -> None:
    plan = dataclasses.replace(PLAN, covers=(Cover("mask_heads", length),))
    shapes = [*INPUTS[:2], (2, 5, 7)]
    if message is None:
        evaluate_symbols(plan, shapes, OUTPUTS)
        return
    with pytest.raises(InputError) as caught:
        evaluate_symbols(plan, shapes, OUTPUTS)
    assert str(caught.value).startswith(message)


def resolve_with(**changes: Any) -> int:
    """Resolves a plan of one launch, of which some things are changed."""
    plan = plan_for("sm_80")
    bucket = plan.variants[0].buckets[0]
    launch = dataclasses.replace(
        bucket.launches[0],
        **{"arguments": (), **{key: changes[key] for key in changes if key != "workspace"}},
    )
    workspace = changes.get("workspace", Quantity.of(256))
    bucket = dataclasses.replace(bucket, launches=(launch,), workspace=workspace)
    variant = dataclasses.replace(plan.variants[0], buckets=(bucket,))
    plan = dataclasses.replace(plan, variants=(variant,))
    return len(launches(plan, (8, 0), INPUTS, OUTPUTS))


def _grid(*sizes: int) -> tuple[Quantity, ...]:
    return tuple(map(Quantity.of, sizes))


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("workspace", Quantity.of(0), Quantity.of(-1)),
        ("grid", _grid(2**31 - 1, 1, 1), _grid(2**31, 1, 1)),
        ("grid", _grid(1, 65535, 1), _grid(1, 65536, 1)),
        ("grid", _grid(1, 1, 65535), _grid(1, 1, 65536)),
        ("grid", _grid(1, 1, 1), _grid(-1, 1, 1)),
        ("grid", _grid(1, 1, 1), _grid(0, -1, 1)),
        ("shared", Quantity.of(65536), Quantity.of(65537)),
        ("shared", Quantity.of(0), Quantity.of(-1)),
        ("arguments", (Int32(Quantity.of(2**31 - 1)),), (Int32(Quantity.of(2**31)),)),
        ("arguments", (Int32(Quantity.of(-(2**31))),), (Int32(Quantity.of(-(2**31) - 1)),)),
        (
            "arguments",
            (WorkspacePointer(Quantity.of(256)),),
            (WorkspacePointer(Quantity.of(257)),),
        ),
        ("arguments", (WorkspacePointer(Quantity()),), (WorkspacePointer(Quantity.of(-1)),)),
    ],
    ids=str,
)
def test_numbers_of_a_launch_are_in_range(name: str, good: Any, bad: Any) -> None:
    assert resolve_with(**{name: good}) == 1
    with pytest.raises(InputError, match="at these shapes"):
        resolve_with(**{name: bad})


def test_a_skipped_launch_needs_no_sound_numbers() -> None:
    assert resolve_with(grid=_grid(0, 1, 1), shared=Quantity.of(-1)) == 0


@given(plans(), st.data())
def test_any_plan_resolves_or_says_why(plan: Plan, data: st.DataObject) -> None:
    shapes = st.lists(st.integers(0, 2**20), min_size=8, max_size=8)
    inputs = [data.draw(shapes) for _ in plan.input_types]
    outputs = [data.draw(shapes) for _ in plan.output_types]
    try:
        resolution = resolve(plan, plan.variants[0].capability, inputs, outputs)
    except InputError:
        return
    assert resolution.variant in plan.variants
    assert resolution.bucket in resolution.variant.buckets


# ------------------------------------------------------------------------------------------ text


def test_a_plan_is_described_for_people() -> None:
    plan = dataclasses.replace(PLAN, variants=PLAN.variants[2:])
    assert describe(plan).splitlines() == [
        "StofMaskedAttention, written by stof-onnx 0.1.0",
        "HALF HALF INT8 -> HALF",
        "3 images, 63 B",
        "where B = input 0[0], H = input 0[1], Sq = input 0[2], Sk = input 1[2], "
        "rows = output 0[0] * output 0[1] * output 0[2], mask_heads = input 2[1], "
        "mask_keys = input 2[2]",
        "only if H = 12 and Sk in 1 ... 2147483647",
        "only if mask_keys is 1 or at least Sk and mask_heads is 1 or at least H",
        "",
        "target sm_90: compute capability 9.0 only",
        "  kernel                entry         kind   registers  shared memory     size",
        "  masked_attention_mma  attention_16  cubin  168        128 B + 64.0 KiB  28 B",
        "  combine               combine       cubin  32         0 B + 0 B         7 B",
        "  masked_attention_mma  attention_64  cubin  168        128 B + 64.0 KiB  28 B",
        "  Sq in 0 ... 64 and B in 1 ... 8: stages 2, tile_k 64, tile_q 16",
        "    workspace: 4 * B * H * ceil(Sq/16) + 256 bytes",
        "    masked_attention_mma: grid (ceil(Sq/16), B * H, 1) of 128 x 1 x 1 threads",
        "    combine: grid (B * Sq, 1, 1) of 32 x 4 x 1 threads",
        "  any shape: stages 2, tile_k 64, tile_q 64",
        "    workspace: 4 * B * H * ceil(Sq/64) + 256 bytes",
        "    masked_attention_mma: grid (ceil(Sq/64), B * H, 1) of 128 x 1 x 1 threads",
        "    combine: grid (B * Sq, 1, 1) of 32 x 4 x 1 threads",
    ]


def test_a_description_says_what_is_not_known() -> None:
    bucket = dataclasses.replace(
        attention_bucket(Target.parse("portable"), 64), tactic=Tactic({}), workspace=Quantity()
    )
    variant = Variant.of(Target.parse("portable"), (bucket,))
    plan = dataclasses.replace(
        PLAN,
        input_types=(),
        symbols=(Symbol("B", "output", 0, (0,)),),
        checks=(Range("B", 1, 1),),
        variants=(variant,),
        covers=(),
    )
    text = describe(plan)
    assert "\n-> HALF\n" in text
    assert "target portable: compute capability 8.0 and newer" in text
    assert "attention_64  ptx   unknown" in text
    assert "any shape: no parameters" in text
    assert "workspace" not in text
    assert "only if B = 1\n\n" in text


@given(plans())
def test_every_plan_can_be_described(plan: Plan) -> None:
    assert plan.operator in describe(plan)
