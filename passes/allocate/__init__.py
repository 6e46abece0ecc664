"""Bits for each tensor by what it costs to have few.

``items`` says what can get bits, ``table`` checks sensitivities against a program, ``metrics/`` measure them, ``synthetic`` makes images
where there are no data.
"""
