"""FLOAT to QDQ: decide the integer type of every value, then insert quantize and dequantize around every rounding.

``rules`` says how each op takes part, ``grouping`` which values are rounded and which share parameters, ``parameters`` turns
statistics and weights into types, ``insertion`` edits the graph; ``quantize`` is the pass that strings them together.
"""
