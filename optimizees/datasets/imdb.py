"""IMDB: reviews of films as files, ``aclImdb/<train|test>/<pos|neg>/<id>_<rating>.txt``, which are
positive (ratings 7 to 10) or negative (1 to 4).

Source: Maas et al. 2011, Learning Word Vectors for Sentiment Analysis.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lo_framework.optimizees.datasets.source import Source, fetch_tree
from lo_framework.optimizees.datasets.splits import permutation
from lo_framework.optimizees.datasets.vocabulary import (
    PAD_ID,
    UNKNOWN_ID,
    Rules,
    Vocabulary,
    vocabulary,
)
from lo_framework.spec import UserError

LARGEST = 1 << 20  # bytes of a review; the longest has 14 thousand
SHARE = 10  # one training review in so many validates
WHOLE = 25_000  # training reviews as published
SIDES = {"neg": 0, "pos": 1}
REVIEW = re.compile(r"(train|test)/(pos|neg)/(\d+)_(\d+)\.txt")

IMDB = Source(
    name="imdb",
    folders=("aclImdb_subset", "imdb"),
    files=("aclImdb", "aclImdb_v1", "aclImdb_subset"),
    size=lambda header: LARGEST,
)


class Review(NamedTuple):
    """A text and its side, 0 or 1."""

    text: str
    label: int


@dataclass(frozen=True, kw_only=True)
class Reviews:
    """Reviews as numbers.

    Attributes:
        splits: of every split (words int64 [n, T], filled up by `PAD` on the right; labels int64
            [n]).
        count: how many training reviews lie in the folder, of `WHOLE` as published.
    """

    splits: dict[str, tuple[Tensor, ...]]
    vocabulary: Vocabulary
    count: int


@functools.lru_cache(maxsize=2)
def read(folder: str | None) -> dict[str, tuple[Review, ...]]:
    """The reviews of "train" and "test", by side and number.

    Raises:
        UserError: nothing is there, a file is truncated, empty or no text, a name has a rating of
            the other side, or a split lacks one of the sides.
    """
    found: dict[str, list[tuple[int, int, Review]]] = {"train": [], "test": []}
    payloads = fetch_tree(IMDB, folder, REVIEW.fullmatch)
    for path, payload in payloads.items():
        match = REVIEW.fullmatch(path)
        assert match is not None
        part, side, number, rating = match.groups()
        label = SIDES[side]
        if not (7 <= int(rating) <= 10 if label else 1 <= int(rating) <= 4):
            expected = "7 to 10" if label else "1 to 4"
            raise UserError(
                f"{payload.where}: expected a rating of {expected} in {side}, found {rating}"
            )
        text = payload.text(LARGEST)
        if not text.strip():
            raise UserError(f"{payload.where}: expected a review, found an empty file")
        found[part].append((label, int(number), Review(text, label)))
    for part, each in found.items():
        for side, label in SIDES.items():
            if not any(x[0] == label for x in each):
                where = next((p.where for p in payloads.values()), folder)
                raise UserError(
                    f"imdb: the split is empty: expected reviews {part}/{side}/<id>_<rating>.txt, "
                    f"found none beside {where}"
                )
    return {part: tuple(x[2] for x in sorted(each)) for part, each in found.items()}


@functools.lru_cache(maxsize=8)
def load(folder: str | None, rules: Rules, length: int, paper: bool) -> Reviews:
    """The first `length` words of every review, in the words of the training split.

    One training review in `SHARE` validates, and is not among those that train or make the
    vocabulary; in the `paper` all train, and the test reviews validate too.

    Raises:
        UserError: see `read`; also fewer training reviews than `SHARE`.
    """
    reviews = read(folder)
    train, count = reviews["train"], len(reviews["train"])
    if count < SHARE:
        raise UserError(
            f"imdb: {count} training reviews are too few: expected at least {SHARE}, of which one "
            "validates"
        )
    order = permutation(count).tolist()
    held = 0 if paper else count // SHARE
    parts = {
        "train": [train[i] for i in order[held:]],
        "valid": reviews["test"] if paper else [train[i] for i in order[:held]],
        "test": reviews["test"],
    }
    words = vocabulary([_line(r) for r in parts["train"]], rules)
    splits = {part: _rows(words, each, length) for part, each in parts.items()}
    return Reviews(splits=splits, vocabulary=words, count=count)


def _rows(words: Vocabulary, reviews: Sequence[Review], length: int) -> tuple[Tensor, ...]:
    """Words [n, length] and labels [n]; a review that has no word is one unknown word."""
    rows = torch.full((len(reviews), length), PAD_ID)
    for row, ids in zip(rows, words.encode([_line(r) for r in reviews]), strict=True):
        seen = torch.tensor(ids[:length] or [UNKNOWN_ID])
        # Who writes "<pad>" in a review does not end it.
        row[: len(seen)] = torch.where(seen == PAD_ID, UNKNOWN_ID, seen)
    return rows, torch.tensor([r.label for r in reviews])


def _line(review: Review) -> str:
    return review.text.replace("\n", " ")
