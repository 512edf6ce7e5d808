"""Plain and residual MLPs with LayerNorm against nn.Module, autoencoders, and how layers start."""

import math

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad_and_value

from lo_framework.optimizees import make_tasks
from lo_framework.optimizees.models.mlp import MLPConfig
from lo_framework.spec import UserError


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(64, 8), nn.Linear(8, 6), nn.Linear(6, 10)])
        self.norms = nn.ModuleList([nn.LayerNorm(8), nn.LayerNorm(6)])

    def forward(self, x):
        x = x.flatten(1)
        for layer, norm in zip(self.layers, self.norms):
            x = torch.tanh(norm(layer(x)))
        return self.layers[-1](x)


class Block(nn.Module):
    def __init__(self, width, inside):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, inside), nn.Linear(inside, width)

    def forward(self, x):
        return x + self.down(nn.functional.gelu(self.up(self.norm(x))))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(64, 8)
        self.blocks = nn.ModuleList([Block(8, 8), Block(8, 5)])
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 10)

    def forward(self, x):
        x = self.stem(x.flatten(1))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


@pytest.mark.parametrize(
    ("spec", "module"),
    [
        ("mlp:hidden=8x6,norm=layer,act=tanh", Plain()),
        ("mlp:hidden=8x5,norm=layer,act=gelu,residual=1", Residual()),
    ],
)
def test_equals_module(spec, module):
    (task,) = make_tasks(spec)
    params, _ = task.init(seeded())
    shapes = {name: x.shape for name, x in params.items()}
    assert {name: x.shape for name, x in module.named_parameters()} == shapes
    params = {
        name: x + 0.1 * torch.randn(x.shape, generator=seeded(7)) for name, x in params.items()
    }
    x, y = task.batch("train", seeded(1))
    grads, loss = grad_and_value(lambda p: task.loss(p, {}, (x, y), torch.tensor(0))[0])(params)
    wanted, value = grad_and_value(
        lambda p: nn.functional.cross_entropy(functional_call(module, p, (x,)), y)
    )(params)
    torch.testing.assert_close(loss, value)
    for name, slope in wanted.items():
        torch.testing.assert_close(grads[name], slope, atol=5e-6, rtol=1e-4)


def test_a_residual_block_without_norm_adds_to_its_input():
    (task,) = make_tasks("mlp:hidden=8x8,residual=1,act=relu")
    params, _ = task.init(seeded())
    names = [name for name in params if name.endswith("weight")]
    assert names == [
        "stem.weight",
        *(f"blocks.{i}.{part}.weight" for i in range(2) for part in ("up", "down")),
        "head.weight",
    ]
    zero = {name: x * 0 if ".down." in name else x for name, x in params.items()}
    x, _ = task.batch("train", seeded())
    stem = nn.functional.linear(x.flatten(1), params["stem.weight"])
    outputs, _ = task.model.apply(zero, {}, x)
    torch.testing.assert_close(outputs, nn.functional.linear(stem, params["head.weight"]))


def test_a_residual_network_needs_a_block():
    with pytest.raises(UserError, match="residual=1 needs at least one entry in hidden"):
        make_tasks("mlp:hidden=none,residual=1")


def test_an_autoencoder_is_narrow_in_its_middle():
    assert MLPConfig(hidden=(64, 32, 48)).narrowed(64).hidden == (64, 8, 48)
    assert MLPConfig(hidden=(4,)).narrowed(64).hidden == (4,)
    assert MLPConfig(hidden=(64, 32), residual=True).narrowed(128).hidden == (16, 32)
    assert MLPConfig(hidden=(9,)).narrowed(4).hidden == (2,)
    assert MLPConfig(hidden=()).narrowed(64).hidden == ()


SPECS = ["mlp:hidden=64x32", "cnn:channels=8x16", "transformer:width=16,layers=1"]


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("init", ["torch", "lecun"])
def test_layers_start_as_they_are_told(spec, init):
    default, told = make_tasks(spec)[0].init(seeded())[0], make_tasks(f"{spec},init={init}")[0]
    params, _ = told.init(seeded())
    assert list(params) == list(default)
    for name, x in params.items():
        if x.dim() < 2 or "embed" in name:
            continue
        bound = math.prod(x.shape[1:]) ** -0.5
        assert x.std() == pytest.approx(bound * (3**-0.5 if init == "torch" else 1), rel=0.2)
        assert (x.abs().max() <= bound) == (init == "torch")
        assert bool(params[name.replace("weight", "bias")].any()) == (init == "torch")


@pytest.mark.parametrize("spec", SPECS)
def test_weights_are_spread_and_the_last_layer_is_zero(spec):
    default = make_tasks(spec)[0].init(seeded())[0]
    (task,) = make_tasks(f"{spec},spread=2,zero_last=1")
    params, _ = task.init(seeded())
    *layers, last = [name for name, x in params.items() if x.dim() >= 2 and "embed" not in name]
    assert not params[last].any() and not params[last.replace("weight", "bias")].any()
    factors = [(params[name] / default[name]).flatten() for name in layers]
    for factor in factors:
        torch.testing.assert_close(factor, factor[:1].expand_as(factor))
        assert 0.5 <= factor[0] <= 2
    assert len({round(float(factor[0]), 4) for factor in factors}) == len(factors)
    kept = [
        name for name in params if name not in layers and "head" not in name and name[-4:] != "bias"
    ]
    assert all(torch.equal(params[name], default[name]) for name in kept if name != last)
