"""The batch of a program: its symbol, and the proof that the samples of a batch are computed independently of each other.

Back ends generate code for one sample and loop over the batch. That is right only if sample i of every value is a function of
sample i of the inputs. The proof is by shapes. Call a value *batched* if it is computed from an input. By induction over the
graph, sample i of a batched value depends on sample i alone, if every batched value has the symbolic batch as its dimension 0
and nowhere else:

- a reduction, selection or slice over the batch gives a dimension 0 without the symbol; a concatenation gives a multiple of it;
- a permutation or an addition of a leading dimension moves the symbol elsewhere; a broadcast of a vector of samples along
  another dimension puts it there too; a matrix product of samples with samples has it twice;
- a view between two such shapes keeps samples whole, because dimension 0 is the outermost of the memory order;
- the size of the batch itself is read by views only;
- only ops that work along a dimension and keep its size are left; those are listed here with the dimension that they work along.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import sympy
import torch
from torch import fx

from qcompiler.errors import CaptureError
from qcompiler.ir.edit import argument
from qcompiler.ir.program import Program
from qcompiler.ir.provenance import describe

_aten = torch.ops.aten

# Ops that keep the shape while they mix along a dimension -> the name of the argument that says which.
_WORKS_ALONG: Mapping[object, str] = {
    _aten.flip.default: "dims",
    _aten.softmax.int: "dim",
    _aten.log_softmax.int: "dim",
    _aten.cumsum.default: "dim",
    _aten.roll.default: "dims",
    _aten.glu.default: "dim",
}

# Ops that read the size of the batch only to give a value its shape; anywhere else a sample would depend on how many there are.
_TAKES_SIZES = frozenset({_aten.view.default, _aten.reshape.default, _aten.expand.default, _aten._unsafe_view.default})


def batch_symbol(program: Program) -> sympy.Expr | None:
    """The symbol of dimension 0 of the inputs; None for a program whose batch is fixed."""
    for node in program.graph.nodes:
        if node.op == "placeholder":
            shape = node.meta["val"].shape
            return shape[0].node.expr if shape and isinstance(shape[0], torch.SymInt) else None
    return None


def check_independent_samples(program: Program) -> None:
    """Prove that a program with a symbolic batch computes each sample by itself; nothing to prove for a fixed batch.

    Raises:
        CaptureError: naming the first node where samples meet.
    """
    symbol = batch_symbol(program)
    if symbol is None:
        return
    batched: set[fx.Node] = set()
    for node in program.graph.nodes:
        if node.op not in ("placeholder", "call_function") or _is_size(node):
            continue
        if node.op == "placeholder" or any(source in batched or _is_size(source) for source in node.all_input_nodes):
            batched.add(node)
            if not _keeps_samples(node, symbol):
                raise CaptureError(
                    f"{describe(node)} mixes the samples of a batch (dimension 0): keep the batch as dimension 0 throughout,"
                    " or capture with dynamic_batch=False"
                )
    _check_outputs(program, batched)


def _is_size(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), torch.SymInt)


def _check_outputs(program: Program, batched: set[fx.Node]) -> None:
    outputs = program.graph.output_node().args[0]
    assert isinstance(outputs, tuple)  # the convention of a program
    for spec, node in zip(program.outputs, outputs, strict=True):
        if node not in batched:
            raise CaptureError(f"output '{spec.name}' does not depend on the inputs: leave it out, or capture with dynamic_batch=False")


def _keeps_samples(node: fx.Node, symbol: sympy.Expr) -> bool:
    if any(_is_size(source) for source in node.all_input_nodes) and node.target not in _TAKES_SIZES:
        return False
    if not all(_batch_leads(value, symbol) for value in _tensors(node.meta["val"])):
        return False
    name = _WORKS_ALONG.get(node.target)
    if name is None:
        return True
    dims, rank = argument(node, name), node.meta["val"].ndim
    # roll without dims works on the flattened tensor.
    return bool(dims != []) and all(dim % rank != 0 for dim in (dims if isinstance(dims, list | tuple) else [dims]))


def _batch_leads(value: torch.Tensor, symbol: sympy.Expr) -> bool:
    """Whether the shape is [symbol, number, number, …]."""
    sizes = list(value.shape)
    if not sizes or not isinstance(sizes[0], torch.SymInt):
        return False
    return bool(sizes[0].node.expr == symbol) and all(isinstance(size, int) for size in sizes[1:])


def _tensors(value: object) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
