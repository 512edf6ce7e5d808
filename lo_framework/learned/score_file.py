"""What a ``score.json`` of ``eval score`` says of one optimizer, for its card.

The room that writes such files stands above this one; they say what follows from their numbers
(``derived``) for readers like this.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lo_framework.errors import UserError, shown
from lo_framework.files.atomic import reason
from lo_framework.learned.base import LearnedOptimizer
from lo_framework.learned.sources import HUB
from lo_framework.learned.storage import fingerprint, load_optimizer
from lo_framework.schema import check_json, read_json

_FORMAT = "lo-framework score"

Score = str | os.PathLike[str] | Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class _Problem:
    name: str
    axis: str
    optimizee: str
    dataset: str
    steps: int


@dataclass(frozen=True, kw_only=True)
class _Derived:
    overall: dict[str, dict[str, list[float | None]]]
    problems: list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class _Content:
    """The part of a ``score.json`` that is read here."""

    format: str
    learned: list[str]
    files: dict[str, str]
    report_seeds: list[int]
    problems: list[_Problem]
    derived: _Derived
    provenance: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Found:
    """A score, and the ``label`` that one optimizer has there."""

    content: _Content
    label: str


def read_score(score: Score, learned: LearnedOptimizer) -> Found:
    """What ``score``, a ``score.json`` or its content, says of ``learned``.

    It is known by its weights, where the score's files are still there, and else by being alone.

    Raises:
        UserError: no such file, none of `eval score`, or one of other optimizers.
    """
    if isinstance(score, Mapping):
        name, values = "the score", dict(score)
    else:
        name = repr(os.fspath(score))
        try:
            values = read_json(Path(score).read_bytes(), dict[str, Any], name)
        except OSError as error:
            raise UserError(f"cannot read {name}: {reason(error)}; expected a score.json") from None
    if values.get("format") != _FORMAT:
        raise UserError(f"{name} is not what `eval score` writes: expected a score.json")
    wanted = _Content.__dataclass_fields__
    content = check_json({key: x for key, x in values.items() if key in wanted}, _Content, name)
    known = {label: _weights(content.files.get(label, "")) for label in content.learned}
    own = fingerprint(learned)
    same = [label for label, weights in known.items() if weights == own]
    if not same and list(known.values()) == [""]:
        same = content.learned
    if len(same) != 1 or same[0] not in content.derived.overall:
        raise UserError(
            f"{name} does not tell which of {', '.join(map(shown, content.learned)) or 'none'} is "
            "this optimizer: score its file alone, by `eval score FILE`"
        )
    return Found(content=content, label=same[0])


def _weights(file: str) -> str:
    """The fingerprint of what ``file`` holds; nothing where it cannot be read from here."""
    if not file or file.startswith(HUB):
        return ""
    try:
        return fingerprint(load_optimizer(file).build())
    except UserError:
        return ""
