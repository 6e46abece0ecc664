"""Values of many samples in a file, read a few rows at a time: what is kept in memory does not grow with the calibration data."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qcompiler.errors import CalibrationError


class ValueStore:
    """One value for each sample, [samples, ...]; written once from front to back, then read in any order."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._shape: tuple[int, ...] | None = None
        self._dtype = torch.float32
        self._count = 0
        self._rows: NDArray[Any] | None = None
        self._file = path.open("wb")

    def append(self, batch: Tensor) -> None:
        """Add the samples along the first dimension.

        Raises:
            CalibrationError: they have another shape than those before.
        """
        shape = tuple(batch.shape[1:])
        if self._shape is None:
            self._shape, self._dtype = shape, batch.dtype
        if shape != self._shape:
            raise CalibrationError(
                f"calibration samples have values of shapes {list(self._shape)} and {list(shape)}: "
                "reconstruction mixes samples, so give all of one shape (pad sequences to one length)"
            )
        self._file.write(batch.detach().contiguous().numpy().tobytes())
        self._count += batch.shape[0]

    def __len__(self) -> int:
        return self._count

    @property
    def numel(self) -> int:
        """How many numbers are stored."""
        return self._count * math.prod(self._shape or ())

    def rows(self, index: Tensor) -> Tensor:
        """The samples with the given numbers, in that order."""
        return torch.from_numpy(np.asarray(self._open()[index.numpy()]))

    def batches(self, size: int) -> Iterator[Tensor]:
        """All samples in order, ``size`` at a time."""
        for start in range(0, self._count, size):
            yield torch.from_numpy(np.array(self._open()[start : start + size]))

    def delete(self) -> None:
        """Drop the file; what was read stays valid."""
        self._rows = None
        self._file.close()
        self._path.unlink(missing_ok=True)

    def _open(self) -> NDArray[Any]:
        if self._rows is None:
            self._file.close()
            shape = (self._count, *(self._shape or ()))
            dtype = torch.empty(0, dtype=self._dtype).numpy().dtype
            self._rows = np.memmap(self._path, dtype=dtype, mode="r", shape=shape)
        return self._rows
