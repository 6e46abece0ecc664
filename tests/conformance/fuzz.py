"""Damaged ONNX files: capture ends with a program or with a QCompilerError, and soon.

    python tests/conformance/fuzz.py --count 10000

Each variant is made from a seed: bytes of the file are changed, cut out, doubled or cut off, or one field of the graph is (a name, a size,
a type, an attribute, an edge). A variant that ends otherwise is printed with its seed.
"""

from __future__ import annotations

import argparse
import collections
import logging
import random
import signal
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

import numpy as np
import onnx
import torch
from google.protobuf.message import DecodeError
from onnx import ModelProto, TensorProto, helper, numpy_helper

from qcompiler.capture import capture
from qcompiler.errors import QCompilerError

# A variant that takes longer hangs.
SECONDS = 20


def _weights(seed: int, **shapes: Sequence[int]) -> list[TensorProto]:
    random_numbers = np.random.default_rng(seed)
    return [numpy_helper.from_array(random_numbers.standard_normal(shape).astype(np.float32), name) for name, shape in shapes.items()]


def _model(nodes: list[onnx.NodeProto], shape: list[int | str], result: list[int | str], initializers: list[TensorProto]) -> ModelProto:
    graph = helper.make_graph(
        nodes,
        "fuzzed",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, result)],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def convolutional() -> ModelProto:
    """Convolution, batch norm, pooling, a linear layer."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "conv", pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("BatchNormalization", ["a", "s", "b", "b", "v"], ["n"], "norm"),
        helper.make_node("Relu", ["n"], ["r"], "relu"),
        helper.make_node("MaxPool", ["r"], ["p"], "pool", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
        helper.make_node("GlobalAveragePool", ["p"], ["g"], "mean"),
        helper.make_node("Flatten", ["g"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "c", "d"], ["y"], "head", transB=1),
    ]
    return _model(nodes, ["N", 3, 12, 12], ["N", 5], _weights(0, w=(4, 3, 3, 3), s=(4,), b=(4,), v=(4,), c=(5, 4), d=(5,)))


def attention() -> ModelProto:
    """Layer norm, a product of two computed values, softmax, GELU; shapes by arithmetic."""
    nodes = [
        helper.make_node("LayerNormalization", ["x", "s", "b"], ["n"], "norm"),
        helper.make_node("MatMul", ["n", "q"], ["queries"], "queries"),
        helper.make_node("Transpose", ["n"], ["t"], "keys", perm=[0, 2, 1]),
        helper.make_node("MatMul", ["queries", "t"], ["scores"], "scores"),
        helper.make_node("Softmax", ["scores"], ["p"], "softmax", axis=-1),
        helper.make_node("MatMul", ["p", "n"], ["m"], "values"),
        helper.make_node("Shape", ["x"], ["shape"], "shape"),
        helper.make_node("Gather", ["shape", "zero"], ["batch"], "batch"),
        helper.make_node("Concat", ["batch", "rest"], ["wanted"], "wanted", axis=0),
        helper.make_node("Reshape", ["m", "wanted"], ["r"], "reshape"),
        helper.make_node("Slice", ["r", "zero", "two", "one"], ["y"], "slice"),
    ]
    constants = {"zero": [0], "one": [1], "two": [20], "rest": [-1]}
    whole = [numpy_helper.from_array(np.array(value, dtype=np.int64), name) for name, value in constants.items()]
    return _model(nodes, ["N", 4, 8], ["N", "w"], [*_weights(1, s=(8,), b=(8,), q=(8, 8)), *whole])


def branching() -> ModelProto:
    """If with a known condition, resize, padding, split, a loop of the shape's arithmetic."""
    branches = [
        helper.make_graph(
            [helper.make_node(op, ["x"], [f"{op}_result"], f"{op}_branch")],
            op,
            [],
            [helper.make_tensor_value_info(f"{op}_result", 1, ["N", 2, 4, 4])],
        )
        for op in ("Sigmoid", "Tanh")
    ]
    nodes = [
        helper.make_node("Equal", ["k", "k"], ["condition"], "equal"),
        helper.make_node("If", ["condition"], ["i"], "if", then_branch=branches[0], else_branch=branches[1]),
        helper.make_node("Resize", ["i", "", "scales"], ["z"], "resize", mode="linear"),
        helper.make_node("Pad", ["z", "pads"], ["p"], "pad", mode="reflect"),
        helper.make_node("Split", ["p"], ["left", "right"], "split", axis=1, num_outputs=2),
        helper.make_node("Tile", ["left", "repeats"], ["t"], "tile"),
        helper.make_node("ReduceMean", ["t", "axes"], ["m"], "mean", keepdims=0),
        helper.make_node("Expand", ["bias", "two"], ["e"], "expand"),
        helper.make_node("Add", ["m", "e"], ["y"], "add"),
    ]
    constants = {"k": 3, "pads": [0, 0, 1, 1, 0, 0, 1, 1], "repeats": [1, 2, 1, 1], "axes": [2, 3], "two": [2]}
    whole = [numpy_helper.from_array(np.array(value, dtype=np.int64), name) for name, value in constants.items()]
    scales = numpy_helper.from_array(np.array([1, 1, 2, 2], dtype=np.float32), "scales")
    return _model(nodes, ["N", 2, 4, 4], ["N", 2], [scales, *_weights(2, bias=(1,)), *whole])


MODELS: tuple[Callable[[], ModelProto], ...] = (convolutional, attention, branching)
_NUMBERS = (-(2**63), -(2**31), -7, -1, 0, 1, 2, 3, 5, 17, 1 << 20, 1 << 31, 1 << 40, 2**63 - 1)
_OPS = (
    "Add",
    "Conv",
    "Relu",
    "Reshape",
    "Gather",
    "Slice",
    "Concat",
    "Softmax",
    "MatMul",
    "Loop",
    "Scan",
    "If",
    "Nonsense",
    "Cast",
    "Range",
)


def variant(seed: int) -> ModelProto | bytes:
    """A damaged model; its bytes, if they are no protobuf any more."""
    chance = random.Random(seed)
    model = MODELS[seed % len(MODELS)]()
    for _ in range(chance.choice((1, 1, 2, 4))):
        if chance.random() < 0.3:
            damaged = _damaged(model.SerializeToString(), chance)
            model = ModelProto()
            try:
                model.ParseFromString(damaged)
            except DecodeError:
                return damaged
        else:
            _change(model, chance)
    return model


def _damaged(data: bytes, chance: random.Random) -> bytes:
    place, length = chance.randrange(max(1, len(data))), chance.choice((1, 1, 2, 8, 64))
    match chance.randrange(4):
        case 0:
            return data[:place] + bytes(chance.randrange(256) for _ in range(length)) + data[place + length :]
        case 1:
            return data[:place] + data[place + length :]
        case 2:
            return data[: place + length] + data[place:]
    return data[:place]


def _change(model: ModelProto, chance: random.Random) -> None:
    graph = model.graph
    if not graph.node:
        return
    node = chance.choice(graph.node)
    match chance.randrange(9):
        case 0:
            node.op_type = chance.choice(_OPS)
        case 1 if node.input:
            node.input[chance.randrange(len(node.input))] = chance.choice(
                [name for other in graph.node for name in other.output] + ["", "x"]
            )
        case 2 if node.output:
            node.output[chance.randrange(len(node.output))] = chance.choice(["", "x", "y", "other"])
        case 3 if node.attribute:
            _change_attribute(chance.choice(node.attribute), chance)
        case 4 if graph.initializer:
            _change_tensor(chance.choice(graph.initializer), chance)
        case 5 | 6 if graph.input:
            _change_input(graph.input[0].type.tensor_type, chance)
        case 7:
            del graph.node[chance.randrange(len(graph.node))]
        case _ if model.opset_import:
            model.opset_import[0].version = chance.choice((-1, 0, 6, 7, 9, 11, 13, 17, 21, 28, 29, 1 << 40))


def _change_input(tensor: onnx.TypeProto.Tensor, chance: random.Random) -> None:
    if tensor.shape.dim and chance.random() < 0.5:
        chance.choice(tensor.shape.dim).dim_value = chance.choice(_NUMBERS)
    else:
        tensor.elem_type = chance.randrange(26)


def _change_attribute(attribute: onnx.AttributeProto, chance: random.Random) -> None:
    if attribute.ints:
        attribute.ints[chance.randrange(len(attribute.ints))] = chance.choice(_NUMBERS)
    elif attribute.type == onnx.AttributeProto.INT:
        attribute.i = chance.choice(_NUMBERS)
    elif attribute.type == onnx.AttributeProto.STRING:
        attribute.s = chance.choice((b"", b"edge", b"cubic", b"\xff\xfe", b"SAME_UPPER"))
    else:
        attribute.type = chance.randrange(12)


def _change_tensor(tensor: TensorProto, chance: random.Random) -> None:
    if chance.random() < 0.4 and tensor.data_type == TensorProto.INT64:
        values = np.array(numpy_helper.to_array(tensor))
        values.reshape(-1)[chance.randrange(values.size)] = chance.choice(_NUMBERS)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    elif chance.random() < 0.5 and tensor.dims:
        tensor.dims[chance.randrange(len(tensor.dims))] = chance.choice(_NUMBERS)
    else:
        tensor.data_type = chance.randrange(26)


class HangError(Exception):
    """A variant takes too long."""


def _hangs(signal_number: int, frame: FrameType | None) -> None:
    raise HangError


def outcome(seed: int, folder: Path) -> str:
    """``program``, the class of a QCompilerError, or ``WRONG: …`` with anything else."""
    try:
        model: ModelProto | Path | bytes = variant(seed)
    except (ValueError, TypeError, IndexError, KeyError, AttributeError):
        return "no variant"
    if isinstance(model, bytes):
        path = folder / "damaged.onnx"
        path.write_bytes(model)
        model = path
    previous = signal.signal(signal.SIGALRM, _hangs)
    signal.alarm(SECONDS)
    try:
        capture(model)
    except QCompilerError as error:
        one_line = "\n" not in str(error) and str(error).strip()
        return type(error).__name__ if one_line else f"WRONG: several lines: {error}"
    except BaseException as error:  # that is what is looked for
        last = traceback.extract_tb(error.__traceback__)[-1]
        return f"WRONG: {type(error).__name__}: {str(error)[:120]} at {last.filename}:{last.lineno}"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
    return "program"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--start", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    outcomes: collections.Counter[str] = collections.Counter()
    began = time.time()
    folder = Path(tempfile.mkdtemp())
    for seed in range(arguments.start, arguments.start + arguments.count):
        found = outcome(seed, folder)
        outcomes[found.partition(":")[0]] += 1
        if found.startswith("WRONG"):
            print(f"seed {seed}: {found}", flush=True)
    print(f"{arguments.count} variants from {arguments.start} in {time.time() - began:.0f} s: {dict(outcomes)}")


if __name__ == "__main__":
    main()
