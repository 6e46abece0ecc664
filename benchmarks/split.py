"""Where the time of a compiled model goes: python benchmarks/split.py MODEL.qca [--batch N] [--size N] [--threads N] [--steps]

The time of each kind of kernel in one call on random inputs, the median of many runs; ``--steps`` lists every step with its nodes.
``--size``: the value of a dynamic size (its maximum where not given).
"""

from __future__ import annotations

import argparse

import torch

import qcompiler
from qcompiler.ir.program import ValueSpec
from qcompiler.ir.sizes import concrete_shape, dynamic_sizes
from qcompiler.measure import split


def main() -> None:
    """Print the table."""
    arguments = _arguments()
    module = qcompiler.load(arguments.artifact, arguments.threads)
    names = dynamic_sizes(module.program.inputs)
    values = dict.fromkeys(names, arguments.size) if arguments.size else {}
    shapes = [concrete_shape(spec.shape, arguments.batch, values) for spec in module.program.inputs]
    inputs = [random_input(spec, shape) for spec, shape in zip(module.program.inputs, shapes, strict=True)]
    steps = module.profile(*inputs, runs=arguments.runs)
    print(f"{arguments.artifact}, target {module.target}, {arguments.threads} thread(s), inputs {', '.join(map(str, shapes))}")
    for share in split(steps):
        print(f"{share.seconds * 1e6:10.1f} us {share.fraction:6.1%}  {share.kind} ({share.steps})")
    print(f"{sum(step.seconds for step in steps) * 1e6:10.1f} us  all {len(steps)} steps")
    if arguments.steps:
        for step in steps:
            print(f"{step.seconds * 1e6:10.1f} us  {step.kernel}: {', '.join(step.nodes)}")


def random_input(spec: ValueSpec, shape: tuple[int, ...]) -> torch.Tensor:
    """Normal numbers, or integers in the range that the input declares."""
    if spec.dtype.is_floating_point:
        return torch.randn(shape).to(spec.dtype)
    low, high = (spec.range.low, spec.range.high) if spec.range is not None else (0, 1)
    return torch.randint(low, high + 1, shape).to(spec.dtype)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--size", type=int)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--steps", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
