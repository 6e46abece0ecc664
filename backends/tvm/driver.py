"""The C driver of a program: straight-line calls of its kernels on fixed offsets, in a loop over the batch.

Steps are numbered in the order of ``Plan.steps``; that is where their times are added up while a profile is taken.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterable
from pathlib import Path

from qcompiler.backends.tvm.kernels import ITEM_SIZE, ElementwiseKernel, Extent, Kernel, RowKernel
from qcompiler.backends.tvm.plan import Plan, Pointer, Port, Step, encode

EXPORTS = "{ global: qc_run; qc_run_integer; qc_set_threads; qc_set_profile; local: *; };\n"
_SYMBOL = "extents[0]"
_FIXED_PART = Path(__file__).with_name("driver.c")


def kind_of(kernel: Kernel) -> str:
    """What a kernel does, in a word or two."""
    words = type(kernel.operation if isinstance(kernel, ElementwiseKernel | RowKernel) else kernel).__name__.removesuffix("Kernel")
    return re.sub(r"(?<!^)(?=[A-Z])", "_", words).lower()


def symbol_of(kernel: Kernel) -> str:
    """Name of a kernel's function: what it does, and a hash of its whole specification."""
    digest = hashlib.sha256(json.dumps(encode(kernel), sort_keys=True).encode()).hexdigest()
    return f"{kind_of(kernel)}_{digest[:16]}"


def driver_source(plan: Plan) -> str:
    """C source; the same plan gives the same text."""
    kernels = {symbol_of(step.kernel): step for step in plan.steps}
    declarations = [f"int {symbol}({', '.join(['void *'] * len(kernels[symbol].pointers))});" for symbol in sorted(kernels)]
    numbers = itertools.count()
    quantize, load, body, dequantize, store = (
        _calls(zip(steps, numbers, strict=False)) for steps in (plan.quantize, plan.load, plan.body, plan.dequantize, plan.store)
    )
    return "\n".join(
        [
            _FIXED_PART.read_text(),
            *declarations,
            _section("run_body", "char *arena, char *parameters", body),
            _entry(plan, "qc_run", quantize, dequantize, "outer"),
            _entry(plan, "qc_run_integer", load, store, "inner"),
        ]
    )


def sample_bytes(port: Port, border: str) -> str:
    """C expression for the bytes of one sample at the float border (``outer``) or the integer one (``inner``)."""
    numbers = (size for size in port.sample_shape if isinstance(size, int))
    factors = [str(ITEM_SIZE[port.outer if border == "outer" else port.inner] * math.prod(numbers))]
    factors += [f"({_SYMBOL} + {size.offset})" for size in port.sample_shape if isinstance(size, Extent)]
    return " * ".join(factors)


def _section(name: str, parameters: str, calls: str) -> str:
    return f"\nstatic int {name}({parameters})\n{{\n{calls}    return 0;\n}}"


def _calls(steps: Iterable[tuple[Step, int]]) -> str:
    return "".join(
        f"    STEP({number}, {symbol_of(step.kernel)}({', '.join(map(_address, step.pointers))})) /* {', '.join(step.nodes)} */\n"
        for step, number in steps
    )


def _address(pointer: Pointer) -> str:
    if pointer.space == "extents":
        return "extents"
    if pointer.space in ("input", "output"):
        return f"{pointer.space}s[{pointer.index}] + {pointer.offset}"
    return f"{pointer.space} + {pointer.offset}"


def _entry(plan: Plan, name: str, before: str, after: str, border: str) -> str:
    pointers, all_pointers = (f"char *const *{of}inputs, char *const *{of}outputs" for of in ("", "all_"))
    advance = [
        f"        {space}[{index}] = all_{space}[{index}] + sample * ({sample_bytes(port, border)});"
        for space, ports in (("inputs", plan.inputs), ("outputs", plan.outputs))
        for index, port in enumerate(ports)
    ]
    return "\n".join(
        [
            _section(f"{name}_before", f"char *arena, char *parameters, {pointers}", before),
            _section(f"{name}_after", f"char *arena, char *parameters, {pointers}", after),
            f"\nint {name}(char *arena, char *parameters, {all_pointers}, int64_t batch, int64_t symbol)",
            "{",
            f"    char *inputs[{max(len(plan.inputs), 1)}], *outputs[{max(len(plan.outputs), 1)}];",
            f"    {_SYMBOL} = (int32_t)symbol;",
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
