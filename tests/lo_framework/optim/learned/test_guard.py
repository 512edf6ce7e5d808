"""The guard's decisions as pure logic."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from lo_framework.errors import UserError
from lo_framework.optim import GuardConfig
from lo_framework.optim.learned.guard import (
    ADAMW_LR,
    AGAIN,
    DOUBT,
    FAR,
    GROWN,
    RESTED,
    RETREAT,
    STRICT,
    Guard,
    Signal,
)
from tests.lo_framework.optim.tools import generator

QUICK = GuardConfig(warmup=3, every=4, steps=6, decay=0.5)


def signal(loss: float | None = None, *, added: float = 0.0, rms: float = 0.01) -> Signal:
    """Where AdamW's first step would have gained 1, and gradients have grown."""
    first = 1.0 / ADAMW_LR
    return Signal(added=added, size=GROWN * first, first=first, rms=rms, loss=loss)


def run(guard: Guard, signals: list[Signal]) -> list[bool]:
    """Steps of a training that takes snapshots when due; which of them were violations."""
    verdicts = []
    for each in signals:
        verdicts.append(bool(guard.violated(each)))
        if verdicts[-1]:
            guard.activate()
            continue
        if guard.due:
            guard.keep()
        guard.updated()
    return verdicts


def feed(guard: Guard, losses: list[float], rms: float = 0.01) -> list[bool]:
    return run(guard, [signal(loss, rms=rms) for loss in losses])


def test_falling_and_noisy_losses_never_violate() -> None:
    g = generator(0)
    losses = [
        2.3 * math.exp(-t / 100) * (1 + 0.5 * float(torch.randn((), generator=g)))
        for t in range(500)
    ]
    guard = Guard(GuardConfig())
    assert not any(feed(guard, losses)) and guard.activations == 0


def test_a_loss_that_is_not_finite_violates_at_once() -> None:
    for bad in (math.nan, math.inf, -math.inf):
        assert feed(Guard(GuardConfig()), [1.0, bad]) == [False, True]
    assert feed(Guard(GuardConfig()), [math.nan]) == [True]


def test_a_rising_average_violates_after_the_warmup() -> None:
    guard = Guard(QUICK)
    assert feed(guard, [1.0, 10.0, 10.0]) == [False] * 3  # in the warm-up
    assert feed(guard, [10.0]) == [True]
    guard = Guard(QUICK)
    assert not any(feed(guard, [1.0] * 10 + [2.9]))  # one outlier; its average, 1.95, is below 2.05
    assert feed(guard, [2.9]) == [True]


def test_rare_large_losses_are_no_rise() -> None:
    """As batches of few examples have them, once most examples are learned."""
    guard = Guard(GuardConfig())
    assert not any(feed(guard, [1.6] * 50 + ([0.1] * 5 + [8.0, 6.0]) * 30))
    assert any(feed(guard, [5.0] * 12))


def test_few_examples_at_a_step_are_no_rise() -> None:
    """Whose losses are small and large in turn: most are above the limit, and so is the average."""
    guard, turns = Guard(GuardConfig()), [0.02, 0.02, 0.02, 0.5, 0.6, 0.4, 0.5]
    assert not any(feed(guard, [1.0] * 30 + [0.1] * 50 + turns * 30))
    assert guard.now.ema > guard.limit
    assert any(feed(guard, [0.5] * 12))


def test_another_problem_does_not_stop_the_training_for_good() -> None:
    """Losses that are high at good parameters too: of another task, or counted otherwise."""
    guard = Guard(GuardConfig())
    feed(guard, [1.0] * 50)
    assert sum(feed(guard, [100.0] * 1000)) == 1
    assert not guard.remaining


def test_a_snapshot_that_was_rising_does_not_break_at_once() -> None:
    guard = Guard(QUICK)
    run(guard, [signal(added=x) for x in (0.0, 0.9 * QUICK.rise)])
    guard.keep()
    assert run(guard, [signal(added=6 * QUICK.rise)] + [signal()] * 6) == [True] + [False] * 6


def test_there_is_no_first_snapshot_in_the_middle_of_trouble() -> None:
    guard = Guard(QUICK)
    guard.now.rise = 2 * 0.9 * QUICK.rise  # halved before it is looked at
    taken = []
    for _ in range(3):
        assert not guard.violated(signal())
        taken.append(guard.due)
        if guard.due:
            guard.keep()
        guard.updated()
    assert taken == [False, True, False]


def test_limit_has_a_margin_near_zero_and_for_negative_losses() -> None:
    guard = Guard(GuardConfig(factor=2.0, margin=0.1))
    feed(guard, [4.0])
    guard.now.best = 0.001
    assert guard.limit == pytest.approx(0.402)
    guard.now.best = -3.0
    assert guard.limit == pytest.approx(0.4)


def test_snapshots_are_taken_at_good_times_only() -> None:
    guard = Guard(QUICK)
    taken = []
    for t, loss in enumerate([1.0] * 6 + [1.4, 1.9, 1.9, 1.9, 1.0, 1.0, 1.0]):
        assert not guard.violated(signal(loss))
        if guard.due:
            taken.append(t)
            guard.keep()
        guard.updated()
    assert taken == [0, 4, 10]  # at steps 8 and 9 the average was on its way to the limit


def test_activation_goes_back_to_the_trend_of_the_snapshot() -> None:
    guard = Guard(QUICK)
    feed(guard, [1.0] * 4 + [0.5])
    kept = guard.now.ema
    assert feed(guard, [0.5, math.nan]) == [False, True]
    assert (guard.activations, guard.remaining, guard.now.ema) == (1, QUICK.steps, kept)
    assert not any(feed(guard, [0.7] * (QUICK.steps - 1))) and guard.remaining == 1
    feed(guard, [0.7])
    assert guard.remaining == 0


def test_learning_rate_is_the_geometric_mean_of_recent_updates() -> None:
    guard = Guard(QUICK)
    feed(guard, [1.0] * 5, rms=2e-4)
    guard.keep()
    feed(guard, [math.nan])
    assert guard.lr == pytest.approx(2e-4)
    feed(guard, [math.inf])  # under AdamW
    assert guard.lr == pytest.approx(2e-4 * RETREAT) and guard.activations == 2
    bold = Guard(QUICK)
    feed(bold, [1.0] * 5, rms=0.5)
    bold.keep()
    bold.activate()
    untried = Guard(QUICK)
    untried.activate()
    assert bold.lr == untried.lr == ADAMW_LR
    fixed = Guard(GuardConfig(lr=0.5))
    feed(fixed, [1.0, math.nan])
    assert fixed.lr == 0.5
    mixed = Guard(GuardConfig(decay=0.5))
    # A step that changes nothing says nothing, and before the first one there was none.
    run(mixed, [signal(rms=rms) for rms in (7.0, 1e-2, 1e-4, 0.0)])
    assert mixed.now.log_rms == pytest.approx(math.log(1e-3))


def test_a_rise_by_the_gradients_violates_without_a_loss_from_the_second_step() -> None:
    config = GuardConfig(rise=300.0)
    assert run(Guard(config), [signal(), signal(added=FAR * 299.0)]) == [False, False]
    assert run(Guard(config), [signal(), signal(added=FAR * 301.0)]) == [False, True]
    assert not any(run(Guard(config), [signal(added=29.0)] * 100))  # forgotten after ten steps
    assert any(run(Guard(config), [signal(added=35.0)] * 80))
    never = run(Guard(config), [Signal(5.0, 0.0, 0.0, 0.01)] * 9)
    assert not any(never)  # no gradient so far: there is no unit


def grown(times: float, added: float = 0.0) -> Signal:
    """Gradients so many times as large as the first ones."""
    each = signal(added=added)
    return each._replace(size=times * each.first)


def test_a_bold_step_is_forgiven_once_gradients_come_back() -> None:
    guard = Guard(GuardConfig(rise=300.0))
    bold = [grown(20.0, added=2 * 300.0), grown(70.0), grown(25.0)]
    assert not any(run(guard, [grown(20.0), *bold]))
    assert (guard.now.rise, guard.now.doubt) == (0.0, 0)
    assert guard.now.growth == pytest.approx(20.0)
    assert any(run(guard, bold))  # at once: it is soon after the other
    again = Guard(GuardConfig(rise=300.0))
    assert not any(run(again, [grown(20.0), *bold, *[grown(20.0)] * RESTED, *bold]))


def test_a_rise_after_which_gradients_stay_large_is_a_break() -> None:
    guard = Guard(GuardConfig(rise=300.0))
    large = [grown(20.0), grown(20.0, added=2 * 300.0), *[grown(50.0)] * DOUBT]
    assert run(guard, large) == [False, False, *[False] * (DOUBT - 1), True]
    assert guard.activations == 1


def test_no_snapshot_is_taken_in_doubt() -> None:
    guard = Guard(GuardConfig(rise=300.0, every=1))
    run(guard, [grown(20.0), grown(20.0, added=2 * 300.0), grown(70.0)])
    assert guard.now.doubt and not guard.due
    run(guard, [grown(20.0)])
    assert not guard.now.doubt and guard.kept is not None and guard.kept.rise == 0.0


def test_what_was_won_may_be_lost_again() -> None:
    """Where the first gradients are small beside what is to be learned, in steps of AdamW's."""
    for part, doubt in ((0.99, 0), (1.01, DOUBT)):
        guard = Guard(GuardConfig(rise=300.0))
        run(guard, [signal(added=-1000.0)] * 5 + [signal(added=AGAIN * 5000.0 * part)])
        assert guard.now.doubt == doubt and not guard.activations


@pytest.mark.parametrize("growth", [0.5, 1.0, 50.0])
def test_the_loss_may_rise_by_more_where_gradients_have_not_grown(growth: float) -> None:
    first = 1.0 / ADAMW_LR
    begun = Signal(added=0.0, size=growth * first, first=first, rms=0.01)
    for part, verdict in ((0.99, False), (1.01, True)):
        rise = begun._replace(added=FAR * 300.0 * max(1.0, GROWN / growth) * part)
        assert run(Guard(GuardConfig(rise=300.0)), [begun, rise]) == [False, verdict]


def test_a_loss_that_is_told_bounds_the_rise_more_closely() -> None:
    config = GuardConfig(rise=300.0, jump=10.0)
    for first, verdict in ((2.0, True), (4.0, False), (1000.0, False)):
        told = [signal(first), signal(first, added=FAR * 30.0)]
        assert run(Guard(config), told) == [False, verdict]


@pytest.mark.parametrize(("steps", "times"), [(None, 1), (1000, 1), (75, 1), (50, 1.5), (5, 15)])
def test_a_short_run_may_rise_by_more(steps: int | None, times: float) -> None:
    """Its steps are bolder, by what the rule has learned of so short a run."""
    config = GuardConfig(rise=300.0, jump=10.0)
    for part, verdict in ((0.99, False), (1.01, True)):
        rises = [signal(), signal(added=FAR * 300.0 * times * part)]
        assert run(Guard(config, steps), rises) == [False, verdict]
        told = [signal(2.0), signal(2.0, added=FAR * 20.0 * times * part)]
        assert run(Guard(config, steps), told) == [False, verdict]


def test_gradients_that_are_not_finite_violate_at_once() -> None:
    for bad in (Signal(math.nan, 1.0, 1.0, 0.1), Signal(0.0, math.inf, 1.0, 0.1)):
        assert run(Guard(GuardConfig()), [bad]) == [True]


def test_who_breaks_again_soon_waits_longer_and_is_judged_by_more() -> None:
    guard = Guard(GuardConfig(steps=4, rise=300.0))
    breaks = [signal(), signal(added=FAR * 301.0)]
    run(guard, breaks)
    assert (guard.remaining, guard.strikes) == (4, 1)
    run(guard, [signal()] * 4)
    assert guard.remaining == 0
    assert run(guard, [signal(), signal(added=301.0 * STRICT)]) == [False, True]
    assert (guard.remaining, guard.strikes) == (8, 2)
    run(guard, [signal()] * (8 + 9))  # and longer than AdamW
    assert run(guard, [signal(added=299.0)]) == [False]
    assert run(guard, [signal(added=FAR * 300.0)]) == [True]
    assert (guard.remaining, guard.strikes) == (4, 1)


def test_the_learned_optimizer_starts_from_a_snapshot_after_adamw() -> None:
    guard = Guard(GuardConfig(steps=3, every=100))
    run(guard, [signal(), signal(added=1e6)])
    run(guard, [signal()] * 3)
    assert guard.due


def test_guard_state_round_trip() -> None:
    guard, losses = Guard(QUICK), [1.0, 0.9, 0.8, 0.9, 0.8, math.nan, 0.9]
    feed(guard, losses)
    other = Guard(QUICK)
    other.load_state_dict(guard.state_dict())
    assert other.__dict__ == guard.__dict__
    assert feed(other, [0.9] * 7 + [9.0] * 3) == feed(guard, [0.9] * 7 + [9.0] * 3)


BAD_SETTINGS: list[dict[str, Any]] = [
    {"rise": "a"},
    {"rise": math.nan},
    {"jump": torch.ones(2)},
    {"factor": math.inf},
    {"decay": "x"},
    {"lr": "a"},
    {"lr": math.inf},
    {"weight_decay": None},
    {"steps": 1.5},
    {"every": math.nan},
    {"warmup": "a"},
    {"factor": 1.0},
    {"decay": 1.0},
    {"steps": 0},
    {"every": 0},
    {"lr": 0.0},
    {"margin": -1},
    {"rise": 0.0},
    {"jump": -1.0},
]


@pytest.mark.parametrize("bad", BAD_SETTINGS)
def test_config_refuses(bad: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"guard: {next(iter(bad))} must be") as caught:
        GuardConfig(**bad)
    assert "\n" not in str(caught.value)
