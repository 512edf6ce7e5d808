"""Where MetaAdamW as corrected, as the paper has it and as its released code has it differ: one
field a difference.

``MetaAdamW(..., reproduce="paper")`` and ``reproduce="reference"`` choose the other two, so that
anyone can see what each difference does. ``docs/metaadamw.md`` says why each was corrected.
"""

from __future__ import annotations

from dataclasses import dataclass

from lo_framework.spec import UserError, nearest


@dataclass(frozen=True, kw_only=True)
class Differences:
    """The corrected rule.

    Attributes:
        network: "own" is the network of the ``attention`` learned optimizer: bounded features, zero
            head. "published": raw norms straight into the blocks, random head, published
            fine-grained groups.
        scaled_decay: the decay has the factor 1 / (1 - beta1^t) of the Adam part.
        truncated_plus: ``basic_plus`` is ``enhanced`` without its end.
        beta_learns: the meta-gradient of the decay's factor.
        gates_learn: that of feature gates.
        fold: the look-ahead is the next step, with the gradient of the first batch; else the last
            one is repeated.
        features_of_fold: meta-features are those of that next step; else of the last gradient and
            the moments after it.
        learned_lambdas: the network gives the weights of the gradient term; else both are 1/2.
        published_terms: terms in the paper's forms, which can be negative, and |g2_k|^2 not
            relative to |g1_k|^2.
        gap_ahead: the generalization gap is that of the parameters after the look-ahead; else
            before it.
        huw_bound: bound of the log variances; None: none.
        huw_lr: step of the log variances; None: that of the network.
        norm_penalty: times the sum of the norms of the network's weights.
        gate_penalty: times the sum of the gates' sizes: of the factors, or (published network) of
            the raw gates.
        meta_optimizer, meta_lr: of the network.
        clip: of the meta-gradient's norm; 0: none.
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


CORRECTED = Differences()
_PUBLISHED = dict(
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
PAPER = Differences(**_PUBLISHED)  # type: ignore[arg-type]
REFERENCE = Differences(
    **_PUBLISHED,  # type: ignore[arg-type]
    scaled_decay=True,
    truncated_plus=True,
    beta_learns=False,
    gates_learn=False,
    fold=False,
    features_of_fold=False,
    norm_penalty=1e-4,
)
KNOWN: dict[str | None, Differences] = {None: CORRECTED, "paper": PAPER, "reference": REFERENCE}


def find_differences(reproduce: str | None) -> Differences:
    """Raises UserError for an unknown name."""
    if reproduce not in KNOWN:
        names = [name for name in KNOWN if name]
        found = f'unknown reproduce "{reproduce}"{nearest(str(reproduce), names)}'
        raise UserError(f"{found}; known: {', '.join(names)}, None")
    return KNOWN[reproduce]
