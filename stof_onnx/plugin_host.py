"""Runs TensorRT plugins of the plugin library without TensorRT, through its C interface.

The library's host interface (plugins/host/stof_host.h) drives a plugin by the calls that TensorRT
makes, in its order; this module is its Python form. Tests, the search and the CUDA runner use
it, so that all of them execute the plugin itself. Creating, configuring and serialising need no
GPU; attaching and what follows work on the calling thread's current CUDA context.
"""

from __future__ import annotations

import ctypes
import functools
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import TensorProto, numpy_helper

from stof_onnx import plugin_library
from stof_onnx.ir.errors import StofError
from stof_onnx.ir.plan import DataType

BUILD, RUNTIME = 0, 1
"""Phases in which a plugin is created: parsing a network, deserialising an engine."""

_INT32, _FLOAT32, _CHAR, _INT8 = 5, 1, 6, 3  # nvinfer1::PluginFieldType
_MAX_RANK = 8


class PluginError(StofError):
    """A plugin refused a call; the message is its own."""


@dataclass(frozen=True)
class TensorDesc:
    """Type and shape of a tensor as TensorRT describes it to a plugin.

    Attributes:
        dtype: element type.
        dims: -1 for a dimension that isn't known yet.
        format: nvinfer1::TensorFormat; 0 is linear (row-major).
    """

    dtype: DataType
    dims: tuple[int, ...]
    format: int = 0


@dataclass(frozen=True)
class Field:
    """One attribute as TensorRT hands it over.

    Attributes:
        name: of the attribute.
        type: nvinfer1::PluginFieldType.
        length: number of elements.
        data: the elements.
    """

    name: str
    type: int
    length: int
    data: bytes


@dataclass(frozen=True)
class Creator:
    """A plugin creator of the library."""

    name: str
    version: str
    namespace: str
    fields: tuple[tuple[str, int], ...]


class _CField(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("data", ctypes.c_void_p),
        ("type", ctypes.c_int32),
        ("length", ctypes.c_int32),
    )


class _CTensor(ctypes.Structure):
    _fields_ = (
        ("dtype", ctypes.c_int32),
        ("format", ctypes.c_int32),
        ("rank", ctypes.c_int32),
        ("dims", ctypes.c_int64 * _MAX_RANK),
    )


def field_of(name: str, value: Any) -> Field:
    """An ONNX attribute as TensorRT's ONNX importer passes it.

    Args:
        name: of the attribute.
        value: int, float, text, a sequence of ints, or an INT8 tensor.

    Raises:
        TypeError: another kind of attribute.
    """
    if isinstance(value, str):
        data = value.encode() + b"\0"
        return Field(name, _CHAR, len(data), data)
    if isinstance(value, bytes):
        return Field(name, _CHAR, len(value) + 1, value + b"\0")
    if isinstance(value, TensorProto):
        value = numpy_helper.to_array(value)
    if isinstance(value, np.ndarray):
        if value.dtype != np.int8:
            raise TypeError(f"attribute {name!r} is a tensor of {value.dtype}, wanted int8")
        return Field(name, _INT8, value.size, value.tobytes())
    if isinstance(value, float):
        return Field(name, _FLOAT32, 1, np.float32(value).tobytes())
    numbers = np.atleast_1d(np.asarray(value))
    if numbers.size == 0:
        numbers = numbers.astype(np.int32)
    if numbers.dtype.kind not in "iu":
        raise TypeError(f"attribute {name!r} is {value!r:.60}")
    return Field(name, _INT32, numbers.size, numbers.astype(np.int32).tobytes())


@functools.cache
def _library() -> ctypes.CDLL:
    library = plugin_library.load()
    pointer, int32, int64, text = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64, ctypes.c_char_p
    tensors, integers = ctypes.POINTER(_CTensor), ctypes.POINTER(int32)
    fields = ctypes.POINTER(_CField)
    signatures: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "stof_last_error": (text, ()),
        "stof_set_driver_library": (int32, (text,)),
        "stof_check_plan": (int32, (text, int64)),
        "stof_plugin_count": (int32, ()),
        "stof_plugin_name": (text, (int32,)),
        "stof_plugin_version": (text, (int32,)),
        "stof_plugin_namespace": (text, (int32,)),
        "stof_plugin_field_count": (int32, (int32,)),
        "stof_plugin_field_name": (text, (int32, int32)),
        "stof_plugin_field_type": (int32, (int32, int32)),
        "stof_plugin_create": (pointer, (text, fields, int32, int32)),
        "stof_plugin_clone": (pointer, (pointer,)),
        "stof_plugin_destroy": (None, (pointer,)),
        "stof_plugin_serialize": (int32, (pointer, ctypes.POINTER(fields))),
        "stof_plugin_output_count": (int32, (pointer,)),
        "stof_plugin_output_types": (int32, (pointer, integers, int32, integers)),
        "stof_plugin_output_shapes": (int32, (pointer, tensors, int32, tensors)),
        "stof_plugin_supports_format": (int32, (pointer, int32, tensors, int32, int32)),
        "stof_plugin_configure": (
            int32,
            (pointer, tensors, tensors, tensors, tensors, int32, int32),
        ),
        "stof_plugin_workspace_size": (int64, (pointer, tensors, int32, int32)),
        "stof_plugin_tactics": (int32, (pointer, integers, int32)),
        "stof_plugin_set_tactic": (int32, (pointer, int32)),
        "stof_plugin_attach": (pointer, (pointer,)),
        "stof_plugin_on_shape_change": (int32, (pointer, tensors, int32, int32)),
        "stof_plugin_enqueue": (
            int32,
            (
                pointer,
                tensors,
                int32,
                int32,
                ctypes.POINTER(pointer),
                ctypes.POINTER(pointer),
                pointer,
                pointer,
            ),
        ),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype = result
        function.argtypes = arguments
    return library


def _failed(what: str) -> PluginError:
    reason = (_library().stof_last_error() or b"").decode(errors="replace")
    return PluginError(f"{what}: {reason or 'the plugin gave no reason'}")


def _require(result: Any, what: str) -> Any:
    """The result of a call unless it says that the call failed.

    Raises:
        PluginError: it does.
    """
    if result is None or result < 0:
        raise _failed(what)
    return result


def use_driver(path: str) -> None:
    """Use another library than libcuda.so.1 as the CUDA driver, e.g. one that records calls.

    Raises:
        PluginError: a driver is in use already.
    """
    _require(_library().stof_set_driver_library(path.encode()), "setting the driver library")


def check_plan(data: bytes) -> None:
    """Have the plugin library check the content of a `plan` attribute.

    Raises:
        PluginError: saying what is wrong with it.
    """
    _require(_library().stof_check_plan(data, len(data)), "reading a plan")


def creators() -> tuple[Creator, ...]:
    """The library's plugin creators."""
    library = _library()
    result = []
    for i in range(library.stof_plugin_count()):
        fields = tuple(
            (library.stof_plugin_field_name(i, j).decode(), library.stof_plugin_field_type(i, j))
            for j in range(library.stof_plugin_field_count(i))
        )
        texts = (library.stof_plugin_name, library.stof_plugin_version)
        name, version, namespace = (f(i).decode() for f in (*texts, library.stof_plugin_namespace))
        result.append(Creator(name, version, namespace, fields))
    return tuple(result)


class Plugin:
    """One plugin object; belongs to one thread at a time.

    Make one with :meth:`create` or :meth:`from_attributes`.
    """

    def __init__(self, handle: int) -> None:
        self._handle = handle
        self._finalizer = weakref.finalize(self, _library().stof_plugin_destroy, handle)

    @classmethod
    def create(cls, operator: str, fields: Sequence[Field], phase: int = BUILD) -> Plugin:
        """Create a plugin through its creator.

        Raises:
            PluginError: the creator refuses the attributes.
        """
        array = (_CField * len(fields))(
            *(
                _CField(
                    f.name.encode(),
                    ctypes.cast(ctypes.c_char_p(f.data), ctypes.c_void_p),
                    f.type,
                    f.length,
                )
                for f in fields
            )
        )
        handle = _library().stof_plugin_create(operator.encode(), array, len(fields), phase)
        return cls(_require(handle, f"creating plugin {operator}"))

    @classmethod
    def from_attributes(cls, operator: str, attributes: Mapping[str, Any]) -> Plugin:
        """Create a plugin from a node's attributes, as TensorRT's ONNX importer does."""
        return cls.create(operator, [field_of(name, value) for name, value in attributes.items()])

    def close(self) -> None:
        """Destroy the plugin; it is not to be used after."""
        self._finalizer()

    def clone(self) -> Plugin:
        """A copy with nothing shared that changes."""
        handle = _library().stof_plugin_clone(self._handle)
        return Plugin(_require(handle, "cloning a plugin"))

    def serialize(self) -> tuple[Field, ...]:
        """The attributes that an engine keeps."""
        array = ctypes.POINTER(_CField)()
        count = _library().stof_plugin_serialize(self._handle, ctypes.byref(array))
        _require(count, "serialising a plugin")
        return tuple(_field(array[i]) for i in range(count))

    @property
    def output_count(self) -> int:
        """Number of outputs."""
        return int(_require(_library().stof_plugin_output_count(self._handle), "outputs"))

    def output_types(self, input_types: Sequence[DataType]) -> tuple[DataType, ...]:
        """Element types of the outputs."""
        results = (ctypes.c_int32 * self.output_count)()
        types = (ctypes.c_int32 * len(input_types))(*input_types)
        code = _library().stof_plugin_output_types(self._handle, types, len(input_types), results)
        _require(code, "output types")
        return tuple(DataType(value) for value in results)

    def output_shapes(self, inputs: Sequence[TensorDesc]) -> tuple[tuple[int, ...], ...]:
        """Shapes of the outputs for inputs of known shapes."""
        results = (_CTensor * self.output_count)()
        array = _tensors(inputs)
        code = _library().stof_plugin_output_shapes(self._handle, array, len(inputs), results)
        _require(code, "output shapes")
        return tuple(tuple(result.dims[: result.rank]) for result in results)

    def supports_format(
        self, position: int, inputs: Sequence[TensorDesc], outputs: Sequence[TensorDesc]
    ) -> bool:
        """Whether the tensor at a position may have its type and format."""
        array = _tensors([*inputs, *outputs])
        counts = (len(inputs), len(outputs))
        code = _library().stof_plugin_supports_format(self._handle, position, array, *counts)
        return bool(_require(code, "format combination"))

    def configure(
        self,
        inputs: Sequence[TensorDesc],
        outputs: Sequence[TensorDesc],
        *,
        smallest: Sequence[TensorDesc],
        usual: Sequence[TensorDesc],
        largest: Sequence[TensorDesc],
    ) -> None:
        """Tell types and ranges of shapes; the last three are inputs, then outputs."""
        arrays = [_tensors(t) for t in ([*inputs, *outputs], smallest, usual, largest)]
        counts = (len(inputs), len(outputs))
        code = _library().stof_plugin_configure(self._handle, *arrays, *counts)
        _require(code, "configuring a plugin")

    def workspace_size(self, inputs: Sequence[TensorDesc], outputs: Sequence[TensorDesc]) -> int:
        """Bytes of workspace for shapes up to these."""
        array = _tensors([*inputs, *outputs])
        size = _library().stof_plugin_workspace_size(self._handle, array, len(inputs), len(outputs))
        return int(_require(size, "workspace size"))

    def tactics(self) -> tuple[int, ...]:
        """The tactics that TensorRT may choose from."""
        count = _require(_library().stof_plugin_tactics(self._handle, None, 0), "tactics")
        values = (ctypes.c_int32 * count)()
        _require(_library().stof_plugin_tactics(self._handle, values, count), "tactics")
        return tuple(values)

    def set_tactic(self, tactic: int) -> None:
        """Choose a tactic."""
        _require(_library().stof_plugin_set_tactic(self._handle, tactic), f"tactic {tactic}")

    def attach(self) -> Plugin:
        """The clone that an execution context owns; needs a GPU."""
        handle = _library().stof_plugin_attach(self._handle)
        return Plugin(_require(handle, "attaching a plugin to a context"))

    def on_shape_change(self, inputs: Sequence[TensorDesc], outputs: Sequence[TensorDesc]) -> None:
        """Prepare an attached plugin for these shapes."""
        array = _tensors([*inputs, *outputs])
        counts = (len(inputs), len(outputs))
        code = _library().stof_plugin_on_shape_change(self._handle, array, *counts)
        _require(code, "changing shapes")

    def enqueue(
        self,
        inputs: Sequence[TensorDesc],
        outputs: Sequence[TensorDesc],
        *,
        input_addresses: Sequence[int],
        output_addresses: Sequence[int],
        workspace: int = 0,
        stream: int = 0,
    ) -> None:
        """Launch an attached plugin; addresses are device pointers, the stream a CUstream."""
        array = _tensors([*inputs, *outputs])
        code = _library().stof_plugin_enqueue(
            self._handle,
            array,
            len(inputs),
            len(outputs),
            (ctypes.c_void_p * len(input_addresses))(*input_addresses),
            (ctypes.c_void_p * len(output_addresses))(*output_addresses),
            workspace,
            stream,
        )
        _require(code, "enqueue")


def _tensors(tensors: Sequence[TensorDesc]) -> Any:
    array = (_CTensor * len(tensors))()
    for slot, tensor in zip(array, tensors, strict=True):
        slot.dtype, slot.format, slot.rank = tensor.dtype, tensor.format, len(tensor.dims)
        slot.dims[: len(tensor.dims)] = tensor.dims
    return array


# Bytes of an element of each nvinfer1::PluginFieldType.
_FIELD_SIZES = {0: 2, 1: 4, 2: 8, 3: 1, 4: 2, 5: 4, 6: 1, 7: 72, 9: 2, 10: 8, 11: 1}


def _field(field: _CField) -> Field:
    size = _FIELD_SIZES.get(field.type, 1) * field.length
    return Field(field.name.decode(), field.type, field.length, ctypes.string_at(field.data, size))
