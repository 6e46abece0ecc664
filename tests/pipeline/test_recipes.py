from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from qcompiler.errors import PassError, UnknownNameError
from qcompiler.ir.program import Program
from qcompiler.ir.types import Stage
from qcompiler.pipeline.contract import Exact, Pass, PassContext, PassResult
from qcompiler.pipeline.recipes import load_recipe, override, recipe_names
from qcompiler.pipeline.text import make_pass


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", recipe_names())
def test_built_in_recipes_are_whole(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    passes = recipe.passes()
    assert passes and all(
        override(passes, {option: getattr(item, option.rpartition(".")[2])}) == passes
        for option in recipe.options
        for item in passes
        if item.name == option.rpartition(".")[0]
    )
    known = {f"{item.name}.{field}" for item in passes for field in item.options()}
    assert set(recipe.options) <= known


def test_options_replace_those_of_the_recipe() -> None:
    recipe = load_recipe("int8")
    by_full_name = {item.name: item for item in recipe.passes({"quantize.a": 6})}
    by_short_name = {item.name: item for item in recipe.passes({"a": "6"})}
    assert by_full_name["quantize"].options()["a"] == 6
    assert by_full_name == by_short_name


def test_a_file_of_the_user(tmp_path: Path) -> None:
    path = write(tmp_path, "name: mine\nsummary: for me\npipeline: quantize{w=4,a=8}\n")
    recipe = load_recipe(path)
    assert recipe.passes() == [make_pass("quantize", {"w": 4})]
    assert recipe.options == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: expected the keys name, summary, pipeline and options"),
        ("name: a\nsummary: b\n", "the key 'pipeline' is missing"),
        ("summary: b\npipeline: quantize\n", "the key 'name' is missing"),
        ("name: 8\nsummary: b\npipeline: quantize\n", "line 1: 'name' must be text"),
        ("name: a\nsummary: b\npipeline: []\n", "line 3: 'pipeline' is empty"),
        ("name: a\nsummary: b\npipeline:\n- quantize{w=8\n", "line 4: pipeline, column 13: expected '}', got the end"),
        ("name: a\nsummary: b\npipeline:\n- [x]\n", "line 4: each entry of 'pipeline' must be text"),
        ("name: a\nsummary: b\npipeline: quantize\noptions: [a]\n", "line 4: 'options' must map pass.option to its meaning"),
        ("name: a\nsummary: 'b\n", "line 3: found unexpected end of stream"),
    ],
)
def test_a_broken_file_is_told_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(PassError) as caught:
        load_recipe(path)
    assert str(caught.value).startswith(f"recipe '{path}'")
    assert message in str(caught.value)


def test_unknown_names_come_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"^unknown recipe 'int9': did you mean 'int8'\?"):
        load_recipe("int9")
    with pytest.raises(UnknownNameError, match=r"line 1: unknown key 'nme': did you mean 'name'\?"):
        load_recipe(write(tmp_path, "nme: a\n"))
    with pytest.raises(UnknownNameError, match=r"line 4: pipeline, column 1: unknown pass 'quantise': did you mean 'quantize'\?"):
        load_recipe(write(tmp_path, "name: a\nsummary: b\npipeline:\n- quantise\n")).passes()
    with pytest.raises(UnknownNameError, match=r"^unknown option 'quantize.obsever': did you mean 'quantize.observer'\?"):
        load_recipe("int8").passes({"quantize.obsever": "mse"})


def test_values_of_the_wrong_type() -> None:
    with pytest.raises(PassError, match="^pass 'quantize', option 'a': expected an integer, got 'many'$"):
        load_recipe("int8").passes({"quantize.a": "many"})


@dataclass(frozen=True)
class OtherBits(Pass):
    name: ClassVar[str] = "other"
    takes: ClassVar[Stage] = Stage.FLOAT
    gives: ClassVar[Stage] = Stage.FLOAT
    promise: ClassVar[Exact] = Exact()

    a: int = 8

    def run(self, program: Program, context: PassContext) -> PassResult:
        return PassResult(program, modified=False)


def test_an_option_of_several_passes_needs_the_name_of_one() -> None:
    passes = [make_pass("quantize", {}), OtherBits()]
    with pytest.raises(PassError, match="belongs to several passes: write one of quantize.a, other.a"):
        override(passes, {"a": 4})
    assert override(passes, {"other.a": 4}) == [passes[0], OtherBits(a=4)]


def test_tuples_as_text() -> None:
    """As the command line gives them."""
    passes = [make_pass("allocate", {})]
    assert override(passes, {"activation_bits": "(4,8)"}) == override(passes, {"activation_bits": (4, 8)})
    assert override(passes, {"pins": "( conv2d_3:w8, linear:w4a8 )"}) == override(passes, {"pins": ("conv2d_3:w8", "linear:w4a8")})
    assert make_pass("allocate", {"bits": "(4)"}) == make_pass("allocate", {"bits": (4,)})
    with pytest.raises(PassError, match=r"pass 'allocate', option 'pins': value, column 6: expected '\)', got the end"):
        override(passes, {"pins": "(a:w8"})
    with pytest.raises(PassError, match="pass 'allocate', option 'bits': expected a tuple .an integer, …., got '4,8'"):
        override(passes, {"bits": "4,8"})


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(PassError, match="cannot be read"):
        load_recipe(tmp_path / "absent.yaml")
