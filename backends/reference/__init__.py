"""The reference: the program itself, run in torch. Every other back end must give the same integers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import fx

from qcompiler.errors import ArtifactError, QCompilerError, UnknownNameError
from qcompiler.ir import edit
from qcompiler.ir.program import Program
from qcompiler.pipeline.backend import CompiledProgram, Executable

KEPT = "kept.json"


class ReferenceBackend:
    """``qcompiler.pipeline.backend.Backend`` with the one target ``reference``, which runs wherever torch does."""

    name = "reference"

    def targets(self) -> Sequence[str]:
        return (self.name,)

    def detect(self) -> str:
        return self.name

    def available(self, target: str) -> str | None:
        if target != self.name:
            raise UnknownNameError("target", target, self.targets())
        return None

    def compile(self, program: Program, target: str, *, keep: Sequence[str] = (), time_limit: float = 60.0) -> CompiledProgram:
        """There is no code to generate: the one member names the kept nodes."""
        self.available(target)
        known = {node.name for node in program.graph.nodes}
        unknown = next((name for name in keep if name not in known), None)
        if unknown is not None:
            raise UnknownNameError("node", unknown, known)
        return CompiledProgram(self.name, {KEPT: json.dumps(list(keep)).encode()})

    def load(self, program: Program, compiled: CompiledProgram, threads: int | None = None) -> Executable:
        if KEPT not in compiled.members:
            raise ArtifactError(f"the compiled program lacks {KEPT}: compile it again")
        return ReferenceExecutable(program, json.loads(compiled.members[KEPT]), threads)


class ReferenceExecutable:
    """Runs the graph with the kept nodes as additional outputs."""

    def __init__(self, program: Program, kept: Sequence[str], threads: int | None) -> None:
        self._program, self._outputs = program, len(program.outputs)
        self._graph_module = _with_outputs(program, kept)
        self._threads: int | None = None
        if threads is not None:
            self.set_threads(threads)

    def run(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        results = self.run_integer(*self._program.quantize_inputs(inputs))
        own, kept = results[: self._outputs], results[self._outputs :]
        return (*self._program.dequantize_outputs(own), *kept)

    def run_integer(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        for value, spec in zip(inputs, self._program.inputs, strict=True):
            spec.check_range(value)
        with torch.no_grad(), _torch_threads(self._threads):
            return tuple(self._graph_module(*inputs))

    def set_threads(self, threads: int) -> None:
        """Holds for the runs of this program only, though torch's setting is one for the process."""
        if threads < 1:
            raise QCompilerError(f"threads must be at least 1, got {threads}")
        self._threads = threads


def _with_outputs(program: Program, kept: Sequence[str]) -> fx.GraphModule:
    copy = edit.copy(program)
    nodes = {node.name: node for node in copy.graph.nodes}
    output = copy.graph.output_node()
    own = output.args[0]
    assert isinstance(own, tuple)  # the convention of a program
    output.args = ((*own, *(nodes[name] for name in kept)),)
    edit.finish(copy.graph_module)
    return copy.graph_module


@contextmanager
def _torch_threads(threads: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


backend = ReferenceBackend()
