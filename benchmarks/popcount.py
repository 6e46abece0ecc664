"""Whether counting bits of planes would beat multiplying bytes: python benchmarks/popcount.py

With weights of w and activations of a bits as planes of bits, ``sum w x = sum over i, j of 2^(i + j) popcount(w_i & x_j)``: w a times an
AND, a VPOPCNTQ and an addition for 512 products. VPDPBUSD makes 64 products; weights of 4 and 2 bits are unpacked for it with 3
instructions for 2 vectors and with 7 for 4. Both run in loops of nothing else, by turns, best of many runs: 10^9 products a second.
"""

from __future__ import annotations

import ctypes
import tempfile
from pathlib import Path

from kernels import least_seconds, shared_library

SOURCE = """
#include <immintrin.h>
void run(long steps)
{{
    __m512i sums[{sums}] = {{0}}, x = {{0}}, y = {{0}};
    for (long i = 0; i < steps; i++)
    #pragma GCC unroll 64
        for (int j = 0; j < {sums}; j++)
            __asm__ volatile("{code}" : "+v"(sums[j]) : "v"(x), "v"(y) : "xmm29", "xmm30", "xmm31");
}}
"""
SUMS, STEPS = 16, 2000
DOT = "vpdpbusd %2,%1,%0"
PLANE = "vpandd %1,%2,%%zmm31\\n vpdpbusd %%zmm31,%1,%0"
SHIFTED = f"vpslld $4,%2,%%zmm30\\n vpandd %1,%%zmm30,%%zmm30\\n {DOT.replace('%2', '%%zmm30')}"
COUNT = "vpandq %1,%2,%%zmm31\\n vpopcntq %%zmm31,%%zmm31\\n vpaddq %%zmm31,%0,%0"
# Name: (instructions, products of them).
LOOPS = {
    "vpdpbusd": (DOT, 64),
    "vpdpbusd, weights of 4 bits": ("\\n ".join([PLANE, SHIFTED]), 128),
    "vpdpbusd, weights of 2 bits": ("\\n ".join([PLANE, *[SHIFTED] * 3]), 256),
    "vpopcntq, 1 by 1 bit": (COUNT, 512),
    "vpopcntq, 2 by 1 bits": (COUNT, 256),
    "vpopcntq, 2 by 2 bits": (COUNT, 128),
    "vpopcntq, 4 by 2 bits": (COUNT, 64),
}


def main() -> None:
    """Print the table."""
    missing = {"avx512_vnni", "avx512_vpopcntdq"} - set(Path("/proc/cpuinfo").read_text().split())
    if missing:
        raise SystemExit(f"this machine lacks {', '.join(sorted(missing))}")
    with tempfile.TemporaryDirectory() as name:
        runs = {}
        for number, (title, (code, _)) in enumerate(LOOPS.items()):
            source = SOURCE.format(code=code, sums=SUMS)
            library = shared_library(
                Path(name), f"loop{number}", {f"loop{number}.c": source.encode()}, "-march=x86-64-v4", "-mavx512vnni", "-mavx512vpopcntdq"
            )
            library.run.argtypes = [ctypes.c_long]
            runs[title] = library.run
        best = dict.fromkeys(runs, float("inf"))
        for _ in range(20):
            for title, run in runs.items():
                best[title] = min(best[title], least_seconds(lambda run=run: run(STEPS), 0.01))
    for title, (_, products) in LOOPS.items():
        print(f"{title:30}{products * SUMS * STEPS / best[title] / 1e9:8.0f}")


if __name__ == "__main__":
    main()
