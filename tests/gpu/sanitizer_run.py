"""Runs a few varied nodes once, for compute-sanitizer: ``python -m tests.gpu.sanitizer_run``.

Without pytest and without the oracle, which would take longer than the kernels. Run it with
PYTORCH_NO_CUDA_MEMORY_CACHING=1, so that each tensor is an allocation of its own whose bounds are
checked; there are no guard bytes around outputs for the same reason. ``--compile`` only fills the
kernel cache (STOF_ONNX_CACHE), so that the sanitizer doesn't watch compilers.
"""

from __future__ import annotations

import sys

import torch

from tests.gpu.cases import Case, Config, configs_of, node_of
from tests.gpu.harness import Plans, device_target, run_node

MEAN = (("fill", -3.4028234663852886e38), ("fill_mode", "add"))
ZERO = (("nan_to_zero", True),)

CASES = (
    # Copies of 16, 8, 4 and 2 bytes of 16-bit types, padded head dims.
    Case(Config("causal", "float16"), (2, 65, 65)),
    Case(Config("padding_holes", "bfloat16", dims=(36, 36)), (2, 33, 70)),
    Case(Config("sliding_window", "float16", dims=(34, 36), layout="packed"), (1, 79, 79)),
    Case(Config("documents", "float16", (1, 4), (33, 33), layout="gaps"), (1, 67, 67)),
    # float32, copies of 16 and 4 bytes.
    Case(Config("no_mask", "float32", (2, 3), (40, 72), layout="heads-first"), (1, 63, 31)),
    Case(Config("left_padding_causal", "float32", dims=(33, 33)), (2, 31, 31)),
    # Tables, rows of which the kernel owns or looks up.
    Case(Config("bigbird", "float16", layout="interleaved"), (1, 130, 130)),
    Case(Config("table_by_head", "bfloat16", (4, 2), (64, 96)), (1, 100, 150)),
    Case(Config("table_last_rows", "float16", dims=(32, 32)), (2, 5, 130)),
    # Biases, dense masks.
    Case(Config("bias_with_infinities", "float16", dims=(128, 128)), (2, 17, 65)),
    Case(Config("dense_bool", "bfloat16", dims=(80, 80), layout="rank4"), (2, 65, 129)),
    # Rows that see nothing, by three rules; one query; wide heads.
    Case(Config("few_rows", "float16", program=MEAN), (1, 70, 130)),
    Case(Config("padding_everything", "float32", dims=(32, 32), program=ZERO), (2, 9, 70)),
    Case(Config("causal_end", "bfloat16", dims=(256, 256)), (1, 1, 65)),
    # Kept keys that a bias hides; other tiles; a list of tiles that is filled twice.
    Case(Config("hidden_lowest", "float16", program=MEAN), (2, 40, 70)),
    Case(Config("table_32x16", "float32", dims=(32, 32)), (1, 40, 150)),
    Case(Config("table_16x16", "bfloat16", dims=(33, 40)), (1, 20, 600)),
)


def main() -> None:
    """Compile and, unless only that is asked for, run each case and check that it is finite."""
    plans = Plans(device_target())
    plans.prepare(configs_of(CASES))
    if "--compile" in sys.argv[1:]:
        return
    for case in CASES:
        node = node_of(case)
        output = run_node(node, plans[case.config], guard=0).cpu()
        seen = torch.from_numpy(node.problem.kept.any(axis=3))
        if not bool(output[seen].isfinite().all()):
            raise SystemExit(f"{case}: a row that sees keys is not finite")
    print(f"{len(CASES)} cases ran")


if __name__ == "__main__":
    main()
