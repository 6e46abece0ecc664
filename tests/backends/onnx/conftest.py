"""Running exported files in onnxruntime, without any of its graph optimizations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import qcompiler as qc
from qcompiler.backends.onnx.export import make_model
from qcompiler.backends.onnx.files import checked
from qcompiler.ir.program import Program
from qcompiler.ir.sizes import concrete_shape, dynamic_sizes

Session = Callable[..., tuple[torch.Tensor, ...]]


def _session(model: onnx.ModelProto | Path) -> Session:
    """A function of the inputs in their order."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    session = onnxruntime.InferenceSession(source, options)
    names = [entry.name for entry in session.get_inputs()]

    def run(*inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        feeds = {name: np.ascontiguousarray(value.numpy()) for name, value in zip(names, inputs, strict=True)}
        return tuple(torch.from_numpy(np.asarray(value)) for value in session.run(None, feeds))

    return run


def _real_inputs(program: Program, batch: int, length: int | None = None, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Floats whose integers run over the whole range; integers where the user gives those."""
    random = torch.Generator().manual_seed(seed)
    values = dict.fromkeys(dynamic_sizes(program.inputs), length) if length is not None else None
    inputs = []
    for spec in program.inputs:
        shape = concrete_shape(spec.shape, batch, values)
        if spec.quantized is None:
            inputs.append(torch.randint(0, 100, shape, generator=random).to(spec.dtype))
            continue
        kind = spec.quantized.integer
        integers = torch.randint(kind.low - 2, kind.high + 3, shape, generator=random)
        inputs.append(((integers - spec.quantized.zero_point[0]) * spec.quantized.scale[0]).to(torch.float32))
    return tuple(inputs)


@pytest.fixture(scope="session")
def session() -> Callable[[onnx.ModelProto | Path], Session]:
    return _session


@pytest.fixture(scope="session")
def real_inputs() -> Callable[..., tuple[torch.Tensor, ...]]:
    return _real_inputs


@pytest.fixture(scope="session")
def differing() -> Callable[..., list[str]]:
    """Names of the outputs in which the integer-only file differs from the program in a bit, for several batches and lengths."""

    def compare(
        program: Program,
        names: Sequence[str],
        batches: Sequence[int] = (1, 3, 17),
        lengths: Sequence[int | None] = (None,),
        opset: int | None = None,
    ) -> list[str]:
        run = _session(checked(make_model(program, "integer", opset)))
        found = []
        for batch in batches:
            for length in lengths:
                inputs = _real_inputs(program, batch, length, seed=batch)
                for name, want, got in zip(names, program.run(*inputs), run(*inputs), strict=True):
                    if want.dtype != got.dtype or not torch.equal(want, got):
                        found.append(f"{name} at batch {batch}, length {length}, opset {opset}")
        return found

    return compare


@pytest.fixture(scope="session")
def small_float() -> Program:
    """A network of two layers at stage FLOAT."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(8, 5)
    )
    return qc.capture(model.eval(), torch.zeros(2, 3, 8, 8))


@pytest.fixture(scope="session")
def small_data() -> list[torch.Tensor]:
    return list(torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(1)).split(4))


@pytest.fixture(scope="session")
def small_qdq(small_float: Program, small_data: Any) -> Program:
    return qc.quantize(small_float, small_data, passes="canonicalize,quantize{w=8,a=8}")


@pytest.fixture(scope="session")
def small_integer(small_float: Program, small_data: Any) -> Program:
    return qc.quantize(small_float, small_data)
