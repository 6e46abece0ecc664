"""A child process that compiles kernels: one request a line on standard input, one answer a line on standard output.

It lives apart so that a kernel on which LLVM hangs can be killed. Request: ``{"kernel", "target", "symbol", "path"}``; the object
is written to ``path``. Answer: ``{"error": null}`` or the message. The first line says that TVM is imported. A request comes after the
answer to the one before; where none comes for a while, the process ends.
"""

from __future__ import annotations

import json
import os
import select
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from qcompiler.backends.tvm.kernels import (
    AttentionKernel,
    ConvolutionKernel,
    HadamardKernel,
    Kernel,
    LinearHadamardKernel,
    MatrixProductKernel,
    NormalizationKernel,
)
from qcompiler.backends.tvm.plan import decode
from qcompiler.backends.tvm.target import KernelTarget, resolve

if TYPE_CHECKING:
    from tvm.tirx import PrimFunc

_LONGEST_SILENCE = 90.0  # seconds; longer than ``build`` keeps an idle worker


def emit(kernel: Kernel, target: KernelTarget, symbol: str) -> PrimFunc:
    """The TIR of any kernel."""
    if isinstance(kernel, ConvolutionKernel):
        from qcompiler.backends.tvm import templates

        return templates.emit(kernel, target.name, symbol)
    if isinstance(kernel, NormalizationKernel):
        from qcompiler.backends.tvm.templates import normalization

        return normalization.emit(kernel, target)
    if isinstance(kernel, MatrixProductKernel):
        from qcompiler.backends.tvm.templates import product

        return product.emit(kernel, target.name)
    if isinstance(kernel, AttentionKernel):
        from qcompiler.backends.tvm.templates import attention

        return attention.emit(kernel, target.name)
    if isinstance(kernel, HadamardKernel):
        from qcompiler.backends.tvm.templates import hadamard

        return hadamard.emit(kernel, target)
    if isinstance(kernel, LinearHadamardKernel):
        from qcompiler.backends.tvm.templates import linear_hadamard

        return linear_hadamard.emit(kernel, target)
    from qcompiler.backends.tvm import generic

    return generic.emit(kernel, target)


def compile_kernel(kernel: Kernel, target: KernelTarget, symbol: str) -> bytes:
    """The object of any kernel."""
    from qcompiler.backends.tvm.codegen import build_object

    return build_object(emit(kernel, target, symbol), target, symbol)


def main() -> None:
    """Serve until standard input ends or is silent."""
    # Whatever TVM or LLVM print must not get between the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    from qcompiler.backends.tvm import codegen, generic, templates  # noqa: F401  # imported before time is taken

    print(json.dumps({"error": None}), file=answers, flush=True)
    while select.select([sys.stdin], [], [], _LONGEST_SILENCE)[0] and (line := sys.stdin.readline()):
        request = json.loads(line)
        try:
            data = compile_kernel(decode(request["kernel"]), resolve(request["target"]), request["symbol"])
            Path(request["path"]).write_bytes(data)
            error = None
        except Exception as failure:  # the parent names the kernel and raises
            error = f"{type(failure).__name__}: {failure}"
        print(json.dumps({"error": error}), file=answers, flush=True)


if __name__ == "__main__":
    main()
