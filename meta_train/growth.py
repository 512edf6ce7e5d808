"""Growth with an incumbent: the stages of a run.

``attention-mlp`` is reached through ``hyper-adamw`` and ``attention``: each stage starts as the function that the incumbent is. A
few scalars learn in seconds what a network would take minutes to find, and no stage can end below the one before it, because the
incumbent is what is saved.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from lo_framework.learned import KINDS, PREDECESSOR, LearnedOptimizer, make_learned
from optimizees.spec import parse_spec

# Share of the outer steps for the last, the last but one and the first stage of a chain.
SHARES = {1: (1.0,), 2: (0.5, 0.5), 3: (0.2, 0.2, 0.6)}


@dataclass(frozen=True)
class Stage:
    """Outer steps [begin, end) train an optimizer of this kind."""

    index: int
    kind: str
    config: dict[str, Any]
    begin: int
    end: int

    def build(self) -> LearnedOptimizer:
        return make_learned(self.kind, **self.config)


def plan_stages(spec: str, outer_steps: int) -> list[Stage]:
    """Stages for a learned-optimizer spec; predecessors take over the settings they share with it."""
    final = make_learned(spec)
    kind, _ = parse_spec(spec)
    chain = [kind]
    while chain[0] in PREDECESSOR:
        chain.insert(0, PREDECESSOR[chain[0]])
    chain = chain[-outer_steps:]  # a very short run has fewer stages than kinds
    values = asdict(final.config)
    stages, begin, share = [], 0, 0.0
    for index, name in enumerate(chain):
        share += SHARES[len(chain)][index]
        end = outer_steps if index == len(chain) - 1 else min(max(begin + 1, round(share * outer_steps)), outer_steps - 1)
        names = KINDS[name][0].__dataclass_fields__
        stages.append(Stage(index, name, {key: value for key, value in values.items() if key in names}, begin, end))
        begin = end
    return stages
