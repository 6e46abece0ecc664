"""Weights that are no numbers are told when a model is captured: later they show far away, as values or scales that are not finite."""

from __future__ import annotations

import torch
from torch import fx

from qcompiler.errors import CaptureError
from qcompiler.ir import edit
from qcompiler.ir.provenance import describe, provenance_of

# Names that ops give to their parameters. Infinities elsewhere have a meaning: masks of scores are made of them.
_PARAMETERS = frozenset({"weight", "bias", "running_mean", "running_var"})


def check_finite(graph: fx.Graph) -> None:
    """Guard: no constant holds NaN, and no parameter of an op an infinity.

    Raises:
        CaptureError: one does; names it and the op that reads it.
    """
    for node in graph.nodes:
        value = edit.constant_value(node)
        if value is None or not value.is_floating_point() or value.numel() == 0:
            continue
        low, high = (float(end) for end in torch.aminmax(value))
        reader = next(iter(node.users))  # capture has erased what nobody reads
        if low != low or (max(abs(low), abs(high)) == torch.inf and _is_parameter(node, reader)):
            raise CaptureError(_message(node, reader, value))


def _is_parameter(node: fx.Node, reader: fx.Node) -> bool:
    schema = getattr(reader.target, "_schema", None)
    names = {argument.name for argument in schema.arguments} if schema is not None else set()
    return any(edit.argument(reader, name) is node for name in _PARAMETERS & names)


def _message(node: fx.Node, reader: fx.Node, value: torch.Tensor) -> str:
    count = int((~torch.isfinite(value)).sum())
    module = provenance_of(node).module_path
    where = f" of the module {module}" if module else ""
    return (
        f"the constant '{node.name}'{where}, which {describe(reader)} reads, holds {count} of {value.numel()} values that are"
        " NaN or infinite: load the weights again, or go back to weights before training diverged"
    )
