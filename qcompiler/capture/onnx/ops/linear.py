"""Ops with weights, and products: Conv, ConvTranspose, Gemm, MatMul, Einsum."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from qcompiler.capture.onnx.call import Call
from qcompiler.capture.onnx.registry import converter
from qcompiler.capture.onnx.windows import pad_sides, windows_of

_CONVOLUTIONS: Mapping[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED: Mapping[int, Callable[..., Tensor]] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


@converter("Conv")
def convolution(call: Call) -> Tensor:
    x, weight, bias = call.tensor(0), call.tensor(1), call.optional(2)
    found = windows_of(call, x, list(weight.shape[2:]))
    function = _CONVOLUTIONS.get(found.rank)
    if function is None:
        raise call.fail(f"convolves over {found.rank} dimensions: 1 to 3 are supported")
    padding = found.symmetric
    if padding is None:
        x, padding = F.pad(x, pad_sides(found)), [0] * found.rank
    return function(x, weight, bias, found.strides, padding, found.dilations, call.integer("group", 1))


@converter("ConvTranspose")
def transposed_convolution(call: Call) -> Tensor:
    """Padding cuts the sides of the result; where it is not what torch can cut, the whole result is computed and sliced."""
    x, weight, bias, group = call.tensor(0), call.tensor(1), call.optional(2), call.integer("group", 1)
    rank = weight.ndim - 2
    function = _TRANSPOSED.get(rank)
    if function is None:
        raise call.fail(f"convolves over {rank} dimensions: 1 to 3 are supported")
    kernel = call.integers("kernel_shape") or list(weight.shape[2:])
    strides, dilations = call.integers("strides") or [1] * rank, call.integers("dilations") or [1] * rank
    extra = call.integers("output_padding") or [0] * rank
    begins, ends, extra = _cut(call, x, kernel, strides, dilations, extra)
    if begins == ends and all(more < max(stride, dilation) for more, stride, dilation in zip(extra, strides, dilations, strict=True)):
        return function(x, weight, bias, strides, begins, extra, group, dilations)
    # Without padding one more element at the end is an output padding.
    whole = function(x, weight, bias, strides, 0, 0, group, dilations)
    if any(more > end for more, end in zip(extra, ends, strict=True)):
        raise call.fail("has an output padding that torch has no form of")
    for dim, (begin, end, more) in enumerate(zip(begins, ends, extra, strict=True)):
        whole = whole.narrow(dim + 2, begin, whole.shape[dim + 2] - begin - end + more)
    return whole


def _cut(
    call: Call, x: Tensor, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], extra: list[int]
) -> tuple[list[int], list[int], list[int]]:
    """What is cut at the begin and the end of each dimension, and what is added at the end.

    total_padding = stride (input - 1) + output_padding + (kernel - 1) dilation + 1 - output_shape, of which the odd one goes to the end
    with SAME_UPPER, to the begin with SAME_LOWER or none.
    """
    rank, auto = len(kernel), call.text("auto_pad", "NOTSET")
    wanted = call.integers("output_shape")
    if wanted is None and auto in ("NOTSET", "VALID"):
        pads = call.integers("pads") if auto == "NOTSET" else None
        pads = pads or [0] * (2 * rank)
        return pads[:rank], pads[rank:], extra
    sizes = list(x.shape[2:])
    wanted = (wanted or [size * stride for size, stride in zip(sizes, strides, strict=True)])[-rank:]
    begins, ends, added = [], [], []
    for position in range(rank):
        full = strides[position] * (sizes[position] - 1) + extra[position] + (kernel[position] - 1) * dilations[position] + 1
        total = full - wanted[position]
        more = extra[position] + max(0, -total)
        total = max(0, total)
        larger, smaller = total - total // 2, total // 2
        begins.append(smaller if auto == "SAME_UPPER" else larger)
        ends.append(larger if auto == "SAME_UPPER" else smaller)
        added.append(more)
    return begins, ends, added


@converter("Gemm")
def gemm(call: Call) -> Tensor:
    """alpha A' B' + beta C. With a constant B and the usual factors it is a linear layer."""
    a, b, c = call.tensor(0), call.tensor(1), call.optional(2)
    alpha, beta = call.real("alpha", 1.0), call.real("beta", 1.0)
    a = a.t() if call.flag("transA") else a
    if alpha == 1.0 and a.is_floating_point() and call.is_constant(1) and (c is None or (beta == 1.0 and c.ndim == 1)):
        weight = b if call.flag("transB") else b.t()
        if c is None or c.shape[0] == weight.shape[0]:
            return F.linear(a, weight, c)
    product = torch.matmul(a, b.t() if call.flag("transB") else b)
    product = product if alpha == 1.0 else product * alpha
    if c is None or beta == 0.0:
        return product
    return product + (c if beta == 1.0 else c * beta)


@converter("MatMul")
def matrix_product(call: Call) -> Tensor:
    """With a constant matrix it is a linear layer."""
    a, b = call.tensor(0), call.tensor(1)
    if b.ndim == 2 and a.ndim >= 2 and call.is_constant(1) and not call.folding and a.is_floating_point():
        return F.linear(a, b.t())
    return torch.matmul(a, b)


@converter("FusedMatMul", domain="com.microsoft")
def fused_matrix_product(call: Call) -> Tensor:
    a, b, alpha = call.tensor(0), call.tensor(1), call.real("alpha", 1.0)
    if call.flag("transBatchA") or call.flag("transBatchB"):
        raise call.fail("transposes the batch: write it with Transpose and MatMul")
    product = torch.matmul(a.mT if call.flag("transA") else a, b.mT if call.flag("transB") else b)
    return product if alpha == 1.0 else product * alpha


@converter("Einsum")
def einsum(call: Call) -> Tensor:
    """Of one operand: permutation and sums. Of several: each pair a permutation, a matrix product and a permutation."""
    operands = [call.tensor(position) for position in range(len(call))]
    terms, result = _terms(call, call.text("equation"), operands)
    value, letters = operands[0], terms[0]
    value, letters = _diagonal(call, value, letters)
    for position in range(1, len(operands)):
        other, others = _diagonal(call, operands[position], terms[position])
        kept = set(result).union(*terms[position + 1 :])
        value, letters = _product(_summed(value, letters, kept | set(others)), _summed(other, others, kept | set(letters)), kept)
    value, letters = _summed(value, letters, set(result))
    order = [letters.index(letter) for letter in result]
    return value if order == list(range(len(order))) else value.permute(order)


Labelled = tuple[Tensor, list[str]]


def _terms(call: Call, equation: str, operands: Sequence[Tensor]) -> tuple[list[list[str]], list[str]]:
    """The letters of each operand's dimensions, and of the result's; an ellipsis becomes numbered letters."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    given = left.split(",")
    if len(given) != len(operands):
        raise call.fail(f"has the equation '{equation}' for {len(operands)} operands")
    counts = [operand.ndim - len(term.replace("...", "")) for term, operand in zip(given, operands, strict=True)]
    if any(count < 0 or (count and "..." not in term) for term, count in zip(given, counts, strict=True)):
        raise call.fail(f"has the equation '{equation}', which does not fit the ranks of its operands")
    most = max(counts)
    terms = [_letters(term, count, most) for term, count in zip(given, counts, strict=True)]
    if not arrow:
        alone = sorted(letter for letter in set(left) - {",", "."} if left.count(letter) == 1)
        return terms, [f".{position}" for position in range(most)] + alone
    return terms, _letters(right, most, most)


def _letters(term: str, count: int, most: int) -> list[str]:
    before, dots, after = term.partition("...")
    return [*before, *(f".{position}" for position in range(most - count, most) if dots), *after]


def _diagonal(call: Call, value: Tensor, letters: list[str]) -> Labelled:
    for letter in dict.fromkeys(letters):
        while letters.count(letter) > 1:
            first = letters.index(letter)
            second = letters.index(letter, first + 1)
            value = torch.diagonal(value, 0, first, second)
            letters = [*(other for position, other in enumerate(letters) if position not in (first, second)), letter]
    return value, letters


def _summed(value: Tensor, letters: list[str], kept: set[str]) -> Labelled:
    dims = [position for position, letter in enumerate(letters) if letter not in kept]
    return (value.sum(dims), [letter for letter in letters if letter in kept]) if dims else (value, letters)


def _product(left: Labelled, right: Labelled, kept: set[str]) -> Labelled:
    """One matrix product: letters of both that are kept are its batch, those that are not are summed over."""
    (a, letters_a), (b, letters_b) = left, right
    batch = [letter for letter in letters_a if letter in letters_b and letter in kept]
    inner = [letter for letter in letters_a if letter in letters_b and letter not in kept]
    rows = [letter for letter in letters_a if letter not in letters_b]
    columns = [letter for letter in letters_b if letter not in letters_a]
    sizes = {**dict(zip(letters_b, b.shape, strict=True)), **dict(zip(letters_a, a.shape, strict=True))}
    if not inner:
        a, b = _aligned(left, [*batch, *rows, *columns]), _aligned(right, [*batch, *rows, *columns])
        return a * b, [*batch, *rows, *columns]
    a = _grouped(_aligned(left, [*batch, *rows, *inner]), len(batch), len(rows))
    b = _grouped(_aligned(right, [*batch, *inner, *columns]), len(batch), len(inner))
    result = torch.matmul(a, b)
    letters = [*batch, *rows, *columns]
    if len(rows) == len(columns) == 1:
        return result, letters
    return result.reshape([*result.shape[: len(batch)], *(sizes[letter] for letter in (*rows, *columns))]), letters


def _aligned(value: Labelled, letters: list[str]) -> Tensor:
    """Dimensions in the order of ``letters``; of size 1 where the value lacks one."""
    tensor, own = value
    order = [own.index(letter) for letter in letters if letter in own]
    tensor = tensor if order == list(range(len(order))) else tensor.permute(order)
    for position, letter in enumerate(letters):
        tensor = tensor if letter in own else tensor.unsqueeze(position)
    return tensor


def _grouped(tensor: Tensor, batch: int, rows: int) -> Tensor:
    """[batch…, rows…, columns…] as [batch…, rows, columns]."""
    columns = tensor.ndim - batch - rows
    if rows == columns == 1:
        return tensor
    shape = list(tensor.shape)
    first = torch.Size(shape[batch : batch + rows]).numel()
    last = torch.Size(shape[batch + rows :]).numel()
    return tensor.reshape([*shape[:batch], first, last])
