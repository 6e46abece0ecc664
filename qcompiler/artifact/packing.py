"""Constants of at most 4 bits as an artifact stores them: two, four or eight to a byte, the first one lowest.

The tensor is taken row-major; what is left of the last byte is 0. Integers of 3 bits take 4. Those that are all -1 and +1 take 1, whatever
their type: an integer q is the bit b of its sign, q = 1 - 2 b.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeGuard

import torch
from torch import Tensor

from qcompiler.arithmetic import is_binary
from qcompiler.errors import ArtifactError
from qcompiler.ir import edit
from qcompiler.ir.program import Program

STORED_BITS = (1, 2, 4)
_LEAST_OF_A_TYPE = 2  # 1 bit is for -1 and +1, which no type of 1 bit has
_BYTE = 8


@dataclass(frozen=True)
class Packing:
    """How a constant of signed integers is stored: ``bits`` for each element of ``shape``."""

    bits: int
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return -(-math.prod(self.shape) * self.bits // _BYTE)

    def pack(self, tensor: Tensor) -> Tensor:
        """uint8 [bytes] from int8 in ``[-2^(bits-1), 2^(bits-1))``; of 1 bit from -1 and +1."""
        together = _BYTE // self.bits
        integers = tensor.detach().reshape(-1)
        values = torch.zeros(self.bytes * together, dtype=torch.uint8)
        values[: tensor.numel()] = (integers >> 1 if self.bits == 1 else integers).view(torch.uint8) & ((1 << self.bits) - 1)
        return (values.reshape(-1, together) << self._places).sum(1, dtype=torch.uint8)

    def unpack(self, packed: Tensor) -> Tensor:
        """The inverse of ``pack``. Raises ArtifactError for a tensor that ``pack`` does not give."""
        if packed.dtype != torch.uint8 or packed.shape != (self.bytes,):
            raise ArtifactError(f"packed integers are uint8 [{self.bytes}] for the shape {list(self.shape)}, found {list(packed.shape)}")
        spread = (packed.reshape(-1, 1) << (_BYTE - self.bits - self._places)).view(torch.int8) >> (_BYTE - self.bits)
        values, count = spread.reshape(-1), math.prod(self.shape)
        if bool(values[count:].any()):
            raise ArtifactError("packed integers are followed by others in their last byte")
        found = values[:count].reshape(self.shape)
        return 2 * found + 1 if self.bits == 1 else found.clone()

    @property
    def _places(self) -> Tensor:
        return torch.arange(0, _BYTE, self.bits, dtype=torch.uint8)


def packings(program: Program) -> dict[str, Packing]:
    """Of each constant whose integers say that it is binary, or whose type says that it has so few bits everywhere that it is read; the
    verifier has proven the types."""
    bits: dict[str, int] = {}
    constants: dict[str, Tensor] = {}
    for node in program.graph.nodes:
        if (tensor := edit.constant_value(node)) is None or tensor.dtype != torch.int8:
            continue
        quantized = node.meta.get("quantized")
        own = quantized.integer.bits if quantized is not None else _BYTE
        name = str(node.target)
        bits[name] = max(own, bits.get(name, _LEAST_OF_A_TYPE))
        constants[name] = tensor
    stored = {name: 1 if is_binary(tensor) else stored_bits(bits[name]) for name, tensor in constants.items()}
    return {name: Packing(size, tuple(constants[name].shape)) for name, size in stored.items() if size < _BYTE and constants[name].numel()}


def stored_bits(bits: int) -> int:
    """The bits that integers of a type with ``bits`` bits are stored in."""
    return next((stored for stored in STORED_BITS if bits <= stored), _BYTE)


def pack(tensors: Mapping[str, Tensor], packed: Mapping[str, Packing]) -> dict[str, Tensor]:
    """The tensors by name, those that ``packed`` names packed."""
    return {name: packed[name].pack(tensor) if name in packed else tensor for name, tensor in tensors.items()}


def unpack(tensors: Mapping[str, Tensor], packed: Mapping[str, Packing]) -> dict[str, Tensor]:
    """The inverse of ``pack``. Raises ArtifactError for a name that is missing and for what is not packed as stated."""
    if missing := sorted(packed.keys() - tensors.keys()):
        raise ArtifactError(f"the manifest describes the constant '{missing[0]}', which is missing")
    return {name: packed[name].unpack(tensor) if name in packed else tensor for name, tensor in tensors.items()}


def to_json(packed: Mapping[str, Packing]) -> dict[str, dict[str, object]]:
    """What the manifest says."""
    return {name: {"bits": packing.bits, "shape": list(packing.shape)} for name, packing in packed.items()}


def from_json(value: object) -> dict[str, Packing]:
    """The inverse of ``to_json``. Raises ArtifactError for anything else."""
    if not isinstance(value, dict):
        raise ArtifactError("the manifest's field 'packed' is no object")
    return {name: _packing(name, entry) for name, entry in value.items()}


def _packing(name: str, entry: object) -> Packing:
    bits, shape = (entry.get("bits"), entry.get("shape")) if isinstance(entry, dict) and entry.keys() == {"bits", "shape"} else (None, None)
    if type(bits) is not int or bits not in STORED_BITS or not _is_shape(shape):
        raise ArtifactError(f"the manifest does not say how the constant '{name}' is packed")
    return Packing(bits, tuple(shape))


def _is_shape(value: object) -> TypeGuard[list[int]]:
    """Of something: no size is then more than the file has bits."""
    return isinstance(value, list) and all(type(size) is int and size > 0 for size in value)
