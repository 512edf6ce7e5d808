"""How inner steps are run.

    eager        operation by operation
    graph        recorded once and replayed: mostly faster, the same bits
    best         eager or graph, whichever a family's first truncations show to be faster
    inductor     recorded and compiled: faster still, other bits; needs a C++ compiler

and each of them with ``native-`` before it (``native`` alone is ``native-eager``): what learned
optimizers do to each parameter, and convolutions, are compiled kernels, which need a C compiler.
``auto`` is the first of native-best and best that can run here; for runs long enough to make up for
the compilation, native-inductor. Nothing in this choice is measured, so that the same command has
the same bits; what ``best`` measures does not change them.
"""

from __future__ import annotations

import shutil
from typing import NamedTuple

from lo_framework.native import toolchain
from lo_framework.spec import UserError, nearest

HOWS = ("eager", "graph", "best", "inductor")
ENGINES = (*HOWS, "native", *(f"native-{how}" for how in HOWS[1:]))
AUTO = "auto"
LONG = 200_000  # inner steps of one shard, from which a minute of compilation is nothing


class Engine(NamedTuple):
    """``how`` is one of `HOWS`; ``native``: with compiled kernels."""

    how: str
    native: bool = False

    @staticmethod
    def named(name: str) -> Engine:
        """Raises UserError for an unknown one."""
        if name not in ENGINES:
            raise UserError(
                f"unknown engine {name!r}{nearest(name, (AUTO, *ENGINES))}; "
                f"there are {', '.join((AUTO, *ENGINES))}"
            )
        return Engine(name.removeprefix("native").removeprefix("-") or "eager", "native" in name)

    @staticmethod
    def parse(name: str) -> Engine:
        """Raises UserError for one that is unknown or that cannot run here."""
        engine = Engine.named(resolved(name))
        if why := engine.reason():
            raise UserError(f"engine {name} cannot run here: {why}; {', '.join(possible())} can")
        return engine

    @property
    def fixed(self) -> bool:
        """Whether every step must have gradients in the same places, lest it be made anew."""
        return self.how != "eager"

    def reason(self) -> str:
        """Why it cannot run here; '' where it can."""
        if self.native and toolchain.reason():
            return toolchain.reason()
        if self.how == "inductor" and not any(map(shutil.which, ("c++", "g++", "clang++"))):
            return "there is no C++ compiler"
        return ""


def resolved(name: str, steps: int = 0, device: str = "cpu", varied: bool = False) -> str:
    """What ``auto`` stands for on this machine, in a run of so many inner ``steps`` a shard; other
    names are what they are. Steps of a family that varies are never recorded by themselves: every
    problem would be recorded anew.
    """
    if name == AUTO:
        if not device.startswith("cpu") or toolchain.reason():
            name = "best"
        elif steps >= LONG and not varied and not Engine("inductor", True).reason():
            name = "native-inductor"
        else:
            name = "native-best"
    if varied and name in ("best", "native-best"):
        return "eager" if name == "best" else "native"
    return name


def possible() -> list[str]:
    """Names of the engines that can run here."""
    return [name for name in ENGINES if not Engine.named(name).reason()]


class Choice:
    """Which of two ways with the same bits is faster: the second of two truncations each, for in
    the first one things are made.
    """

    TRIALS = ("eager", "eager", "graph", "graph")

    def __init__(self) -> None:
        self.seconds: list[float] = []

    @property
    def how(self) -> str:
        done = len(self.seconds)
        if done < len(self.TRIALS):
            return self.TRIALS[done]
        return "graph" if self.seconds[3] < self.seconds[1] else "eager"

    def tell(self, seconds: float) -> None:
        """What a truncation took."""
        if len(self.seconds) < len(self.TRIALS):
            self.seconds.append(seconds)
