"""Masks: what each idiom is read as, how a wrong reading is caught, rows without keys."""

from __future__ import annotations

import dataclasses
import math
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest

from stof_onnx.expansion import expand_model
from stof_onnx.ir.expr import Const, to_text
from stof_onnx.ir.expr.build import TRUE, add, integer
from stof_onnx.ir.mask.program import conjunction
from stof_onnx.rewriter import rewrite as rewriting
from stof_onnx.rewriter.rewrite import FusedBlock, rewrite
from stof_onnx.rewriter.symbolic.registry import ELEMENT_RULES, VIEW_RULES
from tests.rewriter.graphs import Attention, build
from tests.rewriter.mask_terms import Bias, Mask, Term, lowest
from tests.rewriter.running import check_attention, check_graph, feeds_of, run

CAUSAL, PADDING = Term("causal"), Term("padding")
PAST_WINDOW = Term("window", 4, "past")
BAND = "-k + q + 4 >= 0 and k - q + 4 >= 0"
# Sizes around windows of 4 and 50, odd ones, and one key.
LENGTHS = (1, 3, 4, 5, 9)
SIZES = [{"batch": 2, "sequence": n, "memory": n + 4, "past": 3, "total": n + 3} for n in LENGTHS]


def idiom(name: str, kind: str, text: str, *masks, **fields):
    return pytest.param(Attention(masks=masks, **fields), kind, text, id=name)


def terms(*given: Term) -> Mask:
    return Mask(given)


CAUSAL_STYLES = ["", "geq", "not_greater", "tril", "triu", "is_causal", "end"]
PADDING_STYLES = [
    f"{read}:{dtype}"
    for read in ("unsqueeze", "gather_nd", "flat")
    for dtype in ("int64", "int32", "bool")
]
IDIOMS = [
    *(idiom(f"causal, {s or 'compared'}", "causal", "-k + q >= 0", terms(Term("causal", 0, s)))
      for s in CAUSAL_STYLES),
    *(idiom(f"padding, {s}", "padding", "padding[b, k]", terms(Term("padding", 0, s)))
      for s in PADDING_STYLES),
    idiom("causal at the end", "causal", "Sk - Sq - k + q >= 0",
          terms(Term("causal", 0, "end")), keys="memory"),
    idiom("causal, another length of keys", "causal", "-k + q >= 0", terms(CAUSAL), keys="memory"),
    idiom("window", "sliding_window", BAND, terms(Term("window", 4))),
    idiom("window of one", "causal_sliding_window", "-k + q >= 0 and k - q >= 0",
          terms(Term("window", 0))),
    idiom("window, another length of keys", "sliding_window", BAND, terms(Term("window", 4)),
          keys="memory"),
    idiom("causal window", "causal_sliding_window", "-k + q >= 0 and k - q + 3 >= 0",
          terms(CAUSAL, PAST_WINDOW)),
    idiom("window of the past without a causal term", "sliding_window", "k - q + 3 >= 0",
          terms(PAST_WINDOW)),
    idiom("transformers 5", "causal_sliding_window+padding",
          "padding[b, k] and -k + q >= 0 and k - q + 3 >= 0",
          Mask((CAUSAL, PAST_WINDOW, Term("padding", 0, "gather_nd")), with_true=True)),
    idiom("documents", "document", "documents[b, k] - documents[b, q] == 0",
          terms(Term("documents"))),
    idiom("blocks", "chunked", "(k // 3) - (q // 3) == 0", terms(Term("blocks", 3))),
    idiom("global tokens", "arbitrary", "-k + 1 >= 0 or -q + 1 >= 0", terms(Term("global", 2))),
    idiom("everything", "none", "all pairs", terms(Term("everything"))),
    idiom("dense", "dense", "dense[b, 0, q, k]", terms(Term("dense"))),
    idiom("dense for each head", "dense", "dense[b, h, q, k]", terms(Term("dense", 0, "heads"))),
    idiom("dense and padding", "dense+padding", "dense[b, 0, q, k] and padding[b, k]",
          terms(Term("dense"), PADDING)),
    idiom("inverted numbers", "padding", "padding[b, k]", Mask((), "inverted")),
    idiom("inverted booleans", "causal+padding", "padding[b, k] and -k + q >= 0",
          Mask((CAUSAL, PADDING), "product")),
    idiom("written", "causal+padding", "padding[b, k] and -k + q >= 0",
          Mask((CAUSAL, PADDING), "keep")),
    idiom("written, the other way", "causal+padding", "padding[b, k] and -k + q >= 0",
          Mask((CAUSAL, PADDING), "drop")),
    idiom("written twice", "causal+padding", "padding[b, k] and -k + q >= 0",
          Mask((CAUSAL,), "keep"), Mask((PADDING,), "drop")),
    idiom("infinities added twice", "causal+padding", "padding[b, k] and -k + q >= 0",
          Mask((CAUSAL,), "add", -math.inf), Mask((PADDING,), "add", -math.inf)),
    idiom("bias", "bias", "all pairs; bias bias[b, h, q, k]", Bias("input")),
    idiom("bias of keys, then causal", "causal+bias", "-k + q >= 0; bias key_bias[b, 0, 0, k]",
          Bias("keys"), terms(CAUSAL)),
    idiom("causal, then a bias", "causal+bias", "-k + q >= 0; bias bias[b, h, q, k]",
          terms(CAUSAL), Bias("input")),
    idiom("a number that hides nothing", "bias",
          "all pairs; bias (-10000 if padding[b, k] == 0 else 0)", Mask((PADDING,), "add", -1e4)),
    idiom("static", "causal+padding", "padding[b, k] and -k + q >= 0", terms(CAUSAL, PADDING),
          batch=2, queries=5),
]  # fmt: skip


@pytest.mark.parametrize(("attention", "kind", "text"), IDIOMS)
def test_an_idiom_is_read_and_proven(attention, kind, text):
    block = check_attention(attention, sizes=SIZES)
    assert (block.kind.name, block.attributes.mask.to_text()) == (kind, text)
    assert block.proof.startswith("equal to the original subgraph at ")


@pytest.mark.parametrize("heads", [2, 4])
def test_slopes_and_distances_are_a_bias_beside_the_mask(heads):
    # ALiBi. Two slopes are not a table of two values.
    masks = (Bias("slopes"), terms(CAUSAL))
    block = check_attention(Attention(heads=heads, kv_heads=heads, masks=masks), sizes=SIZES)
    assert block.kind.name == "causal+alibi"
    assert "float(k - q)" in block.attributes.mask.to_text()


@pytest.mark.parametrize("style", ["", "rank2", "heads"])
def test_constant_tables_become_block_tables(style):
    block = check_attention(Attention(masks=(terms(Term("table", 0, style), PADDING),)))
    assert block.kind.name == "arbitrary+padding"
    assert block.kind.parameters["table"] == ("2x40x40" if style == "heads" else "40x40")
    # Up to the last row and column of the table, and not beyond.
    assert "39x39, 40x40" in block.proof
    assert "41x41" not in block.proof


def test_a_float_table_of_two_values_is_a_mask():
    block = check_attention(Attention(masks=(Bias("table"),)))
    assert block.kind.name == "arbitrary"
    assert block.attributes.mask.fill == -math.inf


def test_a_float_table_of_numbers_is_a_bias():
    block = check_attention(Attention(masks=(Bias("numbers"),)))
    assert block.kind.name == "bias"


@pytest.mark.parametrize("kind", ["padding", "dense"])
def test_run_time_masks_longer_than_the_sequence_are_cut(kind):
    block = check_attention(Attention(masks=(terms(CAUSAL, Term(kind, 0, "buffer")),)))
    assert "causal" in block.kind.name


@pytest.mark.parametrize(("term", "kind"), [("blocks", "causal+chunked"), ("strided", "dilated")])
def test_arithmetic_on_quotients_and_remainders_has_a_name(term, kind):
    masks = (terms(CAUSAL, Term(term, 3)),)
    assert check_attention(Attention(masks=masks), sizes=SIZES).kind.name == kind


def test_windows_are_proven_on_both_sides_of_their_width():
    # A window of 50 looks causal up to 50.
    block = check_attention(Attention(masks=(terms(CAUSAL, Term("window", 50, "past")),)))
    assert block.kind.parameters["window_left"] == 49
    for size in (49, 50, 51, 101):
        assert f"{size}x{size}" in block.proof


def test_a_window_wider_than_a_static_sequence_masks_nothing():
    masks = (terms(Term("window", 50), PADDING),)
    assert check_attention(Attention(batch=2, queries=5, masks=masks)).kind.name == "padding"


def test_a_window_that_is_not_wide_enough_for_any_key_keeps_nothing():
    masks = (terms(CAUSAL, Term("window", 0, "past")),)
    assert check_attention(Attention(masks=masks)).attributes.mask.keep == Const(False)


def test_proofs_use_different_numbers_of_queries_and_keys_where_they_may_differ():
    attention = Attention(keys="memory", masks=(terms(Term("causal", 0, "end")),))
    pairs = _proven_sizes(check_attention(attention))
    assert any(q > k for q, k in pairs)
    assert any(q < k for q, k in pairs)


def test_proofs_use_more_than_one_size_where_batch_and_sequence_share_a_name():
    attention = Attention(batch="sequence", masks=(terms(CAUSAL, PAST_WINDOW),))
    block = check_attention(attention, sizes=[{"sequence": 3}, {"sequence": 7}])
    assert max(q for q, _ in _proven_sizes(block)) > 4


def _proven_sizes(block: FusedBlock) -> list[tuple[int, int]]:
    listed = block.proof[block.proof.index("(") + 1 : block.proof.index(")")]
    return [tuple(int(n) for n in pair.split("x")) for pair in listed.split(", ") if "x" in pair]


def test_the_assumption_about_inverted_numbers_is_reported():
    done = check_graph(build(Attention(masks=(Mask((), "inverted"),))), 1e-5)
    assert done.notes == ("'padding' is taken to hold only 0 and 1",)
    done = check_graph(build(Attention(masks=(Mask((PADDING,), "product"),))), 1e-5)
    assert done.notes == ()


# ---------------------------------------------------------------------------- wrong readings


def caught(attention: Attention, reason: str) -> None:
    """The mask is read at run time as it is, for this reason, and the numbers are right."""
    block = check_attention(attention, sizes=SIZES)
    assert block.proof.startswith("read at run time as it is, because ")
    assert reason in block.proof


WRONG = "the program and the graph differ at "


@pytest.mark.parametrize(
    ("operator", "read_as", "mask"),
    [
        ("LessOrEqual", "Less", terms(CAUSAL)),
        ("Less", "LessOrEqual", terms(Term("global", 2))),
        ("GreaterOrEqual", "Greater", terms(Term("causal", 0, "geq"))),
        ("Greater", "GreaterOrEqual", terms(CAUSAL, PAST_WINDOW)),
        ("And", "Or", terms(CAUSAL, PADDING)),
        ("Or", "And", terms(Term("global", 2))),
        ("Sub", "Add", terms(Term("window", 4))),
        ("Equal", "LessOrEqual", terms(Term("blocks", 3))),
        ("Mod", "Min", terms(Term("strided", 3))),
        ("Not", "Cast", terms(Term("causal", 0, "not_greater"))),
    ],
)
def test_an_operator_read_as_another_is_caught(monkeypatch, operator, read_as, mask):
    if read_as == "Cast":
        rule = lambda sym, node, position, index: sym.element(node.inputs[0], index)  # noqa: E731
    else:
        rule = ELEMENT_RULES[read_as]
    monkeypatch.setitem(ELEMENT_RULES, operator, rule)
    caught(Attention(masks=(mask,)), WRONG)


@pytest.mark.parametrize("mask", [terms(CAUSAL), terms(CAUSAL, PADDING)])
def test_transposed_indices_are_caught(monkeypatch, mask):
    original = VIEW_RULES["Unsqueeze"]

    def swapped(sym, node, position, index):
        return original(sym, node, position, (*index[:-2], index[-1], index[-2]))

    monkeypatch.setitem(VIEW_RULES, "Unsqueeze", swapped)
    block = check_attention(Attention(masks=(mask,)), sizes=SIZES)
    assert block.proof.startswith("read at run time as it is, because ")


@pytest.mark.parametrize("upper", [0, 1])
def test_a_triangle_read_the_wrong_way_round_is_caught(monkeypatch, upper):
    original = ELEMENT_RULES["Trilu"]

    def flipped(sym, node, position, index):
        return original(sym, node, position, (*index[:-2], index[-1], index[-2]))

    monkeypatch.setitem(ELEMENT_RULES, "Trilu", flipped)
    caught(Attention(masks=(terms(Term("causal", 0, "triu" if upper else "tril")),)), WRONG)


def test_a_window_that_is_off_by_one_is_caught(monkeypatch):
    original = ELEMENT_RULES["Sub"]

    def shifted(sym, node, position, index):
        return add(original(sym, node, position, index), integer(1))

    monkeypatch.setitem(ELEMENT_RULES, "Sub", shifted)
    caught(Attention(masks=(terms(Term("window", 4)),)), WRONG)


def change_program(monkeypatch, change: Callable) -> None:
    original = rewriting.lift

    def lift(*arguments):
        lifted = original(*arguments)
        return dataclasses.replace(lifted, program=change(lifted.program))

    monkeypatch.setattr(rewriting, "lift", lift)


def test_a_lost_term_is_caught(monkeypatch):
    change_program(
        monkeypatch,
        lambda program: dataclasses.replace(program, keep=conjunction(program.keep)[0]),
    )
    caught(Attention(masks=(terms(CAUSAL, PAST_WINDOW),)), WRONG)


def test_a_lost_term_is_caught_although_its_constant_is_lost_with_it(monkeypatch):
    # Up to 50 queries nothing shows; the graph still says that 50 matters.
    change_program(
        monkeypatch,
        lambda program: dataclasses.replace(program, keep=conjunction(program.keep)[0]),
    )
    caught(Attention(masks=(terms(CAUSAL, Term("window", 50, "past")),)), WRONG)


def test_a_mask_taken_for_nothing_is_caught(monkeypatch):
    change_program(monkeypatch, lambda program: dataclasses.replace(program, keep=TRUE))
    caught(Attention(masks=(terms(Term("documents")),)), WRONG)


def test_a_wrong_fill_is_caught(monkeypatch):
    change_program(monkeypatch, lambda program: dataclasses.replace(program, fill=-1e30))
    caught(Attention(masks=(terms(PADDING),)), "another number than the program's")


def test_a_wrong_bias_is_caught(monkeypatch):
    change_program(monkeypatch, lambda program: dataclasses.replace(program, bias=Const(0.125)))
    caught(Attention(masks=(Bias("keys"), terms(CAUSAL))), "bias and the graph's differ")


# ------------------------------------------------------------------- masks without one program


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("first", ["add", "keep"])
def test_pairs_hidden_twice_hold_twice_the_number(dtype, first):
    if (dtype, first) == ("float16", "keep"):
        pytest.skip("the lowest half doesn't swallow scores")
    masks = (Mask((CAUSAL,), first), terms(PADDING))
    block = check_attention(Attention(dtype=dtype, masks=masks), sizes=SIZES)
    assert block.proof.startswith("equal")
    assert to_text(block.attributes.mask.again) == "k - q - 1 >= 0 and not padding[b, k]"


def test_three_masks_of_which_two_hide_are_as_good_as_infinite():
    masks = (terms(CAUSAL), terms(PADDING), terms(Term("window", 4)))
    block = check_attention(Attention(masks=masks), sizes=SIZES)
    assert block.proof.startswith("equal")


def test_three_masks_with_a_small_number_are_read_as_they_are():
    masks = tuple(Mask((term,), "add", -1e9) for term in (CAUSAL, PADDING, Term("window", 4)))
    caught(Attention(masks=masks), "three masks are added one after the other")


def test_two_fills_are_read_as_they_are():
    masks = (Mask((CAUSAL,), "add", -1e9), Mask((PADDING,), "add", -1e30))
    caught(Attention(masks=masks), "hidden pairs get different numbers")


def test_infinities_and_then_a_finite_mask_are_hidden_again():
    masks = (Mask((CAUSAL,), "keep", -math.inf), terms(PADDING))
    block = check_attention(Attention(masks=masks), sizes=SIZES)
    assert to_text(block.attributes.mask.again) == "k - q - 1 >= 0"


def test_infinities_and_then_a_number_that_does_not_overflow_are_read_as_they_are():
    masks = (Mask((CAUSAL,), "keep", -math.inf), Mask((PADDING,), "add", -1e9))
    caught(Attention(masks=masks), "hidden pairs get different numbers")


def test_a_table_read_at_no_two_positions_is_not_lost():
    # A constant for each head is neither a mask nor two positions.
    assert check_attention(Attention(masks=(Bias("heads"),))).kind.name == "bias"


@pytest.mark.parametrize("how", ["product", "inverted"])
def test_zero_times_infinity_stays_what_it_was(how):
    # 0 * -inf is NaN: every output of such a model is.
    done = check_graph(build(Attention(masks=(Mask((PADDING,), how, -math.inf),))), 1e-5)
    assert len(done.blocks) == 1


# ------------------------------------------------------------------------------ rows without keys


FILLS = {"infinite": -math.inf, "lowest": None, "-1e9": -1e9, "-1e4": -1e4}


@pytest.mark.parametrize("guard", [False, True])
@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("how", ["add", "keep"])
def test_rows_without_keys_yield_what_the_graph_yields(how, fill, guard):
    if (how, fill) == ("keep", "-1e4"):
        return  # refused: it hides nothing
    # check_attention pads a whole sequence; the window empties rows of the others.
    mask = Mask((PADDING, Term("window", 1)), how, FILLS[fill])
    block = check_attention(Attention(masks=(mask,), guard=guard), sizes=SIZES)
    if fill == "-1e4":
        assert block.attributes.mask.keep == TRUE  # a bias
        return
    expected = {"infinite": "zero" if guard else "nan", "lowest": "mean", "-1e9": "softmax"}
    if how == "keep" and fill == "-1e9":
        expected["-1e9"] = "mean"
    assert block.attributes.mask.empty_row(block.attributes.score_dtype) == expected[fill]


@pytest.mark.parametrize(
    ("fill", "guard", "expected"),
    [(-math.inf, False, "nan"), (-math.inf, True, "zero"), (None, False, "mean")],
)
def test_a_row_without_keys_in_numbers(fill, guard, expected):
    # Against values computed here, not against the original graph.
    mask = Mask((PADDING,), "add", fill)
    attention = Attention(packing="inputs", output="merged", projected=False, masks=(mask,),
                          guard=guard)  # fmt: skip
    graph = build(attention)
    expanded = expand_model(rewrite(graph.model()).model)
    *_, feeds = feeds_of(graph.inputs.values(), {"batch": 2, "sequence": 5})
    assert not feeds["padding"][0].any()
    (output,) = run(expanded, feeds)
    mean = feeds["value"][0].mean(axis=0)
    wanted = {"nan": np.full(8, np.nan), "zero": np.zeros(8), "mean": mean}[expected]
    np.testing.assert_allclose(output[0], np.tile(wanted, (5, 1)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("guard", [False, True])
@pytest.mark.parametrize("fill", [None, -math.inf])
def test_half_precision_masks(fill, guard):
    mask = Mask((CAUSAL, PADDING), "add", fill)
    block = check_attention(Attention(dtype="float16", masks=(mask,), guard=guard))
    program = block.attributes.mask
    assert program.fill == (lowest("float16") if fill is None else fill)
    if fill is None:
        assert program.empty_row("float16") == "softmax"


def test_double_precision_is_not_narrowed():
    # finfo.min of float64 is an infinity in float32.
    lowest64 = float(np.finfo(np.float64).min)
    g = build(Attention(dtype="float64", masks=(Mask((PADDING,), "add", lowest64),)))
    check_graph(g, 1e-5)


@pytest.mark.parametrize("kind", ["input", "keys", "numbers", "slopes", "table"])
def test_bfloat16_biases_do_not_stop_the_rewriter(kind):
    # ONNX Runtime on the CPU can't run bfloat16, so the mask can't be proven as it is.
    done = rewrite(build(Attention(dtype="bfloat16", masks=(Bias(kind),))).model())
    assert len(done.blocks) == 1


@pytest.mark.parametrize("how", ["add", "keep", "product"])
def test_bfloat16_masks_are_read(how):
    mask = Mask((CAUSAL, PADDING), how)
    (block,) = rewrite(build(Attention(dtype="bfloat16", masks=(mask,))).model()).blocks
    assert isinstance(block, FusedBlock)
    assert block.kind.name == "causal+padding"


# ------------------------------------------------------------------------------------- large sizes


def test_a_proof_of_a_wide_window_fits_into_memory():
    # [2, 32, 1003, 1003] numbers of 8 bytes would be half a gigabyte.
    masks = (terms(CAUSAL, Term("window", 500, "past")),)
    model = build(Attention(heads=32, kv_heads=32, masks=masks)).model()
    tracemalloc.start()
    try:
        rewrite(model)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 200e6


def test_a_proof_that_does_not_reach_a_constant_says_so():
    masks = (terms(CAUSAL, Term("window", 100_000, "past")),)
    (block,) = rewrite(build(Attention(masks=masks)).model()).blocks
    assert block.kind.parameters["window_left"] == 99_999
    assert "100000" in block.proof or "99999" in block.proof
