"""Images for a network with batch norms, where there are no data (ZeroQ).

    x* = argmin_x  sum_l ( |mean_l(x) - mu_l|^2 + |deviation_l(x) - sigma_l|^2 ) / channels_l

over the batch norms l of the network, each of which remembers the mean mu_l and deviation sigma_l = sqrt(variance + epsilon) of what it
met in training; mean_l(x) and deviation_l(x) are those of the batch x over samples and positions. One term more asks for inputs of mean 0
and deviation 1 in each channel, as normalized images have. By Adam from normal noise.

Source: Cai et al., "ZeroQ: A Novel Zero Shot Quantization Framework" (arXiv 2001.00281), section 3.1, equation 3, with the input's term
as in the authors' code. The program must still have its batch norms: take it as it was captured, before ``fold-batch-norm`` (part of
``canonicalize``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from qcompiler.errors import CalibrationError
from qcompiler.ir import edit
from qcompiler.ir.program import Program
from qcompiler.ir.sizes import concrete_shape
from qcompiler.ir.types import Stage
from qcompiler.passes.reconstruct.subgraph import Subgraph
from qcompiler.pipeline.progress import Progress, SilentProgress

_batch_norm = torch.ops.aten.batch_norm.default


@dataclass(frozen=True, eq=False)
class _Remembered:
    """A batch norm: the node of its input, and the statistics of training, [channels]."""

    node: fx.Node
    mean: Tensor
    deviation: Tensor


def synthesize(
    program: Program,
    samples: int = 32,
    *,
    batch: int = 32,
    steps: int = 200,
    learning_rate: float = 0.1,
    seed: int = 0,
    progress: Progress | None = None,
) -> Tensor:
    """Images [samples, ...] on which the network's batch norms meet what they met in training.

    Args:
        program: FLOAT, as captured, with one float input.
        batch: images that are made together; their joint statistics count.
        steps: of Adam, at ``learning_rate``.
        seed: of the noise that they start from; the same gives the same images.

    Raises:
        CalibrationError: the program has no batch norm with constant statistics, other inputs than one of floats, or is at another stage.
    """
    if samples < 1 or batch < 2 or steps < 1:
        raise CalibrationError(f"synthesizing needs samples >= 1, steps >= 1 and batch >= 2, got {samples}, {steps} and {batch}")
    remembered = _batch_norms(program)
    objective = _Objective(program, remembered)
    generator = torch.Generator().manual_seed(seed)
    sizes = [min(batch, max(samples - start, 2)) for start in range(0, samples, batch)]
    starts = [torch.randn((size, *_shape(program)), generator=generator).requires_grad_() for size in sizes]
    work = (None for images in starts for _ in objective.descend(images, steps, learning_rate))
    for _ in (progress or SilentProgress()).track(work, "synthesizing images", len(starts) * steps):
        pass
    return torch.cat([images.detach() for images in starts])[:samples]


class _Objective:
    """The distance of a batch of images from what the network remembers."""

    def __init__(self, program: Program, remembered: list[_Remembered]) -> None:
        (self._input,) = (node for node in program.graph.nodes if node.op == "placeholder")
        self._remembered = remembered
        self._subgraph = Subgraph(program.graph, [self._input], [layer.node for layer in remembered])

    def descend(self, images: Tensor, steps: int, learning_rate: float) -> Iterator[None]:
        """Change the images; yields after each step."""
        optimizer = torch.optim.Adam([images], lr=learning_rate)
        for _ in range(steps):
            optimizer.zero_grad()
            with torch.enable_grad():
                loss = _distance(self._subgraph.run({self._input: images}), self._remembered) + _input_distance(images)
            loss.backward()
            optimizer.step()
            yield


def _distance(values: tuple[Tensor, ...], remembered: list[_Remembered]) -> Tensor:
    total = torch.zeros(())
    for value, layer in zip(values, remembered, strict=True):
        mean, deviation = _moments(value)
        total = total + (mean - layer.mean).square().mean() + (deviation - layer.deviation).square().mean()
    return total


def _input_distance(images: Tensor) -> Tensor:
    mean, deviation = _moments(images)
    return mean.square().mean() + (deviation - 1.0).square().mean()


def _moments(value: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each channel, dimension 1."""
    channels = value.transpose(0, 1).flatten(1)
    return channels.mean(1), channels.var(1, correction=0).add(1e-8).sqrt()


def _batch_norms(program: Program) -> list[_Remembered]:
    if program.stage is not Stage.FLOAT:
        raise CalibrationError(f"images are synthesized from a float program; this one is at stage {program.stage.value}")
    found = []
    for node in edit.calls(program.graph, _batch_norm):
        mean, variance = (edit.constant_value(edit.argument(node, name)) for name in ("running_mean", "running_var"))
        if mean is not None and variance is not None:
            found.append(_Remembered(edit.argument(node, "input"), mean, (variance + edit.argument(node, "eps")).sqrt()))
    if not found:
        raise CalibrationError(
            "images cannot be synthesized: the program has no batch norm with its statistics; "
            "give calibration data, or the program as it was captured if 'fold-batch-norm' has run"
        )
    return found


def _shape(program: Program) -> tuple[int, ...]:
    """Of one image."""
    spec = program.inputs[0]
    if len(program.inputs) != 1 or not spec.dtype.is_floating_point or spec.shape[:1] != (None,):
        raise CalibrationError("images are synthesized for programs with one float input and a symbolic batch: give calibration data")
    return concrete_shape(spec.shape)[1:]
