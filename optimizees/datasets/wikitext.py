"""WikiText-2: the text of articles, words between blanks, one paragraph or heading a line.

Source: Merity et al. 2017, Pointer Sentinel Mixture Models.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from lo_framework.optimizees.datasets.source import Payload, Source, fetch, has
from lo_framework.optimizees.datasets.vocabulary import Rules, Vocabulary, vocabulary
from lo_framework.spec import UserError

FILES = {part: f"wiki.{part}.tokens" for part in ("train", "valid", "test")}
WHOLE = {"train": 36_718, "valid": 3_760, "test": 4_358}  # lines of each
LARGEST = 1 << 26  # bytes; the training split has 11 million
END = "<eos>"  # a word at the end of every line
TITLE = re.compile(r" = [^=\n]*[^=\s][^=\n]* = ")  # of an article

WIKITEXT = Source(
    name="wikitext",
    folders=("wikitext-2",),
    files=(FILES["valid"], FILES["test"]),
    size=lambda header: LARGEST,
)
Lines = list[str]
Trained = Literal["train", "half of valid"]


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """The lines of three splits, of which file the training lines are, and how many lines each file
    has.
    """

    lines: dict[str, Lines]
    trained: Trained
    counts: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Streams:
    """Word numbers of each line of each split, and the vocabulary, of the training split alone; the
    rest as in `Corpus`.
    """

    ids: dict[str, list[list[int]]]
    vocabulary: Vocabulary
    trained: Trained
    counts: dict[str, int]


@functools.lru_cache(maxsize=2)
def read(folder: str | None) -> Corpus:
    """The three splits. Where the file of the training split is absent, the validation split is
    halved, between two articles: its first half trains, its second half validates.

    Raises:
        UserError: files are missing, truncated, no text or no articles, or a split is empty.
    """
    whole = has(WIKITEXT, FILES["train"], folder)
    source = replace(WIKITEXT, files=tuple(FILES.values())) if whole else WIKITEXT
    parsed = {name: parse(payload) for name, payload in fetch(source, folder).items()}
    lines = {part: parsed[name] for part, name in FILES.items() if name in parsed}
    counts = {part: len(each) for part, each in lines.items()}
    if whole:
        return Corpus(lines=lines, trained="train", counts=counts)
    train, valid = halves(lines["valid"])
    both = {"train": train, "valid": valid}
    return Corpus(lines={**both, "test": lines["test"]}, trained="half of valid", counts=counts)


def parse(payload: Payload) -> Lines:
    """The lines of a file.

    Raises:
        UserError: no UTF-8, no line end at its end, no line of words, or no title of an article.
    """
    text = payload.text(LARGEST)
    lines = text.split("\n")
    if not any(line.strip() for line in lines):
        raise UserError(f"{payload.where}: the split is empty: expected lines of words")
    if lines.pop():
        raise UserError(f"{payload.where}: truncated: expected a line end at the end of the file")
    if not any(map(TITLE.fullmatch, lines)):
        raise UserError(
            f"{payload.where}: expected the text of WikiText, with articles that begin with a line "
            "like ' = Title = ', found none"
        )
    return lines


def halves(lines: Lines) -> tuple[Lines, Lines]:
    """Cut `lines` before the title that is nearest to the middle of the text.

    Raises:
        UserError: there is one article.
    """
    titles = [i for i, line in enumerate(lines) if TITLE.fullmatch(line) and i]
    before, total = [], 0
    for line in lines:
        before.append(total)
        total += len(line) + 1
    titles = [i for i in titles if any(map(str.strip, lines[:i]))]
    if not titles:
        raise UserError(
            f"wikitext: missing {FILES['train']}, and {FILES['valid']} cannot stand in for it: "
            "expected two articles at least, of which one validates"
        )
    at = min(titles, key=lambda i: abs(2 * before[i] - total))
    return lines[:at], lines[at:]


@functools.lru_cache(maxsize=8)
def load(folder: str | None, size: int, ends: bool) -> Streams:
    """All splits in the words of a vocabulary of `size`; with `ends` a line ends with the word
    `END`.
    """
    corpus = read(folder)
    lines = {part: _ended(each) if ends else each for part, each in corpus.lines.items()}
    words = vocabulary(lines["train"], Rules(size=size))
    ids = {part: words.encode(each) for part, each in lines.items()}
    return Streams(ids=ids, vocabulary=words, trained=corpus.trained, counts=corpus.counts)


def _ended(lines: Sequence[str]) -> Lines:
    return [f"{line} {END}" for line in lines]
