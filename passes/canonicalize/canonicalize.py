"""``canonicalize``: all passes from FLOAT to FLOAT, over and over until none of them finds anything more to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from qcompiler.ir.program import Program
from qcompiler.ir.types import Stage
from qcompiler.passes.canonicalize.collect_masks import CollectMasks
from qcompiler.passes.canonicalize.decompose_attention import DecomposeAttention
from qcompiler.passes.canonicalize.decompose_group_norm import DecomposeGroupNorm
from qcompiler.passes.canonicalize.decompose_interpolation import DecomposeInterpolation
from qcompiler.passes.canonicalize.drop_expand import DropExpand
from qcompiler.passes.canonicalize.eliminate_dead_code import EliminateDeadCode
from qcompiler.passes.canonicalize.fold_affine import FoldAffine
from qcompiler.passes.canonicalize.fold_batch_norm import FoldBatchNorm
from qcompiler.passes.canonicalize.fold_constants import FoldConstants
from qcompiler.passes.canonicalize.fold_pad import FoldPad
from qcompiler.passes.canonicalize.fuse_activation import FuseActivation
from qcompiler.passes.canonicalize.group_views import GroupViews
from qcompiler.passes.canonicalize.hoist_slices import HoistSlices
from qcompiler.passes.canonicalize.join_constants import JoinConstants
from qcompiler.passes.canonicalize.merge_duplicates import MergeDuplicates
from qcompiler.passes.canonicalize.merge_slices import MergeSlices
from qcompiler.passes.canonicalize.normalize_arithmetic import NormalizeArithmetic
from qcompiler.passes.canonicalize.normalize_index import NormalizeIndex
from qcompiler.passes.canonicalize.normalize_linear import NormalizeLinear
from qcompiler.passes.canonicalize.normalize_mask import NormalizeMask
from qcompiler.passes.canonicalize.normalize_pooling import NormalizePooling
from qcompiler.passes.canonicalize.normalize_views import NormalizeViews
from qcompiler.passes.canonicalize.one_d_to_two_d import OneDToTwoD
from qcompiler.passes.canonicalize.raise_l2_normalize import RaiseL2Normalize
from qcompiler.passes.canonicalize.raise_layer_norm import RaiseLayerNorm
from qcompiler.passes.canonicalize.raise_layer_norm_moments import RaiseLayerNormMoments
from qcompiler.passes.canonicalize.raise_rms_norm import RaiseRmsNorm
from qcompiler.passes.canonicalize.raise_softmax import RaiseSoftmax
from qcompiler.passes.canonicalize.remove_identities import RemoveIdentities
from qcompiler.passes.canonicalize.sink_reshapes import SinkReshapes
from qcompiler.pipeline.contract import Equivalent, Pass, PassContext, PassResult
from qcompiler.pipeline.fixpoint import run_to_fixpoint

# Each pass makes work for later ones. Activations are recognized before their constants are folded into layers.
STEPS: tuple[Pass, ...] = (
    EliminateDeadCode(),
    RemoveIdentities(),
    FoldConstants(),
    DecomposeAttention(),
    DecomposeGroupNorm(),
    DecomposeInterpolation(),
    NormalizeLinear(),
    NormalizeIndex(),
    NormalizeViews(),
    GroupViews(),
    NormalizeMask(),
    NormalizeArithmetic(),
    JoinConstants(),
    MergeSlices(),
    DropExpand(),
    MergeDuplicates(),
    HoistSlices(),
    FoldPad(),
    FoldBatchNorm(),
    FuseActivation(),
    RaiseSoftmax(),
    RaiseLayerNorm(),
    RaiseLayerNormMoments(),
    RaiseRmsNorm(),
    RaiseL2Normalize(),
    CollectMasks(),
    FoldAffine(),
    OneDToTwoD(),
    SinkReshapes(),
    NormalizePooling(),
)


@dataclass(frozen=True)
class Canonicalize(Pass):
    """The passes of this folder to their common fixpoint. Notes: what each rewrote, and why the rest was left alone in the end."""

    name: ClassVar = "canonicalize"
    takes: ClassVar = Stage.FLOAT
    gives: ClassVar = Stage.FLOAT
    promise: ClassVar = Equivalent(1e-4)

    def run(self, program: Program, context: PassContext) -> PassResult:
        return run_to_fixpoint(STEPS, program, context)
