"""The few words in which the templates write TIR: vectors in and out of memory, x86 intrinsics, and the shell of a kernel.

Every value is bound to a name at once (``T.Bind``): TIR has no sharing, an expression used twice is computed twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from qcompiler.backends.tvm import sharing
from qcompiler.backends.tvm.kernels import Extent
from qcompiler.backends.tvm.templates.layout import Parameter

# TVM has no type information: an expression, a buffer.
Expr = Any
Buffer = Any

# Gives the loop's variable for a number of steps.
Loop = Callable[[Any], AbstractContextManager[Expr]]

_CACHE_LINE = 64  # bytes
_SMALLEST, _LARGEST = -(2**31), 2**31 - 1

# By the bits of a vector.
_PACK_WORDS = {512: "avx512.packssdw.512", 256: "avx2.packssdw", 128: "sse2.packssdw.128"}
_PACK_SIGNED_BYTES = {512: "avx512.packsswb.512", 256: "avx2.packsswb", 128: "sse2.packsswb.128"}
_PACK_UNSIGNED_BYTES = {512: "avx512.packuswb.512", 256: "avx2.packuswb", 128: "sse2.packuswb.128"}
_MULTIPLY_HIGH_ROUND = {512: "avx512.pmul.hr.sw.512", 256: "avx2.pmul.hr.sw", 128: "ssse3.pmul.hr.sw.128"}
_MULTIPLY_HIGH_UNSIGNED = {512: "avx512.pmulhu.w.512", 256: "avx2.pmulhu.w", 128: "sse2.pmulhu.w"}
_MULTIPLY_ADD_WORDS = {512: "avx512.pmaddw.d.512", 256: "avx2.pmadd.wd", 128: "sse2.pmadd.wd"}
_DOT_BYTES = {512: "avx512.vpdpbusd.512", 256: "avx512.vpdpbusd.256", 128: "avx512.vpdpbusd.128"}


def function(parameters: Sequence[Parameter], body: Callable[[list[Buffer]], None]) -> tirx.PrimFunc:
    """A function of raw pointers whose body is what ``body`` emits, given the buffers behind them."""
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name("kernel")
        T.func_attr({"tirx.noalias": True})
        pointers = [T.arg(parameter.name, T.handle(parameter.dtype)) for parameter in parameters]
        # Of alignment nothing is claimed: unaligned moves of aligned data cost nothing.
        body(
            [
                T.decl_buffer((parameter.size,), parameter.dtype, data=pointer, align=1)
                for pointer, parameter in zip(pointers, parameters, strict=True)
            ]
        )
    return builder.get()


def resolved(kernel: Any, buffers: Mapping[str, Buffer]) -> Any:
    """The kernel with its open numbers, which are read here, as int64 variables."""
    return sharing.resolved(kernel, lambda index: T.Bind(buffers["numbers"][index]))


def is_zero(number: Expr) -> bool:
    """Whether a number is known to be 0; a variable is not."""
    return isinstance(number, int) and number == 0


def number(value: Expr, dtype: str) -> Expr:
    """A number of a kernel, known or a variable, in this type."""
    return T.IntImm(dtype, value) if isinstance(value, int) else T.Cast(dtype, value)


def amount(shift: Expr) -> Expr:
    """A number to shift 32 bits by, of which TVM sees the range (see ``shifts``)."""
    return shift if isinstance(shift, int) else T.bitwise_and(shift, T.int64(31))


def half(shift: Expr) -> Expr:
    """``2^(shift - 1)``, the rounding term of a shift; 0 for 0."""
    if isinstance(shift, int):
        return (1 << shift) >> 1
    return T.Bind(T.shift_right(T.shift_left(T.int64(1), amount(shift)), T.int64(1)))


def centred_bounds(low: Expr, high: Expr, zero_point: Expr) -> tuple[Expr, Expr]:
    """``low - zero_point`` and ``high - zero_point``, within int32."""
    if all(isinstance(value, int) for value in (low, high, zero_point)):
        return max(low - zero_point, _SMALLEST), min(high - zero_point, _LARGEST)
    moved = (number(bound, "int64") - number(zero_point, "int64") for bound in (low, high))
    below, above = (T.Bind(T.max(T.min(bound, T.int64(_LARGEST)), T.int64(_SMALLEST))) for bound in moved)
    return below, above


@contextmanager
def parallel(extent: int | Expr) -> Iterator[Expr]:
    """A loop over independent tasks; one task alone needs no threads."""
    with (T.serial if isinstance(extent, int) and extent <= 1 else T.parallel)(0, extent) as task:
        yield task


def serial(extent: int | Expr) -> AbstractContextManager[Expr]:
    """A loop of steps, one after the other."""
    loop: AbstractContextManager[Expr] = T.serial(0, extent)
    return loop


def ceiling(count: Expr | int, size: Expr | int) -> Expr | int:
    """``count / size`` rounded up, of numbers that are not negative."""
    return -(-count // size) if isinstance(count, int) and isinstance(size, int) else T.Bind(T.truncdiv(count + (size - 1), size))


def pieces(fixed: int, size: int, rows: Extent | None, extents: Buffer | None) -> Expr | int:
    """``fixed``, but where the number of rows is dynamic as many pieces of ``size`` as cover them; the last one may pass their end."""
    if rows is None or extents is None:
        return fixed
    return ceiling(extents[0] + rows.offset, size)


def digit(number: Expr, below: int | Expr, base: int | Expr) -> Expr:
    """``number // below % base`` of a number that is not negative. By division that truncates: for a base that is known at run time only
    TVM would else add the case of a negative one to every address."""
    return T.Bind(T.truncmod(T.truncdiv(number, below), base))


@contextmanager
def per_thread() -> Iterator[None]:
    """Each thread runs the body once; the iterations of a parallel loop in it are divided among them.

    Local memory is each thread's own only because of the second attribute: without it TVM's StorageRewrite moves it out of the launch.
    """
    thread = tirx.IterVar((0, 1), tirx.Var("thread", "int32"), tirx.IterVar.Opaque, "vthread")
    with T.attr(T.int32(0), "pragma_parallel_launch_point", T.int32(1)), T.attr(thread, "virtual_thread", T.int32(1)):
        yield


def branches(index: Expr, full: int, has_rest: bool, emit: Callable[[bool], None]) -> None:
    """``emit(False)`` where ``index < full``, ``emit(True)`` for the one index after it; no test where only one can happen."""
    if not has_rest or full == 0:
        emit(has_rest)
        return
    with T.If(index < full):
        with T.Then():
            emit(False)
        with T.Else():
            emit(True)


def lanes(vector: Expr) -> int:
    """Elements of a vector."""
    return int(vector.ty.dtype.lanes)


def bits(vector: Expr) -> int:
    """Bits of a whole vector."""
    return int(vector.ty.dtype.lanes) * int(vector.ty.dtype.bits)


def load(buffer: Buffer, offset: Expr, count: int) -> Expr:
    """``count`` elements from ``offset``."""
    return T.Bind(buffer[T.Ramp(offset, 1, count)])


def scratch(count: int, dtype: str) -> Buffer:
    """``count`` elements of stack at a multiple of 64 bytes. TVM aligns to 16, and vectors would then cross cache lines."""
    size = np.dtype(dtype).itemsize
    memory = T.alloc_buffer((count + _CACHE_LINE // size,), dtype, scope="local")
    address = T.Bind(T.reinterpret(T.address_of(memory[0]), dtype="int64"))
    past = T.Bind(T.bitwise_and(-address, T.int64(_CACHE_LINE - 1)) // size)
    start = T.Bind(T.address_of(memory[T.Cast("int32", past)]))
    return T.decl_buffer((count,), dtype, data=start, scope="local")


def part(buffer: Buffer, first: Expr, count: int) -> Buffer:
    """``count`` elements from ``first`` on as a buffer of their own, to be read only: LLVM takes both for different memory."""
    start = T.Bind(T.address_of(buffer[first]))
    return T.decl_buffer((count,), str(buffer.dtype), data=start, align=1)


def keep_loads_here() -> None:
    """LLVM moves no load from below to above: it must assume that this instruction, otherwise a short rest, writes memory.

    Without it the parameters of an epilogue become invariants of every loop around it. They then hold their registers through the matrix
    product as well, whose accumulators are spilled instead: a layer with residual add took 1,470 us where it takes 350.
    """
    T.evaluate(T.call_llvm_intrin("void", "llvm.x86.sse2.pause"))


def store(buffer: Buffer, offset: Expr, vector: Expr) -> None:
    """The whole vector from ``offset``."""
    T.buffer_store(buffer, vector, [T.Ramp(offset, 1, lanes(vector))])


def store_first(buffer: Buffer, offset: Expr, vector: Expr, count: int) -> None:
    """The first ``count`` elements, in pieces of a power of two, so that not a byte more is written."""
    done = 0
    while done < count:
        piece = 1 << ((count - done).bit_length() - 1)
        store_piece = store if piece > 1 else _store_element
        store_piece(buffer, offset + done, pick(vector, range(done, done + piece)))
        done += piece


def _store_element(buffer: Buffer, offset: Expr, value: Expr) -> None:
    T.buffer_store(buffer, value, [offset])


def constant(value: Expr, element: str, count: int) -> Expr:
    """The same number in all lanes."""
    return T.Broadcast(number(value, element), count)


def cast(vector: Expr, element: str) -> Expr:
    """Each lane converted, truncating."""
    return T.Bind(T.cast(vector, f"{element}x{lanes(vector)}"))


def reinterpret(vector: Expr, element: str) -> Expr:
    """The same bits as lanes of another type."""
    width = int(np.dtype(element).itemsize) * 8
    return T.Bind(T.reinterpret(vector, dtype=f"{element}x{bits(vector) // width}"))


def pick(vector: Expr, indices: Iterable[int]) -> Expr:
    """The lanes at ``indices``."""
    return shuffle([vector], indices)


def shuffle(vectors: Sequence[Expr], indices: Iterable[int] | NDArray[np.intp]) -> Expr:
    """Lanes at ``indices`` of the concatenated vectors."""
    return T.Bind(T.Shuffle(list(vectors), [T.IntImm("int32", int(index)) for index in indices]))


def interleave(low: Expr, high: Expr, half: int) -> Expr:
    """punpckl (half 0) or punpckh (half 1): within each 128-bit lane, elements of the two vectors by turns."""
    count = lanes(low)
    block = 128 // int(low.ty.dtype.bits)
    starts = [lane + half * block // 2 for lane in range(0, count, block)]
    return shuffle(
        [low, high], [element + side * count for start in starts for element in range(start, start + block // 2) for side in (0, 1)]
    )


def _intrinsic(name: str, result: str, *operands: Expr) -> Expr:
    return T.Bind(T.call_llvm_pure_intrin(T.llvm_lookup_intrinsic_id(name), *operands, dtype=result))


def pack_words(low: Expr, high: Expr) -> Expr:
    """vpackssdw: int32 to int16 with saturation."""
    return _intrinsic(f"llvm.x86.{_PACK_WORDS[bits(low)]}", f"int16x{2 * lanes(low)}", low, high)


def pack_bytes(low: Expr, high: Expr, unsigned: bool) -> Expr:
    """vpackuswb or vpacksswb: int16 to 8 bits with saturation."""
    names = _PACK_UNSIGNED_BYTES if unsigned else _PACK_SIGNED_BYTES
    return _intrinsic(f"llvm.x86.{names[bits(low)]}", f"int8x{2 * lanes(low)}", low, high)


def multiply_high_round(x: Expr, y: Expr) -> Expr:
    """vpmulhrsw: ``(x * y + 2^14) >> 15`` on int16."""
    return _intrinsic(f"llvm.x86.{_MULTIPLY_HIGH_ROUND[bits(x)]}", f"int16x{lanes(x)}", x, y)


def multiply_high_unsigned(x: Expr, y: Expr) -> Expr:
    """vpmulhuw: ``(x * y) >> 16`` on uint16."""
    return _intrinsic(f"llvm.x86.{_MULTIPLY_HIGH_UNSIGNED[bits(x)]}", f"int16x{lanes(x)}", x, y)


def add_saturating(x: Expr, y: Expr) -> Expr:
    """vpaddsw."""
    return _intrinsic("llvm.sadd.sat", f"int16x{lanes(x)}", x, y)


def dot_bytes(total: Expr, unsigned: Expr, signed: Expr) -> Expr:
    """vpdpbusd: adds to each int32 lane four products of a uint8 and an int8."""
    return _intrinsic(f"llvm.x86.{_DOT_BYTES[bits(total)]}", f"int32x{lanes(total)}", total, unsigned, signed)


def multiply_add_bytes(unsigned: Expr, signed: Expr) -> Expr:
    """vpmaddubsw of 256 bits: sums of two products of a uint8 and an int8, which saturate at 16 bits."""
    return _intrinsic("llvm.x86.avx2.pmadd.ub.sw", "int16x16", unsigned, signed)


def dot_words(total: Expr, x: Expr, y: Expr) -> Expr:
    """vpmaddwd and vpaddd: adds to each int32 lane two products of int16, modulo 2^32."""
    return add_modulo(total, multiply_words(x, y))


def add_modulo(x: Expr, y: Expr) -> Expr:
    """Their sum modulo 2^32. TVM tells LLVM of ``x + y`` that it stays in int32, but only the last of many sums has to."""
    return _modulo("add", x, y)


def subtract_modulo(x: Expr, y: Expr) -> Expr:
    """Their difference modulo 2^32."""
    return _modulo("sub", x, y)


def multiply_modulo(x: Expr, y: Expr) -> Expr:
    """Their product modulo 2^32."""
    return _modulo("mul", x, y)


def _modulo(function: str, x: Expr, y: Expr) -> Expr:
    everywhere = T.Broadcast(T.bool(True), lanes(x))
    return _intrinsic(f"llvm.vp.{function}", f"int32x{lanes(x)}", x, y, everywhere, T.int32(lanes(x)))


def multiply_words(x: Expr, y: Expr) -> Expr:
    """vpmaddwd: sums of two products of int16, modulo 2^32."""
    return _intrinsic(f"llvm.x86.{_MULTIPLY_ADD_WORDS[bits(x)]}", f"int32x{lanes(x) // 2}", x, y)


def dot_word_pairs(total: Expr, x: Expr, y: Expr) -> Expr:
    """vpdpwssd: the same in one instruction, modulo 2^32."""
    return _intrinsic("llvm.x86.avx512.vpdpwssd.512", "int32x16", total, x, y)


def permute_bytes(low: Expr, indices: Expr, high: Expr) -> Expr:
    """vpermi2b: lane i takes byte ``indices[i] & 127`` of the two vectors."""
    return _intrinsic("llvm.x86.avx512.vpermi2var.qi.512", "int8x64", low, indices, high)


def count_bits(x: Expr) -> Expr:
    """vpopcntd, popcnt: of each int32 the number of bits that are set."""
    return _intrinsic("llvm.ctpop", str(x.ty.dtype), x)


def pick_bytes(table: Expr, indices: Expr) -> Expr:
    """vpshufb of 256 bits: byte i of a half is the entry ``indices[i]``, below 16, of the same half of the table."""
    return _intrinsic("llvm.x86.avx2.pshuf.b", "int8x32", table, indices)


def top_bits(vector: Expr) -> Expr:
    """vpmovmskb: the highest bit of each of 32 bytes as an int32, the first one lowest."""
    return _intrinsic("llvm.x86.avx2.pmovmskb", "int32", vector)


def tile(operation: str, *operands: Expr) -> None:
    """An AMX instruction."""
    T.evaluate(T.call_llvm_intrin("void", f"llvm.x86.{operation}", *operands))


def sign_extended(wide: Expr) -> Expr:
    """int64 lanes made of their low halves. Written as shifts, which LLVM drops where it then selects vpmuldq."""
    amount = constant(32, "int64", lanes(wide))
    return T.Bind(T.shift_right(T.shift_left(wide, amount), amount))


def even_lanes(vector: Expr) -> Expr:
    """The even int32 lanes as int64."""
    return sign_extended(reinterpret(vector, "int64"))


def odd_lanes(vector: Expr) -> Expr:
    """The odd int32 lanes as int64."""
    wide = reinterpret(vector, "int64")
    return T.Bind(T.shift_right(wide, constant(32, "int64", lanes(wide))))


def join_low_halves(even: Expr, odd: Expr) -> Expr:
    """int32 lanes from the low halves of two vectors of int64."""
    count = lanes(even)
    low = T.bitwise_and(even, constant(0xFFFFFFFF, "int64", count))
    return reinterpret(T.Bind(T.bitwise_or(low, T.shift_left(odd, constant(32, "int64", count)))), "int32")


def join_high_halves(even: Expr, odd: Expr) -> Expr:
    """int32 lanes from the high halves."""
    count = 2 * lanes(even)
    indices = [lane + 1 + (lane % 2) * (count - 1) for lane in range(count)]
    return shuffle([reinterpret(even, "int32"), reinterpret(odd, "int32")], indices)


class Sums:
    """A register tile's accumulators. Each is a buffer of its own, which LLVM keeps in a register."""

    def __init__(self, start: Sequence[Expr]) -> None:
        self._buffers = [T.alloc_buffer((lanes(vector),), str(vector.ty.dtype).split("x")[0], scope="local") for vector in start]
        for index, vector in enumerate(start):
            self[index] = vector

    def __len__(self) -> int:
        return len(self._buffers)

    def __getitem__(self, index: int) -> Expr:
        buffer = self._buffers[index]
        return load(buffer, 0, int(buffer.shape[0]))

    def __setitem__(self, index: int, vector: Expr) -> None:
        store(self._buffers[index], 0, vector)
