"""What presets train on and choose by is nothing that `eval score` judges on."""

from __future__ import annotations

import pytest

from lo_framework.eval.score.suite import SHIPPED, read_suite
from lo_framework.meta_train.presets import PRESETS, make_config
from lo_framework.meta_train.problems import USUAL
from lo_framework.optimizees import make_tasks
from lo_framework.optimizees.variation import make_variations


@pytest.mark.parametrize("preset", PRESETS)
def test_no_preset_has_a_problem_of_the_suite(preset):
    config = make_config(preset)
    pool = make_variations(config.optimizees, config.datasets, config.vary)
    for problem in read_suite(SHIPPED):
        # mlp-relu is mlp with another default
        spellings = {problem.optimizee, problem.optimizee.replace("mlp-relu:", "mlp:act=relu,")}
        for optimizee in spellings:
            assert not [x.name for x in pool if x.covers(optimizee, problem.dataset)]


def test_no_usual_probe_is_a_problem_of_the_suite():
    probes = [text.partition("@")[0] for text in USUAL]
    names = {task.name for task in make_tasks([text.partition("/")[0] for text in probes])}
    for problem in read_suite(SHIPPED):
        (task,) = make_tasks(problem.optimizee, problem.dataset)
        assert task.name not in names, problem.name
