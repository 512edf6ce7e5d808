"""What every task must do, asked of one."""

from __future__ import annotations

import torch
from torch.func import grad, grad_and_value, vmap

from lo_framework.layout import Layout


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


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
