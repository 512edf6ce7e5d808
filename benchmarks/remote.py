"""Contenders that run in another process: of another checkout of this project, or of another
library.

The process reads one JSON object a line: ``{"build": {...}}`` makes a case and answers with its
number, ``{"run": number}`` runs it once. It works only while it is asked to, so that contenders
take turns as they do within one process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.harness import Contender

# What a checkout is asked to run: names that all of them have had.
TREE = """
import torch
from dataclasses import replace
from lo_framework.estimators import Truncation, make_estimator
from lo_framework.inner.step import Family
from lo_framework.learned import make_learned
from lo_framework.objectives import make_objective
from optimizees.pool import make_tasks
torch.set_num_threads(1)
def build(spec, unroll, tasks, optimizee, learned, engine, objective):
    task = make_tasks(optimizee, "digits")[0]
    rule = make_learned(learned)
    clock = Truncation(unroll_length=unroll, episode=(10**6, 10**6))
    family, score = Family(task, rule, engine), make_objective(objective)
    estimator = make_estimator(spec, family, score, clock, tasks)
    theta = dict(rule.theta())
    state = estimator.init_state(theta, torch.Generator().manual_seed(0))
    state = replace(state, stop=state.horizon.clone())
    return lambda: estimator.estimate(theta, state)
"""
SERVE = """
import json, sys
answers = sys.stdout
sys.stdout = sys.stderr
cases = []
for line in sys.stdin:
    asked = json.loads(line)
    try:
        if "build" in asked:
            cases.append(build(**asked["build"]))
            answer = {"case": len(cases) - 1}
        else:
            cases[asked["run"]]()
            answer = {}
    except Exception as error:
        answer = {"error": f"{type(error).__name__}: {error}"[:300]}
    print(json.dumps(answer), file=answers, flush=True)
"""


class Remote:
    """A process that runs `source` and then serves its function ``build``."""

    def __init__(self, name: str, source: str, folder: Path | None = None) -> None:
        self.name = name
        env = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", source + SERVE],
            cwd=folder,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def ask(self, **message: Any) -> dict[str, Any]:
        """Raises RuntimeError with what the process says."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(message) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        answer = json.loads(line) if line else {"error": "it has ended"}
        if "error" in answer:
            raise RuntimeError(f"{self.name}: {answer['error']}")
        return answer

    def contender(self, name: str, steps: int, **case: Any) -> Contender:
        number = self.ask(build=case)["case"]
        return Contender(name, partial(self.ask, run=number), steps)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
