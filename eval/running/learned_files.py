"""``--learned FILE[,FILE...]``: optimizer files, and those that have names, as learned optimizers
under labels that tell them apart.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from lo_framework.errors import nearest
from lo_framework.learned import LEARNED, LearnedOptimizer, load, make_learned
from lo_framework.learned.sources import HUB, is_named, shipped
from lo_framework.spec import UserError, parse_spec


class Loaded(NamedTuple):
    """A learned optimizer with its meta-trained weights, and its file or name if it has one."""

    optimizer: LearnedOptimizer
    path: str = ""


Source = LearnedOptimizer | str | os.PathLike[str]


def load_learned(given: Source | Sequence[str] | Mapping[str, Source]) -> dict[str, Loaded]:
    """Learned optimizers by label, from objects, files, the text of ``--learned``, or words that
    each name a trained one or, as ``hyper-adamw:lr=0.01``, an untrained one.

    The label of what is shipped or on the hub is its name, that of another file its kind, with what
    tells the paths apart where several are of one kind.

    Raises:
        UserError: a file given twice or one that cannot be used, an unknown name or kind (a plugin
            is missing), weights that are not that kind's.
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
        specs = [word for word in given if not _is_trained(word)]
        paths = [word for word in given if word not in specs]
    loaded = [_load(path) for path in paths]
    labels = label_paths([one.path for one in loaded], [one.optimizer.kind for one in loaded])
    untrained = {f"untrained {spec}": Loaded(make_learned(spec)) for spec in specs}
    return {**dict(zip(labels, loaded, strict=True)), **untrained}


def _is_trained(word: str) -> bool:
    """Tell a file or a name from the spec of a kind. Raises UserError: neither."""
    if is_named(word) or os.path.exists(word):
        return True
    name, _ = parse_spec(word)
    if name not in LEARNED:
        near = nearest(name, [*LEARNED, *shipped()])
        raise UserError(
            f"{word!r} is no file and no learned optimizer{near}; shipped: {', '.join(shipped())}; "
            f"kinds: {', '.join(LEARNED)}"
        )
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
    runs/quick, runs/long; ``general`` of what has that name.
    """
    named = [path for path in paths if is_named(path)]
    if twice := [path for path in named if named.count(path) > 1]:
        raise UserError(f"--learned: {twice[0]!r} is given twice")
    files = [(path, kind) for path, kind in zip(paths, kinds, strict=True) if path not in named]
    labels = iter(_label_files([path for path, _ in files], [kind for _, kind in files]))
    return [path.removeprefix(HUB) if path in named else next(labels) for path in paths]


def _label_files(paths: list[str], kinds: list[str]) -> list[str]:
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
