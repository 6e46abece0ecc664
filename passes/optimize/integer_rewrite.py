"""What rewrites at stage INTEGER share: types of new nodes, the reader of a value, ranges proven anew."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, TypeVar

from torch import fx

from qcompiler.ir import edit, ranges
from qcompiler.ir.program import Program
from qcompiler.ir.types import Stage
from qcompiler.pipeline.contract import PassContext, PassResult
from qcompiler.pipeline.rewrite import RewritePass, Site

Match = TypeVar("Match")


@dataclass(frozen=True)
class IntegerRewrite(RewritePass[Match]):
    """A rewrite of integer ops, after which the range of every value is proven again."""

    takes: ClassVar = Stage.INTEGER
    gives: ClassVar = Stage.INTEGER

    def run(self, program: Program, context: PassContext) -> PassResult:
        result = super().run(program, context)
        if result.modified:
            ranges.annotate(result.program)
        return result


@dataclass(frozen=True)
class Chain:
    """Two ops in a row: nothing but ``second`` reads ``first``."""

    first: fx.Node
    second: fx.Node


def chain(second: fx.Node, firsts: frozenset[edit.Target], seconds: frozenset[edit.Target]) -> Chain | None:
    """The chain that ends in ``second``, if the op before it is one of ``firsts``."""
    if not edit.is_call(second, *seconds):
        return None
    first = second.args[0]
    if not isinstance(first, fx.Node) or not edit.is_call(first, *firsts) or len(first.users) != 1:
        return None
    return Chain(first, second)


def replace_integers(site: Site, new: fx.Node) -> None:
    """Replace the site's node by one whose integers mean the same."""
    if "quantized" in site.node.meta:  # codes mean nothing by themselves
        new.meta["quantized"] = site.node.meta["quantized"]
    site.replace(new)
