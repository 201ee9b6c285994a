"""Shapes and elements of a graph read as index arithmetic, against ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from stof_onnx.ir.expr import Expr, Load, Var, evaluate, to_text
from stof_onnx.ir.expr.build import integer
from stof_onnx.rewriter.graph import import_graph
from stof_onnx.rewriter.symbolic import SymbolicGraph, Unliftable
from tests.rewriter.graphs import Graph, Value
from tests.rewriter.running import feeds_of, run

Build = Callable[[Graph], Value]
SIZES = ({"batch": 2, "sequence": 5}, {"batch": 3, "sequence": 2}, {"batch": 1, "sequence": 1})


def x(g: Graph) -> Value:
    return g.input("x", ["batch", "sequence", 8], "float32")


def ids(g: Graph) -> Value:
    return g.input("ids", ["batch", "sequence"], "int64", "ids")


def padding(g: Graph) -> Value:
    return g.input("padding", ["batch", "sequence"], "int64", "padding")


def batch(g: Graph) -> Value:
    return g.dim(x(g), 0)


def sequence(g: Graph) -> Value:
    return g.dim(x(g), 1)


def positions(g: Graph, start: int = 0) -> Value:
    limit = g.op("Squeeze", sequence(g), g.ints(0))
    return g.op("Range", g.const(start, "int64"), limit, g.const(1, "int64"))


def queries(g: Graph) -> Value:
    return g.unsqueeze(positions(g), 1)


def keys(g: Graph) -> Value:
    return g.unsqueeze(positions(g), 0)


def difference(g: Graph) -> Value:
    """k - q."""
    return g.op("Sub", keys(g), queries(g))


def heads(g: Graph) -> Value:
    """[B, S, 8] as [B, 2, S, 4]."""
    return g.transpose(g.reshape(x(g), 0, 0, 2, 4), 0, 2, 1, 3)


def square(g: Graph, value: Value) -> Value:
    return g.op("Expand", value, g.op("Concat", sequence(g), sequence(g), axis=0))


def minus_one_idiom(g: Graph, *target: Value) -> Value:
    """torch.expand(-1, ...) as TorchScript writes it: -1 becomes 1."""
    wanted = g.op("Concat", *target, axis=0)
    one = numpy_helper.from_array(np.ones(1, np.int64))
    ones = g.op("ConstantOfShape", g.op("Shape", wanted), value=one)
    kept = g.op("Equal", wanted, g.op("Mul", ones, g.const(-1, "int64")))
    return g.op("Where", kept, ones, wanted)


def index_pairs(g: Graph) -> Value:
    """(b, k) for each token."""
    zero, one = g.const(0, "int64"), g.const(1, "int64")
    rows = g.op("Range", zero, g.op("Squeeze", batch(g), g.ints(0)), one)
    shape = g.op("Concat", batch(g), sequence(g), axis=0)
    pair = [g.op("Expand", i, shape) for i in (g.unsqueeze(rows, 1), keys(g))]
    return g.op("Concat", *(g.unsqueeze(i, -1) for i in pair), axis=-1)


class Reading:
    """One tensor, "y", of a graph as the symbolic graph sees it."""

    def __init__(self, build: Build) -> None:
        g = Graph(opset=18)
        g.op("Identity", build(g), output="y")
        g.outputs.append(onnx.ValueInfoProto(name="y"))
        self.inputs = list(g.inputs.values())
        self.model = g.model()
        graph = import_graph(self.model).graph
        self.sym = SymbolicGraph(graph, frozenset({"batch", "sequence"}))
        self.tensor = graph.outputs[0]

    @property
    def shape(self) -> str:
        return " ".join(to_text(dim) for dim in self.sym.shape(self.tensor))

    @property
    def element(self) -> Expr:
        dims = self.sym.shape(self.tensor)
        return self.sym.element(
            self.tensor,
            tuple(
                integer(0) if dim == integer(1) else Var(f"i{axis}", dim)
                for axis, dim in enumerate(dims)
            ),
        )

    @property
    def text(self) -> str:
        return to_text(self.element)

    def check_numbers(self) -> None:
        """Shape and element at every index, at several sizes."""
        dims, element = self.sym.shape(self.tensor), self.element
        for sizes in SIZES:
            for feeds in feeds_of(self.inputs, sizes):
                (expected,) = run(self.model, feeds)
                shape = [int(evaluate(dim, sizes, {})) for dim in dims]
                assert shape == list(expected.shape)
                grid = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij", sparse=True)
                variables = {f"i{axis}": values for axis, values in enumerate(grid)}
                sources = {**feeds, **self.sym.tables, **self._constants()}
                actual = evaluate(element, {**sizes, **variables}, sources)
                np.testing.assert_array_equal(np.broadcast_to(actual, shape), expected)

    def _constants(self) -> dict[str, np.ndarray]:
        arrays = {t.name: numpy_helper.to_array(t) for t in self.model.graph.initializer}
        return {name: a for name, a in arrays.items() if name not in self.sym.tables}


def case(name: str, shape: str, element: str, build: Build):
    return pytest.param(build, shape, element, id=name)


END = 2**63 - 1
VIEWS = [
    case("reshape splits", "batch sequence 2 4", "x[i0, i1, 4 * i2 + i3]",
         lambda g: g.reshape(x(g), 0, 0, 2, 4)),
    case("reshape merges", "batch * sequence 8", "x[(i0 // sequence), (i0 % sequence), i1]",
         lambda g: g.reshape(x(g), -1, 8)),
    case("reshape merges and splits again", "batch sequence 8", "x[i0, i1, i2]",
         lambda g: g.reshape(g.reshape(x(g), -1, 8), batch(g), sequence(g), 8)),
    case("reshape merges all", "8 * batch * sequence",
         "x[(i0 // (8 * sequence)), ((i0 // 8) % sequence), (i0 % 8)]",
         lambda g: g.reshape(x(g), -1)),
    case("reshape copies and solves", "batch 2 * sequence 4",
         "x[i0, ((4 * i1 + i2) // 8), ((4 * i1 + i2) % 8)]", lambda g: g.reshape(x(g), 0, -1, 4)),
    case("heads into the batch", "2 * batch sequence 4", "x[(i0 // 2), i1, 4 * (i0 % 2) + i2]",
         lambda g: g.reshape(heads(g), -1, sequence(g), 4)),
    case("heads into the batch and out again", "batch 2 sequence 4", "x[i0, i2, 4 * i1 + i3]",
         lambda g: g.reshape(
             g.reshape(heads(g), -1, sequence(g), 4), batch(g), 2, sequence(g), 4)),
    case("flatten", "batch 8 * sequence", "x[i0, (i1 // 8), (i1 % 8)]",
         lambda g: g.op("Flatten", x(g))),
    case("flatten from the back", "batch * sequence 8",
         "x[(i0 // sequence), (i0 % sequence), i1]", lambda g: g.op("Flatten", x(g), axis=-1)),
    case("flatten all but nothing", "1 8 * batch * sequence",
         "x[(i1 // (8 * sequence)), ((i1 // 8) % sequence), (i1 % 8)]",
         lambda g: g.op("Flatten", x(g), axis=0)),
    case("transpose", "8 batch sequence", "x[i1, i2, i0]", lambda g: g.transpose(x(g), 2, 0, 1)),
    case("transpose by default", "8 sequence batch", "x[i2, i1, i0]",
         lambda g: g.op("Transpose", x(g))),
    case("unsqueeze", "1 batch sequence 8 1", "x[i1, i2, i3]", lambda g: g.unsqueeze(x(g), 0, -1)),
    case("squeeze", "batch sequence 8", "x[i0, i1, i2]",
         lambda g: g.op("Squeeze", g.unsqueeze(x(g), 0, -1), g.ints(0, -1))),
    case("expand", "batch 3 sequence sequence", "padding[i0, i3]",
         lambda g: g.op("Expand", g.unsqueeze(padding(g), 1, 2), g.op(
             "Concat", g.ints(1, 3), sequence(g), g.ints(1), axis=0))),
    case("expand with -1", "batch 3 sequence sequence", "padding[i0, i3]",
         lambda g: g.op("Expand", g.unsqueeze(padding(g), 1, 2), minus_one_idiom(
             g, g.ints(-1, 3), sequence(g), g.ints(-1)))),
    case("slice from the end", "batch -max(0, sequence - 2) + sequence 8",
         "x[i0, max(0, sequence - 2) + i1, i2]",
         lambda g: g.slice(x(g), 1, -2, END)),
    case("slice up to the end", "batch sequence - 1 8", "x[i0, i1, i2]",
         lambda g: g.slice(x(g), 1, 0, -1)),
    case("slice to a bound beyond the end", "batch sequence 5", "x[i0, i1, i2 + 3]",
         lambda g: g.slice(x(g), 2, 3, 100)),
    case("slice from the smallest number", "batch sequence 5", "x[i0, i1, i2]",
         lambda g: g.slice(x(g), 2, -(2**63), 5)),
    case("slice to a number that may lie beyond", "batch min(100, sequence) - 1 8",
         "x[i0, i1 + 1, i2]", lambda g: g.slice(x(g), 1, 1, 100)),
    case("slice of the first axes", "min(2, batch) - 1 min(2, sequence) - 1 8",
         "x[i0 + 1, i1 + 1, i2]", lambda g: g.op("Slice", x(g), g.ints(1, 1), g.ints(2, 2))),
    case("slice by a computed start", "batch 1 8", "x[i0, sequence - 1, i2]",
         lambda g: g.slice(x(g), 1, g.op("Sub", sequence(g), g.ints(1)), sequence(g))),
    case("joined tensors", "batch sequence 16",
         "(x[i0, i1, min(7, i2)] if -i2 + 7 >= 0 else x[i0, i1, max(0, i2 - 8)])",
         lambda g: g.op("Concat", x(g), x(g), axis=2)),
    case("joined ranges with a gap", "sequence + 1", "(7 if -1 * i0 >= 0 else i0 - 1)",
         lambda g: g.op("Concat", g.ints(7), positions(g), axis=0)),
    case("written in place", "2", "(5 if i0 - 1 >= 0 else 1)",
         lambda g: g.op("ScatterND", g.const([1.0, 1.0]), g.const([[1]], "int64"),
                        g.const([5.0]))),
    case("tile of a long axis", "batch 2 * sequence", "padding[i0, (i1 % sequence)]",
         lambda g: g.op("Tile", padding(g), g.ints(1, 2))),
    case("range of whole floats", "(sequence // 2)", "float(2 * i0 + 1)",
         lambda g: g.op("Range", g.const(1.0), g.cast(g.op("Squeeze", sequence(g)), "float32"),
                        g.const(2.0))),
    case("gather at an index that may be negative", "sequence sequence",
         "padding[0, (-i0 + i1 if -i0 + i1 >= 0 else -i0 + i1 + sequence)]",
         lambda g: g.op("Gather", g.op("Squeeze", g.slice(padding(g), 0, 0, 1), g.ints(0)),
                        difference(g), axis=0)),
    case("gather at negative indices", "batch sequence 2", "x[i0, i1, i2 + 6]",
         lambda g: g.op("Gather", x(g), g.ints(-2, -1), axis=2)),
    case("reshape to a clamped dimension", "batch sequence 8", "x[i0, i1, i2]",
         lambda g: g.op("Reshape", x(g), g.op(
             "Concat", g.ints(0), g.op("Min", sequence(g), g.ints(64)), g.ints(8), axis=0))),
    case("slice in steps", "batch sequence 4", "x[i0, i1, 2 * i2 + 1]",
         lambda g: g.op("Slice", x(g), g.ints(1), g.ints(END), g.ints(2), g.ints(2))),
    case("slice in steps that don't fit", "batch sequence 3", "x[i0, i1, 3 * i2]",
         lambda g: g.op("Slice", x(g), g.ints(0), g.ints(END), g.ints(2), g.ints(3))),
    case("slice backwards", "batch sequence 8", "x[i0, i1, -i2 + 7]",
         lambda g: g.op("Slice", x(g), g.ints(-1), g.ints(-(2**62)), g.ints(2), g.ints(-1))),
    case("slice backwards in steps", "batch sequence 2", "x[i0, i1, -3 * i2 + 5]",
         lambda g: g.op("Slice", x(g), g.ints(5), g.ints(0), g.ints(2), g.ints(-3))),
    case("slice of a position buffer", "1 sequence", "i1",
         lambda g: g.slice(g.const(np.arange(10)[None], "int64"), 1, 0, sequence(g))),
    case("split", "batch sequence 5", "x[i0, i1, i2 + 2]",
         lambda g: g.ops("Split", x(g), g.ints(2, 5, 1), outputs=["", "", ""], axis=2)[1]),
    case("split into unequal parts", "batch sequence 2", "x[i0, i1, i2 + 6]",
         lambda g: g.ops("Split", x(g), outputs=["", "", ""], axis=-1, num_outputs=3)[2]),
    case("gather one", "batch sequence", "x[i0, i1, 3]",
         lambda g: g.op("Gather", x(g), g.const(3, "int64"), axis=2)),
    case("gather the last", "batch 8", "x[i0, sequence - 1, i1]",
         lambda g: g.op("Gather", x(g), g.const(-1, "int64"), axis=1)),
    case("gather regular indices", "batch sequence 3", "x[i0, i1, 2 * i2 + 3]",
         lambda g: g.op("Gather", x(g), g.ints(3, 5, 7), axis=2)),
    case("gather any indices", "batch sequence 3", "x[i0, i1, constant_0[i2]]",
         lambda g: g.op("Gather", x(g), g.ints(3, 1, 7), axis=2)),
    case("gather a range", "batch sequence 1 8", "x[i0, i1, i3]",
         lambda g: g.op("Gather", x(g), queries(g), axis=1)),
    case("gather elements", "batch sequence", "ids[i0, i1]",
         lambda g: g.op("GatherElements", ids(g), g.op("Expand", keys(g), g.op("Shape", ids(g))),
                        axis=1)),
    case("gather pairs", "batch sequence", "padding[i0, i1]",
         lambda g: g.op("GatherND", padding(g), index_pairs(g))),
    case("gather pairs of rows", "batch sequence 8", "x[i0, i1, i2]",
         lambda g: g.op("GatherND", x(g), index_pairs(g))),
    case("dropout", "batch sequence 8", "x[i0, i1, i2]", lambda g: g.op("Dropout", x(g))),
]  # fmt: skip

SOURCES = [
    case("shape", "1", "sequence", lambda g: g.op("Shape", x(g), start=-2, end=2)),
    case("size", "", "8 * batch * sequence", lambda g: g.op("Size", x(g))),
    case("range", "sequence", "i0", positions),
    case("range from below zero", "sequence + 3", "i0 - 3", lambda g: positions(g, -3)),
    case("range of numbers", "3", "3 * i0 + 1", lambda g: g.op(
        "Range", *(g.const(n, "int64") for n in (1, 10, 3)))),
    case("joined ranges", "sequence + 1", "i0 - 1",
         lambda g: g.op("Concat", g.ints(-1), positions(g), axis=0)),
    case("joined ranges, the short one last", "sequence + 1", "i0",
         lambda g: g.op("Concat", positions(g), sequence(g), axis=0)),
    case("lower triangle", "sequence sequence", "(1 if i0 - i1 >= 0 else 0)",
         lambda g: g.op("Trilu", square(g, g.const(1, "int64")), upper=0)),
    case("lower triangle, moved", "sequence sequence", "(1 if i0 - i1 - 2 >= 0 else 0)",
         lambda g: g.op("Trilu", square(g, g.const(1.0)), g.const(-2, "int64"), upper=0)),
    case("upper triangle", "sequence sequence", "(1 if -i0 + i1 - 1 >= 0 else 0)",
         lambda g: g.op("Trilu", square(g, g.const(1, "int64")), g.const(1, "int64"))),
    case("tile", "batch 3 sequence", "padding[i0, i2]",
         lambda g: g.op("Tile", g.unsqueeze(padding(g), 1), g.ints(1, 3, 1))),
    case("running sum of zeros", "1 sequence", "0", lambda g: g.op(
        "CumSum", g.cast(g.op("Less", keys(g), g.const(0, "int64")), "int64"),
        g.const(1, "int64"))),
    case("position buffer", "3 4", "4 * i0 + i1 + 3",
         lambda g: g.const(np.arange(3, 15).reshape(3, 4), "int64")),
    case("numbers", "3", "constant_0[i0]", lambda g: g.const([1, 2, 4], "int64")),
    case("two numbers", "2 2", "(0 if constant_0[i0, i1] else -inf)",
         lambda g: g.const([[0, -np.inf], [0, 0]])),
    case("booleans", "2 2", "constant_0[i0, i1]",
         lambda g: g.const([[True, False], [True, True]], "bool")),
]  # fmt: skip

POINTWISE = [
    case("less or equal", "sequence sequence", "i0 - i1 >= 0",
         lambda g: g.op("LessOrEqual", keys(g), queries(g))),
    case("less", "sequence sequence", "i0 - i1 - 1 >= 0",
         lambda g: g.op("Less", keys(g), queries(g))),
    case("greater", "sequence sequence", "-i0 + i1 - 1 >= 0",
         lambda g: g.op("Greater", keys(g), queries(g))),
    case("greater or equal", "sequence sequence", "-i0 + i1 >= 0",
         lambda g: g.op("GreaterOrEqual", keys(g), queries(g))),
    case("distance", "sequence sequence", "|-i0 + i1|", lambda g: g.op("Abs", difference(g))),
    case("minimum", "sequence sequence", "min(3, min(i0, i1))",
         lambda g: g.op("Min", keys(g), queries(g), g.const(3, "int64"))),
    case("maximum", "sequence sequence", "max(i0 - 1, i1)",
         lambda g: g.op("Max", keys(g), g.op("Sub", queries(g), g.const(1, "int64")))),
    case("quotient", "1 sequence", "(i1 // 3)",
         lambda g: g.op("Div", keys(g), g.const(3, "int64"))),
    case("remainder", "sequence sequence", "((2 * i0 + i1) % 3)",
         lambda g: g.op("Mod", difference(g), g.const(3, "int64"))),
    case("boolean as number", "sequence sequence", "(1 if i0 - i1 - 1 >= 0 else 0)",
         lambda g: g.cast(g.op("Less", keys(g), queries(g)), "int64")),
    case("number as boolean", "sequence sequence", "-i0 + i1 != 0",
         lambda g: g.cast(difference(g), "bool")),
    case("number as float", "sequence sequence", "float(-i0 + i1)",
         lambda g: g.cast(difference(g), "float32")),
    case("number rounded to half", "sequence sequence",
         "(0.0999756 if i0 - i1 - 1 >= 0 else inf)", lambda g: g.cast(g.op(
             "Where", g.op("Less", keys(g), queries(g)), g.const(0.1), g.const(1e9)), "float16")),
    case("inverted mask", "batch sequence", "((1 + (-1 * float(padding[i0, i1]))) * -1e+09)",
         lambda g: g.op("Mul", g.op("Sub", g.const(1.0), g.cast(padding(g), "float32")),
                        g.const(-1e9))),
    case("float compared", "sequence sequence", "-i0 + i1 >= 0",
         lambda g: g.op("Equal", g.cast(g.op("Less", keys(g), queries(g)), "float32"),
                        g.const(0.0))),
    case("loads compared", "batch sequence sequence", "ids[i0, i1] - ids[i0, i2] == 0",
         lambda g: g.op("Equal", g.unsqueeze(ids(g), 1), g.unsqueeze(ids(g), 2))),
    case("not equal", "batch sequence", "ids[i0, i1] != 0",
         lambda g: g.op("Not", g.op("Equal", ids(g), g.const(0, "int64")))),
    case("computed factor", "", "0.5", lambda g: g.op(
        "Mul", g.op("Sqrt", g.const(16.0)),
        g.op("Reciprocal", g.op("Pow", g.const(2.0), g.const(3.0))))),
]  # fmt: skip


@pytest.mark.parametrize(("build", "shape", "element"), [*VIEWS, *SOURCES, *POINTWISE])
def test_a_tensor_is_read_as_index_arithmetic(build, shape, element):
    reading = Reading(build)
    assert (reading.shape, reading.text) == (shape, element)
    reading.check_numbers()


def test_exclusive_or_is_read():
    # Its text is long; the numbers say enough.
    def build(g: Graph) -> Value:
        near = g.op("Less", keys(g), queries(g))
        return g.op("Xor", near, g.op("Less", keys(g), g.const(2, "int64")))

    reading = Reading(build)
    assert not reading.sym.leaf_reasons
    reading.check_numbers()


def leaf(name: str, reason: str, build: Build):
    return pytest.param(build, reason, id=name)


LEAVES = [
    leaf("unknown operator", "operator Erf is not", lambda g: g.op("Erf", x(g))),
    leaf("slice backwards from an unknown position", "unknown position",
         lambda g: g.op("Slice", x(g), sequence(g), g.ints(-100), g.ints(1), g.ints(-1))),
    leaf("running sum of which one element is 0", "aren't all 0",
         lambda g: g.op("CumSum", g.const([8, 8, 0], "int64"), g.const(0, "int64"))),
    leaf("five joined tensors", "5 parts", lambda g: g.op("Concat", *[x(g)] * 5, axis=2)),
    leaf("gathered by batch", "batch_dims",
         lambda g: g.op("GatherND", x(g), g.const(np.zeros((2, 1)), "int64"), batch_dims=1)),
    leaf("range of floats", "floats",
         lambda g: g.op("Range", *(g.const(n) for n in (0.0, 5.0, 0.5)))),
    leaf("quotient that may be negative", "may be negative",
         lambda g: g.op("Div", difference(g), g.const(3, "int64"))),
    leaf("remainder like C's", "fmod",
         lambda g: g.op("Mod", difference(g), g.const(3, "int64"), fmod=1)),
    leaf("running sum", "CumSum", lambda g: g.op("CumSum", padding(g), g.const(1, "int64"))),
    leaf("floats compared", "floats", lambda g: g.op("Less", x(g), g.const(0.0))),
    leaf("written at a run-time position", "aren't a region", lambda g: g.op(
        "ScatterND", g.const(np.zeros(9)), g.reshape(g.cast(padding(g), "int64"), -1, 1),
        g.reshape(g.cast(padding(g), "float32"), -1))),
    leaf("whole shape", "unknown position", lambda g: g.op("Shape", x(g))),
]  # fmt: skip


@pytest.mark.parametrize(("build", "reason"), LEAVES)
def test_what_is_not_arithmetic_becomes_a_load_with_a_reason(build, reason):
    reading = Reading(build)
    element = reading.element
    assert isinstance(element, Load)
    assert reason in reading.sym.leaf_reasons[element.source]
    # The load is of the whole tensor, at the index that was asked for.
    assert len(element.index) == len(reading.sym.shape(reading.tensor))


def test_views_are_followed_down_to_the_leaf():
    reading = Reading(lambda g: g.reshape(g.op("Erf", x(g)), 0, 0, 2, 4))
    text = reading.text
    (source,) = reading.sym.leaf_reasons
    assert text == f"{source}[i0, i1, 4 * i2 + i3]"


def test_graph_inputs_are_no_leaves_with_a_reason():
    reading = Reading(x)
    assert reading.text == "x[i0, i1, i2]"
    assert reading.sym.leaf_reasons == {}


def compressed(g: Graph) -> Value:
    return g.op("Compress", ids(g), g.const([True], "bool"))


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (compressed, "no shape rule for Compress"),
        (lambda g: g.op("Sum", compressed(g)), "no shape rule"),
        (lambda g: g.reshape(compressed(g), 2, -1), "Compress"),
    ],
    ids=["first", "second", "reshaped"],
)
def test_an_unknown_shape_says_which_operator_it_comes_from(build, reason):
    # Read before the output, whose inferred shape is declared in the file.
    reading = Reading(build)
    tensor = reading.tensor.inputs[0].inputs[0]
    with pytest.raises(Unliftable, match=reason):
        reading.sym.shape(tensor)


def test_a_bound_of_unknown_sign_is_not_taken_for_positive():
    # x[:, -(S - 1):] is x[:, 1:] for S > 1 and everything for S == 1.
    def build(g: Graph) -> Value:
        start = g.op("Neg", g.op("Sub", sequence(g), g.ints(1)))
        return g.slice(x(g), 1, start, END)

    # What ONNX's own inference declares for it is a symbol of its own.
    assert "sequence" not in Reading(build).shape
