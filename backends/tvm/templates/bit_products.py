"""How many bits words of weights and of inputs have in common, summed up: AVX512-VPOPCNTDQ and AVX2.

A step brings a word of 32 inputs of each pixel into all lanes; a lane is an output channel and has its word of weights.

AVX512 counts the bits of an int32: an AND, a count and an addition for 512 products. (Two and a half instructions would do, were only the
carries of two products counted, by three vpternlogd for both products; AMD's Zen 4 takes as long for one of these as for two others.)

AVX2 looks the lower and the upper halves of bytes up in a table of 16 entries by vpshufb, adds up bytes as long as they hold the sum, and
then makes int32 of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from tvm.tirx.script import builder as T

from qcompiler.backends.tvm.kernels import ConvolutionKernel
from qcompiler.backends.tvm.templates import emission as e
from qcompiler.backends.tvm.templates.emission import Buffer, Expr
from qcompiler.backends.tvm.templates.planes_layout import LONGEST_COUNT, WORD, PlanesLayout
from qcompiler.backends.tvm.templates.tiles import OutputTile, window_offsets

_COUNTS = tuple(number.bit_count() for number in range(16))


@dataclass(frozen=True)
class Words:
    """Where a tile's words of a plane of weights and of the lowest plane of inputs start."""

    weights: Expr
    inputs: Expr


class Counter(ABC):
    """Adds products to the sums of a tile. ``planes``: those of the inputs, as ``planes_layout`` has them."""

    def __init__(self, kernel: ConvolutionKernel, layout: PlanesLayout, weights: Buffer, planes: Buffer) -> None:
        self._kernel = kernel
        self._layout = layout
        self._matrix = layout.matrix
        self._lanes = layout.matrix.instructions.lanes
        self._weights = weights
        self._planes = planes

    @abstractmethod
    def add(self, sums: e.Sums, tile: OutputTile, words: Words) -> None:
        """For each plane u_j of inputs ``sums += popcount(v_i & u_j)``: kernel rows, runs, steps. ``sums``: [pixel][vector][plane]."""

    def _everywhere(self, at: Expr) -> Expr:
        return T.Bind(T.Broadcast(self._planes[at], self._lanes))

    def _column(self, tile: OutputTile, words: Words, step: Expr, index: int) -> Expr:
        """The words of a vector of channels."""
        return e.load(self._weights, words.weights + step * (tile.vectors * self._lanes) + index * self._lanes, self._lanes)

    def _places(self, tile: OutputTile, words: Words, step: Expr) -> list[list[Expr]]:
        """Where the words of all planes of all pixels are."""
        at = T.Bind(words.inputs + step * self._layout.parts)
        planes = [plane * self._layout.words.elements for plane in range(self._layout.bits.inputs)]
        return [[at + (offset + plane) for plane in planes] for offset in window_offsets(self._kernel, tile, self._layout.words)]

    def _place(self, tile: OutputTile, pixel: int, vector: int, plane: int) -> int:
        """Of a sum."""
        return (pixel * tile.vectors + vector) * self._layout.bits.inputs + plane

    def _row_of(self, words: Words, tile: OutputTile, row: Expr, run: Expr) -> Words:
        """The run of a kernel row."""
        matrix = self._matrix
        row_stride, run_stride = self._kernel.dilation[0] * self._layout.words.row_stride, matrix.run_stride // WORD * self._layout.parts
        weights = words.weights + (row * matrix.runs + run) * (matrix.steps * tile.vectors * self._lanes)
        return Words(T.Bind(weights), T.Bind(words.inputs + row * row_stride + run * run_stride))


class WordCounter(Counter):
    """AVX512-VPOPCNTDQ."""

    def add(self, sums: e.Sums, tile: OutputTile, words: Words) -> None:
        matrix = self._matrix
        with T.serial(0, matrix.kernel_rows) as row, T.serial(0, matrix.runs) as run:
            part = self._row_of(words, tile, row, run)
            with T.serial(0, matrix.steps) as step:
                self._add_step(sums, tile, part, step)

    def _add_step(self, sums: e.Sums, tile: OutputTile, words: Words, step: Expr) -> None:
        columns = [self._column(tile, words, step, index) for index in range(tile.vectors)]
        for pixel, places in enumerate(self._places(tile, words, step)):
            for plane, at in enumerate(places):
                word = self._everywhere(at)
                for index, column in enumerate(columns):
                    place = self._place(tile, pixel, index, plane)
                    sums[place] = T.Bind(sums[place] + e.count_bits(T.Bind(T.bitwise_and(word, column))))


class ByteCounter(Counter):
    """AVX2."""

    def add(self, sums: e.Sums, tile: OutputTile, words: Words) -> None:
        matrix = self._matrix
        with (
            self._counted(sums, 0) as of_rows,
            T.serial(0, matrix.kernel_rows) as row,
            self._counted(of_rows, 1) as of_row,
            T.serial(0, matrix.runs) as run,
            self._counted(of_row, 2) as of_run,
        ):
            self._add_run(of_run, tile, self._row_of(words, tile, row, run))

    def _add_run(self, sums: e.Sums, tile: OutputTile, words: Words) -> None:
        steps = self._matrix.steps
        if self._layout.flush_depth < 3:
            with T.serial(0, steps) as step:
                self._add_step(sums, tile, words, step)
            return
        with T.serial(0, -(-steps // LONGEST_COUNT)) as part:
            first = T.Bind(part * LONGEST_COUNT)
            with self._counted(sums, 3) as counts, T.serial(0, T.min(LONGEST_COUNT, steps - first)) as step:
                self._add_step(counts, tile, words, T.Bind(first + step))

    @contextmanager
    def _counted(self, sums: e.Sums, depth: int) -> Iterator[e.Sums]:
        """What counts inside of a loop are added to: sums of bytes inside of one of the loops, added up behind it."""
        if depth != self._layout.flush_depth:
            yield sums
            return
        counts = e.Sums([e.constant(0, "int8", 4 * self._lanes)] * len(sums))
        yield counts
        ones, wide_ones = e.constant(1, "int8", 4 * self._lanes), e.constant(1, "int16", 2 * self._lanes)
        for index in range(len(sums)):
            sums[index] = e.dot_words(sums[index], e.multiply_add_bytes(counts[index], ones), wide_ones)

    def _add_step(self, counts: e.Sums, tile: OutputTile, words: Words, step: Expr) -> None:
        """The upper halves of the weights' bytes are moved down; what a half has above its four bits meets bits of inputs that are 0."""
        table, four = _table(), e.constant(4, "int32", self._lanes)
        columns = [self._column(tile, words, step, index) for index in range(tile.vectors)]
        halves = [(column, T.Bind(T.shift_right(column, four))) for column in columns]
        for pixel, places in enumerate(self._places(tile, words, step)):
            for plane, at in enumerate(places):
                spread = [self._everywhere(at + part) for part in range(2)]
                for index, parts in enumerate(halves):
                    place = self._place(tile, pixel, index, plane)
                    for word, part in zip(spread, parts, strict=True):
                        common = e.reinterpret(T.Bind(T.bitwise_and(word, part)), "int8")
                        counts[place] = T.Bind(counts[place] + e.pick_bytes(table, common))


def _table() -> Expr:
    """How many bits the numbers from 0 to 15 have, in both halves of a vector."""
    words = [T.int32(word) for word in np.array(_COUNTS, np.int8).view(np.int32).tolist() * 2]
    return e.reinterpret(e.shuffle(words, range(len(words))), "int8")
