"""Types of plugin fields, and other forms in which TensorRT may pass the same attribute."""

from __future__ import annotations

import dataclasses

import numpy as np

from stof_onnx.plugin_host import Field

INT32, INT64, FLOAT32, FLOAT64, CHAR, INT8, INT16 = 5, 10, 1, 2, 6, 3, 4
"""Numbers of nvinfer1::PluginFieldType."""


def as_int64(field: Field) -> Field:
    if field.type != INT32:
        return field
    numbers = np.frombuffer(field.data, np.int32).astype(np.int64)
    return dataclasses.replace(field, type=INT64, data=numbers.tobytes())


def without_nul(field: Field) -> Field:
    if field.type != CHAR:
        return field
    return dataclasses.replace(field, length=field.length - 1, data=field.data[:-1])
