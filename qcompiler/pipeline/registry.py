"""Passes and back ends by name. A name is a string in a table until it is used; only then is the module behind it imported.

The built-in tables are ``qcompiler.passes.PASSES`` and ``qcompiler.backends.BACKENDS``. Third parties add theirs through the
entry-point groups ``qcompiler.passes``, ``qcompiler.backends``, ``qcompiler.exporters`` and ``qcompiler.metrics`` (of sensitivity): each
entry point names such a table, a mapping from names to ``"module:object"``. ``qcompiler.analyses`` are functions that look at programs.
"""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, cast

from qcompiler.errors import QCompilerError, TargetError, UnknownNameError

if TYPE_CHECKING:
    from qcompiler.pipeline.backend import Backend, Exporter
    from qcompiler.pipeline.contract import Pass

# The core does not import passes or back ends (a lint rule says so): even the built-in tables are found by name.
_BUILT_IN = {
    "qcompiler.passes": "qcompiler.passes:PASSES",
    "qcompiler.backends": "qcompiler.backends:BACKENDS",
    "qcompiler.exporters": "qcompiler.backends:EXPORTERS",
    "qcompiler.metrics": "qcompiler.passes:METRICS",
    "qcompiler.analyses": "qcompiler.passes:ANALYSES",
}


def pass_names() -> tuple[str, ...]:
    """Names of all registered passes, sorted."""
    return tuple(sorted(_table("qcompiler.passes")))


def find_pass(name: str) -> type[Pass]:
    """The class of the pass called ``name``.

    Raises:
        UnknownNameError: nobody registered that name; carries the nearest known one.
        QCompilerError: what the table promises for the name cannot be imported, or calls itself by another name.
    """
    found = cast("type[Pass]", _find("pass", "qcompiler.passes", name))
    if found.name != name:
        raise QCompilerError(f"pass '{name}' is registered for {found.__module__}:{found.__qualname__}, which calls itself '{found.name}'")
    return found


def backend_names() -> tuple[str, ...]:
    """Names of all registered back ends, in the order in which targets are looked for."""
    return tuple(_table("qcompiler.backends"))


def find_backend(name: str) -> Backend:
    """The back end called ``name``."""
    return cast("Backend", _find("back end", "qcompiler.backends", name))


def find_exporter(name: str) -> Exporter:
    """The exporter called ``name``."""
    return cast("Exporter", _find("exporter", "qcompiler.exporters", name))


def metric_names() -> tuple[str, ...]:
    """Names of all registered sensitivity metrics, sorted."""
    return tuple(sorted(_table("qcompiler.metrics")))


def find_metric(name: str) -> Any:
    """The class of the sensitivity metric called ``name`` (``passes/allocate/metrics``)."""
    return _find("metric", "qcompiler.metrics", name)


def find_analysis(name: str) -> Callable[..., Any]:
    """The function called ``name`` that looks at a program without changing it."""
    return cast("Callable[..., Any]", _find("analysis", "qcompiler.analyses", name))


def target_names() -> tuple[str, ...]:
    """Every target that some back end generates code for; ``native`` stands for the best one of this machine."""
    return tuple(target for name in backend_names() for target in find_backend(name).targets())


def find_target(target: str) -> tuple[Backend, str]:
    """The back end for ``target`` and the target's own name (``native`` becomes the name of what this machine has).

    Raises:
        UnknownNameError: no back end knows the target; carries the nearest known one.
        TargetError: no back end is registered at all.
    """
    backends = [find_backend(name) for name in backend_names()]
    if not backends:
        raise TargetError(f"no back end is registered for target '{target}': install qcompiler with its back ends")
    if target == "native":
        return backends[0], backends[0].detect()
    for backend in backends:
        if target in backend.targets():
            return backend, target
    raise UnknownNameError("target", target, ("native", *target_names()))


def refresh() -> None:
    """Forget the tables: entry points are read again at the next look-up."""
    _table.cache_clear()


def _find(kind: str, group: str, name: str) -> object:
    table = _table(group)
    if name not in table:
        raise UnknownNameError(kind, name, table)
    try:
        return _resolve(table[name])
    except (ImportError, AttributeError) as error:
        raise QCompilerError(f"{kind} '{name}' is registered as '{table[name]}', which cannot be imported: {error}") from error


def _resolve(address: str) -> object:
    module, _, attribute = address.partition(":")
    return getattr(importlib.import_module(module), attribute)


@functools.cache
def _table(group: str) -> Mapping[str, str]:
    """Built-in names first, then those of the entry points in the order of their own names."""
    table = dict(cast("Mapping[str, str]", _resolve(_BUILT_IN[group])))
    for point in sorted(entry_points(group=group), key=lambda point: point.name):
        if point.value == _BUILT_IN[group]:
            continue
        _merge(table, point)
    return table


def _merge(table: dict[str, str], point: EntryPoint) -> None:
    try:
        additions = dict(point.load())
    except Exception as error:  # a broken plug-in must not take the compiler down with it, nor go unnoticed
        warnings.warn(f"entry point '{point.name}' of group '{point.group}' ({point.value}) cannot be used: {error}", stacklevel=2)
        return
    for name, address in additions.items():
        if table.setdefault(name, address) != address:
            raise QCompilerError(f"'{name}' is registered twice in group '{point.group}': {table[name]} and {address} ({point.value})")
