"""Shards whose tasks are drawn anew: what decides them, kills, workers, recordings."""

from __future__ import annotations

import gc
import json
import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from lo_framework.files.checkpoint import load_latest_state, save_state
from lo_framework.learned import make_learned
from lo_framework.meta_train.cli import read
from lo_framework.meta_train.folder import RunFolder
from lo_framework.meta_train.growth import Stage
from lo_framework.meta_train.workers import ShardHost, WorkerSetup
from lo_framework.processes import Wire
from lo_framework.spec import UserError
from tests.meta_train.tools import Forker, command, equal, final_state, same_run, tiny, train

STAGE = Stage("hyper-adamw", {})
VARIED: dict[str, Any] = {
    "optimizees": "quadratic:dim=2..6,std=0.01,mlp:hidden=2..9,layers=1..2,batch=4",
    "episode_length": "3-9",
    "outer_steps": 7,
    "checkpoint_every": 3,
    "hide_progress": 0.25,
    "step_range": 2.0,
    "probes": "quadratic:dim=7@4",
}


def host(*numbers: int, **changes: Any) -> ShardHost:
    host = ShardHost(WorkerSetup(tiny(**{**VARIED, **changes})), [*numbers])
    host.build(STAGE, None)
    return host


def names(host: ShardHost, count: int) -> list[list[str]]:
    """The task of every shard in ``count`` outer steps."""
    theta, seen = make_learned("hyper-adamw").theta(), []
    for _ in range(count):
        host.estimate(theta)
        seen.append([shard.task.name for shard in host.shards.values()])
    return seen


def test_shards_draw_a_task_of_their_own_at_every_episode() -> None:
    seen = [*zip(*names(host(0, 1, 2, 3), 20))]
    for shard, drawn in enumerate(seen):
        assert len(set(drawn)) > 2, "anew"
        assert all(name.startswith(("quadratic", "mlp")[shard // 2]) for name in drawn)
    assert seen[0] != seen[1], "each its own"


def test_all_tasks_of_a_shard_share_an_episode() -> None:
    shards = host(0, 1, episode_length="6-40", unroll_length=3, num_tasks=8)
    theta, first = make_learned("hyper-adamw").theta(), []
    for step in range(30):
        for shard in shards.shards.values():
            state = shard.state
            for x in (state.t, state.horizon, state.stop, *state.drawn.values()):
                assert len(set(x.tolist())) == 1
            assert len(state.t) == 4 and not torch.equal(*state.carry.params[:2])
            if step == 0:
                first.append((int(state.stop[0]), int(state.horizon[0])))
            elif shard.episode:
                assert state.stop[0] == state.horizon[0]
        shards.estimate(theta)
    assert any(stop < horizon for stop, horizon in first), "the first is cut at a random place"


def test_a_task_is_a_function_of_seed_shard_and_episode() -> None:
    """Whatever else was drawn: another learned optimizer, other estimators, other lengths."""
    one, other = host(1), host(0, 1, estimator="pes", objective="train")
    for episode in (0, 5, 2):
        one.shards[1].begin(episode)
        other.shards[1].begin(episode)
        assert one.shards[1].task.name == other.shards[1].task.name
    drawn = set()
    for seed in range(6):
        shard = host(2, seed=seed).shards[2]
        shard.begin(3)
        drawn.add(shard.task.name)
    assert len(drawn) > 3


@pytest.mark.parametrize("estimator", ["tbptt", "pes", "es"])
def test_a_dump_has_all_there_is(estimator: str) -> None:
    shards, theta = host(0, 3, estimator=estimator), make_learned("hyper-adamw").theta()
    names(shards, 3)
    saved = shards.dump()
    assert any(int(x["episode"]) for x in saved.values())
    expected = [shards.estimate(theta) for _ in range(6)]
    again = ShardHost(WorkerSetup(shards.config), [3, 0])
    again.build(STAGE, Wire.loads(Wire.dumps(saved)))
    for answer in expected:
        for number, (grad, measured, _) in again.estimate(theta).items():
            assert equal(grad, answer[number].grad) and measured == answer[number].metrics


def test_fixed_families_beside_varied_ones_have_the_bits_of_alone() -> None:
    settings = {"hide_progress": 0.0, "step_range": 1.0, "probes": "none"}
    theta = make_learned("hyper-adamw").theta()
    alone = host(0, 1, optimizees="quadratic:dim=3", **settings)
    beside = host(0, 1, 2, optimizees="quadratic:dim=3,quadratic:dim=3..4", **settings)
    for _ in range(4):
        (ours, theirs) = (each.estimate(theta) for each in (alone, beside))
        assert all(equal(ours[n].grad, theirs[n].grad) for n in (0, 1))
    assert "episode" not in beside.dump()[0] and "episode" in beside.dump()[2]


def test_a_shard_of_which_half_has_died_begins_anew() -> None:
    shards = host(0, episode_length="900", num_tasks=8, unroll_length=3)
    shard = shards.shards[0]
    shard.begin(1)
    for dead, episode in ((1, 1), (2, 2)):
        alive = torch.ones(4, dtype=torch.bool)
        alive[:dead] = False
        stop = torch.where(alive, shard.state.stop, shard.state.t)
        shard.state.stop.copy_(stop)
        shards.estimate(make_learned("hyper-adamw").theta())
        assert shard.episode == episode


def test_recordings_of_past_tasks_are_dropped() -> None:
    from torch.fx import graph_module

    shards = host(2, engine="graph", episode_length="3", optimizees=VARIED["optimizees"])
    past, theta = [], make_learned("hyper-adamw").theta()
    for _ in range(3):
        shards.estimate(theta)
        past.append(weakref.ref(shards.shards[2].estimator))
    gc.collect()
    assert [each() is None for each in past] == [True, True, False]
    assert not graph_module._loader.eval_cache


def test_a_killed_run_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    train(tmp_path / "whole", **VARIED)
    for cut in ("0000000007", "0000000006"):
        out = tmp_path / cut
        shutil.copytree(tmp_path / "whole", out)
        for state in (out / "state").iterdir():
            if cut == "0000000006" or cut in state.name:
                state.unlink()
        train(out, resume=True, **VARIED)
        same_run(out, tmp_path / "whole")
    episodes = [x for name, x in final_state(out)[1].items() if name.endswith(".episode")]
    assert len(episodes) == 4


def test_workers_do_not_matter(forker: Forker, tmp_path: Path) -> None:
    for workers in (1, 2):
        argv = command(tmp_path / str(workers), workers=workers, **VARIED)
        assert forker.run(argv) == 0, forker.printed()
    same_run(tmp_path / "1", tmp_path / "2")


def test_bare_names_vary() -> None:
    settings: dict[str, Any] = {"optimizees": "mlp", "probes": "none"}
    (family,) = WorkerSetup(tiny(**settings, vary="usual")).make_pool()
    assert not family.is_fixed and family.named().name == "mlp/digits"
    (family,) = WorkerSetup(tiny(**settings, vary="none")).make_pool()
    assert family.is_fixed and family.name == "mlp/digits"
    lengths = {
        (vary, length): tiny(**settings, vary=vary, episode_length=length).named_steps
        for vary in ("usual", "none")
        for length in ("50-1000", "70")
    }
    assert lengths == {
        ("usual", "50-1000"): 200,
        ("usual", "70"): 70,
        ("none", "50-1000"): 1000,
        ("none", "70"): 70,
    }


def test_runs_from_before_there_were_variations_stay_as_named(tmp_path: Path) -> None:
    """Whatever the default is: their own file does not say it."""
    train(tmp_path / "run")
    file = tmp_path / "run" / "config.json"
    written = json.loads(file.read_text())
    assert written.pop("vary") == "none"
    file.write_text(json.dumps(written))
    for words in (["--config", str(file)], ["--out", str(file.parent), "--resume"]):
        _, given, settings = read(words)
        assert given["vary"] == settings["vary"] == "none"
    file.write_text('{"outer_steps": 3}')
    assert "vary" not in read(["--config", str(file)])[1]
    state = load_latest_state(file.parent / "state")
    assert state is not None and state.meta["config"].pop("vary") == "none"
    folder = RunFolder(file.parent, tiny(), [])
    save_state(file.parent / "state", state.step, state.tensors, state.meta)
    with pytest.raises(UserError, match="other stages"):  # than none: its settings fit
        folder.load()
    with pytest.raises(UserError, match="--vary was 'none' and is now 'usual'"):
        RunFolder(file.parent, tiny(vary="usual"), []).load()
