"""The machine-readable twin of ``Program.text()``: the same facts as JSON, for tools that compare or plot programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import fx

from qcompiler.ir.program import PassRecord, Program, ValueSpec
from qcompiler.ir.provenance import provenance_of, target_name
from qcompiler.ir.types import DynamicSize, Precision, QuantizedType


def program_json(program: Program) -> dict[str, Any]:
    """Stage, inputs, outputs, history, and one entry for each node; weights are named, not written."""
    return {
        "stage": program.stage.value,
        "inputs": [_spec(spec) for spec in program.inputs],
        "outputs": [_spec(spec) for spec in program.outputs],
        "history": [_record(record) for record in program.history],
        "nodes": [_node(node) for node in program.graph.nodes],
    }


def _spec(spec: ValueSpec) -> dict[str, Any]:
    shape = [asdict(size) if isinstance(size, DynamicSize) else size for size in spec.shape]
    return {"name": spec.name, "dtype": _dtype(spec.dtype), "shape": shape, "quantized": _quantized(spec.quantized)}


def _record(record: PassRecord) -> dict[str, Any]:
    return {"pass": record.name, "options": _plain(record.options), "modified": record.modified, "notes": list(record.notes)}


def _node(node: fx.Node) -> dict[str, Any]:
    value = node.meta.get("val")
    origin = provenance_of(node)
    return {
        "name": node.name,
        "op": target_name(node),
        "attribute": str(node.target) if node.op == "get_attr" else None,
        "args": _plain(node.args),
        "kwargs": _plain(node.kwargs),
        "dtype": _dtype(value.dtype) if isinstance(value, torch.Tensor) else None,
        "shape": [_size(size) for size in value.shape] if isinstance(value, torch.Tensor) else None,
        "quantized": _quantized(node.meta.get("quantized")),
        "asks": _precision(node.meta.get("precision")),
        "source": origin.source,
        "module": origin.module_path,
        "made_by": list(origin.made_by),
    }


def _quantized(kind: QuantizedType | None) -> dict[str, Any] | None:
    if kind is None:
        return None
    proven = [kind.range.low, kind.range.high] if kind.range else None
    return {
        "integer": str(kind.integer),
        "scale": list(kind.scale),
        "zero_point": list(kind.zero_point),
        "axis": kind.axis,
        "range": proven,
    }


def _precision(asked: object) -> dict[str, int | None] | None:
    """The bits asked for at a node."""
    return asdict(asked) if isinstance(asked, Precision) and asked != Precision() else None


def _plain(value: object) -> Any:
    """Arguments and options in JSON's types; a node becomes ``%name``, anything else that JSON lacks its text."""
    if isinstance(value, fx.Node):
        return f"%{value.name}"
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _size(size: int | torch.SymInt) -> int | str:
    return size if isinstance(size, int) else str(size)


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
