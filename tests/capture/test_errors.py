"""One clear line for each way in which a model cannot be captured."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qcompiler.capture import capture
from qcompiler.errors import CaptureError, UnsupportedOpError


class Model(nn.Module):
    """A model that is one function of its input."""

    def __init__(self, function: Callable[[Tensor], object], **attributes: object) -> None:
        super().__init__()
        self.function = function
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> object:
        return self.function(x)


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x + self.calls


def decide(x: Tensor) -> Tensor:
    if x.sum() > 0:
        return x
    return -x


def write_into_view(x: Tensor) -> Tensor:
    y = x * 2
    left = y[:, :2]
    y.relu_()
    return left + y[:, 2:]


def assign(x: Tensor) -> Tensor:
    y = x * 2
    y[:, 0] = 0
    return y


def message(model: nn.Module, kind: type[CaptureError] = CaptureError, x: Tensor | None = None, **options: bool) -> str:
    with pytest.raises(kind) as raised:
        capture(model, torch.randn(1, 4) if x is None else x, **options)
    text = str(raised.value)
    assert "\n" not in text and len(text) < 500
    return text


@pytest.mark.parametrize(
    ("function", "parts"),
    [
        (lambda x: x.cumsum(1), ["aten.cumsum.default", "test_errors.py:", "docs/capture.md"]),
        (lambda x: F.dropout(x), ["aten.dropout.default", "random", "training=self.training"]),
        (lambda x: F.batch_norm(x, None, None, training=True), ["aten.batch_norm.default", "track_running_stats=True"]),
        (lambda x: F.pad(x[:, None], (1, 1), mode="reflect"), ["aten.pad.default", "'reflect'", "constant"]),
    ],
)
def test_unsupported_op(function: Callable[[Tensor], object], parts: list[str]) -> None:
    text = message(Model(function), UnsupportedOpError)
    assert all(part in text for part in parts), text


@pytest.mark.parametrize(
    ("function", "parts"),
    [
        (decide, ["values of a tensor", "test_errors.py:", "if x.sum() > 0:", "torch.where"]),
        (lambda x: x * x.max().item(), ["aten.item.default", "depends on values"]),
        (lambda x: x[x > 0], ["depends on values"]),
        (lambda x: x + torch.ones(2, 1), ["fixes the batch size to 2", "dynamic_batch=False"]),
        (lambda x: x @ torch.ones(5, 3), ["fails on the example inputs", "test_errors.py:", "x @ torch.ones(5, 3)"]),
        (lambda x: x.numpy(), ["torch.export cannot trace Model"]),
        (lambda x: (x + 1, 3), ["returns 3", "every output must be a tensor"]),
        (lambda x: (x + 1, None), ["returns None", "every output must be a tensor"]),
        (lambda x: x.reshape(1, 4), ["fixes the batch size to 1", "x.reshape(1, 4)", "dynamic_batch=False"]),
        (write_into_view, ["aten.relu_.default", "shares", "not in-place"]),
        (assign, ["aten.fill_.Tensor", "shares", "torch.cat"]),
    ],
)
def test_what_cannot_be_traced(function: Callable[[Tensor], object], parts: list[str]) -> None:
    text = message(Model(function))
    assert all(part in text for part in parts), text


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x - x.mean(0, keepdim=True),
        lambda x: torch.cat([x, x], 0),
        lambda x: x.t().relu(),
        lambda x: x[0],
        lambda x: x.flip(0),
        lambda x: x.reshape(-1, 2),
        lambda x: x.unsqueeze(0).relu(),
        lambda x: x / x.shape[0],
        lambda x: x @ x.t(),
    ],
)
def test_samples_that_mix(function: Callable[[Tensor], object]) -> None:
    text = message(Model(function))
    assert "mixes the samples of a batch" in text and "dynamic_batch=False" in text and "test_errors.py:" in text, text


def test_constant_output() -> None:
    text = message(Model(lambda x: (x + 1, torch.ones(3))))
    assert "output 'output_1' does not depend on the inputs" in text


def test_state_from_call_to_call() -> None:
    text = message(Counting())
    assert "calls" in text and "from call to call" in text


def test_other_precisions() -> None:
    text = message(nn.Linear(4, 2).double(), x=torch.randn(1, 4).double())
    assert "is float64" in text and ".float()" in text


def test_cause_stays_attached() -> None:
    with pytest.raises(CaptureError) as raised:
        capture(Model(decide), torch.randn(1, 4))
    assert raised.value.__cause__ is not None


def test_inputs() -> None:
    model = nn.Linear(4, 2)
    for inputs, part in [
        (None, "needs example_inputs"),
        ([torch.zeros(1, 4), 3], "input 1 of Linear is a int"),
        (torch.zeros(()), "dynamic_batch=False"),
        ([torch.zeros(2, 4), torch.zeros(3, 4)], "do not share a batch"),
        (torch.zeros(0, 4), "empty batch"),
    ]:
        with pytest.raises(CaptureError, match=part):
            capture(model, inputs)  # type: ignore[arg-type]


def test_models_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").touch()
    (tmp_path / "model.txt").touch()
    (tmp_path / "model.pt2").write_bytes(b"no zip file")
    for model, part in [
        (tmp_path / "model.onnx", "model.onnx: not a valid ONNX model"),
        (tmp_path / "missing.pt2", "missing.pt2: no such file"),
        (tmp_path / "model.txt", "unknown kind of model file '.txt'"),
        (tmp_path / "model.pt2", "not a readable .pt2 file"),
        (lambda x: x, "cannot capture a function"),
    ]:
        with pytest.raises(CaptureError, match=part):
            capture(model, torch.zeros(1, 4))  # type: ignore[arg-type]


def test_a_batch_that_is_fixed_may_mix_samples() -> None:
    program = capture(Model(lambda x: x - x.mean(0, keepdim=True)), torch.randn(3, 4), dynamic_batch=False)
    assert program.inputs[0].shape == (3, 4)


@pytest.mark.parametrize(("module", "name"), [(nn.Linear(4, 4), "weight"), (nn.Linear(4, 4), "bias"), (nn.LayerNorm(4), "weight")])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_weight_that_is_no_number(module: nn.Module, name: str, value: float) -> None:
    spoiled = copy.deepcopy(module)
    with torch.no_grad():
        getattr(spoiled, name)[1] = value
    text = message(nn.Sequential(spoiled, nn.ReLU()), x=torch.ones(2, 4))
    assert re.match(
        rf"the constant 'constant_0_{name}' of the module 0, which '\w+' \(aten\..*\[module 0\] reads, holds \d of \d+ values", text
    )
    assert text.endswith("NaN or infinite: load the weights again, or go back to weights before training diverged")


def test_infinities_of_a_mask_are_meant() -> None:
    mask = torch.zeros(4, 4).masked_fill(torch.ones(4, 4).triu(1).bool(), -torch.inf)
    capture(Model(lambda x: (x + mask).softmax(-1)), torch.ones(2, 4, 4))
    with pytest.raises(CaptureError, match="holds 7 of 16 values that are NaN or infinite"):
        capture(
            Model(lambda x: x + mask.clone().index_put((torch.tensor(0), torch.tensor(0)), torch.tensor(torch.nan))), torch.ones(2, 4, 4)
        )


def test_recurrent_layers_are_sent_to_onnx() -> None:
    text = message(nn.LSTM(4, 4, batch_first=True), UnsupportedOpError, torch.ones(2, 3, 4))
    assert "aten.lstm.input" in text and "export the model to ONNX with a batch of 1: recurrent ops of a known number of steps" in text
