"""Where a node comes from: the line of the user's model that asked for it, and the passes that made it what it is."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

import torch
from torch import fx

_FRAME = re.compile(r'File "(?P<path>[^"]+)", line (?P<line>\d+), in (?P<function>\S+)(?:\n\s+(?P<code>(?!File ")\S.*))?')
# Under this key capture annotates what it traces with the name and the op of the ONNX node that asked for it.
ONNX_NODE = "onnx_node"
_TORCH_ROOT = str(Path(torch.__file__).parent)


@dataclass(frozen=True)
class Provenance:
    """``source``: the user's line (``model.py:42 in forward: x = self.conv(x)``, empty if unknown); ``module_path``: dotted path of
    the torch module (``layer1.0.conv1``) or the ONNX node; ``made_by``: names of the passes that shaped the node, oldest first."""

    source: str = ""
    module_path: str = ""
    made_by: tuple[str, ...] = ()

    @property
    def location(self) -> str:
        """The short form of ``source`` that stands in dumps: ``model.py:42``, else the module path."""
        return self.source.split(" in ", 1)[0] or self.module_path

    def then(self, made_by: str) -> Provenance:
        """The same origin after one more pass; a pass is named once however often it touches the node."""
        return self if not made_by or made_by in self.made_by else replace(self, made_by=(*self.made_by, made_by))


def provenance_of(node: fx.Node) -> Provenance:
    """The provenance that the node carries, else what torch.export noted about it (ONNX node, or stack trace and module stack)."""
    known = node.meta.get("provenance")
    if isinstance(known, Provenance):
        return known
    onnx_node = (node.meta.get("custom") or {}).get(ONNX_NODE)
    if onnx_node is not None:
        return Provenance(f"node '{onnx_node[0]}' ({onnx_node[1]})", onnx_node[0])
    return Provenance(_user_line(node.meta), _module_path(node.meta))


def derive(nodes: Iterable[fx.Node], made_by: str = "") -> Provenance:
    """Provenance of a node that a pass puts in the place of ``nodes``: the first known origin and all passes, then this one."""
    origins = [provenance_of(node) for node in nodes]
    source = next((origin.source for origin in origins if origin.source), "")
    module_path = next((origin.module_path for origin in origins if origin.module_path), "")
    passes = dict.fromkeys(name for origin in origins for name in origin.made_by)
    return Provenance(source, module_path, tuple(passes)).then(made_by)


def describe(node: fx.Node) -> str:
    """How every error message names a node: ``'conv' (aten.conv2d.default) at model.py:42 in forward: x = self.conv(x)``."""
    provenance = provenance_of(node)
    place = f" at {provenance.source}" if provenance.source else ""
    # A node of an ONNX file is its own module: the place names it already.
    named = not provenance.module_path or f"'{provenance.module_path}'" in provenance.source
    module = "" if named else f" [module {provenance.module_path}]"
    made_by = f" [made by {', '.join(provenance.made_by)}]" if provenance.made_by else ""
    return f"'{node.name}' ({target_name(node)}){place}{module}{made_by}"


def target_name(node: fx.Node) -> str:
    """``aten.conv2d.default`` for a call, else the kind of node (``placeholder``, ``get_attr``, ``output``)."""
    return (
        str(node.target)
        if isinstance(node.target, torch._ops.OpOverload)
        else (node.op if node.op != "call_function" else repr(node.target))
    )


def _user_line(meta: Mapping[str, Any]) -> str:
    """The innermost frame outside torch: the line that the author of the model wrote."""
    frames = [match for match in _FRAME.finditer(meta.get("stack_trace") or "") if not _inside_torch(match["path"])]
    if not frames:
        return ""
    frame = frames[-1]
    code = f": {frame['code'].strip()}" if frame["code"] else ""
    return f"{PurePath(frame['path']).name}:{frame['line']} in {frame['function']}{code}"


def _inside_torch(path: str) -> bool:
    # A .pt2 made on another machine carries that machine's paths.
    return path.startswith(_TORCH_ROOT) or "site-packages/torch/" in path.replace("\\", "/")


def _module_path(meta: Mapping[str, Any]) -> str:
    stack = meta.get("nn_module_stack") or {}
    paths = [entry[0] for entry in stack.values() if isinstance(entry, tuple) and isinstance(entry[0], str)]
    return paths[-1] if paths else ""
