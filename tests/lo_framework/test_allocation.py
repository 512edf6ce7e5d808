"""A bound on new tensors, which leaves what is below it as it is."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lo_framework.allocation import AtMost, TooLarge


def test_what_fits_is_drawn_as_without_the_bound() -> None:
    draws = []
    for bound in (AtMost(100), torch.no_grad()):
        with bound:
            draws.append(torch.randn(5, 4, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(*draws)


@pytest.mark.parametrize(
    "ask",
    [
        lambda: torch.randn(10**6, 10**6),
        lambda: torch.empty((10**12,)),
        lambda: torch.zeros(size=(10**6, 10**6)),
        lambda: nn.Linear(10**6, 10**6),
        lambda: [torch.ones(60) for _ in range(2)],
    ],
)
def test_what_does_not_fit_takes_no_memory(ask) -> None:
    with pytest.raises(TooLarge), AtMost(100):
        ask()
    assert torch.ones(101).sum() == 101
