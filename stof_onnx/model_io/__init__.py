"""Reading and writing ONNX files: one-line errors in, all or nothing out.

Reading checks everything that later code relies on (external data present and
long enough, a supported opset, the ONNX checker's verdict), so that nobody
downstream meets a half-broken model. Writing goes to a temporary file beside the
target and is published by a rename: the target is either the old file or the
complete new one, never a torn one.

Models are as large as memory allows: both go through the file in pieces, so that a
model's weights are in memory once and never a second time.
"""

from stof_onnx.model_io.loading import MAX_OPSET, MIN_OPSET, load_model
from stof_onnx.model_io.messages import PathLike, first_line
from stof_onnx.model_io.output_path import check_output_path
from stof_onnx.model_io.saving import save_model
from stof_onnx.model_io.tensors import needs_external_data, outline

__all__ = [
    "MAX_OPSET",
    "MIN_OPSET",
    "PathLike",
    "check_output_path",
    "first_line",
    "load_model",
    "needs_external_data",
    "outline",
    "save_model",
]
