"""How plugins behave as TensorRT runs them: contexts, streams, graphs, shapes, errors."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from stof_onnx.ir.target import Target
from stof_onnx.plugin_host import PluginError
from tests.gpu.cases import Case, Config, Node, node_of
from tests.gpu.masks import FLOAT32_MIN

if TYPE_CHECKING:
    import torch

    from tests.gpu.harness import Context, Plans

pytestmark = pytest.mark.gpu

CAUSAL = Config("causal", "float16")
PADDED = Config("padding_holes", "bfloat16", dims=(80, 80))
TABLE = Config("bigbird", "float32", dims=(32, 32), layout="heads-first")
# Nobody else may have loaded these kernels before: the scale makes them different ones.
CAPTURED = Config("sliding_window", "float16", scale=0.34375)
SHARED = Config("causal", "float16", scale=0.28125)
# Rows that see no key yield the mean.
MEAN = Config("causal", "float16", program=(("fill", FLOAT32_MIN),))
MEAN_BESIDE_BIAS = Config("hidden_lowest", "float32", program=(("fill", FLOAT32_MIN),))
CONFIGS = (CAUSAL, PADDED, TABLE, CAPTURED, SHARED)
"""What the fixture `plans` compiles for this module."""


def _open(
    config: Config, shape: tuple[int, int, int], plans: Plans, **options: Any
) -> tuple[Node, Context, list[torch.Tensor]]:
    """A node at a shape, a context for it, and its inputs on the GPU."""
    from tests.gpu.harness import Engine, device_inputs

    node = node_of(Case(config, shape))
    inputs = device_inputs(node)
    return node, Engine.of(node.record, plans[config], **options).context(inputs), inputs


def _run(context: Context, inputs: list[torch.Tensor]) -> torch.Tensor:
    import torch

    outputs = context.outputs()
    context.enqueue(inputs, outputs)
    torch.cuda.synchronize()
    outputs[0].check()
    return outputs[0].tensor


def _same(got: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Bit for bit, NaN included."""
    import torch

    kind = {2: torch.int16, 4: torch.int32}[got.element_size()]
    return got.contiguous().view(kind).equal(wanted.contiguous().view(kind))


def _assert_right(node: Node, output: torch.Tensor) -> None:
    from tests.gpu.accuracy import compare
    from tests.gpu.harness import heads_first

    comparison = compare(node.problem, heads_first(node.record, output))
    assert comparison.ours.maximum <= comparison.limit.maximum, comparison


@pytest.mark.parametrize("config", [CAUSAL, PADDED, TABLE], ids=str)
def test_deserialised_plugin_gives_the_same_bits_twice(config: Config, plans: Plans) -> None:
    _, context, inputs = _open(config, (2, 130, 130), plans)
    node, direct, _ = _open(config, (2, 130, 130), plans, serialized=False)
    first, second, built = _run(context, inputs), _run(context, inputs), _run(direct, inputs)
    assert _same(first, second), "two runs differ"
    assert _same(first, built), "the deserialised plugin and the built one differ"
    _assert_right(node, first)


def test_shapes_change_back_and_forth(plans: Plans) -> None:
    from tests.gpu.harness import device_inputs

    node, context, inputs = _open(PADDED, (1, 65, 65), plans)
    before = _run(context, inputs)
    for shape in ((3, 300, 7), (1, 1, 1), (2, 7, 300)):
        other = node_of(Case(PADDED, shape))
        other_inputs = device_inputs(other)
        context.set_shapes(other_inputs)
        _assert_right(other, _run(context, other_inputs))
    context.set_shapes(inputs)
    assert _same(_run(context, inputs), before)
    _assert_right(node, before)


def test_two_contexts_of_one_engine_on_two_streams(plans: Plans) -> None:
    """Interleaved, at different shapes, long enough that launches of both are under way at once."""
    import torch

    from tests.gpu.harness import Engine, device_inputs

    nodes = [node_of(Case(CAUSAL, shape)) for shape in ((2, 1000, 1000), (3, 127, 300))]
    engine = Engine.of(nodes[0].record, plans[CAUSAL])
    inputs = [device_inputs(node) for node in nodes]
    contexts = [engine.context(some) for some in inputs]
    wanted = [_run(context, some) for context, some in zip(contexts, inputs, strict=True)]
    streams = [torch.cuda.Stream() for _ in nodes]
    results: list[list[Any]] = [[context.outputs()[0] for _ in range(30)] for context in contexts]
    torch.cuda.synchronize()
    for turn, which in itertools.product(range(30), range(2)):
        contexts[which].enqueue(inputs[which], [results[which][turn]], streams[which])
    torch.cuda.synchronize()
    for node, outputs, expected in zip(nodes, results, wanted, strict=True):
        for output in outputs:
            output.check()
            assert _same(output.tensor, expected)
        _assert_right(node, expected)


def test_capture_without_a_warm_up_and_replay_with_other_inputs(plans: Plans) -> None:
    """The first thing ever launched of a kernel is launched into a graph."""
    import torch

    from tests.gpu.harness import to_device

    shape = (2, 127, 127)
    node, context, inputs = _open(CAPTURED, shape, plans)
    outputs = context.outputs()
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        context.enqueue(inputs, outputs)
    torch.cuda.synchronize()
    assert bool(outputs[0].tensor.isnan().all()), "capture must not run anything"
    graph.replay()
    torch.cuda.synchronize()
    _assert_right(node, outputs[0].tensor)
    first = outputs[0].tensor.clone()
    for target, source in zip(inputs, node.inputs, strict=True):
        target.copy_(to_device(source[::-1]))  # the batches change places
    graph.replay()
    torch.cuda.synchronize()
    outputs[0].check()
    assert _same(outputs[0].tensor, first.flip(0))


def test_many_small_launches_in_a_graph(plans: Plans) -> None:
    """Contexts at several shapes captured in one graph, replayed often."""
    import torch

    from tests.gpu.harness import Engine, device_inputs

    nodes = [node_of(Case(PADDED, shape)) for shape in ((1, 7, 7), (2, 65, 63), (3, 1, 300))]
    engine = Engine.of(nodes[0].record, plans[PADDED])
    inputs = [device_inputs(node) for node in nodes]
    contexts = [engine.context(some) for some in inputs]
    outputs = [context.outputs() for context in contexts]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for context, some, out in zip(contexts, inputs, outputs, strict=True):
            context.enqueue(some, out)
    for _ in range(20):
        graph.replay()
    torch.cuda.synchronize()
    for node, out in zip(nodes, outputs, strict=True):
        _assert_right(node, out[0].tensor)


@pytest.mark.parametrize("shape", [(0, 5, 5), (2, 0, 5), (0, 0, 0)], ids=str)
def test_nothing_to_compute(shape: tuple[int, int, int], plans: Plans) -> None:
    import torch

    from tests.gpu.harness import Engine, device_inputs

    node = node_of(Case(CAUSAL, (2, 5, 5)))
    inputs = device_inputs(node)
    batch, queries, keys = shape
    empty = [x[:batch, : (queries if n == 0 else keys)].clone() for n, x in enumerate(inputs)]
    (output,) = Engine.of(node.record, plans[CAUSAL]).run(empty)
    torch.cuda.synchronize()
    assert output.numel() == 0
    assert output.shape[:2] == (batch, queries)


@pytest.mark.parametrize("nan_to_zero", [False, True])
def test_no_keys_at_all(nan_to_zero: bool, plans: Plans) -> None:
    """A matrix product over nothing is 0, whatever rows without keys yield otherwise."""
    from tests.gpu.harness import Engine, device_inputs

    config = Config("causal", "float16", program=(("nan_to_zero", nan_to_zero),))
    node = node_of(Case(config, (2, 70, 5)))
    query, key, value = device_inputs(node)
    (output,) = Engine.of(node.record, plans[config]).run(
        [query, key[:, :0].clone(), value[:, :0].clone()]
    )
    assert bool((output == 0).all())


@pytest.mark.parametrize("nan_to_zero", [False, True])
@pytest.mark.parametrize("config", [MEAN, MEAN_BESIDE_BIAS], ids=str)
def test_row_of_nan_stays_nan(config: Config, nan_to_zero: bool, plans: Plans) -> None:
    """It has keys that weigh NaN: it isn't a row that sees none."""
    from tests.gpu.harness import Engine, device_inputs

    config = replace(config, program=(*config.program, ("nan_to_zero", nan_to_zero)))
    node = node_of(Case(config, (2, 70, 70)))
    inputs = device_inputs(node)
    inputs[0][:, 41] = float("nan")
    (output,) = Engine.of(node.record, plans[config]).run(inputs)
    row = output[:, 41]
    assert bool((row == 0).all() if nan_to_zero else row.isnan().all())
    assert not bool(output[:, :41].isnan().any())


@pytest.mark.parametrize("position", [0, 1, 2])
def test_address_that_the_kernel_cannot_use_is_an_error(position: int, plans: Plans) -> None:
    import torch

    _, context, inputs = _open(CAUSAL, (1, 16, 16), plans)
    memory = torch.zeros(inputs[position].numel() + 1, dtype=torch.float16, device="cuda")
    shifted = list(inputs)
    shifted[position] = memory[1:].view(inputs[position].shape)
    outputs = context.outputs()
    with pytest.raises(PluginError, match=rf"input {position} .*multiple of 16 bytes"):
        context.enqueue(shifted, outputs)
    torch.cuda.synchronize()
    assert bool(outputs[0].tensor.isnan().all()), "nothing may be launched"
    _run(context, inputs)  # and the context goes on


def test_enqueue_without_shapes_is_an_error(plans: Plans) -> None:
    from tests.gpu.harness import desc

    _, context, inputs = _open(CAUSAL, (1, 16, 16), plans)
    outputs = context.outputs()
    fresh = context.plugin.clone()
    with pytest.raises(PluginError, match="enqueue"):
        fresh.enqueue(
            [desc(x) for x in inputs],
            [desc(outputs[0].tensor)],
            input_addresses=[x.data_ptr() for x in inputs],
            output_addresses=[outputs[0].tensor.data_ptr()],
        )


def test_portable_code_runs_on_this_gpu() -> None:
    """PTX for compute capability 8.0, which the driver compiles when the plugin is attached."""
    from tests.gpu.harness import Plans

    portable = Plans(Target.parse("portable"))
    configs = (CAUSAL, Config("documents", "float32", dims=(40, 40)))
    portable.prepare(configs)
    for config in configs:
        node, context, inputs = _open(config, (2, 65, 65), portable)
        _assert_right(node, _run(context, inputs))


def test_plan_for_another_gpu_names_both() -> None:
    from tests.gpu.harness import Plans, capability

    major, minor = capability()
    other = "sm_90" if major == 8 else "sm_80"
    with pytest.raises(PluginError) as raised:
        _open(CAUSAL, (1, 16, 16), Plans(Target.parse(other)))
    assert other in str(raised.value)
    assert f"{major}.{minor}" in str(raised.value)


def test_plugins_with_one_kernel_load_it_once(plans: Plans) -> None:
    """200 copies of its module would take megabytes, one doesn't."""
    import torch

    from tests.gpu.harness import Engine

    node, context, inputs = _open(SHARED, (1, 16, 16), plans)
    _run(context, inputs)
    engines = [Engine.of(node.record, plans[SHARED]) for _ in range(4)]
    for engine in engines:
        engine.context(inputs)
    torch.cuda.synchronize()
    before, _ = torch.cuda.mem_get_info()
    contexts = [engine.context(inputs) for engine in engines for _ in range(50)]
    torch.cuda.synchronize()
    after, _ = torch.cuda.mem_get_info()
    assert len(contexts) == 200
    assert before - after < 2 << 20, f"{before - after} bytes for 200 contexts"
