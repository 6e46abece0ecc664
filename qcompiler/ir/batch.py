"""The batch of a program: its symbol, and the proof that the samples of a batch are computed independently of each other.

Back ends generate code for one sample and loop over the batch. That is right only if sample i of every value is a function of
sample i of the inputs. The proof is by shapes; symbols other than the batch count as numbers. Call a value *batched* if it is
computed from an input. By induction over the graph, sample i of a batched value depends on sample i alone, if every batched value
has the symbolic batch as one of its dimensions and nowhere else, that dimension is 0 for every input, output and operand of an op
that computes, and whatever puts it elsewhere only moves data (a vision transformer permutes [batch, tokens, 3, heads, width] to
[3, batch, heads, tokens, width] to split it):

- a reduction, selection or slice over the batch gives a dimension 0 without the symbol; a concatenation gives a multiple of it;
- a broadcast of a vector of samples along another dimension puts the symbol there too; a matrix product of samples with samples
  has it twice;
- a view keeps samples whole if as many elements stand before the symbol as before it (none do where it is dimension 0);
- the size of the batch itself is read by views only (other sizes are the same for all samples);
- only ops that work along a dimension and keep its size are left; those are listed here with the dimension that they work along.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Mapping

import sympy
import torch
from torch import fx

from qcompiler.errors import CaptureError
from qcompiler.ir.edit import argument
from qcompiler.ir.float_ops import RESHAPE_OPS
from qcompiler.ir.program import Program
from qcompiler.ir.provenance import describe
from qcompiler.ir.sizes import expression, symbols_of
from qcompiler.ir.stages import QUANTIZATION_OPS

_aten = torch.ops.aten

# Ops that keep the shape while they mix along a dimension -> the name of the argument that says which.
_WORKS_ALONG: Mapping[object, str] = {
    _aten.flip.default: "dims",
    _aten.softmax.int: "dim",
    _aten.log_softmax.int: "dim",
    _aten.cumsum.default: "dim",
    _aten.cumprod.default: "dim",
    _aten.argsort.stable: "dim",
    _aten.gather.default: "dim",
    _aten.scatter.src: "dim",
    _aten.scatter_reduce.two: "dim",
    _aten.roll.default: "dims",
    _aten.glu.default: "dim",
}

# Ops that only move data, or convert it element by element, and may therefore have the batch in a dimension other than 0.
_VIEWS = RESHAPE_OPS | {_aten.clone.default, _aten.contiguous.default}
_MOVES = frozenset(
    {
        _aten.permute.default,
        _aten.transpose.int,
        _aten.select.int,
        _aten.slice.Tensor,
        _aten.unbind.int,
        _aten.chunk.default,
        _aten.split.Tensor,
        operator.getitem,
        *QUANTIZATION_OPS,
    }
)

# Ops that read the size of the batch only to give a value its shape; anywhere else a sample would depend on how many there are.
_TAKES_SIZES = frozenset({_aten.view.default, _aten.reshape.default, _aten.expand.default, _aten._unsafe_view.default, _aten.unflatten.int})


def batch_symbol(program: Program) -> sympy.Expr | None:
    """The symbol of dimension 0 of the inputs; None for a program whose batch is fixed."""
    return next((symbol for symbol, size in symbols_of(program).items() if size is None), None)


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
        if node.op == "placeholder" or any(source in batched or _reads_batch(source, symbol) for source in node.all_input_nodes):
            batched.add(node)
            if not _keeps_samples(node, symbol):
                raise CaptureError(
                    f"{describe(node)} mixes the samples of a batch (dimension 0): keep the batch as dimension 0 throughout,"
                    " or capture with dynamic_batch=False"
                )
    _check_outputs(program, batched, symbol)


def _is_size(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), int | torch.SymInt)


def _reads_batch(node: fx.Node, symbol: sympy.Expr) -> bool:
    """Whether a node is a size that depends on the number of samples."""
    value = node.meta.get("val")
    return isinstance(value, torch.SymInt) and symbol in expression(value).free_symbols


def _check_outputs(program: Program, batched: set[fx.Node], batch: sympy.Expr) -> None:
    outputs = program.graph.output_node().args[0]
    assert isinstance(outputs, tuple)  # the convention of a program
    for spec, node in zip(program.outputs, outputs, strict=True):
        if node in batched and _batch_dimension(node.meta["val"], batch) != 0:
            raise CaptureError(f"output '{spec.name}' has the batch elsewhere than in dimension 0: permute it back in the model")
        if node not in batched:
            raise CaptureError(f"output '{spec.name}' does not depend on the inputs: leave it out, or capture with dynamic_batch=False")


def _keeps_samples(node: fx.Node, symbol: sympy.Expr) -> bool:
    if any(_reads_batch(source, symbol) for source in node.all_input_nodes) and node.target not in _TAKES_SIZES:
        return False
    positions = {_batch_dimension(value, symbol) for value in _tensors(node.meta["val"])}
    if None in positions:
        return False
    operands = (source.meta["val"] for source in node.all_input_nodes if not _is_size(source))
    positions |= {_batch_dimension(value, symbol) for operand in operands for value in _tensors(operand)} - {None}
    if positions != {0}:
        return node.target in _MOVES or (node.target in _VIEWS and _same_prefix(node, symbol))
    name = _WORKS_ALONG.get(node.target)
    if name is None:
        return True
    dims, rank = argument(node, name), node.meta["val"].ndim
    # roll without dims works on the flattened tensor.
    return bool(dims != []) and all(dim % rank != 0 for dim in (dims if isinstance(dims, list | tuple) else [dims]))


def _batch_dimension(value: torch.Tensor, symbol: sympy.Expr) -> int | None:
    """Which dimension the symbol is, if it is one and none of the others depends on it."""
    symbolic = [position for position, size in enumerate(value.shape) if symbol in expression(size).free_symbols]
    if len(symbolic) != 1 or expression(value.shape[symbolic[0]]) != symbol:
        return None
    return symbolic[0]


def _same_prefix(node: fx.Node, symbol: sympy.Expr) -> bool:
    """Whether a view has as many elements before the batch as its operand."""
    before, after = (value.shape[: _batch_dimension(value, symbol)] for value in (node.args[0].meta["val"], node.meta["val"]))  # type: ignore[union-attr]
    return bool(math.prod(map(expression, before)) == math.prod(map(expression, after)))


def _tensors(value: object) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
