"""Spec strings: how a person names a task, a data set, an optimizer and their options in one word.

``"cnn:channels=16x32,norm=none"`` is the name ``cnn`` and two options. ``,`` separates options, and
specs in a list; ``+`` never occurs inside a spec, so other rooms may use it to join several.
Options become the fields of a frozen keyword-only dataclass (`build_config`), and `canonical`
writes the shortest spec that builds the same config again.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, TypeVar

from lo_framework.errors import (
    UserError as UserError,
    describe as describe,
    first_line as first_line,
    nearest as nearest,
    shown as shown,
)
from lo_framework.schema import Mismatch, check_names, convert, hints

C = TypeVar("C")


def parse_spec(text: str) -> tuple[str, dict[str, str]]:
    """Split ``"cnn:channels=16x32,norm=none"`` into ``("cnn", {"channels": "16x32", "norm":
    "none"})``.

    Raises:
        UserError: no name, an option without ``=``, an empty option, or an option given twice.
    """
    name, colon, rest = text.strip().partition(":")
    name = name.strip()
    if not name or any(c in name for c in "=,"):
        raise UserError(f"{shown(text)} is not a spec: expected name or name:key=value,key=value")
    options: dict[str, str] = {}
    for piece in rest.split(",") if colon else ():
        key, equals, value = (part.strip() for part in piece.partition("="))
        if not (key and equals and value):
            raise UserError(
                f"{shown(text)}: option {shown(piece.strip())} is not of the form key=value"
            )
        if key in options:
            raise UserError(f"{shown(text)}: option {shown(key)} is given twice")
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
            raise UserError(f"{shown(text)} is not a list of specs: it has an empty piece")
        if "=" in piece.partition(":")[0]:
            if not specs:
                raise UserError(
                    f"{shown(text)} begins with the option {shown(piece)}: expected a name first"
                )
            joint = "," if ":" in specs[-1] else ":"
            specs[-1] += joint + piece
        else:
            specs.append(piece)
    return specs


def split_joined(text: str) -> list[str]:
    """Split specs joined by ``+``: one that begins a name; in a number, as in 1e+3, it is followed
    by a digit.
    """
    return re.split(r"\+(?=\s*[A-Za-z_])", text)


def build_config(config_type: type[C], options: Mapping[str, Any], owner: str) -> C:
    """Build the dataclass `config_type` from option strings, converting each by its field's type.

    Field types are those of `lo_framework.schema`; a tuple is written ``"64x64"``, an empty one and
    a missing value ``"none"``. Values that are not strings are checked, not parsed.

    Args:
        options: field name -> text (or an already converted value).
        owner: whose options these are; it begins the error line (for example ``"mlp"``).

    Raises:
        UserError: an unknown key, a text its field cannot hold, a missing field without default, or
            a ValueError of the config's own ``__post_init__``.
    """
    values: dict[str, Any] = {}
    try:
        check_names(config_type, options, "option")
        for key, raw in options.items():
            values[key] = read_option(config_type, key, raw)
        return config_type(**values)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{owner}: {error}") from None


def read_option(config_type: type, key: str, raw: Any) -> Any:
    """The value of the option `key` that the text `raw` stands for; raises `Mismatch`."""
    try:
        return convert(raw, hints(config_type)[key], text=True)
    except Mismatch as error:
        problem = error.expected if error.value is raw else error.problem
        raise Mismatch(f"option {key}={shown(raw)}: {problem}") from None


def canonical(name: str, config: Any) -> str:
    """The shortest spec for `name` with `config`: its fields that differ from their defaults, in
    field order.
    """
    parts = {
        field.name: write_option(value)
        for field in dataclasses.fields(config)
        if (value := getattr(config, field.name)) != default_of(field)
    }
    return join_spec(name, parts)


def join_spec(name: str, options: Mapping[str, str]) -> str:
    """The spec that `parse_spec` takes apart again."""
    parts = ",".join(f"{key}={value}" for key, value in options.items())
    return f"{name}:{parts}" if parts else name


def default_of(field: dataclasses.Field[Any]) -> Any:
    """The default of a dataclass's field, `dataclasses.MISSING` without one."""
    made = field.default_factory
    return field.default if made is dataclasses.MISSING else made()


def write_option(value: Any) -> str:
    """The text that `read_option` reads as `value`."""
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, tuple):
        return "x".join(write_option(item) for item in value) or "none"
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return "none" if value is None else str(value)
