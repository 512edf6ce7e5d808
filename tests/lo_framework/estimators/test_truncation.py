"""Clocks of the truncated unroll: horizons, desynchronisation, masks, restarts."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from lo_framework.episode import Need, canonical, tile_theta
from lo_framework.estimators.state import UnrollState
from lo_framework.estimators.truncation import Truncation, Unroller
from lo_framework.inner.step import Family
from lo_framework.objectives import make_objective
from lo_framework.spec import UserError
from tests.lo_framework.small_tasks import PlainSGD, PlainSGDConfig, TinyNet, copied, doubled


def unroller(
    unroll_length: int, episode: tuple[int, int], num: int, copies: int = 1, kind: str = ""
) -> Unroller:
    learned = doubled(kind) if kind else PlainSGD(PlainSGDConfig(lr=0.1))
    truncation = Truncation(unroll_length=unroll_length, episode=episode)
    return Unroller(Family(TinyNet(), learned), make_objective("valid"), truncation, num, copies)


def step_on(u: Unroller, state: UnrollState) -> UnrollState:
    theta = tile_theta(u.family.learned.theta(), u.num * u.copies)
    with torch.no_grad():
        steps = range(u.truncation.unroll_length)
        carry, _ = u.run(u.family.step(Need.HELD), theta, state.carry, state, steps)
    return u.advance(state, carry)


def test_horizons_are_log_uniform() -> None:
    truncation, g = Truncation(episode=(20, 500)), torch.Generator().manual_seed(0)
    drawn = torch.tensor([truncation.horizon(g) for _ in range(4000)]).double()
    assert drawn.min() >= 20 and drawn.max() <= 500
    assert drawn.min() < 22 and drawn.max() > 480
    for share in (0.25, 0.5, 0.75):
        expected = 20 * (501 / 20) ** share
        assert float(drawn.quantile(share)) == pytest.approx(expected, rel=0.08)


@pytest.mark.parametrize("u", [0.0, 0.5, 1 - 2**-53])
def test_horizons_at_the_ends_of_the_range(u: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """exp(log(n)) is just below n for many n, 200 among them."""
    monkeypatch.setattr(
        torch, "rand", lambda *size, **options: torch.tensor(u, dtype=torch.float64)
    )
    for n in (1, 2, 5, 7, 200, 1999):
        assert Truncation(episode=(n, n)).horizon(torch.Generator()) == n
        assert Truncation(episode=(n, 2 * n)).horizon(torch.Generator()) in range(n, 2 * n + 1)


@pytest.mark.parametrize("length, episode", [(0, (1, 1)), (5, (0, 4)), (5, (10, 9))])
def test_bad_truncations(length: int, episode: tuple[int, int]) -> None:
    with pytest.raises(UserError, match="at least 1"):
        Truncation(unroll_length=length, episode=episode)


def test_first_episodes_are_cut_at_different_places() -> None:
    u = unroller(10, (95, 95), num=300)
    state = u.init(torch.Generator().manual_seed(0))
    assert (state.horizon == 95).all() and (state.t == 0).all()
    counts = {int(stop): int((state.stop == stop).sum()) for stop in state.stop.unique()}
    assert set(counts) == {10, 20, 30, 40, 50, 60, 70, 80, 90, 95}
    assert all(10 <= n <= 55 for stop, n in counts.items() if stop < 95)  # 300 x 10 / 95 = 32 each


def test_the_shard_stays_desynchronised() -> None:
    """The number of restarts in a truncation stays near its mean from then on, instead of all at
    once every few.
    """
    u = unroller(10, (40, 80), num=60)
    state, restarts = u.init(torch.Generator().manual_seed(0)), []
    for _ in range(24):
        state, done = u.restart_finished(state)
        restarts.append(int(done.sum()))
        state = replace(state, t=torch.minimum(state.t + 10, state.stop))
    assert restarts[0] == 0 and max(restarts[1:]) < 30 and min(restarts[4:]) > 0


def test_masks_and_progress() -> None:
    u = unroller(4, (6, 6), num=2)
    state = u.init(torch.Generator().manual_seed(0))
    state = replace(
        state, t=torch.tensor([4, 0]), stop=torch.tensor([6, 3]), horizon=torch.tensor([6, 8])
    )
    drawn = [u.draw(state, i) for i in range(4)]
    assert torch.stack([live for _, live in drawn], 1).tolist() == [[1, 1, 0, 0], [1, 1, 1, 0]]
    progress = torch.stack([draw.clock.progress for draw, _ in drawn], 1)
    torch.testing.assert_close(
        progress, torch.tensor([[4 / 6, 5 / 6, 1, 1], [0, 1 / 8, 2 / 8, 3 / 8]])
    )
    step = u.family.step(Need.HELD)
    theta = tile_theta(u.family.learned.theta(), 2)
    carry, sums = u.run(step, theta, state.carry, copied(state), range(4))
    by_hand, again = torch.zeros(2, dtype=torch.float64), copied(state)
    at = state.carry
    for i in range(4):
        draw, live = u.draw(again, i)
        at, losses = step(theta, at, draw)
        by_hand += torch.where(live > 0, u.task.normalize(losses.held), 0.0)
    torch.testing.assert_close(sums.score, by_hand)
    after = u.advance(state, carry)
    assert after.t.tolist() == [6, 3] and after.stop.tolist() == [6, 3]


@pytest.mark.parametrize("copies", [1, 2])
def test_restart_of_finished_tasks_only(copies: int) -> None:
    u = unroller(3, (6, 12), num=4, copies=copies, kind="hyper-adamw")
    state = step_on(u, u.init(torch.Generator().manual_seed(0)))
    state = replace(state, t=torch.tensor([3, 3, 3, 3]), stop=torch.tensor([3, 6, 3, 6]))
    before = copied(state)
    after, done = u.restart_finished(state)
    assert done.tolist() == [True, False, True, False]
    assert after.t.tolist() == [0, 3, 0, 3] and state.t.tolist() == [3, 3, 3, 3]
    assert (after.stop[done] == after.horizon[done]).all() and (after.stop[~done] == 6).all()
    assert torch.equal(after.horizon[~done], before.horizon[~done])
    mask = done.repeat(copies)
    new, kept = ({"params": c.params, **c.state} for c in (after.carry, before.carry))
    for name, x in new.items():
        old = kept[name]
        assert torch.equal(x[~mask], old[~mask]) and not torch.equal(x[mask], old[mask])
    assert (after.carry.state["step"][mask] == 0).all() and (
        after.carry.buffers["bn.count"][mask] == 0
    ).all()
    rows = after.carry.params.reshape(copies, 4, -1)[:, done]
    assert torch.equal(rows[0], rows[-1]) and not torch.equal(rows[0][0], rows[0][1])
    fresh, _ = u.restart_finished(after)
    assert fresh is after


def test_a_dead_task_ends_its_episode_whichever_copy_died() -> None:
    u = unroller(3, (9, 9), num=3, copies=2)
    state = replace(u.init(torch.Generator().manual_seed(0)), stop=torch.tensor([9, 9, 9]))
    alive = torch.tensor([True, True, False, True, False, True])
    after = u.advance(state, state.carry._replace(alive=alive))
    assert after.t.tolist() == [3, 3, 3] and after.stop.tolist() == [9, 3, 3]
    restarted, done = u.restart_finished(after)
    assert done.tolist() == [False, True, True] and restarted.carry.alive.all()


def test_canonical_is_detached_contiguous_and_apart() -> None:
    carry = unroller(3, (9, 9), num=2).init(torch.Generator().manual_seed(0)).carry
    strided = carry._replace(params=carry.params.t().contiguous().t().requires_grad_())
    clean = canonical(strided)
    assert (
        clean.params.is_contiguous()
        and not clean.params.requires_grad
        and torch.equal(clean.params, strided.params)
    )
    assert clean.params.data_ptr() != strided.params.data_ptr()


def test_horizon_mean_for_the_record() -> None:
    """The mean of the distribution, (b - a) / log(b / a): catches a uniform draw, whose mean is far
    higher.
    """
    g = torch.Generator().manual_seed(1)
    drawn = [Truncation(episode=(10, 1000)).horizon(g) for _ in range(3000)]
    assert sum(drawn) / 3000 == pytest.approx(990 / math.log(100), rel=0.08)


def drawing(**settings: float) -> Unroller:
    truncation = Truncation(unroll_length=5, episode=(10, 40), **settings)
    learned = PlainSGD(PlainSGDConfig(lr=0.1))
    return Unroller(Family(TinyNet(), learned), make_objective("valid"), truncation, 400)


def test_hidden_progress_is_an_unknown_clock() -> None:
    u = drawing(hide_progress=0.25)
    state = u.init(torch.Generator().manual_seed(0))
    hidden = state.drawn["hidden"]
    assert float(hidden.float().mean()) == pytest.approx(0.25, abs=0.06)
    draw, _ = u.draw(replace(state, t=torch.full((400,), 3)), 2)
    assert not draw.clock.progress[hidden].any() and not draw.clock.horizon[hidden].any()
    assert torch.equal(draw.clock.horizon[~hidden], state.horizon[~hidden].float())
    assert (draw.clock.progress[~hidden] > 0).all()
    again, done = u.restart_finished(replace(state, t=state.stop.clone()))
    assert done.all() and not torch.equal(again.drawn["hidden"], hidden), "drawn anew"


def test_steps_are_scaled_by_episode() -> None:
    u = drawing(step_range=10.0)
    state = u.init(torch.Generator().manual_seed(0))
    scale = state.drawn["scale"]
    logs = scale.log10()
    assert logs.min() < -0.95 and logs.max() > 0.95 and abs(float(logs.mean())) < 0.1
    draw, _ = u.draw(state, 0)
    step, theta = u.family.step(Need.HELD), tile_theta(u.family.learned.theta(), u.num)
    plain, _ = step(theta, state.carry, draw._replace(scale=()))
    scaled, _ = step(theta, state.carry, draw)
    start = state.carry.params
    torch.testing.assert_close(scaled.params - start, scale[:, None] * (plain.params - start))


def test_nothing_more_is_drawn_unless_asked_for() -> None:
    state = drawing().init(torch.Generator().manual_seed(0))
    assert state.drawn == {}


def test_a_share_of_the_episodes_gets_longer_in_place_of_a_restart() -> None:
    u = drawing(prolong=0.5, hide_progress=0.5)
    state = u.init(torch.Generator().manual_seed(0))
    alive = torch.arange(400) % 4 > 0
    carry = state.carry._replace(params=state.carry.params + 1.0, alive=alive)
    ended = replace(state, carry=carry, t=state.stop.clone())
    after, fresh = u.restart_finished(ended)
    longer = ~fresh
    assert not (longer & ~alive).any(), "what is not finite begins anew"
    assert float(longer[alive].float().mean()) == pytest.approx(0.5, abs=0.1)
    assert torch.equal(after.t, torch.where(longer, ended.t, 0))
    assert torch.equal(after.carry.params[longer], carry.params[longer])
    added = (after.horizon - ended.t)[longer]
    assert (added >= 10).all() and (added <= 40).all()
    assert torch.equal(after.stop, after.horizon)
    assert not torch.equal(after.drawn["hidden"][longer], state.drawn["hidden"][longer])


@pytest.mark.parametrize("copies", [1, 2])
def test_an_episode_in_common_gets_longer_as_a_whole(copies: int) -> None:
    u = replace(drawing(prolong=0.9, step_range=2.0), num=4, copies=copies, episode=2)
    kinds = set()
    for seed in range(40):
        state = u.init(torch.Generator().manual_seed(seed))
        after = u.prolonged(replace(state, t=state.stop.clone()))
        kinds.add(after is None)
        if after is not None:
            assert len(set((after.horizon - state.stop).tolist())) == 1
            assert len(set(after.drawn["scale"].tolist())) == 1 and not after.over
    assert kinds == {True, False}
    dead = torch.ones(4 * copies, dtype=torch.bool).index_fill(0, torch.tensor([1]), False)
    assert u.prolonged(replace(state, carry=state.carry._replace(alive=dead))) is None


@pytest.mark.parametrize(
    "settings", [{"hide_progress": 1.5}, {"step_range": 0.5}, {"prolong": 1.0}]
)
def test_impossible_draws(settings: dict[str, float]) -> None:
    with pytest.raises(UserError, match="must be in"):
        drawing(**settings)


@pytest.mark.parametrize("episode", [0, 3])
def test_an_episode_in_common(episode: int) -> None:
    """All tasks share it; the first is cut at a random place, and none restarts by itself."""
    stops = set()
    for seed in range(20):
        u = replace(drawing(step_range=2.0), num=4, episode=episode)
        state = u.init(torch.Generator().manual_seed(seed))
        for x in (state.horizon, state.stop, state.drawn["scale"]):
            assert len(x) == 4 and len(set(x.tolist())) == 1
        stops.add(bool(state.stop[0] < state.horizon[0]))
        dead = replace(state, t=torch.tensor([0, 0, 0, int(state.stop[0])]))
        again, done = u.restart_finished(dead)
        assert again is dead and not done.any() and not dead.over
        assert replace(state, t=torch.cat([state.stop[:2], state.t[:2]])).over
    assert stops == ({True, False} if episode == 0 else {False})
