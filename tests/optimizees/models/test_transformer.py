"""``transformer`` against torch's own layers: values, derivatives of both orders, initialisation,
dropout, training.
"""

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, grad_and_value, vmap

from lo_framework.estimators import Truncation, make_estimator
from lo_framework.eval.baselines import make_baseline, make_thetas
from lo_framework.inner.rollout import rollout
from lo_framework.inner.step import Family
from lo_framework.layout import Layout
from lo_framework.learned import make_learned
from lo_framework.objectives import make_objective
from lo_framework.optimizees import ClassificationTask, make_tasks
from lo_framework.optimizees.datasets import load
from lo_framework.optimizees.datasets.splits import Dataset
from lo_framework.optimizees.models.transformer import Transformer, TransformerConfig

SMALL = "transformer:width=8,heads=2,layers=1,ffn=6,patch=4,batch=4"
ATTENTION = {
    "attn.qkv.weight": "self_attn.in_proj_weight",
    "attn.qkv.bias": "self_attn.in_proj_bias",
}
PARTS = {"attn.out": "self_attn.out_proj", "mlp.up": "linear1", "mlp.down": "linear2"}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def double(tensors):
    return {k: v.double() for k, v in tensors.items()}


class Reference(nn.Module):
    """The same network of torch's layers; patches by a convolution."""

    def __init__(self, config, channels, tokens, classes=10):
        super().__init__()
        self.patch = nn.Conv2d(channels, config.width, config.patch, stride=config.patch)
        self.position_embed = nn.Embedding(tokens, config.width)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                config.width,
                config.heads,
                config.ffn,
                0.0,
                config.act,
                batch_first=True,
                norm_first=True,
            )
            for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, classes)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2) + self.position_embed.weight
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))

    def named(self, params):
        """Our parameters under this module's names and in its shapes."""
        found = {}
        for name, value in params.items():
            for ours, theirs in (ATTENTION | PARTS).items():
                name = name.replace(ours, theirs)
            found[name] = value.reshape(self.get_parameter(name).shape)
        return found


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-13)])
@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (TransformerConfig(), (1, 8, 8)),
        (TransformerConfig(width=6, heads=3, layers=1, ffn=5, patch=4, act="relu"), (3, 8, 12)),
        (TransformerConfig(width=8, heads=1, layers=3, ffn=12, patch=1), (2, 3, 2)),
    ],
)
def test_equals_torchs_layers(config, shape, dtype, tolerance):
    model = Transformer(config, shape, 10)
    reference = Reference(config, shape[0], model.tokens).to(dtype)
    params = {k: v.to(dtype) for k, v in model.init(seeded())[0].items()}
    for k, v in params.items():  # gains of 1 and biases of 0 would hide a mistake
        params[k] = v + 0.2 * torch.randn(v.shape, generator=seeded(len(k)), dtype=dtype)
    assert set(reference.named(params)) == {name for name, _ in reference.named_parameters()}
    x = torch.rand(7, *shape, generator=seeded(1)).to(dtype)
    y = torch.randint(10, (7,), generator=seeded(2))

    def ours(p):
        logits, _ = model.apply(p, {}, x, torch.tensor(0))
        return nn.functional.cross_entropy(logits, y), logits

    def theirs(p):
        logits = functional_call(reference, reference.named(p), (x,))
        return nn.functional.cross_entropy(logits, y), logits

    got, (_, got_logits) = grad_and_value(ours, has_aux=True)(params)
    want, (_, want_logits) = grad_and_value(theirs, has_aux=True)(params)
    torch.testing.assert_close(got_logits, want_logits, atol=tolerance, rtol=tolerance)
    for k in params:
        torch.testing.assert_close(
            got[k], want[k], atol=tolerance, rtol=tolerance, msg=lambda m, k=k: f"{k}: {m}"
        )


@pytest.mark.parametrize("dropout", ["0", "0.3"])
def test_second_derivatives_by_finite_differences(dropout):
    (task,) = make_tasks(f"{SMALL},dropout={dropout}")
    params = double(task.init(seeded())[0])
    x, y = task.batch("train", seeded(1))
    direction = {
        k: torch.randn(v.shape, generator=seeded(len(k)), dtype=v.dtype) for k, v in params.items()
    }
    slope = grad(lambda p: task.loss(p, {}, (x.double(), y), torch.tensor(5))[0])

    def along(t):
        return slope({k: v + t * direction[k] for k, v in params.items()})

    def inner(p):
        return sum((g * direction[k]).sum() for k, g in slope(p).items())

    twice, h = grad(inner)(params), 1e-5
    ahead, behind = along(h), along(-h)
    for k in params:
        difference = (ahead[k] - behind[k]) / (2 * h)
        torch.testing.assert_close(twice[k], difference, atol=1e-8, rtol=1e-6)


def test_starts_as_torchs_layers():
    config = TransformerConfig(width=64, ffn=128, patch=4)
    model = Transformer(config, (3, 32, 32), 10)
    params, buffers = model.init(seeded())
    assert buffers == {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        reference = Reference(config, 3, model.tokens)
    for name, value in reference.named(params).items():
        other = reference.get_parameter(name).detach()
        if other.std() == 0:
            assert torch.equal(value, other), name
        else:
            few = value.numel() < 200
            assert float(value.std()) == pytest.approx(
                float(other.std()), rel=0.4 if few else 0.1
            ), name
            assert float(value.abs().max()) == pytest.approx(float(other.abs().max()), rel=0.2), (
                name
            )


def test_names_order_and_roles():
    (task,) = make_tasks("transformer:layers=1")
    params, _ = task.init(seeded())
    layout = Layout.of({k: tuple(v.shape) for k, v in params.items()})
    roles = {slot.name: slot.role for slot in layout.slots}
    assert (
        list(params)
        == list(roles)
        == [
            "patch.weight",
            "patch.bias",
            "position_embed.weight",
            "blocks.0.norm1.weight",
            "blocks.0.norm1.bias",
            "blocks.0.attn.qkv.weight",
            "blocks.0.attn.qkv.bias",
            "blocks.0.attn.out.weight",
            "blocks.0.attn.out.bias",
            "blocks.0.norm2.weight",
            "blocks.0.norm2.bias",
            "blocks.0.mlp.up.weight",
            "blocks.0.mlp.up.bias",
            "blocks.0.mlp.down.weight",
            "blocks.0.mlp.down.bias",
            "norm.weight",
            "norm.bias",
            "head.weight",
            "head.bias",
        ]
    )
    for name, role in roles.items():
        rest = "bias" if name.endswith("bias") else "matrix"
        assert role == (
            "embedding" if "position" in name else "norm" if "norm" in name else rest
        ), name
    assert params["position_embed.weight"].shape == (16, 32)
    assert params["patch.weight"].shape == (32, 4)


def test_dropout_is_where_torch_has_it(monkeypatch):
    (task,) = make_tasks(f"{SMALL},dropout=0.25".replace("layers=1", "layers=2"))
    params, _ = task.init(seeded())
    batch = task.batch("train", seeded(1))
    losses = torch.stack([task.loss(params, {}, batch, torch.tensor(n))[0] for n in (3, 3, 4)])
    assert losses[0] == losses[1] != losses[2]
    assert task.metrics(params, {}, batch)["loss"] not in losses
    asked = []

    def keep(shape, p, noise, layer):
        asked.append((layer, tuple(shape), p, int(noise)))
        return torch.ones(shape, dtype=torch.bool)

    monkeypatch.setattr("lo_framework.optimizees.models.blocks.keep_mask", keep)
    task.loss(params, {}, batch, torch.tensor(7))
    tokens = 4 * 4  # four rows of four patches
    places = [(4, 2, 4, 4), (tokens, 8), (tokens, 6), (tokens, 8)]
    assert asked == [(i, places[i % 4], 0.25, 7) for i in range(8)]


def test_other_images_and_devices():
    data = load("digits")
    wide = {k: (x.repeat(1, 3, 1, 2)[:9], y[:9]) for k, (x, y) in data.splits.items()}
    config = TransformerConfig(patch=4, width=8, dropout=0.1)
    dataset = Dataset(name="wide", splits=wide, num_classes=10)
    task = ClassificationTask(
        Transformer(config, dataset.shape, 10), dataset, name="wide", batch_size=3
    ).to("meta")
    params, _ = task.init(seeded())
    assert params["patch.weight"].shape == (8, 48)
    assert params["position_embed.weight"].shape == (8, 8)
    loss, _ = task.loss(params, {}, task.batch("train", seeded()), torch.tensor(0, device="meta"))
    assert loss.device.type == "meta"


@pytest.mark.parametrize("dropout", ["0", "0.2"])
def test_recorded_steps_have_the_same_bits(dropout):
    """Meta-gradients through second derivatives, by the plain engine and by the recording one."""
    (task,) = make_tasks(f"{SMALL},dropout={dropout}")
    learned = make_learned("hyper-adamw")
    found = []
    for engine in ("eager", "graph"):
        truncation = Truncation(unroll_length=3, episode=(3, 3))
        estimator = make_estimator(
            "tbptt", Family(task, learned, engine), make_objective("valid"), truncation, 2
        )
        theta = learned.theta()
        found.append(estimator.estimate(theta, estimator.init_state(theta, seeded()))[0].grad)
    assert any(v.any() for v in found[0].values())
    for name, value in found[0].items():
        assert torch.isfinite(value).all()
        assert torch.equal(value, found[1][name]), name


def test_nested_vmap():
    """ES over several perturbations of several tasks."""
    (task,) = make_tasks(SMALL)
    starts = [[task.init(seeded(3 * i + j))[0] for j in range(3)] for i in range(2)]
    params = {
        k: torch.stack([torch.stack([p[k] for p in row]) for row in starts]) for k in starts[0][0]
    }
    batch = task.batch("train", seeded(1))
    got = vmap(vmap(lambda p: task.loss(p, {}, batch, torch.tensor(0))[0]))(params)
    want = torch.stack(
        [torch.stack([task.loss(p, {}, batch, torch.tensor(0))[0] for p in row]) for row in starts]
    )
    torch.testing.assert_close(got, want)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spec", "accuracy"), [("transformer", 0.9), ("transformer:act=relu,dropout=0.1", 0.85)]
)
def test_learns_digits(spec, accuracy):
    adamw = make_baseline("adamw")
    thetas = make_thetas(adamw, [{"lr": 0.003}])
    run = rollout(make_tasks(spec)[0], adamw, thetas, [0, 1], 200, splits=("test",))
    assert run.final["test.accuracy"].min() > accuracy
