"""Windows of convolutions and pooling: kernel, strides, dilations and padding, as ONNX gives them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from qcompiler.capture.onnx.call import Call


@dataclass(frozen=True)
class Windows:
    """One entry for each spatial dimension."""

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    begins: list[int]
    ends: list[int]

    @property
    def rank(self) -> int:
        return len(self.kernel)

    @property
    def symmetric(self) -> list[int] | None:
        """The padding of both sides, where it is equal."""
        return self.begins if self.begins == self.ends else None

    @property
    def padded(self) -> bool:
        return any(self.begins) or any(self.ends)


def windows_of(call: Call, x: torch.Tensor, kernel: list[int] | None = None) -> Windows:
    """The windows of a node over ``x`` [batch, channels, spatial…].

    Raises:
        CaptureError: attributes that do not fit the rank, negative or zero sizes, or padding that depends on an open size.
    """
    kernel = call.integers("kernel_shape") or kernel
    if kernel is None:
        raise call.fail("has no kernel_shape")
    rank = len(kernel)
    strides, dilations = call.integers("strides") or [1] * rank, call.integers("dilations") or [1] * rank
    if x.ndim != rank + 2 or len(strides) != rank or len(dilations) != rank:
        raise call.fail(f"has windows of {rank} dimensions over an input of {x.ndim}: kernel, strides and input must fit")
    if min(*kernel, *strides, *dilations) < 1:
        raise call.fail(f"has windows of size {kernel}, strides {strides}, dilations {dilations}: all must be positive")
    begins, ends = _padding(call, x, kernel, strides, dilations)
    return Windows(kernel, strides, dilations, begins, ends)


def _padding(call: Call, x: torch.Tensor, kernel: list[int], strides: list[int], dilations: list[int]) -> tuple[list[int], list[int]]:
    rank, auto = len(kernel), call.text("auto_pad", "NOTSET")
    if auto == "VALID":
        return [0] * rank, [0] * rank
    if auto in ("", "NOTSET"):
        pads = call.integers("pads") or [0] * (2 * rank)
        if len(pads) != 2 * rank or min(pads) < 0:
            raise call.fail(f"has the pads {pads}: two for each of {rank} dimensions are needed, and none negative")
        return pads[:rank], pads[rank:]
    if auto not in ("SAME_UPPER", "SAME_LOWER"):
        raise call.fail(f"has the unknown auto_pad '{auto}'")
    begins, ends = [], []
    for size, length, stride, dilation in zip(x.shape[2:], kernel, strides, dilations, strict=True):
        total = _same_padding(call, size, (length - 1) * dilation + 1, stride)
        begins.append(total // 2 if auto == "SAME_UPPER" else total - total // 2)
        ends.append(total - begins[-1])
    return begins, ends


def _same_padding(call: Call, size: int | torch.SymInt, extent: int, stride: int) -> int:
    """(ceil(size / stride) - 1) stride + extent - size, at least 0; of an open size only with stride 1, where it is extent - 1."""
    if stride == 1:
        return extent - 1
    if not isinstance(size, int):
        raise call.fail("pads by an open size (auto_pad SAME with a stride): fix that size with dynamic_shapes")
    return max(0, (-(-size // stride) - 1) * stride + extent - size)


def pad_sides(windows: Windows) -> list[int]:
    """The padding as ``torch.nn.functional.pad`` takes it: last dimension first."""
    return [side for begin, end in zip(reversed(windows.begins), reversed(windows.ends), strict=True) for side in (begin, end)]
