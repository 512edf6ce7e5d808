"""From specs to regularizers: mixtures, and one clear line for everything that is wrong."""

from __future__ import annotations

import pytest
import torch

from lo_framework.absorb.absorption import make_regularizer
from lo_framework.regularizers import Mixture, Regularizer, register_regularizer
from lo_framework.regularizers.asam import ASAMConfig
from lo_framework.regularizers.gam import GAM
from lo_framework.regularizers.sam import SAM
from lo_framework.regularizers.weight_decay import WeightDecay
from lo_framework.spec import UserError
from tests.regularizers.reg_tools import assert_close, at, correct, landscape_of, mlp


def test_options_reach_the_config() -> None:
    sam, gam = make_regularizer("sam:rho=1e-3"), make_regularizer("gam:exact=0,beta_0=0.3")
    assert isinstance(sam, SAM) and sam.config.rho == 1e-3
    assert isinstance(gam, GAM) and (gam.config.exact, gam.config.beta_0) == (False, 0.3)
    assert make_regularizer("asam").config == ASAMConfig(rho=0.5, eta=0.01)


def test_a_plus_sign_of_a_number_is_no_joint() -> None:
    mixture = make_regularizer("weight_decay:lam=1e+3 + sam:rho=1e+0+weight_decay")
    assert isinstance(mixture, Mixture)
    assert [type(part) for part in mixture.parts] == [WeightDecay, SAM, WeightDecay]
    assert mixture.parts[0].config.lam == 1000


@pytest.mark.parametrize(
    "spec, words",
    [
        ("sma", 'unknown regularizer "sma" (did you mean "sam"?)'),
        ("sam+gan", 'unknown regularizer "gan" (did you mean'),
        ("sam:roh=1", 'sam: unknown option "roh" (did you mean "rho"?)'),
        ("none", '"none" is no regularizer: leave it out'),
        ("sam+none", '"none" is no regularizer: leave it out'),
        ("", "is not a spec"),
        ("sam:rho=1+", 'option rho="1+": expected a number'),
        ("sam:rho=0", 'sam: option rho="0": expected above 0 and at most 1000000'),
        ("sam:rho=inf", 'sam: option rho="inf": expected above 0 and at most 1000000'),
        ("asam:eta=-1", 'asam: option eta="-1": expected at least 0 and at most 1000000'),
        ("asam:rho=-1", 'asam: option rho="-1": expected above 0 and at most 1000000'),
        ("gsam:alpha=-0.1", 'gsam: option alpha="-0.1": expected at least 0 and at most 1000000'),
        ("gsam:space=param", 'expected one of meta, params (did you mean "params"?)'),
        ("gam:rho_prime=0", 'gam: option rho_prime="0": expected above 0 and at most 1000000'),
        ("gam:beta_1=1.5", 'gam: option beta_1="1.5": expected at least 0 and at most 1'),
        ("gam:gamma=-1", 'gam: option gamma="-1": expected at least 0 and at most 1000000'),
        ("gam:exact=maybe", "expected 1 or 0"),
        ("looksam:k=0", 'looksam: option k="0": expected at least 1 and at most 1048576'),
        ("fsam:lam=1", 'fsam: option lam="1": expected above 0 and below 1'),
        ("gradient_norm:r=0", 'gradient_norm: option r="0": expected above 0 and at most 1000000'),
        (
            "hessian_trace:probes=0",
            'hessian_trace: option probes="0": expected at least 1 and at most 1000',
        ),
        (
            "hessian_trace:t=-1",
            'hessian_trace: option t="-1": expected above 0 and at most 1000000',
        ),
        (
            "weight_decay:lam=-1",
            'weight_decay: option lam="-1": expected above 0 and at most 1000000',
        ),
        ("label_noise:p=1.1", 'label_noise: option p="1.1": expected above 0 and at most 1'),
        (
            "label_noise:classes=1",
            'label_noise: option classes="1": expected at least 2 and at most 16777216',
        ),
        ("sam+gsam", "gsam decomposes meta-gradients and cannot be mixed; use space=params"),
    ],
)
def test_errors_are_one_line(spec: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        make_regularizer(spec)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_mixture_adds_fields_rises_and_values() -> None:
    params, batch = mlp(7)
    landscape = landscape_of(batch)
    names = ["sam:rho=0.2", "gam:alpha=0.2", "weight_decay:lam=0.1"]
    parts = [correct(make_regularizer(name), landscape, params) for name in names]
    mixture = make_regularizer("+".join(names))
    made = correct(mixture, landscape, params)
    assert_close(
        made.field,
        {name: torch.stack([part.field[name] for part in parts]).sum(0) for name in params},
        1e-14,
    )
    rises = [part.rise for part in parts if part.rise is not None]
    torch.testing.assert_close(made.rise, torch.stack(rises).sum())
    torch.testing.assert_close(
        mixture.value(landscape, params), at(landscape, params).loss + sum(rises)
    )
    assert (
        mixture.has_value
        and mixture.needs_hvp
        and not mixture.stochastic
        and mixture.cost == (3, 2)
    )
    assert mixture.name == "mixture" and mixture.meta_split() is None


def test_parts_of_a_mixture_keep_their_own_states() -> None:
    params, (x, y) = mlp(8)
    mixture, alone = (
        make_regularizer("looksam:k=2+looksam:k=3+sam"),
        [make_regularizer(f"looksam:k={k}") for k in (2, 3)],
    )
    assert not mixture.has_value
    state, states = mixture.init_state(params), [part.init_state(params) for part in alone]
    for step in range(4):
        landscape = landscape_of((x.roll(step, 0), y))
        here = at(landscape, params)
        made = mixture.correction(landscape, here, state)
        each = [part.correction(landscape, here, s) for part, s in zip(alone, states)]
        each.append(make_regularizer("sam").correction(landscape, here, {}))
        assert_close(
            made.field,
            {name: torch.stack([part.field[name] for part in each]).sum(0) for name in params},
            1e-14,
        )
        state, states = made.state, [part.state for part in each]
    assert {"0/step", "1/step", "0/g_v/1.weight"} <= set(state) and state["1/step"] == 4


def test_a_mixture_needs_parts() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Mixture([])


def test_a_name_is_taken_once() -> None:
    class Other(Regularizer):
        name, Config = "sam", ASAMConfig

    with pytest.raises(ValueError, match='the regularizer "sam" exists already'):
        register_regularizer(Other)
    assert isinstance(make_regularizer("sam"), SAM)
