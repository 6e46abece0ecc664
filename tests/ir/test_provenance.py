from __future__ import annotations

import torch
from torch import nn

from qcompiler.ir.provenance import Provenance, derive, describe, provenance_of


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.tail = nn.Sequential(nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        return self.tail(x) + 1


def exported() -> dict[str, torch.fx.Node]:
    graph = torch.export.export(Small(), (torch.randn(1, 3, 8, 8),)).module().graph
    return {node.name: node for node in graph.nodes}


def test_the_users_line_is_the_last_frame_outside_torch() -> None:
    line = Small.forward.__code__.co_firstlineno
    provenance = provenance_of(exported()["conv2d"])
    assert provenance == Provenance(f"test_provenance.py:{line + 1} in forward: x = self.conv(x)", "conv")
    assert provenance.location == f"test_provenance.py:{line + 1}"


def test_paths_of_another_machine_are_recognized_as_torch() -> None:
    node = exported()["relu"]
    node.meta["stack_trace"] = (
        'File "/home/a/net.py", line 9, in forward\n    y = self.act(x)\n'
        '  File "/opt/x/lib/python3.12/site-packages/torch/nn/modules/activation.py", line 143, in forward\n    return F.relu(input)'
    )
    assert provenance_of(node).source == "net.py:9 in forward: y = self.act(x)"


def test_a_frame_without_its_code_is_still_a_place() -> None:
    node = exported()["relu"]
    node.meta["stack_trace"] = 'File "net.py", line 9, in forward\n  File "other.py", line 3, in helper'
    assert provenance_of(node).source == "other.py:3 in helper"


def test_derive_takes_the_first_origin_and_all_passes_once() -> None:
    nodes = exported()
    conv, relu = nodes["conv2d"], nodes["relu"]
    conv.meta["provenance"] = Provenance("", "conv", ("capture", "fold-batch-norm"))
    relu.meta["provenance"] = Provenance("m.py:2 in forward", "tail.0", ("capture",))
    merged = derive([conv, relu], "lower-integer")
    assert merged == Provenance("m.py:2 in forward", "conv", ("capture", "fold-batch-norm", "lower-integer"))
    assert derive([], "x") == Provenance(made_by=("x",))
    assert merged.then("lower-integer") is merged


def test_describe_names_op_line_module_and_passes() -> None:
    conv = exported()["conv2d"]
    conv.meta["provenance"] = Provenance("m.py:2 in forward: x = self.conv(x)", "conv", ("capture",))
    assert describe(conv) == "'conv2d' (aten.conv2d.default) at m.py:2 in forward: x = self.conv(x) [module conv] [made by capture]"
    conv.meta["provenance"] = Provenance("node 'conv_1' (Conv)", "conv_1")
    assert describe(conv) == "'conv2d' (aten.conv2d.default) at node 'conv_1' (Conv)"
    assert describe(exported()["x"]) == "'x' (placeholder)"
