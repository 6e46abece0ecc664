"""Softmax of the rows of a block of scores, as ``attention`` needs it.

A row's probabilities are those of ``arithmetic.softmax``, computed in 16-bit lanes. With e < 2^15, y <= 2^15 + 2 and
u = (e y) >> 15 <= 2^15, shifted by s = b - 1 >= 14 (the table starts at 2^14 at least)::

    u                                = vpmulhuw(2 e, y)
    (u L + 2^(s-1)) >> s             = ((u L >> 8) + 2^(s-9)) >> (s - 8)              floors nest, and 2^8 divides 2^(s-1)
                                     = vpmulhrsw(vpmulhuw(u, 2^8 L), 2^(23-s))        0 instead of the factor for s > 23

The last one is exact because u L < 2^23. Exponentials come from two byte tables by vpermi2b, on AVX2 from memory one by one.

A row's maximum and sum are what is left of vectors that are combined within themselves. The last steps, in parts of 128 bits, and the
reciprocals are computed for a group of rows at once whose parts fill a vector: four on AVX-512, two on AVX2. Exponentials of some rows
(a step) are emitted beside the probabilities of the step before: the former permute, the latter multiply, which are different ports.

Where there are up to 16 more keys than whole vectors, as a class token makes them, those of a group's rows lie side by side in one vector,
too: the tail.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence

from tvm.tirx.script import builder as T

from qcompiler.arithmetic.softmax import EXPONENT_BITS, TABLE_ENTRIES
from qcompiler.backends.tvm.kernels import AttentionKernel, maximum
from qcompiler.backends.tvm.templates import emission as e
from qcompiler.backends.tvm.templates import exponential as x
from qcompiler.backends.tvm.templates import vectors as v
from qcompiler.backends.tvm.templates.emission import Buffer, Expr
from qcompiler.backends.tvm.templates.product import Zeros
from qcompiler.backends.tvm.templates.product_layout import STEP_ROWS, Scheme

TAIL_KEYS = 16  # at most, of a row: 128 bits of scores
_PROBABILITY_SHIFT = 23
_SMALLEST_TOTAL = 1 << (EXPONENT_BITS - 1)  # of a row of which anything is kept
_BYTE_LANES = {16: 64, 8: 16}  # scores that are worked on together, by the int32 lanes of a vector
_PART = 4  # int32 lanes of 128 bits

Combine = Callable[[Expr, Expr], Expr]


def tail_keys(kernel: AttentionKernel, how: Scheme) -> int:
    """Keys past whole vectors of scores that lie beside those of other rows; 0 where there is no such tail."""
    if how.lanes != 16 or not isinstance(kernel.keys, int) or kernel.mask is not None or kernel.bias is not None:
        return 0
    full, rest = divmod(kernel.keys, _BYTE_LANES[how.lanes])
    return rest if full and rest <= TAIL_KEYS else 0


def rows_of(kernel: AttentionKernel, how: Scheme, buffers: dict[str, Buffer], pitch: int, block: int) -> Rows:
    """The form for a target. ``pitch``: bytes of a row of scores; ``block``: rows that are given at once, at most."""
    return (_VectorRows if how.lanes == 16 else _ScalarRows)(kernel, how, buffers, pitch, block)


class Rows(abc.ABC):
    """From the scores of a block of queries to probabilities; the scores are lost. Memory has whole groups of rows."""

    def __init__(self, kernel: AttentionKernel, how: Scheme, buffers: dict[str, Buffer], pitch: int, block: int) -> None:
        self._kernel = kernel
        self._how = how
        self._buffers = buffers
        self._pitch = pitch
        self._count = _BYTE_LANES[how.lanes]
        self._group = how.lanes // _PART
        self._tail = tail_keys(kernel, how)
        self.padded = padded = -(-block // STEP_ROWS) * STEP_ROWS
        """Rows for which there is memory."""
        self.scores = e.scratch(padded * pitch, "int8")
        self.probabilities = e.scratch(padded * pitch, how.element)
        self.tails = e.scratch(padded * TAIL_KEYS, "int8")
        """Of each row the scores of the tail."""
        self._maxima = e.scratch(padded * TAIL_KEYS, "int8")
        self._totals = e.scratch(padded * how.lanes, "int32")
        self._tail_totals = e.scratch(padded * _PART, "int32")
        self._reciprocals, self._scales = (e.scratch(padded, "int32") for _ in range(2))
        if self._tail:
            self._clear_after_tails()
        self._make_tables(padded)

    def _clear_after_tails(self) -> None:
        """Nothing else writes there; a product may read whole vectors."""
        first = maximum(self._kernel.keys) - self._tail
        with T.serial(0, self.padded) as row:
            e.store(self.probabilities, T.Bind(row * self._pitch + first), e.constant(0, self._how.element, self._count))

    @abc.abstractmethod
    def _make_tables(self, rows: int) -> None:
        """Bring the table of exponentials into the form that ``_exponentiate`` reads; memory for the exponentials of so many rows."""

    @abc.abstractmethod
    def _exponentiate(self, row: Expr, keys: Expr, mask: Expr | None) -> Expr:
        """Fill a row of exponentials, with zeros after the last key; gives a vector of parts of twice their sum."""

    @abc.abstractmethod
    def _doubled(self, at: Expr) -> list[Expr]:
        """Twice the exponentials in the place of the scores from ``at`` on, in the order that packing makes natural."""

    @abc.abstractmethod
    def _probability(self, words: Sequence[Expr]) -> Expr:
        """These words as a vector of probabilities."""

    def _exponentiate_tail(self, group: Expr, difference: Expr) -> None:
        """Keep the exponentials of a group's tail and parts of twice their sums, on a target with tails."""
        raise NotImplementedError

    def _doubled_tail(self, at: Expr) -> list[Expr]:
        """Twice the exponentials of a group's tail, as ``_doubled``."""
        raise NotImplementedError

    def emit(self, rows: Expr, keys: Expr, masks: Callable[[Expr], Expr | None], terms: Buffer | None, zeros: Zeros) -> None:
        """``probabilities`` of all rows, with zeros up to a whole vector or the end of the tail.

        ``masks``: where that of a row begins, of any row of a group. ``terms``: where the rows' terms of the second product belong.
        """
        steps = e.ceiling(rows, STEP_ROWS)
        with T.serial(0, T.Bind(steps * STEP_ROWS)) as row:
            self._halve_scores(row, keys, masks(row))

        def exponentiate(row: Expr) -> None:
            e.store(self._totals, T.Bind(row * self._how.lanes), self._exponentiate(row, keys, masks(row)))

        def end(step: Expr) -> None:
            if self._tail:
                self._each_group(step, lambda group: self._normalize_tail(group, keys, terms, zeros))

        self._each_group(T.int32(0), self._begin)
        with T.serial(0, STEP_ROWS) as row:
            exponentiate(row)
        self._invert(T.int32(0))
        with T.serial(0, T.Bind(steps - 1)) as step:
            following = T.Bind(step + 1)
            self._each_group(following, self._begin)
            with T.serial(0, STEP_ROWS) as row:
                exponentiate(T.Bind(following * STEP_ROWS + row))
                self._normalize(T.Bind(step * STEP_ROWS + row), keys, terms, zeros)
            end(step)
            self._invert(following)
        last = T.Bind(steps - 1)
        with T.serial(0, STEP_ROWS) as row:
            self._normalize(T.Bind(last * STEP_ROWS + row), keys, terms, zeros)
        end(last)

    def _each_group(self, step: Expr, emit_one: Callable[[Expr], None]) -> None:
        """Of a step."""
        count = STEP_ROWS // self._group
        with T.serial(0, count) as number:
            emit_one(T.Bind(step * count + number))

    def _halve_scores(self, row: Expr, keys: Expr, mask: Expr | None) -> None:
        """Of the row's whole vectors 128 bits of maxima."""
        start, lowest = T.Bind(row * self._pitch), self._lowest
        largest = v.Register(e.constant(lowest, self._kernel.scores_dtype, self._count))

        def body(first: Expr, rest: Expr | None) -> None:
            natural = e.reinterpret(e.load(self.scores, T.Bind(start + first), self._count), self._kernel.scores_dtype)
            largest.set(v.maximum(largest.value, self._kept(natural, first, rest, mask, lowest)))

        v.over_row(keys - self._tail, self._count, body)
        e.store(self._maxima, T.Bind(row * TAIL_KEYS), e.reinterpret(_halved(largest.value, v.maximum), "int8"))

    def _begin(self, group: Expr) -> None:
        """The maximum of each row, in all bytes of its part, and the exponentials of the tail."""
        count = self._group * TAIL_KEYS
        at = T.Bind(group * count)
        largest = e.reinterpret(e.load(self._maxima, at, count), self._kernel.scores_dtype)
        if self._tail:
            tails = T.Bind(T.bitwise_and(e.load(self.tails, at, count), self._in_tail(-1, 0)))
            lowest = T.Bind(T.bitwise_or(tails, self._in_tail(0, self._lowest)))
            largest = v.maximum(largest, e.reinterpret(lowest, self._kernel.scores_dtype))
        top = e.reinterpret(_across_parts(largest, v.maximum), "int8")
        e.store(self._maxima, at, top)
        if self._tail:
            self._exponentiate_tail(group, T.Bind(top - e.load(self.tails, at, count)))

    def _in_tail(self, inside: int, outside: int) -> Expr:
        """A vector with one number at the scores of the tail, the other one behind them."""
        count = self._group * TAIL_KEYS
        choices = [e.constant(number, "int8", count) for number in (inside, outside)]
        return e.shuffle(choices, [0 if lane % TAIL_KEYS < self._tail else count for lane in range(count)])

    def _invert(self, step: Expr) -> None:
        """``y`` and ``2^(23-s)`` of each row's sum, as two words each."""
        lanes = self._how.lanes
        first = T.Bind(step * STEP_ROWS)
        doubled = [self._doubled_sums(T.Bind(first + row)) for row in range(0, STEP_ROWS, self._group)]
        sums = e.shuffle(doubled, range(0, len(doubled) * lanes, _PART))
        total = v.maximum(T.Bind(T.shift_right(sums, v.like(sums, 1))), v.like(sums, _SMALLEST_TOTAL))
        zeros = v.leading_zeros(total)  # 32 - b
        y = x.newton_reciprocal(T.Bind(T.shift_right(T.shift_left(total, zeros - v.like(zeros, 1)), v.like(zeros, 16))))
        scale = T.Bind(T.shift_right(v.like(zeros, 1 << _PROBABILITY_SHIFT), v.like(zeros, 31) - zeros))
        for buffer, word in ((self._reciprocals, y), (self._scales, scale)):
            e.store(buffer, first, T.Bind(T.bitwise_or(word, T.shift_left(word, v.like(word, 16)))))

    def _doubled_sums(self, first: Expr) -> Expr:
        """Twice the sums of a group's exponentials, each in all lanes of its row's part."""
        lanes = self._how.lanes
        doubled = _folded([e.load(self._totals, T.Bind((first + row) * lanes), lanes) for row in range(self._group)])
        if self._tail:
            doubled = e.add_modulo(doubled, e.load(self._tail_totals, T.Bind(first * _PART), lanes))
        return _across_parts(doubled, e.add_modulo)

    def _scaled(self, doubled: Expr, reciprocal: Expr, scale: Expr) -> Expr:
        """Probabilities, as words, from twice the exponentials; the module's formula."""
        high = self._high
        factor = v.like(doubled, (high << 8) - (1 << 16 if high >= 128 else 0))  # its bits as uint16
        u = e.multiply_high_unsigned(doubled, reciprocal)
        return e.multiply_high_round(e.multiply_high_unsigned(u, factor), scale)

    def _normalize_tail(self, group: Expr, keys: Expr, terms: Buffer | None, zeros: Zeros) -> None:
        count, lanes = self._group * TAIL_KEYS, range(self._how.lanes)
        first = T.Bind(group * self._group)
        words_of_rows = (e.load(buffer, first, self._group) for buffer in (self._reciprocals, self._scales))
        factors = [e.reinterpret(e.shuffle([each] * self._group, [i // _PART for i in lanes]), "int16") for each in words_of_rows]
        doubled = self._doubled_tail(T.Bind(group * count))
        used = doubled[: 1 if self._tail <= TAIL_KEYS // 2 else 2]  # the second half has the keys from the ninth on
        words = [self._scaled(each, *factors) for each in used]
        packed = self._probability(words + [v.like(each, 0) for each in doubled[len(used) :]])
        for place in range(self._group):
            row, part = T.Bind(first + place), e.pick(packed, range(place * TAIL_KEYS, (place + 1) * TAIL_KEYS))
            e.store(self.probabilities, T.Bind(row * self._pitch + (keys - self._tail)), part)
            if terms is not None:
                total = e.dot_bytes(e.constant(0, "int32", _PART), part, e.constant(1, "int8", TAIL_KEYS))
                T.buffer_store(terms, terms[row] + self._term(total, zeros), [row])

    def _normalize(self, row: Expr, keys: Expr, terms: Buffer | None, zeros: Zeros) -> None:
        factors = [e.reinterpret(v.splat(T.Bind(buffer[row]), self._how.lanes), "int16") for buffer in (self._reciprocals, self._scales)]
        total = v.Register(e.constant(0, "int32", self._how.lanes)) if terms is not None else None
        start = T.Bind(row * self._pitch)

        def body(first: Expr, rest: Expr | None) -> None:
            at = T.Bind(start + first)
            packed = self._probability([self._scaled(each, *factors) for each in self._doubled(at)])
            e.store(self.probabilities, at, packed)
            if total is not None:
                total.set(e.dot_bytes(total.value, packed, e.constant(1, "int8", e.lanes(packed))))

        v.over_row(keys - self._tail, self._count, body)
        if total is not None:
            T.buffer_store(terms, self._term(total.value, zeros), [row])

    def _term(self, parts: Expr, zeros: Zeros) -> Expr:
        """What a sum of probabilities adds to the second product."""
        return T.Bind(v.reduce("add", parts) * e.number(-zeros.flipped_right, "int32"))

    def _top(self, row: Expr) -> Expr:
        """The row's maximum in all lanes."""
        every = T.Bind(T.reinterpret(self._maxima[T.Ramp(row * TAIL_KEYS, 1, 4)], dtype="int32"))
        return e.reinterpret(v.splat(every, self._count // 4), "int8")

    def _kept(self, vector: Expr, first: Expr, rest: Expr | None, mask: Expr | None, neutral: int) -> Expr:
        """The lanes that exist and are not masked, ``neutral`` in the others."""
        if mask is not None:
            kept = e.load(self._buffers["mask"], T.Bind(mask + first), self._count)
            vector = T.Bind(T.Select(kept != v.like(kept, 0), vector, v.like(vector, neutral)))
        return v.only_first(vector, rest, neutral)

    @property
    def _lowest(self) -> int:
        return -128 if self._kernel.scores_dtype == "int8" else 0

    @property
    def _high(self) -> int:
        return (1 << self._kernel.bits) - 1


class _VectorRows(Rows):
    """AVX512-VBMI: byte planes of twice the table. Low bytes of exponentials take the place of the scores, high ones mostly that of the
    probabilities."""

    def _make_tables(self, rows: int) -> None:
        self._planes = [e.scratch(TABLE_ENTRIES, "int8") for _ in range(2)]
        for start in range(0, TABLE_ENTRIES, 16):
            entry = e.load(self._buffers["table"], start, 16)
            e.store(self._planes[0], start, e.cast(T.Bind(T.shift_left(entry, v.like(entry, 1))), "int8"))
            e.store(self._planes[1], start, e.cast(T.Bind(T.shift_right(entry, v.like(entry, 7))), "int8"))
        self._high_bytes = e.scratch(rows * self._pitch, "int8") if self._how.kind == "words" else self.probabilities
        self._tail_high_bytes = e.scratch(rows * TAIL_KEYS, "int8")

    def _look_up(self, difference: Expr) -> list[Expr]:
        """Low and high bytes of twice the exponentials."""
        planes = ([e.load(plane, quarter, 64) for quarter in range(0, TABLE_ENTRIES, 64)] for plane in self._planes)
        return [v.look_up_bytes(quarters, difference) for quarters in planes]

    def _exponentiate(self, row: Expr, keys: Expr, mask: Expr | None) -> Expr:
        start, top = T.Bind(row * self._pitch), self._top(row)
        sums = [v.Register(e.constant(0, "int32", 16)) for _ in range(2)]

        def body(first: Expr, rest: Expr | None) -> None:
            at = T.Bind(start + first)
            found = self._look_up(T.Bind(top - e.load(self.scores, at, 64)))
            for byte, total, buffer in zip(found, sums, (self.scores, self._high_bytes), strict=True):
                kept = self._kept(byte, first, rest, mask, 0)
                total.set(e.dot_bytes(total.value, kept, e.constant(1, "int8", 64)))
                e.store(buffer, at, kept)

        v.over_row(keys - self._tail, self._count, body)
        low, high = (total.value for total in sums)
        return _joined(low, high)

    def _exponentiate_tail(self, group: Expr, difference: Expr) -> None:
        sums = []
        for byte, buffer in zip(self._look_up(difference), (self.tails, self._tail_high_bytes), strict=True):
            kept = T.Bind(T.bitwise_and(byte, self._in_tail(-1, 0)))
            sums.append(e.dot_bytes(e.constant(0, "int32", 16), kept, e.constant(1, "int8", 64)))
            e.store(buffer, T.Bind(group * 64), kept)
        e.store(self._tail_totals, T.Bind(group * 16), _joined(*sums))

    def _doubled(self, at: Expr) -> list[Expr]:
        return _interleaved(e.load(self.scores, at, 64), e.load(self._high_bytes, at, 64))

    def _doubled_tail(self, at: Expr) -> list[Expr]:
        return _interleaved(e.load(self.tails, at, 64), e.load(self._tail_high_bytes, at, 64))

    def _probability(self, words: Sequence[Expr]) -> Expr:
        packed = e.pack_bytes(words[0], words[1], unsigned=True)
        if self._how.kind == "words":
            return e.cast(e.reinterpret(packed, "uint8"), "int16")
        if self._high == 255:
            return packed
        return e.reinterpret(v.minimum(e.reinterpret(packed, "uint8"), e.constant(self._high, "uint8", 64)), "int8")


class _ScalarRows(Rows):
    """AVX2: exponentials one by one from the table in 16 bits. They lie where the probabilities will."""

    def _make_tables(self, rows: int) -> None:
        self._table = e.scratch(TABLE_ENTRIES, "int16")
        for start in range(0, TABLE_ENTRIES, 8):
            e.store(self._table, start, e.cast(e.load(self._buffers["table"], start, 8), "int16"))

    def _exponentiate(self, row: Expr, keys: Expr, mask: Expr | None) -> Expr:
        start, exponentials = T.Bind(row * self._pitch), self.probabilities
        kind = self._kernel.scores_dtype
        top = T.Bind(T.Cast("int32", T.reinterpret(self._maxima[row * TAIL_KEYS], dtype=kind)))
        with T.serial(0, keys) as key:
            score = T.Cast("int32", T.reinterpret(self.scores[start + key], dtype=kind))
            found = T.Bind(self._table[T.bitwise_and(top - score, T.int32(255))])
            if mask is not None:
                found = T.Bind(T.Select(self._buffers["mask"][mask + key] != T.int8(0), found, T.int16(0)))
            T.buffer_store(exponentials, found, [start + key])
        total = v.Register(e.constant(0, "int32", 8))

        def body(first: Expr, rest: Expr | None) -> None:
            words = v.only_first(e.load(exponentials, T.Bind(start + first), 16), rest, 0)
            if rest is not None:
                e.store(exponentials, T.Bind(start + first), words)
            total.set(e.dot_words(total.value, words, e.constant(1, "int16", 16)))

        v.over_row(keys, 16, body)
        return e.add_modulo(total.value, total.value)

    def _doubled(self, at: Expr) -> list[Expr]:
        words = e.load(self.probabilities, at, 16)
        return [T.Bind(words + words)]

    def _probability(self, words: Sequence[Expr]) -> Expr:
        return v.minimum(words[0], e.constant(self._high, "int16", 16))


def _interleaved(low: Expr, high: Expr) -> list[Expr]:
    """Words of these bytes; saturating packs bring them back into their order."""
    return [e.reinterpret(e.interleave(low, high, half), "int16") for half in (0, 1)]


def _joined(low: Expr, high: Expr) -> Expr:
    """``low + 2^8 high``."""
    return e.add_modulo(low, T.Bind(T.shift_left(high, v.like(high, 8))))


def _halved(vector: Expr, combine: Combine) -> Expr:
    """Its upper half combined with the lower one until 128 bits are left."""
    while e.bits(vector) > 128:
        half = e.lanes(vector) // 2
        vector = combine(e.pick(vector, range(half)), e.pick(vector, range(half, 2 * half)))
    return vector


def _folded(vectors: Sequence[Expr]) -> Expr:
    """The sums of several vectors, down to 128 bits each, side by side in one."""
    count = part = e.lanes(vectors[0])
    while len(vectors) > 1:
        half = part // 2
        low, high = ([start + lane for start in range(side, 2 * count, part) for lane in range(half)] for side in (0, half))
        pairs = zip(vectors[::2], vectors[1::2], strict=True)
        vectors = [e.add_modulo(e.shuffle(pair, low), e.shuffle(pair, high)) for pair in pairs]
        part = half
    return vectors[0]


def _across_parts(vector: Expr, combine: Combine) -> Expr:
    """The elements of each 128 bits combined, the result in all of them."""
    distance = e.lanes(vector) * 128 // e.bits(vector) // 2
    while distance:
        vector = combine(vector, e.pick(vector, [lane ^ distance for lane in range(e.lanes(vector))]))
        distance //= 2
    return vector
