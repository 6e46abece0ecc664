"""``normalize-views``: six ops move data, each in one form.

    reshape(x, [-1, …])     view, flatten, unflatten, squeeze, unsqueeze; -1 stands for the symbolic batch
    permute(x, dims)        transpose, swapaxes, t, movedim
    slice(x, dim, start, end, step)   select, narrow, chunk, split, unbind: all numbers explicit, 0 <= start < end <= size
    cat(tensors, dim)       stack, concat
    expand(x, [-1, …])      expand_as
    constant_pad_nd(x, pad, value)    pad with mode "constant"

and what is made of these: channel shuffle, pixel shuffle, nearest-neighbour upsampling by whole factors. With B the batch:

    channel_shuffle(x, g):    [B, C, …] -> [B, g, C/g, …] -> [B, C/g, g, …] -> [B, C, …]
    pixel_shuffle(x, r):      [B, C, H, W] -> [B, C/r², r, r, H, W] -> [B, C/r², H, r, W, r] -> [B, C/r², H r, W r]
    pixel_unshuffle(x, r):    [B, C, H, W] -> [B, C, H/r, r, W/r, r] -> [B, C, r, r, H/r, W/r] -> [B, C r², H/r, W/r]
    upsample_nearest(x, f):   [B, C, H, W] -> [B, C, H, 1, W, 1] -> [B, C, H, f, W, f] -> [B, C, H f, W f]

    roll(x, k, dim) of n:     cat([x[n - k:], x[:n - k]])

A reshape of a reshape is one reshape, a permutation of a permutation one permutation. All shapes come from ``val``, that is from
torch's own shape functions. Nothing is computed, so no value changes. Views of values with several symbolic sizes are for
``group-views``.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from qcompiler.ir import edit
from qcompiler.ir.float_ops import RESHAPE_OPS
from qcompiler.ir.types import Stage
from qcompiler.passes.canonicalize import patterns
from qcompiler.pipeline.contract import Exact
from qcompiler.pipeline.rewrite import RewritePass, Site

_aten = torch.ops.aten

RESHAPES = RESHAPE_OPS | {_aten.view_as.default}
_PERMUTATIONS = frozenset(
    {
        _aten.permute.default,
        _aten.transpose.int,
        _aten.swapaxes.default,
        _aten.t.default,
        _aten.numpy_T.default,
        _aten.movedim.int,
    }
)
_SPLITS = frozenset(
    {
        _aten.chunk.default,
        _aten.split.Tensor,
        _aten.split.sizes,
        _aten.split_with_sizes.default,
        _aten.unbind.int,
    }
)
# The end of a slice that takes all that there is, as torch.export writes it.
_LARGEST = (1 << 63) - 1
_UPSAMPLES = frozenset({_aten.upsample_nearest1d.vec, _aten.upsample_nearest2d.vec})


@dataclass(frozen=True)
class NormalizeViews(RewritePass[fx.Node]):
    """Few movement ops, each in one form."""

    name: ClassVar = "normalize-views"
    takes: ClassVar = Stage.FLOAT
    gives: ClassVar = Stage.FLOAT
    promise: ClassVar = Exact()

    def match(self, node: fx.Node) -> fx.Node | None:
        if node.op != "call_function" or node.target not in _RULES or _is_grouped(node):
            return None
        is_canonical = _IS_CANONICAL.get(node.target)
        return node if is_canonical is None or not is_canonical(node) else None

    def check(self, match: fx.Node) -> str | None:
        reason = _REASONS.get(match.target)
        return None if reason is None else reason(match)

    def rewrite(self, graph_module: fx.GraphModule, match: fx.Node) -> None:
        site = Site(graph_module, match, self.name)
        site.replace(_RULES[match.target](site, match))


def _is_grouped(node: fx.Node) -> bool:
    """Whether it is a view for ``group-views``."""
    if node.target not in RESHAPES:
        return False
    source = node.args[0]
    assert isinstance(source, fx.Node)  # views work on a tensor
    return max(patterns.symbols(node), patterns.symbols(source)) > 1


def _sizes(node: fx.Node) -> list[int]:
    """The shape of a value with -1 for the symbolic batch."""
    return [size if isinstance(size, int) else -1 for size in node.meta["val"].shape]


def _is_canonical_reshape(node: fx.Node) -> bool:
    return node.args[1] == _sizes(node) and not edit.is_call(node.args[0], _aten.reshape.default)


def _reshape(site: Site, node: fx.Node) -> fx.Node:
    source = node.args[0]
    while edit.is_call(source, *RESHAPES) and patterns.symbols(source.args[0]) < 2:  # type: ignore[union-attr,arg-type]  # a view is a node
        source = source.args[0]  # type: ignore[union-attr]  # as above
    return site.call(_aten.reshape.default, source, _sizes(node))


def _permuted_dims(node: fx.Node) -> list[int]:
    """Which dimension of the argument each dimension of the result is: the op applied to sizes 0, 1, 2, … shows it."""
    probe = torch.empty(tuple(range(node.args[0].meta["val"].ndim)), device="meta")  # type: ignore[union-attr]  # a tensor's node
    return list(node.target(probe, *node.args[1:], **node.kwargs).shape)  # type: ignore[operator]  # an op overload


def _is_canonical_permute(node: fx.Node) -> bool:
    return node.args[1] == _permuted_dims(node) and not edit.is_call(node.args[0], _aten.permute.default)


def _permute(site: Site, node: fx.Node) -> fx.Node:
    source, dims = node.args[0], _permuted_dims(node)
    while edit.is_call(source, *_PERMUTATIONS):
        inner = _permuted_dims(source)  # type: ignore[arg-type]  # is_call saw that it is a node
        source, dims = source.args[0], [inner[dim] for dim in dims]  # type: ignore[union-attr]  # as above
    return site.call(_aten.permute.default, source, dims)


def _is_canonical_slice(node: fx.Node) -> bool:
    return not node.kwargs and tuple(node.args[1:]) == _slice_arguments(node)


def _slice_arguments(node: fx.Node) -> tuple[object, ...]:
    """dim, start, end and step; as they are, but for defaults, where a bound or the size is known at run time only."""
    dim = edit.argument(node, "dim") % node.meta["val"].ndim
    start, end, step = (edit.argument(node, name) for name in ("start", "end", "step"))
    size = node.args[0].meta["val"].shape[dim]  # type: ignore[union-attr]  # a tensor's node
    if isinstance(size, int) and not any(isinstance(bound, fx.Node) for bound in (start, end)):
        return (dim, *slice(start, end, step).indices(size))
    # A slice of the whole is an identity, so that the largest number need not be written otherwise.
    return (dim, 0 if start is None else start, _LARGEST if end is None else end, step)


def _slice(site: Site, node: fx.Node) -> fx.Node:
    return site.call(_aten.slice.Tensor, node.args[0], *_slice_arguments(node))


def _part(site: Site, node: fx.Node, source: Any, dim: int, start: int, length: int) -> fx.Node:
    """``length`` entries of ``source`` along ``dim``, in the shape of ``node``."""
    part = site.call(_aten.slice.Tensor, source, dim, start, start + length, 1)
    if part.meta["val"].ndim == node.meta["val"].ndim:
        return part
    if patterns.symbols(part) > 1:
        return site.call(_aten.squeeze.dims, part, [dim])
    return site.call(_aten.reshape.default, part, _sizes(node))


def _select(site: Site, node: fx.Node) -> fx.Node:
    dim, start = _dim_and_start(node, "index")
    return _part(site, node, node.args[0], dim, start, 1)


def _narrow(site: Site, node: fx.Node) -> fx.Node:
    dim, start = _dim_and_start(node, "start")
    return _part(site, node, node.args[0], dim, start, edit.argument(node, "length"))


def _dim_and_start(node: fx.Node, name: str) -> tuple[int, int]:
    """The dimension that is cut, and where: counted from the front."""
    shape = node.args[0].meta["val"].shape  # type: ignore[union-attr]  # a tensor's node
    dim, start = edit.argument(node, "dim") % len(shape), edit.argument(node, name)
    return dim, start if start >= 0 else start + shape[dim]


def _reason_of_part(node: fx.Node) -> str | None:
    start = edit.argument(node, "index" if edit.is_call(node, _aten.select.int) else "start")
    shape = node.args[0].meta["val"].shape  # type: ignore[union-attr]  # a tensor's node
    if start >= 0 or isinstance(shape[edit.argument(node, "dim") % len(shape)], int):
        return None
    return "it counts from the end of a size that is known at run time"


def _reason_of_split(node: fx.Node) -> str | None:
    split = node.args[0]
    source = split.args[0]  # type: ignore[union-attr]  # a getitem reads a call
    dim = edit.argument(split, "dim")  # type: ignore[arg-type]  # as above
    return None if isinstance(source.meta["val"].shape[dim], int) else "it splits a size that is known at run time"  # type: ignore[union-attr]


def _reason_of_roll(node: fx.Node) -> str | None:
    dims = edit.argument(node, "dims")
    if not dims:
        return "it rolls all elements in a row"
    shape = node.meta["val"].shape
    return None if all(isinstance(shape[dim], int) for dim in dims) else "it rolls along a size that is known at run time"


def _roll(site: Site, node: fx.Node) -> fx.Node:
    result: Any = node.args[0]
    shifts, dims = ([value] if isinstance(value, int) else value for value in (edit.argument(node, "shifts"), edit.argument(node, "dims")))
    for shift, dim in zip(shifts, dims, strict=True):
        dim %= node.meta["val"].ndim
        size = node.meta["val"].shape[dim]
        start = (size - shift) % size
        if start:
            parts = [site.call(_aten.slice.Tensor, result, dim, *bounds, 1) for bounds in ((start, size), (0, start))]
            result = site.call(_aten.cat.default, parts, dim)
    return result  # type: ignore[no-any-return]  # a node


def _is_not_part_of_a_split(node: fx.Node) -> bool:
    return not edit.is_call(node.args[0], *_SPLITS)


def _split_part(site: Site, node: fx.Node) -> fx.Node:
    split, index = node.args[0], node.args[1]
    assert isinstance(split, fx.Node) and isinstance(index, int)  # a getitem of torch.export
    source = split.args[0]
    dim = edit.argument(split, "dim") % source.meta["val"].ndim  # type: ignore[union-attr]  # a tensor's node
    unbinds = edit.is_call(split, _aten.unbind.int)
    lengths = [1 if unbinds else part.shape[dim] for part in split.meta["val"]]
    return _part(site, node, source, dim, sum(lengths[:index]), lengths[index])


def _is_canonical_cat(node: fx.Node) -> bool:
    return len(node.args) == 2 and isinstance(node.args[1], int) and node.args[1] >= 0


def _concatenate(site: Site, node: fx.Node) -> fx.Node:
    return site.call(_aten.cat.default, node.args[0], edit.argument(node, "dim") % node.meta["val"].ndim)


def _stack(site: Site, node: fx.Node) -> fx.Node:
    dim = edit.argument(node, "dim") % node.meta["val"].ndim
    shape = [1 if position == dim else size for position, size in enumerate(_sizes(node))]
    tensors: Sequence[Any] = node.args[0]  # type: ignore[assignment]  # a list of tensors by the op's schema
    if patterns.symbols(node) > 1:
        return site.call(_aten.cat.default, [site.call(_aten.unsqueeze.default, tensor, dim) for tensor in tensors], dim)
    return site.call(_aten.cat.default, [site.call(_aten.reshape.default, tensor, shape) for tensor in tensors], dim)


def _is_canonical_expand(node: fx.Node) -> bool:
    return edit.is_call(node, _aten.expand.default) and node.args[1] == _sizes(node)


def _reason_of_expand(node: fx.Node) -> str | None:
    before, after = (patterns.sizes(each) for each in (node.args[0], node))  # type: ignore[arg-type]  # a tensor's node
    before = ["1"] * (len(after) - len(before)) + before
    symbolic = [position for position, size in enumerate(_sizes(node)) if size == -1]
    if all(before[position] == after[position] for position in symbolic):
        return None
    return "it repeats a value for each sample of the batch" if symbolic == [0] else "it repeats a value as often as is known at run time"


def _expand(site: Site, node: fx.Node) -> fx.Node:
    return site.call(_aten.expand.default, node.args[0], _sizes(node))


def _reason_of_pad(node: fx.Node) -> str | None:
    mode = edit.argument(node, "mode")
    return None if mode == "constant" else f"mode '{mode}' has no form with constants"


def _pad(site: Site, node: fx.Node) -> fx.Node:
    value = edit.argument(node, "value")
    return site.call(_aten.constant_pad_nd.default, node.args[0], edit.argument(node, "pad"), 0.0 if value is None else value)


def _via(site: Site, node: fx.Node, shape: Sequence[int], dims: Sequence[int]) -> fx.Node:
    """Reshape, permute, reshape into the shape of ``node``."""
    split = site.call(_aten.reshape.default, node.args[0], list(shape))
    permuted = site.call(_aten.permute.default, split, list(dims))
    return site.call(_aten.reshape.default, permuted, _sizes(node))


def _channel_shuffle(site: Site, node: fx.Node) -> fx.Node:
    (batch, channels, *rest), groups = _sizes(node), edit.argument(node, "groups")
    return _via(site, node, [batch, groups, channels // groups, *rest], [0, 2, 1, *range(3, 3 + len(rest))])


def _reason_of_rank(node: fx.Node) -> str | None:
    rank = node.meta["val"].ndim
    return None if rank == 4 else f"its input has {rank} dimensions, not 4"


def _pixel_shuffle(site: Site, node: fx.Node) -> fx.Node:
    (batch, channels, height, width), factor = _sizes(node), edit.argument(node, "upscale_factor")
    return _via(site, node, [batch, channels, factor, factor, height // factor, width // factor], [0, 1, 4, 2, 5, 3])


def _pixel_unshuffle(site: Site, node: fx.Node) -> fx.Node:
    (batch, channels, height, width), factor = _sizes(node), edit.argument(node, "downscale_factor")
    return _via(site, node, [batch, channels // factor**2, height, factor, width, factor], [0, 1, 3, 5, 2, 4])


def _reason_of_upsample(node: fx.Node) -> str | None:
    """Whether each pixel is repeated equally often, asked of the op itself: its rounding of factors is its own affair."""
    (_, _, *before), (_, _, *after) = _sizes(node.args[0]), _sizes(node)  # type: ignore[arg-type]  # a tensor's node
    count = torch.Size(before).numel()
    positions = torch.arange(count, dtype=torch.float32).reshape(1, 1, *before)
    repeated = positions
    for axis, (small, large) in enumerate(zip(before, after, strict=True)):
        repeated = repeated.repeat_interleave(max(large // small, 1), axis + 2)
    same = torch.equal(node.target(positions, *node.args[1:]), repeated)  # type: ignore[operator]  # an op overload
    return None if same else f"it does not repeat whole pixels: {before} become {after}"


def _upsample(site: Site, node: fx.Node) -> fx.Node:
    lead, after = _sizes(node)[:2], _sizes(node)[2:]
    before = _sizes(node.args[0])[2:]  # type: ignore[arg-type]  # a tensor's node
    factors = [large // small for small, large in zip(before, after, strict=True)]
    spread = site.call(_aten.reshape.default, node.args[0], [*lead, *itertools.chain(*((size, 1) for size in before))])
    repeated = site.call(_aten.expand.default, spread, [*lead, *itertools.chain(*zip(before, factors, strict=True))])
    return site.call(_aten.reshape.default, repeated, _sizes(node))


_RULES: Mapping[object, Callable[[Site, fx.Node], fx.Node]] = {
    **dict.fromkeys(RESHAPES, _reshape),
    **dict.fromkeys(_PERMUTATIONS, _permute),
    **dict.fromkeys(_UPSAMPLES, _upsample),
    _aten.slice.Tensor: _slice,
    _aten.select.int: _select,
    _aten.narrow.default: _narrow,
    operator.getitem: _split_part,
    _aten.cat.default: _concatenate,
    _aten.concat.default: _concatenate,
    _aten.stack.default: _stack,
    _aten.expand.default: _expand,
    _aten.expand_as.default: _expand,
    _aten.pad.default: _pad,
    _aten.roll.default: _roll,
    _aten.channel_shuffle.default: _channel_shuffle,
    _aten.pixel_shuffle.default: _pixel_shuffle,
    _aten.pixel_unshuffle.default: _pixel_unshuffle,
}

_IS_CANONICAL: Mapping[object, Callable[[fx.Node], bool]] = {
    _aten.reshape.default: _is_canonical_reshape,
    _aten.permute.default: _is_canonical_permute,
    _aten.slice.Tensor: _is_canonical_slice,
    operator.getitem: _is_not_part_of_a_split,
    _aten.cat.default: _is_canonical_cat,
    _aten.expand.default: _is_canonical_expand,
}

_REASONS: Mapping[object, Callable[[fx.Node], str | None]] = {
    **dict.fromkeys(_UPSAMPLES, _reason_of_upsample),
    _aten.expand.default: _reason_of_expand,
    _aten.expand_as.default: _reason_of_expand,
    _aten.pad.default: _reason_of_pad,
    _aten.roll.default: _reason_of_roll,
    _aten.select.int: _reason_of_part,
    _aten.narrow.default: _reason_of_part,
    operator.getitem: _reason_of_split,
    _aten.pixel_shuffle.default: _reason_of_rank,
    _aten.pixel_unshuffle.default: _reason_of_rank,
}
