"""Option values that stand for many: ``8..128`` (numbers), ``relu|gelu`` (choices), and both
together, ``none|16..128``.

A choice that is written twice is drawn twice as often. Whole numbers and others are drawn
log-uniformly, or uniformly where a range begins at 0 or below. In a list every entry is drawn for
itself, and ``hidden=8..128,layers=1..4`` draws 1 to 4 layers, each with a width of its own (see
`Repeating`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch

from lo_framework.schema import Checked, Mismatch, check_names
from lo_framework.spec import (
    UserError,
    build_config,
    canonical,
    default_of,
    join_spec,
    read_option,
    shown,
    write_option,
)

DIGITS = 3  # of a drawn number that is not whole: specs are for reading
TRIES = 100


@dataclass(frozen=True, kw_only=True)
class Repeating(Checked):
    """Base of configs with one option that is the length of another, a list of one entry that is
    repeated: ``hidden=64,layers=3`` is ``hidden=64x64x64``.
    """

    REPEATS: ClassVar[tuple[str, str]]  # the names of both options, the length first

    def __post_init__(self) -> None:
        super().__post_init__()
        count, many = self.REPEATS
        times, entries = getattr(self, count), getattr(self, many)
        if times not in (None, len(entries)):
            if len(entries) != 1:
                raise ValueError(
                    f"{count}={times} repeats one entry of {many}, which has {len(entries)}"
                )
            object.__setattr__(self, many, entries * times)
        object.__setattr__(self, count, None)


@dataclass(frozen=True)
class Span:
    """The numbers from `low` to `high`, both included."""

    low: int | float
    high: int | float

    def draw(self, generator: torch.Generator) -> str:
        """The text of one number."""
        u = torch.rand((), generator=generator, dtype=torch.float64).item()
        low, high = self.low, self.high
        whole = isinstance(low, int)
        end = high + 1 if whole else high
        x = low * (end / low) ** u if low > 0 else low + (end - low) * u
        x = math.floor(x) if whole else float(f"{x:.{DIGITS}g}")
        return write_option(min(max(x, low), high))

    def __str__(self) -> str:
        return f"{write_option(self.low)}..{write_option(self.high)}"


Item = Span | str
Choice = tuple[Item, ...]  # the entries of a list; one entry where the option is no list


@dataclass(frozen=True)
class Ranged:
    """A spec whose options may be ranges: of the thing ``name`` with options of ``config_type``.

    `fixed` are the texts of options with one value, `varied` the choices of all others; both in
    the order of the config's fields.
    """

    name: str
    config_type: type
    fixed: Mapping[str, str]
    varied: Mapping[str, tuple[Choice, ...]]

    @staticmethod
    def of(name: str, config_type: type, options: Mapping[str, str]) -> Ranged:
        """Read `options`; raises UserError where a value, or a bound of a range, does not fit."""
        try:
            check_names(config_type, options, "option")
            known = [field.name for field in fields(config_type)]
            read = {key: _read(config_type, key, options[key]) for key in known if key in options}
        except ValueError as error:
            raise UserError(f"{name}: {error}") from None
        fixed = {key: value for key, value in read.items() if isinstance(value, str)}
        varied = {key: value for key, value in read.items() if not isinstance(value, str)}
        if not varied:
            build_config(config_type, fixed, name)
        return Ranged(name, config_type, fixed, varied)

    def __str__(self) -> str:
        """The canonical spec, with its ranges."""
        if not self.varied:
            return canonical(self.name, self.named())
        texts = {}
        for field in fields(self.config_type):
            if field.name in self.varied:
                choices = self.varied[field.name]
                texts[field.name] = "|".join("x".join(map(str, choice)) for choice in choices)
            elif field.name in self.fixed:
                value = read_option(self.config_type, field.name, self.fixed[field.name])
                if value != default_of(field):
                    texts[field.name] = write_option(value)
        return join_spec(self.name, texts)

    def named(self) -> Any:
        """The config with the default of every option that is a range."""
        return build_config(self.config_type, self.fixed, self.name)

    def draw(self, generator: torch.Generator) -> Any:
        """A config drawn from the ranges. Values that do not go together are drawn again; raises
        UserError where none of `TRIES` draws does.
        """
        for _ in range(TRIES):
            try:
                return build_config(self.config_type, self._texts(generator), self.name)
            except UserError as error:
                problem = error
        raise problem

    def covers(self, config: Any) -> bool:
        """Whether a draw can be that `config`."""
        named, (count, many) = self.named(), getattr(self.config_type, "REPEATS", ("", ""))
        return all(
            self._allows(field.name, getattr(config, field.name))
            if field.name in self.varied or (field.name == many and count in self.varied)
            else getattr(config, field.name) == getattr(named, field.name)
            for field in fields(self.config_type)
            if field.name != count
        )

    def _allows(self, key: str, value: Any) -> bool:
        """Whether one of the option's choices can be that `value`."""
        count, many = getattr(self.config_type, "REPEATS", ("", ""))
        entries = value if isinstance(value, tuple) else (value,)
        repeated = key == many and self._has(count, len(entries))
        fixed = write_option(getattr(self.named(), key))
        for choice in self.varied.get(key, ((fixed,),)):
            if len(choice) == 1 and isinstance(choice[0], str):
                whole = read_option(self.config_type, key, choice[0])
                if value == (whole * len(entries) if repeated and len(whole) == 1 else whole):
                    return True
            elif len(choice) == 1 and repeated:
                choice *= len(entries)
            if len(choice) == len(entries) and all(map(_inside, choice, entries)):
                return True
        return False

    def _has(self, count: str, times: int) -> bool:
        """Whether the option `count` can be that number of `times`."""
        if count in self.varied:
            return self._allows(count, times)
        return count in self.fixed and int(self.fixed[count]) == times

    def _texts(self, generator: torch.Generator) -> dict[str, str]:
        count, many = getattr(self.config_type, "REPEATS", (None, None))
        texts = dict(self.fixed)
        for key in sorted(self.varied, key=lambda key: key == many):  # the length comes first
            choices = self.varied[key]
            at = torch.randint(len(choices), (), generator=generator) if choices[1:] else 0
            choice = choices[at]
            if key == many and count in texts and len(choice) == 1 and isinstance(choice[0], Span):
                choice *= int(texts.pop(count))
            texts[key] = "x".join(x if isinstance(x, str) else x.draw(generator) for x in choice)
        return texts


def _read(config_type: type, key: str, text: str) -> str | tuple[Choice, ...]:
    """`text` itself where it is one value, else its choices; raises Mismatch."""
    if not ("|" in text or ".." in text):
        read_option(config_type, key, text)
        return text
    try:  # a text of its own that looks like a range: "../mine"
        read_option(config_type, key, text)
        return text
    except Mismatch:
        choices = [part.strip() for part in text.split("|")]
        return tuple(_choice(config_type, key, text, part) for part in choices)


def _choice(config_type: type, key: str, text: str, part: str) -> Choice:
    where = f"option {key}={shown(text)}"
    if not part:
        raise Mismatch(f"{where}: a choice between | is empty")
    if ".." not in part:
        read_option(config_type, key, part)
        return (part,)
    items: list[Item] = []
    for piece in part.split("x"):
        low, dots, high = piece.partition("..")
        if not (low and (high or not dots)):
            raise Mismatch(f"{where}: the range {shown(piece)} is empty: expected low..high")
        bounds = [_number(config_type, key, bound) for bound in (low, high) if bound]
        if dots and any(bound is None for bound in bounds):
            raise Mismatch(f"{where}: a range is of numbers: write choices with |, as a|b")
        if dots and bounds[0] > bounds[1]:
            raise Mismatch(f"{where}: the range is reversed: expected {high}..{low}")
        items.append(Span(*bounds) if dots else piece)
    return tuple(items)


def _number(config_type: type, key: str, text: str) -> Any:
    """The number that `text` is as a value of the option (as an entry, if it is a list)."""
    value = read_option(config_type, key, text)
    value = value[0] if isinstance(value, tuple) and value else value
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _inside(item: Item, entry: Any) -> bool:
    """Whether an entry can be what the `item` of a choice stands for."""
    if isinstance(item, str):
        return write_option(entry) == item
    return isinstance(entry, int | float) and item.low <= entry <= item.high
