"""What capture computes: values of constants and of sizes, indexing by counting."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from qcompiler.capture import capture
from qcompiler.errors import CaptureError, UnsupportedOpError
from qcompiler.ir.program import Program


class Model(nn.Module):
    def __init__(self, function: Callable[..., object], **buffers: Tensor) -> None:
        super().__init__()
        self.function = function
        for name, value in buffers.items():
            self.register_buffer(name, value)

    def forward(self, x: Tensor) -> object:
        return self.function(self, x)


def targets(program: Program) -> set[str]:
    return {str(node.target).split(".")[1] for node in program.graph.nodes if node.op == "call_function"}


def filled_by_slices(m: nn.Module, x: Tensor) -> Tensor:
    mask = x.new_zeros((4, 4))
    for number, rows in enumerate((slice(0, 1), slice(1, 3), slice(3, None))):
        mask[rows, 1:] = number + 1
    mask += 1
    return x + mask.roll(1, 0).cumsum(0)


def test_constants_written_in_place_are_computed() -> None:
    model = Model(filled_by_slices)
    program, x = capture(model, torch.zeros(2, 4, 4)), torch.randn(3, 4, 4)
    assert targets(program) == {"add"} and torch.equal(program(x), model(x))


def test_constants_that_fold_constants_can_fold_are_left_to_it() -> None:
    program = capture(Model(lambda m, x: x @ m.weight.t(), weight=torch.randn(3, 4)), torch.zeros(2, 4))
    assert targets(program) == {"t", "matmul"} or targets(program) == {"numpy_T", "matmul"}


def test_random_numbers_are_no_constants() -> None:
    with pytest.raises(UnsupportedOpError, match="rand"):
        capture(Model(lambda m, x: x + torch.rand(3)), torch.zeros(2, 3))


def test_write_into_a_buffer_is_declined() -> None:
    def count(m: nn.Module, x: Tensor) -> Tensor:
        m.calls.add_(1)
        return x + m.calls

    with pytest.raises(CaptureError, match="keeps nothing from call to call"):
        capture(Model(count, calls=torch.zeros(3)), torch.zeros(2, 3))


FUNCTIONS_OF_SIZES = [
    lambda m, x: x + torch.arange(x.shape[1])[:, None],
    lambda m, x: x + m.table[:, : x.shape[1]].gather(1, torch.arange(x.shape[1])[None]).unsqueeze(-1),
    lambda m, x: x + torch.ones(x.shape[1], x.shape[1]).tril().sum(-1, keepdim=True) * 0 + torch.arange(x.shape[1]).cos()[:, None],
    lambda m, x: x * torch.zeros_like(x).add(2),
    lambda m, x: x.masked_fill((torch.arange(x.shape[1]) >= 3)[:, None], 0.0),
]


@pytest.mark.parametrize("function", FUNCTIONS_OF_SIZES[:2] + FUNCTIONS_OF_SIZES[3:])
def test_functions_of_sizes_are_slices_of_constants(function: Callable[..., object]) -> None:
    model = Model(function, table=torch.randn(1, 9))
    program = capture(model, torch.zeros(2, 4, 5), dynamic_shapes={"x": {1: Dim("length", min=1, max=9)}})
    assert targets(program) <= {"slice", "sym_size", "expand", "add", "mul", "masked_fill"}
    for length in (1, 4, 9):
        x = torch.randn(3, length, 5)
        assert torch.equal(program(x), model(x))


def test_the_number_of_samples_is_no_constant() -> None:
    with pytest.raises(CaptureError, match="mixes the samples"):
        capture(Model(lambda m, x: x + torch.arange(x.shape[0])[:, None]), torch.zeros(2, 3))


def test_indexing_by_counting_is_a_view() -> None:
    def counted(m: nn.Module, x: Tensor) -> Tensor:
        batch, length = x.shape
        return x[torch.arange(batch)[:, None, None], torch.arange(length)[None, None, :]]

    program, x = capture(Model(counted), torch.zeros(2, 4)), torch.randn(3, 4)
    assert targets(program) == {"unsqueeze"} and torch.equal(program(x), x[:, None, :])


def test_other_indexing_is_not() -> None:
    with pytest.raises(CaptureError, match="mixes the samples"):
        capture(Model(lambda m, x: x[torch.arange(x.shape[0]).flip(0)]), torch.zeros(2, 4))


def test_float_islands() -> None:
    class Sine(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.sin(x) + 1

    with pytest.raises(UnsupportedOpError, match=r"'sin' \(aten.sin.default\) at test_constants.py.*allow_float=\(\"aten.sin.default\",\)"):
        capture(Sine(), torch.zeros(2, 3))
    program, x = capture(Sine(), torch.zeros(2, 3), allow_float=("aten.sin.default",)), torch.randn(4, 3)
    program.verify()
    assert program.islands == ("sin",) and torch.equal(program(x), Sine()(x))


def test_ops_that_give_several_tensors_are_no_islands() -> None:
    with pytest.raises(UnsupportedOpError) as caught:
        capture(Model(lambda m, x: x.sort(-1)[0]), torch.zeros(2, 3), allow_float=("aten.sort.default",))
    assert "allow_float" not in str(caught.value)
