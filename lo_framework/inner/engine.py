"""How inner steps are run.

    eager            operation by operation
    graph            recorded once and replayed: faster, the same bits
    inductor         recorded and compiled: faster still, other bits; needs a C++ compiler

and each of them with ``native-`` before it (``native`` alone is ``native-eager``): the columnwise
parts of the learned optimizer and the convolutions are compiled kernels, which need a C compiler.
"""

from __future__ import annotations

import shutil
from typing import NamedTuple

from lo_framework.native import toolchain
from lo_framework.spec import UserError, nearest

HOWS = ("eager", "graph", "inductor")
ENGINES = (*HOWS, "native", "native-graph", "native-inductor")


class Engine(NamedTuple):
    """``how`` is one of `HOWS`; ``native``: with compiled kernels."""

    how: str
    native: bool = False

    @staticmethod
    def named(name: str) -> Engine:
        """Raises UserError for an unknown one."""
        if name not in ENGINES:
            raise UserError(
                f"unknown engine {name!r}{nearest(name, ENGINES)}; there are {', '.join(ENGINES)}"
            )
        return Engine(name.removeprefix("native").removeprefix("-") or "eager", "native" in name)

    @staticmethod
    def parse(name: str) -> Engine:
        """Raises UserError for one that is unknown or that cannot run here."""
        engine = Engine.named(name)
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


def possible() -> list[str]:
    """Names of the engines that can run here."""
    return [name for name in ENGINES if not Engine.named(name).reason()]
