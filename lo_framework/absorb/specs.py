"""From a spec to a regularizer: ``"sam:rho=0.1"``, or a mixture,
``"sam:rho=0.1+weight_decay:lam=0.001"``.
"""

from __future__ import annotations

from lo_framework.regularizers import REGULARIZERS, Mixture, Regularizer
from lo_framework.spec import UserError, parse_spec, split_joined


def make_regularizer(spec: str) -> Regularizer:
    """The regularizer that ``spec`` names; several joined by ``+`` are a `Mixture`.

    Raises:
        UserError: an unknown name or option, a value out of range, or parts that cannot be mixed.
            ``none`` is an error too: to have no regularizer is for the caller to deal with.
    """
    parts = [_make(piece) for piece in split_joined(spec)]
    if len(parts) == 1:
        return parts[0]
    try:
        return Mixture(parts)
    except ValueError as error:
        raise UserError(f'"{spec}": {error}') from None


def _make(spec: str) -> Regularizer:
    if parse_spec(spec)[0] == "none":
        raise UserError(
            '"none" is no regularizer: leave it out of a mixture, or give no regularizer at all'
        )
    return REGULARIZERS.build(spec)
