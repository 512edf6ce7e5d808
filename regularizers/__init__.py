"""Regularizers: what is added to a loss, or to its gradient, so that training ends in flatter or
smaller solutions.

One file each; all that are registered are in `REGULARIZERS`. `base` holds the contract, a
correction of the gradient and, where there is one, the scalar whose gradient it makes. This room
imports nothing of the others, so a regularizer can be read, tested and used with torch alone: give
it anything that satisfies `Landscape`.

    sam = SAM(SAMConfig(rho=0.1))
    loss, grad = landscape.gradient(params)
    correction = sam.correction(landscape, Point(params, loss, grad), sam.init_state(params))
"""

from lo_framework.regularizers import (  # noqa: F401 (each registers itself)
    asam,
    even_sam,
    fsam,
    gam,
    gradient_norm,
    gsam,
    hessian_trace,
    label_noise,
    looksam,
    s2sam,
    sam,
    vectors,
    weight_decay,
)
from lo_framework.regularizers.base import (
    REGULARIZERS,
    Correction,
    Cost,
    Landscape,
    NoValue,
    Point,
    Regularizer,
    frozen,
    register_regularizer,
    restored,
    stored,
)
from lo_framework.regularizers.mixture import Mixture

__all__ = [
    "REGULARIZERS",
    "Correction",
    "Cost",
    "Landscape",
    "Mixture",
    "NoValue",
    "Point",
    "Regularizer",
    "frozen",
    "register_regularizer",
    "restored",
    "stored",
    "vectors",
]

if (
    "." not in __name__
):  # the folder of the checkout: be lo_framework.regularizers, not a second copy
    from lo_framework.namespace import alias

    alias(__name__)
