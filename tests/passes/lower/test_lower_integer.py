from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qcompiler.errors import UnknownNameError, UnsupportedOpError
from qcompiler.ir.types import INT32
from qcompiler.passes.lower.lower_integer import LowerInteger

# Two roundings of one real number, of which one is taken in float32, end at most one step apart.
ONE_STEP = 1.0 + 1e-3


class Network(nn.Module):
    def __init__(self, function: Callable[..., Tensor], *layers: nn.Module) -> None:
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*self.layers, *inputs)


IMAGE = (3, 4, 9, 8)
CASES: dict[str, tuple[Callable[..., Tensor], list[nn.Module], tuple[int, ...], set[str]]] = {
    "convolution, relu": (lambda c, x: F.relu(c(x)), [nn.Conv2d(4, 6, 3, padding=1)], IMAGE, {"qc.convolution", "qc.requantize"}),
    "strided, dilated, grouped": (
        lambda c, x: F.relu6(c(x)),
        [nn.Conv2d(4, 6, 3, stride=2, padding=2, dilation=2, groups=2)],
        IMAGE,
        {"qc.convolution", "qc.requantize"},
    ),
    "depthwise without bias": (
        lambda c, x: c(x).clamp(-0.5, 0.7),
        [nn.Conv2d(4, 4, (3, 1), groups=4, bias=False)],
        IMAGE,
        {"qc.convolution", "qc.requantize"},
    ),
    "asymmetric padding": (
        lambda c, x: F.relu(c(F.pad(x, (0, 1, 2, 1)))),
        [nn.Conv2d(4, 6, 3, stride=2)],
        IMAGE,
        {"qc.convolution", "qc.requantize"},
    ),
    "one dimension": (
        lambda c, x: F.relu(c(x)),
        [nn.Conv1d(4, 5, 3, padding=1)],
        (3, 4, 9),
        {"qc.convolution", "qc.requantize", "aten.reshape"},
    ),
    "transposed": (
        lambda c, x: F.relu(c(x)),
        [nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1)],
        IMAGE,
        {"qc.dilate", "qc.convolution", "qc.requantize"},
    ),
    "transposed, dilated, grouped": (
        lambda c, x: F.relu(c(x)),
        [nn.ConvTranspose2d(4, 6, (3, 2), stride=(1, 3), dilation=2, groups=2)],
        IMAGE,
        {"qc.dilate", "qc.convolution", "qc.requantize"},
    ),
    "linear over the last of three": (lambda c, x: F.relu(c(x)), [nn.Linear(8, 5)], (3, 4, 8), {"qc.linear", "qc.requantize"}),
    "residual on the accumulator": (
        lambda c, x: F.relu(c(x) + x),
        [nn.Conv2d(4, 4, 3, padding=1)],
        IMAGE,
        {"qc.convolution", "qc.add"},
    ),
    "subtraction": (lambda c, x: F.relu(c(x) - x), [nn.Conv2d(4, 4, 1)], IMAGE, {"qc.convolution", "qc.lookup", "qc.add"}),
    "sum of two inputs moved": (lambda x: x.flip(2) + x, [], IMAGE, {"aten.flip", "qc.add"}),
    "product": (lambda c, x: F.relu(c(x)) * x, [nn.Conv2d(4, 4, 1)], IMAGE, {"qc.convolution", "qc.requantize", "qc.multiply"}),
    "product that broadcasts": (
        lambda x: x * x.mean((2, 3), keepdim=True),
        [],
        IMAGE,
        {"qc.sum", "qc.requantize", "qc.multiply"},
    ),
    "constant operand": (lambda x: torch.exp(x) + torch.arange(4.0)[:, None, None], [], IMAGE, {"qc.lookup", "qc.add"}),
    "concatenation": (
        lambda a, b, x: torch.cat([F.relu(a(x)), b(x), x], 1).exp(),
        [nn.Conv2d(4, 4, 1), nn.Conv2d(4, 5, 1)],
        IMAGE,
        {"qc.convolution", "qc.requantize", "aten.cat", "qc.lookup"},
    ),
    "max pooling": (
        lambda c, x: F.max_pool2d(F.relu(c(x)), 3, 2, 1),
        [nn.Conv2d(4, 4, 1)],
        IMAGE,
        {"qc.convolution", "qc.requantize", "qc.max_pool2d"},
    ),
    "max pooling with ceil_mode": (lambda x: F.max_pool2d(x, 2, 2, ceil_mode=True), [], IMAGE, {"qc.max_pool2d"}),
    "adaptive max pooling": (lambda x: F.adaptive_max_pool2d(x, (4, 3)), [], IMAGE, {"qc.adaptive_max_pool2d"}),
    "maximum over positions": (lambda x: x.amax((2, 3)), [], IMAGE, {"qc.adaptive_max_pool2d", "aten.reshape"}),
    "average pooling": (lambda x: F.avg_pool2d(x, 2), [], IMAGE, {"qc.sum_pool2d", "qc.requantize"}),
    "average pooling, padding counted": (lambda x: F.avg_pool2d(x, 3, 2, 1), [], IMAGE, {"qc.sum_pool2d", "qc.requantize"}),
    "average pooling, padding not counted": (
        lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
        [],
        IMAGE,
        {"qc.sum_pool2d", "qc.requantize"},
    ),
    "average pooling with ceil_mode": (
        lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True),
        [],
        (3, 4, 10, 8),
        {"qc.sum_pool2d", "qc.requantize"},
    ),
    "average pooling with divisor": (
        lambda x: F.avg_pool2d(x, 3, divisor_override=5),
        [],
        IMAGE,
        {"qc.sum_pool2d", "qc.requantize"},
    ),
    "adaptive average pooling": (
        lambda x: F.adaptive_avg_pool2d(x, (4, 3)),
        [],
        IMAGE,
        {"qc.adaptive_sum_pool2d", "qc.requantize"},
    ),
    "global average pooling": (lambda x: F.adaptive_avg_pool2d(x, 1).flatten(1), [], IMAGE, set()),
    "mean over channels": (lambda x: x.mean(1), [], IMAGE, {"qc.sum", "qc.requantize"}),
    "sum": (lambda x: x.sum((1, -1)), [], IMAGE, {"qc.sum", "qc.requantize"}),
    "hard swish": (lambda x: F.hardswish(x), [], IMAGE, {"qc.lookup"}),
    "sigmoid, then bounds": (lambda x: torch.sigmoid(x).clamp(max=0.6), [], IMAGE, {"qc.lookup"}),
    "function with a number": (lambda x: F.leaky_relu(x * 2.5 + 1.0, 0.1), [], IMAGE, {"qc.lookup"}),
    "prelu, one slope": (lambda a, x: a(x), [nn.PReLU()], IMAGE, {"qc.lookup"}),
    "prelu, a slope for each channel": (lambda a, x: a(x), [nn.PReLU(4)], IMAGE, {"qc.lookup"}),
    "bound of rounded integers": (lambda x: F.relu(x.transpose(2, 3)), [], IMAGE, {"aten.permute", "qc.clamp"}),
    "data movement": (
        lambda x: F.pad(x[:, 1:, ::2], (1, 2), value=0.5).reshape(x.shape[0], -1),
        [],
        IMAGE,
        {"aten.slice", "aten.constant_pad_nd", "aten.reshape"},
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("requantize", ["auto", "high"])
def test_integers_are_those_of_the_simulation_up_to_one_step(compile_network, case: str, requantize: str) -> None:
    function, layers, shape, expected = CASES[case]
    torch.manual_seed(1)
    compiled = compile_network(Network(function, *layers), shape, lower=f"requantize={requantize}")
    assert compiled.steps_apart() <= ONE_STEP
    assert not expected or set(compiled.ops) == expected


@pytest.mark.parametrize("options", ["symmetric=true", "a=6,w=4", "per_channel=false", "observer=min-max,weight_observer=min-max"])
def test_options_of_quantize(compile_network, options: str) -> None:
    def function(first: nn.Module, second: nn.Module, x: Tensor) -> Tensor:
        y = F.relu(first(x))
        return F.hardswish(F.relu(second(y) + y))

    compiled = compile_network(Network(function, nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)), IMAGE, quantize=options)
    assert compiled.steps_apart() <= 2 * ONE_STEP, "a step of the sum can be more than one of the steep function after it"


def test_logits_are_exact_accumulators_with_a_scale_for_each_class(compile_network) -> None:
    def function(linear: nn.Module, x: Tensor) -> Tensor:
        return linear(x)

    compiled = compile_network(Network(function, nn.Linear(8, 5)), (7, 8))
    kind = compiled.integer.outputs[0].quantized
    assert kind is not None and kind.integer == INT32 and kind.axis == 1 and len(kind.scale) == 5
    before, after = compiled.qdq.run(*compiled.inputs)[0], compiled.integer.run(*compiled.inputs)[0]
    # The bias is rounded to a step of the accumulator; all else is float32's own rounding.
    assert (before - after).abs().max() <= 0.5 * max(kind.scale) + 1e-5


def test_two_inputs_and_two_outputs(compile_network) -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            return x + y, torch.tanh(y)

    compiled = compile_network(Two(), (3, 4), (3, 4))
    before, after = compiled.qdq.run(*compiled.inputs), compiled.integer.run(*compiled.inputs)
    for expected, found, spec in zip(before, after, compiled.integer.outputs, strict=True):
        assert spec.quantized is not None
        assert (expected - found).abs().max() <= ONE_STEP * spec.quantized.scale[0]


def test_one_rounding_for_convolution_and_residual(compile_network) -> None:
    compiled = compile_network(Network(lambda c, x: F.relu(c(x) + x), nn.Conv2d(4, 4, 3, padding=1)), IMAGE)
    add = next(node for node in compiled.integer.graph.nodes if "qc.add" in str(node.target))
    assert add.args[0].meta["val"].dtype is torch.int32, "the accumulator is the first operand"
    assert add.args[2].meta["val"].shape == (4, 1, 1), "with a multiplier for each channel"


def test_the_batch_stays_symbolic(compile_network) -> None:
    compiled = compile_network(Network(lambda c, x: F.relu(c(x)), nn.Conv2d(4, 4, 3)), IMAGE)
    assert compiled.integer.outputs[0].shape[0] is None
    assert compiled.integer(torch.randn(1, 4, 9, 8)).shape[0] == 1


@pytest.mark.parametrize("function", [lambda x: torch.maximum(x, x.flip(1)), lambda x: torch.minimum(x, x.flip(1))])
def test_an_op_without_integer_form_is_declined_with_its_line(compile_network, function: Callable[..., Tensor]) -> None:
    with pytest.raises(UnsupportedOpError, match=r"has no integer form: .*replace it by supported ops") as caught:
        compile_network(Network(function), (3, 4, 4))
    assert "test_lower_integer.py" in str(caught.value)


def test_what_is_left_in_float_is_noted(compile_network) -> None:
    from qcompiler.calibration.data import CalibrationData
    from qcompiler.capture import capture
    from qcompiler.passes.quantize.quantize import Quantize
    from qcompiler.pipeline.manager import PassManager

    program = capture(Network(lambda x: torch.maximum(x, x.flip(1))), torch.zeros(2, 4, 4))
    program = PassManager([Quantize()]).run(program, CalibrationData([torch.randn(2, 4, 4)], program.inputs))
    assert any(note.startswith("left in float: 'maximum'") for note in program.history[-1].notes)


def test_transposed_convolution_with_too_much_padding_is_declined(compile_network) -> None:
    with pytest.raises(UnsupportedOpError, match="padding is larger than dilation"):
        compile_network(Network(lambda c, x: F.relu(c(x)), nn.ConvTranspose2d(4, 4, 2, stride=2, padding=2)), IMAGE)


def test_unknown_form() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'narrow'"):
        LowerInteger(requantize="narow")


def test_exact64(compile_network) -> None:
    compiled = compile_network(Network(lambda c, x: F.relu(c(x)), nn.Conv2d(4, 4, 3)), IMAGE, lower="requantize=exact64")
    assert compiled.steps_apart() <= ONE_STEP
    assert [node.args[8] for node in compiled.integer.graph.nodes if "requantize" in str(node.target)] == ["exact64"]
