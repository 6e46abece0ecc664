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


def torch_float(model: str, image: np.ndarray, threads: int) -> Run:
    """Eager torch on a model given as a torch.export file."""
    import torch

    torch.set_num_threads(threads)
    module = torch.export.load(model).module()
    x = torch.from_numpy(image)

    def run() -> Any:
        with torch.inference_mode():
            return module(x)

    return run


def onnxruntime(model: str, image: np.ndarray, threads: int) -> Run:
    """onnxruntime's CPU provider with all graph optimizations, which is its default."""
    import onnxruntime as runtime

    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feeds = {session.get_inputs()[0].name: image}
    return lambda: session.run(None, feeds)


def openvino(model: str, image: np.ndarray, threads: int) -> Run:
    """OpenVINO's CPU plug-in, latency hint; f32 between the integer layers so that no row uses bf16 unawares."""
    import openvino as ov

    settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    compiled = ov.Core().compile_model(model, "CPU", settings)
    request = compiled.create_infer_request()
    return lambda: request.infer([image], share_inputs=True)


def qcompiler(model: str, image: np.ndarray, threads: int) -> Run:
    """A compiled artifact through the public API: float in, float out."""
    import torch

    import qcompiler as qc

    torch.set_num_threads(threads)
    module = qc.load(model, threads=threads)
    x = torch.from_numpy(image)
    return lambda: module(x)


ENGINES: dict[str, Callable[[str, np.ndarray, int], Run]] = {
    "torch": torch_float,
    "onnxruntime": onnxruntime,
    "openvino": openvino,
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
    image = np.load(configuration["image"])
    run = ENGINES[configuration["engine"]](configuration["model"], image, configuration["threads"])
    time_runs(run, configuration["warmup"])
    print(json.dumps({"ready": True}), file=replies, flush=True)
    for line in sys.stdin:
        print(json.dumps({"milliseconds": time_runs(run, json.loads(line)["runs"])}), file=replies, flush=True)


if __name__ == "__main__":
    main()
