from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from qcompiler.capture import capture
from qcompiler.ir import edit
from qcompiler.passes.canonicalize.eliminate_dead_code import EliminateDeadCode


class Unread(nn.Module):
    def forward(self, x: Tensor, unused: Tensor) -> Tensor:
        return x.relu()


def test_calls_and_constants_nobody_reads_go_and_inputs_stay(rewrite: Callable) -> None:
    program = edit.copy(capture(Unread(), [torch.zeros(1, 4), torch.zeros(1, 2)]))
    constant = edit.add_constant(program.graph_module, "scale", torch.ones(4))
    dead = edit.insert_call(program.graph, torch.ops.aten.mul.Tensor, (next(iter(program.graph.nodes)), constant))
    edit.insert_call(program.graph, torch.ops.aten.relu.default, (dead,))
    edit.finish(program.graph_module)
    rewritten = rewrite(EliminateDeadCode(), program)
    assert rewritten.ops == {"relu": 1}
    assert rewritten.result.notes == ("3 erased",)
    assert not list(rewritten.program.graph_module.buffers()) and len(rewritten.program.inputs) == 2


def test_nothing_dead(rewrite: Callable) -> None:
    assert not rewrite(EliminateDeadCode(), nn.ReLU(), (1, 4)).result.modified
