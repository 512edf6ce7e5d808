"""Spec strings: what they parse to, what they refuse and in which words."""

from dataclasses import dataclass
from typing import Literal

import pytest

from lo_framework.spec import (
    UserError,
    build_config,
    canonical,
    nearest,
    parse_spec,
    split_specs,
)


@dataclass(frozen=True, kw_only=True)
class Config:
    width: int = 3
    rate: float = 0.5
    fast: bool = False
    kind: Literal["alpha", "beta"] = "alpha"
    hidden: tuple[int, ...] = (32,)
    limit: int | None = None
    label: str = "x"

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError("width must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Needy:
    width: int


def test_parse_spec():
    assert parse_spec("cnn:channels=16x32, norm=none ") == (
        "cnn",
        {"channels": "16x32", "norm": "none"},
    )
    assert parse_spec(" mlp ") == ("mlp", {})


@pytest.mark.parametrize(
    "text", ["", ":a=1", "a=1", "cnn:", "cnn:a", "cnn:=1", "cnn:a=", "cnn:a=1,", "cnn:a=1,a=2"]
)
def test_parse_spec_refuses(text):
    with pytest.raises(UserError) as error:
        parse_spec(text)
    assert len(str(error.value).splitlines()) == 1


def test_split_specs():
    assert split_specs("mlp:hidden=64x64,act=tanh,cnn") == ["mlp:hidden=64x64,act=tanh", "cnn"]
    assert split_specs("mlp, cnn:a=1,b=2 ,quadratic:dim=3") == [
        "mlp",
        "cnn:a=1,b=2",
        "quadratic:dim=3",
    ]
    assert split_specs("mlp,hidden=64,cnn") == ["mlp:hidden=64", "cnn"]


@pytest.mark.parametrize("text", ["", "mlp,", ",mlp", "mlp,,cnn", "hidden=3,mlp"])
def test_split_specs_refuses(text):
    with pytest.raises(UserError):
        split_specs(text)


def test_nearest():
    assert nearest("chanels", ["channels", "norm"]) == ' (did you mean "channels"?)'
    assert nearest("zzz", ["channels"]) == ""


def test_build_config_converts_by_type():
    options = {
        "width": "7",
        "rate": "1e-3",
        "fast": "yes",
        "kind": "beta",
        "hidden": "64x16",
        "limit": "5",
    }
    config = build_config(Config, options, "thing")
    assert config == Config(width=7, rate=1e-3, fast=True, kind="beta", hidden=(64, 16), limit=5)
    assert build_config(Config, {"hidden": "none", "limit": "none"}, "thing") == Config(
        hidden=(), limit=None
    )


def test_build_config_takes_converted_values():
    assert build_config(
        Config, {"width": 2, "hidden": [1, 2], "rate": 1, "fast": True}, "thing"
    ) == Config(width=2, hidden=(1, 2), rate=1.0, fast=True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"widht": "1"}, 'thing: unknown option "widht" (did you mean "width"?)'),
        ({"width": "1.5"}, "whole number"),
        ({"width": True}, "whole number"),
        ({"width": "0"}, "thing: width must be at least 1"),
        ({"rate": "fast"}, "expected a number"),
        ({"rate": "nan"}, "not nan"),
        ({"fast": "maybe"}, "1 or 0"),
        ({"kind": "bet"}, 'alpha, beta (did you mean "beta"?)'),
        ({"hidden": "64xtwo"}, "whole number"),
        ({"hidden": "64x"}, "whole number"),
    ],
)
def test_build_config_refuses(options, words):
    with pytest.raises(UserError) as error:
        build_config(Config, options, "thing")
    assert words in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_build_config_names_missing_option():
    with pytest.raises(UserError, match='needy: the option "width" is missing'):
        build_config(Needy, {}, "needy")


def test_canonical_round_trip():
    assert canonical("thing", Config()) == "thing"
    config = Config(width=7, rate=1e-3, fast=True, hidden=(), limit=4)
    text = canonical("thing", config)
    assert text == "thing:width=7,rate=0.001,fast=1,hidden=none,limit=4"
    name, options = parse_spec(text)
    assert build_config(Config, options, name) == config
