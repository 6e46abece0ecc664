"""Node tests of the package ``onnx``: each is imported, run at stage FLOAT and compared with the output that it expects.

``node_tests.yaml`` lists those that do not pass; ``python tests/conformance/node_tests.py`` writes it anew. Not run are the tests named
``…_expanded``: bodies of ONNX's functions, written out with ops that have tests of their own.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from onnx import ModelProto, TensorProto, numpy_helper
from onnx.backend.test.case.test_case import TestCase
from onnx.backend.test.loader import load_model_tests

from qcompiler.capture import capture
from qcompiler.errors import QCompilerError
from qcompiler.ir.program import Program

_LIST = Path(__file__).with_name("node_tests.yaml")

# Ops that stage FLOAT has no place for, but that a program may hold as float islands: the importer must get them right too.
ISLANDS = (
    "aten.acos.default",
    "aten.acosh.default",
    "aten.add.Scalar",
    "aten.amin.default",
    "aten.argsort.stable",
    "aten.asin.default",
    "aten.asinh.default",
    "aten.atan.default",
    "aten.atanh.default",
    "aten.avg_pool3d.default",
    "aten.bitwise_left_shift.Tensor",
    "aten.bitwise_not.default",
    "aten.bitwise_right_shift.Tensor",
    "aten.bitwise_xor.Tensor",
    "aten.ceil.default",
    "aten.conv3d.default",
    "aten.conv_transpose3d.input",
    "aten.cos.default",
    "aten.cosh.default",
    "aten.cumprod.default",
    "aten.cumsum.default",
    "aten.diagonal.default",
    "aten.div.Tensor_mode",
    "aten.floor.default",
    "aten.fmod.Tensor",
    "aten.gather.default",
    "aten.grid_sampler.default",
    "aten.index_put.default",
    "aten.isinf.default",
    "aten.isnan.default",
    "aten.logical_xor.default",
    "aten.max_pool3d.default",
    "aten.pow.Tensor_Tensor",
    "aten.prod.dim_int",
    "aten.remainder.Tensor",
    "aten.round.default",
    "aten.scatter.src",
    "aten.scatter_reduce.two",
    "aten.sign.default",
    "aten.sin.default",
    "aten.sinh.default",
    "aten.tan.default",
)


def cases() -> dict[str, TestCase]:
    """All node tests by name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {case.name: case for case in load_model_tests(kind="node") if "_expanded" not in case.name}


# Inputs of these ops that say what is computed (axes, shapes, counts, scales), not on what: a program has them fixed.
_PARAMETERS = {
    **dict.fromkeys(("Reshape", "Expand", "Tile", "Unsqueeze", "Squeeze", "Split", "SplitToSequence", "CenterCropPad", "Trilu"), (1,)),
    **dict.fromkeys(("CumSum", "CumProd", "TopK", "Compress", "Upsample", "ReverseSequence", "BlackmanWindow", "HannWindow"), (1,)),
    **{f"Reduce{name}": (1,) for name in ("Sum", "Mean", "Max", "Min", "Prod", "L1", "L2", "LogSum", "LogSumExp", "SumSquare")},
    **dict.fromkeys(("ConstantOfShape", "BlackmanWindow", "HannWindow", "HammingWindow", "If"), (0,)),
    **{"Range": (0, 1, 2), "Slice": (1, 2, 3, 4), "Pad": (1, 2, 3), "Resize": (1, 2, 3), "OneHot": (1, 2), "Dropout": (1, 2)},
    **{"QuantizeLinear": (1, 2), "DequantizeLinear": (1, 2), "ConvInteger": (2, 3), "MatMulInteger": (2, 3)},
    **{"QLinearMatMul": (1, 2, 4, 5, 6, 7), "QLinearConv": (1, 2, 3, 4, 5, 6, 7)},
    **{"RNN": (4,), "GRU": (4,), "LSTM": (4,), "Loop": (0, 1), "Clip": (1, 2), "AffineGrid": (1,), "Col2Im": (1, 2)},
}


def _with_known_parameters(case: TestCase) -> tuple[ModelProto, list[int]]:
    """The test's model with such inputs as initializers, and the positions of those inputs that are left."""
    model = ModelProto()
    model.CopyFrom(case.model)
    fixed = {node.input[i] for node in model.graph.node for i in _PARAMETERS.get(node.op_type, ()) if i < len(node.input)} - {""}
    values = dict(zip((given.name for given in model.graph.input), case.data_sets[0][0], strict=False))
    kept = [position for position, given in enumerate(case.model.graph.input) if given.name not in fixed or given.name not in values]
    for name in sorted(fixed & set(values)):
        value = values[name]
        model.graph.initializer.append(value if isinstance(value, TensorProto) else numpy_helper.from_array(np.asarray(value), name))
        model.graph.initializer[-1].name = name
    del model.graph.input[:]
    model.graph.input.extend(case.model.graph.input[position] for position in kept)
    return model, kept


def failure(case: TestCase) -> str | None:
    """Why a test does not pass, in one line; None if it does."""
    try:
        model, kept = _with_known_parameters(case)
        program = capture(model, dynamic_batch=False, allow_float=ISLANDS)
    except QCompilerError as error:
        return str(error)
    for inputs, outputs in case.data_sets:
        difference = _difference(program, [inputs[position] for position in kept if position < len(inputs)], outputs, case)
        if difference is not None:
            return difference
    return None


def _difference(program: Program, inputs: list[Any], outputs: list[Any], case: TestCase) -> str | None:
    try:
        results = program.run(*(_given(value, spec.dtype) for value, spec in zip(inputs, program.inputs, strict=False)))
    except (RuntimeError, IndexError, ValueError, TypeError) as error:
        return f"the program fails: {type(error).__name__}: {str(error).splitlines()[0]}"
    for result, expected in zip(results, outputs, strict=True):
        found = _mismatch(result, _array(expected), case)
        if found is not None:
            return found
    return None


def _given(value: Any, dtype: torch.dtype) -> torch.Tensor:
    """An input of the test in the type that the program takes: float32 for every float."""
    array = _array(value)
    if array.dtype.kind in "fV":
        array = array.astype(np.float32)
    return torch.from_numpy(np.array(array)).to(dtype)


def _array(value: Any) -> np.ndarray:
    return numpy_helper.to_array(value) if isinstance(value, TensorProto) else np.asarray(value)


def _mismatch(result: torch.Tensor, expected: np.ndarray, case: TestCase) -> str | None:
    if tuple(result.shape) != expected.shape:
        return f"the result has the shape {list(result.shape)}, expected {list(expected.shape)}"
    if expected.dtype.kind in "fV":
        expected = expected.astype(np.float32)
        close = np.allclose(result.to(torch.float32).numpy(), expected, case.rtol, case.atol, equal_nan=True)
        return None if close else "the result differs"
    if expected.dtype.kind in "iu":
        return None if np.array_equal(result.to(torch.int64).numpy(), expected.astype(np.int64)) else "the result differs"
    return None if np.array_equal(result.numpy(), expected) else "the result differs"


def expected_failures() -> dict[str, Group]:
    """The tests that do not pass, by name, each with the group that says why."""
    return {name: group for group in groups() for name in group.tests}


@dataclass(frozen=True)
class Group:
    """Tests that fail for one ``reason``; their errors match the regular expression ``message``."""

    reason: str
    message: str
    tests: tuple[str, ...]


def groups() -> list[Group]:
    """The groups of ``node_tests.yaml``."""
    found = yaml.safe_load(_LIST.read_text())
    return [Group(entry["reason"], entry["message"], tuple(entry["tests"] or ())) for entry in found]


def write() -> None:
    """Run every test and write the list anew, with the reasons that it has: each failure goes to the first group that its error matches."""
    known, failures = groups(), {name: failure(case) for name, case in cases().items()}
    chosen: dict[str, list[str]] = {group.reason: [] for group in known}
    for name, found in failures.items():
        if found is not None:
            matching = [group.reason for group in known if re.search(group.message, f"{name}: {found}")]
            if not matching:
                raise SystemExit(f"{name} fails for a reason that the list does not have: {found}")
            chosen[matching[0]].append(name)
    entries = [{"reason": group.reason, "message": group.message, "tests": chosen[group.reason]} for group in known]
    _LIST.write_text(yaml.safe_dump([entry for entry in entries if entry["tests"]], sort_keys=False, width=140))
    for entry in entries:
        print(len(entry["tests"]), entry["reason"])
    print(sum(found is None for found in failures.values()), "pass")


if __name__ == "__main__":
    write()
