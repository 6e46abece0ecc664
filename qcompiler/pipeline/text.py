"""Pipelines as text: ``fold-batch-norm,quantize{w=8,a=8,observer=mse},lower-integer``.

Grammar (blanks between tokens mean nothing)::

    pipeline := pass ("," pass)*
    pass     := NAME [ "{" [ option ("," option)* ] "}" ]
    option   := NAME "=" value
    value    := WORD | "text in quotes" | "(" [ value ("," value)* ] ")"

The type of each option comes from the field of the pass: bool (true, false), int, float, str, an enum or Literal (one of its values),
a tuple, or one of these or none.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NoReturn, TypeAlias

from qcompiler.errors import PassError, QCompilerError, UnknownNameError
from qcompiler.pipeline import option_types
from qcompiler.pipeline.contract import Pass
from qcompiler.pipeline.option_types import Word
from qcompiler.pipeline.registry import find_pass

RawValue: TypeAlias = "Word | tuple[RawValue, ...]"

_NAME = re.compile(r"[A-Za-z][\w-]*")
_WORD = re.compile(r'[^\s,{}()="]+')
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')
_BLANKS = re.compile(r"\s*")


@dataclass(frozen=True)
class PassText:
    """A pass as written: its name, the options given, and where (column, from 1) each of these stands."""

    name: str
    options: Mapping[str, RawValue]
    columns: Mapping[str, int]


def parse_pipeline(text: str) -> list[Pass]:
    """The passes that ``text`` names, with their options.

    Raises:
        PassError: the text breaks the grammar, or an option has a value of the wrong type; the message says at which column.
        UnknownNameError: no such pass or option; carries the nearest known name.
    """
    return [_build(written) for written in split_pipeline(text)]


def split_pipeline(text: str) -> list[PassText]:
    """The grammar alone: names and values as written; no pass is looked up."""
    return _Parser(text).pipeline()


def format_pipeline(passes: Iterable[Pass]) -> str:
    """The text that ``parse_pipeline`` turns back into equal passes; options at their default are left out."""
    return ",".join(format_pass(item) for item in passes)


def format_pass(item: Pass) -> str:
    """``name{option=value,…}`` with the options that differ from their default."""
    changed = [field for field in dataclasses.fields(item) if getattr(item, field.name) != option_types.default(field)]
    options = ",".join(f"{field.name}={option_types.to_text(getattr(item, field.name))}" for field in changed)
    return f"{item.name}{{{options}}}" if options else item.name


def make_pass(name: str, options: Mapping[str, object]) -> Pass:
    """The pass called ``name`` with ``options`` as Python values or as text.

    Raises:
        UnknownNameError: no such pass or option.
        PassError: a value has the wrong type, or an option without default is missing.
    """
    pass_class = find_pass(name)
    types = option_types.types_of(pass_class)
    for option in options:
        if option not in types:
            raise UnknownNameError(f"option of pass '{name}':", option, types)
    values = {option: convert_option(types[option], value, f"pass '{name}', option '{option}'") for option, value in options.items()}
    missing = [field.name for field in dataclasses.fields(pass_class) if field.name not in values and not option_types.has_default(field)]
    if missing:
        raise PassError(f"pass '{name}' needs the option '{missing[0]}': expected {option_types.expected(types[missing[0]])}")
    try:
        return pass_class(**values)
    except QCompilerError as error:
        raise error.within(f"pass '{name}'") from None


def convert_option(annotation: option_types.Annotation, value: object, place: str) -> object:
    """``option_types.convert``, also of the text of a tuple, as ``(4,8)``.

    Raises:
        PassError: the value does not fit; the message starts with ``place``.
    """
    if isinstance(value, str) and option_types.takes_tuple(annotation) and value.lstrip().startswith("("):
        try:
            value = _Parser(value, "value").value()
        except PassError as error:
            raise error.within(place) from None
    return option_types.convert(annotation, value, place)


def _build(written: PassText) -> Pass:
    try:
        return make_pass(written.name, written.options)
    except QCompilerError as error:
        culprit = next((option for option in written.options if f"'{option}'" in str(error)), "")
        raise error.within(f"pipeline, column {written.columns[culprit]}") from None


class _Parser:
    """Recursive descent over the text; ``_at`` is the offset of the next character."""

    def __init__(self, text: str, what: str = "pipeline") -> None:
        self._text, self._at, self._what = text, 0, what

    def pipeline(self) -> list[PassText]:
        passes = [self._pass()]
        while self._accept(","):
            passes.append(self._pass())
        self._skip_blanks()
        if self._at < len(self._text):
            self._fail("',' or the end")
        return passes

    def value(self) -> RawValue:
        """One value and nothing behind it."""
        found = self._value()
        self._skip_blanks()
        if self._at < len(self._text):
            self._fail("the end")
        return found

    def _pass(self) -> PassText:
        column = self._column()
        name = self._take(_NAME, "the name of a pass")
        options: dict[str, RawValue] = {}
        columns = {"": column}
        if self._accept("{") and not self._accept("}"):
            self._option(options, columns)
            while self._accept(","):
                self._option(options, columns)
            self._expect("}")
        return PassText(name, options, columns)

    def _option(self, options: dict[str, RawValue], columns: dict[str, int]) -> None:
        column = self._column()
        name = self._take(_NAME, "the name of an option")
        if name in options:
            raise PassError(f"pipeline, column {column}: option '{name}' is given twice")
        self._expect("=")
        columns[name] = column
        options[name] = self._value()

    def _value(self) -> RawValue:
        if self._accept("("):
            return self._tuple()
        self._skip_blanks()
        if self._text.startswith('"', self._at):
            return Word(self._unquote(self._take(_QUOTED, "a closing quote")), quoted=True)
        return Word(self._take(_WORD, "a value"))

    def _tuple(self) -> tuple[RawValue, ...]:
        values: list[RawValue] = []
        if self._accept(")"):
            return ()
        values.append(self._value())
        while self._accept(","):
            values.append(self._value())
        self._expect(")")
        return tuple(values)

    def _unquote(self, quoted: str) -> str:
        try:
            return str(json.loads(quoted, strict=False))
        except json.JSONDecodeError:
            self._fail("text in quotes with JSON's escapes")

    def _column(self) -> int:
        self._skip_blanks()
        return self._at + 1

    def _skip_blanks(self) -> None:
        blanks = _BLANKS.match(self._text, self._at)
        self._at = blanks.end() if blanks else self._at

    def _accept(self, character: str) -> bool:
        self._skip_blanks()
        found = self._text.startswith(character, self._at)
        self._at += found
        return found

    def _expect(self, character: str) -> None:
        if not self._accept(character):
            self._fail(f"'{character}'")

    def _take(self, pattern: re.Pattern[str], what: str) -> str:
        self._skip_blanks()
        match = pattern.match(self._text, self._at)
        if match is None:
            self._fail(what)
        self._at = match.end()
        return match.group()

    def _fail(self, what: str) -> NoReturn:
        rest = self._text[self._at : self._at + 12]
        raise PassError(f"{self._what}, column {self._at + 1}: expected {what}, got {repr(rest) if rest else 'the end'}")
