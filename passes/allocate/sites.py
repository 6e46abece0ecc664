"""The float program with a *site* for each item: the one place where its tensor is rounded, so that one item at a time can be changed.

    activation    value -> site -> readers that take the narrow type      at the representative: what is moved from it is rounded with it
    weight        constant -> site -> layer

A site passes its tensor on, rounded where it was given a rounding. The graph is run node by node (``Subgraph``) and never compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from qcompiler.ir import edit
from qcompiler.ir.program import Program
from qcompiler.passes.allocate.items import Items
from qcompiler.passes.quantize.grouping import Width
from qcompiler.passes.quantize.quantize import Quantize
from qcompiler.passes.reconstruct.subgraph import Subgraph
from qcompiler.sensitivity import Item

Rules = Mapping[object, Callable[..., Tensor]]
Rounding = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Site:
    """The function of a site node. Without a rounding it gives another view of the same values, so that gradients can be told apart.

    Gradients reach it even where nothing before it has any: an input, rows of a table.
    """

    rounding: Rounding | None = None

    __name__ = "site"

    def __call__(self, values: Tensor) -> Tensor:
        if self.rounding is not None:
            return self.rounding(values)
        view = values.view_as(values)
        return view if view.requires_grad or not torch.is_grad_enabled() else view.requires_grad_()


class Sites:
    """A copy of a float program's graph with sites.

    site: the node of each item. inputs, outputs: nodes of the program's inputs and outputs. products: layers and matrix products by name.

    Args:
        roundings: of items that are rounded unless a run says otherwise; all others are not.
        rules: op -> function that stands for it, for methods that go backwards by rules of their own.
    """

    def __init__(
        self,
        program: Program,
        quantize: Quantize,
        items: Items,
        roundings: Mapping[Item, Rounding] | None = None,
        rules: Rules | None = None,
    ) -> None:
        copied = edit.copy(program)
        groups = quantize.value_groups(copied)
        self._module, self.graph = copied.graph_module, copied.graph
        nodes = {node.name: node for node in self.graph.nodes}
        self.site: dict[Item, fx.Node] = {}
        for item in items.sizes:
            function = Site((roundings or {}).get(item))
            if item.kind == "weight":
                self.site[item] = _before_layer(nodes[item.name], function)
            else:
                value = nodes[item.name]
                narrow = {user for user in value.users if groups.width_read(value, user) is Width.NARROW}
                self.site[item] = _behind_value(value, narrow, function)
        self.products = {product.name: nodes[product.name] for product in items.products}
        for node in self.graph.nodes:
            if rules and node.target in rules:
                node.target = rules[node.target]
        self.inputs: tuple[fx.Node, ...] = tuple(node for node in self.graph.nodes if node.op == "placeholder")
        self.outputs: tuple[fx.Node, ...] = tuple(self.graph.output_node().all_input_nodes)
        self._varying = _descendants(self.inputs)

    def tensor(self, item: Item) -> Tensor:
        """The float weight of a weight item."""
        value = edit.constant_value(self.site[item].args[0])
        if value is None:
            raise TypeError(f"{item} is no constant")
        return value

    def whole(self, outputs: Sequence[fx.Node]) -> Subgraph:
        """What computes ``outputs`` from the program's inputs."""
        return Subgraph(self.graph, self.inputs, outputs)

    def cut(self, item: Item, outputs: Sequence[fx.Node]) -> Cut:
        """What computes ``outputs`` in two parts, before and behind the site of ``item``."""
        site = self.site[item]
        behind = _descendants([site])
        needed = behind & _ancestors(outputs)
        operands = dict.fromkeys(operand for node in self.graph.nodes if node in needed for operand in node.all_input_nodes)
        around = [node for node in operands if node not in behind and node in self._varying]
        around += [node for node in outputs if node not in behind and node not in around]
        source = site.args[0]
        assert isinstance(source, fx.Node)  # a site reads one node
        first = [*around, source] if item.kind == "activation" and source not in around else around
        return Cut(site, source, self.whole(first), Subgraph(self.graph, [*around, site], outputs), tuple(first))


@dataclass(frozen=True, eq=False)
class Cut:
    """``before`` gives the values of ``kept`` from the inputs; ``behind`` the outputs from those and the value of ``site``.

    ``source``: what the site reads; its value is among those kept, or it is a constant.
    """

    site: fx.Node
    source: fx.Node
    before: Subgraph
    behind: Subgraph
    kept: tuple[fx.Node, ...]

    def run_before(self, inputs: Mapping[fx.Node, Tensor]) -> dict[fx.Node, Tensor]:
        return dict(zip(self.kept, self.before.run(inputs), strict=True))

    def run_behind(self, kept: Mapping[fx.Node, Tensor], at_site: Tensor) -> tuple[Tensor, ...]:
        needed = {node: value for node, value in kept.items() if node in self.behind.sources}
        return self.behind.run({**needed, self.site: at_site})


def _before_layer(layer: fx.Node, function: Site) -> fx.Node:
    weight = layer.args[1]
    assert isinstance(weight, fx.Node)  # what an item means
    with layer.graph.inserting_before(layer):
        site = layer.graph.create_node("call_function", function, (weight,), name=f"{layer.name}_weight_site")
    layer.update_arg(1, site)
    return site


def _behind_value(value: fx.Node, readers: Iterable[fx.Node], function: Site) -> fx.Node:
    graph, chosen = value.graph, set(readers)
    first_call = next(node for node in graph.nodes if node.op not in ("placeholder", "get_attr"))
    place = graph.inserting_before(first_call) if value.op == "placeholder" else graph.inserting_after(value)
    with place:
        site = graph.create_node("call_function", function, (value,), name=f"{value.name}_site")
    value.replace_all_uses_with(site, delete_user_cb=chosen.__contains__)
    return site


def _descendants(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    return _closure(nodes, lambda node: node.users)


def _ancestors(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    return _closure(nodes, lambda node: node.all_input_nodes)


def _closure(nodes: Iterable[fx.Node], following: Callable[[fx.Node], Iterable[fx.Node]]) -> set[fx.Node]:
    seen = set(nodes)
    waiting = list(seen)
    while waiting:
        new = [node for node in following(waiting.pop()) if node not in seen]
        seen.update(new)
        waiting += new
    return seen
