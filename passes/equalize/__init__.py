"""Equivalent transformations: the same function with values and weights that lose less when they are rounded.

All of them move a factor, and some a shift, of each channel from one op to the next ones: ``weights`` is the algebra of a layer with
weights, ``qcompiler.ir.channels`` finds out which layers read the channels of a value and in which order, ``migration`` moves.
"""
