"""The C driver of a program: straight-line calls of its kernels on fixed offsets, in a loop over the batch."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from qcompiler.backends.tvm.kernels import ITEM_SIZE, ElementwiseKernel, Kernel
from qcompiler.backends.tvm.plan import Plan, Pointer, Port, Step, encode

EXPORTS = "{ global: qc_run; qc_run_integer; qc_set_threads; local: *; };\n"
_FIXED_PART = Path(__file__).with_name("driver.c")


def symbol_of(kernel: Kernel) -> str:
    """Name of a kernel's function: what it does, and a hash of its whole specification."""
    words = type(kernel.operation if isinstance(kernel, ElementwiseKernel) else kernel).__name__.removesuffix("Kernel")
    digest = hashlib.sha256(json.dumps(encode(kernel), sort_keys=True).encode()).hexdigest()
    return f"{re.sub(r'(?<!^)(?=[A-Z])', '_', words).lower()}_{digest[:16]}"


def driver_source(plan: Plan) -> str:
    """C source; the same plan gives the same text."""
    kernels = {symbol_of(step.kernel): step for step in plan.steps}
    declarations = [f"int {symbol}({', '.join(['void *'] * len(kernels[symbol].pointers))});" for symbol in sorted(kernels)]
    return "\n".join(
        [
            _FIXED_PART.read_text(),
            *declarations,
            _section("run_body", "char *arena, char *parameters", plan.body),
            _entry(plan, "qc_run", plan.quantize, plan.dequantize, "outer"),
            _entry(plan, "qc_run_integer", plan.load, plan.store, "inner"),
        ]
    )


def sample_bytes(port: Port, border: str) -> int:
    """Bytes of one sample at the float border (``outer``) or the integer one (``inner``)."""
    return math.prod(port.sample_shape) * ITEM_SIZE[port.outer if border == "outer" else port.inner]


def _section(name: str, parameters: str, steps: Sequence[Step]) -> str:
    return f"\nstatic int {name}({parameters})\n{{\n{_calls(steps)}    return 0;\n}}"


def _calls(steps: Iterable[Step]) -> str:
    return "".join(
        f"    if ({symbol_of(step.kernel)}({', '.join(map(_address, step.pointers))})) /* {', '.join(step.nodes)} */\n        return -1;\n"
        for step in steps
    )


def _address(pointer: Pointer) -> str:
    if pointer.space in ("input", "output"):
        return f"{pointer.space}s[{pointer.index}] + {pointer.offset}"
    return f"{pointer.space} + {pointer.offset}"


def _entry(plan: Plan, name: str, before: Sequence[Step], after: Sequence[Step], border: str) -> str:
    pointers = "char *const *inputs, char *const *outputs"
    advance = [
        f"        {space}[{index}] = all_{space}[{index}] + sample * {sample_bytes(port, border)};"
        for space, ports in (("inputs", plan.inputs), ("outputs", plan.outputs))
        for index, port in enumerate(ports)
    ]
    return "\n".join(
        [
            _section(f"{name}_before", f"char *arena, char *parameters, {pointers}", before),
            _section(f"{name}_after", f"char *arena, char *parameters, {pointers}", after),
            f"\nint {name}(char *arena, char *parameters, char *const *all_inputs, char *const *all_outputs, int64_t batch)",
            "{",
            f"    char *inputs[{max(len(plan.inputs), 1)}], *outputs[{max(len(plan.outputs), 1)}];",
            "    for (int64_t sample = 0; sample < batch; sample++) {",
            *advance,
            f"        if ({name}_before(arena, parameters, inputs, outputs) || run_body(arena, parameters)",
            f"            || {name}_after(arena, parameters, inputs, outputs))",
            "            return -1;",
            "    }",
            "    return 0;",
            "}",
        ]
    )
