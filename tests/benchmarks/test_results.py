"""docs/results.md says what the files in results/ say."""

from __future__ import annotations

import re

from benchmarks.results import BLOCK, DOCUMENT, KINDS, fill


def test_the_document_is_up_to_date() -> None:
    text = DOCUMENT.read_text("utf-8")
    assert {m[2] for m in BLOCK.finditer(text)} == set(KINDS)
    assert fill(text) == text, "run make results"


def test_no_number_is_typed_by_hand() -> None:
    prose = BLOCK.sub("", DOCUMENT.read_text("utf-8"))
    prose = re.sub(r"\]\([^)]*\)|`[^`]*`|Intervals are 95%", "", prose, flags=re.M)
    assert re.findall(r"\d+", prose) == []
