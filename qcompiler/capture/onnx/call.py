"""What a converter sees of a node: its operands and attributes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import _disable_current_modes

from qcompiler.capture.onnx.model import ElementType, Node
from qcompiler.errors import CaptureError

# A whole number tensor in which sizes are symbols: an array of ``int`` and ``torch.SymInt``.
Sizes = np.ndarray[Any, np.dtype[np.object_]]
Size = int | torch.SymInt
# None: an optional operand that is not given.
Value = torch.Tensor | Sizes | list[Any] | None


def is_constant(value: Value) -> bool:
    """Whether a value is known while the model is captured: traced ones are tensors of a subclass (fake tensors)."""
    if isinstance(value, list):
        return all(is_constant(item) for item in value)
    return value is None or type(value) is torch.Tensor


class Call:
    """One node with its operands. Positions count the node's inputs; an operand beyond the last is one that is not given."""

    def __init__(
        self,
        node: Node,
        opset: int,
        operands: Sequence[Value],
        materialize: Callable[[int], torch.Tensor],
        element_types: Sequence[ElementType | None] = (),
    ) -> None:
        self.node, self.opset, self.operands = node, opset, tuple(operands)
        self._materialize, self._element_types = materialize, tuple(element_types)

    def __len__(self) -> int:
        return len(self.operands)

    def fail(self, reason: str) -> CaptureError:
        """The error to raise: it names the node."""
        return CaptureError(f"node {self.node.label}: {reason}")

    # ---- operands

    def has(self, position: int) -> bool:
        return position < len(self.operands) and self.operands[position] is not None

    def value(self, position: int) -> Value:
        """The operand as it is: a constant, a traced tensor, sizes, a sequence or None."""
        return self.operands[position] if position < len(self.operands) else None

    def tensor(self, position: int) -> torch.Tensor:
        """The operand as a tensor to compute with; constants become part of the program."""
        value = self.value(position)
        if value is None:
            raise self.fail(f"input {position} is missing")
        if isinstance(value, np.ndarray):
            raise self.fail(f"input {position} is computed from sizes that are open: only shapes may depend on them")
        if isinstance(value, list):
            raise self.fail(f"input {position} is a sequence, not a tensor")
        return self._materialize(position)

    def optional(self, position: int) -> torch.Tensor | None:
        return self.tensor(position) if self.has(position) else None

    def operand(self, position: int) -> torch.Tensor | float | int | bool:
        """As ``tensor``, but the number where the operand is a constant of rank 0."""
        value = self.value(position)
        if isinstance(value, torch.Tensor) and is_constant(value) and value.ndim == 0 and not self.folding:
            return self.number(position)
        return self.tensor(position)

    def constant(self, position: int) -> torch.Tensor:
        """The operand's value, where the op can be converted for known values only."""
        value = self.value(position)
        if value is None:
            raise self.fail(f"input {position} is missing")
        if not isinstance(value, torch.Tensor) or not is_constant(value):
            raise self.fail(f"input {position} depends on the inputs of the model: it must be a constant")
        return value

    def is_constant(self, position: int) -> bool:
        """Whether the operand is given and known."""
        value = self.value(position)
        return value is not None and is_constant(value)

    @property
    def folding(self) -> bool:
        """Whether all operands are known, and the call is computed rather than traced."""
        return all(is_constant(value) for value in self.operands)

    def sizes(self, position: int) -> list[Size]:
        """The operand as a list of sizes, some of them symbols where sizes of the model's inputs are open."""
        value = self.value(position)
        if isinstance(value, np.ndarray):
            return [size if isinstance(size, torch.SymInt) else int(size) for size in value.reshape(-1)]
        constant = self.constant(position)
        if constant.dtype.is_floating_point:
            raise self.fail(f"input {position} holds sizes but is {constant.dtype}")
        return [int(size) for size in self.numbers(position)]

    def size(self, position: int) -> Size:
        """The operand as one size."""
        sizes = self.sizes(position)
        if len(sizes) != 1:
            raise self.fail(f"input {position} holds {len(sizes)} numbers, not one")
        return sizes[0]

    def number(self, position: int) -> float | int | bool:
        """The operand as one known number."""
        numbers = self.numbers(position)
        if len(numbers) != 1:
            raise self.fail(f"input {position} holds {len(numbers)} numbers, not one")
        number: float | int | bool = numbers[0]
        return number

    def numbers(self, position: int) -> list[Any]:
        """The operand's elements, which are known, in order."""
        constant = self.constant(position)
        with _disable_current_modes():  # what is traced must not see it
            return list(constant.reshape(-1).tolist())

    def element_type(self, position: int) -> ElementType | None:
        """The operand's type in the file (``onnx.TensorProto.INT4``, stored here as int8), where it is known."""
        return self._element_types[position] if position < len(self._element_types) else None

    # ---- attributes

    def attribute(self, name: str, default: Any = None) -> Any:
        return self.node.attributes.get(name, default)

    def integer(self, name: str, default: int = 0) -> int:
        return int(self.attribute(name, default))

    def real(self, name: str, default: float = 0.0) -> float:
        return float(self.attribute(name, default))

    def flag(self, name: str, default: bool = False) -> bool:
        return bool(self.attribute(name, default))

    def text(self, name: str, default: str = "") -> str:
        return str(self.attribute(name, default))

    def integers(self, name: str, default: Sequence[int] | None = None) -> list[int] | None:
        found = self.attribute(name, default)
        return None if found is None else [int(item) for item in found]
