"""Spec strings: how a person names a task, a data set, an optimizer and their options in one word.

``"cnn:channels=16x32,norm=none"`` is the name ``cnn`` and two options. ``,`` separates options, and
specs in a list; ``+`` never occurs inside a spec, so other rooms may use it to join several.
Options become the fields of a frozen keyword-only dataclass (`build_config`), and `canonical`
writes the shortest spec that builds the same config again.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import traceback
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

C = TypeVar("C")

_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off"})


class UserError(ValueError):
    """Bad input by a person: one clear line. The command lines print it and exit with status 2."""


def nearest(name: str, known: Iterable[str]) -> str:
    """``' (did you mean "x"?)'`` for the known word most like `name`, or ``''`` if none is alike."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f' (did you mean "{close[0]}"?)' if close else ""


def describe(error: BaseException) -> str:
    """``TypeError: message (file.py, line 3)`` in one line; a person's error by its own words."""
    if isinstance(error, UserError):
        return " ".join(str(error).split())
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {first_line(error)}{place}"


def first_line(error: BaseException) -> str:
    """What an error says, on one line: other packages' messages may run over many."""
    text = str(error).strip()
    return text.splitlines()[0].rstrip(".:") if text else type(error).__name__


def parse_spec(text: str) -> tuple[str, dict[str, str]]:
    """Split ``"cnn:channels=16x32,norm=none"`` into ``("cnn", {"channels": "16x32", "norm":
    "none"})``.

    Raises:
        UserError: no name, an option without ``=``, an empty option, or an option given twice.
    """
    name, colon, rest = text.strip().partition(":")
    name = name.strip()
    if not name or any(c in name for c in "=,"):
        raise UserError(f'"{text}" is not a spec: expected name or name:key=value,key=value')
    options: dict[str, str] = {}
    for piece in rest.split(",") if colon else ():
        key, equals, value = (part.strip() for part in piece.partition("="))
        if not (key and equals and value):
            raise UserError(f'"{text}": option "{piece.strip()}" is not of the form key=value')
        if key in options:
            raise UserError(f'"{text}": option "{key}" is given twice')
        options[key] = value
    return name, options


def split_specs(text: str) -> list[str]:
    """Split a comma-separated list of specs; a piece with ``=`` before any ``:`` continues the spec
    before it.

    ``"mlp:hidden=64x64,act=tanh,cnn"`` gives ``["mlp:hidden=64x64,act=tanh", "cnn"]``.

    Raises:
        UserError: the list or one of its pieces is empty, or it begins with an option.
    """
    specs: list[str] = []
    for raw in text.split(","):
        piece = raw.strip()
        if not piece:
            raise UserError(f'"{text}" is not a list of specs: it has an empty piece')
        if "=" in piece.partition(":")[0]:
            if not specs:
                raise UserError(f'"{text}" begins with the option "{piece}": expected a name first')
            joint = "," if ":" in specs[-1] else ":"
            specs[-1] += joint + piece
        else:
            specs.append(piece)
    return specs


def build_config(config_type: type[C], options: Mapping[str, Any], owner: str) -> C:
    """Build the dataclass `config_type` from option strings, converting each by its field's type.

    Field types: int, float, bool, str, Literal of strings, tuple[T, ...] (``"64x64"``; ``"none"``
    is empty), and each of them ``| None``. Values that are not strings (from a stored config) are
    checked, not parsed.

    Args:
        options: field name -> text (or an already converted value).
        owner: whose options these are; it begins the error line (for example ``"mlp"``).

    Raises:
        UserError: an unknown key, a text its field cannot hold, a missing field without default, or
            a ValueError of the config's own ``__post_init__``.
    """
    hints = typing.get_type_hints(config_type)
    fields = {f.name: f for f in dataclasses.fields(config_type) if f.init}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for key, raw in options.items():
        if key not in fields:
            known = ", ".join(fields) or "none"
            raise UserError(
                f'{owner}: unknown option "{key}"{nearest(key, fields)}; known: {known}'
            )
        try:
            values[key] = convert(raw, hints[key])
        except ValueError as error:
            raise UserError(f'{owner}: option {key}="{raw}": {error}') from None
    for key, field in fields.items():
        optional = (
            field.default is not dataclasses.MISSING
            or field.default_factory is not dataclasses.MISSING
        )
        if key not in values and not optional:
            raise UserError(f'{owner}: option "{key}" is required')
    try:
        return config_type(**values)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{owner}: {error}") from None


def canonical(name: str, config: Any) -> str:
    """The shortest spec for `name` with `config`: its fields that differ from their defaults, in
    field order.
    """
    parts = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if value != default:
            parts.append(f"{field.name}={_text(value)}")
    return f"{name}:{','.join(parts)}" if parts else name


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, tuple):
        return "x".join(_text(item) for item in value) or "none"
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return "none" if value is None else str(value)


def convert(raw: Any, hint: Any) -> Any:
    """`raw` as the type `hint`; raises ValueError with the words that end the error line."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        inner = [arg for arg in typing.get_args(hint) if arg is not type(None)]
        if raw is None or raw == "none":
            return None
        return convert(raw, inner[0])
    if origin is typing.Literal:
        choices = typing.get_args(hint)
        if raw not in choices:
            raise ValueError(
                f"expected one of {', '.join(map(str, choices))}{nearest(str(raw), map(str, choices))}"
            )
        return raw
    if origin is tuple:
        item = typing.get_args(hint)[0]
        if isinstance(raw, str):
            return () if raw == "none" else tuple(convert(part, item) for part in raw.split("x"))
        return tuple(convert(part, item) for part in raw)
    return _scalar(raw, hint)


def _scalar(raw: Any, hint: Any) -> Any:
    if hint is bool:
        word = str(raw).lower()
        if word not in _TRUE | _FALSE:
            raise ValueError("expected 1 or 0 (true/false, yes/no, on/off)")
        return word in _TRUE
    if hint is int:
        if isinstance(raw, bool) or (not isinstance(raw, str) and raw != int(raw)):
            raise ValueError("expected a whole number")
        try:
            return int(raw)
        except ValueError:
            raise ValueError("expected a whole number") from None
    if hint is float:
        try:
            value = float(raw)
        except (TypeError, ValueError):
            raise ValueError("expected a number") from None
        if math.isnan(value):
            raise ValueError("expected a number, not nan")
        return value
    if hint is str:
        return str(raw)
    raise TypeError(f"build_config cannot fill a field of type {hint}")
