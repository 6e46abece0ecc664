"""What the core asks of a back end. Back ends are found through the entry-point group ``qcompiler.backends``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from qcompiler.ir.program import Program
    from qcompiler.ir.types import Stage


@dataclass(frozen=True)
class CompiledProgram:
    """What a back end makes of an INTEGER program: files for the artifact, by member name (e.g. ``library.so``, ``plan.json``)."""

    target: str
    members: Mapping[str, bytes]
    notes: tuple[str, ...] = field(default=())


@dataclass(frozen=True)
class StepTime:
    """How long one call of a kernel takes: what kind of kernel, its name, and the nodes that it computes."""

    kind: str
    kernel: str
    nodes: tuple[str, ...]
    seconds: float


class Executable(Protocol):
    """A loaded CompiledProgram. Never touches the compiler: the runtime is enough."""

    def run_integer(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Integers in, integers out, equal to ``Program.run_integer``. Raises QCompilerError where one lies outside its input's range."""

    def run(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Floats in, floats out: quantizes and dequantizes at the border with the formulas of ``arithmetic``."""

    def set_threads(self, threads: int) -> None: ...


@runtime_checkable
class Profiler(Protocol):
    """What an Executable may have besides."""

    def profile(self, *inputs: torch.Tensor, runs: int = 10) -> tuple[StepTime, ...]:
        """Median time of each step of ``run`` on these inputs, in the order of execution."""


@runtime_checkable
class Versioned(Protocol):
    """What a Backend may have besides."""

    @property
    def version(self) -> str:
        """Changes with everything that decides about the code it generates: times measured under another version do not count."""


class Backend(Protocol):
    """Module-level object ``backend`` of an entry point in ``qcompiler.backends``."""

    name: str

    def targets(self) -> Sequence[str]:
        """Names of the targets that this back end generates code for, on any machine."""

    def detect(self) -> str:
        """The best target of this machine (what ``native`` means)."""

    def available(self, target: str) -> str | None:
        """None when this machine can run code for the target, else one line saying why not."""

    def compile(self, program: Program, target: str, *, keep: Sequence[str] = (), time_limit: float = 60.0) -> CompiledProgram:
        """Generate code. ``keep`` names INTEGER nodes that become additional outputs (after the program's own), for inspection."""

    def load(self, program: Program, compiled: CompiledProgram, threads: int | None = None) -> Executable:
        """Make it runnable; ``program`` gives weights and specifications."""


class Exporter(Protocol):
    """Module-level object ``exporter`` of an entry point in ``qcompiler.exporters``: files that other runtimes read."""

    name: str

    @property
    def formats(self) -> Sequence[str]:
        """What a program can be written as."""

    def stage(self, format: str) -> Stage:
        """The stage that a program has to be at."""

    def check(self, format: str, version: int | None) -> None:
        """Tell before the work that a format or a version of it is not known."""

    def export(self, program: Program, path: Path, format: str, version: int | None = None) -> None:
        """Write a file in one step; None: the version that most readers know."""
