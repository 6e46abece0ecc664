from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from qcompiler.passes.canonicalize.fold_batch_norm import FoldBatchNorm
from qcompiler.passes.canonicalize.fold_constants import FoldConstants
from qcompiler.pipeline.contract import PassContext

IMAGE = (1, 6, 8, 7)
SIGNAL = (1, 6, 9)


class Read(nn.Module):
    """The convolution's result is read by the batch norm and by the addition."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return self.norm(y) + y


class Shared(nn.Module):
    """One convolution in two places, a batch norm after one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x)) + self.conv(x * 2)


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (nn.Sequential(nn.Conv2d(6, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)), IMAGE),
        (nn.Sequential(nn.Conv2d(6, 9, 3, stride=2, dilation=2, groups=3), nn.BatchNorm2d(9)), IMAGE),
        (nn.Sequential(nn.Conv1d(6, 4, 3, groups=2), nn.BatchNorm1d(4)), SIGNAL),
        (nn.Sequential(nn.ConvTranspose2d(6, 4, 3, stride=2, output_padding=1), nn.BatchNorm2d(4)), IMAGE),
        (nn.Sequential(nn.ConvTranspose2d(6, 9, 3, groups=3, bias=False), nn.BatchNorm2d(9)), IMAGE),
        (nn.Sequential(nn.ConvTranspose1d(6, 4, 3, groups=2), nn.BatchNorm1d(4)), SIGNAL),
        (nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4)), (1, 6)),
        (nn.Sequential(nn.Conv2d(6, 4, 1), nn.BatchNorm2d(4, affine=False)), IMAGE),
        (nn.Sequential(nn.Conv2d(6, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)), IMAGE),
    ],
)
def test_after_a_layer(rewrite: Callable, model: nn.Module, shape: tuple[int, ...]) -> None:
    ops = rewrite(FoldBatchNorm(), model, shape).ops
    assert sum(ops.values()) == 1 and "batch_norm" not in ops


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (nn.Sequential(nn.BatchNorm2d(6), nn.Conv2d(6, 4, 3)), IMAGE),
        (nn.Sequential(nn.BatchNorm2d(6), nn.Conv2d(6, 9, 3, groups=3, bias=False)), IMAGE),
        (nn.Sequential(nn.BatchNorm1d(6), nn.Conv1d(6, 4, 3, groups=2)), SIGNAL),
        (nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 4)), (1, 6)),
    ],
)
def test_before_a_layer(rewrite: Callable, model: nn.Module, shape: tuple[int, ...]) -> None:
    ops = rewrite(FoldBatchNorm(), model, shape).ops
    assert sum(ops.values()) == 1 and "batch_norm" not in ops


@pytest.mark.parametrize("layer", [nn.Conv2d(6, 4, 3, padding=1), nn.ConvTranspose2d(6, 4, 3, groups=2)])
def test_before_a_padded_layer_only_without_shift(rewrite: Callable, layer: nn.Module) -> None:
    shifted = rewrite(FoldBatchNorm(), nn.Sequential(nn.BatchNorm2d(6), layer), IMAGE)
    assert shifted.ops["conv2d"] + shifted.ops["conv_transpose2d"] == 2
    assert "its shift would have to reach the zeros" in shifted.result.notes[1]

    class Unshifted(nn.BatchNorm2d):
        """``randomized`` draws a shift for plain batch norms; here mean and beta stay zero."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.batch_norm(x, torch.zeros(6), self.running_var, self.weight, torch.zeros(6))

    unshifted = rewrite(FoldBatchNorm(), nn.Sequential(Unshifted(6), layer), IMAGE, before=[FoldConstants()])
    assert sum(unshifted.ops.values()) == 1 and "batch_norm" not in unshifted.ops


@pytest.mark.parametrize(
    ("norm", "shape", "ops"),
    [
        (nn.BatchNorm2d(6), IMAGE, {"conv2d": 1}),
        (nn.BatchNorm1d(6), SIGNAL, {"conv1d": 1}),
        (nn.BatchNorm1d(6), (1, 6), {"unsqueeze": 1, "conv1d": 1, "squeeze": 1}),
    ],
)
def test_alone_it_is_a_depthwise_convolution(rewrite: Callable, norm: nn.Module, shape: tuple[int, ...], ops: dict[str, int]) -> None:
    rewritten = rewrite(FoldBatchNorm(), norm, shape)
    assert rewritten.ops == ops
    assert "became a depthwise convolution" in rewritten.result.notes[1]


def test_result_read_elsewhere(rewrite: Callable) -> None:
    rewritten = rewrite(FoldBatchNorm(), Read(), IMAGE)
    assert rewritten.ops == {"conv2d": 2, "add": 1}
    assert "the result of 'conv2d' before it is read elsewhere too" in rewritten.result.notes[1]


def test_shared_weights_change_in_one_place_only(rewrite: Callable) -> None:
    rewritten = rewrite(FoldBatchNorm(), Shared(), IMAGE)
    assert rewritten.ops == {"conv2d": 2, "add": 1, "mul": 1}
    assert len(list(rewritten.program.graph_module.buffers())) == 4


def test_linear_before_a_norm_over_another_axis(rewrite: Callable) -> None:
    rewritten = rewrite(FoldBatchNorm(), nn.Sequential(nn.Linear(9, 9), nn.BatchNorm1d(6)), SIGNAL)
    assert rewritten.ops == {"linear": 1, "conv1d": 1}
    assert "does not work along the channels of 'linear'" in rewritten.result.notes[1]


def test_other_ranks_are_left_alone(rewrite: Callable) -> None:
    rewritten = rewrite(FoldBatchNorm(), nn.BatchNorm3d(6), (1, 6, 3, 3, 3))
    assert not rewritten.result.modified
    assert rewritten.result.notes == ("batch_norm left alone: its input has 5 dimensions, not 2 to 4",)


def test_weights_keep_their_names(rewrite: Callable) -> None:
    model = nn.Sequential()
    model.add_module("conv", nn.Conv2d(6, 4, 1, bias=False))
    model.add_module("norm", nn.BatchNorm2d(4))
    names = [name for name, _ in rewrite(FoldBatchNorm(), model, IMAGE).program.graph_module.named_buffers()]
    assert sorted(names) == ["conv_bias", "conv_weight"]


def test_folded_layer_knows_where_it_comes_from(rewrite: Callable) -> None:
    program = rewrite(FoldBatchNorm(), Read(), IMAGE).program
    made = next(node for node in program.graph.nodes if node.name == "conv2d_1")
    assert made.meta["provenance"].module_path == "norm" and made.meta["provenance"].made_by == ("fold-batch-norm",)


def test_resnet20(rewrite: Callable, resnet20: nn.Module, cifar10_test: tuple[torch.Tensor, torch.Tensor]) -> None:
    from qcompiler.capture import capture

    images = cifar10_test[0][:16]
    before = capture(resnet20, images[:1])
    after = FoldBatchNorm().run(before, PassContext()).program
    assert not [node for node in after.graph.nodes if "batch_norm" in str(node.target)]
    # 20 layers deep, each rounding to 2^-24: far below 1e-5 of the largest logit.
    assert (before(images) - after(images)).abs().max() <= 1e-5 * before(images).abs().max()
