"""``lo push``: an optimizer file and its card, as they go to the Hugging Face hub.

What goes there is made first and looked at by `--dry-run`; then one commit takes both files. The
file's bytes stay as they are, and so does its sha256.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lo_framework.errors import UserError, describe, shown
from lo_framework.files.atomic import reason
from lo_framework.learned.card import CARD, HEAD, model_card
from lo_framework.learned.score_file import Score, read_score
from lo_framework.learned.sources import HUB, HUB_FILE, find, quietly, repository
from lo_framework.learned.storage import fingerprint, load_optimizer
from lo_framework.optional import require

# The hub's errors by their classes, the particular ones first.
_REASONS = {
    "HFValidationError": "the hub has no such names",
    "OfflineModeIsEnabled": "HF_HUB_OFFLINE says that it is not to be reached",
    "LocalEntryNotFoundError": "it cannot be reached",
    "ConnectError": "it cannot be reached",
    "ConnectionError": "it cannot be reached",
    "TimeoutException": "it does not answer",
}
_STATUS = {
    401: "it does not know this token: log in with `hf auth login`",
    403: "this token may not write there: log in with one that may",
    404: "there is no such repository, or this token may not write there",
}


@dataclass(frozen=True)
class Shipment:
    """What goes to the ``repository``: the name of each file -> its bytes."""

    repository: str
    about: str
    files: dict[str, bytes]


def shipment(source: str | os.PathLike[str], target: str, score: Score | None = None) -> Shipment:
    """Return what `push` uploads: the file as it is, and a card.

    The card is the one beside the file where that is of these weights and no ``score`` is given,
    so that what a person wrote into it is kept; else it is made from the file's record.

    Args:
        source: an optimizer file, or a name of one.
        target: ``hf://owner/name``.

    Raises:
        UserError: no such file, no optimizer file, a target of another form, or a score of others.
    """
    where, revision = repository(target)
    if revision:
        raise UserError(f"{shown(target)} names a revision: a push makes one; give {HUB}{where}")
    path = Path(find(source))
    file = load_optimizer(path)
    learned = file.build()
    learned.origin = (fingerprint(learned), dict(file.summary))
    weights = fingerprint(learned)
    card = "" if score is not None else _beside(path, weights)
    found = None if score is None else read_score(score, learned)
    card = card or model_card(learned, f"{HUB}{where}", file.summary, found)
    count = sum(x.numel() for x in learned.theta().values())
    about = f"{learned.kind}, {count:,} meta-parameters, weights {weights}"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {shown(str(path))}: {reason(error)}") from None
    return Shipment(where, about, {HUB_FILE: data, CARD: card.encode()})


def push(sent: Shipment, *, private: bool = False) -> str:
    """Upload it in one commit; returns the commit's address. The repository is made where there is
    none.

    Args:
        private: where it is made; one that is there stays as it is.

    Raises:
        UserError: no package, no token, no way to the hub, or a ``README.md`` there that is no
            card. Nothing is uploaded then.
    """
    require("huggingface_hub")
    from huggingface_hub import CommitOperationAdd, HfApi, get_token

    if get_token() is None:
        raise UserError("there is no token for the hub: `hf auth login`, or set HF_TOKEN")
    where = sent.repository
    try:
        with quietly():
            api = HfApi()
            api.create_repo(where, private=private or None, exist_ok=True)
            _refuse_other(api, where)
            operations = [
                CommitOperationAdd(path_in_repo=name, path_or_fileobj=data)
                for name, data in sent.files.items()
            ]
            message = f"Upload {sent.about}"
            return str(api.create_commit(where, operations, commit_message=message).commit_url)
    except UserError:
        raise
    except Exception as error:  # its own, those of its HTTP client, the system's
        raise UserError(f"cannot push to {HUB}{where}: {_why(error)}") from None


def _beside(path: Path, weights: str) -> str:
    """Return the card beside a file where there is one of ours, of these weights."""
    try:
        text = path.with_name(CARD).read_text("utf-8")
    except (OSError, ValueError):
        return ""
    return text if text.startswith(HEAD) and f"`{weights}`" in text else ""


def _refuse_other(api: Any, where: str) -> None:
    """Raise UserError: the repository has a ``README.md`` that no card of ours is to replace."""
    if not api.file_exists(where, CARD):
        return
    with open(api.hf_hub_download(where, CARD), "rb") as file:
        if not file.read(len(HEAD)) == HEAD.encode():
            raise UserError(
                f"{HUB}{where} has a {CARD} that is no card of an optimizer: push into a "
                "repository of its own"
            )


def _why(error: Exception) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in _STATUS:
        return _STATUS[status]
    classes = {each.__name__ for each in type(error).__mro__}
    known = (why for name, why in _REASONS.items() if name in classes)
    return next(known, describe(error, place=False))
