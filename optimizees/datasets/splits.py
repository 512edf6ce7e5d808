"""Loaded data sets, and the validation split that is cut from the training split."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lo_framework.spec import UserError

SPLIT_SEED = 0
Splits = dict[str, tuple[Tensor, ...]]  # "train", "valid" and "test" to tensors with rows first


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Labelled images in three disjoint splits.

    Attributes:
        name: canonical spec, for example ``"mnist:size=8"``.
        splits: "train", "valid", "test" -> (images float32 [n, channels, height, width] in [0, 1],
            labels int64 [n]).
        num_classes: C; labels are 0 .. C - 1.
    """

    name: str
    splits: Splits
    num_classes: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""
        channels, height, width = self.splits["train"][0].shape[1:]
        return channels, height, width


def permutation(count: int) -> Tensor:
    """The one fixed order (seed 0) from which splits are cut, so that they are the same in every
    run.
    """
    return torch.randperm(count, generator=torch.Generator().manual_seed(SPLIT_SEED))


def cut(rows: tuple[Tensor, ...], *counts: int) -> list[tuple[Tensor, ...]]:
    """Cut `rows` into disjoint parts of `counts` rows, and a last part with all others, by
    `permutation`.

    Args:
        rows: tensors with the same first dimension n.
    """
    order = permutation(len(rows[0]))
    sizes = [*counts, len(order) - sum(counts)]
    return [tuple(x[index] for x in rows) for index in order.split(sizes)]


def with_valid(train: tuple[Tensor, ...], test: tuple[Tensor, ...], owner: str) -> Splits:
    """The three splits of a data set with a published test split: valid is 10 % cut from train,
    never from test.

    Raises:
        UserError: fewer than ten rows, of which nothing can be cut.
    """
    if len(train[0]) < 10:
        raise UserError(
            f"{owner}: {len(train[0])} training images are too few: expected at least 10, of which "
            "one is for validation"
        )
    valid, rest = cut(train, len(train[0]) // 10)
    return {"train": rest, "valid": valid, "test": test}


def require_finite(rows: tuple[Tensor, ...], what: str) -> None:
    """Refuse rows with NaN or infinite numbers: every loss over one of them would be as useless.

    Raises:
        UserError: counting them and naming the first.
    """
    for x in rows:
        if x.is_floating_point():
            bad = ~torch.isfinite(x).reshape(len(x), -1).all(1)
            if bad.any():
                raise UserError(
                    f"{what}: {int(bad.sum())} of {len(x)} rows hold NaN or infinite numbers (the "
                    f"first is row {int(bad.nonzero()[0])}): remove or replace them"
                )
