"""The built-in passes: name -> "module:Class". A pass is imported when a pipeline names it, never before."""

from __future__ import annotations

PASSES: dict[str, str] = {
    "fold-batch-norm": "qcompiler.passes.canonicalize.fold_batch_norm:FoldBatchNorm",
    "quantize": "qcompiler.passes.quantize.quantize:Quantize",
    "lower-integer": "qcompiler.passes.lower.lower_integer:LowerInteger",
}
