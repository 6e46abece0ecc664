"""Rotations: an orthogonal matrix in the graph, merged into weights, that spreads outliers over all channels."""
