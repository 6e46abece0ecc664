"""``python -m qcompiler.cli``."""

from __future__ import annotations

from qcompiler.cli.application import main

if __name__ == "__main__":
    main()
