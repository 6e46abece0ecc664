"""From a plan to a shared library: kernels compiled in child processes under a time limit, kept in a cache, linked with the driver.

Importing TVM takes a child as long as ten kernels. One that has nothing left to do therefore waits for the next call for a while.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import importlib.metadata
import json
import math
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qcompiler import arithmetic
from qcompiler.backends.tvm.driver import EXPORTS, driver_source, symbol_of
from qcompiler.backends.tvm.plan import Plan, Step, encode
from qcompiler.cache import cache_folder
from qcompiler.errors import TargetError

WORKER = (sys.executable, "-m", "qcompiler.backends.tvm.worker")
_WORKERS = 2
_KERNELS_PER_WORKER = 8  # fewer are not worth the start of another one
_KEPT = 60.0  # seconds that an idle worker is used again; ``worker`` ends itself after more
_START_LIMIT = 120.0  # seconds for a worker to import TVM
_COMPILER_FLAGS = ("-shared", "-fPIC", "-O2", "-std=gnu11", "-pthread", "-Wl,--build-id=none", "-Wl,--strip-all")


def build_library(plan: Plan, time_limit: float, worker: Sequence[str] = WORKER) -> bytes:
    """The bytes of a shared library with the interface of ``driver.c``; the same plan gives the same bytes.

    ``time_limit``: seconds for one kernel. ``worker``: the command line of the child process.

    Raises TargetError naming the kernel and its nodes where one takes longer or cannot be compiled, and where no C compiler is found.
    """
    compiler = _c_compiler()
    steps = {symbol_of(step.kernel): step for step in plan.steps}
    with tempfile.TemporaryDirectory(prefix="qcompiler-") as folder:
        _compile_kernels(steps, plan.target, Path(folder), time_limit, worker)
        return _link(compiler, driver_source(plan), sorted(steps), Path(folder))


@dataclass
class _Task:
    symbol: str
    step: Step
    target: str
    path: Path
    cached: Path

    @property
    def request(self) -> dict[str, object]:
        return {"kernel": encode(self.step.kernel), "target": self.target, "symbol": self.symbol, "path": str(self.path)}

    def describe(self) -> str:
        return f"kernel {self.symbol} (for {', '.join(self.step.nodes)}) on target {self.target}"


def _compile_kernels(steps: Mapping[str, Step], target: str, folder: Path, time_limit: float, worker: Sequence[str]) -> None:
    """Write ``<symbol>.o`` for every kernel into ``folder``, from the cache where it has it."""
    cache = cache_folder() / "kernels"
    tasks = [_Task(symbol, step, target, folder / f"{symbol}.o", cache / _cache_name(symbol, target)) for symbol, step in steps.items()]
    missing = deque(task for task in tasks if not _copy_from_cache(task))
    workers = [_hire(worker) for _ in range(min(_WORKERS, -(-len(missing) // _KERNELS_PER_WORKER)))]
    try:
        while missing or any(w.task for w in workers):
            for w in workers:
                if w.ready and w.task is None and missing:
                    w.start(missing.popleft(), time_limit)
            for finished in _next_answers(workers):
                _copy_to_cache(finished)
    finally:
        for w in workers:
            w.release()


# By process (a fork must not share pipes with its parent) and command line.
_idle: defaultdict[tuple[int, tuple[str, ...]], list[_Worker]] = defaultdict(list)


def _hire(command: Sequence[str]) -> _Worker:
    """An idle worker, else a new one."""
    waiting = _idle[os.getpid(), tuple(command)]
    while waiting:
        worker = waiting.pop()
        if worker.is_usable:
            return worker
        worker.close()
    return _Worker(command)


@atexit.register
def _dismiss_all() -> None:
    for (process, _), workers in _idle.items():
        for worker in workers if process == os.getpid() else ():
            worker.close()


class _Worker:
    """A child process and what it is doing; ``deadline`` is when it has to answer."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command, self._kept_until = tuple(command), math.inf
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdin is not None and self._process.stdout is not None  # both are pipes
        self._requests, self.answers = self._process.stdin, self._process.stdout
        self.ready, self._limit = False, _START_LIMIT
        self.deadline = time.monotonic() + _START_LIMIT
        self.task: _Task | None = None

    def start(self, task: _Task, time_limit: float) -> None:
        self._kept_until = math.inf
        self.task, self._limit, self.deadline = task, time_limit, time.monotonic() + time_limit
        self._requests.write(json.dumps(task.request).encode() + b"\n")
        self._requests.flush()

    def finish(self) -> _Task | None:
        """Read the answer that has come; None for the first, which says that the worker is ready."""
        line = self.answers.readline()
        task, self.task, self.ready = self.task, None, True
        if not line:
            raise TargetError(f"the compiler process died on {task.describe() if task else 'its start'} (status {self._process.wait()})")
        error = json.loads(line)["error"]
        if error is not None and task is not None:
            raise TargetError(f"{task.describe()} could not be compiled: {error}")
        return task

    def overdue(self) -> TargetError:
        what = self.task.describe() if self.task else "the start of the compiler process"
        return TargetError(f"{what} took longer than its limit of {self._limit:g} s and was stopped: raise time_limit or report the kernel")

    @property
    def busy(self) -> bool:
        return self.task is not None or not self.ready

    @property
    def is_usable(self) -> bool:
        return self._process.poll() is None and time.monotonic() < self._kept_until

    def release(self) -> None:
        """Nothing is left to do: wait for the next call, or end where the last one was not finished."""
        if self.busy or not self.is_usable:
            self.close()
            return
        self._kept_until = time.monotonic() + _KEPT
        _idle[os.getpid(), self._command].append(self)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._requests.close()
        self.answers.close()


def _next_answers(workers: Sequence[_Worker]) -> list[_Task]:
    """Wait for the next answers or the first deadline; give the tasks that are done."""
    busy = [worker for worker in workers if worker.busy]
    wait = max(0.0, min(worker.deadline for worker in busy) - time.monotonic())
    answered, _, _ = select.select([worker.answers for worker in busy], [], [], wait)
    finished = [worker.finish() for worker in busy if worker.answers in answered]
    late = [worker for worker in busy if worker.busy and worker.answers not in answered and time.monotonic() >= worker.deadline]
    if late:
        raise late[0].overdue()
    return [task for task in finished if task is not None]


def _cache_name(symbol: str, target: str) -> str:
    return f"{symbol}-{target}-{generator_version()}.o"


@functools.cache
def generator_version() -> str:
    """Changes with the TVM version and with every file that decides about a kernel's code: this back end's and the arithmetic's."""
    digest = hashlib.sha256()
    for package in ("apache-tvm", "apache-tvm-ffi"):
        digest.update(f"{package} {importlib.metadata.version(package)}\n".encode())
    for root in (Path(__file__).parent, Path(arithmetic.__file__).parent):
        for path in sorted(root.rglob("*.py")):
            digest.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _copy_from_cache(task: _Task) -> bool:
    try:
        shutil.copyfile(task.cached, task.path)
    except OSError:
        return False
    return True


def _copy_to_cache(task: _Task) -> None:
    """Under a temporary name first, so that no other process sees half a file. A cache that cannot be written is not used."""
    temporary = task.cached.with_name(f"{task.cached.name}.{os.getpid()}")
    with contextlib.suppress(OSError):
        task.cached.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(task.path, temporary)
        temporary.replace(task.cached)


def _c_compiler() -> str:
    command = os.environ.get("CC") or next((name for name in ("cc", "gcc", "clang") if shutil.which(name)), None)
    if command is None or shutil.which(command) is None:
        looked = f"CC names '{command}'" if command else "looked for cc, gcc, clang"
        raise TargetError(f"no C compiler to link the compiled program ({looked}): install one, e.g. gcc, or set CC to its path")
    return command


def _link(compiler: str, source: str, symbols: Sequence[str], folder: Path) -> bytes:
    """Every name is relative to ``folder``, so that no path gets into the library."""
    (folder / "driver.c").write_text(source)
    (folder / "exports.map").write_text(EXPORTS)
    objects = [f"{symbol}.o" for symbol in symbols]
    command = [compiler, *_COMPILER_FLAGS, "-Wl,--version-script=exports.map", "-o", "library.so", "driver.c", *objects, "-lm"]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if result.returncode:
        lines = (result.stderr.strip() or "no message").splitlines()
        raise TargetError(f"the C compiler '{compiler}' could not link the compiled program: {lines[-1]}")
    return (folder / "library.so").read_bytes()
