from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompiler.errors import PassError, UnknownNameError
from qcompiler.ir.program import Program
from qcompiler.ir.types import Stage
from qcompiler.pipeline import registry, text
from qcompiler.pipeline.contract import Exact, Pass, PassContext, PassResult


class Rounding(enum.Enum):
    FLOOR = "floor"
    NEAREST = "nearest-even"


@dataclass(frozen=True)
class Everything(Pass):
    """A pass with an option of every type."""

    name: ClassVar[str] = "everything"
    takes: ClassVar[Stage] = Stage.FLOAT
    gives: ClassVar[Stage] = Stage.FLOAT
    promise: ClassVar[Exact] = Exact()

    flag: bool = False
    bits: int = 8
    share: float = 0.5
    label: str = "plain"
    rounding: Rounding = Rounding.FLOOR
    form: Literal["high", "narrow"] = "high"
    layers: tuple[str, ...] = ()
    pair: tuple[int, float] = (1, 2.0)
    limit: int | None = None
    alias: str | None = None

    def run(self, program: Program, context: PassContext) -> PassResult:
        return PassResult(program, modified=False)


@dataclass(frozen=True)
class Nothing(Everything):
    name: ClassVar[str] = "do-nothing"


@dataclass(frozen=True)
class Needy(Pass):
    name: ClassVar[str] = "needy"
    takes: ClassVar[Stage] = Stage.FLOAT
    gives: ClassVar[Stage] = Stage.FLOAT
    promise: ClassVar[Exact] = Exact()

    scheme: str

    def run(self, program: Program, context: PassContext) -> PassResult:
        return PassResult(program, modified=False)


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    classes = {item.name: item for item in (Everything, Nothing, Needy)}

    def find(name: str) -> type[Pass]:
        if name not in classes:
            raise UnknownNameError("pass", name, classes)
        return classes[name]

    monkeypatch.setattr(text, "find_pass", find)


def test_reads_every_type_of_option() -> None:
    (item,) = text.parse_pipeline(
        'everything{flag=true, bits=-4, share=1e-3, label="a, b", rounding=nearest-even, form=narrow,'
        ' layers=(conv1,"conv 2"), pair=(3,4), limit=7, alias=x}'
    )
    assert item == Everything(
        flag=True,
        bits=-4,
        share=1e-3,
        label="a, b",
        rounding=Rounding.NEAREST,
        form="narrow",
        layers=("conv1", "conv 2"),
        pair=(3, 4.0),
        limit=7,
        alias="x",
    )


def test_a_pipeline_is_a_list_of_passes() -> None:
    assert text.parse_pipeline(" everything , do-nothing{} ,\n everything{bits=4}") == [Everything(), Nothing(), Everything(bits=4)]


def test_defaults_are_not_written() -> None:
    assert text.format_pipeline([Everything(), Nothing(bits=4, layers=("a",))]) == "everything,do-nothing{bits=4,layers=(a)}"


words = st.text(max_size=12)
everything = st.builds(
    Everything,
    flag=st.booleans(),
    bits=st.integers(),
    share=st.floats(allow_nan=False),
    label=words,
    rounding=st.sampled_from(Rounding),
    form=st.sampled_from(("high", "narrow")),
    layers=st.lists(words, max_size=3).map(tuple),
    pair=st.tuples(st.integers(), st.floats(allow_nan=False, allow_infinity=False)),
    limit=st.none() | st.integers(),
    alias=st.none() | words | st.sampled_from(["none", "true", "7"]),
)


@given(st.lists(everything, min_size=1, max_size=3))
def test_text_and_back_gives_equal_passes(passes: list[Everything]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "find_pass", lambda name: Everything)
        assert text.parse_pipeline(text.format_pipeline(passes)) == passes


@pytest.mark.parametrize(
    ("pipeline", "message"),
    [
        ("", "pipeline, column 1: expected the name of a pass, got the end"),
        ("everything,", "pipeline, column 12: expected the name of a pass, got the end"),
        ("everything{bits}", "pipeline, column 16: expected '=', got '}'"),
        ("everything{bits=}", "pipeline, column 17: expected a value, got '}'"),
        ("everything{bits=4", "pipeline, column 18: expected '}', got the end"),
        ("everything}", "pipeline, column 11: expected ',' or the end, got '}'"),
        ('everything{label="a', "pipeline, column 18: expected a closing quote, got '\"a'"),
        ("everything{layers=(a", "pipeline, column 21: expected ')', got the end"),
        ("everything{bits=4,bits=5}", "pipeline, column 19: option 'bits' is given twice"),
        ("do-nothing,everything{flag=yes}", "pipeline, column 23: pass 'everything', option 'flag': expected true or false, got 'yes'"),
        ("everything{bits=eight}", "pipeline, column 12: pass 'everything', option 'bits': expected an integer, got 'eight'"),
        ("everything{bits=0.5}", "pipeline, column 12: pass 'everything', option 'bits': expected an integer, got '0.5'"),
        ("everything{share=much}", "pipeline, column 12: pass 'everything', option 'share': expected a number, got 'much'"),
        ("everything{form=low}", "pipeline, column 12: pass 'everything', option 'form': expected one of high, narrow, got 'low'"),
        (
            "everything{rounding=up}",
            "pipeline, column 12: pass 'everything', option 'rounding': expected one of floor, nearest-even, got 'up'",
        ),
        ("everything{layers=a}", "pipeline, column 12: pass 'everything', option 'layers': expected a tuple (text, …), got 'a'"),
        (
            "everything{pair=(1)}",
            "pipeline, column 12: pass 'everything', option 'pair': expected a tuple (an integer, a number), got '(1)'",
        ),
        ("everything{limit=x}", "pipeline, column 12: pass 'everything', option 'limit': expected an integer or none, got 'x'"),
        ("needy", "pipeline, column 1: pass 'needy' needs the option 'scheme': expected text"),
    ],
)
def test_says_what_is_wrong_and_where(pipeline: str, message: str) -> None:
    with pytest.raises(PassError) as caught:
        text.parse_pipeline(pipeline)
    assert str(caught.value) == message


def test_unknown_names_come_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"^pipeline, column 12: unknown pass 'everythin': did you mean 'everything'\?"):
        text.parse_pipeline("do-nothing,everythin")
    with pytest.raises(UnknownNameError, match=r"^pipeline, column 19: unknown option of pass 'everything': 'bit': did you mean 'bits'\?"):
        text.parse_pipeline("everything{flag=1,bit=4}")


def test_python_values_are_checked_too() -> None:
    assert text.make_pass("everything", {"bits": 4, "layers": ["a"], "share": 1, "flag": "true"}) == Everything(
        bits=4, layers=("a",), share=1.0, flag=True
    )
    with pytest.raises(PassError, match="^pass 'everything', option 'bits': expected an integer, got 'True'$"):
        text.make_pass("everything", {"bits": True})


def test_every_registered_pass_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    for name in registry.pass_names():
        passes = text.parse_pipeline(name)
        assert text.parse_pipeline(text.format_pipeline(passes)) == passes
