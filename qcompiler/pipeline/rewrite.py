"""A pass made of one local rewrite, in three steps: match, check, rewrite."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import fx

from qcompiler.ir import edit
from qcompiler.ir.program import Program
from qcompiler.ir.provenance import provenance_of
from qcompiler.pipeline.contract import Pass, PassContext, PassResult

Match = TypeVar("Match")

# Stands in the note of every match that ``check`` declined.
LEFT_ALONE = "left alone"


@dataclass(frozen=True)
class Site:
    """Where a rewrite puts new nodes: before ``node``, which they stand for, on behalf of the pass ``made_by``."""

    graph_module: fx.GraphModule
    node: fx.Node
    made_by: str

    def call(self, target: edit.Target, *args: Any, **kwargs: Any) -> fx.Node:
        return edit.insert_call(
            self.graph_module.graph, target, args, kwargs, before=self.node, provenance_from=[self.node], made_by=self.made_by
        )

    def constant(self, name_hint: str, tensor: torch.Tensor) -> fx.Node:
        return edit.add_constant(self.graph_module, name_hint, tensor, provenance_from=[self.node], made_by=self.made_by)

    def replace(self, new: fx.Node) -> None:
        """Let the readers of ``node`` read ``new``."""
        edit.replace(self.node, new)


@dataclass(frozen=True)
class RewritePass(Pass, Generic[Match]):
    """Goes over the nodes in topological order and rewrites where it can, until there is nothing left to rewrite.

    A subclass says in ``match`` whether a node is of its kind, in ``check`` why a match must be left alone, and in ``rewrite``
    what becomes of it. Where nothing is rewritten the result is the very program that came in. Every declined match is a note.
    """

    @abstractmethod
    def match(self, node: fx.Node) -> Match | None:
        """What the rewrite needs to know about ``node``, or None if it is not of this kind."""

    def check(self, match: Match) -> str | None:
        """Why this match is left alone (one clause, for the user), or None if it can be rewritten."""
        return None

    @abstractmethod
    def rewrite(self, graph_module: fx.GraphModule, match: Match) -> str | None:
        """Replace the matched nodes; give a note where the user should know more than that it was done.

        What becomes dead is swept afterwards; nodes inserted after the match are visited too.
        """

    def run(self, program: Program, context: PassContext) -> PassResult:
        if not any(self._applies(node) for node in program.graph.nodes):
            return PassResult(program, False, self._declined(program))
        work = edit.copy(program)
        rewritten = 0
        notes: list[str] = []
        while True:
            swept = self._sweep(work)
            edit.erase_dead(work)
            if not swept:
                return PassResult(work, True, (f"{rewritten} rewritten", *notes, *self._declined(work)))
            rewritten += len(swept)
            notes += [note for note in swept if note]

    def _sweep(self, work: Program) -> list[str]:
        """Rewrite what can be rewritten in one go over the nodes; the note of each rewrite, empty where there is none."""
        notes = []
        for node in work.graph.nodes:
            match = self.match(node)
            if match is not None and self.check(match) is None:
                place = f"{node.name}{_place(node)}"
                note = self.rewrite(work.graph_module, match)
                notes.append(f"{place} {note}" if note else "")
        return notes

    def _applies(self, node: fx.Node) -> bool:
        match = self.match(node)
        return match is not None and self.check(match) is None

    def _declined(self, program: Program) -> tuple[str, ...]:
        matches = ((node, self.match(node)) for node in program.graph.nodes)
        reasons = ((node, self.check(match)) for node, match in matches if match is not None)
        return tuple(f"{node.name}{_place(node)} {LEFT_ALONE}: {reason}" for node, reason in reasons if reason is not None)


def _place(node: fx.Node) -> str:
    location = provenance_of(node).location
    return f" ({location})" if location else ""
