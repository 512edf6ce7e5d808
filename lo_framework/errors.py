"""Errors for a person who gave something wrong: one short, printable line each."""

from __future__ import annotations

import difflib
import math
import operator
import reprlib
import traceback
from collections.abc import Collection, Iterable
from contextlib import suppress
from numbers import Real
from pathlib import Path
from typing import Any

LONGEST_NAME = 80


class UserError(ValueError):
    """Bad input by a person: one clear line. The command lines print it and exit with status 2."""


def nearest(name: str, known: Iterable[str]) -> str:
    """``' (did you mean "x"?)'`` for the known word most like `name`; ``''`` when none is alike."""
    if len(name) > LONGEST_NAME:  # the comparison takes the product of both lengths
        return ""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f' (did you mean "{close[0]}"?)' if close else ""


def choose(kind: str, name: Any, known: Collection[str]) -> str:
    """``name``, one of the ``known`` ones. Raises UserError, which names the nearest of them."""
    if not isinstance(name, str) or name not in known:
        hint = nearest(str(name), known)
        raise UserError(f"unknown {kind} {shown(name)}{hint}; known: {', '.join(known) or 'none'}")
    return str(name)


def whole(name: str, number: Any, least: int | None = 1) -> int:
    """``number``, of whatever kind, as an int; raises UserError unless it is a whole number of at
    least ``least``.
    """
    result: int | None = None
    if isinstance(number, Real) and number % 1 == 0:
        result = None if isinstance(number, bool) else int(math.floor(number))  # noqa: RUF046
    elif hasattr(number, "__index__"):  # of other packages, such as a tensor
        with suppress(TypeError):
            result = operator.index(number)
    if result is None or (least is not None and result < least):
        bound = "" if least is None else f" of at least {least}"
        raise UserError(f"{name} must be a whole number{bound}, not {number!r}")
    return result


def number(given: Any) -> float | None:
    """A number of any kind, or a tensor of one, as a float; None for whatever is none."""
    if isinstance(given, str | bytes | bytearray | complex) or getattr(given, "is_complex", bool)():
        return None
    try:
        return float(given)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return None


def check_number(
    name: str,
    given: Any,
    *,
    low: float = 0.0,
    open_low: bool = False,
    below: float = math.inf,
    subject: str = "",
) -> float:
    """``given`` as a float; raises UserError unless it is at least ``low`` (above it, where that is
    ``open_low``) and less than ``below``. ``subject``: what is said to be wrong, where it is more
    than the name.
    """
    found = number(given)
    if found is not None and low <= found < below and not (open_low and found == low):
        return found
    least = f"above {low:g}" if open_low else f"at least {low:g}"
    most = "finite" if below == math.inf else f"below {below:g}"
    kind = "" if found is not None else "one number, "
    raise UserError(f"{subject or name} must be {kind}{least} and {most}, not {shown(given)}")


def numbers(given: Any) -> tuple[float, ...] | None:
    """A list of numbers of any kind as floats; None for whatever is none."""
    if not isinstance(given, Iterable) or isinstance(given, str | bytes | bytearray):
        return None
    found = [number(x) for x in given]
    return None if None in found else tuple(x for x in found if x is not None)


def check_numbers(name: str, given: Any, example: str) -> tuple[float, ...]:
    """``given`` as floats; raises UserError unless it is a list of numbers, as the ``example``."""
    found = numbers(given)
    if found is None:
        raise UserError(f"{name} must be numbers, as {example}, not {shown(given)}")
    return found


def describe(error: BaseException, *, place: bool = True) -> str:
    """``TypeError: message (file.py, line 3)`` in one line; a person's error by its own words."""
    if isinstance(error, UserError):
        return visible(" ".join(str(error).split()))
    frames = traceback.extract_tb(error.__traceback__) if place else []
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return visible(f"{type(error).__name__}: {first_line(error)}{where}")


def first_line(error: BaseException) -> str:
    """The first line of an error: other packages' messages may run over many."""
    text = str(error).strip()
    return text.splitlines()[0].rstrip(".:") if text else type(error).__name__


def visible(text: object) -> str:
    """One line in which control characters are shown: ``\\x1b`` in place of an escape."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text)
    )


_repr = reprlib.Repr()
_repr.maxlevel, _repr.maxlist, _repr.maxtuple, _repr.maxdict, _repr.maxother = 2, 4, 4, 3, 60


def shown(value: Any) -> str:
    """A short quote of `value` for an error line: no control characters, never long."""
    if isinstance(value, str):
        text = value if len(value) <= LONGEST_NAME else value[: LONGEST_NAME - 3] + "..."
        return f'"{visible(text)}"'
    try:
        return _repr.repr(value)
    except ValueError:  # Python refuses to write a whole number of thousands of digits
        return "a number of thousands of digits"
