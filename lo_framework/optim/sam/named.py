"""The regularizers by name, each around any optimizer: ``SAM(torch.optim.AdamW(model.parameters()),
rho=0.05)``.

    def closure():
        optimizer.zero_grad()
        loss = loss_fn(model(x), y)
        loss.backward()
        return loss

    loss = optimizer.step(closure)

What each does is told in its file in ``regularizers``; how to use them, and what they cost, in
``docs/explicit.md``.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch
from torch import nn

from lo_framework import regularizers as rules
from lo_framework.optim.sam.regularized import Regularized
from lo_framework.spec import UserError, build_config, nearest


class _Named(Regularized):
    """``options`` are the fields of the regularizer's config; the others are those of
    `Regularized`.
    """

    rule: ClassVar[type[rules.Regularizer]]
    preset: ClassVar[dict[str, Any]] = {}

    def __init__(
        self,
        base: torch.optim.Optimizer,
        *,
        model: nn.Module | None = None,
        same_noise: bool = True,
        **options: Any,
    ) -> None:
        known = [*(f.name for f in dataclasses.fields(self.rule.Config)), "model", "same_noise"]
        title = type(self).__name__
        for key in options:
            if key not in known:
                hint = nearest(key, known)
                raise UserError(f'{title}: unknown option "{key}"{hint}; known: {", ".join(known)}')
        config: Any = build_config(self.rule.Config, {**self.preset, **options}, title)
        super().__init__(base, self.rule(config), model=model, same_noise=same_noise)


class SAM(_Named):
    """Sharpness-aware minimisation: the gradient at ``w + rho g/||g||``. Two passes.

    Options: ``rho`` (0.05), the radius.
    """

    rule = rules.sam.SAM


class ASAM(_Named):
    """Adaptive SAM: the neighbourhood scales with the weights. Two passes.

    Options: ``rho`` (0.5), relative to the weights, so larger than SAM's; ``eta`` (0.01), added to
    their sizes.
    """

    rule = rules.asam.ASAM


class GSAM(_Named):
    """SAM that also closes the surrogate gap. Two passes.

    Options: ``rho`` (0.05); ``alpha`` (0.1), the weight of the plain gradient's orthogonal part; 0
    is SAM.
    """

    rule = rules.gsam.GSAM


class GAM(_Named):
    """Gradient norm aware minimisation, accelerated (the exact one needs second derivatives). Four
    passes.

    Options: ``rho`` (0.05), ``rho_prime`` (0.01), ``beta_1`` and ``beta_0`` (0.1), ``gamma``
    (0.05), and ``variant``: "paper" or "reference", the formula of the released code.
    """

    rule = rules.gam.GAM
    preset: ClassVar = {"exact": False}


class LookSAM(_Named):
    """SAM whose second gradient is taken every ``k`` steps and partly reused in between. ``1 +
    1/k`` passes.

    Options: ``rho`` (0.05), ``k`` (5), ``alpha`` (0.7), the weight of the reused direction.
    """

    rule = rules.looksam.LookSAM


class S2SAM(_Named):
    """Single-step SAM: the gradient where that of the step before points. One pass; the loss that
    ``step`` returns is the one there.

    Options: ``rho`` (0.05), the radius.
    """

    rule = rules.s2sam.S2SAM


class FSAM(_Named):
    """Friendly SAM: perturbs along what is particular to the batch. Two passes.

    Options: ``rho`` (0.05), ``sigma`` (1), ``lam`` (0.9), the decay of the average gradient;
    ``average``.
    """

    rule = rules.fsam.FSAM
