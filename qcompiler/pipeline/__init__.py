"""Pipelines: the contract of a pass, how passes are found by name, written as text, and run."""
