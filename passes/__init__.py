"""The built-in passes: name -> "module:Class". A pass is imported when a pipeline names it, never before."""

from __future__ import annotations

PASSES: dict[str, str] = {
    "canonicalize": "qcompiler.passes.canonicalize.canonicalize:Canonicalize",
    "eliminate-dead-code": "qcompiler.passes.canonicalize.eliminate_dead_code:EliminateDeadCode",
    "fold-affine": "qcompiler.passes.canonicalize.fold_affine:FoldAffine",
    "fold-constants": "qcompiler.passes.canonicalize.fold_constants:FoldConstants",
    "fold-pad": "qcompiler.passes.canonicalize.fold_pad:FoldPad",
    "fuse-activation": "qcompiler.passes.canonicalize.fuse_activation:FuseActivation",
    "normalize-arithmetic": "qcompiler.passes.canonicalize.normalize_arithmetic:NormalizeArithmetic",
    "normalize-linear": "qcompiler.passes.canonicalize.normalize_linear:NormalizeLinear",
    "normalize-pooling": "qcompiler.passes.canonicalize.normalize_pooling:NormalizePooling",
    "normalize-views": "qcompiler.passes.canonicalize.normalize_views:NormalizeViews",
    "one-d-to-two-d": "qcompiler.passes.canonicalize.one_d_to_two_d:OneDToTwoD",
    "remove-identities": "qcompiler.passes.canonicalize.remove_identities:RemoveIdentities",
    "sink-reshapes": "qcompiler.passes.canonicalize.sink_reshapes:SinkReshapes",
    "fold-batch-norm": "qcompiler.passes.canonicalize.fold_batch_norm:FoldBatchNorm",
    "reparameterize-layer-norm": "qcompiler.passes.equalize.reparameterize_layer_norm:ReparameterizeLayerNorm",
    "quantize": "qcompiler.passes.quantize.quantize:Quantize",
    "gptq": "qcompiler.passes.reconstruct.gptq:Gptq",
    "adaround": "qcompiler.passes.reconstruct.adaround:AdaRound",
    "reconstruct-blocks": "qcompiler.passes.reconstruct.reconstruct_blocks:ReconstructBlocks",
    "adaquant": "qcompiler.passes.reconstruct.adaquant:AdaQuant",
    "tune-bias": "qcompiler.passes.reconstruct.tune_bias:TuneBias",
    "lower-integer": "qcompiler.passes.lower.lower_integer:LowerInteger",
    "merge-requantize": "qcompiler.passes.optimize.merge_requantize:MergeRequantize",
    "fuse-clamp": "qcompiler.passes.optimize.fuse_clamp:FuseClamp",
    "fuse-lookup": "qcompiler.passes.optimize.fuse_lookup:FuseLookup",
}
