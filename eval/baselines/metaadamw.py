"""MetaAdamW as a baseline, as it is: ``"metaadamw:features=enhanced,meta_every=20"``.

Every ``meta_every`` updates its network is trained by one look-ahead on two more training batches
and one of held-out data (``online=false``: never). ``file`` takes the network from a meta-trained
``attention`` optimizer.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import nn

from lo_framework.errors import UserError
from lo_framework.eval.baselines.registry import Setting, TunedConfig, grid_of, register_baseline
from lo_framework.eval.baselines.torch_runs import Run, TorchBaseline
from lo_framework.optim import MetaAdamW, MetaConfig, NetworkConfig
from lo_framework.optim.metaadamw.published import find_variant
from lo_framework.regularizers.base import HVP_COST


@dataclass(frozen=True, kw_only=True)
class RunConfig(TunedConfig):
    """Settings of a run; ``online``: whether meta steps are made."""

    weight_decay: float = 1e-2
    online: bool = True


@dataclass(frozen=True, kw_only=True)
class MetaAdamWConfig(NetworkConfig, MetaConfig, RunConfig):
    """Options of the baseline: `lo_framework.optim.MetaAdamW`'s; ``seed`` is added to the run's."""

    meta_every: int = 10
    reproduce: str = "none"
    file: str = ""

    def __post_init__(self) -> None:
        TunedConfig.__post_init__(self)
        weight, bias = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(2))
        network = self.make([("0.weight", weight), ("0.bias", bias)], 1, self.lr, 0).network
        for field in fields(NetworkConfig) if self.file else ():
            value, own = getattr(self, field.name), getattr(network.config, field.name)
            if value not in (own, field.default):
                raise UserError(
                    f"{field.name}={value!r}, but the network in the file has {own!r}: leave it out"
                )

    def make(
        self, named_params: list[tuple[str, nn.Parameter]], steps: int, lr: float, seed: int
    ) -> MetaAdamW:
        """The optimizer of a run of ``steps``, a new network of its own ``seed``; raises UserError
        for what cannot be.
        """
        own = {field.name: getattr(self, field.name) for field in fields(NetworkConfig)}
        return MetaAdamW(
            named_params,
            lr=lr,
            weight_decay=self.weight_decay,
            network=self.file or NetworkConfig(**own | {"seed": self.seed + seed}),
            meta=self,
            total_steps=steps,
            reproduce=self.reproduce,
        )


@register_baseline("metaadamw", grid_of("adamw"))
class MetaAdamWBaseline(TorchBaseline):
    kind = "metaadamw"
    Config = MetaAdamWConfig
    config: MetaAdamWConfig

    @property
    def gradients(self) -> float:  # type: ignore[override]
        """Gradients per update, with the meta steps' share: a gradient of each batch, a
        Hessian-vector product, a forward pass at need.
        """
        c = self.config
        if not c.online:
            return 1.0
        variant = find_variant(c.reproduce)
        objective = c.build(variant)
        product = {"exact": HVP_COST, "difference": 1.0, "first": 0.0}[objective.order]
        second, after = objective.looks_at(variant)
        meta = 1.0 + second + after + objective.needs_valid_before(variant) / 3
        meta += product * ("gradient" in objective.terms)
        return 1.0 + meta / c.meta_every

    def build(self, run: Run, settings: Setting) -> MetaAdamW:
        return self.config.make([*run.params.items()], run.steps, settings["lr"], run.seed)

    def after_step(self, optimizer: torch.optim.Optimizer, t: int, run: Run) -> None:
        assert isinstance(optimizer, MetaAdamW)
        if self.config.online and optimizer.meta_due and t + 1 < run.steps:
            optimizer.meta_step(
                run.loss_fn, run.draw("train"), run.draw("train"), run.draw("valid")
            )

    def counts(self, optimizer: torch.optim.Optimizer) -> dict[str, float]:
        """Mean factors of the last step, their spread over groups, and meta steps left out."""
        assert isinstance(optimizer, MetaAdamW)
        factors = torch.tensor(list(optimizer.factors().values()) or [(1.0, 1.0)])
        alpha, beta = factors.unbind(1)
        return {
            "alpha": float(alpha.mean()),
            "beta": float(beta.mean()),
            "alpha_spread": float(alpha.max() - alpha.min()),
            "skipped": float(optimizer.skipped),
        }

    def state_numel(self, optimizer: torch.optim.Optimizer) -> int:
        assert isinstance(optimizer, MetaAdamW)
        network = sum(p.numel() for p in optimizer.network.parameters())
        return super().state_numel(optimizer) + network * (3 if self.config.online else 1)
