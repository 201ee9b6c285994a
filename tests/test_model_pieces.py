"""Models that are parsed and serialized in pieces: the same bytes and messages as protobuf's."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import (
    AttributeProto,
    FunctionProto,
    GraphProto,
    ModelProto,
    NodeProto,
    SparseTensorProto,
    TensorProto,
    helper,
    numpy_helper,
)

from stof_onnx.model_io import parse
from stof_onnx.model_io.parse import parse_model
from stof_onnx.model_io.serialize import Later, content_of, serialize, size_of

MODELS = sorted((Path(__file__).parent / "models").glob("*.onnx"))
# Field 1000 of each wire type, the last a group that holds field 1.
UNKNOWN = {
    "varint": b"\xc0\x3e\x96\x01",
    "64 bits": b"\xc1\x3e" + bytes(range(8)),
    "bytes": b"\xc2\x3e\x03abc",
    "group": b"\xc3\x3e\x08\x07\xc4\x3e",
    "32 bits": b"\xc5\x3e" + bytes(range(4)),
}


def large(name: str = "large") -> TensorProto:
    return numpy_helper.from_array(np.arange(50_000, dtype=np.float32), name)


def model_of(*nodes: NodeProto, **fields: object) -> ModelProto:
    return ModelProto(ir_version=8, graph=GraphProto(node=nodes, **fields))


def _subgraph() -> ModelProto:
    inner = GraphProto(name="inner", initializer=[large(), large("again")])
    outer = GraphProto(
        node=[helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)],
        initializer=[large("outer")],
    )
    return model_of(helper.make_node("Loop", [], [], body=outer))


def _attributes() -> ModelProto:
    node = helper.make_node("Custom", ["x"], ["y"], domain="d", t=large(), ints=[1, 2], s="text")
    node.attribute.add(name="many", type=AttributeProto.TENSORS, tensors=[large(), large("b")])
    return model_of(node)


def _typed() -> ModelProto:
    tensors = [
        helper.make_tensor("floats", TensorProto.FLOAT, [40_000], np.ones(40_000)),
        helper.make_tensor("words", TensorProto.STRING, [2], [b"\xff", b""]),
        helper.make_tensor("long", TensorProto.INT64, [3], [-1, 2**62, 0]),
        TensorProto(
            name="elsewhere",
            data_location=TensorProto.EXTERNAL,
            external_data=[{"key": "location", "value": "file"}],
        ),
    ]
    return model_of(initializer=tensors)


def _everything_else() -> ModelProto:
    model = model_of(
        sparse_initializer=[SparseTensorProto(values=large(), dims=[10**6])],
        doc_string="é",
        quantization_annotation=[{"tensor_name": "x"}],
        value_info=[helper.make_tensor_value_info("v", 1, [None, "n", 3])],
    )
    model.training_info.add(initialization=GraphProto(initializer=[large("rate")]))
    model.functions.append(FunctionProto(name="f", node=[helper.make_node("A", [], [], t=large())]))
    model.metadata_props.add(key="k", value="v")
    model.opset_import.append(helper.make_opsetid("", 18))
    return model


MADE = {
    "nothing": ModelProto(),
    "empty graph": ModelProto(graph=GraphProto()),
    "no graph": ModelProto(ir_version=8, producer_name="test"),
    "subgraphs": _subgraph(),
    "attributes": _attributes(),
    "typed data": _typed(),
    "everything else": _everything_else(),
}


def joined(model: ModelProto) -> bytes:
    return b"".join(map(content_of, serialize(model)))


def parsed(content: bytes, *, weights: bool = True) -> ModelProto:
    return parse_model(io.BytesIO(content), len(content), weights=weights)


@pytest.fixture(params=[1, 50, 2**22])
def run(request, monkeypatch) -> None:
    """Records are parsed one by one, a few, or very many at once."""
    monkeypatch.setattr(parse, "_RUN", request.param)


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_exported_models(path, run):
    content = path.read_bytes()
    model = ModelProto.FromString(content)
    assert parsed(content) == model
    assert joined(model) == model.SerializeToString()


@pytest.mark.parametrize("model", MADE.values(), ids=MADE)
def test_made_models(model, run):
    content = model.SerializeToString()
    assert joined(model) == content
    assert parsed(content) == model
    assert parsed(content).HasField("graph") == model.HasField("graph")


@pytest.mark.parametrize("name", ["subgraphs", "attributes", "everything else"])
def test_large_tensors_are_made_when_they_are_written(name):
    pieces = serialize(MADE[name])
    later = [piece for piece in pieces if isinstance(piece, Later)]
    assert sum(size_of(piece) for piece in pieces if not isinstance(piece, Later)) < 2000
    assert all(len(piece.make()) == piece.size for piece in later)


@pytest.mark.parametrize("unknown", UNKNOWN.values(), ids=UNKNOWN)
@pytest.mark.parametrize(
    "message", [ModelProto, GraphProto, NodeProto, AttributeProto, TensorProto]
)
def test_fields_of_newer_versions_are_kept(unknown, message, run):
    model = _attributes()
    node = model.graph.node[0]
    place = {
        ModelProto: model,
        GraphProto: model.graph,
        NodeProto: node,
        AttributeProto: node.attribute[0],
        TensorProto: node.attribute[0].t,
    }[message]
    place.MergeFromString(unknown)
    content = model.SerializeToString()
    assert unknown in content
    assert joined(model) == content
    assert parsed(content).SerializeToString() == content


def test_a_graph_in_two_records_is_one(run):
    content = MADE["attributes"].SerializeToString() + MADE["typed data"].SerializeToString()
    assert parsed(content) == ModelProto.FromString(content)


def test_weights_are_not_even_read():
    model = _typed()
    model.graph.initializer.append(large())
    model.graph.node.append(helper.make_node("Constant", [], ["c"], value=large()))
    content = model.SerializeToString()

    class Counting(io.BytesIO):
        total = 0

        def read(self, size: int | None = -1) -> bytes:
            result = super().read(size)
            self.total += len(result)
            return result

    stream = Counting(content)
    light = parse_model(stream, len(content), weights=False)
    assert stream.total < len(content) - 150_000
    model.graph.initializer[-1].ClearField("raw_data")
    assert light == model


def same_as_protobuf(content: bytes) -> None:
    """Refused where protobuf refuses it, and the same message otherwise."""
    try:
        expected = ModelProto.FromString(content)
    except DecodeError:
        with pytest.raises(DecodeError):
            parsed(content)
    else:
        assert parsed(content).SerializeToString() == expected.SerializeToString()


def small_model() -> ModelProto:
    weights = numpy_helper.from_array(np.arange(6, dtype=np.float32), "weights")
    return model_of(helper.make_node("Constant", [], ["c"], value=weights), initializer=[weights])


def test_files_that_end_anywhere(run):
    content = small_model().SerializeToString()
    for end in range(len(content)):
        same_as_protobuf(content[:end])


@given(st.data())
@settings(max_examples=400, deadline=None)
def test_damaged_files(data):
    content = bytearray(small_model().SerializeToString())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    same_as_protobuf(bytes(content))


NAMES = st.text(max_size=5)
TENSORS = st.builds(
    TensorProto,
    name=NAMES,
    dims=st.lists(st.integers(-1, 2**40), max_size=3),
    data_type=st.integers(0, 30),
    raw_data=st.none() | st.binary(max_size=100_000),
    float_data=st.lists(st.floats(width=32, allow_nan=False), max_size=3),
    doc_string=st.none() | NAMES,
)


@st.composite
def graphs(draw: st.DrawFn, depth: int = 0) -> GraphProto:
    graph = GraphProto(name=draw(NAMES), initializer=draw(st.lists(TENSORS, max_size=2)))
    for _ in range(draw(st.integers(0, 2))):
        node = graph.node.add(op_type=draw(NAMES), input=draw(st.lists(NAMES, max_size=3)))
        attribute = node.attribute.add(name=draw(NAMES), ints=draw(st.lists(st.integers(0, 9))))
        if draw(st.booleans()):
            attribute.t.CopyFrom(draw(TENSORS))
        if depth < 2 and draw(st.booleans()):
            attribute.g.CopyFrom(draw(graphs(depth + 1)))
    return graph


@given(graphs())
@settings(max_examples=100, deadline=None)
def test_random_models(graph):
    model = ModelProto(ir_version=8, graph=graph)
    content = model.SerializeToString()
    assert joined(model) == content
    assert parsed(content) == model
