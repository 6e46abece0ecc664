"""Independent pieces of work, done here, in several processes, or elsewhere; results come in any order, each with the name of its task.

``Work`` says how a worker prepares itself (once) and what it does for a task (a name). ``Executor`` says where that happens: another one,
such as one over Ray actors, needs the one method ``results`` and changes no caller. ``run_tasks`` is what callers use: it shows progress,
names the task in every error, and keeps finished results in a ``Ledger``, so that a run that was killed continues.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import torch

from qcompiler.errors import PassError, QCompilerError
from qcompiler.files import claim
from qcompiler.pipeline.progress import Progress, SilentProgress

# What a task gives: JSON's types, so that a ledger can keep it and any transport can carry it.
Result: TypeAlias = dict[str, float]

_RESULTS = "finished.jsonl"
_SECONDS_BETWEEN_LOOKS = 0.5


class Work(Protocol):
    """What is to be done. Must be picklable and small: large things (weights, samples) lie in files that ``open`` maps."""

    def open(self) -> Callable[[str], Result]:
        """Called once in each worker; gives the function that does one task. It must not depend on the tasks done before."""


class Executor(Protocol):
    """Where work is done."""

    def results(self, work: Work, tasks: Sequence[str]) -> Iterator[tuple[str, Result]]:
        """Start all tasks; give each one's name and result, in any order, as they are finished.

        Raises:
            QCompilerError: a task failed; the message starts with its name. Tasks that were not started are dropped.
        """


@dataclass(frozen=True)
class LocalExecutor:
    """This machine: one after the other in this process (``workers=1``), or in so many processes with one thread each.

    start: how processes are made: ``fork`` (copies of this process: nothing is imported again, and scripts need no main guard), ``spawn``
        or ``forkserver`` (fresh ones); None: ``fork`` where the system has it. Either way a worker asks ``Work.open`` for all it needs.
    """

    workers: int = 1
    start: str | None = None

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise QCompilerError(f"workers must be at least 1, got {self.workers}")
        if self.start is not None and self.start not in multiprocessing.get_all_start_methods():
            raise QCompilerError(
                f"processes cannot be started by '{self.start}' here: use {', '.join(multiprocessing.get_all_start_methods())}"
            )

    def results(self, work: Work, tasks: Sequence[str]) -> Iterator[tuple[str, Result]]:
        """See ``Executor``. Processes are started before this returns, so that threads that the caller starts later are not copied."""
        workers = min(self.workers, len(tasks))
        return _one_by_one(work, tasks) if workers <= 1 else self._in_processes(work, tasks, workers)

    def _in_processes(self, work: Work, tasks: Sequence[str], workers: int) -> Iterator[tuple[str, Result]]:
        methods = multiprocessing.get_all_start_methods()
        context = multiprocessing.get_context(self.start or ("fork" if "fork" in methods else "spawn"))
        pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_prepare, initargs=(work,))
        return _collected(pool, {pool.submit(_do, task): task for task in tasks})


def run_tasks(
    work: Work,
    tasks: Sequence[str],
    executor: Executor,
    *,
    ledger: Ledger | None = None,
    progress: Progress | None = None,
    description: str = "working",
) -> dict[str, Result]:
    """Do all tasks and give their results by name, in the order of ``tasks``; those that the ledger has are not done again.

    Raises:
        QCompilerError: a task failed; names it.
    """
    finished = ledger.finished() if ledger else {}
    left = [task for task in tasks if task not in finished]
    if left:
        arriving = executor.results(work, left)
        for task, result in (progress or SilentProgress()).track(arriving, description, len(left)):
            finished[task] = result
            if ledger:
                ledger.keep(task, result)
    return {task: finished[task] for task in tasks}


class Ledger:
    """Finished results in a folder: a line of JSON for each, and a manifest that says what they belong to.

    A line is written in one piece; a killed run leaves its last line whole or torn, and a torn one counts as not finished.

    Args:
        identity: a hash of everything that the results depend on.

    Raises:
        QCompilerError: the folder cannot be written, or holds the results of other work.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        claim(folder, identity)
        self._path = folder / _RESULTS

    def finished(self) -> dict[str, Result]:
        """The results that are there, by task."""
        if not self._path.exists():
            return {}
        records = (_record(line) for line in self._path.read_text(encoding="utf-8").splitlines())
        return dict(record for record in records if record is not None)

    def keep(self, task: str, result: Result) -> None:
        """Add a result; it is on its way to the disk when this returns."""
        line = json.dumps({"task": task, "result": result}) + "\n"
        # A torn last line of a run that was killed is ended first.
        with self._path.open("ab+") as file:
            if file.tell() and not _ends_with_newline(file):
                file.write(b"\n")
            file.write(line.encode("utf-8"))


# ---- in this process --------------------------------------------------------------------------------------------------------------


def _one_by_one(work: Work, tasks: Sequence[str]) -> Generator[tuple[str, Result], None, None]:
    if not tasks:
        return
    do = work.open()
    for task in tasks:
        try:
            result = do(task)
        except Exception as error:
            raise _error_of(task, error) from error
        yield task, result


# ---- in other processes -----------------------------------------------------------------------------------------------------------


@dataclass
class _Worker:
    """What a worker process holds."""

    do: Callable[[str], Result] | None = None
    failure: Exception | None = None


_worker = _Worker()


def _prepare(work: Work) -> None:
    """Run once in each worker process. A failure is told with the first task: an initializer can tell nobody."""
    torch.set_num_threads(1)
    # A user who interrupts is answered by the process that started this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    try:
        _worker.do = work.open()
    except Exception as error:
        _worker.failure = error


def _end_with(parent: int) -> None:
    """End this process when the one that started it was killed: it would wait for tasks for ever."""
    while os.getppid() == parent:
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    os._exit(1)


def _do(task: str) -> Result | QCompilerError:
    """One task in a worker. Errors come back as values: what an exception holds need not be picklable."""
    try:
        if _worker.failure is not None or _worker.do is None:
            raise _worker.failure or PassError("the worker was not prepared")
        return _worker.do(task)
    except Exception as error:
        return _error_of(task, error)


def _collected(pool: ProcessPoolExecutor, futures: dict[Future[Any], str]) -> Generator[tuple[str, Result], None, None]:
    try:
        for future in as_completed(futures):
            result = future.result()
            if isinstance(result, QCompilerError):
                raise result
            yield futures[future], result
    except BrokenProcessPool as error:
        raise QCompilerError("a worker process ended before its task was done, perhaps for lack of memory: use fewer workers") from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _error_of(task: str, error: Exception) -> QCompilerError:
    """The error with the name of its task: a fresh one, of its class where a message is all that the class holds, which can be pickled."""
    if isinstance(error, QCompilerError):
        simple = type(error).__init__ is QCompilerError.__init__
        return (type(error) if simple else QCompilerError)(f"{task}: {error}")
    return PassError(f"{task}: failed: {type(error).__name__}: {error}; this is a defect of the work")


# ---- files ------------------------------------------------------------------------------------------------------------------------


def _record(line: str) -> tuple[str, Result] | None:
    """Task and result of a line; None for a torn one."""
    try:
        record = json.loads(line)
        return str(record["task"]), {str(key): float(value) for key, value in record["result"].items()}
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def _ends_with_newline(file: Any) -> bool:
    file.seek(-1, os.SEEK_END)
    return bool(file.read(1) == b"\n")
