"""A one-hot vector times a matrix is a row of the matrix.

``(ids[…, None] == arange(n)).float() @ table`` becomes ``embedding(table, ids)``: what compilers for accelerators write for a look-up
(JAX, and ONNX files made of it). The ids must lie in [0, n), as for any embedding; for others the product would give zeros.
"""

from __future__ import annotations

import torch
from torch import fx

from qcompiler.ir import edit
from qcompiler.ir.provenance import provenance_of

_aten = torch.ops.aten


def replace_one_hot(graph: fx.Graph) -> None:
    """Rewrite every such product, in place."""
    for node in [*edit.calls(graph, _aten.linear.default), *edit.calls(graph, _aten.matmul.default)]:
        found = _look_up(node)
        if found is None:
            continue
        ids, table, transposed = found
        if transposed:
            table = edit.insert_call(graph, _aten.t.default, (table,), before=node, provenance_from=[node])
        ids = edit.insert_call(graph, _aten.squeeze.dims, (ids, [ids.meta["val"].ndim - 1]), before=node, provenance_from=[node])
        rows = edit.insert_call(graph, _aten.embedding.default, (table, ids), before=node, provenance_from=[node])
        rows.meta["provenance"] = provenance_of(node)
        edit.replace(node, rows)


def _look_up(node: fx.Node) -> tuple[fx.Node, fx.Node, bool] | None:
    """The ids, the matrix, and whether its rows are the table's columns."""
    transposed = edit.is_call(node, _aten.linear.default)
    if transposed and edit.argument(node, "bias") is not None:
        return None
    hot, table = node.args[0], node.args[1]
    if not isinstance(table, fx.Node) or table.meta["val"].ndim != 2 or not _is_constant(table):
        return None
    if transposed and edit.is_call(table, _aten.t.default):
        table, transposed = table.all_input_nodes[0], False
    if not isinstance(hot, fx.Node) or not edit.is_call(hot, _aten.to.dtype):
        return None
    ids = _compared(hot.args[0])
    return None if ids is None else (ids, table, transposed)


def _is_constant(node: fx.Node) -> bool:
    return node.op == "get_attr" or (edit.is_call(node, _aten.t.default) and _is_constant(node.all_input_nodes[0]))


def _compared(node: object) -> fx.Node | None:
    """ids [.., 1] of ``ids == arange(n)``."""
    if not isinstance(node, fx.Node) or not edit.is_call(node, _aten.eq.Tensor):
        return None
    ids, positions = node.args[0], node.args[1]
    constant = edit.constant_value(positions) if isinstance(positions, fx.Node) else None
    if constant is None or not isinstance(ids, fx.Node) or ids.meta["val"].ndim < 2 or constant.ndim > ids.meta["val"].ndim:
        return None
    counted = torch.equal(constant.flatten(), torch.arange(constant.numel(), dtype=constant.dtype))
    whole = not ids.meta["val"].is_floating_point() and str(ids.meta["val"].shape[-1]) == "1"
    return ids if counted and whole and constant.ndim > 0 and constant.shape[-1] == constant.numel() else None
