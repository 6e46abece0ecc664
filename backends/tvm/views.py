"""Where a value lies: a strided view of a block of memory. Most data movement of a graph is a change of view and costs nothing.

Sizes may be dynamic (``kernels.Extent``). Memory is laid out for their maximum, so strides and offsets are numbers; a dynamic dimension is
never merged with another one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from qcompiler.backends.tvm.kernels import ITEM_SIZE, Activation, Extent, Operand, Size, maxima, maximum, shifted
from qcompiler.backends.tvm.plan import Space

ALIGNMENT = 64


@dataclass(eq=False)
class Storage:
    """A block of memory. ``offset`` is its place in ``space`` (an input or output: which one), known when planning ends."""

    space: Space
    size: int
    offset: int = 0


@dataclass(frozen=True)
class View:
    """Element ``index`` of the value is element ``offset + sum(index * strides)`` of the storage.

    ``activation`` is set where the value lies as the convolution kernels want a feature map (or matrix): alone in its storage, or as some
    of the channels of what does. ``halo_value`` is what its halo, if any, is filled with.
    """

    storage: Storage
    dtype: str
    shape: tuple[Size, ...]
    strides: tuple[int, ...]
    offset: int = 0
    activation: Activation | None = None
    halo_value: int = 0

    @property
    def maxima(self) -> tuple[int, ...]:
        """The sizes that memory is laid out for."""
        return maxima(self.shape)

    @property
    def elements(self) -> int:
        """For the maximum of dynamic sizes."""
        return math.prod(self.maxima)

    @property
    def byte_offset(self) -> int:
        return self.offset * ITEM_SIZE[self.dtype]

    @property
    def aligned(self) -> bool:
        return self.byte_offset % ALIGNMENT == 0

    def permute(self, order: Sequence[int]) -> View:
        return self._alias([self.shape[d] for d in order], [self.strides[d] for d in order])

    def unsqueeze(self, dim: int) -> View:
        return self._alias((*self.shape[:dim], 1, *self.shape[dim:]), (*self.strides[:dim], 1, *self.strides[dim:]))

    def squeeze(self, dims: Sequence[int]) -> View:
        kept = [d for d in range(len(self.shape)) if d not in dims or self.shape[d] != 1]
        return self._alias([self.shape[d] for d in kept], [self.strides[d] for d in kept])

    def select(self, dim: int, index: int) -> View:
        return self.slice(dim, index, index + 1).drop(dim)

    def drop(self, dim: int) -> View:
        """Without a dimension of extent 1."""
        return self._alias((*self.shape[:dim], *self.shape[dim + 1 :]), (*self.strides[:dim], *self.strides[dim + 1 :]))

    def slice(self, dim: int, start: int, stop: Size, step: int = 1) -> View:
        """Every ``step``-th index from ``start`` to ``stop``; a dynamic stop wants a step of 1."""
        shape, strides = list(self.shape), list(self.strides)
        shape[dim] = shifted(stop, -start) if isinstance(stop, Extent) else max(0, -(-(stop - start) // step))
        strides[dim] *= step
        alias = self._alias(shape, strides, self.offset + start * self.strides[dim])
        return replace(alias, activation=self._some_channels(dim, shape[dim])) if step == 1 else alias

    def _some_channels(self, dim: int, size: Size) -> Activation | None:
        """The activation with ``size`` indices of a dimension, if those are its channels."""
        known = self.activation
        if known is None or not isinstance(size, int) or size == 0:
            return None
        return known.part(size) if self.strides[dim] == 1 and self.shape[dim] == known.channels else None

    def flip(self, dims: Sequence[int]) -> View:
        """Dimensions of fixed sizes only."""
        offset = self.offset + sum((maximum(self.shape[d]) - 1) * self.strides[d] for d in dims)
        return self._alias(self.shape, [-s if d in dims else s for d, s in enumerate(self.strides)], offset)

    def expand(self, shape: Sequence[Size]) -> View:
        """Broadcast by torch's rule: missing leading dimensions and extents of 1 repeat with stride 0."""
        missing = len(shape) - len(self.shape)
        own = list(zip(self.shape, self.strides, strict=True))
        strides = [0] * missing + [stride if extent == wanted else 0 for (extent, stride), wanted in zip(own, shape[missing:], strict=True)]
        return self._alias(shape, strides)

    def reshape(self, shape: Sequence[Size]) -> View | None:
        """The same elements in another shape; None where that takes a copy (torch's rule for ``view``).

        Dynamic dimensions stay what they are; those between them are reshaped among themselves (see ``splits_alike``).
        """
        strides = _reshaped_strides(self.shape, self.strides, shape)
        return None if strides is None else self._alias(shape, strides)

    def windows(self, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int], output: Sequence[int]) -> View:
        """[..., H, W] to [..., output height, output width, kernel height, kernel width]."""
        lead, (row, column) = self.shape[:-2], self.strides[-2:]
        strides = (*self.strides[:-2], row * stride[0], column * stride[1], row * dilation[0], column * dilation[1])
        return self._alias((*lead, *output, *kernel), strides)

    def row_pitch(self) -> int | None:
        """Elements from one row of the last dimension to the next; None where rows are not contiguous or not all as far apart."""
        columns = self.maxima[-1] if self.shape else 1
        rows, (steps,) = _merge(self.maxima[:-1], [self.strides[:-1]])
        pitch = steps[0] if steps else columns
        return pitch if len(rows) <= 1 and pitch >= columns and (columns == 1 or self.strides[-1] == 1) else None

    def is_dense(self) -> bool:
        """Row-major without gaps, for the maximum of dynamic sizes."""
        return _merge(self.maxima, [self.strides]) in (([], [[]]), ([self.elements], [[1]]))

    def _alias(self, shape: Sequence[Size], strides: Sequence[int], offset: int | None = None) -> View:
        start = self.offset if offset is None else offset
        return replace(self, shape=tuple(shape), strides=tuple(strides), offset=start, activation=None)


def same_place(a: View, b: View) -> bool:
    """Whether two views of the same shape are of the same elements."""
    strides = all(x == y or size == 1 for x, y, size in zip(a.strides, b.strides, a.shape, strict=True))
    return a.storage is b.storage and a.dtype == b.dtype and a.offset == b.offset and strides


def joined(views: Sequence[View], dim: int) -> View | None:
    """Values that lie one behind the other along a dimension of fixed sizes, as one; None where they do not."""
    first = views[0]
    sizes = [view.shape[dim] for view in views if len(view.shape) == len(first.shape)]
    fixed = [size for size in sizes if isinstance(size, int)]
    if len(fixed) != len(views):
        return None
    whole = first._alias([sum(fixed) if d == dim else size for d, size in enumerate(first.shape)], first.strides)
    starts = itertools.accumulate(fixed, initial=0)
    if not all(same_place(whole.slice(dim, start, start + size), view) for start, size, view in zip(starts, fixed, views, strict=False)):
        return None
    known = first._some_channels(dim, first.shape[dim])
    return replace(whole, activation=known.part(sum(fixed)) if known is not None and sum(fixed) <= known.pixel_stride else None)


def dense(storage: Storage, dtype: str, shape: Sequence[Size]) -> View:
    """Row-major."""
    return View(storage, dtype, tuple(shape), row_major(maxima(shape)))


def feature_maps(storage: Storage, samples: int, activation: Activation, halo_value: int = 0) -> View:
    """[N, C, H, W] inside an NHWC storage, each sample with its halo and on an aligned address."""
    shape = (samples, activation.channels, activation.height, activation.width)
    strides = (sample_stride(samples, activation), 1, activation.row_stride, activation.pixel_stride)
    return View(storage, activation.dtype, shape, strides, activation.origin, activation, halo_value)


def sample_stride(samples: int, activation: Activation) -> int:
    """Elements from one sample to the next."""
    return activation.elements if samples == 1 else -(-activation.elements // ALIGNMENT) * ALIGNMENT


def row_major(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides of a dense tensor whose last dimension runs fastest."""
    return tuple(math.prod(shape[d + 1 :]) for d in range(len(shape)))


def loop_nest(shape: Sequence[Size], views: Sequence[View], order_by: int = -1) -> tuple[tuple[Size, ...], list[Operand]]:
    """The fewest loops that walk all ``views`` of ``shape``: no extent of 1, outermost the largest stride of ``views[order_by]``,
    neighbours merged where every view allows it. Equal nests are equal kernels.
    """
    strides = [view.strides for view in views]
    order = sorted(range(len(shape)), key=lambda d: (-abs(strides[order_by][d]), d))
    merged, steps = _merge([shape[d] for d in order], [[s[d] for d in order] for s in strides])
    operands = [operand(view.dtype, merged, steps[i]) for i, view in enumerate(views)]
    return tuple(merged), operands


def operand(dtype: str, shape: Sequence[Size], strides: Sequence[int]) -> Operand:
    """Element 0 is the first that the kernel's pointer would have to reach; ``pointer_offset`` gives that pointer."""
    return Operand(dtype, tuple(strides), sum(-s * (n - 1) for s, n in zip(strides, maxima(shape), strict=True) if s < 0))


def pointer_offset(view: View) -> int:
    """Element of the storage that a kernel's pointer names: the lowest address of the view."""
    return view.offset + sum(s * (n - 1) for s, n in zip(view.strides, view.maxima, strict=True) if s < 0)


def _merge(shape: Sequence[Size], strides: Sequence[Sequence[int]]) -> tuple[list[Size], list[list[int]]]:
    kept = [d for d, extent in enumerate(shape) if extent != 1]
    merged: list[Size] = []
    result: list[list[int]] = [[] for _ in strides]
    for d in kept:
        product = _merged_extent(merged, shape[d], [(r[-1:], s[d]) for r, s in zip(result, strides, strict=True)])
        if product is not None:
            merged[-1] = product
            for r, s in zip(result, strides, strict=True):
                r[-1] = s[d]
            continue
        merged.append(shape[d])
        for r, s in zip(result, strides, strict=True):
            r.append(s[d])
    return merged, result


def _merged_extent(outer: Sequence[Size], inner: Size, strides: Sequence[tuple[Sequence[int], int]]) -> int | None:
    """The extent of the last outer loop and the inner one as one loop, if every operand walks them as one."""
    if not outer or isinstance(outer[-1], Extent) or isinstance(inner, Extent):
        return None
    return outer[-1] * inner if all(last[-1] == step * inner for last, step in strides) else None


def splits_alike(old: Sequence[Size], new: Sequence[Size]) -> bool:
    """Whether dynamic sizes are the same in both shapes, with as many elements between them: what a reshape may do."""
    pairs = list(zip(_runs(old), _runs(new), strict=False))
    same = all(math.prod(a.shape) == math.prod(b.shape) and a.end == b.end for a, b in pairs)
    return same and len(list(_runs(old))) == len(list(_runs(new)))


@dataclass(frozen=True)
class _Run:
    """Dimensions ``start`` to ``start + len(shape)`` of fixed sizes, and the dynamic size behind them (None: no more dimensions)."""

    start: int
    shape: tuple[int, ...]
    end: Extent | None


def _runs(shape: Sequence[Size]) -> Iterator[_Run]:
    start = 0
    sizes: list[int] = []
    for position, size in enumerate(shape):
        if isinstance(size, int):
            sizes.append(size)
            continue
        yield _Run(start, tuple(sizes), size)
        start, sizes = position + 1, []
    yield _Run(start, tuple(sizes), None)


def _reshaped_strides(old: Sequence[Size], strides: Sequence[int], new: Sequence[Size]) -> list[int] | None:
    if not splits_alike(old, new):
        return None
    result: list[int] = []
    for before, after in zip(_runs(old), _runs(new), strict=True):
        last = before.start + len(before.shape)
        steps = _reshaped_run(before.shape, strides[before.start : last], after.shape)
        if steps is None:
            return None
        result += steps if before.end is None else [*steps, strides[last]]
    return result


def _reshaped_run(old: Sequence[int], strides: Sequence[int], new: Sequence[int]) -> list[int] | None:
    """Walk both shapes from the innermost dimension; a run of old dimensions that merges must cover whole new dimensions."""
    merged, (steps,) = _merge(old, [strides])
    runs = list(zip(maxima(merged), steps, strict=True))
    result: list[int] = []
    extent, step = runs.pop() if runs else (1, 1)
    for size in reversed(new):
        if extent == 1 and runs and size != 1:
            extent, step = runs.pop()
        if extent % size:
            return None
        result.append(step)
        extent, step = extent // size, step * size
    return result[::-1]
