"""``lo.save``: the file of a learned optimizer, and a card beside it for whoever finds it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lo_framework.errors import UserError
from lo_framework.files.atomic import atomic_write_text
from lo_framework.learned.base import LearnedOptimizer
from lo_framework.learned.card import CARD, HEAD, model_card
from lo_framework.learned.score_file import Score, read_score
from lo_framework.learned.storage import fingerprint, save_optimizer


def save(
    learned: LearnedOptimizer,
    path: str | os.PathLike[str],
    *,
    summary: Mapping[str, Any] | None = None,
    card: bool = False,
    score: Score | None = None,
) -> None:
    """Save ``learned``, which `load` gives back; see `save_optimizer`.

    Args:
        summary: how it was trained, in JSON values; by default what the file said that it was
            loaded from, unless its weights have changed since.
        card: write ``README.md`` beside it too: a model card, as the Hugging Face hub shows it.
        score: for the card, what ``eval score`` found: its ``score.json``, or the content of one.

    Raises:
        UserError: what `save_optimizer` refuses; a ``README.md`` that is no card; a score without
            a card, or of other optimizers. Nothing is written then.
    """
    if summary is None:
        known, summary = learned.origin or ("", {})
        summary = summary if known == fingerprint(learned) else {}
    beside, text = Path(path).with_name(CARD), ""
    if card:
        _refuse_other(beside)
        found = None if score is None else read_score(score, learned)
        text = model_card(learned, Path(path).name, summary, found)
    elif score is not None:
        raise UserError("a score is shown on the card: give card=True too")
    config = asdict(learned.config)
    save_optimizer(path, learned.theta(), kind=learned.kind, config=config, summary=dict(summary))
    if card:
        atomic_write_text(beside, text)


def _refuse_other(path: Path) -> None:
    """Raise UserError: there is a file at ``path`` that no card of ours is to replace."""
    if path.exists() and not (path.is_file() and path.read_bytes().startswith(HEAD.encode())):
        raise UserError(
            f"{str(path)!r} is there and is no model card: save into a folder of its own, where "
            "the card can be written"
        )
