"""docs/regularizers.md: its table against the classes, and its example as a plugin."""

from __future__ import annotations

import dataclasses
import re
import typing
from pathlib import Path

import torch

from lo_framework.absorb.absorption import make_regularizer
from lo_framework.plugin import load_plugin
from lo_framework.regularizers import REGULARIZERS, Regularizer
from tests.regularizers.reg_tools import (
    assert_close,
    field,
    grad,
    landscape_of,
    mlp,
    plain_loss,
    plus,
)

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "regularizers.md").read_text("utf-8")
SHIPPED = {
    name: entry.build
    for name, entry in REGULARIZERS.items()
    if entry.build.__module__.startswith("lo_framework.regularizers.")
}


def word(value: object) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def facts(spec: str) -> list[str]:
    """The cells cost, value and options of a row."""
    regularizer: Regularizer = make_regularizer(spec)
    gradients, hvps = regularizer.cost
    cost = f"{gradients:g}" + (f" + {hvps:g} HVP" if hvps else "")
    options = []
    hints = typing.get_type_hints(regularizer.Config)
    for option in dataclasses.fields(regularizer.Config):
        span = ""
        if option.name in regularizer.RANGES:
            span = " ({}–{})".format(*map(word, regularizer.RANGES[option.name]))
        elif typing.get_origin(hints[option.name]) is typing.Literal:
            span = f" ({', '.join(typing.get_args(hints[option.name]))})"
        options.append(f"`{option.name}` {word(option.default)}{span}")
    return [
        cost,
        "yes" if regularizer.has_value else "no",
        "as above" if ":" in spec else ", ".join(options),
    ]


def test_the_table_is_right_and_complete() -> None:
    shipped = TEXT.partition("## What there is")[2].partition("\n## ")[0].splitlines()
    rows = [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in shipped
        if line.startswith("| `")
    ]
    assert len(rows) == 15
    for name, _, *cells in rows:
        assert cells == facts(name.strip("`")), name
    assert {name.strip("`").partition(":")[0] for name, *_ in rows} == set(SHIPPED)


def test_defaults_lie_in_their_ranges() -> None:
    for cls in SHIPPED.values():
        config = cls.Config()
        for option, (low, high) in cls.RANGES.items():
            assert low < high and low <= getattr(config, option) <= high
            for end in (low, high):
                dataclasses.replace(config, **{option: end})


def test_the_example_works_as_a_plugin(tmp_path: Path) -> None:
    code = re.search(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert code
    file = tmp_path / "usam.py"
    file.write_text(code.group(1), "utf-8")
    known = dict(REGULARIZERS)
    try:
        load_plugin(str(file))
        params, batch = mlp(9)
        landscape, loss, w = landscape_of(batch), plain_loss(params, batch), list(params.values())
        usam = make_regularizer("usam:rho=0.2")
        expected = grad(loss, plus(w, grad(loss, w), 0.2))
        assert_close(field(usam, landscape, params), expected)
        assert_close(
            torch.func.grad(lambda p: usam.value(landscape, p))(params), dict(zip(params, expected))
        )
        mixture = make_regularizer("usam:rho=0.2+weight_decay:lam=0.5")
        assert_close(field(mixture, landscape, params), plus(expected, w, 0.5))
    finally:
        REGULARIZERS.clear()
        REGULARIZERS.update(known)
