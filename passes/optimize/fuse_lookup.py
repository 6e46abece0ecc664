"""``fuse-lookup``: two functions of 8-bit integers in a row, at least one of them a table, become one table.

A table, a requantization of 8-bit integers, a clamp and a count of boundaries are all functions f: {256 integers} -> integers. The table of
their composition is f2(f1(q)) for all 256 integers q, computed by the ops' own reference kernels: the integers stay the same. The
integers between the two may have more than 8 bits: a GELU rounded to unequal steps is a table to 16 bits, a count of boundaries and a
table of levels, and becomes one table.
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
_FUNCTIONS: frozenset[edit.Target] = frozenset({_qc.lookup.default, _qc.requantize.default, _qc.clamp.default, _qc.bucketize.default})
_BYTES = (torch.int8, torch.uint8)


@dataclass(frozen=True)
class FuseLookup(IntegerRewrite[Chain]):
    """Compose a table with the table, requantization, clamp or count of boundaries before or after it, if the first reads 8 bits."""

    name: ClassVar = "fuse-lookup"
    promise: ClassVar = Exact()

    def match(self, node: fx.Node) -> Chain | None:
        found = chain(node, _FUNCTIONS, _FUNCTIONS)
        if found is None or _qc.lookup.default not in (found.first.target, found.second.target):
            return None
        return found if _reads_bytes(found.first) else None

    def check(self, match: Chain) -> str | None:
        for node in (match.first, match.second):
            if _channels(node) > 1 and node.target is _qc.requantize.default and edit.argument(node, "multiplier").meta["val"].ndim != 3:
                return f"the parameters of '{node.name}' do not run over channels alone, as those of a table do"
        return None

    def rewrite(self, graph_module: fx.GraphModule, match: Chain) -> None:
        site = Site(graph_module, match.second, self.name)
        source = match.first.args[0]
        assert isinstance(source, fx.Node)  # the op's tensor
        limits = torch.iinfo(source.meta["val"].dtype)
        channels = max(_channels(match.first), _channels(match.second))
        # [1, C, 1, 256]: parameters per channel broadcast as they do against NCHW.
        integers = torch.arange(limits.min, limits.max + 1).to(source.meta["val"].dtype).expand(1, channels, 1, 256)
        table = _applied(match.second, _applied(match.first, integers)).reshape(channels, 256)
        constant = site.constant(f"{match.second.name}_table", table[0] if channels == 1 else table)
        replace_integers(site, site.call(_qc.lookup.default, source, constant, *_bits(match.second)))


def _bits(node: fx.Node) -> tuple[int, bool]:
    """Bits and sign of what the function gives."""
    if node.target is _qc.bucketize.default:
        return int(edit.argument(node, "bits")), False
    quantized = node.meta["quantized"].integer
    return quantized.bits, quantized.signed


def _reads_bytes(node: fx.Node) -> bool:
    source = node.args[0]
    return isinstance(source, fx.Node) and source.meta["val"].dtype in _BYTES


def _channels(node: fx.Node) -> int:
    """Number of channels that have parameters of their own; 1 where all share them."""
    if node.target is _qc.lookup.default:
        table = edit.argument(node, "table").meta["val"]
        return int(table.shape[0]) if table.ndim == 2 else 1
    if node.target is _qc.requantize.default:
        return int(edit.argument(node, "multiplier").meta["val"].numel())
    return 1


def _applied(node: fx.Node, integers: torch.Tensor) -> torch.Tensor:
    """The op of ``node`` on other integers, by its reference kernel."""
    constants = [edit.constant_value(argument) if isinstance(argument, fx.Node) else argument for argument in node.args[1:]]
    result = node.target(integers, *constants)  # type: ignore[operator]  # an op overload
    assert isinstance(result, torch.Tensor)  # the schema says so
    return result
