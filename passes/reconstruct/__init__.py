"""QDQ to QDQ: choose the integers of the weights anew, from what the calibration data do to each layer or block.

``layers`` finds the weights, ``blocks`` cuts the graph into spans, ``subgraph`` and ``twins`` run a span with gradients, ``store`` keeps
values in files, ``sweep`` goes from block to block, ``fitting`` descends and decides, ``checkpoint`` remembers what is finished;
``reconstruction`` strings them together, and each method is one pass.
"""
