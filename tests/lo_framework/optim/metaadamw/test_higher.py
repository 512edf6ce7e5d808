"""MetaAdamW's look-ahead and its meta-gradient against ``higher``: one differentiable step of AdamW
whose groups have lr alpha_k and wd beta_k, alpha and beta being tensors with a graph.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lo_framework.estimators.higher import import_higher, register_adamw
from tests.lo_framework.optim.metaadamw import math_tools as tools
from tests.lo_framework.optim.metaadamw.reference.meta_loss import Meta

pytest.importorskip("higher", reason="the oracle is the package higher", exc_type=ImportError)


@pytest.mark.parametrize("objective", ["loss_decrease", "gen_gap"])
@pytest.mark.parametrize("grouping", ["fine_grained", "tensor"])
def test_the_meta_gradient_equals_that_through_a_step_of_higher(
    grouping: str, objective: str
) -> None:
    higher = import_higher()
    register_adamw()
    model, optimizer = tools.ready(objective=objective, grouping=grouping)
    b1, b2, valid = (tools.batch(50 + i) for i in range(3))
    slow = Meta(optimizer, model, b1, b2, valid)
    g1 = slow.gradients(slow.theta, b1, graph=False)
    alpha, beta, _, _ = slow.factors(g1)
    num, params = slow.plan.grouping.num, slow.own
    groups = [[p for p, k in zip(params, slow.group) if k == group] for group in range(num)]
    plain = torch.optim.AdamW(
        [{"params": group} for group in groups], lr=0.05, weight_decay=0.1, foreach=False
    )
    for p in params:
        plain.state[p] = {name: x.clone() for name, x in optimizer.state[p].items()}
    override: dict[str, list[Any]] = {
        "lr": [0.05 * a for a in alpha],
        "weight_decay": [0.1 * b for b in beta],
    }
    loss = tools.loss_fn
    with higher.innerloop_ctx(model, plain, override=override) as (patched, differentiable):
        before = loss(patched)(valid).detach()
        differentiable.step(loss(patched)(b1))
        moved = dict(zip(slow.names, patched.fast_params))
        after = loss(patched)(valid)
        total = (
            after / before
            if objective == "loss_decrease"
            else (loss(patched)(b2) - after.detach()).abs()
        )
    for name, x in slow.ahead(alpha, beta, g1).items():
        torch.testing.assert_close(x, moved[name], rtol=0, atol=1e-13)
    own = dict(optimizer.network.named_parameters())
    expected = torch.autograd.grad(
        total, list(own.values()), allow_unused=True, materialize_grads=True
    )
    found = tools.meta_gradients(optimizer, model)
    for name, d in zip(own, expected):
        if name in found:
            torch.testing.assert_close(found[name], d, rtol=1e-8, atol=1e-10, msg=name)
    assert found["head"].abs().max() > 1e-6
