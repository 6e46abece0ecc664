"""The ops of stage FLOAT: what capture lets in and what the passes of ``canonicalize`` leave.

All are functional: aten ops, and ``qc::l2_normalize`` and ``qc::hadamard``, for which aten has no op. Ops marked as captured only are
rewritten by ``canonicalize``, so that later passes need not know them. The forms that ``canonicalize`` leaves are listed in
``docs/passes.md``.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from qcompiler.ir.ops import LIBRARY


def _l2_normalize(x: Tensor, eps: float) -> Tensor:
    """x / max(sqrt(sum(x^2)), eps) over the last dimension: ``torch.nn.functional.normalize``."""
    return torch.nn.functional.normalize(x, dim=-1, eps=eps)


def _l2_normalize_fake(x: Tensor, eps: float) -> Tensor:
    return torch.empty_like(x)


LIBRARY.define("l2_normalize(Tensor x, float eps) -> Tensor")
LIBRARY.impl("l2_normalize", _l2_normalize, "CPU")
torch.library.register_fake("qc::l2_normalize", _l2_normalize_fake, lib=LIBRARY)

_aten, _qc = torch.ops.aten, torch.ops.qc

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

# Reduce over the last dimension and give back the shape of their input.
ROW_OPS: frozenset[Callable[..., Any]] = frozenset(
    {_aten.softmax.int, _aten.layer_norm.default, _aten.rms_norm.default, _qc.l2_normalize.default, _qc.hadamard.default}
)

# Integers and booleans: token ids, masks. They give masks for ``masked_fill`` and ``where``, and rows of tables.
COMPARISON_OPS: frozenset[Callable[..., Any]] = frozenset(
    {_aten.eq.Scalar, _aten.ne.Scalar, _aten.gt.Scalar, _aten.ge.Scalar, _aten.lt.Scalar, _aten.le.Scalar}
)
MASK_OPS: frozenset[Callable[..., Any]] = COMPARISON_OPS | {
    _aten.logical_not.default,
    _aten.bitwise_and.Tensor,
    _aten.bitwise_or.Tensor,
    _aten.masked_fill.Scalar,
    _aten.where.self,
}
INDEX_OPS: frozenset[Callable[..., Any]] = frozenset({_aten.embedding.default, _aten.argmax.default})
CAST_OPS: frozenset[Callable[..., Any]] = frozenset({_aten.to.dtype})

# Give their elements in order in another shape.
RESHAPE_OPS: frozenset[Callable[..., Any]] = frozenset(
    {
        _aten.view.default,
        _aten._unsafe_view.default,
        _aten.reshape.default,
        _aten.flatten.using_ints,
        _aten.unflatten.int,
        _aten.squeeze.dim,
        _aten.squeeze.dims,
        _aten.unsqueeze.default,
    }
)

MOVEMENT_OPS: frozenset[Callable[..., Any]] = frozenset(
    {
        _aten.reshape.default,
        _aten.permute.default,
        _aten.slice.Tensor,
        _aten.cat.default,
        _aten.constant_pad_nd.default,
        _aten.expand.default,
        _aten.flip.default,
        # Instead of reshape where several sizes are symbolic: no symbol among the arguments.
        _aten.unflatten.int,
        _aten.flatten.using_ints,
        _aten.unsqueeze.default,
        _aten.squeeze.dims,
    }
)
# Feeds the ends of slices and the sizes of expand, where the sequence length is symbolic.
SIZE_OPS: frozenset[Callable[..., Any]] = frozenset({_aten.sym_size.int})

CANONICAL_OPS = (
    WEIGHTED_OPS | POOLING_OPS | UNARY_OPS | ARITHMETIC_OPS | ROW_OPS | MASK_OPS | INDEX_OPS | CAST_OPS | MOVEMENT_OPS | SIZE_OPS
)

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
        # attention and normalization
        _aten.scaled_dot_product_attention.default,
        _aten.bmm.default,
        _aten.baddbmm.default,
        _aten.group_norm.default,
        _aten.instance_norm.default,
        _aten.var.correction,
        _aten.var.dim,
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
        _aten.squeeze.dim,
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
        _aten.upsample_linear1d.vec,
        _aten.upsample_bilinear2d.vec,
        _aten.upsample_bicubic2d.vec,
        operator.getitem,
        # identities
        _aten.clone.default,
        _aten.contiguous.default,
        _aten.detach.default,
        _aten.alias.default,
        _aten.lift_fresh_copy.default,
        _aten.to.dtype_layout,
        _aten.to.device,
        _aten.type_as.default,
        _aten._to_copy.default,
        # tokens and masks
        _aten.eq.Tensor,
        _aten.ne.Tensor,
        _aten.gt.Tensor,
        _aten.ge.Tensor,
        _aten.lt.Tensor,
        _aten.le.Tensor,
        _aten.logical_and.default,
        _aten.logical_or.default,
        _aten.bitwise_not.default,
        _aten.__and__.Tensor,
        _aten.__or__.Tensor,
        _aten.masked_fill.Tensor,
        _aten.where.ScalarSelf,
        _aten.where.ScalarOther,
        _aten.where.Scalar,
        _aten.index.Tensor,
        _aten.index_select.default,
        _aten.roll.default,
        # reductions
        _aten.max.dim,
        _aten.linalg_vector_norm.default,
        # constants
        _aten.arange.default,
        _aten.zeros.default,
        _aten.ones.default,
        _aten.full.default,
        _aten.zeros_like.default,
        _aten.ones_like.default,
        _aten.full_like.default,
        _aten.new_zeros.default,
        _aten.new_ones.default,
        _aten.new_full.default,
        _aten.arange.start,
        _aten.arange.start_step,
    }
)

FLOAT_OPS = CANONICAL_OPS | CAPTURED_ONLY_OPS
