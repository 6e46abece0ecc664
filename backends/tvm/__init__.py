"""Compiled kernels for x86-64 CPUs, generated through TVM. TVM itself is imported only to compile, and in child processes only."""

from __future__ import annotations

from collections.abc import Sequence

from qcompiler.backends.tvm import target as targets
from qcompiler.errors import ArtifactError, TargetError
from qcompiler.ir.program import Program
from qcompiler.pipeline.backend import CompiledProgram, Executable

LIBRARY, PLAN = "library.so", "plan.json"


class TvmBackend:
    """``qcompiler.pipeline.backend.Backend`` for the targets of ``target.TARGETS``."""

    name = "tvm"

    @property
    def version(self) -> str:
        from qcompiler.backends.tvm.build import generator_version

        return generator_version()

    def targets(self) -> Sequence[str]:
        return tuple(targets.TARGETS)

    def detect(self) -> str:
        return targets.detect()

    def available(self, target: str) -> str | None:
        return targets.available(target)

    def compile(self, program: Program, target: str, *, keep: Sequence[str] = (), time_limit: float = 60.0) -> CompiledProgram:
        """Members: the shared library and the plan that says how to feed it."""
        from qcompiler.backends.tvm.build import build_library
        from qcompiler.backends.tvm.plan import dumps
        from qcompiler.backends.tvm.planner import make_plan

        resolved = targets.resolve(target)
        plan = make_plan(program, resolved, keep)
        library = build_library(plan, time_limit)
        kernels = len({step.kernel for step in plan.steps})
        notes = (
            f"{len(plan.body)} steps, {kernels} distinct kernels",
            f"arena {plan.arena_size} bytes, parameters {plan.parameters_size} bytes",
            *plan.packed_weights(),
        )
        return CompiledProgram(resolved.name, {LIBRARY: library, PLAN: dumps(plan)}, notes)

    def load(self, program: Program, compiled: CompiledProgram, threads: int | None = None) -> Executable:
        """Raises TargetError where this machine cannot run the code, ArtifactError where members are missing or damaged."""
        from qcompiler.backends.tvm.plan import loads
        from qcompiler.backends.tvm.runtime import TvmExecutable

        reason = targets.available(compiled.target)
        if reason is not None:
            raise TargetError(f"{reason}: compile for '{self.detect()}' or 'native' instead")
        missing = [member for member in (LIBRARY, PLAN) if member not in compiled.members]
        if missing:
            raise ArtifactError(f"the compiled program lacks {', '.join(missing)}: compile it again")
        return TvmExecutable(program, loads(compiled.members[PLAN]), compiled.members[LIBRARY], threads)


backend = TvmBackend()
