"""Calibration data: any iterable of inputs, checked against what the program takes before a value of it is used."""

from __future__ import annotations

import itertools
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from numpy.typing import NDArray

from qcompiler.errors import CalibrationError, QCompilerError
from qcompiler.ir.program import ValueSpec
from qcompiler.ir.sizes import fits, shape_text
from qcompiler.user_code import import_user_module

# One item is a batch: a tensor or array, or one for each input of the program.
DataSource: TypeAlias = Iterable[object] | Callable[[], Iterable[object]]

Samples: TypeAlias = tuple[tuple[torch.Tensor, ...], ...]


@dataclass(frozen=True, eq=False)
class Labelled:
    """A calibration item (a batch, as any other) that belongs to a group: a time step of a diffusion model, a modality, a source of data.

    What the groups are good for is up to ``ObserverSpec.groups``; by default nobody looks at them.
    """

    inputs: object
    group: str | int


_BATCH = 32
_KEPT_SAMPLES = 4
_ARRAY_FILES = (".npy", ".npz")
_EMPTY = "the {} data are empty: give at least one input"


class CalibrationData:
    """Batches for a program, each a tuple of tensors, checked one by one as they are read.

    Args:
        source: a tensor or array of samples (cut into batches of 32); an iterable of batches, each a tensor or a tuple with one entry
            for each input (numpy arrays will do), or such a batch ``Labelled`` with a group; or a function without arguments that gives
            such an iterable.
        inputs: what the program takes.
        purpose: what the data are for, as messages call them: "calibration sample 3".

    Iterating reads the source from its start. A generator has only one: its second reading is a CalibrationError that says so.

    Raises:
        CalibrationError: the data are empty, or a batch has non-finite values or the wrong number, shape or dtype of inputs: the
            message says which item of the data, which input, what was expected and what came. Or what gives the data fails itself.
    """

    def __init__(self, source: DataSource, inputs: Sequence[ValueSpec], purpose: str = "calibration") -> None:
        self._source, self._inputs, self._purpose = source, tuple(inputs), purpose
        self._used_up = False
        self._samples: Samples | None = None
        self.total = len(source) if isinstance(source, list | tuple) else None

    def __iter__(self) -> Iterator[tuple[torch.Tensor, ...]]:
        return (batch for _, batch in self.labelled())

    def labelled(self) -> Iterator[tuple[str, tuple[torch.Tensor, ...]]]:
        """The batches, each with the label of its group; one without a label has an empty one."""
        position = -1
        for position, item in enumerate(self._items()):
            group, inputs = (str(item.group), item.inputs) if isinstance(item, Labelled) else ("", item)
            batch = self._check(position, inputs)
            if self._samples is None:
                self._samples = _first_samples(batch, self._inputs)
            yield group, batch
        if position < 0:
            raise CalibrationError(_EMPTY.format(self._purpose))

    def samples(self) -> Samples:
        """The first few samples, each a batch of one: kept for test vectors and for measuring what a pass loses."""
        if self._samples is None:
            items = self._items()
            first = next(items, None)
            if first is None:
                raise CalibrationError(_EMPTY.format(self._purpose))
            if isinstance(self._source, Iterator):
                self._source, self._used_up = itertools.chain([first], items), False
            self._samples = _first_samples(self._check(0, first.inputs if isinstance(first, Labelled) else first), self._inputs)
        return self._samples

    def _items(self) -> Iterator[object]:
        """The items one by one; an error of the user's code that gives them is told as such, not as one of the pass that asked."""
        position = 0
        try:
            for item in self._opened():
                yield item
                position += 1
        except QCompilerError:
            raise
        except Exception as error:  # the user's function or iterable may raise anything
            place = f"what gives the {self._purpose} data failed at sample {position}"
            raise CalibrationError(f"{place}: {type(error).__name__}: {error}; correct it") from error

    def _opened(self) -> Iterator[object]:
        if isinstance(self._source, Iterator):
            if self._used_up:
                raise CalibrationError(f"the {self._purpose} data are a generator, which can be read only once: give a list or a function")
            self._used_up = True
            return self._source
        source = self._source() if callable(self._source) else self._source
        if isinstance(source, torch.Tensor | np.ndarray):
            return iter(torch.as_tensor(source).split(_BATCH))
        if not isinstance(source, Iterable):
            raise CalibrationError(f"{self._purpose} data must be an iterable of inputs, got {type(source).__name__}")
        return iter(source)

    def _check(self, position: int, item: object) -> tuple[torch.Tensor, ...]:
        values, place = tuple(item) if isinstance(item, list | tuple) else (item,), f"{self._purpose} sample {position}"
        if len(values) != len(self._inputs):
            names = ", ".join(f"'{spec.name}'" for spec in self._inputs)
            hint = "; drop the labels" if len(values) > len(self._inputs) else ""
            raise CalibrationError(f"{place}: expected {len(self._inputs)} input(s) ({names}), got {len(values)} values{hint}")
        return tuple(_check_value(place, spec, value) for spec, value in zip(self._inputs, values, strict=True))


def _check_value(sample: str, spec: ValueSpec, value: object) -> torch.Tensor:
    place = f"{sample}, input '{spec.name}'"
    if not isinstance(value, torch.Tensor | np.ndarray):
        raise CalibrationError(f"{place}: expected a tensor or array, got {type(value).__name__}")
    tensor = torch.as_tensor(value)
    expected, got = f"{_dtype(spec.dtype)} [{shape_text(spec.shape)}]", f"{_dtype(tensor.dtype)} {list(tensor.shape)}"
    if not fits(spec.shape, tensor.shape) or tensor.dtype != spec.dtype or tensor.numel() == 0:
        raise CalibrationError(f"{place}: expected {expected}, got {got}")
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        bad = int((~torch.isfinite(tensor)).sum())
        raise CalibrationError(f"{place}: {bad} of {tensor.numel()} values are NaN or infinite")
    return tensor


def _first_samples(batch: tuple[torch.Tensor, ...], inputs: Sequence[ValueSpec]) -> Samples:
    """Batches of one; what has no batch dimension belongs to each of them, and alone is one sample."""
    batched = [spec.shape[:1] == (None,) for spec in inputs]
    sizes = [value.shape[0] for value, cut in zip(batch, batched, strict=True) if cut]
    count = min([_KEPT_SAMPLES, *sizes]) if sizes else 1
    return tuple(tuple(value[i : i + 1].clone() if cut else value for value, cut in zip(batch, batched, strict=True)) for i in range(count))


def open_data(address: str, inputs: Sequence[ValueSpec]) -> DataSource:
    """The data that a command line names: ``file.npz``, ``file.npy``, a folder of them, or ``package.module:factory``.

    An array file holds samples along the first dimension; each file of a folder is one batch, in the order of their names. An ``.npz``
    has one array for each input, under the inputs' names or else in their order. Nothing is unpickled.

    Raises:
        CalibrationError: there is no such file, folder or factory, or it cannot be read.
    """
    path = Path(address)
    if path.is_dir():
        return _Folder(path, tuple(inputs))
    if path.suffix in _ARRAY_FILES:
        return _split(_read(path, inputs))
    module, separator, name = address.partition(":")
    if not separator:
        raise CalibrationError(f"data '{address}': no such file or folder, and not of the form package.module:factory")
    return _factory(module, name)


def first_item(address: str) -> tuple[object, ...]:
    """The first batch of the data that a command line names, one value for each input, before anything is known of the inputs.

    Raises:
        CalibrationError: as ``open_data``, or the data are empty.
    """
    source = open_data(address, ())
    items = iter(source() if callable(source) else source)
    first = next(items, None)
    if first is None:
        raise CalibrationError(_EMPTY.format("calibration"))
    return tuple(first) if isinstance(first, list | tuple) else (first,)


class _Folder:
    """The array files of a folder, read one at a time."""

    def __init__(self, path: Path, inputs: tuple[ValueSpec, ...]) -> None:
        self._files = sorted(file for file in path.iterdir() if file.suffix in _ARRAY_FILES)
        self._inputs = inputs
        if not self._files:
            raise CalibrationError(f"data folder '{path}' holds no .npy or .npz file")

    def __iter__(self) -> Iterator[object]:
        return (_read(file, self._inputs) for file in self._files)


def _read(path: Path, inputs: Sequence[ValueSpec]) -> tuple[NDArray[Any], ...]:
    """The arrays of one file, one for each input."""
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return (loaded,)
        with loaded:
            names = [spec.name for spec in inputs]
            return tuple(loaded[name] for name in (names if names and set(names) <= set(loaded.files) else loaded.files))
    except FileNotFoundError as error:
        raise CalibrationError(f"data file '{path}': no such file") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise CalibrationError(f"data file '{path}' cannot be read as {path.suffix[1:]}: {error}") from error


def _split(arrays: tuple[NDArray[Any], ...]) -> list[object]:
    """Batches of samples along the first dimension of every array."""
    count = min((len(array) if array.ndim else 1) for array in arrays) if arrays else 0
    return [tuple(array[start : start + _BATCH] for array in arrays) for start in range(0, count, _BATCH)]


def _factory(module: str, name: str) -> DataSource:
    try:
        factory = getattr(import_user_module(module), name)
    except Exception as error:  # the user's module may raise anything
        raise CalibrationError(f"data factory '{module}:{name}' cannot be imported: {type(error).__name__}: {error}") from error
    if not callable(factory):
        raise CalibrationError(f"data factory '{module}:{name}' is a {type(factory).__name__}, not a function")
    return cast("DataSource", factory)


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
