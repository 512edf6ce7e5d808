"""Tuning: which settings are tried, which is chosen, and that the choice never sees test data."""

from __future__ import annotations

import numpy as np
import pytest

from lo_framework.eval.baselines import grid_of, make_baseline
from lo_framework.eval.running.cells import Failure, Measured
from lo_framework.eval.running.protocol import (
    BY_KEY,
    METRICS,
    RANGE,
    report_seeds,
    smoothing_width,
    tuning_seeds,
)
from lo_framework.eval.running.tuning import Grid, best, beyond, make_grid, tune
from lo_framework.optimizees import make_tasks
from lo_framework.spec import UserError
from tests.eval.cells import run_cell

INF, NAN = np.inf, np.nan


def test_default_grid_has_both_schedules_and_at_least_seven_rates():
    for name in ("adamw", "sgdm"):
        grid = make_grid(name)
        assert grid.settings == grid_of(name) and grid.fixed == ()
        for cosine in (0.0, 1.0):
            assert sum(s["cosine"] == cosine for s in grid.settings) >= 7


def test_what_a_spec_fixes_is_not_tuned():
    assert make_grid("adamw:lr=0.01").settings == (
        {"lr": 0.01, "cosine": 0.0},
        {"lr": 0.01, "cosine": 1.0},
    )
    assert make_grid("adamw:lr=0.01,cosine=1").settings == ({"lr": 0.01, "cosine": 1.0},)
    grid = make_grid("adamw:weight_decay=0.1")
    assert grid.settings == grid_of("adamw") and grid.fixed == ()


def test_grid_size():
    grid = make_grid("sgdm", 3)
    assert [s["lr"] for s in grid.settings] == pytest.approx([0.003, 0.0949, 3.0] * 2)
    assert [s["lr"] for s in make_grid("sgdm", 1).settings] == pytest.approx([0.0949] * 2)
    with pytest.raises(UserError, match="at least 1 learning rate"):
        make_grid("sgdm", 0)


def scores(**values):
    return {
        "valid_loss": np.zeros((3, 2)),
        **{name: np.array(x, dtype=float) for name, x in values.items()},
    }


def test_best_by_direction_of_the_metric():
    got = scores(
        mean_loss=[[3, 3], [1, 2], [2, 2]], valid_accuracy=[[0.9, 0.9], [0.5, 0.5], [0.8, 0.9]]
    )
    assert best(got, BY_KEY["mean_loss"]) == 1
    assert best(got, BY_KEY["test_accuracy"]) == 0


def test_a_setting_that_diverged_loses_against_any_that_did_not():
    assert best(scores(final_loss=[[0.1, INF], [9, 9], [INF, INF]]), BY_KEY["final_loss"]) == 1
    assert best(scores(final_loss=[[INF, INF], [INF, INF], [9, INF]]), BY_KEY["final_loss"]) == 2
    assert (
        best(scores(valid_accuracy=[[0.9, NAN], [0.1, 0.2], [NAN, NAN]]), BY_KEY["test_accuracy"])
        == 1
    )


def test_equal_accuracies_are_decided_by_the_validation_loss():
    got = scores(valid_accuracy=np.full((3, 2), 0.5), valid_loss=[[3, 3], [2, 2], [1, INF]])
    assert best(got, BY_KEY["test_accuracy"]) == 1


def test_no_metric_is_chosen_by_test_data():
    assert not [m for m in METRICS if "test" in m.chosen_by or "test" in m.ties]


def test_beyond_the_edges():
    grid = [{"lr": lr, "cosine": c} for c in (0.0, 1.0) for lr in (0.1, 0.2, 0.6)]
    assert beyond(grid, {"mean_loss": 1, "final_loss": 4}) == []
    assert beyond(grid, {"mean_loss": 2, "final_loss": 2}) == [{"lr": 1.8, "cosine": 0.0}]
    assert beyond(grid, {"mean_loss": 3, "final_loss": 5}) == [
        {"lr": 0.05, "cosine": 1.0},
        {"lr": 1.8, "cosine": 1.0},
    ]
    assert beyond([{"lr": 1.0}], {"mean_loss": 0}) == [{"lr": 0.333}, {"lr": 3.0}]
    assert beyond([{"rho": 1.0}], {"mean_loss": 0}) == []


def play(grid, loss_of):
    """Tune on an imaginary task whose losses are ``loss_of(lr)``; returns the result and the rates
    tried, in rounds.
    """
    plan = tune("task", "adamw", make_baseline("adamw"), grid, (10_000, 10_001), 5)
    rounds, cells = [], next(plan)
    while True:
        rates = [
            [round(float(np.exp(theta["log_lr"])), 6) for theta in cell.thetas] for cell in cells
        ]
        rounds.append([lr for part in rates for lr in part])
        outcomes = []
        for part, cell in zip(rates, cells, strict=True):
            assert cell.splits == ("train", "valid") and cell.seeds == (10_000, 10_001)
            loss = np.array([[loss_of(lr)] * 2 for lr in part])
            names = ("mean_loss", "final_loss", "valid_loss")
            outcomes.append(
                Measured(
                    curves=np.zeros((len(part), 2, 5)),
                    metrics=dict.fromkeys(names, loss),
                    diverged=loss > 1e9,
                    seconds_per_step=0.0,
                    parameters=1,
                    state_floats=0.0,
                )
            )
        try:
            cells = plan.send(outcomes)
        except StopIteration as stop:
            return stop.value, rounds


RATES = Grid(settings=tuple({"lr": lr, "cosine": 0.0} for lr in (0.01, 0.02, 0.04)), fixed=())


def test_an_inner_best_needs_no_extension():
    tuned, rounds = play(RATES, lambda lr: abs(lr - 0.02))
    assert rounds == [[0.01, 0.02, 0.04]] and tuned.notes == ()
    assert tuned.chosen == {"mean_loss": 1, "final_loss": 1, "test_loss": 1}


def test_a_best_at_the_edge_extends_the_grid_and_says_so():
    tuned, rounds = play(RATES, lambda lr: abs(lr - 0.08))
    assert rounds == [[0.01, 0.02, 0.04], [0.08], [0.16]]
    assert tuned.settings[tuned.chosen["mean_loss"]]["lr"] == 0.08
    assert tuned.notes == ("grid extended at its edge by lr=0.08, lr=0.16",)
    assert tuned.scores["mean_loss"].shape == (5, 2)


def test_at_most_two_extensions_and_a_word_if_they_did_not_do():
    tuned, rounds = play(RATES, lambda lr: lr)
    assert rounds[1:] == [[0.005], [0.0025]]
    assert tuned.notes[-1] == "the best setting is still at the edge after 2 extensions"


def test_a_fixed_rate_is_not_extended():
    _, rounds = play(make_grid("adamw:lr=0.01"), lambda lr: lr)
    assert rounds == [[0.01, 0.01]]


def test_where_nothing_is_to_be_chosen_nothing_is_run():
    grid = make_grid("adamw:lr=0.01,cosine=1")
    plan = tune("task", "adamw", make_baseline("adamw"), grid, (1,), 5)
    with pytest.raises(StopIteration) as stop:
        next(plan)
    tuned = stop.value.value
    assert tuned.settings == grid.settings and set(tuned.chosen.values()) == {0}
    assert not grid.has_choice and make_grid("adamw:cosine=1", 1).has_choice


def test_a_failed_cell_ends_the_tuning():
    plan = tune("task", "adamw", make_baseline("adamw"), RATES, (1,), 5)
    next(plan)
    with pytest.raises(StopIteration) as stop:
        plan.send([Failure(reason="why")])
    assert stop.value.value == Failure(reason="why")


def test_tuning_touches_no_test_data():
    (task,) = make_tasks("mlp:hidden=4,batch=8")
    seen = set()
    full, batch = task.full, task.batch

    def spy_full(split):
        seen.add(split)
        return full(split)

    def spy_batch(split, *arguments, **options):
        seen.add(split)
        return batch(split, *arguments, **options)

    task.full, task.batch = spy_full, spy_batch
    optimizer = make_baseline("adamw")
    plan = tune(task.name, "adamw", optimizer, make_grid("adamw", 2), (10_000,), 2)
    cells = next(plan)
    while True:
        try:
            cells = plan.send([run_cell(cell, task, optimizer) for cell in cells])
        except StopIteration as stop:
            assert stop.value.chosen.keys() == {
                "mean_loss",
                "final_loss",
                "test_loss",
                "test_accuracy",
            }
            break
    assert seen == {"train", "valid"}


def test_seed_ranges_are_disjoint_at_every_offset():
    everything = [
        set(seeds(RANGE - offset, offset))
        for seeds in (tuning_seeds, report_seeds)
        for offset in (0, 7)
    ]
    assert not everything[0] & everything[2] and not everything[1] & everything[3]
    assert max(report_seeds(RANGE)) < 30_000  # where meta-training's validation begins
    for bad in [(0, 0), (1, -1), (2, RANGE - 1)]:
        with pytest.raises(UserError):
            report_seeds(*bad)


def test_smoothing_width():
    assert [smoothing_width(steps) for steps in (1, 39, 200, 1000)] == [1, 1, 10, 50]
