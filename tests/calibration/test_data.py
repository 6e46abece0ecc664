from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from qcompiler.calibration.data import CalibrationData, DataSource, open_data
from qcompiler.errors import CalibrationError
from qcompiler.ir.program import ValueSpec

IMAGE = ValueSpec("image", torch.float32, (None, 3, 4, 4))
LENGTH = ValueSpec("length", torch.int64, (None,))


def batches(count: int, size: int = 2) -> list[torch.Tensor]:
    return [torch.full((size, 3, 4, 4), float(i)) for i in range(count)]


def read(source: object, *specs: ValueSpec) -> list[tuple[torch.Tensor, ...]]:
    return list(CalibrationData(source, specs or (IMAGE,)))  # type: ignore[arg-type]  # wrong kinds are tested too


def test_tensors_arrays_and_tuples_are_batches() -> None:
    (first,), (second,) = read([batches(1)[0], (np.ones((1, 3, 4, 4), np.float32),)])
    assert first.shape == (2, 3, 4, 4) and torch.equal(second, torch.ones(1, 3, 4, 4))
    ((image, length),) = read([(torch.zeros(2, 3, 4, 4), torch.tensor([1, 2]))], IMAGE, LENGTH)
    assert image.shape == (2, 3, 4, 4) and length.tolist() == [1, 2]


def test_a_bare_tensor_is_cut_into_batches() -> None:
    values = torch.arange(70.0).reshape(70, 1, 1, 1).expand(70, 3, 4, 4)
    for source in (values, values.numpy()):
        parts = [batch for (batch,) in read(source)]
        assert [len(part) for part in parts] == [32, 32, 6]
        assert torch.equal(torch.cat(parts), values)


def test_a_function_gives_the_data_anew() -> None:
    data = CalibrationData(lambda: iter(batches(3)), (IMAGE,))
    assert len(list(data)) == len(list(data)) == 3


def test_a_generator_is_read_once() -> None:
    data = CalibrationData(iter(batches(3)), (IMAGE,))
    assert len(data.samples()) == 2
    assert [float(batch[0, 0, 0, 0]) for (batch,) in data] == [0.0, 1.0, 2.0]
    with pytest.raises(CalibrationError, match="a generator, which can be read only once: give a list or a function"):
        list(data)


def test_samples_are_the_first_ones_of_batch_one() -> None:
    big = torch.arange(6.0).reshape(6, 1, 1, 1).expand(6, 3, 4, 4)
    samples = CalibrationData([big], (IMAGE,)).samples()
    assert [float(image[0, 0, 0, 0]) for (image,) in samples] == [0.0, 1.0, 2.0, 3.0]
    assert all(image.shape == (1, 3, 4, 4) for (image,) in samples)


def test_an_input_without_a_batch_stays_whole() -> None:
    state = ValueSpec("state", torch.float32, (2, 1, 8))
    fixed = ValueSpec("image", torch.float32, (1, 3, 4, 4))
    (sample,) = CalibrationData([(torch.zeros(1, 3, 4, 4), torch.ones(2, 1, 8))], (fixed, state)).samples()
    assert [tuple(value.shape) for value in sample] == [(1, 3, 4, 4), (2, 1, 8)]
    samples = CalibrationData([(torch.zeros(3, 3, 4, 4), torch.ones(2, 1, 8))], (IMAGE, state)).samples()
    assert [tuple(value.shape) for sample in samples for value in sample] == [(1, 3, 4, 4), (2, 1, 8)] * 3


def not_finite(value: float) -> torch.Tensor:
    bad = torch.zeros(2, 3, 4, 4)
    bad[1, 0, 2, 3] = value
    return bad


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([], "the calibration data are empty"),
        (torch.zeros(0, 3, 4, 4), "expected float32 [N, 3, 4, 4], got float32 [0, 3, 4, 4]"),
        ([*batches(2), not_finite(torch.nan)], "calibration sample 2, input 'image': 1 of 96 values are NaN or infinite"),
        ([not_finite(torch.inf)], "calibration sample 0, input 'image': 1 of 96 values are NaN or infinite"),
        ([*batches(1), torch.zeros(3, 4, 4)], "calibration sample 1, input 'image': expected float32 [N, 3, 4, 4], got float32 [3, 4, 4]"),
        ([torch.zeros(1, 4, 4, 3)], "calibration sample 0, input 'image': expected float32 [N, 3, 4, 4], got float32 [1, 4, 4, 3]"),
        (
            [torch.zeros(1, 3, 4, 4).double()],
            "calibration sample 0, input 'image': expected float32 [N, 3, 4, 4], got float64 [1, 3, 4, 4]",
        ),
        ([(batches(1)[0], 7)], "calibration sample 0: expected 1 input(s) ('image'), got 2 values; drop the labels"),
        ([{"image": 1}], "calibration sample 0, input 'image': expected a tensor or array, got dict"),
        (7, "calibration data must be an iterable of inputs, got int"),
    ],
)
def test_bad_data_are_told_with_their_place(source: object, message: str) -> None:
    with pytest.raises(CalibrationError) as caught:
        read(source)
    assert message in str(caught.value)


def failing() -> Iterator[torch.Tensor]:
    yield torch.zeros(1, 3, 4, 4)
    raise OSError("disk")


@pytest.mark.parametrize("source", [failing, failing()])
def test_an_error_of_what_gives_the_data_is_the_users(source: DataSource) -> None:
    with pytest.raises(CalibrationError, match="^what gives the calibration data failed at sample 1: OSError: disk; correct it$"):
        read(source)


def test_data_for_something_else_have_its_name() -> None:
    with pytest.raises(CalibrationError, match=r"^input sample 0, input 'image': expected"):
        list(CalibrationData([torch.zeros(1, 4)], (IMAGE,), "input"))


def test_an_input_is_missing() -> None:
    with pytest.raises(CalibrationError, match=r"expected 2 input\(s\) \('image', 'length'\), got 1 values$"):
        read([batches(1)[0]], IMAGE, LENGTH)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in (2, 0, 1):
        np.save(tmp_path / f"{i}.npy", np.full((1, 3, 4, 4), i, np.float32))
    np.savez(tmp_path / "3.npz", np.full((1, 3, 4, 4), 3, np.float32))
    (tmp_path / "notes.txt").write_text("not data")
    return tmp_path


def test_a_folder_is_read_by_name(folder: Path) -> None:
    assert [float(batch[0, 0, 0, 0]) for (batch,) in read(open_data(str(folder), (IMAGE,)))] == [0.0, 1.0, 2.0, 3.0]


def test_arrays_of_an_archive_go_by_name_or_by_order(tmp_path: Path) -> None:
    images, lengths = np.zeros((40, 3, 4, 4), np.float32), np.arange(40)
    np.savez(tmp_path / "named.npz", length=lengths, image=images)
    np.savez(tmp_path / "ordered.npz", images, lengths)
    for name in ("named.npz", "ordered.npz"):
        parts = read(open_data(str(tmp_path / name), (IMAGE, LENGTH)), IMAGE, LENGTH)
        assert [len(image) for image, _ in parts] == [32, 8]
        assert torch.equal(torch.cat([length for _, length in parts]), torch.arange(40))


def test_a_factory_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_images.py").write_text("import torch\ndef images():\n    yield torch.ones(1, 3, 4, 4)\nfixed = 3\n")
    monkeypatch.chdir(tmp_path)
    data = CalibrationData(open_data("my_images:images", (IMAGE,)), (IMAGE,))
    assert len(list(data)) == len(list(data)) == 1
    with pytest.raises(CalibrationError, match="'my_images:fixed' is a int, not a function"):
        open_data("my_images:fixed", (IMAGE,))
    with pytest.raises(CalibrationError, match="'my_images:absent' cannot be imported: AttributeError"):
        open_data("my_images:absent", (IMAGE,))


def broken_files(folder: Path) -> Iterator[tuple[str, str]]:
    (folder / "empty").mkdir()
    yield str(folder / "empty"), "holds no .npy or .npz file"
    yield str(folder / "absent.npz"), "no such file"
    yield str(folder / "absent"), "no such file or folder, and not of the form package.module:factory"
    (folder / "damaged.npz").write_bytes(b"PK\x03\x04 nothing")
    yield str(folder / "damaged.npz"), "cannot be read as npz"
    (folder / "damaged.npy").write_bytes(b"\x93NUMPY nothing")
    yield str(folder / "damaged.npy"), "cannot be read as npy"
    np.save(folder / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    yield str(folder / "objects.npy"), "cannot be read as npy"


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for address, message in broken_files(tmp_path):
        with pytest.raises(CalibrationError) as caught:
            open_data(address, (IMAGE,))
        assert message in str(caught.value)
