from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qcompiler.capture import capture
from qcompiler.ir.program import Program, ValueSpec
from qcompiler.ir.types import Stage


class Named(nn.Module):
    """Two inputs, outputs in a dictionary, in-place ops, a lifted constant."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.activation = nn.ReLU6(inplace=True)
        self.gate = nn.Linear(5, 4)
        self.drop = nn.Dropout(0.5)

    def forward(self, image: Tensor, vector: Tensor) -> dict[str, Tensor]:
        features = self.activation(self.norm(self.conv(image)))
        features += torch.tensor([1.0])
        gate = self.gate(self.drop(vector)).sigmoid_()
        return {"features": features * gate[:, :, None, None], "gate": gate}


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return Named()


@pytest.fixture(scope="module")
def program(model: nn.Module) -> Program:
    return capture(model, (torch.zeros(1, 3, 6, 6), torch.zeros(1, 5)))


def test_program_computes_what_the_module_computes(model: nn.Module, program: Program) -> None:
    for batch in (1, 2, 7):
        image, vector = torch.randn(batch, 3, 6, 6), torch.randn(batch, 5)
        with torch.no_grad():
            expected = model.eval()(image.clone(), vector)
        for found, wanted in zip(program.run(image, vector), expected.values(), strict=True):
            assert torch.equal(found, wanted)


def test_stage_and_specifications(program: Program) -> None:
    assert program.stage is Stage.FLOAT
    program.verify()
    assert program.inputs == (
        ValueSpec("image", torch.float32, (None, 3, 6, 6)),
        ValueSpec("vector", torch.float32, (None, 5)),
    )
    assert program.outputs == (
        ValueSpec("features", torch.float32, (None, 4, 4, 4)),
        ValueSpec("gate", torch.float32, (None, 4)),
    )


def test_constants_are_flat_and_named_after_the_module(program: Program) -> None:
    names = {str(node.target) for node in program.graph.nodes if node.op == "get_attr"}
    assert {"conv_weight", "norm_running_mean", "gate_bias"} <= names
    assert not any("." in name for name in names)
    assert "norm_num_batches_tracked" not in names


def test_no_op_changes_its_argument(program: Program) -> None:
    targets = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert not [target for target in targets if getattr(target, "_schema", None) is not None and target._schema.is_mutable]


def test_nodes_know_the_users_line_and_module(program: Program) -> None:
    convolution = next(node for node in program.graph.nodes if "conv2d" in str(node.target))
    provenance = convolution.meta["provenance"]
    assert provenance.source.startswith("test_capture.py:")
    assert provenance.source.endswith("features = self.activation(self.norm(self.conv(image)))")
    assert provenance.module_path == "conv"


def test_module_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), nn.Dropout()).train()
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    capture(model, torch.randn(1, 3, 4, 4))
    assert [module.training for module in model] == [True, False, True] and model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_program_keeps_its_own_weights() -> None:
    model = nn.Linear(3, 2)
    program, x = capture(model, torch.zeros(1, 3)), torch.randn(4, 3)
    before = program(x)
    with torch.no_grad():
        model.weight.zero_()
    assert torch.equal(program(x), before)


def test_inputs_are_left_alone() -> None:
    class Centred(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x -= 1
            return x * 2

    program, x = capture(Centred(), torch.zeros(1, 3)), torch.ones(2, 3)
    assert torch.equal(program(x), torch.zeros(2, 3)) and torch.equal(x, torch.ones(2, 3))


def test_write_into_a_value_that_had_views_before() -> None:
    class Written(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x * 2
            half = y[:, :2].sum(1, keepdim=True)  # read before the write only
            y.add_(1).mul_(3)
            return y.relu_() + half

    program, x = capture(Written(), torch.zeros(1, 4)), torch.randn(3, 4)
    assert torch.equal(program(x), Written()(x.clone()))


def test_squeeze_leaves_the_batch() -> None:
    class Squeezed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.squeeze()

    program = capture(Squeezed(), torch.zeros(1, 3, 1, 1))
    assert program(torch.zeros(1, 3, 1, 1)).shape == (1, 3)


def test_fixed_batch() -> None:
    program = capture(nn.Conv2d(3, 2, 1), torch.zeros(1, 3, 4, 4), dynamic_batch=False)
    assert program.inputs[0].shape == (1, 3, 4, 4) and program.outputs[0].shape == (1, 2, 4, 4)


def test_tied_weights_are_one_buffer() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 4, bias=False)
            self.second = nn.Linear(4, 4, bias=False)
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.second(F.relu(self.first(x)))

    program = capture(Tied(), torch.zeros(1, 4))
    assert len(list(program.graph_module.buffers())) == 1


def test_one_tensor_for_two_inputs() -> None:
    class Sum(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return a - b

    x = torch.randn(2, 3)
    program = capture(Sum(), (x, x))
    assert torch.equal(program(x, 2 * x), x - 2 * x)


@pytest.mark.parametrize(
    ("result", "names"),
    [
        (lambda x: x, ["output"]),
        (lambda x: (x, x + 1), ["output_0", "output_1"]),
        (lambda x: {"b": x, "a": [x + 1, x + 2]}, ["b", "a_0", "a_1"]),
    ],
)
def test_output_names(result: object, names: list[str]) -> None:
    class Returning(nn.Module):
        def forward(self, x: Tensor) -> object:
            return result(x * 2)  # type: ignore[operator]

    assert [spec.name for spec in capture(Returning(), torch.zeros(1, 3)).outputs] == names


def test_exported_program_and_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True)).eval()
    batch = torch.export.Dim("batch")
    exported = torch.export.export(model, (torch.zeros(2, 3, 6, 6),), dynamic_shapes=({0: batch},))
    torch.export.save(exported, tmp_path / "model.pt2")
    x = torch.randn(3, 3, 6, 6)
    for source in (exported, tmp_path / "model.pt2", str(tmp_path / "model.pt2")):
        program = capture(source)
        assert program.inputs[0].shape == (None, 3, 6, 6)
        assert torch.equal(program(x), model(x))


def test_same_model_gives_the_same_text() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    texts = {capture(model, torch.zeros(1, 3, 6, 6)).text() for _ in range(2)}
    assert len(texts) == 1


def test_resnet20(resnet20: nn.Module, cifar10_test: tuple[Tensor, Tensor]) -> None:
    images = cifar10_test[0][:4]
    program = capture(resnet20, images[:1])
    with torch.no_grad():
        assert torch.equal(program(images), resnet20(images))


def test_efficientnet_lite0(efficientnet_lite0: nn.Module) -> None:
    images = torch.randn(2, 3, 224, 224)
    program = capture(efficientnet_lite0, images[:1])
    with torch.no_grad():
        assert torch.equal(program(images), efficientnet_lite0(images))
