"""ONNX models in a few lines."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

Make = Callable[..., onnx.ModelProto]


@pytest.fixture
def make() -> Make:
    """``make(nodes, inputs={"x": ["N", 3]}, outputs={"y": ["N", "k"]}, constants={"w": array})`` gives a model of float32 tensors."""

    def made(
        nodes: Sequence[onnx.NodeProto],
        inputs: Mapping[str, Sequence[int | str | None]],
        outputs: Mapping[str, Sequence[int | str | None]],
        constants: Mapping[str, object] | None = None,
        opset: int = 18,
        types: Mapping[str, int] | None = None,
        **others: int,
    ) -> onnx.ModelProto:
        def info(name: str, shape: Sequence[int | str | None]) -> onnx.ValueInfoProto:
            return helper.make_tensor_value_info(name, (types or {}).get(name, TensorProto.FLOAT), shape)

        graph = helper.make_graph(
            list(nodes),
            "model",
            [info(name, shape) for name, shape in inputs.items()],
            [info(name, shape) for name, shape in outputs.items()],
            [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()],
        )
        opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, version) for domain, version in others.items())]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8)

    return made
