"""The probe on runs whose updates are known: what it says is what algebra says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lo_framework.eval.sharpness.matched import at_equal
from lo_framework.eval.sharpness.probe import Correlation, Probe, Step
from lo_framework.layout import Layout
from lo_framework.optimizees import make_tasks
from lo_framework.regularizers.sam import SAM, SAMConfig
from tests.eval.sharpness.problems import F64, generator, small_task

K, STEPS, RHO = 2, 6, 0.3


def run(task, update, dtype=torch.float32, steps=STEPS):
    """K runs of ``params + update(g, correction)``; also all g and corrections, ``[T, K, N]``."""
    starts = [task.init(generator(k)) for k in range(K)]
    layout = Layout.of({name: p.shape for name, p in starts[0][0].items()})
    flats = torch.stack([layout.flatten(p) for p, _ in starts]).to(dtype)
    buffers = {name: torch.stack([b[name] for _, b in starts]).to(dtype) for name in starts[0][1]}
    g, recorded, vectors = generator(9), [], []
    for t in range(steps):
        batch = tuple(
            x.to(dtype) if x.is_floating_point() else x for x in task.batch("train", g, (K,))
        )
        noise = torch.arange(K) + 10 * t

        def one(flat, own, rows, seed):
            def loss(at):
                return task.loss(layout.unflatten(at), own, rows, seed)[0]

            grad = torch.func.grad(loss)(flat)
            return grad, torch.func.grad(loss)(flat + RHO * grad / grad.norm()) - grad

        grads, corrections = torch.func.vmap(one)(flats, buffers, batch, noise)
        after = flats + update(grads, corrections)
        recorded.append(Step(flats, after, buffers, batch, noise))
        vectors.append((grads.double(), corrections.double()))
        flats = after
    return layout, recorded, *(torch.stack(x) for x in zip(*vectors))


def probed(task, layout, steps, train_data=None) -> Correlation:
    """The curves of a whole run."""
    probe = Probe(task, layout, SAM(SAMConfig(rho=RHO)), train_data=train_data)
    for step in steps:
        probe.look(step)
    return probe.found()


def cosine(a, b):
    return ((a * b).sum(-1) / a.norm(dim=-1) / b.norm(dim=-1)).T.numpy()


def test_sam_sgd_is_what_algebra_says():
    task = small_task()
    layout, steps, g, c = run(task, lambda g, c: -0.1 * (g + c), F64)
    found = probed(task, layout, steps)
    np.testing.assert_allclose(found.cosine_orthogonal, 1.0, atol=1e-6)
    np.testing.assert_allclose(found.cosine_correction, cosine(g + c, c), atol=1e-8)
    np.testing.assert_allclose(found.cosine_gradient, cosine(g + c, g), atol=1e-8)
    np.testing.assert_allclose(
        found.correction_ratio, (c.norm(dim=-1) / g.norm(dim=-1)).T, rtol=1e-8
    )
    step_size = 0.1 * ((g + c) * g).sum(-1) / (g * g).sum(-1)
    np.testing.assert_allclose(found.step_size, step_size.T, rtol=1e-8)
    np.testing.assert_allclose(found.path_length, 0.1 * (g + c).norm(dim=-1).cumsum(0).T, rtol=1e-8)
    assert found.loss.shape == (K, STEPS)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_plain_sgd_has_no_orthogonal_component_and_spreads_no_nan(dtype):
    task = small_task()
    layout, steps, _, _ = run(task, lambda g, c: -0.1 * g, dtype)
    found = probed(task, layout, steps)
    assert np.isnan(found.cosine_orthogonal).all() and np.isnan(found.train_loss).all()
    for name in (
        "cosine_correction",
        "cosine_gradient",
        "correction_ratio",
        "step_size",
        "path_length",
    ):
        assert np.isfinite(getattr(found, name)).all(), name
    np.testing.assert_allclose(found.cosine_gradient, 1.0, atol=1e-5)
    np.testing.assert_allclose(found.step_size, 0.1, rtol=1e-3)


def test_an_optimizer_that_goes_elsewhere_is_told_apart():
    task = small_task()
    layout, steps, _, _ = run(task, lambda g, c: -0.1 * (g - c), F64)
    found = probed(task, layout, steps)
    np.testing.assert_allclose(found.cosine_orthogonal, -1.0, atol=1e-6)


def test_no_update_is_undefined_and_harms_no_other_step():
    task = small_task()
    layout, steps, _, _ = run(task, lambda g, c: -0.1 * (g + c), steps=3)
    steps[1] = steps[1]._replace(after=steps[1].params)
    found = probed(task, layout, steps)
    for curve in (found.cosine_orthogonal, found.cosine_gradient, found.cosine_correction):
        assert np.isnan(curve).tolist() == [[False, True, False]] * K
    assert (found.step_size[:, 1] == 0).all()


def test_steps_between_count_for_the_path():
    task = small_task()
    layout, steps, _, _ = run(task, lambda g, c: -0.1 * g, steps=3)
    probe = Probe(task, layout, SAM(SAMConfig(rho=RHO)))
    with pytest.raises(ValueError, match="no step"):
        probe.found()
    probe.look(steps[0])
    probe.travel((steps[1].after - steps[1].params).norm(dim=-1))
    probe.look(steps[2])
    whole = probed(task, layout, steps)
    np.testing.assert_allclose(probe.found().path_length, whole.path_length[:, [0, 2]], rtol=1e-6)


def test_a_network_with_running_statistics_on_real_data():
    task = make_tasks("cnn:channels=4,norm=batch,batch=16", "digits", None, "cpu")[0]
    layout, steps, _, _ = run(task, lambda g, c: -0.1 * (g + c), steps=2)
    found = probed(task, layout, steps, train_data=task.full("train"))
    assert (found.cosine_orthogonal > 0.99).all()
    buffers = {name: b[1] for name, b in steps[1].buffers.items()}
    expected = task.metrics(layout.unflatten(steps[1].params[1]), buffers, task.full("train"))[
        "loss"
    ]
    assert found.train_loss[1, 1] == pytest.approx(float(expected), rel=1e-6)


def test_at_equal_loss_and_path():
    loss = [[4.0, 2.0, 3.0, 1.0], [5.0, 4.0, 4.0, 4.0], [2.0, np.nan, 1.5, 1.0]]
    value = [[0.0, 10.0, 20.0, 30.0], [1.0, 2.0, 3.0, 4.0], [7.0, 8.0, np.nan, 9.0]]
    found = at_equal(loss, value, [4.5, 3.0, 1.0, 0.5], falling=True)
    nan = np.nan
    np.testing.assert_allclose(found, [[0, 5, 30, nan], [1.5, nan, nan, nan], [7, 7, 9, nan]])
    path = at_equal([[1.0, 2.0, 4.0]], [[0.0, 1.0, 3.0]], [0.5, 3.0, 5.0], falling=False)
    np.testing.assert_allclose(path, [[0.0, 2.0, nan]])
    with pytest.raises(ValueError, match="one shape"):
        at_equal([1.0], [1.0, 2.0], [1.0], falling=True)
