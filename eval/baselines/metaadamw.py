"""MetaAdamW as a baseline, as it is: ``"metaadamw:features=enhanced,meta_every=20"``.

Every ``meta_every`` updates its attention is trained by one look-ahead on two more training batches
and one of held-out data (``online=false``: never). ``file`` takes the attention from a meta-trained
``attention`` optimizer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from lo_framework.eval.baselines.registry import lr_grid, register_baseline
from lo_framework.eval.baselines.torch_runs import Run, TorchBaseline
from lo_framework.learned.base import Theta
from lo_framework.optim import MetaAdamW
from lo_framework.optim.metaadam.meta_loss import terms_of
from lo_framework.protocols import Task
from lo_framework.regularizers.base import HVP_COST
from lo_framework.spec import UserError


@dataclass(frozen=True, kw_only=True)
class MetaAdamWConfig:
    """Options of `lo_framework.optim.MetaAdamW`; ``reproduce``: paper, reference or none;
    ``order``: also usual.

    ``layers``, ``width`` (0: the usual), ``heads``, ``head_scale``: of a new network.
    """

    lr: float = 1e-3
    cosine: bool = False
    weight_decay: float = 1e-2
    online: bool = True
    meta_every: int = 10
    meta_lr: float = 0.0
    features: str = "basic"
    grouping: str = "fine_grained"
    objective: str = "combined"
    weighting: str = "huw"
    weights: tuple[float, ...] = ()
    priorities: tuple[float, ...] = ()
    order: str = "usual"
    reproduce: str = "none"
    v_norms: bool = True
    time: bool = True
    gating: bool = False
    alpha_range: float = 1.0
    beta_range: float = 1.0
    layers: int = 2
    width: int = 0
    heads: int = 4
    head_scale: float = 0.0
    file: str = ""

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise UserError(f"lr must be positive, got {self.lr}")
        if self.meta_lr < 0:
            raise UserError(f"meta_lr must be at least 0 (0: the usual), got {self.meta_lr}")
        self.make(
            [
                ("0.weight", nn.Parameter(torch.zeros(2, 2))),
                ("0.bias", nn.Parameter(torch.zeros(2))),
            ],
            1,
        )

    def make(
        self,
        named_params: list[tuple[str, nn.Parameter]],
        steps: int,
        lr: float | None = None,
        seed: int = 0,
    ) -> MetaAdamW:
        """The optimizer of a run of ``steps``, a new network of its own ``seed``; raises UserError
        for what cannot be.
        """
        combined = self.objective == "combined"
        weighting = self.weighting
        if self.weights:
            weighting = f"{weighting}:weights={'x'.join(f'{w:g}' for w in self.weights)}"
        sizes = {
            "layers": self.layers,
            "heads": self.heads,
            "head_scale": self.head_scale,
            "seed": seed,
        }
        sizes |= {"width": self.width} if self.width else {}
        order = None if self.order == "usual" else self.order
        return MetaAdamW(
            named_params,
            lr=self.lr if lr is None else lr,
            weight_decay=self.weight_decay,
            alpha_range=self.alpha_range,
            beta_range=self.beta_range,
            features=self.features,
            grouping=self.grouping,
            attention=self.file or sizes,
            meta_every=self.meta_every,
            objective=self.objective,
            weighting=weighting if combined else "huw",
            priorities=self.priorities or None,
            order=order,
            v_norms=self.v_norms,
            time=self.time,
            gating=self.gating,
            total_steps=steps,
            meta_lr=self.meta_lr or None,
            reproduce=None if self.reproduce == "none" else self.reproduce,
        )


@register_baseline(
    "metaadamw", lr_grid([0.001, 0.003, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2])
)  # as AdamW's
class MetaAdamWBaseline(TorchBaseline):
    kind = "metaadamw"
    Config = MetaAdamWConfig
    config: MetaAdamWConfig

    @property
    def gradients(self) -> float:  # type: ignore[override]
        """With the meta steps' share: a gradient of each batch, a Hessian-vector product, a forward
        pass at need.
        """
        c = self.config
        if not c.online:
            return 1.0
        terms, published = terms_of(c.objective), c.reproduce != "none"
        order = ("exact" if published else "difference") if c.order == "usual" else c.order
        gap_ahead = "gen_gap" in terms and not published
        second, after = "gradient" in terms or gap_ahead, "loss_decrease" in terms or gap_ahead
        before = (
            terms != ("gradient",) if published else order == "exact" and "loss_decrease" in terms
        )
        product = (
            {"exact": HVP_COST, "difference": 1.0, "first": 0.0}[order]
            if "gradient" in terms
            else 0.0
        )
        meta = 1.0 + second + product + after + before / 3
        return 1.0 + meta / c.meta_every

    def build(
        self,
        theta: Theta,
        named_params: list[tuple[str, nn.Parameter]],
        task: Task,
        steps: int,
        seed: int,
    ) -> MetaAdamW:
        return self.config.make(named_params, steps, self.values(theta)["lr"], seed)

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
        spread = float(alpha.max() - alpha.min())
        return {
            "alpha": float(alpha.mean()),
            "beta": float(beta.mean()),
            "alpha_spread": spread,
            "skipped": float(optimizer.skipped),
        }

    def state_numel(self, optimizer: torch.optim.Optimizer) -> int:
        assert isinstance(optimizer, MetaAdamW)
        network = sum(p.numel() for p in optimizer.network.parameters())
        return super().state_numel(optimizer) + network * (3 if self.config.online else 1)
