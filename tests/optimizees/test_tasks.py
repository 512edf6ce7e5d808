"""mlp and cnn against nn.Module, vmap against a loop, normalisation, splits, determinism, analytic
tasks.
"""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, grad_and_value, jacrev, vmap

from lo_framework.optimizees import make_tasks
from lo_framework.optimizees.datasets import load
from lo_framework.optimizees.task import ClassificationTask, soft_cap
from lo_framework.spec import UserError

KINDS = [
    "mlp",
    "mlp:hidden=16x8,act=gelu",
    "mlp:hidden=none",
    "mlp-relu",
    "mlp:hidden=8x6,norm=layer,init=torch,spread=2",
    "mlp:hidden=8x6,norm=layer,residual=1,act=relu,zero_last=1",
    "mlp:hidden=9x6/digits:target=regress,project=20",
    "cnn:channels=4x6",
    "cnn:channels=4/digits:target=reconstruct",
    "cnn:channels=4x6x4,norm=group,head=conv",
    "cnn:channels=4,norm=batch,pool=avg",
    "cnn:channels=4x4,norm=group,pool=stride",
    "cnn:channels=4x4,norm=batch",
    "transformer:width=8,ffn=8,heads=2,dropout=0.2",
    "resnet:size=tiny,dropout=0.2,augment=1",
    "quadratic:dim=5,std=0.1",
    "rosenbrock:dim=3",
]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def stack(dicts):
    return {k: torch.stack([d[k] for d in dicts]) for k in dicts[0]}


def assert_close(a, b, atol=5e-6):
    assert a.keys() == b.keys()
    for k in a:
        torch.testing.assert_close(a[k], b[k], atol=atol, rtol=1e-5, msg=lambda m, k=k: f"{k}: {m}")


class MLPModule(nn.Module):
    def __init__(self, widths, act):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.act = act

    def forward(self, x):
        x = x.flatten(1)
        for layer in self.layers[:-1]:
            x = self.act(layer(x))
        return self.layers[-1](x)


class CNNModule(nn.Module):
    def __init__(self, channels, norm, pool, side, head="linear"):
        super().__init__()
        pairs = list(zip((1, *channels[:-1]), channels))
        stride = 2 if pool == "stride" else 1
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1, stride=stride) for a, b in pairs)
        make = {"batch": nn.BatchNorm2d, "group": lambda c: nn.GroupNorm(math.gcd(8, c), c)}
        if norm != "none":
            self.norms = nn.ModuleList(make[norm](c) for c in channels)
        for m in self.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.num_batches_tracked = None  # torch.func.grad refuses its in-place count
        self.pool = {"max": nn.MaxPool2d(2), "avg": nn.AvgPool2d(2), "stride": nn.Identity()}[pool]
        self.norm = norm
        if head == "conv":
            self.head = nn.Conv2d(channels[-1], 10, 3, padding=1)
        else:
            self.head = nn.Linear(channels[-1] * (side // 2 ** len(channels)) ** 2, 10)

    def forward(self, x):
        for i, conv in enumerate(self.convs):
            x = conv(x)
            if self.norm != "none":
                x = self.norms[i](x)
            x = self.pool(torch.relu(x))
        if isinstance(self.head, nn.Conv2d):
            return self.head(x).mean((2, 3))
        return self.head(x.flatten(1))


@pytest.mark.parametrize(
    ("spec", "module"),
    [
        ("mlp:hidden=16x8", MLPModule((64, 16, 8, 10), torch.sigmoid)),
        ("mlp-relu", MLPModule((64, 32, 10), torch.relu)),
        ("mlp:act=gelu", MLPModule((64, 32, 10), nn.functional.gelu)),
        ("mlp:act=tanh", MLPModule((64, 32, 10), torch.tanh)),
        ("cnn:channels=4x6,head=conv", CNNModule((4, 6), "none", "max", 8, head="conv")),
    ]
    + [
        (f"cnn:channels=4x6,norm={n},pool={p}", CNNModule((4, 6), n, p, 8))
        for n in ("none", "batch", "group")
        for p in ("max", "avg", "stride")
    ],
)
def test_equals_module(spec, module):
    (task,) = make_tasks(spec)
    params, buffers = task.init(seeded())
    assert {k: v.shape for k, v in module.named_parameters()} == {
        k: v.shape for k, v in params.items()
    }
    x, y = task.batch("train", seeded(1))

    def reference(p):
        clones = {
            k: v.clone() for k, v in buffers.items()
        }  # BatchNorm2d moves its statistics in place
        return nn.functional.cross_entropy(functional_call(module, {**p, **clones}, (x,)), y)

    want_grads, want = grad_and_value(reference)(params)
    grads, (loss, new_buffers) = grad_and_value(task.loss, has_aux=True)(
        params, buffers, (x, y), torch.tensor(0)
    )
    torch.testing.assert_close(loss, want)
    assert_close(grads, want_grads)
    moved = {**params, **{k: v.clone() for k, v in buffers.items()}}
    functional_call(module, moved, (x,))
    assert_close(new_buffers, {k: moved[k] for k in buffers})
    module.eval()
    logits = functional_call(module, {**params, **new_buffers}, (x,))
    metrics = task.metrics(params, new_buffers, (x, y))
    torch.testing.assert_close(metrics["loss"], nn.functional.cross_entropy(logits, y))
    assert metrics["accuracy"] == (logits.argmax(1) == y).float().mean()


def task_of(name):
    spec, _, dataset = name.partition("/")
    (task,) = make_tasks(spec, dataset or "digits")
    return task


@pytest.mark.parametrize("spec", KINDS)
def test_vmap_equals_loop(spec):
    task = task_of(spec)
    count = 3
    inits = [task.init(seeded(k)) for k in range(count)]
    params, buffers = stack([p for p, _ in inits]), stack([b for _, b in inits])
    batch, noise = task.batch("train", seeded(9), (count,)), torch.arange(count)
    step = grad_and_value(task.loss, has_aux=True)
    grads, (loss, new) = vmap(step)(params, buffers, batch, noise)
    metrics = vmap(task.metrics)(params, new, batch)
    normal = vmap(task.normalize)(loss)

    def norm_of_grad(p, b, rows, n):
        return sum((g**2).sum() for g in grad(lambda q: task.loss(q, b, rows, n)[0])(p).values())

    seconds = vmap(grad(norm_of_grad))(params, buffers, batch, noise)
    for k in range(count):
        rows = tuple(x[k] for x in batch)
        alone, (loss_k, new_k) = step(*inits[k], rows, noise[k])
        torch.testing.assert_close(loss[k], loss_k)
        assert_close({n: g[k] for n, g in grads.items()}, alone)
        assert_close({n: b[k] for n, b in new.items()}, new_k)
        assert_close({n: m[k] for n, m in metrics.items()}, task.metrics(inits[k][0], new_k, rows))
        torch.testing.assert_close(normal[k], task.normalize(loss_k))
        twice = grad(norm_of_grad)(*inits[k], rows, noise[k])
        assert_close({n: s[k] for n, s in seconds.items()}, twice, atol=1e-4)


@pytest.mark.parametrize("spec", KINDS)
def test_purity_and_determinism(spec):
    task = task_of(spec)
    state = torch.get_rng_state()
    one, two, other = task.init(seeded(3)), task.init(seeded(3)), task.init(seeded(4))
    for a, b in zip(one, two):
        assert all(torch.equal(a[k], b[k]) for k in a)
    assert any(not torch.equal(one[0][k], other[0][k]) for k in one[0])
    batch = task.batch("train", seeded(5), (2, 3))
    assert all(torch.equal(a, b) for a, b in zip(batch, task.batch("train", seeded(5), (2, 3))))
    assert all(x.shape[:3] == (2, 3, task.batch_size) for x in batch)
    kept = {k: v.clone() for k, v in {**one[0], **one[1]}.items()}
    task.loss(*one, tuple(x[0, 0] for x in batch), torch.tensor(1))
    assert all(torch.equal(v, kept[k]) for k, v in {**one[0], **one[1]}.items())
    assert torch.equal(state, torch.get_rng_state())
    for v in one[0].values():
        assert v.dtype == torch.float32
        assert not v.requires_grad


@pytest.mark.parametrize("spec", ["mlp", "cnn:channels=4,norm=batch"])
def test_metrics_of_a_whole_split(spec):
    (task,) = make_tasks(spec)
    params, buffers = task.init(seeded())
    x, y = task.full("train")
    logits, _ = task.model.apply(params, buffers, x)
    metrics = task.metrics(params, buffers, (x, y))  # in chunks, the last one shorter
    torch.testing.assert_close(metrics["loss"], nn.functional.cross_entropy(logits, y))
    torch.testing.assert_close(metrics["accuracy"], (logits.argmax(1) == y).float().mean())


def test_splits_of_digits_are_disjoint():
    (task,) = make_tasks("mlp")
    sizes = {split: len(task.full(split)[0]) for split in ("train", "valid", "test")}
    assert sizes == {"train": 1197, "valid": 240, "test": 360}
    rows = [x.numpy().tobytes() for split in sizes for x in task.full(split)[0]]
    assert (
        len(set(rows)) == len(rows) == 1797
    )  # no two digits are equal, so content identifies a row
    assert task.full("train")[0].data_ptr() == task.full("train")[0].data_ptr()
    with pytest.raises(KeyError, match="no split"):
        task.full("dev")


def test_init_scales():
    (mlp, cnn) = make_tasks("mlp:hidden=512,cnn:channels=64x64")
    params, _ = mlp.init(seeded())
    assert params["layers.0.weight"].std() == pytest.approx(1 / 8, rel=0.02)
    assert params["layers.1.weight"].std() == pytest.approx(512**-0.5, rel=0.05)
    assert not params["layers.0.bias"].any()
    params, _ = cnn.init(seeded())
    bound = (9 * 64) ** -0.5
    assert bound * 0.99 < params["convs.1.weight"].abs().max() <= bound
    assert 0 < params["convs.1.bias"].abs().max() <= bound


def test_soft_cap():
    r = torch.tensor([0.0, 1.0, 1.5, 2.5, 1e3, 1e30, torch.inf, -torch.inf, torch.nan])
    want = torch.tensor([0.0, 1.0, 1.5, 1.5 + math.log(2), 1.5 + math.log1p(998.5), 10, 10, 10, 10])
    torch.testing.assert_close(soft_cap(r), want)
    r.requires_grad_()
    (slope,) = torch.autograd.grad(soft_cap(r).sum(), r)
    assert torch.isfinite(slope).all()
    torch.testing.assert_close(slope[:5], torch.tensor([1.0, 1.0, 1.0, 0.5, 1 / 999.5]))
    assert not slope[5:].any()


def test_normalize_is_one_at_chance():
    (task,) = make_tasks("mlp")
    assert task.normalize(torch.tensor(10.0).log()) == pytest.approx(1)


def test_the_shares_of_the_classes_are_the_naive_loss():
    (task,) = make_tasks("mlp:hidden=none")
    params, _ = task.init(seeded())
    counts = task.full("train")[1].bincount() + 1.0
    params = {"layers.0.weight": 0 * params["layers.0.weight"], "layers.0.bias": counts.log()}
    for split in ("train", "test"):
        metrics = task.metrics(params, {}, task.full(split))
        assert task.naive_loss(split) == pytest.approx(float(metrics["loss"]), rel=1e-5)
    assert task.naive_loss("train") < math.log(10) + 1e-3


@pytest.mark.parametrize("dataset", ["digits:target=reconstruct", "teacher:target=regress"])
def test_the_best_constant_normalises_a_regression_to_one(dataset):
    (task,) = make_tasks("mlp:zero_last=1", dataset)
    params, _ = task.init(seeded())
    x, y = task.full("train")
    params["layers.1.bias"] = y.mean(0)  # with zero weights: the outputs at every row
    loss, _ = task.loss(params, {}, (x, y), torch.tensor(0))
    torch.testing.assert_close(loss, ((y - y.mean(0)) ** 2).mean())
    assert task.normalize(loss) == pytest.approx(1)
    metrics = task.metrics(params, {}, (x, y))
    assert list(metrics) == ["loss"]
    torch.testing.assert_close(metrics["loss"], loss)


def test_to_makes_a_copy():
    (task,) = make_tasks("cnn")
    other = task.to("meta")
    assert (task.device.type, other.device.type) == ("cpu", "meta")
    assert other.full("valid")[0].device.type == "meta"
    assert task.full("valid")[0].device.type == "cpu"
    assert other.init(seeded())[0]["head.bias"].device.type == "meta"


@pytest.mark.parametrize("spec", ["quadratic:dim=4,cond=10", "rosenbrock:dim=4"])
def test_analytic_minimum_is_zero(spec):
    (task,) = make_tasks(spec)
    x = torch.zeros(4) if spec.startswith("quad") else torch.ones(4)
    for split in ("train", "valid", "test"):
        slope, (loss, _) = grad_and_value(task.loss, has_aux=True)(
            {"x": x}, {}, task.full(split), torch.tensor(0)
        )
        assert loss == 0
        assert not slope["x"].any()
    starts = torch.stack(
        [
            task.normalize(task.loss(*task.init(seeded(s)), task.full("train"), 0)[0])
            for s in range(50)
        ]
    )
    assert 0.5 < starts.mean() < 1.5


def test_quadratic_curvature_and_noise():
    (task,) = make_tasks("quadratic:dim=3,cond=100,std=0.5")
    slope = grad(lambda x: task.loss({"x": x}, {}, task.full("train"), torch.tensor(0))[0])
    hessian = jacrev(slope)(torch.ones(3))
    torch.testing.assert_close(hessian, torch.diag(torch.tensor([1, 0.1, 0.01])))
    (eps,) = task.batch("train", seeded(), (2000,))
    assert eps.shape == (2000, 1, 3)
    assert eps.std() == pytest.approx(0.5, rel=0.05)
    g = grad(lambda x: task.loss({"x": x}, {}, (eps[0],), torch.tensor(0))[0])(torch.zeros(3))
    torch.testing.assert_close(g, eps[0, 0])


def test_rows_that_are_not_finite_are_counted_and_named():
    data = load("digits")
    x, y = data.splits["valid"]
    x = x.clone()
    x[4, 0, 0, 0], x[9, 0, 1, 1] = math.nan, math.inf
    bad = replace(data, splits={**data.splits, "valid": (x, y)})
    model = make_tasks("mlp")[0].model
    with pytest.raises(UserError, match=r"mine: valid: 2 of 240 rows hold NaN .* is row 4\)"):
        ClassificationTask(model, bad, name="mine", batch_size=8)
