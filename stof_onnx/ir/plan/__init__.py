"""The plan of a stof node: what was compiled for it and how that is launched (docs/plan.md).

A plan is built from the records, written into the node's `plan` attribute with
:func:`encode` and :func:`as_tensor`, and read by the plugin. :func:`launches` is what the plugin
then launches, computed in Python.
"""

from stof_onnx.ir.plan.codec import (
    ATTRIBUTE,
    VERSION,
    as_array,
    as_tensor,
    decode,
    encode,
    from_json,
    plan_bytes_of,
    to_json,
)
from stof_onnx.ir.plan.description import describe
from stof_onnx.ir.plan.quantities import Ceil, Quantity, Term, evaluate
from stof_onnx.ir.plan.records import (
    Argument,
    Bucket,
    Cover,
    DataType,
    Float32,
    Int32,
    Int64,
    Kernel,
    Launch,
    Plan,
    Range,
    Symbol,
    Tactic,
    TensorPointer,
    Variant,
    WorkspacePointer,
)
from stof_onnx.ir.plan.resolution import (
    Resolution,
    ResolvedArgument,
    ResolvedLaunch,
    evaluate_symbols,
    find_bucket,
    find_variant,
    launches,
    resolve,
    runs_on,
)

__all__ = [
    "ATTRIBUTE",
    "VERSION",
    "Argument",
    "Bucket",
    "Ceil",
    "Cover",
    "DataType",
    "Float32",
    "Int32",
    "Int64",
    "Kernel",
    "Launch",
    "Plan",
    "Quantity",
    "Range",
    "Resolution",
    "ResolvedArgument",
    "ResolvedLaunch",
    "Symbol",
    "Tactic",
    "TensorPointer",
    "Term",
    "Variant",
    "WorkspacePointer",
    "as_array",
    "as_tensor",
    "decode",
    "describe",
    "encode",
    "evaluate",
    "evaluate_symbols",
    "find_bucket",
    "find_variant",
    "from_json",
    "launches",
    "plan_bytes_of",
    "resolve",
    "runs_on",
    "to_json",
]
