"""StofMaskedAttention on the GPU, through the plugin, against the float64 oracle.

The error may be at most twice PyTorch's own in the same precision, the largest and the mean
(accuracy.py says what is forgiven besides).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.gpu.cases import CASES, Case, Config, node_of

if TYPE_CHECKING:
    from tests.gpu.conftest import Measurements
    from tests.gpu.harness import Plans

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("case", CASES, ids=str)
def test_error_is_at_most_twice_that_of_pytorch(
    case: Case, plans: Plans, measurements: Measurements
) -> None:
    from tests.gpu.accuracy import compare
    from tests.gpu.harness import run_node

    node = node_of(case)
    comparison = compare(node.problem, run_node(node, plans[case.config]))
    measurements.add(case, comparison)
    assert comparison.ours.maximum <= comparison.limit.maximum, comparison
    assert comparison.ours.mean <= comparison.limit.mean, comparison


@pytest.mark.parametrize(
    "case", [Case(Config("causal", "float16", layout="packed"), (2, 70, 70))], ids=str
)
def test_one_packed_tensor_is_three_inputs(case: Case, plans: Plans) -> None:
    """Query, key and value at their offsets in one tensor: the very same address three times."""
    from tests.gpu.harness import Engine, to_device

    node = node_of(case)
    packed = np.array(node.inputs[0])  # what isn't the query is NaN
    for part in node.inputs[1:]:
        values = part.reshape(packed.shape)
        packed = np.where(np.isnan(values), packed, values)
    assert not np.isnan(packed).any()
    engine = Engine.of(node.record, plans[case.config])
    separate = [to_device(x) for x in node.inputs]
    shared = to_device(packed)
    views = [shared.view(x.shape) for x in separate]
    assert len({x.data_ptr() for x in views}) == 1
    (wanted,), (got,) = engine.run(separate), engine.run(views)
    assert got.equal(wanted)
