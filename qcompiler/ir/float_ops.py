"""The ops of stage FLOAT: what capture lets in and what the passes of ``canonicalize`` leave.

All are functional aten ops. Ops marked as captured only are rewritten by ``canonicalize``, so that later passes need not know them.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch

_aten = torch.ops.aten

# Have weights: one dot product for each output.
WEIGHTED_OPS: frozenset[Callable[..., Any]] = frozenset(
    {_aten.conv2d.default, _aten.conv_transpose2d.input, _aten.linear.default, _aten.matmul.default}
)

POOLING_OPS: frozenset[Callable[..., Any]] = frozenset(
    {
        _aten.max_pool2d.default,
        _aten.avg_pool2d.default,
        _aten.adaptive_avg_pool2d.default,
        _aten.adaptive_max_pool2d.default,
        _aten.mean.dim,
        _aten.sum.dim_IntList,
        _aten.amax.default,
    }
)

# One element of the result needs one element of each operand (after broadcasting).
UNARY_OPS: frozenset[Callable[..., Any]] = frozenset(
    {
        _aten.relu.default,
        _aten.clamp.default,
        _aten.leaky_relu.default,
        _aten.elu.default,
        _aten.gelu.default,
        _aten.silu.default,
        _aten.sigmoid.default,
        _aten.tanh.default,
        _aten.hardswish.default,
        _aten.hardsigmoid.default,
        _aten.mish.default,
        _aten.softplus.default,
        _aten.exp.default,
        _aten.log.default,
        _aten.erf.default,
        _aten.abs.default,
        _aten.neg.default,
        _aten.sqrt.default,
        _aten.rsqrt.default,
        _aten.reciprocal.default,
        _aten.pow.Tensor_Scalar,
    }
)
ARITHMETIC_OPS: frozenset[Callable[..., Any]] = frozenset(
    {
        _aten.add.Tensor,
        _aten.sub.Tensor,
        _aten.mul.Tensor,
        _aten.div.Tensor,
        _aten.prelu.default,
        _aten.maximum.default,
        _aten.minimum.default,
    }
)

# Reduce over the last dimensions and give back the shape of their input.
ROW_OPS: frozenset[Callable[..., Any]] = frozenset({_aten.softmax.int, _aten.layer_norm.default})

MOVEMENT_OPS: frozenset[Callable[..., Any]] = frozenset(
    {
        _aten.reshape.default,
        _aten.permute.default,
        _aten.slice.Tensor,
        _aten.cat.default,
        _aten.constant_pad_nd.default,
        _aten.expand.default,
        _aten.flip.default,
    }
)

CANONICAL_OPS = WEIGHTED_OPS | POOLING_OPS | UNARY_OPS | ARITHMETIC_OPS | ROW_OPS | MOVEMENT_OPS

CAPTURED_ONLY_OPS: frozenset[Callable[..., Any]] = frozenset(
    {
        # layers
        _aten.conv1d.default,
        _aten.conv1d.padding,
        _aten.conv2d.padding,
        _aten.conv_transpose1d.default,
        _aten.convolution.default,
        _aten.addmm.default,
        _aten.mm.default,
        _aten.batch_norm.default,
        _aten.dropout.default,
        _aten.feature_dropout.default,
        # pooling
        _aten.max_pool1d.default,
        _aten.avg_pool1d.default,
        _aten.adaptive_avg_pool1d.default,
        # activations and arithmetic
        _aten.relu6.default,
        _aten.hardtanh.default,
        _aten.clamp_min.default,
        _aten.clamp_max.default,
        _aten.clip.default,
        _aten.add.Scalar,
        _aten.sub.Scalar,
        _aten.mul.Scalar,
        _aten.div.Scalar,
        _aten.rsub.Scalar,
        _aten.square.default,
        # movement
        _aten.view.default,
        _aten._unsafe_view.default,
        _aten.flatten.using_ints,
        _aten.unflatten.int,
        _aten.squeeze.dim,
        _aten.squeeze.dims,
        _aten.unsqueeze.default,
        _aten.transpose.int,
        _aten.swapaxes.default,
        _aten.t.default,
        _aten.numpy_T.default,
        _aten.movedim.int,
        _aten.expand_as.default,
        _aten.view_as.default,
        _aten.select.int,
        _aten.narrow.default,
        _aten.chunk.default,
        _aten.split.Tensor,
        _aten.split.sizes,
        _aten.split_with_sizes.default,
        _aten.unbind.int,
        _aten.stack.default,
        _aten.concat.default,
        _aten.pad.default,
        _aten.channel_shuffle.default,
        _aten.pixel_shuffle.default,
        _aten.pixel_unshuffle.default,
        _aten.upsample_nearest1d.vec,
        _aten.upsample_nearest2d.vec,
        _aten.sym_size.int,
        operator.getitem,
        # identities
        _aten.clone.default,
        _aten.contiguous.default,
        _aten.detach.default,
        _aten.alias.default,
        _aten.lift_fresh_copy.default,
        _aten.to.dtype,
        _aten.to.dtype_layout,
        _aten.to.device,
        _aten.type_as.default,
        _aten._to_copy.default,
        # constants
        _aten.arange.default,
        _aten.zeros.default,
        _aten.ones.default,
        _aten.full.default,
    }
)

FLOAT_OPS = CANONICAL_OPS | CAPTURED_ONLY_OPS
