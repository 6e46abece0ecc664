from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from qcompiler.passes.canonicalize.remove_identities import RemoveIdentities


class Model(nn.Module):
    def __init__(self, function: Callable) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: nn.functional.dropout(x, 0.5, training=False),
        lambda x: nn.functional.dropout2d(x, 0.5, training=False),
        lambda x: x.clone(),
        lambda x: x.contiguous(),
        lambda x: x.detach(),
        lambda x: x.float(),
        lambda x: x.to(torch.float32),
        lambda x: x.type_as(x),
        lambda x: x.view(-1, 4, 6, 6),
        lambda x: x.reshape(x.shape),
        lambda x: x.expand(-1, 4, 6, 6),
        lambda x: x.permute(0, 1, -2, -1),
        lambda x: x.transpose(2, 2),
        lambda x: x[:, :, :],
        lambda x: x[:, 0:4],
        lambda x: nn.functional.pad(x, (0, 0)),
        lambda x: x + 0,
        lambda x: x - 0.0,
        lambda x: x * 1,
        lambda x: x / 1.0,
        lambda x: x**1,
        lambda x: torch.cat([x], 1),
        lambda x: nn.functional.max_pool2d(x, 1),
        lambda x: nn.functional.avg_pool2d(x, 1, 1),
    ],
)
def test_removed(rewrite: Callable, function: Callable) -> None:
    assert rewrite(RemoveIdentities(), Model(lambda x: function(x.relu())), (1, 4, 6, 6)).ops == {"relu": 1}


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.permute(0, 1, 3, 2),  # the same shape, other places
        lambda x: x.transpose(2, 3),
        lambda x: x.flip(1),
        lambda x: nn.functional.pad(x, (1, -1)),
        lambda x: nn.functional.max_pool2d(x, 3, 1, 1),
        lambda x: nn.functional.avg_pool2d(x, 1, 2),
        lambda x: x + 1,
        lambda x: x * 0,
        lambda x: x.narrow(1, 1, 3),
    ],
)
def test_left_alone(rewrite: Callable, function: Callable) -> None:
    assert not rewrite(RemoveIdentities(), Model(function), (1, 4, 6, 6)).result.modified
