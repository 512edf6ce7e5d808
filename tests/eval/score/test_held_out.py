"""No problem of a suite is one that an optimizer was meta-trained on or chosen by."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest

from lo_framework.eval.score.held_out import require_held_out
from lo_framework.eval.score.suite import SHIPPED, Problem, read_suite
from lo_framework.learned import make_learned, save_optimizer
from lo_framework.spec import UserError

RANGES = "mlp:hidden=8..128,layers=1..4,act=relu|tanh"
PROBLEM = Problem(name="p", axis="width", optimizee="mlp:hidden=64x32,act=tanh", steps=100)


@pytest.fixture
def file(tmp_path):
    """Make the file of an optimizer from a run like this."""

    def made(began=None, **run):
        learned = make_learned("hyper-adamw")
        run = {"optimizees": RANGES, "datasets": "digits", "episode_length": "50-200", **run}
        path = str(tmp_path / "optimizer.safetensors")
        summary = {"run": {"vary": "usual", "probes": "", **run}}
        summary |= {"began_with": {"run": began}} if began else {}
        told = dict(kind=learned.kind, config=asdict(learned.config), summary=summary)
        save_optimizer(path, learned.theta(), **told)
        return path

    return made


@pytest.mark.parametrize(
    "run, changed, what",
    [
        ({}, {}, "pool"),
        ({"optimizees": "mlp"}, {}, "pool"),
        ({"optimizees": "mlp", "vary": "none"}, {"optimizee": "mlp"}, "pool"),
        ({"probes": "mlp:hidden=256@150,cnn"}, {"optimizee": "mlp:hidden=256"}, "probes"),
        ({"probes": "mlp:hidden=256/table"}, {"optimizee": "cnn"}, ""),
        ({}, {"steps": 201}, ""),
        ({}, {"optimizee": "mlp:hidden=129,act=tanh"}, ""),
        ({}, {"optimizee": "mlp:hidden=8,layers=5,act=tanh"}, ""),
        ({}, {"optimizee": "mlp:hidden=8,act=gelu"}, ""),
        ({}, {"dataset": "table"}, ""),
        ({"optimizees": "mlp", "vary": "none"}, {}, ""),
        ({"optimizees": "of-a-plugin"}, {}, ""),
        ({"episode_length": "long"}, {}, ""),
    ],
)
def test_problems_of_the_pool_and_the_probes_are_refused(file, run, changed, what):
    problem = replace(PROBLEM, **changed)
    if not what:
        require_held_out([problem], file(**run))
        return
    with pytest.raises(UserError, match=f'problem "p" is in the {what} of .*--problems') as caught:
        require_held_out([problem], file(**run))
    assert "\n" not in str(caught.value)


def test_what_the_training_began_with_has_seen_its_problems_too(file):
    before = {"optimizees": "mlp", "vary": "none", "datasets": "digits", "episode_length": "200"}
    path = file(optimizees="cnn", began=before)
    with pytest.raises(UserError, match="in the pool of what .* began with"):
        require_held_out([replace(PROBLEM, optimizee="mlp")], path)
    require_held_out([PROBLEM], path)


def test_a_file_that_does_not_say_is_taken(tmp_path):
    learned = make_learned("hyper-adamw")
    path = tmp_path / "mine.safetensors"
    told = dict(kind=learned.kind, config=asdict(learned.config), summary={"run": [1]})
    save_optimizer(path, learned.theta(), **told)
    require_held_out([PROBLEM], str(path))


def test_the_shipped_suite_is_held_out_of_every_optimizee_and_data_set(file):
    everything = {"optimizees": "mlp,mlp-relu,cnn,transformer", "datasets": "digits,teacher"}
    require_held_out(read_suite(SHIPPED), file(**everything, episode_length="10-100000"))
