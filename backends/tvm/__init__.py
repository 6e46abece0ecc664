"""Compiled kernels through TVM."""
