"""The registry: building by spec, names that are taken, the nearest known name."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from lo_framework.registry import Registry
from lo_framework.spec import UserError


@dataclass(frozen=True, kw_only=True)
class Options:
    size: int = 1


def cups() -> Registry[tuple[int, str]]:
    registry: Registry[tuple[int, str]] = Registry("cup")

    @registry.register("mug", config=Options, handle=True)
    def mug(config: Options, colour: str) -> tuple[int, str]:
        return config.size, colour

    return registry


def test_builds_by_spec_with_what_the_room_gives() -> None:
    assert cups().build("mug:size=3", "red") == (3, "red")
    assert cups()["mug"].facts == {"handle": True} and list(cups()) == ["mug"]


@pytest.mark.parametrize(
    "spec, line",
    [
        ("mugg", 'unknown cup "mugg" (did you mean "mug"?); known: mug'),
        ("mug:sise=3", 'mug: unknown option "sise" (did you mean "size"?); known: size'),
        ("mug:size=x", 'mug: option size="x": expected a whole number'),
    ],
)
def test_an_error_is_one_line_that_names_what_would_be_right(spec: str, line: str) -> None:
    with pytest.raises(UserError) as error:
        cups().build(spec, "red")
    assert str(error.value) == line


def test_a_name_is_taken_by_one_thing_only() -> None:
    registry = cups()

    def glass(config: Options) -> tuple[int, str]:
        return config.size, "clear"

    with pytest.raises(UserError, match='the cup "mug" exists already .*choose another name'):
        registry.register("mug")(glass)
    registry.register("glass", config=Options)(glass)
    registry.register("glass", config=Options)(glass)  # the same file loaded twice
    assert registry.build("glass") == (1, "clear")
    with pytest.raises(UserError, match="must hold none of"):
        registry.register("a:b")
