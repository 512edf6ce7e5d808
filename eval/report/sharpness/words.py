"""What the words and symbols of a sharpness page mean, in the order in which they build on each
other.
"""

from __future__ import annotations

from lo_framework.eval.report.page import Term
from lo_framework.eval.sharpness.result import Result

FIRST = (
    Term(
        "sharpness",
        "how far the loss rises around the parameters. It does not predict generalisation by "
        "itself: read it beside test accuracy",
        first=True,
    ),
    Term(
        "at matched training loss",
        "at the first watched step whose loss on the full training split is at most the worst "
        "optimizer's last one on the same seed. Runs that diverged never match and are counted. "
        "Steps are whole, so that a fast optimizer may be a little below the target: see its "
        "training loss there",
        first=True,
    ),
    Term("at equal steps", "after the last step of every run", first=True),
    Term(
        "Holm's correction",
        "of p-values, for how many comparisons one task has at equal steps or at matched loss: "
        "the verdicts have it, the intervals do not",
        True,
        ("Holm",),
    ),
)


def words_of(result: Result) -> list[Term]:
    """Return every term of the page of ``result``."""
    radii = [f"{r:g}" for r in result.settings["radii"]]
    symbols = [
        Term(
            "L",
            "loss on a sample of the training data, the same for every optimizer, in "
            "evaluation mode",
        ),
        Term("∇L", "its gradient; ‖∇L‖ is the norm over all parameters", False, ("‖∇L‖",)),
        Term(
            "r",
            "a radius around the parameters that a run came to",
            False,
            tuple(f"r = {r}" for r in radii),
        ),
        Term(
            "h(r)",
            "surrogate gap: how far L rises at most within radius r. It is a lower bound, "
            "found by gradient ascent",
            False,
            ("h", *(f"h({r})" for r in radii)),
        ),
        Term(
            "h − r‖∇L‖",
            "its curvature part. At small r, h mostly measures the gradient's norm, "
            "that is, how far training has come; this takes that away",
            False,
            tuple(f"h − r‖∇L‖ ({r})" for r in radii),
        ),
        Term(
            "R1(r)",
            "r times the largest norm of the gradient within radius r",
            False,
            ("R1", *(f"R1({r})" for r in radii)),
        ),
        Term("SAM step gap", "rise of L after one step of length r along the gradient"),
        Term("H", "Hessian of L, the matrix of second derivatives; GGN is its Gauss-Newton part"),
        Term("λ max", "largest eigenvalue of H", False, ("λ max (GGN)",)),
        Term("tr H", "trace of H: the sum of its eigenvalues"),
        Term("r₂: M = 2L", "the radius within which L can become twice as large"),
        Term(
            "±",
            "half of the 95% interval of the mean over seeds (Student's t); n: how many "
            "seeds have the number, where some lack it",
        ),
        Term(
            "difference",
            "paired by seed; its interval is not corrected for many comparisons",
            False,
            ("equal steps: difference", "matched loss: difference"),
        ),
        Term("censored", "runs that never came to the matched loss"),
    ]
    return [*FIRST, *symbols]
