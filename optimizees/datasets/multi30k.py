"""Multi30k, task 1: descriptions of pictures, a sentence a line; line n of the German file is the
translation of line n of the English one.

Source: Elliott et al. 2016, Multi30K: Multilingual English-German Image Descriptions.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lo_framework.optimizees.datasets.source import Payload, Source, fetch
from lo_framework.optimizees.datasets.vocabulary import (
    BEGIN_ID,
    END_ID,
    PAD_ID,
    Rules,
    Vocabulary,
    vocabulary,
)
from lo_framework.spec import UserError

PARTS = {"train": "train", "valid": "val", "test": "test_2016_flickr"}
WHOLE = {"train": 29_000, "valid": 1_014, "test": 1_000}  # pairs of each
FROM, TO = "de", "en"
LARGEST = 1 << 26  # bytes of a file; the largest has 2 million

MULTI30K = Source(
    name="multi30k",
    folders=("multi30k", "multi30k/raw"),
    files=tuple(f"{name}.{language}" for name in PARTS.values() for language in (FROM, TO)),
    size=lambda header: LARGEST,
)
Lines = list[str]


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Sentences as numbers.

    Attributes:
        splits: of every split (German int64 [n, S], English int64 [n, T]); a row is `BEGIN`, words,
            `END`, and `PAD` up to the longest one.
        words: the vocabulary of each language.
    """

    splits: dict[str, tuple[Tensor, ...]]
    words: dict[str, Vocabulary]


@functools.lru_cache(maxsize=2)
def read(folder: str | None) -> dict[str, dict[str, Lines]]:
    """The lines of each language of each split.

    Raises:
        UserError: files are missing, truncated or no text, a sentence is empty, or a file has not
            as many lines as its translation.
    """
    payloads = fetch(MULTI30K, folder)
    found = {}
    for part, name in PARTS.items():
        german, english = payloads[f"{name}.{FROM}"], payloads[f"{name}.{TO}"]
        lines = {FROM: parse(german), TO: parse(english)}
        if len(lines[FROM]) != len(lines[TO]):
            raise UserError(
                f"{english.where}: expected {len(lines[FROM]):,} lines, one for each of "
                f"{german.where}, found {len(lines[TO]):,}"
            )
        found[part] = lines
    return found


def parse(payload: Payload) -> Lines:
    """The sentences of a file; raises UserError (see `read`)."""
    lines = payload.text(LARGEST).split("\n")
    if not any(map(str.strip, lines)):
        raise UserError(f"{payload.where}: the split is empty: expected a sentence a line")
    if lines.pop():
        raise UserError(f"{payload.where}: truncated: expected a line end at the end of the file")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            raise UserError(f"{payload.where}: line {number:,} is empty: expected a sentence")
    return lines


@functools.lru_cache(maxsize=8)
def load(folder: str | None, rules: Rules, length: int, pairs: int, paper: bool) -> Pairs:
    """All splits in the words of the training split, of which the first `pairs` are used, of each
    language by itself, at most `length` words of a sentence; in the `paper` English is looked up
    in the German vocabulary.

    Raises:
        UserError: see `read`.
    """
    lines = dict(read(folder))
    lines["train"] = {language: each[:pairs] for language, each in lines["train"].items()}
    german = vocabulary(lines["train"][FROM], rules)
    words = {FROM: german, TO: german if paper else vocabulary(lines["train"][TO], rules)}
    splits: dict[str, tuple[Tensor, ...]] = {
        part: (
            rows(words[FROM].encode(each[FROM]), length),
            rows(words[TO].encode(each[TO]), length),
        )
        for part, each in lines.items()
    }
    return Pairs(splits=splits, words=words)


def rows(sentences: Sequence[list[int]], length: int) -> Tensor:
    """`BEGIN`, the first `length` words, `END`, and `PAD`, int64 [n, at most length + 2]."""
    cut = [[BEGIN_ID, *ids[:length], END_ID] for ids in sentences]
    longest = max(map(len, cut))
    return torch.tensor([ids + [PAD_ID] * (longest - len(ids)) for ids in cut])
