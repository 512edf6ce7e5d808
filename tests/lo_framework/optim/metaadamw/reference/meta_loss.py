"""MetaAdamW's meta-loss as one plain function of the network's weights Phi: theta'(Phi) is built
with its graph and run by ``torch.func.functional_call``; autograd does the rest. No derivative is
written by hand, no tensor is moved.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from lo_framework.objectives.weighting import HUW
from lo_framework.optim import MetaAdamW
from tests.lo_framework.optim.metaadamw.math_tools import Batch

TERMS = ("gradient", "loss_decrease", "gen_gap")
Theta = dict[str, Tensor]


class Meta:
    """The meta-loss of one look-ahead of ``optimizer``, which is left alone.

    ``stopped``: quantities under [.], measured once, so that finite differences do not move them.
    """

    def __init__(
        self, optimizer: MetaAdamW, model: nn.Module, b1: Batch, b2: Batch, valid: Batch
    ) -> None:
        self.optimizer, self.model, self.rules = optimizer, model, optimizer.variant
        self.batches = b1, b2, valid
        self.names = [name for name, _ in model.named_parameters()]
        self.own = [dict(model.named_parameters())[name] for name in self.names]
        self.theta = {name: p.detach().clone() for name, p in zip(self.names, self.own)}
        self.stopped: dict[str, Tensor] = {}
        self.second_order = True
        self.measured = optimizer.meta_objective.order == "exact" or self.rules.published_terms
        table = optimizer.table
        places = {id(p): i for i, p in enumerate(table.params)}
        self.places = [places[id(p)] for p in self.own]
        self.plan = table.plan(tuple(range(len(table.params))))
        self.group = [self.plan.grouping.index.tolist()[i] for i in self.places]

    def loss(self, theta: Theta, data: Batch) -> Tensor:
        return cross_entropy(functional_call(self.model, theta, (data[0],)), data[1])

    def stop(self, name: str, value: Tensor) -> Tensor:
        return self.stopped.setdefault(name, value.detach())

    def gradients(self, theta: Theta, data: Batch, graph: bool) -> list[Tensor]:
        leaves = theta if graph else {name: x.clone().requires_grad_() for name, x in theta.items()}
        return list(
            torch.autograd.grad(self.loss(leaves, data), list(leaves.values()), create_graph=graph)
        )

    def factors(self, g1: list[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """alpha, beta, lambda1, lambda2 of every group, from the network."""
        optimizer, network, rules = self.optimizer, self.optimizer.network, self.rules
        seen = g1 if rules.features_of_fold else [p.grad for p in self.own]
        states = [optimizer.state[p] for p in self.own]
        t = [int(state["step"]) for state in states]
        in_order = sorted(range(len(self.own)), key=lambda i: self.places[i])

        def flat(rows: Any) -> Tensor:
            return torch.cat([rows[i].detach().reshape(-1) for i in in_order])

        moments = {
            "m": flat([s["exp_avg"] for s in states]),
            "v": flat([s["exp_avg_sq"] for s in states]),
        }
        stats = network.stats(self.plan.layout, flat(self.own), flat(seen), moments)
        ages = stats.new_tensor([t[i] for i in in_order])
        powers = [
            stats.new_tensor([self.settings(i)["betas"][k] for i in in_order]).log() * ages
            for k in range(2)
        ]
        state = {"step": stats.new_tensor(float(max(t))), "log_power": torch.stack(powers)}
        made = optimizer.updates + (
            1 if rules.features_of_fold else 0
        )  # t_glob of the step looked at
        now = made if rules.network == "published" else optimizer.updates
        total = optimizer._rule.total_steps
        tau = stats.new_tensor(now / total if total else 2 / (1 + math.exp(-now / 1000)) - 1)
        tokens = network.tokens(self.plan.layout, self.plan.grouping, stats, state, tau)
        raw = network.raw(network.encode(tokens))
        config = network.config
        alpha = 1 + config.alpha_range * (torch.sigmoid(raw[0]) - 0.5)
        beta = 1 + config.beta_range * (
            torch.sigmoid(raw[1 if config.encoder == "published" else 3]) - 0.5
        )
        lambdas = (
            torch.sigmoid(raw[2:4])
            if rules.learned_lambdas
            else torch.full_like(raw[:2], 0.5).detach()
        )
        return alpha, beta if rules.beta_learns else beta.detach(), lambdas[0], lambdas[1]

    def settings(self, i: int) -> dict[str, Any]:
        return self.optimizer.table.group(self.places[i])

    def ahead(self, alpha: Tensor, beta: Tensor, g1: list[Tensor]) -> Theta:
        """theta'."""
        rules, moved = self.rules, {}
        for i, (name, p) in enumerate(zip(self.names, self.own)):
            state, s, k = self.optimizer.state[p], self.settings(i), self.group[i]
            (b1, b2), t = s["betas"], int(state["step"])
            m, v = state["exp_avg"], state["exp_avg_sq"]
            if rules.fold:
                t, m, v = t + 1, b1 * m + (1 - b1) * g1[i], b2 * v + (1 - b2) * g1[i] ** 2
            u = (m / (1 - b1**t)) / ((v / (1 - b2**t)).sqrt() + s["eps"])
            wd = (
                s["weight_decay"] / (1 - b1**t)
                if self.optimizer.table.scaled
                else s["weight_decay"]
            )
            theta = self.theta[name]
            moved[name] = theta - s["lr"] * alpha[k] * (u + beta[k] * wd * theta)
        return moved

    def terms(self) -> list[Tensor]:
        first, second, valid = self.batches
        rules, num = self.rules, self.plan.grouping.num
        g1 = self.gradients(self.theta, first, graph=False)
        alpha, beta, lambda1, lambda2 = self.factors(g1)
        moved = self.ahead(alpha, beta, g1)
        if self.second_order:
            g2 = self.gradients(moved, second, graph=True)
        else:
            g2 = self.gradients(
                {name: x.detach() for name, x in moved.items()}, second, graph=False
            )
        total = torch.zeros((), dtype=torch.float64)
        for k in range(num):
            o1 = torch.cat([g1[i].reshape(-1) for i in range(len(g1)) if self.group[i] == k])
            o2 = torch.cat([g2[i].reshape(-1) for i in range(len(g2)) if self.group[i] == k])
            cos = (o1 @ o2) / (o1.norm() * o2.norm())
            if rules.published_terms:
                total = total + (lambda1[k] * o2.norm() ** 2 - lambda2[k] * cos) / num
            else:
                total = (
                    total
                    + (lambda1[k] * o2.norm() ** 2 / o1.norm() ** 2 + lambda2[k] * (1 - cos)) / num
                )
        after = self.loss(moved, valid)
        before = self.stop(
            "before", self.loss(self.theta, valid) if self.measured else self.before(moved, valid)
        )
        decrease = after - before if rules.published_terms else after / before
        if rules.gap_ahead:
            gap = (self.loss(moved, second) - self.stop("valid after", after)).abs()
        else:
            gap = (self.loss(self.theta, first) - before).abs()
        return [total, decrease, gap]

    def before(self, moved: Theta, valid: Batch) -> Tensor:
        """log L(theta) = log L(theta') - (theta' - theta) . grad log L(theta'), to first order."""
        leaves = {name: x.detach().requires_grad_() for name, x in moved.items()}
        log_loss = self.loss(leaves, valid).log()
        slope = torch.autograd.grad(log_loss, list(leaves.values()))
        rise = sum((d * (moved[name] - self.theta[name])).sum() for d, name in zip(slope, moved))
        return torch.exp(log_loss - rise)

    def total(self) -> tuple[Tensor, Tensor]:
        """The meta-loss without penalties, and the values of the terms."""
        values, optimizer = self.terms(), self.optimizer
        if optimizer.meta_objective.name != "combined":
            k = TERMS.index(optimizer.meta_objective.name)
            return values[k], torch.stack(values).detach()
        if isinstance(optimizer.meta_objective.weighting, HUW):
            s, p = (
                optimizer.meta_objective.weighting.s,
                optimizer.meta_objective.weighting.priorities,
            )
            total = sum(0.5 * torch.exp(-s[i]) * values[i] + 0.5 * p[i] * s[i] for i in range(3))
        else:
            assert optimizer.meta_objective.weighting is not None
            total = sum(w * x for w, x in zip(optimizer.meta_objective.weighting.weights(), values))
        return total, torch.stack(values).detach()  # type: ignore[return-value]

    def penalty(self) -> Tensor:
        network, rules = self.optimizer.network, self.rules
        total = torch.zeros((), dtype=torch.float64)
        if rules.norm_penalty:
            total = total + rules.norm_penalty * network.head.norm()
            for block in network.blocks:
                for name, w in block.named_parameters():
                    parts = [w[0], w[1]] if name in ("gains", "shifts") else [w]
                    total = total + rules.norm_penalty * sum(x.norm() for x in parts)
        if network.config.gating and rules.gates_learn:
            published = network.config.encoder == "published"
            sizes = network.gates.abs() if published else torch.sigmoid(network.gates)
            total = total + rules.gate_penalty * sizes.sum()
        return total

    def gradient(self, with_penalty: bool = True) -> Theta:
        """d meta-loss / d Phi, of every tensor; zeros where it does not depend on one."""
        own = dict(self.optimizer.network.named_parameters())
        total = self.total()[0] + (self.penalty() if with_penalty else 0.0)
        if not total.requires_grad:
            return {name: torch.zeros_like(p) for name, p in own.items()}
        found = torch.autograd.grad(
            total, list(own.values()), allow_unused=True, materialize_grads=True
        )
        return dict(zip(own, found))
