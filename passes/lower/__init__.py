"""QDQ to INTEGER: every op between a dequantize and a quantize becomes ``qc::`` ops on integers.

``lowering`` holds what all op families share: the lowered values, the proven bounds, the choice of requantizations. One module
a family says how its ops are lowered, in a table ``LOWERINGS`` from op to function; ``lower_integer`` is the pass.
"""
