"""``--learned FILE[,FILE...]``: optimizer files as learned optimizers, under labels that tell them
apart.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from lo_framework.errors import nearest
from lo_framework.learned import LEARNED, LearnedOptimizer, load, make_learned
from lo_framework.spec import UserError, parse_spec


class Loaded(NamedTuple):
    """A learned optimizer with its meta-trained weights, and its file if it has one."""

    optimizer: LearnedOptimizer
    path: str = ""


Source = LearnedOptimizer | str | os.PathLike[str]


def load_learned(given: Source | Sequence[str] | Mapping[str, Source]) -> dict[str, Loaded]:
    """Learned optimizers by label, from objects, files, the text of ``--learned``, or words that
    each name a file or, as ``hyper-adamw:lr=0.01``, an untrained one.

    The label of what has none is its kind, with what tells the paths apart where several are of one
    kind.

    Raises:
        UserError: a file given twice or one that cannot be used, an unknown kind (a plugin is
            missing), weights that are not that kind's.
    """
    if isinstance(given, Mapping):
        return {label: _load(source) for label, source in given.items()}
    paths: list[Source]
    specs: list[str] = []
    if isinstance(given, (LearnedOptimizer, os.PathLike)):
        paths = [given]
    elif isinstance(given, str):
        paths = [*split_paths(given)]
    else:
        specs = [word for word in given if not _names_file(word)]
        paths = [word for word in given if word not in specs]
    loaded = [_load(path) for path in paths]
    labels = label_paths([one.path for one in loaded], [one.optimizer.kind for one in loaded])
    untrained = {f"untrained {spec}": Loaded(make_learned(spec)) for spec in specs}
    return {**dict(zip(labels, loaded, strict=True)), **untrained}


def _names_file(word: str) -> bool:
    """Tell a file from the spec of a kind. Raises UserError: neither."""
    if os.path.exists(word):
        return True
    name, _ = parse_spec(word)
    if name not in LEARNED:
        near, known = nearest(name, LEARNED), ", ".join(LEARNED)
        raise UserError(f"{word!r} is no file and no learned optimizer{near}; known: {known}")
    return False


def split_paths(text: str) -> list[str]:
    """``"a,b"`` as two paths; a path that holds a comma and exists is one."""
    if os.path.exists(text):
        return [text]
    paths = [piece.strip() for piece in text.split(",")]
    if not all(paths):
        raise UserError(f'--learned "{text}" is not a list of files: it has an empty piece')
    return paths


def label_paths(paths: list[str], kinds: list[str]) -> list[str]:
    """One label per path, all different: ``attention``, or ``mlp quick``, ``mlp long`` from
    runs/quick, runs/long.
    """
    parts = [Path(os.path.abspath(path)).with_suffix("").parts[::-1] for path in paths]
    labels = []
    for i, kind in enumerate(kinds):
        rivals = [parts[j] for j in range(len(paths)) if j != i and kinds[j] == kind]
        if parts[i] in rivals:
            raise UserError(f"--learned: {paths[i]!r} is given twice")
        telling = [
            word
            for at, word in enumerate(parts[i])
            if any(rival[at : at + 1] != (word,) for rival in rivals)
        ]
        labels.append(f"{kind} {telling[0]}" if telling else kind)
    if len(set(labels)) < len(labels):  # one word did not tell three files apart
        return [f"{kind} {path}" for kind, path in zip(kinds, paths, strict=True)]
    return labels


def _load(source: Source) -> Loaded:
    if isinstance(source, LearnedOptimizer):
        return Loaded(source)
    return Loaded(load(source), os.fspath(source))
