"""Views against torch's own strided tensors: the same changes of view give the same elements."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qcompiler.backends.tvm.kernels import Activation, Extent, Size
from qcompiler.backends.tvm.views import Storage, View, dense, feature_maps, loop_nest, pointer_offset, splits_alike


def _read(view: View, memory: torch.Tensor) -> torch.Tensor:
    """The elements of the view; torch has no negative strides."""
    result = torch.empty(view.shape, dtype=memory.dtype)
    for index in itertools.product(*map(range, view.shape)):
        result[index] = memory[view.offset + sum(i * s for i, s in zip(index, view.strides, strict=True))]
    return result


def _dense(shape: Sequence[int]) -> tuple[View, torch.Tensor]:
    return dense(Storage("arena", 0), "int32", shape), torch.arange(math.prod(shape))


SHAPES = st.lists(st.integers(1, 4), min_size=1, max_size=4)


@given(SHAPES, st.data())
def test_reshape_agrees_with_torch(shape: list[int], data: st.DataObject) -> None:
    view, memory = _dense(shape)
    order = data.draw(st.permutations(range(len(shape))))
    factors = [f for n in shape for f in ([2, 2] if n == 4 else [n])]
    target = data.draw(st.permutations(factors)) + [1]
    tensor = memory.reshape(shape).permute(order)
    try:
        expected = tensor.view(target)
    except RuntimeError:
        expected = None
    reshaped = view.permute(order).reshape(target)
    assert (reshaped is None) == (expected is None)
    if reshaped is not None and expected is not None:
        assert torch.equal(_read(reshaped, memory), expected)


@given(SHAPES, st.data())
def test_loop_nest_visits_the_same_pairs(shape: list[int], data: st.DataObject) -> None:
    first, memory = _dense(shape)
    flipped = first.flip([d for d in range(len(shape)) if data.draw(st.booleans())])
    order = data.draw(st.permutations(range(len(shape))))
    second = dense(Storage("arena", 0), "int32", [shape[d] for d in order]).permute([order.index(d) for d in range(len(shape))])
    loops, operands = loop_nest(shape, [flipped, second])

    def walk(view: View, operand: int) -> torch.Tensor:
        start = pointer_offset(view) + operands[operand].offset
        return _read(View(view.storage, "int32", loops, operands[operand].strides, start), memory).reshape(-1)

    merged = set(zip(walk(flipped, 0).tolist(), walk(second, 1).tolist(), strict=True))
    plain = set(zip(_read(flipped, memory).reshape(-1).tolist(), _read(second, memory).reshape(-1).tolist(), strict=True))
    assert merged == plain
    assert all(extent > 1 for extent in loops)


def test_contiguous_dimensions_are_one_loop() -> None:
    view, _ = _dense([2, 3, 4])
    assert loop_nest(view.shape, [view, view])[0] == (24,)


@pytest.mark.parametrize("dim", [0, 1])
def test_slice_select_expand(dim: int) -> None:
    view, memory = _dense([4, 3])
    tensor = memory.reshape(4, 3)
    assert torch.equal(_read(view.slice(dim, 1, 3), memory), tensor.narrow(dim, 1, 2))
    assert torch.equal(_read(view.slice(0, 0, 4, 3), memory), tensor[::3])
    assert torch.equal(_read(view.select(dim, 2), memory), tensor.select(dim, 2))
    assert torch.equal(_read(view.slice(0, 1, 2).expand([2, 5, 3]), memory), tensor[1:2].expand(2, 5, 3))


def test_windows() -> None:
    view, memory = _dense([1, 5, 6])
    windows = view.windows([2, 3], [2, 1], [1, 1], [2, 4])
    assert torch.equal(_read(windows, memory), memory.reshape(1, 5, 6).unfold(1, 2, 2).unfold(2, 3, 1))


def test_feature_maps_keep_samples_aligned() -> None:
    activation = Activation(3, 5, 7, "uint8", (1, 1, 2, 0))
    view = feature_maps(Storage("arena", 0), 2, activation)
    assert view.shape == (2, 7, 3, 5) and view.strides[0] % 64 == 0 and view.strides[0] >= activation.elements
    assert view.offset == activation.origin == 7 * 7 + 2 * 7


LENGTH = Extent(5)


@pytest.mark.parametrize(
    ("shape", "target", "strides"),
    [
        ((1, LENGTH, 6), (LENGTH, 2, 3), (6, 3, 1)),
        ((LENGTH, 2, 3), (LENGTH, 6), (6, 1)),
        ((4, LENGTH, 6), (2, 2, LENGTH, 6), (60, 30, 6, 1)),
        ((4, LENGTH, LENGTH), (1, 4, LENGTH, LENGTH, 1), (100, 25, 5, 1, 1)),
    ],
)
def test_a_dynamic_dimension_survives_reshapes_of_the_others(shape: tuple[Size, ...], target: tuple[Size, ...], strides: Any) -> None:
    view = dense(Storage("arena", 0), "int8", shape).reshape(target)
    assert view is not None and view.shape == target
    assert [stride for stride, size in zip(view.strides, target, strict=True) if size != 1] == [
        stride for stride, size in zip(strides, target, strict=True) if size != 1
    ]


def test_a_dynamic_dimension_is_not_merged_with_others() -> None:
    view = dense(Storage("arena", 0), "int8", (4, LENGTH, 2, 3))
    assert not splits_alike(view.shape, (LENGTH, 24)) and view.reshape((LENGTH, 24)) is None
    assert not splits_alike(view.shape, (4, 5, 6))
    shape, _ = loop_nest(view.shape, [view])
    assert shape == (4, LENGTH, 6)
    assert view.is_dense() and view.elements == 120


def test_slices_of_a_dynamic_dimension_count_from_the_front() -> None:
    view = dense(Storage("arena", 0), "int8", (LENGTH, 3))
    rest = view.slice(0, 1, LENGTH)
    assert rest.shape == (Extent(4, -1), 3) and rest.offset == 3
    assert view.slice(0, 0, 2).shape == (2, 3)
    assert view.expand((7, LENGTH, 3)).strides == (0, 3, 1)
