"""What a call may be given: number, types, shapes and dtypes of the inputs, checked before anything reads them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from qcompiler.errors import QCompilerError
from qcompiler.ir.program import ValueSpec
from qcompiler.ir.sizes import bind, fits, shape_text

# Shape and dtype of each input: all that ``check_signature`` asks, so that its answer can be remembered.
Signature = tuple[tuple[torch.Size, torch.dtype], ...]


def check_inputs(specs: Sequence[ValueSpec], values: Sequence[torch.Tensor], integers: bool, what: str) -> None:
    """Guard: the inputs are tensors of the shapes and dtypes that the specifications say.

    Raises:
        QCompilerError: as ``signature`` and ``check_signature``.
    """
    check_signature(specs, what, integers, signature(values))


def signature(values: Sequence[torch.Tensor]) -> Signature:
    """Shapes and dtypes of inputs.

    Raises:
        QCompilerError: an input is no tensor; names its position and type.
    """
    for position, value in enumerate(values):
        if not isinstance(value, torch.Tensor):
            raise QCompilerError(f"input {position} is of type {type(value).__name__}: pass torch tensors")
    return tuple((value.shape, value.dtype) for value in values)


def check_signature(specs: Sequence[ValueSpec], what: str, integers: bool, found: Signature) -> None:
    """Guard: number, shapes and dtypes of the inputs of ``what`` ("module"). ``integers``: they are quantized already.

    The range of integers is checked where they are read: ``ValueSpec.check_range``.

    Raises:
        QCompilerError: one does not fit; names it, what was expected and what came.
    """
    if len(found) != len(specs):
        raise QCompilerError(f"the {what} takes {len(specs)} input(s) ({', '.join(spec.name for spec in specs)}), got {len(found)}")
    for spec, (shape, dtype) in zip(specs, found, strict=True):
        wanted = spec.quantized.integer.dtype if integers and spec.quantized else spec.dtype
        if not fits(spec.shape, shape) or dtype != wanted:
            raise QCompilerError(f"input '{spec.name}': expected {wanted} [{shape_text(spec.shape)}], got {dtype} {list(shape)}")
    bind(specs, [shape for shape, _ in found])
