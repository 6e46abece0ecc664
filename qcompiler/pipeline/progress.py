"""How long work says where it is: a bar with an estimate on a terminal, plain lines elsewhere, or nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Protocol, TextIO, TypeVar

Item = TypeVar("Item")


class Progress(Protocol):
    """Passes items through and tells how many went by."""

    def track(self, items: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
        """Give the items one by one; ``total`` is their number where it is known."""

    def say(self, line: str) -> None:
        """One line about what was done."""


class SilentProgress:
    """Says nothing."""

    def track(self, items: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
        yield from items

    def say(self, line: str) -> None:
        pass


class PlainProgress:
    """A line now and then, for logs and pipes."""

    def __init__(self, stream: TextIO | None = None, seconds_between_lines: float = 5.0) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._pause = seconds_between_lines

    def track(self, items: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
        start = last = time.monotonic()
        done = 0
        for item in items:
            yield item
            done += 1
            now = time.monotonic()
            if now - last >= self._pause:
                last = now
                left = f" of {total}, about {(now - start) / done * (total - done):.0f} s left" if total else ""
                self.say(f"{description}: {done}{left}")
        self.say(f"{description}: {done} done in {time.monotonic() - start:.1f} s")

    def say(self, line: str) -> None:
        print(line, file=self._stream, flush=True)


class TerminalProgress:
    """A rich progress bar that goes away when the work is done."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(stderr=True)

    def track(self, items: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Bar(*columns, console=self._console, transient=True) as bar:
            yield from bar.track(items, total=total, description=description)

    def say(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False)


def progress_for(stream: TextIO) -> Progress:
    """A bar where the stream is a terminal, plain lines elsewhere."""
    return TerminalProgress() if stream.isatty() else PlainProgress(stream)


def default_progress() -> Progress:
    """For functions that nobody told whom to tell: a bar where standard error is a terminal, else nobody."""
    return TerminalProgress() if sys.stderr.isatty() else SilentProgress()


def command_progress() -> Progress:
    """For commands: a bar where standard error is a terminal, else plain lines on standard output."""
    return progress_for(sys.stderr if sys.stderr.isatty() else sys.stdout)
