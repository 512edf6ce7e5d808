"""What decides a run's bits (settings and seed) and what does not (workers, the folder, other
random numbers).
"""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lo_framework.learned import load_optimizer, make_learned
from lo_framework.meta_train.growth import Stage
from lo_framework.meta_train.outer import OuterOptimizer
from lo_framework.meta_train.workers import ShardHost, WorkerSetup
from lo_framework.processes import Wire
from tests.meta_train.tools import (
    Forker,
    command,
    equal,
    final_state,
    metrics,
    same_run,
    tiny,
    train,
)

GROWING: dict[str, Any] = {
    "learned": "attention:width=4,heads=1",
    "estimator": "tbptt",
    "episode_length": "4-9",
}


@pytest.fixture(scope="module")
def one_worker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bits") / "run"
    train(out, **GROWING)
    return out


def test_same_seed_same_bits_whatever_others_draw(one_worker: Path, tmp_path: Path) -> None:
    """Global generators do not enter, and are not disturbed."""
    torch.manual_seed(12345)
    before = torch.random.get_rng_state()
    random.seed(99)
    legacy: Any = np.random.get_state()
    train(tmp_path / "run", **GROWING)
    same_run(tmp_path / "run", one_worker)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert random.random() == random.Random(99).random()
    now: Any = np.random.get_state()
    assert np.array_equal(now[1], legacy[1])


def test_another_seed_other_bits(one_worker: Path, tmp_path: Path) -> None:
    train(tmp_path / "run", **{**GROWING, "seed": 1})
    ours, theirs = final_state(tmp_path / "run")[1], final_state(one_worker)[1]
    assert ours["outer.theta.default"] != theirs["outer.theta.default"]
    assert metrics(tmp_path / "run")[0]["meta_loss"] != metrics(one_worker)[0]["meta_loss"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"estimator": "pes", "learned": "mlp:hidden=4"},
        {"estimator": "tbptt:segments=0,second_order=false"},
        {
            "optimizees": "mlp:hidden=4,batch=8,cnn:channels=2x2,batch=4",
            "learned": "attention-mlp:width=4,heads=1",
        },
    ],
)
def test_workers_do_not_matter(forker: Forker, tmp_path: Path, changes: dict[str, Any]) -> None:
    for workers in (1, 2, 3):
        argv = command(tmp_path / str(workers), workers=workers, **{**changes, "outer_steps": 2})
        assert forker.run(argv) == 0, forker.printed()
    same_run(tmp_path / "1", tmp_path / "2")
    same_run(tmp_path / "1", tmp_path / "3")


def test_more_workers_than_shards_is_fine(tmp_path: Path) -> None:
    train(tmp_path / "run", workers=4, shards=1, num_tasks=1)
    assert (
        len([name for name in final_state(tmp_path / "run")[1] if name.endswith(".generator")]) == 1
    )


def test_other_kinds_start_the_same_in_every_process() -> None:
    """A kind that draws its start from torch's global generator makes no run depend on it."""
    torch.manual_seed(3)
    first = Stage("lstm", {"hidden": 2}).build().theta()
    torch.manual_seed(4)
    assert equal(first, Stage("lstm", {"hidden": 2}).build().theta())
    assert torch.initial_seed() == 4


def test_shards_have_streams_of_their_own() -> None:
    host = ShardHost(WorkerSetup(tiny()), [0, 1])
    learned = make_learned("hyper-adamw")
    host.build(Stage(learned.kind, {}), None)
    states = host.dump()
    assert not torch.equal(states[0]["params"], states[1]["params"])
    host.build(Stage(learned.kind, {}, 1), None)
    assert not torch.equal(states[0]["params"], host.dump()[0]["params"]), "every stage draws anew"


@pytest.mark.parametrize("seed", [0, 2**31, 2**63 + 11])
def test_any_seed(seed: int, tmp_path: Path) -> None:
    host = ShardHost(WorkerSetup(tiny(seed=seed)), [0])
    host.build(Stage("hyper-adamw", {}), None)


def test_a_shard_goes_on_from_its_dump_with_the_same_bits() -> None:
    """What a checkpoint holds of a worker is all there is."""
    for estimator in ("tbptt", "pes", "es"):
        host = ShardHost(WorkerSetup(tiny(estimator=estimator, episode_length="4-9")), [0, 1])
        learned = make_learned("hyper-adamw")
        host.build(Stage(learned.kind, {}), None)
        host.estimate(learned.theta())
        saved = host.dump()
        expected = [host.estimate(learned.theta()) for _ in range(3)]
        other = ShardHost(WorkerSetup(tiny(estimator=estimator, episode_length="4-9")), [1, 0])
        other.build(Stage(learned.kind, {}), Wire.loads(Wire.dumps(saved)))
        for answer in expected:
            again = other.estimate(learned.theta())
            for shard, (grad, measured, _) in answer.items():
                assert equal(grad, again[shard][0]) and measured == again[shard][1]


def test_outer_goes_on_from_its_dump_with_the_same_bits() -> None:
    learned = make_learned("attention:width=4,heads=1")
    g = torch.Generator().manual_seed(0)
    grads = [
        {n: torch.randn(x.shape, generator=g) for n, x in learned.theta().items()} for _ in range(6)
    ]
    whole = OuterOptimizer(learned, 0.01, 1.0, 6)
    for grad in grads[:3]:
        whole.step(grad)
    saved = {name: x.clone() for name, x in whole.dump().items()}
    other = OuterOptimizer(learned, 0.01, 1.0, 6)
    other.load(saved, 3)
    for grad in grads[3:]:
        assert whole.step(grad) == other.step(grad)
    assert equal(whole.theta, other.theta)
    assert equal(whole.dump(), other.dump())


def test_a_return_to_the_incumbent_survives_a_resume(tmp_path: Path) -> None:
    """Steps far too large make the run go back to its incumbent again and again, with a pace that
    is state too.
    """
    settings: dict[str, Any] = {**GROWING, "outer_lr": 1e3, "validate_every": 1, "outer_steps": 20}
    settings["checkpoint_every"] = 7
    train(tmp_path / "whole", **settings)
    damping = np.frombuffer(final_state(tmp_path / "whole")[1]["outer.damping"])
    assert damping < 1.0, "it did go back"
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    (tmp_path / "cut" / "state" / "state-0000000020.safetensors").unlink()
    train(tmp_path / "cut", resume=True, **settings)
    same_run(tmp_path / "cut", tmp_path / "whole")


def test_the_incumbent_shares_no_memory_with_what_goes_on_learning(tmp_path: Path) -> None:
    """A view of the outer parameters would go on changing after it was chosen."""
    best = train(tmp_path / "run")
    file = load_optimizer(tmp_path / "run" / "optimizer.safetensors")
    assert equal(dict(sorted(best.theta.items())), dict(sorted(file.tensors.items())))
    learned = make_learned("hyper-adamw")
    outer = OuterOptimizer(learned, 0.01, 1.0, 4)
    outer.step({name: torch.ones_like(x) for name, x in learned.theta().items()})
    assert not learned.theta()["default"].any(), "the outer optimizer moves its own copy"


def test_the_wire_changes_nothing() -> None:
    tensors = {
        "f": torch.randn(3, 2, generator=torch.Generator().manual_seed(0)),
        "scalar": torch.tensor(1.5),
        "clock": torch.tensor([3, 4]),
        "alive": torch.tensor([True, False]),
        "strided": torch.arange(6.0).view(2, 3).T,
        "empty": torch.empty(2, 0),
        "generator": torch.Generator().get_state(),
    }
    back = Wire.loads(Wire.dumps(({"s": tensors}, [1.5], "kind", None)))
    assert equal(back[0]["s"], tensors) and back[1:] == ([1.5], "kind", None)
    assert all(x.dtype == tensors[name].dtype for name, x in back[0]["s"].items())
    assert back[0]["s"]["f"].data_ptr() % 64 == 0, (
        "the alignment of torch's own tensors, which kernels see"
    )
