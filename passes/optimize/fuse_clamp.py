"""``fuse-clamp``: a clamp goes into the limits, or the table, of the op before it.

    clamp(clamp(v, l1, h1), l2, h2) = clamp(v, clamp(l1, l2, h2), clamp(h1, l2, h2))

for l1 <= h1 and l2 <= h2, so the integers stay the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from qcompiler.ir import edit
from qcompiler.passes.optimize.integer_rewrite import Chain, IntegerRewrite, chain, replace_integers
from qcompiler.pipeline.contract import Exact
from qcompiler.pipeline.rewrite import Site

_qc = torch.ops.qc
_CLAMP: frozenset[edit.Target] = frozenset({_qc.clamp.default})
_LIMITED: frozenset[edit.Target] = frozenset({_qc.requantize.default, _qc.add.default, _qc.clamp.default})


@dataclass(frozen=True)
class FuseClamp(IntegerRewrite[Chain]):
    """Fuse ``qc.clamp`` into a requantization, an addition, another clamp or a table that only it reads."""

    name: ClassVar = "fuse-clamp"
    promise: ClassVar = Exact()

    def match(self, node: fx.Node) -> Chain | None:
        return chain(node, _LIMITED | {_qc.lookup.default}, _CLAMP)

    def rewrite(self, graph_module: fx.GraphModule, match: Chain) -> None:
        site = Site(graph_module, match.second, self.name)
        low, high = edit.argument(match.second, "low"), edit.argument(match.second, "high")
        arguments = {parameter.name: edit.argument(match.first, parameter.name) for parameter in match.first.target._schema.arguments}  # type: ignore[union-attr]  # an op overload
        if match.first.target is _qc.lookup.default:
            table = edit.constant_value(arguments["table"])
            assert table is not None  # the verifier asks for a constant table
            arguments["table"] = site.constant(f"{match.second.name}_table", table.clamp(low, high))
        else:
            arguments["low"], arguments["high"] = (min(max(arguments[end], low), high) for end in ("low", "high"))
        replace_integers(site, site.call(match.first.target, *arguments.values()))  # type: ignore[arg-type]  # an op overload
