"""One checker for everything that comes from outside: parsed JSON, and the texts of options.

Types of dataclass fields are the schema. `check_json` turns parsed JSON into the value that a type
describes, or raises one UserError that names the place: "at arms[0].task: expected text, not 0".
It knows bool, int, float (finite), str, None, Any, Literal, unions, list, tuple, dict[str, X],
dataclasses inside each other, and ``Annotated`` with a `Range` of numbers or with `Via`.

`check_ranges` holds a config that is made in Python to the same types and ranges.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import json
import math
import sys
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from lo_framework.errors import UserError, nearest, shown

T = TypeVar("T")

MAX_DEPTH = 32  # of what a schema leaves open (Any)
_NAMES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    type(None): "nothing (null)",
}
_WORDS = dict.fromkeys(("1", "true", "yes", "on"), True)
_WORDS |= dict.fromkeys(("0", "false", "no", "off"), False)
_READERS: dict[type, Callable[[str], Any]] = {
    bool: lambda word: _WORDS.get(word.lower()),
    type(None): lambda word: None if word == "none" else word,
}
_NOTHING = object()


class Mismatch(ValueError):
    """A ``value`` that is not as ``expected``; ``place`` says where in the whole it stands."""

    def __init__(self, expected: str, value: Any = _NOTHING, place: str = "") -> None:
        super().__init__(expected)
        self.expected, self.value, self.place = expected, value, place

    @property
    def problem(self) -> str:
        return self.expected + ("" if self.value is _NOTHING else f", not {shown(self.value)}")

    def __str__(self) -> str:
        place = self.place.lstrip(".")
        return f"at {shown(place)[1:-1]}: {self.problem}" if place else self.problem

    def inside(self, part: str) -> Mismatch:
        """Put the error into the whole whose ``part`` the value is."""
        return Mismatch(self.expected, self.value, part + self.place)


@dataclass(frozen=True, kw_only=True)
class Range:
    """The numbers from ``low`` to ``high``; without that bound itself where it is ``open``."""

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False
    nan: bool = False

    def holds(self, number: float) -> bool:
        if number != number:
            return self.nan
        above = number > self.low if self.open_low else number >= self.low
        return above and (number < self.high if self.open_high else number <= self.high)

    def __str__(self) -> str:
        low = f"{'above' if self.open_low else 'at least'} {self.low:.10g}"
        high = f"{'below' if self.open_high else 'at most'} {self.high:.10g}"
        bounds = ((self.low, -math.inf, low), (self.high, math.inf, high))
        return " and ".join(text for bound, none, text in bounds if bound != none) or "a number"


@dataclass(frozen=True)
class Via:
    """A field that is read as ``hint`` and then built by ``build``, which may raise ValueError."""

    hint: Any
    build: Callable[[Any], Any]


# Sizes that decide how much memory is taken have an upper bound far above what anyone trains.
Width = Annotated[int, Range(low=1, high=1 << 16)]
Layers = Annotated[int, Range(low=1, high=256)]
Seed = Annotated[int, Range(low=-(2**62), high=2**62)]
Positive = Annotated[float, Range(low=0, high=1e6, open_low=True)]
NotNegative = Annotated[float, Range(low=0, high=1e6)]
Fraction = Annotated[float, Range(low=0, high=1)]
Share = Annotated[float, Range(low=0, high=1, open_low=True, open_high=True)]
AnyNumber = Annotated[float, Range(nan=True)]  # infinities and NaN as well


def check_json(value: Any, hint: Any, owner: str) -> Any:
    """The parsed JSON `value` as the type `hint` (a dataclass, or any other type that fields have).

    Args:
        owner: what the value is or where it comes from; it begins the error line.

    Raises:
        UserError: a value that does not fit; the line names its place.
    """
    try:
        return convert(value, hint)
    except ValueError as error:
        raise UserError(f"{owner}: {error}") from None


def read_json(text: str | bytes, hint: Any, owner: str) -> Any:
    """`check_json` of a text; raises UserError also for what is no JSON."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        # A number of many digits and a deep nest are refused by the parser itself.
        reason = error.msg if isinstance(error, json.JSONDecodeError) else type(error).__name__
        raise UserError(f"{owner}: expected JSON, and it cannot be parsed ({reason})") from None
    return check_json(value, hint, owner)


def check_ranges(config: Any) -> None:
    """For ``__post_init__``: every field of the dataclass `config` fits its type and its range.

    Raises:
        ValueError: naming the first field that does not.
    """
    for field in dataclasses.fields(config):
        value, hint = getattr(config, field.name), hints(type(config))[field.name]
        try:
            convert(value, hint)
        except Mismatch as error:
            problem = error.problem.replace("expected", "must be", 1)
            raise ValueError(f"{field.name}{error.place} {problem}") from None


@dataclass(frozen=True, kw_only=True)
class Checked:
    """Base of configs, which are refused unless every field fits its type and its range."""

    def __post_init__(self) -> None:
        check_ranges(self)


def _hints(config: type) -> dict[str, Any]:
    """Types of a dataclass's fields, with what `Annotated` says of them.

    Of fields alone: a class variable whose type is not said, a plain ``ClassVar``, is an error to
    `typing.get_type_hints` of a class on Python 3.10.
    """
    names = {field.name for field in dataclasses.fields(config)}
    found: dict[str, Any] = {}
    for base in reversed(config.__mro__):
        own = {key: x for key, x in inspect.get_annotations(base).items() if key in names}
        found |= typing.get_type_hints(
            types.SimpleNamespace(__annotations__=own),
            dict(vars(base)),  # names of the module come before those of the class, as for a class
            vars(sys.modules[base.__module__]),
            include_extras=True,
        )
    return found


hints: Callable[[Any], dict[str, Any]] = functools.cache(_hints)


def convert(value: Any, hint: Any, *, text: bool = False) -> Any:
    """`value` as the type `hint`; with ``text``, strings are parsed by that type (``"64x64"``).

    Raises:
        Mismatch: with the words that end the error line.
    """
    origin, args = typing.get_origin(hint) or hint, typing.get_args(hint)
    if origin is Annotated:
        inner, extra = args
        if isinstance(extra, Range):
            number = _scalar(value, inner, text)
            if extra.holds(number):
                return number
            raise Mismatch(f"expected {extra}", value)
        try:
            return extra.build(convert(value, extra.hint, text=text))
        except Mismatch:
            raise
        except (ValueError, OverflowError) as error:
            raise Mismatch(str(error)) from None
    if origin in (Any, object):
        return _shallow(value)
    if origin in (typing.Union, types.UnionType):
        return _union(value, args, text)
    if origin is typing.Literal:
        for choice in args:
            same = type(value) is type(choice) and value == choice
            if same or (text and value == str(choice)):
                return choice
        known = [str(choice) for choice in args]
        near = nearest(value, known) if isinstance(value, str) else ""
        raise Mismatch(f"expected one of {', '.join(known)}{near}", value)
    if dataclasses.is_dataclass(origin):
        return value if isinstance(value, hint) else _dataclass(value, hint, text)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise Mismatch("expected an object", value)
        if odd := [key for key in value if not isinstance(key, str)]:
            raise Mismatch("expected text as a key", odd[0])
        inner = args[1] if args else Any
        return {key: _part(x, inner, f"[{shown(key)}]", text) for key, x in value.items()}
    if origin in (list, tuple):
        if text and isinstance(value, str):
            value = [] if value == "none" else value.split("x")
        if not isinstance(value, (list, tuple)):
            raise Mismatch("expected a list", value)
        if origin is list or len(args) < 2 or args[-1] is Ellipsis:
            args = (args or (Any,))[:1] * len(value)
        if len(value) != len(args):
            raise Mismatch(f"expected a list of {len(args)} entries, not of {len(value)}")
        pairs = enumerate(zip(value, args))
        return origin(_part(x, inner, f"[{i}]", text) for i, (x, inner) in pairs)
    value = _scalar(value, type(None) if hint is None else hint, text)
    if isinstance(value, float) and not math.isfinite(value):
        raise Mismatch("expected a finite number", value)
    return value


def _union(value: Any, members: tuple[Any, ...], text: bool) -> Any:
    errors = []
    # None first: the text "none" would pass for a str.
    for member in sorted(members, key=lambda m: m is not type(None)):
        try:
            return convert(value, member, text=text)
        except Mismatch as error:
            if member is not type(None):
                errors.append(error)
    deepest = max(errors, key=lambda error: len(error.place))
    if deepest.place or len(errors) == 1:
        raise deepest
    expected = " or ".join(error.expected for error in errors)
    raise Mismatch(expected.replace(" or expected", " or"), value)


def _dataclass(value: Any, cls: type, text: bool) -> Any:
    if not isinstance(value, Mapping):
        raise Mismatch("expected an object with named fields", value)
    # A value that cannot be (another kind of file) says more than a field that is unknown.
    types = hints(cls)
    values = {k: _part(x, types[k], f".{k}", text) for k, x in value.items() if k in types}
    check_names(cls, value, "field")
    try:
        return cls(**values)
    except ValueError as error:
        raise Mismatch(str(error)) from None


def check_names(cls: type, given: Mapping[Any, Any], noun: str) -> None:
    """Raise Mismatch unless ``given`` has every field of a dataclass without a default, and no name
    beside its fields.
    """
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    for key in given:
        if key not in fields:
            near = nearest(key, fields) if isinstance(key, str) else ""
            known = ", ".join(fields) or "none"
            raise Mismatch(f"unknown {noun} {shown(key)}{near}; known: {known}")
    for key, field in fields.items():
        if key not in given and required(field):
            raise Mismatch(f'the {noun} "{key}" is missing')


def required(field: dataclasses.Field[Any]) -> bool:
    """Whether a field of a dataclass has no default."""
    return field.default is field.default_factory is dataclasses.MISSING


def _part(value: Any, hint: Any, part: str, text: bool) -> Any:
    try:
        return convert(value, hint, text=text)
    except Mismatch as error:
        raise error.inside(part) from None


def _scalar(value: Any, hint: Any, text: bool) -> Any:
    if hint not in _NAMES:
        raise TypeError(f"no schema for the type {hint}")
    parsed = value
    with contextlib.suppress(ValueError, OverflowError):
        if text and isinstance(value, str):
            parsed = _READERS.get(hint, hint)(value)
        elif hint is float and isinstance(value, int) and not isinstance(value, bool):
            parsed = float(value)
    if not isinstance(parsed, hint) or (isinstance(parsed, bool) and hint is not bool):
        wanted = "1 or 0 (true/false, yes/no, on/off)" if text and hint is bool else _NAMES[hint]
        raise Mismatch(f"expected {wanted}", value)
    return parsed


def _shallow(value: Any, depth: int = MAX_DEPTH) -> Any:
    """`value`, if its lists and objects are nested at most ``depth`` deep."""
    if isinstance(value, (Mapping, list, tuple)):
        if not depth:
            raise Mismatch(f"expected at most {MAX_DEPTH} lists and objects inside each other")
        for part in value.values() if isinstance(value, Mapping) else value:
            _shallow(part, depth - 1)
    return value


def check_heads(width: int, heads: int) -> None:
    """Raise ValueError unless every head has the same share of the width."""
    if width % heads:
        raise ValueError(f"width ({width}) must be a multiple of heads ({heads})")
