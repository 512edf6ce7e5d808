"""Metrics and seeds: the one place for both, so that no two programs can
disagree.

A baseline is reported at its best setting *for each metric* ("best of grid"). That setting is
chosen on tuning seeds, on training and validation data only; what is reported comes from other
seeds. A learned optimizer has one setting.
"""

from __future__ import annotations

from dataclasses import dataclass

from lo_framework.spec import UserError

# Three disjoint ranges of seeds: these two, and meta-training's own validation seeds from 30,000
# on.
TUNING_SEEDS = 10_000
REPORT_SEEDS = 20_000
RANGE = 10_000

REFERENCE = "adamw"  # what aggregates are normalised to


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One reported number of a run.

    Attributes:
        key: its name in files; title: in tables.
        chosen_by: the number that chooses a baseline's setting for it, on tuning seeds; never of
            test data.
        ties: decides among settings that are equal by `chosen_by`.
        lower_is_better: direction of the metric, and of `chosen_by` too.
        diverged_as: what a diverged run counts as.
    """

    key: str
    title: str
    chosen_by: str
    ties: str = "valid_loss"
    lower_is_better: bool = True
    percent: bool = False

    @property
    def diverged_as(self) -> float:
        return float("inf") if self.lower_is_better else 0.0


METRICS = (
    Metric(key="mean_loss", title="mean loss", chosen_by="mean_loss"),
    Metric(key="final_loss", title="final loss", chosen_by="final_loss"),
    Metric(key="test_loss", title="test loss", chosen_by="valid_loss"),
    Metric(
        key="test_accuracy",
        title="test acc.",
        chosen_by="valid_accuracy",
        lower_is_better=False,
        percent=True,
    ),
    Metric(key="test_perplexity", title="test ppl", chosen_by="valid_perplexity"),
    Metric(key="test_mae", title="test MAE", chosen_by="valid_mae"),
)
BY_KEY = {metric.key: metric for metric in METRICS}


def tuning_seeds(count: int, offset: int = 0) -> tuple[int, ...]:
    """Seeds on which settings are chosen."""
    return _seeds(TUNING_SEEDS, count, offset, "tuning seeds")


def report_seeds(count: int, offset: int = 0) -> tuple[int, ...]:
    """Seeds whose results are reported; disjoint from all tuning seeds, whatever the offset."""
    return _seeds(REPORT_SEEDS, count, offset, "seeds")


def _seeds(start: int, count: int, offset: int, what: str) -> tuple[int, ...]:
    if count < 1:
        raise UserError(f"{what}: expected at least 1, got {count}")
    if not 0 <= offset <= RANGE - count:
        raise UserError(
            f"{what}: offset {offset} and count {count} leave the range 0 to {RANGE} of these seeds"
        )
    return tuple(range(start + offset, start + offset + count))


def smoothing_width(steps: int) -> int:
    """Minibatch losses are compared to a target as means of the last ``width`` of them: a twentieth
    of the run.
    """
    return max(1, steps // 20)
