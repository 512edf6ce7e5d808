"""What a word names an optimizer by: a shipped one, one of the Hugging Face hub, or a file.

* ``general``: one that is shipped. A name has no path separator and no suffix. An ordinary file of
  that name comes first, so that what was saved as ``general`` is what is loaded again.
* ``hf://owner/name`` and ``hf://owner/name@revision``: `HUB_FILE` of a repository on the hub,
  downloaded once and then taken from the hub's own cache.
* Anything else, and every ``Path``: a file.

What is found is a path; whoever reads the file there trusts it no more than any other.
"""

from __future__ import annotations

import functools
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lo_framework.errors import UserError, describe, nearest, shown
from lo_framework.optional import require

HUB = "hf://"
HUB_FILE = "optimizer.safetensors"
FOLDER = Path(__file__).resolve().parents[1] / "shipped"

_NAME = re.compile(r"[\w-]+")
_REPOSITORY = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")

# The hub's errors by their classes, the particular ones first.
_REASONS = {
    "GatedRepoError": "it is open only to those who asked for access: log in with `hf auth login`",
    "RepositoryNotFoundError": "there is no such repository, or it is private",
    "RevisionNotFoundError": "the repository has no such revision",
    "LocalEntryNotFoundError": "it is not in the cache, and the hub cannot be reached",
    "EntryNotFoundError": f"the repository has no {HUB_FILE}",
}


def shipped() -> dict[str, Path]:
    """The optimizers that come with this package, by name."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.safetensors"))}


def is_named(word: str) -> bool:
    """Whether ``word`` means an optimizer that is shipped or on the hub, and no file."""
    return word.startswith(HUB) or (word in shipped() and not os.path.isfile(word))


def find(source: str | os.PathLike[str]) -> str:
    """The path of the file that ``source`` names; that there is one is said only of names.

    Raises:
        UserError: an unknown name, or a repository from which there is nothing to be had.
    """
    word = os.fspath(source)
    if not isinstance(source, str):
        return word
    if word.startswith(HUB):
        return _downloaded(word)
    if is_named(word):
        return str(shipped()[word])
    if _NAME.fullmatch(word) and not os.path.exists(word):
        known = shipped()
        raise UserError(
            f"there is no file {shown(word)} and no shipped optimizer of that name"
            f"{nearest(word, known)}; shipped: {', '.join(known)}"
        )
    return word


def repository(source: str) -> tuple[str, str | None]:
    """``owner/name`` and the revision, if there is one, of a source on the hub. Raises UserError:
    it is of another form.
    """
    match = _REPOSITORY.fullmatch(source.removeprefix(HUB)) if source.startswith(HUB) else None
    if match is None:
        raise UserError(
            f"{shown(source)} is not of the form {HUB}owner/name or {HUB}owner/name@revision"
        )
    return match["repository"], match["revision"]


@functools.cache  # a process sees one revision of a repository, however often it asks
def _downloaded(source: str) -> str:
    where, revision = repository(source)
    require("huggingface_hub")
    from huggingface_hub import hf_hub_download

    try:
        with quietly():
            return hf_hub_download(where, HUB_FILE, revision=revision)
    except Exception as error:  # its own, those of its HTTP client, the system's
        classes = {each.__name__ for each in type(error).__mro__}
        known = (why for name, why in _REASONS.items() if name in classes)
        reason = next(known, describe(error, place=False))
        raise UserError(f"cannot get {shown(source)} from the hub: {reason}") from None


@contextmanager
def quietly() -> Iterator[None]:
    """The hub's package logs every retry: where there is no network, one line of ours is enough."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
