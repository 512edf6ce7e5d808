"""Documents with tables from results/ say what the files there say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.results import BLOCK, DOCUMENTS, KINDS, fill

named = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)


@named
def test_a_document_is_up_to_date(document: Path) -> None:
    text = document.read_text("utf-8")
    assert BLOCK.search(text) and fill(text) == text, "run make results"


def test_every_kind_of_block_is_used() -> None:
    used = {m[2] for path in DOCUMENTS for m in BLOCK.finditer(path.read_text("utf-8"))}
    assert used == set(KINDS)


@pytest.mark.parametrize("name", ["results.md", "when.md"])
def test_no_number_is_typed_by_hand(name: str) -> None:
    """In others, prose has numbers too, with the command that made them beside it."""
    (document,) = (path for path in DOCUMENTS if path.name == name)
    prose = BLOCK.sub("", document.read_text("utf-8"))
    code = r"^```.*?^```|<!-- setup.*?-->"
    prose = re.sub(rf"{code}|\]\([^)]*\)|`[^`]*`|Intervals are 95%", "", prose, flags=re.M | re.S)
    assert re.findall(r"\d+", prose) == []
