"""supportsFormatCombination: the one right combination, decided position by position."""

from __future__ import annotations

import dataclasses
import random

import pytest

from stof_onnx.ir.plan import DataType
from stof_onnx.plugin_host import TensorDesc
from tests.conformance.nodes import NODES, NodeCase, Sizes

AT = Sizes(2, 5, 7)
LINEAR = 0
FORMATS = range(1, 14)
"""The other values of nvinfer1::TensorFormat."""


def split(node: NodeCase, descs: list[TensorDesc]) -> tuple[list[TensorDesc], list[TensorDesc]]:
    inputs = len(node.input_types)
    return descs[:inputs], descs[inputs:]


def everything(node: NodeCase) -> list[TensorDesc]:
    return [*node.input_descs(AT), *node.output_descs(AT)]


@pytest.mark.parametrize("node", NODES, ids=str)
def test_the_right_combination_is_accepted(node: NodeCase) -> None:
    plugin, descs = node.create(), everything(node)
    assert all(plugin.supports_format(i, *split(node, descs)) for i in range(len(descs)))


@pytest.mark.parametrize("node", NODES, ids=str)
def test_every_other_type_and_format_is_refused_at_each_position(node: NodeCase) -> None:
    plugin, descs = node.create(), everything(node)
    for i, right in enumerate(descs):
        near_misses = [
            *(dataclasses.replace(right, dtype=t) for t in DataType if t != right.dtype),
            *(dataclasses.replace(right, format=number) for number in FORMATS),
        ]
        for wrong in near_misses:
            changed = [*descs[:i], wrong, *descs[i + 1 :]]
            assert not plugin.supports_format(i, *split(node, changed)), wrong


@pytest.mark.parametrize("node", NODES, ids=str)
def test_later_positions_are_not_read(node: NodeCase) -> None:
    plugin, descs, random_ = node.create(), everything(node), random.Random(7)
    for i, right in enumerate(descs):
        wrong = dataclasses.replace(right, format=1)
        for _ in range(20):
            garbage = [_garbage(random_) for _ in descs[i + 1 :]]
            for tensor, verdict in ((right, True), (wrong, False)):
                given = split(node, [*descs[:i], tensor, *garbage])
                assert plugin.supports_format(i, *given) is verdict


def _garbage(random_: random.Random) -> TensorDesc:
    rank = random_.randint(0, 8)
    dims = tuple(random_.randint(-(2**63), 2**63 - 1) for _ in range(rank))
    dtype = random_.randint(-(2**31), 2**31 - 1)
    return TensorDesc(dtype, dims, random_.randint(-(2**31), 2**31 - 1))  # type: ignore[arg-type]


@pytest.mark.parametrize("node", NODES, ids=str)
def test_shapes_do_not_matter(node: NodeCase) -> None:
    # TensorRT asks before it knows the shapes.
    plugin = node.create()
    descs = [dataclasses.replace(d, dims=(-1,) * len(d.dims)) for d in everything(node)]
    assert all(plugin.supports_format(i, *split(node, descs)) for i in range(len(descs)))


@pytest.mark.parametrize("node", NODES, ids=str)
def test_the_answer_does_not_depend_on_the_order_of_questions(node: NodeCase) -> None:
    plugin, descs, random_ = node.create(), everything(node), random.Random(3)
    for _ in range(60):
        i = random_.randrange(len(descs))
        is_right = random_.random() < 0.5
        tensor = descs[i] if is_right else dataclasses.replace(descs[i], dtype=DataType.UINT8)
        given = split(node, [*descs[:i], tensor, *descs[i + 1 :]])
        assert plugin.supports_format(i, *given) is is_right


@pytest.mark.parametrize("node", NODES, ids=str)
def test_positions_that_do_not_exist_are_refused(node: NodeCase) -> None:
    plugin, descs = node.create(), everything(node)
    for position in (-1, len(descs)):
        assert not plugin.supports_format(position, *split(node, descs))


@pytest.mark.parametrize("node", NODES, ids=str)
def test_another_number_of_tensors_is_refused(node: NodeCase) -> None:
    plugin = node.create()
    inputs, outputs = node.descs(AT)
    for given in ((inputs[:-1], outputs), (inputs, outputs * 2)):
        assert not plugin.supports_format(0, *given)
