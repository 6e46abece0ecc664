"""What the passes that raise written-out formulas ask of nodes. They expect the forms that ``normalize-arithmetic`` leaves."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import fx

from qcompiler.ir import edit
from qcompiler.ir.float_ops import RESHAPE_OPS
from qcompiler.pipeline.rewrite import Site

_aten = torch.ops.aten

# Added to a score, numbers of at most this leave the element out: exp(-64) is 2e-28 of the row's largest, far below float32's rounding.
LEAVES_OUT = -64.0
# Movement that a mask may stand behind: the mask itself is moved in its place.
MOVES_OF_MASKS = frozenset(
    {_aten.expand.default, _aten.unsqueeze.default, _aten.reshape.default, _aten.unflatten.int, _aten.slice.Tensor, _aten.permute.default}
)


def close(value: float, expected: float) -> bool:
    """Whether a number of a formula is the expected one, up to how it was rounded: to float32, or it or its inverse to float16."""
    forms = (expected, _half(expected), 1 / _half(1 / expected) if expected else 0.0)
    return any(math.isclose(value, form, rel_tol=1e-6) for form in forms)


def _half(value: float) -> float:
    return float(torch.tensor(value, dtype=torch.float16))


def node_of(value: object, *targets: edit.Target) -> fx.Node | None:
    """``value`` if it is a call of one of ``targets``."""
    return value if isinstance(value, fx.Node) and edit.is_call(value, *targets) else None


def binary(value: object, target: edit.Target) -> tuple[object, object] | None:
    """Both operands of a call of a sum, product or quotient without further arguments."""
    node = node_of(value, target)
    return (node.args[0], node.args[1]) if node is not None and len(node.args) == 2 and not node.kwargs else None


def plus_number(value: object) -> tuple[fx.Node, float] | None:
    """x and c of ``x + c``."""
    return _with_number(value, _aten.add.Tensor)


def times_number(value: object) -> tuple[fx.Node, float] | None:
    """x and c of ``x * c``."""
    return _with_number(value, _aten.mul.Tensor)


def _with_number(value: object, target: edit.Target) -> tuple[fx.Node, float] | None:
    operands = binary(value, target)
    if operands is None or not isinstance(operands[0], fx.Node) or not isinstance(operands[1], int | float):
        return None
    return operands[0], float(operands[1])


def power(value: object, exponent: float) -> fx.Node | None:
    """x of ``x ** exponent``; ``sqrt`` and ``rsqrt`` count as 0.5 and -0.5."""
    roots = {0.5: _aten.sqrt.default, -0.5: _aten.rsqrt.default, -1: _aten.reciprocal.default}
    node = node_of(value, _aten.pow.Tensor_Scalar)
    if node is not None and node.args[1] == exponent:
        return _node(node.args[0])
    node = node_of(value, roots[exponent]) if exponent in roots else None
    return None if node is None else _node(node.args[0])


def over_square_root(node: fx.Node) -> Iterator[tuple[object, fx.Node]]:
    """(a, r) for each reading of ``node`` as a / sqrt(r), written as a quotient or as a product with rsqrt(r)."""
    product, quotient = binary(node, _aten.mul.Tensor), binary(node, _aten.div.Tensor)
    for numerator, factor in (product, product[::-1]) if product is not None else ():
        radicand = power(factor, -0.5)
        if radicand is not None:
            yield numerator, radicand
    radicand = power(quotient[1], 0.5) if quotient is not None else None
    if quotient is not None and radicand is not None:
        yield quotient[0], radicand


def reduced(value: object, target: edit.Target, rank_of: fx.Node) -> tuple[fx.Node, list[int]] | None:
    """x and the dimensions of a mean, sum or maximum that keeps its dimensions (of size 1), or has them put back by views."""
    node = node_of(without_views(value), target)
    if node is None or len(node.args) + len(node.kwargs) > 3:
        return None
    source, dims = _node(node.args[0]), edit.argument(node, "dim")
    if source is None or dims is None:
        return None
    rank = rank_of.meta["val"].ndim
    found = sorted(dim % rank for dim in (dims if isinstance(dims, list | tuple) else [dims]))
    return (source, found) if sizes(_call(value)) == sizes_without(source, found) else None


def without_views(value: object) -> object:
    """The value before views, which keep the order of its elements."""
    while isinstance(value, fx.Node) and value.target in RESHAPE_OPS:
        value = value.args[0]
    return value


def is_last(node: fx.Node, dims: list[int]) -> bool:
    """Whether ``dims`` is the last dimension of a value alone."""
    return dims == [node.meta["val"].ndim - 1]


def vector(value: object, length: int | torch.SymInt) -> torch.Tensor | None:
    """A constant that has one number for each element of the last dimension: [length], or with dimensions of size 1 before it."""
    constant = edit.constant_value(value)
    if constant is None or constant.ndim == 0 or constant.shape[-1] != length or constant.numel() != length:
        return None
    return constant.reshape(-1)


def without_weight(value: object) -> tuple[object, torch.Tensor | None]:
    """x and w of ``x * w`` for a constant w with one number for each element of the last dimension; else the value and None."""
    product = binary(value, _aten.mul.Tensor)
    if product is None or not isinstance(product[0], fx.Node):
        return value, None
    weight = vector(product[1], product[0].meta["val"].shape[-1])
    return (value, None) if weight is None or sizes(product[0]) != sizes(_call(value)) else (product[0], weight)


def _call(value: object) -> fx.Node:
    assert isinstance(value, fx.Node)  # binary saw a call
    return value


def sizes(node: fx.Node) -> list[str]:
    """The shape as text: comparing symbols themselves would add guards to the shape environment."""
    return [str(size) for size in node.meta["val"].shape]


def sizes_without(node: fx.Node, dims: list[int]) -> list[str]:
    """The shape of a value with one element along ``dims``, as text."""
    return ["1" if position in dims else size for position, size in enumerate(sizes(node))]


def symbols(node: fx.Node) -> int:
    """How many dimensions of a value have a size that is known at run time."""
    return sum(isinstance(size, torch.SymInt) for size in node.meta["val"].shape)


def size_of(site: Site, size: int | torch.SymInt) -> int | fx.Node:
    """A size as an argument: a number, or a node that reads it from an input, placed before ``site``."""
    if isinstance(size, int):
        return size
    for node in site.graph_module.graph.nodes:
        for dim, other in enumerate(node.meta["val"].shape if node.op == "placeholder" else ()):
            if str(other) == str(size):
                return site.call(_aten.sym_size.int, node, dim)
    raise AssertionError(f"no input has the size {size}")  # sizes come from inputs


def _node(value: object) -> fx.Node | None:
    return value if isinstance(value, fx.Node) else None
