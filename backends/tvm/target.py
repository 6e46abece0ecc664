"""The targets of this back end: what LLVM is told, which instruction sets a machine must have, which of them this machine is."""

from __future__ import annotations

from dataclasses import dataclass

from qcompiler import native
from qcompiler.errors import UnknownNameError

_AVX2 = frozenset({"avx2", "fma"})
_AVX512_VNNI = _AVX2 | {"avx512f", "avx512bw", "avx512vl", "avx512-vnni", "avx512-vbmi", "avx512-vpopcntdq"}
_AMX = _AVX512_VNNI | {"amx-tile", "amx-int8"}


@dataclass(frozen=True)
class KernelTarget:
    """A named instruction set. ``cpu`` and ``attributes`` are LLVM's names, ``features`` those of ``native.cpu_features``."""

    name: str
    cpu: str
    attributes: tuple[str, ...]
    features: frozenset[str]

    @property
    def vector_bytes(self) -> int:
        return 64 if "avx512f" in self.features else 32

    @property
    def llvm(self) -> dict[str, object]:
        """The dictionary that ``tvm.target.Target`` takes."""
        return {"kind": "llvm", "mtriple": "x86_64-unknown-linux-gnu", "mcpu": self.cpu, "mattr": list(self.attributes)}


# From the widest to the narrowest: ``native`` is the first that this machine has. The general x86-64-v4 rather than a model of a
# maker: its code runs on every machine that has the named features (a model's would use whatever else that model has).
_WIDE = ("+avx512vnni", "+avx512vbmi", "+avx512vpopcntdq", "-prefer-256-bit")
TARGETS = {
    target.name: target
    for target in (
        KernelTarget("x86-64-amx", "x86-64-v4", (*_WIDE, "+amx-tile", "+amx-int8"), _AMX),
        KernelTarget("x86-64-vnni", "x86-64-v4", _WIDE, _AVX512_VNNI),
        KernelTarget("x86-64-v3", "x86-64-v3", (), _AVX2),
    )
}


def resolve(name: str) -> KernelTarget:
    """The target called ``name``; ``native`` is the best one of this machine. Raises UnknownNameError."""
    if name == "native":
        return TARGETS[detect()]
    if name not in TARGETS:
        raise UnknownNameError("target", name, ("native", *TARGETS))
    return TARGETS[name]


def detect() -> str:
    """The first of TARGETS that this machine can run; the narrowest one where it can run none (``available`` says why)."""
    return next((name for name in TARGETS if available(name) is None), "x86-64-v3")


def available(name: str) -> str | None:
    """None when this machine runs code for the target, else one line with what it lacks. Raises UnknownNameError."""
    target = resolve(name) if name != "native" else TARGETS["x86-64-v3"]
    missing = sorted(target.features - native.cpu_features())
    if missing:
        return f"this machine lacks {', '.join(missing)}, which target {target.name} needs"
    if "amx-tile" in target.features and not native.request_amx():
        return f"the operating system does not grant the AMX tile registers that target {target.name} needs"
    return None
