from __future__ import annotations

import pytest
import torch
from torch import nn

from qcompiler.capture import capture
from qcompiler.ir import edit
from qcompiler.ir.layers import CHANNEL_AXIS, as_layer, write_layer

LAYERS = {
    "linear": (nn.Linear(6, 4), (2, 6)),
    "conv": (nn.Conv2d(6, 4, 3), (2, 6, 5, 5)),
    "grouped": (nn.Conv2d(6, 4, 3, groups=2, bias=False), (2, 6, 5, 5)),
    "depthwise": (nn.Conv2d(6, 12, 3, groups=6), (2, 6, 5, 5)),
    "transposed": (nn.ConvTranspose2d(6, 4, 3, groups=2), (2, 6, 5, 5)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_as_a_matrix(name: str) -> None:
    """Inputs, outputs and bias of every kind of layer are scaled and read where they are."""
    torch.manual_seed(0)
    module, shape = LAYERS[name]
    program = capture(module.eval(), torch.randn(shape))
    (node,) = edit.calls(program.graph, *CHANNEL_AXIS)
    layer = as_layer(node)
    assert layer is not None
    factors, outer, shift = torch.rand(layer.inputs) + 0.5, torch.rand(layer.outputs) + 0.5, torch.randn(layer.outputs)
    work = edit.copy(program)
    (copied,) = edit.calls(work.graph, *CHANNEL_AXIS)
    changed = as_layer(copied)
    assert changed is not None
    write_layer(work.graph_module, changed.scale_inputs(factors.double()).scale_outputs(outer.double()).add_bias(shift.double()), "test")
    edit.erase_dead(work)
    work.verify()
    x = torch.randn(shape)
    channels = [-1, *[1] * (-layer.axis - 1)]
    want = program(x * factors.reshape(channels)) * outer.reshape(channels) + shift.reshape(channels)
    assert torch.allclose(work(x), want, atol=1e-5)


@pytest.mark.parametrize("name", ["linear", "conv", "grouped", "depthwise"])
def test_product_and_magnitudes(name: str) -> None:
    torch.manual_seed(0)
    module, shape = LAYERS[name]
    program = capture(module.eval(), torch.randn(shape))
    (node,) = edit.calls(program.graph, *CHANNEL_AXIS)
    layer = as_layer(node)
    assert layer is not None
    channels = [-1, *[1] * (-layer.axis - 1)]
    constant = torch.randn(layer.inputs)
    given = program(constant.reshape(channels).expand(shape)) - program(torch.zeros(shape))
    assert torch.allclose(given.movedim(layer.axis, -1).reshape(-1, layer.outputs)[0].double(), layer.product(constant.double()), atol=1e-5)
    assert torch.allclose(layer.output_magnitudes(), module.weight.double().abs().flatten(1).amax(1))
    assert float(layer.input_magnitudes().max()) == pytest.approx(float(module.weight.detach().abs().max()))
