"""Bits for each tensor by what it costs to have few.

``items`` says what can get bits, ``table`` checks sensitivities against a program, ``metrics/`` measure them, ``synthetic`` makes images
where there are no data.

``problem`` states an allocation as numbers, ``solver`` solves it (with ``moves``, ``greedy``, ``dynamic_programming``, ``infeasible``),
``pareto`` draws a front, ``costs`` and ``latency`` say what bits cost, ``allocate`` is the pass.
"""
