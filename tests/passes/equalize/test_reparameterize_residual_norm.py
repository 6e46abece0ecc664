from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from qcompiler.calibration.data import CalibrationData
from qcompiler.capture import capture
from qcompiler.ir import edit
from qcompiler.passes.equalize.reparameterize_residual_norm import ReparameterizeResidualNorm
from qcompiler.pipeline.instruments import signal_to_noise
from qcompiler.pipeline.manager import PassManager
from qcompiler.pipeline.text import parse_pipeline


class PostNorm(nn.Module):
    """A norm that two layers and a sum read."""

    def __init__(self, norm: nn.Module, width: int = 16) -> None:
        super().__init__()
        self.norm, self.first, self.second, self.last = norm, *(nn.Linear(width, width) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return self.last(torch.relu(self.first(x) + self.second(x)) + x)


def wide_spread(norm: nn.Module) -> nn.Module:
    with torch.no_grad():
        norm.weight.copy_(torch.logspace(-1, 1, 16))
    return norm


@pytest.mark.parametrize("norm", [nn.LayerNorm(16), nn.RMSNorm(16)])
def test_the_function_stays_and_the_copy_is_even(norm: nn.Module, apply: Callable) -> None:
    torch.manual_seed(0)
    done = apply(ReparameterizeResidualNorm(), PostNorm(wide_spread(norm)), torch.randn(4096, 16))
    assert done.result.modified and done.difference < 1e-5
    assert "the copy of" in done.notes and "for 'linear', 'linear_1': scales of channels were" in done.notes
    (copy,) = edit.calls(done.result.program.graph, torch.ops.aten.mul.Tensor)
    ranges = torch.fx.Interpreter(done.result.program.graph_module)
    values = {}
    run_node = ranges.run_node
    ranges.run_node = lambda n: values.setdefault(n, run_node(n))  # type: ignore[method-assign]
    ranges.run(*done.inputs)
    spread = values[copy].amax(0) - values[copy].amin(0)
    assert float(spread.max() / spread.min()) < 1.01


class Stream(PostNorm):
    """What two layers make of a norm whose spread between channels they undo; the stream goes on to another norm."""

    def __init__(self) -> None:
        super().__init__(wide_spread(nn.LayerNorm(16)))
        self.next = nn.LayerNorm(16)
        with torch.no_grad():
            for layer in (self.first, self.second):
                layer.weight /= self.norm.weight

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]  # two results
        stream = self.norm(x)
        return self.first(stream) * self.second(stream), self.next(stream + x)


def test_each_channel_of_the_copy_has_its_own_multiplier_in_one_op() -> None:
    torch.manual_seed(0)
    x, model = torch.randn(64, 16), Stream().eval()
    program = capture(model, x)
    wanted = model(x)[0]
    ratios = []
    for before in ("", "reparameterize-residual-norm,"):
        text = f"canonicalize,{before}quantize,lower-integer"
        integer = PassManager(parse_pipeline(text)).run(program, CalibrationData([x], program.inputs))
        ratios.append(signal_to_noise([wanted], [integer.run(x)[0]]))
    assert ratios[1] > ratios[0] + 15.0
    products = list(edit.calls(integer.graph, torch.ops.qc.multiply.default))
    assert len(products) == 1, "that of both layers: a product with a positive vector is a change of scale"


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda m, x: m.first(m.norm(x)), "linear layers alone read it: reparameterize-layer-norm takes it"),
        (lambda m, x: m.first(m.norm(x).relu()) + x, "no linear layer reads it directly"),
    ],
)
def test_what_is_left_alone(function: Callable, reason: str, apply: Callable) -> None:
    class Network(PostNorm):
        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = function(self, x)
            return result

    done = apply(ReparameterizeResidualNorm(), Network(nn.LayerNorm(16)), torch.randn(8, 16))
    assert not done.result.modified and reason in done.notes
