"""Hand-designed optimizers, each tuned over its own grid; importing the package registers all."""

from lo_framework.eval.baselines import (
    explicit,
    hand_designed,
    lion,
    metaadamw,
    metaoptimize,
    muon,
    prodigy,
    schedule_free,
)
from lo_framework.eval.baselines.registry import (
    BASELINES,
    Setting,
    grid_of,
    lr_grid,
    make_baseline,
    make_thetas,
    register_baseline,
    setting_label,
)
from lo_framework.eval.baselines.torch_runs import TorchBaseline

__all__ = [
    "BASELINES",
    "Setting",
    "TorchBaseline",
    "explicit",
    "grid_of",
    "hand_designed",
    "lion",
    "lr_grid",
    "make_baseline",
    "make_thetas",
    "metaadamw",
    "metaoptimize",
    "muon",
    "prodigy",
    "register_baseline",
    "schedule_free",
    "setting_label",
]
