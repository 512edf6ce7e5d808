"""Growth with an incumbent: the stages of a run.

``attention-mlp`` is reached through ``hyper-adamw`` and ``attention``: each stage starts as the
function that the incumbent is. A few scalars learn in seconds what a network would take minutes to
find, and no stage can end below the one before it, because the incumbent is what is saved.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from fnmatch import fnmatchcase
from typing import Any

import torch

from lo_framework.errors import UserError, nearest
from lo_framework.learned import LEARNED, PREDECESSOR, LearnedOptimizer, make_learned
from lo_framework.spec import parse_spec

# Share of the outer steps for the last, the last but one and the first stage of a chain.
SHARES = {1: (1.0,), 2: (0.5, 0.5), 3: (0.25, 0.2, 0.55)}


@dataclass(frozen=True)
class Stage:
    """Outer steps [begin, end) train an optimizer of this kind; ``only``: these meta-parameters."""

    kind: str
    config: dict[str, Any]
    index: int = 0
    begin: int = 0
    end: int = 0
    only: str = ""

    def reading(self, features: int | None) -> Stage:
        """This stage with the features that a run was begun with."""
        if "feature_version" not in self.config:
            return self
        return replace(self, config={**self.config, "feature_version": features})

    def build(self) -> LearnedOptimizer:
        """Build it with one start in every process and after every resume, also where a kind draws
        from the global generator.
        """
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            return trained(make_learned(self.kind, **self.config), self.only)


def trained(learned: LearnedOptimizer, only: str) -> LearnedOptimizer:
    """``learned``, of which meta-parameters that no pattern in ``only`` matches are constants.

    Raises:
        UserError: a pattern matches none.
    """
    patterns = [x.strip() for x in only.split(",") if x.strip()]
    names = [name for name, _ in learned.named_parameters()]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UserError(
                f"--only: no meta-parameter of {learned.kind} is called {pattern!r}"
                f"{nearest(pattern, names)}; there are {', '.join(names)}"
            )
    for name, p in learned.named_parameters():
        p.requires_grad_(not patterns or any(fnmatchcase(name, each) for each in patterns))
    return learned


def plan_stages(spec: str, outer_steps: int, *, grown: bool = True, only: str = "") -> list[Stage]:
    """Stages for a learned-optimizer spec; predecessors take over the settings they share with it.

    One that learns its own factors only (``learn=factors``) has none: it would take over what they
    have learned; nor has one that is not ``grown``, or of which ``only`` a part is trained.
    """
    final = make_learned(spec)
    kind, _ = parse_spec(spec)
    chain = [kind]
    grown = grown and not only and getattr(final.config, "learn", "all") == "all"
    while grown and chain[0] in PREDECESSOR:
        chain.insert(0, PREDECESSOR[chain[0]])
    chain = chain[-outer_steps:]  # a very short run has fewer stages than kinds
    values = asdict(final.config)
    stages, begin, share = [], 0, 0.0
    for index, name in enumerate(chain):
        share += SHARES[len(chain)][index]
        after = len(chain) - 1 - index  # stages that still need a step each
        end = min(outer_steps - after, max(begin + 1, round(share * outer_steps)))
        names = {f.name for f in fields(LEARNED[name].config)}
        config = {key: value for key, value in values.items() if key in names}
        stages.append(Stage(name, config, index, begin, end, only))
        begin = end
    return stages
