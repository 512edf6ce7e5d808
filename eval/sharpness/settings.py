"""The settings of a sharpness evaluation: radii, and how much an effort measures."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from lo_framework.eval.sharpness.ascent import FULL, QUICK, STANDARD, Effort
from lo_framework.spec import UserError, nearest

RADII = (0.001, 0.005, 0.05, 0.1)
PROBE, NO_PROBE = "sam:rho=0.05", "none"


@dataclass(frozen=True, kw_only=True)
class Level:
    """How much an effort measures; by default the quick one.

    Attributes:
        rows: of the training split, the same ones for every run; None: all.
        ascent: how hard every maximum is looked for.
        points: of the full-split training loss along a run, and so of the matched steps.
        watched_rows: where the training split has more, that loss is the one of a fixed sample of
            so many; None: all.
        probes: steps at which the probe looks.
        relative: radii in multiples of the parameters' norm; doubling: the radius at which the loss
            has doubled.
        linf, adaptive: radii of these balls, in the units of each.
        m: rows of the batches of m-sharpness.
        sigma, average: average-case sharpness: standard deviations of the noise, and pairs of
            random directions.
        eigenvalues, trace: largest eigenvalues of the Hessian, and probes of its trace; 0: none.
        density, lanczos: probes and steps of the spectral density; for the first seed only, as it
            is a picture.
        ggn: eigenvalues and trace of the Gauss-Newton matrix too.
        line, plane: points of the slices along one and (squared) two directions, of the first seed.
    """

    rows: int | None = 512
    ascent: Effort = QUICK
    points: int = 100
    watched_rows: int | None = 4096
    probes: int = 20
    relative: tuple[float, ...] = ()
    doubling: bool = False
    linf: tuple[float, ...] = ()
    adaptive: tuple[float, ...] = ()
    m: tuple[int, ...] = ()
    sigma: tuple[float, ...] = (0.01,)
    average: int = 20
    eigenvalues: int = 1
    trace: int = 10
    density: int = 0
    lanczos: int = 0
    ggn: bool = False
    line: int = 41
    plane: int = 21


_STANDARD = Level(
    rows=1024,
    ascent=STANDARD,
    points=200,
    watched_rows=16384,
    probes=40,
    relative=(0.01, 0.05),
    doubling=True,
    linf=(0.0005, 0.002),
    adaptive=(0.25, 1.0),
    m=(128,),
    sigma=(0.005, 0.02),
    average=64,
    eigenvalues=2,
    trace=50,
    density=4,
    lanczos=40,
    ggn=True,
    line=51,
    plane=31,
)
# What chooses a baseline's setting -> in words.
CHOICES = {"training": "final training loss", "validation": "validation loss"}
EFFORTS = {
    "quick": Level(),
    "balls": Level(rows=1024, relative=(0.01, 0.05), adaptive=(0.25, 1.0)),
    "standard": _STANDARD,
    "full": replace(
        _STANDARD,
        rows=None,
        ascent=FULL,
        points=1000,
        watched_rows=None,
        probes=100,
        relative=(0.01, 0.05, 0.1),
        linf=(0.0005, 0.001, 0.002, 0.004),
        adaptive=(0.25, 0.5, 1.0, 2.0),
        m=(32, 128),
        sigma=(0.005, 0.01, 0.02, 0.05),
        average=256,
        eigenvalues=5,
        trace=100,
        density=10,
        lanczos=80,
        plane=51,
    ),
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of all runs of an evaluation; they travel inside the cells. ``probe``: a
    regularizer's spec, or "none".
    """

    steps: int
    radii: tuple[float, ...] = RADII
    effort: str = "quick"
    probe: str = PROBE

    @property
    def level(self) -> Level:
        return EFFORTS[self.effort]

    @property
    def watched(self) -> tuple[int, ...]:
        """Return the steps after which the full training split is evaluated; the first and the last
        are among them.
        """
        every = max(1, math.ceil(self.steps / self.level.points))
        return tuple(sorted({*range(0, self.steps + 1, every), self.steps}))

    @property
    def probed(self) -> tuple[int, ...]:
        """Return the steps whose update the probe looks at, by how many updates came before."""
        every = max(1, math.ceil(self.steps / self.level.probes))
        return () if self.probe == NO_PROBE else tuple(range(0, self.steps, every))


def parse_radii(text: str) -> tuple[float, ...]:
    """Parse ``"0.001,0.05"``; sorted.

    Raises:
        UserError: a piece that is no number, not positive or not finite, or one given twice.
    """
    radii = []
    for piece in text.split(","):
        try:
            value = float(piece)
        except ValueError:
            raise UserError(
                f'--radii "{text}": {piece.strip()!r} is not a number; expected as 0.001,0.05'
            ) from None
        if not (math.isfinite(value) and value > 0):
            raise UserError(
                f'--radii "{text}": {piece.strip()} is no radius; expected positive finite numbers'
            )
        radii.append(value)
    if len({f"{r:g}" for r in radii}) < len(radii):
        raise UserError(f'--radii "{text}": a radius is given twice')
    return tuple(sorted(radii))


def check_effort(name: str) -> str:
    """Raises UserError: unknown."""
    if name not in EFFORTS:
        raise UserError(
            f'--effort: unknown "{name}"{nearest(name, EFFORTS)}; known: {", ".join(EFFORTS)}'
        )
    return name
