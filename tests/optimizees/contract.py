"""What every task must do, asked of one."""

from __future__ import annotations

import json

import pytest
import torch
from torch.func import grad, grad_and_value, vmap

import lo_framework as lo
from lo_framework.estimators import Truncation, make_estimator
from lo_framework.eval.cli import main
from lo_framework.inner.step import Family
from lo_framework.layout import Layout
from lo_framework.learned import make_learned
from lo_framework.meta_train.cli import main as meta_train
from lo_framework.objectives import make_objective
from lo_framework.spec import UserError
from tests.eval.sharpness.evaluations import optimizer_file, tiny_level

FLAGS = [*("--steps", "3", "--seeds", "2", "--tuning-seeds", "1", "--grid-size", "2")]
FLAGS += ["--progress", "none", "--workers", "1"]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def make(spec, folder):
    (task,) = lo.make_tasks(spec, data_dir=folder)
    return task


def refused(spec, folder):
    """The one line that says why; nothing is left behind."""
    before = sorted(folder.rglob("*"))
    with pytest.raises(UserError) as error:
        make(spec, folder)
    assert "\n" not in str(error.value)
    assert sorted(folder.rglob("*")) == before
    return str(error.value)


def stacked(dicts):
    return {k: torch.stack([d[k] for d in dicts]) for k in dicts[0]}


def same_bits_twice(make):
    """Two tasks that are made alike start, draw, lose and measure to the same bits."""
    one, two = (_bits(make()) for _ in range(2))
    assert len(one) == len(two) > 4
    assert all(torch.equal(a, b) for a, b in zip(one, two))


def _bits(task):
    params, buffers = task.init(seeded())
    batch = task.batch("train", seeded(1), (2,))
    rows = tuple(x[0] for x in batch)
    grads, (loss, _) = grad_and_value(task.loss, has_aux=True)(
        params, buffers, rows, torch.tensor(3)
    )
    measured = task.metrics(params, buffers, task.full("valid"))
    return [*params.values(), *batch, *grads.values(), loss, *measured.values()]


def vmapped_equals_looped(task, atol=2e-6):
    """Losses, both derivatives and metrics of three copies."""
    inits = [task.init(seeded(k))[0] for k in range(3)]
    batch, noise = task.batch("train", seeded(9), (3,)), torch.arange(3)

    def loss(p, rows, n):
        return task.loss(p, {}, rows, n)[0]

    def slope(p, rows, n):
        return sum((g**2).sum() for g in grad(loss)(p, rows, n).values())

    def everything(p, rows, n):
        value, second = grad(loss)(p, rows, n), grad(slope)(p, rows, n)
        return value, second, task.metrics(p, {}, rows), task.normalize(loss(p, rows, n))

    together = vmap(everything)(stacked(inits), batch, noise)
    for k in range(3):
        alone = everything(inits[k], tuple(x[k] for x in batch), noise[k])
        for mine, theirs in zip(
            torch.utils._pytree.tree_leaves(alone), torch.utils._pytree.tree_leaves(together)
        ):
            torch.testing.assert_close(theirs[k], mine, atol=atol, rtol=1e-4)
        assert all(g.abs().amax() > 0 for g in alone[1].values())


def roles(task):
    """Role by name, as learned optimizers see it."""
    layout = Layout.of({name: p.shape for name, p in task.init(seeded())[0].items()})
    return {slot.name: slot.role for slot in layout.slots}


def renamed(params, names):
    """Parameters under the names that another module has for them, all moved a little: gains of 1
    and biases of 0 would hide a mistake. Ours, and theirs.
    """
    moved = {k: v + 0.2 * torch.randn(v.shape, generator=seeded(len(k))) for k, v in params.items()}
    theirs = {}
    for name, value in moved.items():
        for a, b in names.items():
            name = name.replace(a, b)
        theirs[name] = value
    return moved, theirs


def meta_gradients_are_those_of_any_engine(task):
    """By the plain engine and by the recording one: the same bits, through second derivatives."""
    learned, gradients = make_learned("hyper-adamw"), []
    for engine in ("eager", "graph"):
        estimator = make_estimator(
            "tbptt",
            Family(task, learned, engine),
            make_objective("valid"),
            Truncation(unroll_length=3, episode=(3, 3)),
            2,
        )
        theta = learned.theta()
        estimate, _ = estimator.estimate(theta, estimator.init_state(theta, seeded()))
        gradients.append(estimate.grad)
    assert any(v.any() for v in gradients[0].values())
    for key, value in gradients[0].items():
        assert torch.isfinite(value).all()
        assert torch.equal(value, gradients[1][key]), key


def meta_trains(specs, folder, out):
    flags = {
        **{"out": out, "optimizees": specs, "data-dir": folder, "learned": "hyper-adamw"},
        **{"outer-steps": 2, "unroll-length": 3, "episode-length": 3, "num-tasks": 2},
        **{"shards": 2, "workers": 1, "probes": "none"},
    }
    words = [str(x) for key, value in flags.items() for x in (f"--{key}", value)]
    assert meta_train([*words, "--no-evaluate"]) == 0
    assert (out / "optimizer.safetensors").is_file()


def transferred(specs, folder, out):
    """The content of transfer.json, once its report has been drawn again."""
    words = ["--optimizees", specs, "--data-dir", str(folder), *FLAGS, "--out", str(out)]
    file = optimizer_file(out.with_name("run"))
    assert main(["transfer", "--learned", str(file), *words]) == 0
    assert main(["report", str(out)]) == 0
    return json.loads((out / "transfer.json").read_text())


def sharpness_is_measured(specs, folder, out):
    words = ["--optimizees", specs, "--data-dir", str(folder), *FLAGS, "--out", str(out)]
    file = optimizer_file(out.with_name("run"))
    more = ["--radii", "0.01", "--baselines", "adamw"]
    with tiny_level():
        assert main(["sharpness", "--learned", str(file), *words, *more]) == 0
    for arm in json.loads((out / "sharpness.json").read_text())["arms"]:
        assert arm["failure"] == ""
        for run in arm["runs"]:
            assert run["failure"] == "" and run["equal"]["failures"] == {}
