"""Typed options: what the annotation of a pass's field expects, read from text or checked, and written back."""

from __future__ import annotations

import dataclasses
import enum
import json
import re
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, Union, get_args, get_origin, get_type_hints

from qcompiler.errors import PassError

Annotation: TypeAlias = Any  # what stands after the colon of a field: a type, a union, tuple[int, ...], Literal["a", "b"], …

_BARE = re.compile(r'[^\s,{}()="]+')
_RESERVED = ("none", "true", "false")


@dataclass(frozen=True)
class Word:
    """A value as written in a pipeline; ``quoted`` words are never numbers or ``none``."""

    text: str
    quoted: bool = False

    def __str__(self) -> str:
        return self.text


class _Mismatch(Exception):
    """The value is not what the annotation expects."""


def types_of(pass_class: type) -> dict[str, Annotation]:
    """Option name -> annotation, in the order of the fields."""
    names = [field.name for field in dataclasses.fields(pass_class)]
    hints: dict[str, Annotation] = {}
    for owner in reversed(pass_class.__mro__):
        # Only the fields are resolved: class variables may name types that are imported for the type checker alone.
        own = {name: hint for name, hint in vars(owner).get("__annotations__", {}).items() if name in names}
        hints |= get_type_hints(types.SimpleNamespace(__annotations__=own), globalns=vars(sys.modules[owner.__module__]))
    return {name: hints[name] for name in names}


def has_default(field: dataclasses.Field[Any]) -> bool:
    """Whether the option may be left out."""
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def default(field: dataclasses.Field[Any]) -> object:
    """The value of an option that is left out (``dataclasses.MISSING`` where it must be given)."""
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default


def convert(annotation: Annotation, value: object, place: str) -> object:
    """``value`` as the annotation wants it: a Python value is checked, a Word or str is read.

    Raises:
        PassError: it cannot be; the message starts with ``place`` and says what is expected.
    """
    try:
        return _convert(annotation, value)
    except _Mismatch:
        raise PassError(f"{place}: expected {expected(annotation)}, got '{_shown(value)}'") from None


def takes_tuple(annotation: Annotation) -> bool:
    """Whether a tuple may be given."""
    return _origin(annotation) is tuple or any(_origin(member) is tuple for member in get_args(annotation))


def expected(annotation: Annotation) -> str:
    """The annotation in words: ``an integer``, ``one of high, narrow``, …"""
    if annotation in _WORDS:
        return _WORDS[annotation]
    choices = _choices(annotation)
    if choices:
        return f"one of {', '.join(choices)}"
    members = get_args(annotation)
    if _origin(annotation) is tuple:
        inner = expected(members[0]) if members[1:] == (Ellipsis,) else ", ".join(expected(member) for member in members)
        return f"a tuple ({inner}{', …' if members[1:] == (Ellipsis,) else ''})"
    return " or ".join(expected(member) for member in members)


def to_text(value: object) -> str:
    """The text from which ``convert`` makes the same value."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, enum.Enum):
        return _choice_name(value)
    if isinstance(value, tuple):
        return f"({','.join(to_text(item) for item in value)})"
    if isinstance(value, str):
        return value if _BARE.fullmatch(value) and value not in _RESERVED and not _is_number(value) else json.dumps(value)
    return repr(value)


def _convert(annotation: Annotation, value: object) -> object:
    origin = _origin(annotation)
    if origin in (Union, types.UnionType):
        return _convert_union(get_args(annotation), value)
    if origin is tuple:
        return _convert_tuple(get_args(annotation), value)
    choices = _choices(annotation)
    if choices:
        return _choose(choices, value)
    convert_plain = _PLAIN.get(annotation)
    if convert_plain is None:
        raise PassError(f"options of type {annotation} cannot be written in a pipeline")
    return convert_plain(value)


def _convert_union(members: tuple[Annotation, ...], value: object) -> object:
    for member in sorted(members, key=lambda member: member is str):  # text fits everything: last
        try:
            return _convert(member, value)
        except _Mismatch:
            continue
    raise _Mismatch


def _convert_tuple(members: tuple[Annotation, ...], value: object) -> tuple[object, ...]:
    if not isinstance(value, tuple | list):
        raise _Mismatch
    if members[1:] == (Ellipsis,):
        return tuple(_convert(members[0], item) for item in value)
    if len(members) != len(value):
        raise _Mismatch
    return tuple(_convert(member, item) for member, item in zip(members, value, strict=True))


def _origin(annotation: Annotation) -> object:
    return get_origin(annotation)


def _choices(annotation: Annotation) -> dict[str, object]:
    """Text -> value for an enum or a Literal; empty for everything else."""
    if _origin(annotation) is Literal:
        return {to_text(value): value for value in get_args(annotation)}
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return {_choice_name(member): member for member in annotation}
    return {}


def _choice_name(member: enum.Enum) -> str:
    return member.value if isinstance(member.value, str) and _BARE.fullmatch(member.value) else member.name


def _choose(choices: dict[str, object], value: object) -> object:
    if isinstance(value, Word | str) and str(value) in choices:
        return choices[str(value)]
    for choice in choices.values():
        if type(choice) is type(value) and choice == value:
            return choice
    raise _Mismatch


def _to_bool(value: object) -> bool:
    if isinstance(value, bool):
        return value
    if _unquoted(value) in ("true", "false"):
        return _unquoted(value) == "true"
    raise _Mismatch


def _to_int(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    return int(_number_text(value, r"[+-]?\d+"))


def _to_float(value: object) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    return float(_number_text(value, r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?inf"))


def _to_str(value: object) -> str:
    if isinstance(value, Word | str):
        return str(value)
    raise _Mismatch


def _to_none(value: object) -> None:
    if value is not None and _unquoted(value) != "none":
        raise _Mismatch


def _number_text(value: object, pattern: str) -> str:
    text = _unquoted(value)
    if not re.fullmatch(pattern, text):
        raise _Mismatch
    return text


def _unquoted(value: object) -> str:
    """The text of a bare word (Python strings count as bare: they come from a command line); empty otherwise."""
    if isinstance(value, Word):
        return "" if value.quoted else value.text
    return value if isinstance(value, str) else ""


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return f"({','.join(_shown(item) for item in value)})"
    return str(value)


_WORDS: dict[Annotation, str] = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "text",
    type(None): "none",
}
_PLAIN: dict[Annotation, Callable[[object], object]] = {
    bool: _to_bool,
    int: _to_int,
    float: _to_float,
    str: _to_str,
    type(None): _to_none,
}
