"""The command line. Every command is a thin layer over the Python interface; torch is imported by the commands that need it.

    application   what the command ``qcompiler`` is: its flags, its commands, how errors end it
    building      models to files: compile, export
    artifacts     artifacts: run, inspect, verify, bench
    bits          bits of layers: sensitivity, correlate, profile, allocate, pareto
    lists         what there is: passes, recipes, targets

What commands share stands in ``arguments`` (their types, and texts that are parsed), ``checks`` (mistakes that show before any work),
``models`` (MODEL and DATA) and ``printing``.

Exit status: 0, 1 for a mistake that the user can mend (one line on standard error), 2 for wrong usage of the command line.
"""

from __future__ import annotations

from qcompiler.cli.application import app, main

__all__ = ["app", "main"]
