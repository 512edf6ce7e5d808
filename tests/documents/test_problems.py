"""docs/problems.md: every built-in problem and data set, with options and ranges of the code."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest

from lo_framework.optimizees.datasets import DATASETS
from lo_framework.optimizees.registry import TASKS
from tests.test_imports import ROOT

PAGE = ROOT / "docs" / "problems.md"
TEXT = PAGE.read_text("utf-8")


def word(value: Any) -> str:
    """A default as a spec has it."""
    if isinstance(value, tuple):
        return "x".join(map(str, value))
    if isinstance(value, bool | float):
        return f"{float(value):g}"
    return "" if value is None else str(value)


def options(entry: Any) -> str:
    """``name`` and default of every option; a default that depends on others is left out."""
    named = ((field.name, word(field.default)) for field in dataclasses.fields(entry.config))
    return ", ".join(f"`{name}` {value}".strip() for name, value in named)


def ranges(entry: Any) -> str:
    """What a bare name stands for in meta-training."""
    varied = entry.facts.get("varied", "").replace("|", "\\|")
    return f"`{varied}`" if varied else ""


@pytest.mark.parametrize("registry", [TASKS, DATASETS], ids=["problems", "data sets"])
def test_the_tables_are_those_of_the_code(registry: Any) -> None:
    rows = [re.split(r"(?<!\\)\|", line) for line in TEXT.splitlines() if line.startswith("| `")]
    told = {cells[1].strip(" `"): [cell.strip() for cell in cells[3:5]] for cells in rows}
    shipped = [x for x in registry if registry[x].config.__module__.startswith("lo_framework.")]
    for name in shipped:
        assert told[name] == [options(registry[name]), ranges(registry[name])], name
    every = {*TASKS, *DATASETS}
    assert not told.keys() - every
