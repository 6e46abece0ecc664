"""A model with its matrices in external data: made in a temporary folder and imported.

    python benchmarks/onnx_large.py --megabytes 2200

Prints the bytes of the matrices, the seconds of the import and the largest resident memory of the process before and after it. The matrices
are written one at a time, so that making the file does not count.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper

import qcompiler as qc
from qcompiler.ir import edit

# Sides of a matrix: 64 MiB of float32.
WIDTH = 4096


def write(path: Path, count: int) -> None:
    """``count`` products with matrices in a row; all matrices lie in one file beside the model."""
    size, data = WIDTH * WIDTH * 4, path.with_suffix(".data")
    random = np.random.default_rng(0)
    tensors, nodes = [], []
    with data.open("wb") as file:
        for position in range(count):
            file.write(random.standard_normal((WIDTH, WIDTH), np.float32).tobytes())
            tensor = TensorProto(name=f"w{position}", data_type=TensorProto.FLOAT, dims=[WIDTH, WIDTH], data_location=TensorProto.EXTERNAL)
            for key, value in {"location": data.name, "offset": position * size, "length": size}.items():
                tensor.external_data.add(key=key, value=str(value))
            tensors.append(tensor)
            nodes.append(helper.make_node("MatMul", [f"x{position}", tensor.name], [f"x{position + 1}"], f"product{position}"))
    ends = [helper.make_tensor_value_info(f"x{position}", TensorProto.FLOAT, ["N", WIDTH]) for position in (0, count)]
    graph = helper.make_graph(nodes, "large", ends[:1], ends[1:], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)


def peak() -> float:
    """The largest resident memory so far, in GB; Linux counts it in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=2200, help="size of all matrices, rounded up to whole ones of 67 MB")
    count = -(-parser.parse_args().megabytes * 1_000_000 // (WIDTH * WIDTH * 4))
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "large.onnx"
        write(path, count)
        before, start = peak(), time.perf_counter()
        program = qc.capture(path)
        seconds = time.perf_counter() - start
        products = sum(1 for _ in edit.calls(program.graph, torch.ops.aten.linear.default))
        size = count * WIDTH * WIDTH * 4 / 1e9
        print(f"{size:.2f} GB in {products} products: {seconds:.1f} s, {peak():.2f} GB at the peak, {before:.2f} GB before")


if __name__ == "__main__":
    main()
