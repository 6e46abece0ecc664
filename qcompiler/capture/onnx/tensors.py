"""Tensors of an ONNX file: from its bytes, or from files beside it, without a copy where the layout allows it."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import numpy as np
import torch
from onnx import TensorProto, helper, numpy_helper

from qcompiler.capture.onnx.types import dtype_of
from qcompiler.errors import CaptureError

# Dtypes that numpy has no type of its own for: the bits travel as integers of the same size.
_BITS = {1: np.uint8, 2: np.uint16}


def to_torch(proto: TensorProto, folder: Path | None) -> torch.Tensor:
    """The tensor; ``folder`` holds the files that external tensors may lie in.

    Raises:
        CaptureError: unsupported type, negative sizes, data that do not fit the shape, or external data that are missing or outside of
            the folder. The message names the tensor.
    """
    what = f"tensor '{proto.name}'"
    dtype = dtype_of(proto.data_type, what)
    if any(size < 0 for size in proto.dims):
        raise CaptureError(f"{what} has the shape {list(proto.dims)}: sizes must not be negative")
    if proto.data_location == TensorProto.EXTERNAL:
        array = _external(proto, folder, what)
    else:
        try:
            array = numpy_helper.to_array(proto)
        except (ValueError, TypeError, IndexError) as error:
            raise CaptureError(f"{what} of shape {list(proto.dims)} has damaged data: {error}") from error
    if list(array.shape) != list(proto.dims):
        raise CaptureError(f"{what} holds {array.size} elements, but its shape is {list(proto.dims)}")
    return _wrapped(array, dtype)


def _wrapped(array: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    """The array's memory as a tensor where torch can use it."""
    array = np.require(array, requirements="C").reshape(array.shape)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable.*")  # nobody writes into a constant
        if array.dtype.name.startswith(("int4", "uint4", "int2", "uint2")):
            return torch.from_numpy(array.astype(np.int8 if array.dtype.name.startswith("int") else np.uint8))
        if array.dtype.name.startswith("float4"):
            return torch.from_numpy(array.astype(np.float32))
        if dtype is torch.bfloat16 or dtype.itemsize == 1 and dtype.is_floating_point:
            return torch.from_numpy(array.view(_BITS[dtype.itemsize])).view(dtype)
        return torch.from_numpy(array)


def _external(proto: TensorProto, folder: Path | None, what: str) -> np.ndarray:
    """A memory map of the file that holds the data: pages are read when they are used."""
    entries = {entry.key: entry.value for entry in proto.external_data}
    path = _path_inside(entries.get("location", ""), folder, what)
    try:
        offset, stated = int(entries.get("offset", 0)), int(entries.get("length", -1))
    except ValueError as error:
        raise CaptureError(f"{what} has a damaged offset or length of its external data") from error
    dtype = helper.tensor_dtype_to_np_dtype(proto.data_type)
    if dtype.itemsize * 8 != _bits(proto.data_type, dtype):
        return _packed(proto, path, offset, stated, what)
    length = math.prod(proto.dims) * dtype.itemsize
    if stated not in (-1, length) or offset < 0 or offset + length > path.stat().st_size:
        raise CaptureError(f"{what} needs {length} bytes at {offset} of '{path.name}', which has {path.stat().st_size}: copy it again")
    if length == 0:
        return np.zeros(tuple(proto.dims), dtype)
    return np.memmap(path, dtype, "r", offset, tuple(proto.dims))


def _bits(data_type: int, dtype: np.dtype) -> int:
    if data_type in (TensorProto.INT4, TensorProto.UINT4, TensorProto.FLOAT4E2M1):
        return 4
    return 2 if data_type in (TensorProto.INT2, TensorProto.UINT2) else dtype.itemsize * 8


def _packed(proto: TensorProto, path: Path, offset: int, length: int, what: str) -> np.ndarray:
    """Elements smaller than a byte: read as if they stood in the file itself."""
    inside = TensorProto(name=proto.name, data_type=proto.data_type, dims=proto.dims)
    with path.open("rb") as file:
        file.seek(max(offset, 0))
        inside.raw_data = file.read(length)
    try:
        return numpy_helper.to_array(inside)
    except (ValueError, TypeError, IndexError) as error:
        raise CaptureError(f"{what} of shape {list(proto.dims)} has damaged data in '{path.name}': {error}") from error


def _path_inside(location: str, folder: Path | None, what: str) -> Path:
    if folder is None:
        raise CaptureError(f"{what} lies in the file '{location}': give the path of the model, or load its external data first")
    path = folder / location
    if not location or not path.resolve().is_relative_to(folder.resolve()):
        raise CaptureError(f"{what} lies in '{location}', outside of the model's folder: external data must stand beside the model")
    if not path.is_file():
        raise CaptureError(f"{what} lies in '{location}', and there is no such file beside the model: copy it there")
    return path
