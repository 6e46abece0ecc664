from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from qcompiler.errors import CalibrationError, QCompilerError, UnknownNameError
from qcompiler.pipeline.executor import Ledger, LocalExecutor, Result, run_tasks

TASKS = [f"task {number}" for number in range(7)]


@dataclass(frozen=True)
class Squares:
    """Squares the number in a task's name; leaves a line for each task in ``folder``; later tasks are done sooner."""

    folder: Path
    fails: str = ""
    error: type[Exception] = CalibrationError

    def open(self) -> Callable[[str], Result]:
        return self.do

    def do(self, task: str) -> Result:
        number = int(task.split()[1])
        if task == self.fails:
            raise self.error("there is nothing to square")
        time.sleep(0.01 * (len(TASKS) - number))
        (self.folder / f"{task}-{os.getpid()}").touch()
        return {"square": number * number / 3.0}


@dataclass(frozen=True)
class Dies:
    def open(self) -> Callable[[str], Result]:
        return lambda task: os._exit(3)


@dataclass(frozen=True)
class Closed:
    def open(self) -> Callable[[str], Result]:
        raise UnknownNameError("folder", "a", ["b"])


def expected(tasks: list[str]) -> dict[str, Result]:
    return {task: {"square": int(task.split()[1]) ** 2 / 3.0} for task in tasks}


@pytest.mark.parametrize("workers", [1, 3, 20])
def test_results_do_not_depend_on_the_number_of_workers(workers: int, tmp_path: Path) -> None:
    results = run_tasks(Squares(tmp_path), TASKS, LocalExecutor(workers))
    assert results == expected(TASKS) and list(results) == TASKS
    used = {path.name.rsplit("-", 1)[1] for path in tmp_path.iterdir()}
    assert (used == {str(os.getpid())}) == (workers == 1)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_names_its_task_and_keeps_its_class(workers: int, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="^task 2: there is nothing to square$"):
        run_tasks(Squares(tmp_path, "task 2"), TASKS, LocalExecutor(workers))


@pytest.mark.parametrize("workers", [1, 2])
def test_an_unforeseen_error_names_its_task(workers: int, tmp_path: Path) -> None:
    with pytest.raises(QCompilerError, match="^task 2: failed: ZeroDivisionError: there is"):
        run_tasks(Squares(tmp_path, "task 2", ZeroDivisionError), TASKS, LocalExecutor(workers))


def test_a_worker_that_dies_is_told() -> None:
    with pytest.raises(QCompilerError, match="a worker process ended before its task was done.*fewer workers"):
        run_tasks(Dies(), TASKS, LocalExecutor(2))


def test_a_worker_that_cannot_start_is_told() -> None:
    with pytest.raises(QCompilerError, match="unknown folder 'a': did you mean 'b'"):
        run_tasks(Closed(), TASKS, LocalExecutor(2))


def test_wrong_numbers_of_workers_and_unknown_starts() -> None:
    with pytest.raises(QCompilerError, match="workers must be at least 1, got 0"):
        LocalExecutor(0)
    with pytest.raises(QCompilerError, match="cannot be started by 'thread'"):
        LocalExecutor(2, "thread")


def test_finished_tasks_are_not_done_again(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "kept", "identity")
    with pytest.raises(CalibrationError):
        run_tasks(Squares(tmp_path, "task 4"), TASKS, LocalExecutor(), ledger=ledger)
    done = set(tmp_path.glob("task*"))
    assert len(done) == 4
    results = run_tasks(Squares(tmp_path), TASKS, LocalExecutor(2), ledger=Ledger(tmp_path / "kept", "identity"))
    assert results == expected(TASKS) and list(results) == TASKS
    assert len(list(tmp_path.glob("task*"))) == len(TASKS), "a finished task was done again"


def test_a_torn_line_counts_as_not_finished(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, "identity")
    ledger.keep("task 0", {"square": 0.1 + 0.2})
    ledger.keep("task 1", {"square": 2.0})
    path = tmp_path / "finished.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    assert ledger.finished() == {"task 0": {"square": 0.1 + 0.2}}
    ledger.keep("task 2", {"square": 3.0})
    assert ledger.finished() == {"task 0": {"square": 0.1 + 0.2}, "task 2": {"square": 3.0}}


def test_the_ledger_of_other_work_is_refused(tmp_path: Path) -> None:
    Ledger(tmp_path, "identity")
    with pytest.raises(QCompilerError, match="holds the work of another program, other data or other options: delete the folder"):
        Ledger(tmp_path, "another")


def test_a_ledger_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(QCompilerError, match="give a folder that can be written"):
        Ledger(tmp_path / "file", "identity")


CHILD = """
import runpy, sys
from pathlib import Path
from qcompiler.pipeline.executor import Ledger, LocalExecutor, run_tasks
folder = Path(sys.argv[1])
names = runpy.run_path(sys.argv[2])
class Slow(names["Squares"]):
    def do(self, task):
        if task == "task 3":
            (folder / "reached").touch()
            import time; time.sleep(60)
        return super().do(task)
run_tasks(Slow(folder), names["TASKS"], LocalExecutor(int(sys.argv[3])), ledger=Ledger(folder / "kept", "identity"))
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_run_continues_and_leaves_no_process(workers: int, tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path), __file__, str(workers)])
    try:
        wait_until(lambda: (tmp_path / "reached").exists() or child.poll() is not None)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    kept = Ledger(tmp_path / "kept", "identity")
    finished = kept.finished()
    assert "task 3" not in finished and (list(finished) == TASKS[:3] if workers == 1 else finished)
    pids = {path.name.rsplit("-", 1)[1] for path in tmp_path.glob("task*")}
    wait_until(lambda: not any(runs(pid) for pid in pids))
    done = len(list(tmp_path.glob("task*")))
    assert run_tasks(Squares(tmp_path), TASKS, LocalExecutor(), ledger=kept) == expected(TASKS)
    again = len(list(tmp_path.glob("task*"))) - done
    assert again == len(TASKS) - len(finished), "a finished task was done again"


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60.0
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def runs(pid: str) -> bool:
    """Whether a process is there and no mere entry that nobody has asked after."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
