"""One engine with one model in a process of its own, driven by lines of JSON: benchmarks/compare.py starts it and asks for rounds.

The first line on stdin configures it; every later line ``{"runs": n}`` asks for n inferences and is answered by
``{"milliseconds": [...]}``. Engines are imported late, so that each environment needs only its own.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

Run = Callable[[], Any]
Inputs = list[np.ndarray]


def torch_float(model: str, inputs: Inputs, threads: int) -> Run:
    """Eager torch on a model given as a torch.export file."""
    import torch

    torch.set_num_threads(threads)
    module = torch.export.load(model).module()
    tensors = [torch.from_numpy(value) for value in inputs]

    def run() -> Any:
        with torch.inference_mode():
            return module(*tensors)

    return run


def onnxruntime(model: str, inputs: Inputs, threads: int) -> Run:
    """onnxruntime's CPU provider with all graph optimizations, which is its default."""
    import onnxruntime as runtime

    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feeds = {port.name: value for port, value in zip(session.get_inputs(), inputs, strict=True)}
    return lambda: session.run(None, feeds)


def openvino(model: str, inputs: Inputs, threads: int) -> Run:
    """OpenVINO's CPU plug-in, latency hint; f32 between the integer layers so that the row does not use bf16 unawares."""
    return _openvino(model, inputs, threads, {"INFERENCE_PRECISION_HINT": "f32"})


def openvino_default(model: str, inputs: Inputs, threads: int) -> Run:
    """As ``openvino`` with its own choice of precision, which is bf16 where the CPU multiplies bf16."""
    return _openvino(model, inputs, threads, {})


def _openvino(model: str, inputs: Inputs, threads: int, hints: dict[str, str]) -> Run:
    import openvino as ov

    settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY", **hints}
    compiled = ov.Core().compile_model(model, "CPU", settings)
    request = compiled.create_infer_request()
    return lambda: request.infer(inputs, share_inputs=True)


def qcompiler(model: str, inputs: Inputs, threads: int) -> Run:
    """A compiled artifact through the public API: float (or token ids) in, float out."""
    import torch

    import qcompiler as qc

    torch.set_num_threads(threads)
    module = qc.load(model, threads=threads)
    tensors = [torch.from_numpy(value) for value in inputs]
    return lambda: module(*tensors)


ENGINES: dict[str, Callable[[str, Inputs, int], Run]] = {
    "torch": torch_float,
    "onnxruntime": onnxruntime,
    "openvino": openvino,
    "openvino-default": openvino_default,
    "qcompiler": qcompiler,
}


def time_runs(run: Run, runs: int) -> list[float]:
    """Milliseconds of each of ``runs`` inferences."""
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        run()
        times.append((time.perf_counter() - start) * 1e3)
    return times


def main() -> None:
    """Serve until stdin closes."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what engines print must not reach the protocol
    configuration = json.loads(sys.stdin.readline())
    with np.load(configuration["inputs"]) as stored:
        inputs = [stored[name] for name in sorted(stored.files)]
    run = ENGINES[configuration["engine"]](configuration["model"], inputs, configuration["threads"])
    time_runs(run, configuration["warmup"])
    print(json.dumps({"ready": True}), file=replies, flush=True)
    for line in sys.stdin:
        print(json.dumps({"milliseconds": time_runs(run, json.loads(line)["runs"])}), file=replies, flush=True)


if __name__ == "__main__":
    main()
