"""Pins as text: ``conv2d:w4``, ``relu_3:a8``, ``linear:w8a8``."""

from __future__ import annotations

import re
from collections.abc import Iterable

from qcompiler.errors import PassError, UnknownNameError
from qcompiler.passes.allocate.items import ALLOWED, Items
from qcompiler.sensitivity import Item, ItemKind

_PIN = re.compile(r"(?P<name>[^:]+):(?:w(?P<weight>\d+))?(?:a(?P<activation>\d+))?")
_KINDS: tuple[ItemKind, ...] = ("weight", "activation")
OPTIONS: dict[ItemKind, str] = {"weight": "bits", "activation": "activation_bits"}
"""Of ``allocate``, with the bits that items of the kind may have."""

# What lets an item have other bits, where it has some that are fixed.
_RELEASE: dict[ItemKind, str] = {
    "weight": "change the option edge_bits of quantize",
    "activation": "give activation_bits, or change edge_bits, score_bits, function_bits or probability_bits of quantize",
}


def parse_pins(texts: Iterable[str], items: Items) -> dict[Item, int]:
    """Item -> bits.

    Raises:
        PassError: a text breaks the form, or asks what an item cannot have.
        UnknownNameError: no item has the name; carries the nearest known one.
    """
    pins: dict[Item, int] = {}
    for text in texts:
        found = _PIN.fullmatch(text)
        if found is None or not any(found[kind] for kind in _KINDS):
            raise PassError(f"pin '{text}': write NAME:w4, NAME:a8 or NAME:w4a8")
        for kind in _KINDS:
            if found[kind]:
                item = _item(found["name"], kind, items)
                pins[item] = _bits(item, int(found[kind]), items)
    return pins


def _item(name: str, kind: ItemKind, items: Items) -> Item:
    item = Item(name, kind)
    if item not in items.sizes:
        raise UnknownNameError(f"{kind} in a pin:", name, {known.name for known in items.sizes if known.kind == kind})
    return item


def _bits(item: Item, bits: int, items: Items) -> int:
    allowed = (items.fixed[item],) if item in items.fixed else items.candidates[item].bits
    if bits in allowed:
        return bits
    listed = ", ".join(map(str, allowed))
    if item in items.fixed:
        raise PassError(f"pin of {item} to {bits} bits: it is fixed at {listed}: {_RELEASE[item.kind]}")
    way_out = f"add {bits} to the option '{OPTIONS[item.kind]}'" if bits in ALLOWED else "choose one of these"
    raise PassError(f"pin of {item} to {bits} bits: it may have {listed}: {way_out}")
