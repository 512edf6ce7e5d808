"""The one checker: what fits comes out as its type says, all else is one line with a place."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import pytest

from lo_framework.errors import UserError, shown
from lo_framework.schema import (
    AnyNumber,
    Positive,
    Range,
    Via,
    Width,
    check_json,
    check_ranges,
    read_json,
)


@dataclass(frozen=True, kw_only=True)
class Arm:
    task: str
    rate: float = 0.0
    kind: Literal["fast", "slow"] = "fast"


@dataclass(frozen=True, kw_only=True)
class Study:
    KINDS: ClassVar = ("fast", "slow")  # no field, and no type: an error to Python 3.10's typing
    arms: tuple[Arm, ...]
    steps: int = 1
    pair: tuple[int, str] = (0, "")
    files: dict[str, float | None] = field(default_factory=dict)
    seed: int | None = None
    either: int | str = 0
    online: bool = False
    curve: Annotated[list, Via(list[float | None], sum)] = field(default_factory=list)
    loss: AnyNumber = 0.0
    free: Any = None


def test_what_fits_comes_out_as_the_types_say() -> None:
    found = check_json(
        {
            "arms": [{"task": "mlp", "rate": 1}],
            "pair": [3, "x"],
            "files": {"a": None, "b": 2},
            "either": "word",
            "online": True,
            "curve": [1, 2.5],
            "loss": math.inf,
            "free": {"a": [1, {"b": None}]},
        },
        Study,
        "file",
    )
    assert found == Study(
        arms=(Arm(task="mlp", rate=1.0),),
        pair=(3, "x"),
        files={"a": None, "b": 2.0},
        either="word",
        online=True,
        curve=3.5,  # type: ignore[arg-type]
        loss=math.inf,
        free={"a": [1, {"b": None}]},
    )
    assert isinstance(found.arms[0].rate, float) and isinstance(found.files["b"], float)


def deep(levels: int) -> Any:
    value: Any = []
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "line"),
    [
        (7, "expected an object with named fields, not 7"),
        ({}, 'the field "arms" is missing'),
        ({"arms": None}, "at arms: expected a list, not None"),
        ({"arms": [{"task": 0}]}, "at arms[0].task: expected text, not 0"),
        ({"arms": [{}]}, 'at arms[0]: the field "task" is missing'),
        ({"arms": [{"task": "a", "rate": "x"}]}, 'at arms[0].rate: expected a number, not "x"'),
        ({"arms": [{"task": "a", "rate": True}]}, "at arms[0].rate: expected a number, not True"),
        (
            {"arms": [{"task": "a", "rate": math.nan}]},
            "at arms[0].rate: expected a finite number, not nan",
        ),
        (
            {"arms": [{"task": "a", "rate": 10**400}]},
            "at arms[0].rate: expected a number, not 100000",
        ),
        (
            {"arms": [{"task": "a", "kind": "fas"}]},
            'at arms[0].kind: expected one of fast, slow (did you mean "fast"?), not "fas"',
        ),
        ({"arms": [], "steps": None}, "at steps: expected a whole number, not None"),
        ({"arms": [], "steps": 1.0}, "at steps: expected a whole number, not 1.0"),
        ({"arms": [], "steps": True}, "at steps: expected a whole number, not True"),
        ({"arms": [], "steps": "1"}, 'at steps: expected a whole number, not "1"'),
        ({"arms": [], "pair": [1]}, "at pair: expected a list of 2 entries, not of 1"),
        ({"arms": [], "pair": [1, 2]}, "at pair[1]: expected text, not 2"),
        ({"arms": [], "files": {"a": "b"}}, 'at files["a"]: expected a number, not "b"'),
        ({"arms": [], "files": []}, "at files: expected an object, not []"),
        ({"arms": [], "seed": "x"}, 'at seed: expected a whole number, not "x"'),
        ({"arms": [], "either": None}, "at either: expected a whole number or text, not None"),
        ({"arms": [], "online": 1}, "at online: expected true or false, not 1"),
        ({"arms": [], "online": "yes"}, 'at online: expected true or false, not "yes"'),
        ({"arms": [], "curve": ["x"]}, 'at curve[0]: expected a number, not "x"'),
        ({"arms": [], "stepz": 1}, 'unknown field "stepz" (did you mean "steps"?)'),
        ({"arms": [], "\x1b[31m": 1}, r'unknown field "\x1b[31m"; known: arms'),
        ({"arms": [], "free": deep(900)}, "at free: expected at most 32 lists and objects"),
        ({"arms": deep(900)}, "at arms[0]: expected an object with named fields, not [["),
        ({"arms": [{"task": ["y" * 10**6]}]}, "at arms[0].task: expected text, not ['yyyy"),
    ],
)
def test_what_does_not_fit_is_one_short_line_with_its_place(value: Any, line: str) -> None:
    with pytest.raises(UserError) as error:
        check_json(value, Study, "results.json")
    text = str(error.value)
    assert text.startswith(f"results.json: {line}")
    assert text.isprintable() and len(text) < 400


@pytest.mark.parametrize("text", ["[" * 100_000, '{"arms": ', "", "1" * 5000, b"\xff\xfe"])
def test_what_is_no_json(text: str | bytes) -> None:
    with pytest.raises(UserError, match="results.json: expected JSON, and it cannot be parsed"):
        read_json(text, Study, "results.json")


def test_a_long_name_costs_no_time() -> None:
    begin = time.perf_counter()
    with pytest.raises(UserError) as error:
        check_json({"arms": [], "steps" * 200_000: 1}, Study, "file")
    assert len(str(error.value)) < 300 and time.perf_counter() - begin < 1


def test_quotes() -> None:
    assert shown("a\x1b[0m\nb") == r'"a\x1b[0m\nb"'
    assert len(shown("x" * 10**6)) < 100 and len(shown(list(range(10**5)))) < 100
    assert shown(10**5000) == "a number of thousands of digits"


@dataclass(frozen=True, kw_only=True)
class Sizes:
    hidden: Width = 8
    widths: tuple[Width, ...] = ()
    lr: Positive = 1e-3
    share: Annotated[float, Range(low=0, high=1, open_high=True)] = 0.5

    def __post_init__(self) -> None:
        check_ranges(self)


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"hidden": 0}, "hidden must be at least 1 and at most 65536, not 0"),
        ({"hidden": 10**9}, "hidden must be at least 1 and at most 65536, not 1000000000"),
        ({"hidden": 16.5}, "hidden must be a whole number, not 16.5"),
        ({"hidden": True}, "hidden must be a whole number, not True"),
        ({"widths": (4, 0)}, "widths[1] must be at least 1 and at most 65536, not 0"),
        ({"lr": 0.0}, "lr must be above 0 and at most 1000000, not 0.0"),
        ({"lr": math.inf}, "lr must be above 0 and at most 1000000, not inf"),
        ({"lr": math.nan}, "lr must be above 0 and at most 1000000, not nan"),
        ({"lr": 10**400}, "lr must be a number, not 1000"),
        ({"share": 1.0}, "share must be at least 0 and below 1, not 1.0"),
    ],
)
def test_ranges_hold_in_python_and_in_files(values: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError) as error:
        Sizes(**values)
    assert str(error.value).startswith(line)
    with pytest.raises(UserError, match="^sizes: at "):
        check_json(values, Sizes, "sizes")
