"""Products of two activations: the right operand is packed inside the kernel, and then everything is as in ``matrix``.

With ``a'`` and ``b'`` the numbers that the instructions multiply and ``z'`` their zero points::

    sum (a - za)(b - zb)  =  sum a' b'  -  za' sum_k b'  -  zb' sum_k a'  +  K za' zb'

``bytes`` and ``tiles`` multiply unsigned by signed bytes, so int8 on the left and uint8 on the right have their top bit flipped (``z'``
moves by 128). The sums over k are taken from the packed operands; one whose factor is 0 is left out. ``words`` multiplies int16: the zero
points are subtracted on the way in, and nothing is left to correct. A left operand of 16 bits is always multiplied so, and AVX2 does
nothing else.

The right operand is packed as ``[vector of columns][group of k][lane][k of the group]``, its columns in the order of ``Chunk``, so that
the saturating packs of the epilogue bring them back. Rows of the left operand are copied to a scratch first, padded with zeros.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from tvm import tirx
from tvm.tirx.script import builder as T

from qcompiler.backends.tvm.kernels import (
    Activation,
    Add,
    ConvolutionKernel,
    MatrixProductKernel,
    Operand,
    Requantization,
    ResidualAdd,
    Size,
    maximum,
)
from qcompiler.backends.tvm.templates import emission as e
from qcompiler.backends.tvm.templates import vectors as v
from qcompiler.backends.tvm.templates.emission import Buffer, Expr
from qcompiler.backends.tvm.templates.epilogue import Epilogue, Place
from qcompiler.backends.tvm.templates.layout import Chunk, Parameter, chunks, epilogue_parameters
from qcompiler.backends.tvm.templates.product_layout import TILE_ROWS, Scheme, left_slots, row_tile, scheme
from qcompiler.backends.tvm.templates.rescaling import rounding_parameters

_TOP_BIT = -128
_BYTE_MIDDLE = 128
_WORD_BITS = 15
_EPILOGUE_LANES = 64
_TILE_BYTES = 64
_LEFT_TILE, _RIGHT_TILE, _LEFT_TAIL, _RIGHT_TAIL = 4, 5, 6, 7  # tiles 0 to 3 hold sums
_CONFIGURATION_BYTES, _PALETTE, _COLUMN_BYTES, _ROWS = 64, 0, 16, 48  # Intel SDM volume 1, 18.2


def emit(kernel: MatrixProductKernel, target: str) -> tirx.PrimFunc:
    """The kernel's function."""
    sizes = v.Sizes(kernel)
    batch = kernel.batch
    parameters = [
        v.parameter("a", kernel.a, (*batch, kernel.rows, kernel.length)),
        v.parameter("b", kernel.b, (*batch, kernel.length, kernel.columns)),
        *(rounding_parameters("") if kernel.epilogue is not None else []),
        v.parameter("output", stored(kernel.output), (*batch, kernel.rows, kernel.columns)),
        *sizes.parameters,
    ]

    def body(buffers: list[Buffer]) -> None:
        sizes.bind(buffers)
        named = {parameter.name: buffer for parameter, buffer in zip(parameters, buffers, strict=True)}
        _emit_panels(e.resolved(kernel, named), scheme(target, kernel.a.dtype), named, sizes)

    return e.function(parameters, body)


def stored(operand: Operand) -> Operand:
    """The operand as templates declare it: all bytes are int8."""
    return dataclasses.replace(operand, dtype="int8") if operand.dtype in ("uint8", "bool") else operand


def _emit_panels(kernel: MatrixProductKernel, how: Scheme, buffers: dict[str, Buffer], sizes: v.Sizes) -> None:
    """A task is one chunk of columns of one product: the chunk is packed, then meets all rows."""
    widest = min(how.widest, {"int32": 1, "int16": 2}.get(kernel.output.dtype, 4))
    cut = chunks(maximum(kernel.columns), how.lanes, widest)
    alike = [chunk for chunk in cut if chunk.valid == cut[0].valid]
    counts = [sizes(size) for size in kernel.batch]
    tasks: Expr = len(cut)
    for count in counts:
        tasks = tasks * count
    with T.parallel(0, tasks) if not (isinstance(tasks, int) and tasks == 1) else T.serial(0, 1) as task:
        index: list[Expr] = []
        rest = T.Bind(task // len(cut))
        for count in reversed(counts):
            index.insert(0, T.Bind(rest % count))
            rest = T.Bind(rest // count)
        number = T.Bind(task % len(cut))
        # One body for the chunks of equal width, one for each other.
        _branch(
            number,
            [len(alike), *([1] * (len(cut) - len(alike)))],
            lambda position: _panel(
                kernel,
                how,
                buffers,
                sizes,
                index,
                cut[0] if position == 0 else cut[len(alike) + position - 1],
                number if position == 0 else None,
            ),
        )


def _branch(number: Expr, counts: Sequence[int], emit_one: Callable[[int], None], position: int = 0, start: int = 0) -> None:
    """``emit_one(i)`` where ``number`` lies in the i-th of consecutive ranges."""
    if position == len(counts) - 1:
        emit_one(position)
        return
    with T.If(number < start + counts[position]):
        with T.Then():
            emit_one(position)
        with T.Else():
            _branch(number, counts, emit_one, position + 1, start + counts[position])


def _panel(
    kernel: MatrixProductKernel,
    how: Scheme,
    buffers: dict[str, Buffer],
    sizes: v.Sizes,
    index: list[Expr],
    chunk: Chunk,
    number: Expr | None,
) -> None:
    length, rows = sizes(kernel.length), sizes(kernel.rows)
    first = T.Bind(number * chunk.channels) if number is not None else T.int32(chunk.first)
    right = Right(how, kernel.b.dtype, kernel.length, chunk.vectors)
    starts = [v.position(operand, index) for operand in (kernel.a, kernel.b, kernel.output)]
    tile, slots = row_tile(how, kernel.rows, chunk.vectors), left_slots(how)
    left = Left(how, kernel.a.dtype, kernel.length, slots * tile)
    zeros = Zeros(how, kernel.a.dtype, kernel.zero_point_a, kernel.b.dtype, kernel.zero_point_b)
    source = Source(buffers["b"], starts[1], kernel.b.strides[-2], kernel.b.strides[-1], length, sizes(kernel.columns))
    right.pack(source, chunk, first, 0, zeros)
    rounding = Rounding(kernel.epilogue, kernel.output.dtype, buffers, "") if kernel.epilogue is not None else None
    multiplier = Multiplier(how, kernel.length, length)
    right.correct(chunk, 0, length, zeros)
    multiplier.configure()
    rows_of_left = Source(buffers["a"], starts[0], kernel.a.strides[-2], 1, length, rows)

    def operands(index: Index) -> tuple[Expr, Expr]:
        slot = T.Bind(index[0] % slots * tile)
        left.pack(rows_of_left, T.Bind(index[0] * tile), slot, tile, zeros)
        left.add_up(slot, tile, length, zeros)
        return T.Bind(slot * left.pitch), 0

    def results(index: Index) -> tuple[Start, Store]:
        top = T.Bind(index[0] * tile)

        def store(row: Expr, sums: list[Expr]) -> None:
            with T.If(top + row < rows), T.Then():
                at = T.Bind(starts[2] + (top + row) * kernel.output.strides[-2] + first)
                if rounding is None:
                    e.store_first(buffers["output"], at, sums[0], chunk.valid)
                else:
                    rounding.epilogue.store_at(sums, chunk, rounding.place, at)

        return Start(right.columns(zeros), left.row_terms(zeros), rounding, T.Bind(index[0] % slots * tile)), store

    blocks = Blocks(left.buffer, left.pitch, right, chunk, tile, operands, results)
    multiplier.emit(blocks, [e.ceiling(rows, tile)])
    multiplier.release()


@dataclass(frozen=True)
class Source:
    """An operand as a matrix in memory, with its sizes: k along ``step``, rows (left) or columns (right) along ``line``."""

    buffer: Buffer
    start: Expr
    step: int
    line: int
    length: Expr  # along k
    lines: Expr


@dataclass(frozen=True)
class Zeros:
    """The zero points of what is multiplied (the module's z'), after flipping or subtracting."""

    how: Scheme
    left_dtype: str
    left: Expr
    right_dtype: str
    right: Expr

    @property
    def flipped_left(self) -> Expr:
        """za'."""
        if self.how.kind == "words":
            return 0
        return self.left + (_BYTE_MIDDLE if self.left_dtype == "int8" else 0)

    @property
    def flipped_right(self) -> Expr:
        """zb'."""
        if self.how.kind == "words":
            return 0
        return self.right - (_BYTE_MIDDLE if self.right_dtype == "uint8" else 0)


def _converted(how: Scheme, vector: Expr, dtype: str, zero_point: Expr, flips: bool) -> Expr:
    """What the instructions multiply: bytes with the top bit flipped where ``flips``, or centred int16."""
    if how.kind != "words":
        raw = e.reinterpret(vector, "int8")
        return T.Bind(T.bitwise_xor(raw, v.like(raw, _TOP_BIT))) if flips else raw
    wide = e.cast(vector, "int16")
    return T.Bind(wide - v.like(wide, zero_point)) if not e.is_zero(zero_point) else wide


class Left:
    """Rows of the left operand, contiguous along k and padded with zeros."""

    def __init__(self, how: Scheme, dtype: str, length: Size, rows: int) -> None:
        self._how, self._dtype = how, dtype
        self.pitch = how.padded(length)
        self.buffer = e.scratch(self.pitch * rows, how.element)
        self._terms = T.alloc_buffer((rows,), "int32", scope="local")

    def pack(self, source: Source, first: Expr, at: Expr, rows: Expr, zeros: Zeros) -> None:
        """Rows from ``first`` on, past the last one repetitions of it, into those from ``at`` on."""
        count = self._how.cells
        with T.serial(0, rows) as row:
            line = T.Bind(source.start + T.min(first + row, source.lines - 1) * source.step)
            target = T.Bind((at + row) * self.pitch)

            def copy(start: Expr, rest: Expr | None, line: Expr = line, target: Expr = target) -> None:
                vector = e.load(source.buffer, line + start, count)
                vector = _converted(self._how, vector, self._dtype, zeros.left, self._dtype == "int8")
                e.store(self.buffer, target + start, v.only_first(vector, rest, 0))

            v.over_row(source.length, count, copy)

    def row_terms(self, zeros: Zeros) -> Buffer | None:
        """``-zb' sum_k a'`` of each row; None where all are 0."""
        return None if e.is_zero(zeros.flipped_right) else self._terms

    def add_up(self, at: Expr, rows: Expr, length: Expr, zeros: Zeros) -> None:
        """Compute these for rows from ``at`` on, whose sums are over ``length`` elements."""
        how = self._how
        if e.is_zero(zeros.flipped_right):
            return
        with T.serial(0, rows) as row:
            total = v.Register(e.constant(0, "int32", how.lanes))
            # The last vector ends in zeros. What lies behind it is of an earlier, longer row.
            with T.serial(0, e.ceiling(length, how.cells)) as part:
                vector = e.load(self.buffer, (at + row) * self.pitch + part * how.cells, how.cells)
                total.set(e.dot_bytes(total.value, vector, e.constant(1, "int8", how.cells)))
            T.buffer_store(self._terms, v.reduce("add", total.value) * e.number(-zeros.flipped_right, "int32"), [at + row])


class Right:
    """Chunks of the right operand's columns, packed."""

    def __init__(self, how: Scheme, dtype: str, length: Size, vectors: int) -> None:
        self._how, self._dtype = how, dtype
        self.groups = how.padded(length) // how.group
        self.pitch = self.groups * how.cells  # of a vector
        self.buffer = e.scratch(self.pitch * vectors, how.element)
        self._corrections = e.scratch(vectors * how.lanes, "int32")

    def pack(self, source: Source, chunk: Chunk, first: Expr, vector: Expr, zeros: Zeros) -> None:
        """The columns from ``first`` on, into vectors from number ``vector`` on. Columns past the last one are anything."""
        if source.step == 1:
            self._pack_rows(source, chunk, first, vector, zeros)
        else:
            self._pack_columns(source, chunk, first, vector, zeros)

    def _load(self, source: Source, at: Expr, count: int, zeros: Zeros) -> Expr:
        vector = e.load(source.buffer, at, count)
        return _converted(self._how, vector, self._dtype, zeros.right, self._dtype == "uint8")

    def _pack_rows(self, source: Source, chunk: Chunk, first: Expr, vector: Expr, zeros: Zeros) -> None:
        """Contiguous along k: as many groups of as many columns as a vector has lanes are transposed at a time."""
        how = self._how
        order = chunk.accumulator_order[: how.lanes]  # of the first vector; the next ones are 4 columns further each
        needs_zeros = not isinstance(source.length, int) or source.length % how.group != 0

        def block(start: Expr, rest: Expr | None, vector: Expr, first: Expr) -> None:
            # A column past the last one repeats it.
            lines = [T.Bind(source.start + T.min(first + int(c), source.lines - 1) * source.line) for c in order]
            loaded = [self._load(source, line + start, how.cells, zeros) for line in lines]
            if rest is not None and needs_zeros:
                loaded = [v.only_first(each, rest, 0) for each in loaded]
            at = T.Bind(vector * self.pitch + start * how.lanes)
            for group, cells in enumerate(_transposed([e.reinterpret(each, "int32") for each in loaded])):
                e.store(self.buffer, at + group * how.cells, e.reinterpret(cells, how.element))

        with T.serial(0, chunk.vectors) as index:
            following = T.Bind(first + index * 4)
            v.over_row(source.length, how.cells, lambda start, rest: block(start, rest, T.Bind(vector + index), following))

    def _pack_columns(self, source: Source, chunk: Chunk, first: Expr, vector: Expr, zeros: Zeros) -> None:
        """Contiguous along columns: the rows of a group are interleaved."""
        how = self._how

        def group(start: Expr, rest: Expr | None) -> None:
            loaded = []
            for k in range(how.group):
                row = start + k if rest is None else T.min(start + k, source.length - 1)
                natural = self._load(source, T.Bind(source.start + row * source.step + first), chunk.channels, zeros)
                loaded.append(natural if rest is None or k == 0 else _only_if(natural, k < rest))
            at = T.Bind(vector * self.pitch + start * how.lanes)
            for index, cells in enumerate(_interleaved(loaded, chunk)):
                e.store(self.buffer, at + index * self.pitch, e.reinterpret(cells, how.element))

        v.over_row(source.length, how.group, group)

    def columns(self, zeros: Zeros) -> Buffer | None:
        """``-za' sum_k b' + K za' zb'`` of each packed column, in the order of the accumulators; None where all are 0."""
        return None if e.is_zero(zeros.flipped_left) else self._corrections

    def correct(self, chunk: Chunk, vector: Expr, length: Expr, zeros: Zeros) -> None:
        """Compute these for a packed chunk."""
        if e.is_zero(zeros.flipped_left):
            return
        how = self._how
        with T.serial(0, chunk.vectors) as index:
            total = v.Register(e.constant(0, "int32", how.lanes))
            with T.serial(0, e.ceiling(length, how.group)) as group:
                cells = e.load(self.buffer, (vector + index) * self.pitch + group * how.cells, how.cells)
                total.set(e.dot_bytes(total.value, e.constant(1, "int8", how.cells), cells))
            both = v.splat(T.Bind(e.number(zeros.flipped_left * zeros.flipped_right, "int32") * length), how.lanes)
            value = T.Bind(both - T.Bind(total.value * e.constant(zeros.flipped_left, "int32", how.lanes)))
            e.store(self._corrections, (vector + index) * how.lanes, value)


def _only_if(vector: Expr, condition: Expr) -> Expr:
    """The vector, or zeros."""
    if isinstance(condition, bool):
        return vector if condition else v.like(vector, 0)
    element = v.element(vector)
    return T.Bind(T.bitwise_and(vector, v.splat(T.Select(condition, T.IntImm(element, -1), T.IntImm(element, 0)), e.lanes(vector))))


def _transposed(rows: Sequence[Expr]) -> list[Expr]:
    """n vectors of n int32 lanes, transposed: each stage exchanges one bit of the vector's and the lane's number."""
    current, count = list(rows), len(rows)
    bit = 1
    while bit < count:
        low = [lane if not lane & bit else lane - bit + count for lane in range(count)]
        high = [lane + bit if not lane & bit else lane + count for lane in range(count)]
        current = [e.shuffle([current[i & ~bit], current[i | bit]], high if i & bit else low) for i in range(count)]
        bit *= 2
    return current


def _interleaved(rows: Sequence[Expr], chunk: Chunk) -> list[Expr]:
    """Groups of k as int32 lanes, in the chunk's order, from one vector of columns for each k of the group."""
    if len(rows) == 2:
        cells = [e.interleave(rows[0], rows[1], half) for half in (0, 1)]
    else:
        pairs = [[e.reinterpret(e.interleave(rows[i], rows[i + 1], half), "int16") for half in (0, 1)] for i in (0, 2)]
        cells = [e.interleave(pairs[0][half], pairs[1][half], quarter) for half in (0, 1) for quarter in (0, 1)]
    lanes = [e.reinterpret(each, "int32") for each in cells]
    # Column c of a 128-bit block of ``width`` columns lies in the (c / 4)th of the vectors.
    width, count = 4 * len(lanes), e.lanes(lanes[0])
    places = [c % width // 4 * count + c // width * 4 + c % 4 for c in chunk.accumulator_order]
    if len(lanes) == chunk.vectors and places == list(range(len(places))):
        return lanes
    return [e.shuffle(lanes, places[t * chunk.lanes : (t + 1) * chunk.lanes]) for t in range(chunk.vectors)]


def addition_parameters(prefix: str) -> list[Parameter]:
    """The numbers of an addition per tensor."""
    return [Parameter(f"{prefix}{name}", "int32", 1) for name in ("pre_shift_a", "multiplier_a", "pre_shift_b", "multiplier_b")]


class Rounding:
    """A requantization per tensor as ``epilogue`` wants it: each parameter in all lanes, computed once from the op's own numbers.

    An Add adds the operand ``bias``, whose elements a Place's ``channel`` counts.
    """

    def __init__(self, spec: Requantization | Add, dtype: str, buffers: dict[str, Buffer], prefix: str, bias: str = "int8") -> None:
        one = Activation(1, 1, _EPILOGUE_LANES, dtype)  # type: ignore[arg-type]  # an integer type
        self.half: Expr = None  # the rounding term that comes before
        if isinstance(spec, Add):
            operand = dataclasses.replace(one, dtype=bias)  # type: ignore[arg-type]  # an integer type
            limits = (spec.zero_point_b, spec.shift, spec.zero_point, spec.low, spec.high)
            epilogue: Requantization | ResidualAdd = ResidualAdd(operand, False, *limits)
            values, bound = self._addition(buffers, prefix), {"operand": buffers["bias"]}
        else:
            epilogue, (values, bound) = spec, (self._requantization(spec, buffers, prefix), {})
        kernel = ConvolutionKernel(one, one, (1, 1), (1, 1), (0, 0), (1, 1), 1, epilogue)
        for parameter in epilogue_parameters(kernel, _EPILOGUE_LANES)[1:]:
            value = values[parameter.name]
            bound[parameter.name] = e.scratch(parameter.size, parameter.dtype)
            count = 16 if parameter.dtype == "int16" else 8
            for start in range(0, parameter.size, count):
                lane = value if str(value.ty.dtype) == parameter.dtype else T.Cast(parameter.dtype, value)
                e.store(bound[parameter.name], start, v.splat(lane, count))
        self.epilogue = Epilogue(kernel, {"output": buffers["output"], **bound}, permutes_bytes=False)
        self.place = Place(0, 0, 0, 0)

    def _requantization(self, spec: Requantization, buffers: dict[str, Buffer], prefix: str) -> dict[str, Expr]:
        pre_shift, multiplier, shift = (T.Bind(buffers[parameter.name][0]) for parameter in rounding_parameters(prefix))
        if spec.form == "narrow":
            self.half = _half(pre_shift, "int32")
        rescale = T.Bind(T.min(T.shift_right(T.int32(1 << _WORD_BITS), shift & 31), T.int32((1 << _WORD_BITS) - 1)))
        rounding = _half(shift, "int64" if spec.form == "exact64" else "int32")
        return {"pre_shift": pre_shift, "multiplier": multiplier, "shift": shift, "rescale": rescale, "rounding": rounding}

    def _addition(self, buffers: dict[str, Buffer], prefix: str) -> dict[str, Expr]:
        names = ("pre_shift", "multiplier", "operand_pre_shift", "operand_multiplier")
        return {name: T.Bind(buffers[parameter.name][0]) for name, parameter in zip(names, addition_parameters(prefix), strict=True)}


def _half(shift: Expr, dtype: str) -> Expr:
    """``2^(shift - 1)``; 0 for 0."""
    one = T.IntImm(dtype, 1)
    amount = T.Cast(dtype, shift & 63 if dtype == "int64" else shift & 31)
    return T.Bind(T.shift_right(T.shift_left(one, amount), one))


@dataclass(frozen=True)
class Start:
    """What the sums of a block start from: the column's correction, the row's term, the rounding term."""

    columns: Buffer | None
    rows: Buffer | None
    rounding: Rounding | None
    first_row: Expr = 0
    first_column: Expr = 0

    def vector(self, lanes: int, column: Expr, row: Expr) -> Expr:
        """Of the block's columns from ``column`` on, in one of its rows."""
        half = self.rounding.half if self.rounding is not None else None
        scalar = T.Bind(self.rows[self.first_row + row]) if self.rows is not None else None
        terms = [term for term in (half, scalar) if term is not None]
        start = v.splat(terms[0] if len(terms) == 1 else T.Bind(terms[0] + terms[1]), lanes) if terms else e.constant(0, "int32", lanes)
        return start if self.columns is None else T.Bind(start + e.load(self.columns, self.first_column + column, lanes))


Index = Sequence[Expr]
Store = Callable[[Expr, list[Expr]], None]  # of a row of a block: its number, its sums


@dataclass(frozen=True)
class Blocks:
    """``rows`` rows of a packed left operand by a chunk of packed columns, as often as there are indices.

    ``operands``: where in ``left`` the rows of a block begin, and in ``right`` the number of its first vector. ``results``: what its
    sums start from and what stores them. The latter is emitted where the sums are there, which may be after the operands of the next block.
    """

    left: Buffer
    pitch: int
    right: Right
    chunk: Chunk
    rows: int
    operands: Callable[[Index], tuple[Expr, Expr]]
    results: Callable[[Index], tuple[Start, Store]]


class Multiplier:
    """Products of packed rows and packed columns."""

    def __init__(self, how: Scheme, length: Size, count: Expr, has_tail: bool = True) -> None:
        self._how = how
        self._has_tail = has_tail
        self._is_static = isinstance(length, int)
        self._groups = e.ceiling(count, how.group)
        self._sums = e.scratch(TILE_ROWS * how.widest * how.lanes, "int32") if how.kind == "tiles" else None

    @property
    def _tail_groups(self) -> int:
        """Groups of the last, partial tile; 0 where zeros fill up a whole one instead, as always with a dynamic length."""
        return int(self._groups % TILE_ROWS) if self._is_static and self._has_tail else 0

    def configure(self) -> None:
        """Of AMX, palette 1: whole tiles, and a pair for what is left of k."""
        if self._how.kind != "tiles":
            return
        configuration = T.alloc_buffer((_CONFIGURATION_BYTES,), "uint8", scope="local")
        for start in range(0, _CONFIGURATION_BYTES, 16):
            e.store(configuration, start, e.constant(0, "uint8", 16))
        T.buffer_store(configuration, T.uint8(1), [_PALETTE])
        tail = self._tail_groups or TILE_ROWS
        for tile in range(8):
            T.buffer_store(configuration, T.uint8(4 * tail if tile == _LEFT_TAIL else _TILE_BYTES), [_COLUMN_BYTES + 2 * tile])
            T.buffer_store(configuration, T.uint8(tail if tile == _RIGHT_TAIL else TILE_ROWS), [_ROWS + tile])
        e.tile("ldtilecfg", T.address_of(configuration[0]))

    def release(self) -> None:
        if self._how.kind == "tiles":
            e.tile("tilerelease")

    def emit(self, blocks: Blocks, counts: Sequence[Expr]) -> None:
        """The products of all blocks, whose indices run below ``counts``."""
        if self._how.kind == "tiles":
            self._emit_overlapped(blocks, counts)
            return
        with ExitStack() as loops:
            index = [loops.enter_context(T.serial(0, count)) for count in counts]
            self._sum_in_registers(blocks, index)

    def _sum_in_registers(self, blocks: Blocks, index: Index) -> None:
        lanes, count, right = self._how.lanes, blocks.chunk.vectors, blocks.right
        at, vector = blocks.operands(index)
        start, store = blocks.results(index)
        sums = e.Sums([start.vector(lanes, i * lanes, row) for row in range(blocks.rows) for i in range(count)])
        base = T.Bind(vector * right.pitch)
        with T.serial(0, self._groups) as group:
            columns = [e.load(right.buffer, base + i * right.pitch + group * self._how.cells, self._how.cells) for i in range(count)]
            for row in range(blocks.rows):
                cell = blocks.left[T.Ramp(at + row * blocks.pitch + group * self._how.group, 1, self._how.group)]
                every = e.reinterpret(T.Broadcast(T.Bind(T.reinterpret(cell, dtype="int32")), lanes), self._how.element)
                for i, column in enumerate(columns):
                    sums[row * count + i] = self._dot(sums[row * count + i], every, column)
        for row in range(blocks.rows):
            store(row, [sums[row * count + i] for i in range(count)])

    def _dot(self, total: Expr, left: Expr, right: Expr) -> Expr:
        if self._how.kind == "bytes":
            return e.dot_bytes(total, left, right)
        return e.dot_word_pairs(total, left, right) if self._how.lanes == 16 else e.dot_words(total, left, right)

    def _emit_overlapped(self, blocks: Blocks, counts: Sequence[Expr]) -> None:
        """The products of the next block stand before the rounding of a block's sums, so that tiles and vectors work at once: behind it
        they would begin when it is nearly done, because it fills the reorder buffer."""
        total = T.Bind(math.prod(counts))
        self._multiply_tiles(blocks, [T.int32(0)] * len(counts))
        with T.serial(0, total) as number:
            self._store_tiles(blocks.chunk.vectors)
            with T.If(number + 1 < total), T.Then():
                self._multiply_tiles(blocks, _index(T.Bind(number + 1), counts))
            self._round_tiles(blocks, *blocks.results(_index(number, counts)))

    def _store_tiles(self, count: int) -> None:
        for i in range(count):
            address = T.address_of(self._sums[i * self._how.lanes])  # type: ignore[index]  # has been allocated for tiles
            e.tile("tilestored64", T.uint8(i), address, T.int64(count * self._how.lanes * 4))

    def _multiply_tiles(self, blocks: Blocks, index: Index) -> None:
        count, cells, right = blocks.chunk.vectors, self._how.cells, blocks.right
        at, vector = blocks.operands(index)
        for i in range(count):
            e.tile("tilezero", T.uint8(i))

        def step(first_group: Expr, left_tile: int, right_tile: int) -> None:
            e.tile("tileloadd64", T.uint8(left_tile), T.address_of(blocks.left[at + first_group * 4]), T.int64(blocks.pitch))
            for i in range(count):
                column = right.buffer[(vector + i) * right.pitch + first_group * cells]
                e.tile("tileloadd64", T.uint8(right_tile), T.address_of(column), T.int64(_TILE_BYTES))
                e.tile("tdpbusd", T.uint8(i), T.uint8(left_tile), T.uint8(right_tile))

        tail = self._tail_groups
        full = self._groups // TILE_ROWS if tail else e.ceiling(self._groups, TILE_ROWS)
        with T.serial(0, full) as part:
            step(T.Bind(part * TILE_ROWS), _LEFT_TILE, _RIGHT_TILE)
        if tail:
            step(T.int32(full * TILE_ROWS), _LEFT_TAIL, _RIGHT_TAIL)

    def _round_tiles(self, blocks: Blocks, start: Start, store: Store) -> None:
        count, lanes = blocks.chunk.vectors, self._how.lanes
        with T.serial(0, TILE_ROWS) as row:
            vectors = [e.load(self._sums, row * (count * lanes) + i * lanes, lanes) for i in range(count)]
            starts = [start.vector(lanes, i * lanes, row) for i in range(count)]
            store(row, [T.Bind(x + y) for x, y in zip(vectors, starts, strict=True)])


def _index(number: Expr, counts: Sequence[Expr]) -> list[Expr]:
    """The index of this number below ``counts``."""
    return [e.digit(number, math.prod(counts[place + 1 :]), count) for place, count in enumerate(counts)]
