"""Tables are looked at: these tests hold what one sees."""

from __future__ import annotations

import pytest

from lo_framework.eval.report.table import Table, cell, width
from lo_framework.eval.statistics import Estimate


def example() -> Table:
    table = Table(
        "optimizer",
        "lr",
        "final loss",
        "diverged",
        title="mlp/digits",
        notes=("95% intervals over 5 seeds",),
    )
    table.add("adamw", 0.01, Estimate(value=0.216, low=0.21, high=0.222, n=5), 0)
    table.rule()
    table.add("a|b", None, Estimate(value=10.5, low=9.25, high=11.75, n=5), 12)
    table.rule()
    return table


def test_plain():
    assert str(example()) == "\n".join(
        [
            "mlp/digits",
            "",
            "optimizer    lr            final loss  diverged",
            "---------  ----  --------------------  --------",
            "adamw      0.01  0.216 [0.210, 0.222]         0",
            "---------  ----  --------------------  --------",
            "a|b           -      10.5 [9.2, 11.8]        12",
            "",
            "95% intervals over 5 seeds",
        ]
    )


def test_markdown():
    assert example().markdown() == "\n".join(
        [
            "**mlp/digits**",
            "",
            "| optimizer |   lr |           final loss | diverged |",
            "| --------- | ---: | -------------------: | -------: |",
            "| adamw     | 0.01 | 0.216 [0.210, 0.222] |        0 |",
            "| a\\|b      |    - |     10.5 [9.2, 11.8] |       12 |",
            "",
            "95% intervals over 5 seeds",
        ]
    )


def test_empty_table_shows_its_headers():
    assert str(Table("a", "bc")) == "a  bc\n-  --"


def test_cells():
    assert [cell(v) for v in (None, True, 1.23456, 7, "two\nlines", float("inf"))] == [
        "-",
        "yes",
        "1.235",
        "7",
        "two lines",
        "inf",
    ]


def test_decorated_numbers_stay_right():
    table = Table("x")
    for text in ("1.5x", "95%", "-"):
        table.add(text)
    assert str(table).splitlines()[2:] == ["1.5x", " 95%", "   -"]


def test_wide_characters_keep_columns():
    assert width("损失") == 4 and width("e\u0301") == 1
    table = Table("name", "n")
    table.add("损失", 1)
    table.add("loss", 2)
    assert [width(line) for line in str(table).splitlines()] == [7] * 4


def test_wrong_number_of_cells():
    with pytest.raises(ValueError, match="a row of 1 cells in a table of 2 columns"):
        Table("a", "b").add(1)
    with pytest.raises(ValueError, match="at least one column"):
        Table()
