"""All passes on all kinds of transformers with all kinds of matrices: the function stays, and what cannot be done is said."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from qcompiler.errors import CalibrationError
from qcompiler.passes.rotate.rotate_residual_stream import RotateResidualStream

NETWORKS = ("vit", "bert", "llama", "post-norm")
KINDS = ("hadamard", "randomized", "block", "pca", "learned")
# Float32 rounds to 2^-24; a few dozen products in a row with matrices whose rows have length 1 lose a few bits of it.
TOLERANCE = 1e-4
# All passes in a row: 32 such roundings, five bits.
LARGEST_DIFFERENCE = 32 * 2**-24

BEFORE = {"rotate-residual-stream": "layer-norm-to-rms-norm,"}
OPTIONS = "kind={kind},block=16,steps=2,seed=3"

# What each pass has to say about each network: done (the number of notes that say so), or why not.
DONE: dict[str, dict[str, str]] = {
    "rotate-residual-stream": {
        "vit": "stream of 48 channels from",
        "llama": "stream of 64 channels from",
        "bert": "left alone: 'layer_norm",
        "post-norm": "left alone: 'layer_norm",
    },
    "rotate-value-output": {name: "heads of 16" for name in NETWORKS},
    "rotate-query-key": {
        "vit": "3 pairs of heads of 16",
        "bert": "3 pairs of heads of 16",
        "post-norm": "2 pairs of heads of 16",
        "llama": "lies between the product and a layer",
    },
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NETWORKS)
def test_the_function_stays(network: Callable[[str], Any], name: str, kind: str) -> None:
    source = network(name)
    for item, expected in DONE.items():
        after = source.after(f"{BEFORE.get(item, '')}{item}{{{OPTIONS.format(kind=kind)}}}")
        assert source.difference(after) < TOLERANCE, item
        assert expected[name] in source.notes(after), item
        changed = "left alone" not in expected[name] and "lies between" not in expected[name]
        assert (source.text_of_weights(after) != source.text_of_weights(source.program)) == changed, item


@pytest.mark.parametrize("name", NETWORKS)
def test_all_in_a_row(network: Callable[[str], Any], name: str) -> None:
    source = network(name)
    merged = "layer-norm-to-rms-norm,rotate-residual-stream{kind=randomized},rotate-value-output"
    after = source.after(f"{merged},rotate-query-key{{online=true}},rotate-mlp{{inputs=all}}")
    assert source.difference(after) < LARGEST_DIFFERENCE
    transforms = [node for node in after.graph.nodes if "hadamard" in str(node.target)]
    # Of each block: the MLP; both sides of rotary positions; the norms that a post-norm stream is made of.
    assert len(transforms) == {"vit": 2, "llama": 6, "bert": 6, "post-norm": 5}[name]


@pytest.mark.parametrize("name", ["vit", "bert"])
def test_twice_is_no_worse(network: Callable[[str], Any], name: str) -> None:
    source = network(name)
    once = "layer-norm-to-rms-norm,rotate-residual-stream,rotate-value-output,rotate-query-key"
    assert source.difference(source.after(f"{once},{once}")) < TOLERANCE


@pytest.mark.parametrize(("options", "message"), [({"w": 1}, "w of 2..8 bits, got 1"), ({"a": 9}, "a of 1..8"), ({"steps": 0}, "steps=0")])
def test_options_that_no_matrix_follows(options: dict[str, int], message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        RotateResidualStream(**options)  # type: ignore[arg-type]  # numbers


def test_same_seed_same_program(network: Callable[[str], Any]) -> None:
    source = network("vit")
    first, second, other = (
        source.after(f"layer-norm-to-rms-norm,rotate-residual-stream{{kind=learned,steps=3,seed={seed}}}") for seed in (1, 1, 2)
    )
    assert source.text_of_weights(first) == source.text_of_weights(second) != source.text_of_weights(other)
