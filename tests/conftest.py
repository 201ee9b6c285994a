"""What every test has in common."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes depends on what else the machine does, and is no reason to fail.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@pytest.fixture(autouse=True, scope="session")
def kernel_cache(tmp_path_factory):
    """Compiled kernels are kept for the session and no longer, and never in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STOF_ONNX_CACHE", str(tmp_path_factory.mktemp("kernels")))
        yield
