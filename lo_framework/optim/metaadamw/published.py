"""Differences between MetaAdamW as corrected, as in the paper and as released: one field for each.

``MetaAdamW(..., reproduce="paper")`` and ``reproduce="reference"`` choose the published two, a
`Variant` of one's own any mixture, so that each difference can be seen at work.
``docs/metaadamw.md`` says why each was corrected, and what of the released code is not reproduced.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from lo_framework.errors import choose


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A variant of the rule; the defaults are the corrected one.

    Attributes:
        network: "own" is the network of the ``attention`` learned optimizer: bounded features, zero
            head. "published": raw norms straight into the blocks, random head, published
            fine-grained groups.
        scaled_decay: the decay has the factor 1 / (1 - beta1^t) of the Adam part.
        truncated_plus: ``basic_plus`` is ``enhanced`` without its end.
        beta_learns: the decay's factor gets a meta-gradient.
        gates_learn: feature gates get one.
        fold: the look-ahead is the next step, with the gradient of the first batch; else the last
            step is repeated.
        features_of_fold: meta-features are those of that next step; else of the last gradient and
            the moments after it.
        learned_lambdas: the network gives the weights of the gradient term; else both are 1/2.
        published_terms: terms in the paper's forms, which can be negative, and |g2_k|^2 not
            relative to |g1_k|^2.
        gap_ahead: the generalization gap is measured after the look-ahead; else before it.
        huw_bound: bound of the log variances; None: none.
        huw_lr: step of the log variances; None: that of the network.
        norm_penalty: factor of the sum of the norms of the network's weights.
        gate_penalty: factor of the sum of the gates' sizes: of the multipliers, or (published
            network) of the raw gates.
        meta_optimizer, meta_lr: the network's optimizer.
        clip: bound of the meta-gradient's norm; 0: none.
    """

    network: str = "own"
    scaled_decay: bool = False
    truncated_plus: bool = False
    beta_learns: bool = True
    gates_learn: bool = True
    fold: bool = True
    features_of_fold: bool = True
    learned_lambdas: bool = False
    published_terms: bool = False
    gap_ahead: bool = True
    huw_bound: float | None = 3.0
    huw_lr: float | None = 0.05
    norm_penalty: float = 0.0
    gate_penalty: float = 1e-4
    meta_optimizer: str = "adam"
    meta_lr: float = 3e-3
    clip: float = 1.0

    @property
    def published(self) -> bool:
        """Whether the network is the published one."""
        return self.network == "published"


CORRECTED = Variant()
PAPER = Variant(
    network="published",
    learned_lambdas=True,
    published_terms=True,
    gap_ahead=False,
    huw_bound=None,
    huw_lr=None,
    meta_optimizer="sgd",
    meta_lr=1e-4,
    clip=0.0,
)
REFERENCE = replace(
    PAPER,
    scaled_decay=True,
    truncated_plus=True,
    beta_learns=False,
    gates_learn=False,
    fold=False,
    features_of_fold=False,
    norm_penalty=1e-4,
)
VARIANTS = {"none": CORRECTED, "paper": PAPER, "reference": REFERENCE}


def find_variant(reproduce: str | Variant) -> Variant:
    """The variant called ``reproduce``, or that variant itself; raises UserError."""
    if isinstance(reproduce, Variant):
        return reproduce
    return VARIANTS[choose("reproduce", reproduce, VARIANTS)]
