"""task_from_module: buffers, dropout, frozen and tied parameters, initialisation, data."""

import math

import pytest
import torch
from torch import nn
from torch.func import grad, grad_and_value, vmap
from torch.utils.data import DataLoader, TensorDataset

from lo_framework.optimizees import task_from_module
from lo_framework.optimizees.dropout import keep_mask
from tests.optimizees.modules import CE, Noisy, close, net, rows, seeded, stack


def test_equals_the_module_without_dropout():
    module = net(dropout=0.0)
    task = task_from_module(module, CE, rows(), batch_size=16)
    params, buffers = task.init(seeded())
    x, y = task.batch("train", seeded(1))
    grads, (loss, new) = grad_and_value(task.loss, has_aux=True)(
        params, buffers, (x, y), torch.tensor(0)
    )
    module.load_state_dict({**params, **buffers})
    want = CE(module(x), y)
    want.backward()
    torch.testing.assert_close(loss, want.detach())
    close(grads, {k: p.grad for k, p in module.named_parameters()})
    close(new, dict(module.named_buffers()))
    assert new["1.num_batches_tracked"] == 1
    module.eval()
    metrics = task.metrics(params, new, (x, y))
    torch.testing.assert_close(metrics["loss"], CE(module(x), y).detach())
    assert metrics["accuracy"] == (module(x).argmax(1) == y).float().mean()


@pytest.mark.parametrize("shared", [False, True])
def test_batchnorm_and_dropout_under_vmap_equal_a_loop(shared):
    task = task_from_module(net(), CE, rows(), batch_size=8)
    count = 4
    inits = [task.init(seeded(k)) for k in range(count)]
    params = stack([p for p, _ in inits])
    buffers = inits[0][1] if shared else stack([b for _, b in inits])
    batch, noise = task.batch("train", seeded(7), (count,)), torch.arange(count) * 10**12
    step = grad_and_value(task.loss, has_aux=True)
    grads, (loss, new) = vmap(step, in_dims=(0, None if shared else 0, 0, 0))(
        params, buffers, batch, noise
    )

    def second(p, b, batch, n):
        return sum((g**2).sum() for g in grad(lambda q: task.loss(q, b, batch, n)[0])(p).values())

    seconds = vmap(grad(second), in_dims=(0, None if shared else 0, 0, 0))(
        params, buffers, batch, noise
    )
    for k in range(count):
        rows_k = tuple(x[k] for x in batch)
        alone, (loss_k, new_k) = step(*inits[k], rows_k, noise[k])
        torch.testing.assert_close(loss[k], loss_k)
        close({n: g[k] for n, g in grads.items()}, alone)
        # A running variance nobody moved is one value for all; the others have a row for each.
        close({n: b[k] if b.dim() > inits[k][1][n].dim() else b for n, b in new.items()}, new_k)
        twice = grad(second)(*inits[k], rows_k, noise[k])
        for n, s in seconds.items():
            torch.testing.assert_close(s[k], twice[n], atol=1e-4, rtol=1e-4)


def test_noise_decides_the_masks():
    task = task_from_module(net(), CE, rows(), batch_size=8)
    params, buffers = task.init(seeded())
    batch = task.batch("train", seeded(1))
    losses = [task.loss(params, buffers, batch, torch.tensor(n))[0] for n in (1, 1, 2, 1 + 2**32)]
    assert losses[0] == losses[1]
    assert len({float(x) for x in losses}) == 3
    metrics = [task.metrics(params, buffers, batch)["loss"] for _ in range(2)]
    assert metrics[0] == metrics[1]


def test_purity():
    module = net()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    state = torch.get_rng_state()
    task = task_from_module(module, CE, rows(), batch_size=8)
    params, buffers = task.init(seeded())
    kept = {k: v.clone() for k, v in {**params, **buffers}.items()}
    task.loss(params, buffers, task.batch("train", seeded()), torch.tensor(3))
    task.metrics(params, buffers, task.full("test"))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    assert all(torch.equal(v, kept[k]) for k, v in {**params, **buffers}.items())
    assert all(m.training for m in module.modules())
    assert isinstance(module[3], nn.Dropout2d)


def test_init_is_drawn_from_the_generator():
    task = task_from_module(net(), CE, rows())
    a, b, c = (task.init(seeded(s))[0] for s in (1, 1, 2))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not torch.equal(a["0.weight"], c["0.weight"])
    assert torch.equal(a["1.weight"], torch.ones(4))
    assert a["6.weight"].abs().max() <= 64**-0.5
    assert not any(v.requires_grad for v in a.values())


class Odd(nn.Module):
    """A free parameter (no reset_parameters), a tied pair, a frozen layer and a dropout module used
    twice.
    """

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.full((3,), 2.0))
        self.first = nn.Linear(16, 16)
        self.second = nn.Linear(16, 16)
        self.second.weight = self.first.weight
        self.frozen = nn.Linear(16, 3).requires_grad_(False)
        self.drop = nn.Dropout(0.5)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.seen = self.seen + 1
        x = self.drop(torch.tanh(self.first(x.flatten(1))))
        x = self.drop(torch.tanh(self.second(x)))
        return self.frozen(x) * self.scale


def test_frozen_tied_and_free_parameters():
    module = Odd()
    task = task_from_module(module, CE, rows(), batch_size=8)
    params, buffers = task.init(seeded())
    assert set(params) == {"scale", "first.weight", "first.bias", "second.bias"}
    assert torch.equal(params["scale"], torch.full((3,), 2.0))
    assert not torch.equal(params["first.weight"], module.first.weight)
    batch = task.batch("train", seeded())
    grads, (_, new) = grad_and_value(task.loss, has_aux=True)(
        params, buffers, batch, torch.tensor(1)
    )
    assert (buffers["seen"], new["seen"]) == (0, 1)

    def by_hand(p):
        x = batch[0].flatten(1)
        for call, name in enumerate(("first", "second")):
            x = torch.tanh(nn.functional.linear(x, p["first.weight"], p[f"{name}.bias"]))
            x = x * keep_mask(x.shape, 0.5, torch.tensor(1), call) * 2
        return CE(
            nn.functional.linear(x, module.frozen.weight, module.frozen.bias) * p["scale"], batch[1]
        )

    close(grads, grad(by_hand)(params))


def test_own_reset_parameters_has_the_last_word():
    class Constant(nn.Linear):
        def reset_parameters(self):
            nn.init.constant_(self.weight, 0.25)
            nn.init.zeros_(self.bias)

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = Constant(16, 3)

        def reset_parameters(self):
            self.layer.bias.data.fill_(7.0)

        def forward(self, x):
            return self.layer(x.flatten(1))

    params, _ = task_from_module(Outer(), CE, rows()).init(seeded())
    assert (params["layer.weight"] == 0.25).all()
    assert (params["layer.bias"] == 7).all()


def test_a_submodule_in_evaluation_mode_stays_so():
    module = net(dropout=0.0)
    module[1].eval()
    task = task_from_module(module, CE, rows(), batch_size=8)
    params, buffers = task.init(seeded())
    _, new = task.loss(params, buffers, task.batch("train", seeded()), torch.tensor(0))
    assert torch.equal(new["1.running_mean"], buffers["1.running_mean"])
    module.eval()  # a module that is in evaluation mode as a whole is trained as a whole
    task = task_from_module(module, CE, rows(), batch_size=8)
    _, new = task.loss(params, buffers, task.batch("train", seeded()), torch.tensor(0))
    assert not torch.equal(new["1.running_mean"], buffers["1.running_mean"])


def test_splits_are_disjoint_by_content():
    task = task_from_module(net(), CE, rows(100))
    sizes = {s: len(task.full(s)[0]) for s in ("train", "valid", "test")}
    assert sizes == {"train": 80, "valid": 10, "test": 10}
    content = [x.numpy().tobytes() for s in sizes for x in task.full(s)[0]]
    assert len(set(content)) == 100
    again = task_from_module(net(), CE, rows(100))
    assert all(torch.equal(task.full(s)[1], again.full(s)[1]) for s in sizes)
    given = task_from_module(net(), CE, rows(100), test=rows(20, seed=1))
    assert [len(given.full(s)[0]) for s in sizes] == [90, 10, 20]
    both = task_from_module(net(), CE, rows(100), valid=rows(5, seed=2), test=rows(20, seed=1))
    assert [len(both.full(s)[0]) for s in sizes] == [100, 5, 20]


def test_data_loader_is_read_once_and_deterministically():
    x, y = rows(50)
    module = net()
    state = torch.get_rng_state()
    tasks = [
        task_from_module(
            module, CE, DataLoader(TensorDataset(x, y), batch_size=7, shuffle=True, generator=g)
        )
        for g in (None, None, seeded(3), seeded(4))
    ]
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(tasks[0].full("train")[0], tasks[1].full("train")[0])
    assert torch.equal(tasks[2].full("train")[0], tasks[3].full("train")[0])
    content = {r.numpy().tobytes() for s in ("train", "valid", "test") for r in tasks[0].full(s)[0]}
    assert content == {r.numpy().tobytes() for r in x}
    generator = seeded(5)
    task_from_module(net(), CE, DataLoader(TensorDataset(x, y), shuffle=True, generator=generator))
    assert torch.equal(generator.get_state(), seeded(5).get_state())


def test_regression_and_reconstruction():
    x = torch.randn(60, 4, generator=seeded())
    task = task_from_module(
        nn.Linear(4, 2), nn.MSELoss(), (x, x[:, :2] * 30), batch_size=16, name="line"
    )
    assert (task.name, task.num_classes) == ("line", None)
    params, buffers = task.init(seeded(3))
    batch = task.batch("train", seeded())
    assert set(task.metrics(params, buffers, batch)) == {"loss"}
    assert 0.3 < task.normalize(task.loss(params, buffers, batch, torch.tensor(0))[0]) < 3
    alone = task_from_module(nn.Linear(4, 4), lambda output: output.square().mean(), x)
    assert alone.batch("valid", seeded(), (3,))[0].shape == (3, 64, 4)


def test_classes_are_recognised():
    assert task_from_module(net(), CE, rows()).scale == pytest.approx(math.log(3))
    ten = task_from_module(net(), CE, rows(), num_classes=3)
    assert ten.normalize(torch.tensor(3.0).log()) == pytest.approx(1)


def test_to_another_device():
    task = task_from_module(net(), nn.CrossEntropyLoss(weight=torch.ones(3)), rows())
    other = task.to("meta")
    assert {p.device.type for p in other.init(seeded())[0].values()} == {"meta"}
    assert {p.device.type for p in task.module.parameters()} == {"cpu"}
    assert other.loss_fn.weight.device.type == "meta"
    _, buffers = other.loss(
        *other.init(seeded()),
        other.full("valid"),
        torch.zeros((), dtype=torch.int64, device="meta"),
    )
    assert buffers["1.running_mean"].device.type == "meta"


def test_a_module_that_vmap_cannot_take_is_a_task_all_the_same():
    task = task_from_module(
        Noisy(lambda x, m: x if x.sum() > 0 else -x), CE, rows(), vmappable=False
    )
    assert not task.vmappable and not task.to("cpu").vmappable
    params, buffers = task.init(torch.Generator().manual_seed(0))
    loss, _ = task.loss(
        params, buffers, task.batch("train", torch.Generator().manual_seed(1)), torch.tensor(0)
    )
    assert torch.isfinite(loss)
