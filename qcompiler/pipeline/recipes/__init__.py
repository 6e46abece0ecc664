"""Recipes: named pipelines in YAML files that a user can copy, read and change.

A recipe has these keys::

    name: int8                      # how it is called on the command line
    summary: one line               # what it is for
    pipeline:                       # the passes in order, each as in a textual pipeline; or one text for all
      - canonicalize
      - quantize{w=8,a=8}
    options:                        # the options worth changing: pass.option and what it means
      quantize.a: bits of the activations

The built-in ones lie beside this file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml

from qcompiler.errors import PassError, QCompilerError, UnknownNameError
from qcompiler.pipeline import option_types
from qcompiler.pipeline.contract import Pass
from qcompiler.pipeline.text import convert_option, parse_pipeline, split_pipeline

__all__ = ["Recipe", "Step", "choose_passes", "load_recipe", "override", "recipe_names"]

_FOLDER = Path(__file__).parent
_SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class Step:
    """One entry of a recipe's pipeline, as text, and where it stands (``file, line``)."""

    text: str
    place: str


@dataclass(frozen=True)
class Recipe:
    """A named pipeline; ``options`` maps the options worth changing to their meaning."""

    name: str
    summary: str
    steps: tuple[Step, ...]
    options: Mapping[str, str]

    def passes(self, options: Mapping[str, object] | None = None) -> list[Pass]:
        """The passes, with ``options`` in place of the recipe's own (see ``override``).

        Raises:
            UnknownNameError: the recipe names a pass or option that does not exist, or ``options`` an option.
            PassError: an option has a value of the wrong type.
        """
        passes: list[Pass] = []
        for step in self.steps:
            try:
                passes += parse_pipeline(step.text)
            except QCompilerError as error:
                raise error.within(step.place) from None
        return override(passes, options or {})


def recipe_names() -> tuple[str, ...]:
    """Names of the built-in recipes, sorted."""
    return tuple(sorted(file.stem for file in _FOLDER.glob("*.yaml")))


def load_recipe(name: str | Path) -> Recipe:
    """The built-in recipe of that name, or the one in a ``.yaml`` file.

    Raises:
        UnknownNameError: no built-in recipe has the name.
        PassError: the file is missing or breaks the schema; the message says at which line.
    """
    path = Path(name)
    if path.suffix not in _SUFFIXES:
        if str(name) not in recipe_names():
            raise UnknownNameError("recipe", str(name), recipe_names())
        path = _FOLDER / f"{name}.yaml"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PassError(f"recipe '{path}' cannot be read: {error}") from error
    return _Reader(str(path), text).recipe()


def choose_passes(
    recipe: str | Path, options: Mapping[str, object] | None = None, passes: str | Sequence[Pass] | None = None
) -> list[Pass]:
    """The passes that the public functions run: ``passes`` (or their text) where they are given, else those of the recipe.

    Raises:
        UnknownNameError, PassError: as ``load_recipe``, ``parse_pipeline`` and ``override``.
    """
    if passes is None:
        return load_recipe(recipe).passes(options)
    return override(parse_pipeline(passes) if isinstance(passes, str) else passes, options or {})


def override(passes: Sequence[Pass], options: Mapping[str, object]) -> list[Pass]:
    """The passes with some options replaced: ``{"quantize.a": 4}``, or ``{"observer": "mse"}`` where one pass alone has that option.

    Values are Python's, or text as in a pipeline. ``pass.option`` holds for every pass of that name.

    Raises:
        UnknownNameError: no pass of the pipeline has the option.
        PassError: several passes have it and none was named, or the value has the wrong type.
    """
    result = list(passes)
    for key, value in options.items():
        name = _owner(result, key)
        result = [_with_option(item, key.rpartition(".")[2], value) if item.name == name else item for item in result]
    return result


def _owner(passes: Sequence[Pass], key: str) -> str:
    """The name of the pass that the option ``key`` belongs to."""
    qualified = dict.fromkeys(f"{item.name}.{field.name}" for item in passes for field in dataclasses.fields(item))
    matches = [known for known in qualified if known == key or known.rpartition(".")[2] == key]
    if not matches:
        raise UnknownNameError("option", key, qualified)
    if len(matches) > 1:
        raise PassError(f"option '{key}' belongs to several passes: write one of {', '.join(matches)}")
    return matches[0].rpartition(".")[0]


def _with_option(item: Pass, option: str, value: object) -> Pass:
    place = f"pass '{item.name}', option '{option}'"
    converted = convert_option(option_types.types_of(type(item))[option], value, place)
    try:
        return dataclasses.replace(item, **{option: converted})
    except QCompilerError as error:
        raise error.within(place) from None


class _Reader:
    """Reads one file; errors carry the line."""

    def __init__(self, file: str, text: str) -> None:
        self._file = file
        try:
            self._root = yaml.compose(text, yaml.SafeLoader)
            self._values = yaml.safe_load(text)
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            self._fail(getattr(error, "problem", None) or "not YAML", mark.line + 1 if mark else None)

    def recipe(self) -> Recipe:
        if not isinstance(self._root, yaml.MappingNode):
            self._fail("expected the keys name, summary, pipeline and options", 1)
        nodes = {key.value: value for key, value in self._root.value}
        for key, _ in self._root.value:
            if key.value not in ("name", "summary", "pipeline", "options"):
                raise UnknownNameError("key", key.value, ("name", "summary", "pipeline", "options")).within(self._place(key))
        return Recipe(
            name=self._text(nodes, "name"), summary=self._text(nodes, "summary"), steps=self._steps(nodes), options=self._options(nodes)
        )

    def _text(self, nodes: Mapping[str, yaml.Node], key: str) -> str:
        if key not in nodes:
            self._fail(f"the key '{key}' is missing")
        if not isinstance(self._values[key], str):
            self._fail(f"'{key}' must be text", self._line(nodes[key]))
        return str(self._values[key])

    def _steps(self, nodes: Mapping[str, yaml.Node]) -> tuple[Step, ...]:
        if "pipeline" not in nodes:
            self._fail("the key 'pipeline' is missing")
        node = nodes["pipeline"]
        entries = node.value if isinstance(node, yaml.SequenceNode) else [node]
        steps = tuple(self._step(entry) for entry in entries)
        if not steps:
            self._fail("'pipeline' is empty", self._line(node))
        return steps

    def _step(self, entry: Any) -> Step:
        if not isinstance(entry, yaml.ScalarNode):
            self._fail(
                "each entry of 'pipeline' must be text such as quantize{w=8,a=8}; quote it if YAML reads it otherwise", self._line(entry)
            )
        place = self._place(entry)
        try:
            split_pipeline(entry.value)
        except QCompilerError as error:
            raise error.within(place) from None
        return Step(entry.value, place)

    def _options(self, nodes: Mapping[str, yaml.Node]) -> dict[str, str]:
        if "options" not in nodes:
            return {}
        options = self._values["options"]
        if not isinstance(options, dict) or not all(isinstance(item, str) for pair in options.items() for item in pair):
            self._fail("'options' must map pass.option to its meaning", self._line(nodes["options"]))
        return options

    def _line(self, node: yaml.Node) -> int:
        return int(node.start_mark.line) + 1

    def _place(self, node: yaml.Node) -> str:
        return f"recipe '{self._file}', line {self._line(node)}"

    def _fail(self, what: str, line: int | None = None) -> NoReturn:
        raise PassError(f"recipe '{self._file}'{f', line {line}' if line else ''}: {what}")
