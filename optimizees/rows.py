"""A person's data (tensors or a DataLoader) as resident rows in three disjoint splits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lo_framework.optimizees.datasets.splits import cut, require_finite
from lo_framework.spec import UserError

Rows: TypeAlias = tuple[Tensor, ...]
Given: TypeAlias = "Tensor | Sequence[Tensor] | DataLoader[Any]"
_SHARE = 10  # a split that is not given is one tenth of the data


def materialize(given: Given, what: str) -> Rows:
    """`given` as a tuple of tensors with the same, non-zero first dimension.

    A DataLoader is read once, with torch's random state restored afterwards, so that a shuffling
    loader gives the same rows in the same order in every process; rows that it drops
    (``drop_last``) are not in the task.

    Raises:
        UserError: something else than tensors, no rows, tensors of different first dimensions, or
            numbers that are not finite.
    """
    rows = _read(given, what) if isinstance(given, DataLoader) else _tensors(given, what)
    if any(x.dim() == 0 for x in rows):
        raise UserError(f"{what}: expected tensors with rows, found a tensor without dimensions")
    counts = [len(x) for x in rows]
    if len(set(counts)) != 1:
        raise UserError(f"{what}: expected tensors with the same number of rows, found {counts}")
    if counts[0] == 0:
        raise UserError(f"{what}: it has no rows")
    require_finite(rows, what)
    return tuple(x.detach() for x in rows)


def make_splits(data: Given, valid: Given | None, test: Given | None, name: str) -> dict[str, Rows]:
    """train, valid and test rows; a split that is not given is 10 % (at least a row), cut by a
    fixed permutation.

    Raises:
        UserError: see `materialize`; also too few rows, or a given split whose tensors are unlike
            those of `data`.
    """
    rows = materialize(data, f"{name}: data")
    splits = {
        key: materialize(value, f"{name}: {key}")
        for key, value in (("valid", valid), ("test", test))
        if value is not None
    }
    for key, part in splits.items():
        if [(x.shape[1:], x.dtype) for x in part] != [(x.shape[1:], x.dtype) for x in rows]:
            raise UserError(
                f"{name}: {key}: expected rows like {_describe(rows)}, found {_describe(part)}"
            )
    absent = [key for key in ("test", "valid") if key not in splits]
    if len(rows[0]) <= len(absent):
        raise UserError(
            f"{name}: data: {len(rows[0])} rows are too few to cut {' and '.join(absent)} from"
        )
    share = max(1, len(rows[0]) // _SHARE)
    if absent:
        *parts, rows = cut(rows, *[share] * len(absent))
        splits.update(zip(absent, parts))
    return {"train": rows, "valid": splits["valid"], "test": splits["test"]}


def _tensors(given: Any, what: str) -> Rows:
    rows = (given,) if isinstance(given, Tensor) else given
    if (
        not isinstance(rows, tuple | list)
        or not rows
        or not all(isinstance(x, Tensor) for x in rows)
    ):
        raise UserError(
            f"{what}: expected a tensor, a tuple of tensors or a DataLoader of them, found "
            f"{_kind(given)}"
        )
    return tuple(rows)


def _read(loader: DataLoader[Any], what: str) -> Rows:
    shuffler = loader.generator
    state = None if shuffler is None else shuffler.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        if shuffler is not None:
            shuffler.manual_seed(0)
        try:
            batches = [_tensors(batch, f"{what} (a batch)") for batch in loader]
        finally:
            if shuffler is not None and state is not None:
                shuffler.set_state(state)
    if not batches:
        raise UserError(f"{what}: the DataLoader gives no batch")
    try:
        return tuple(torch.cat(parts) for parts in zip(*batches, strict=True))
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{what}: the DataLoader's batches do not fit together: {error}") from error


def _kind(value: Any) -> str:
    if isinstance(value, tuple | list):
        parts = ", ".join(sorted({type(x).__name__ for x in value}))
        return f"a {type(value).__name__} of {parts or 'nothing'}"
    return f"a {type(value).__name__}"


def _describe(rows: Rows) -> str:
    return ", ".join(f"{str(x.dtype).removeprefix('torch.')}{list(x.shape[1:])}" for x in rows)
