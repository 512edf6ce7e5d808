"""Which cells an ablation has: panels of two axes of options of one baseline, as data.

    study = Study(baseline="my-optimizer:lr=0.001", panels=(Panel(...),), marks=(Mark(...),))
    register_study(study)

makes ``lo-eval ablation --baseline my-optimizer`` know what to vary and which counts to mark
in the cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from lo_framework.errors import shown
from lo_framework.eval.baselines.registry import canonical_spec, known_options, with_options
from lo_framework.spec import UserError, nearest, parse_spec


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One option of the baseline and the values it takes, as they stand in a spec."""

    option: str
    values: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Two options against each other; all else is as in the study's spec, changed by ``fixed``."""

    name: str
    rows: Axis
    columns: Axis
    fixed: dict[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        extra = ", ".join(f"{key} {value}" for key, value in self.fixed.items())
        return f"{self.rows.option} x {self.columns.option}" + (f" at {extra}" if extra else "")

    def spec(self, baseline: str, row: str, column: str) -> str:
        """The cell's optimizer. Raises UserError: an option or a value that the baseline does not
        have.
        """
        return with_options(
            baseline, {**self.fixed, self.rows.option: row, self.columns.option: column}
        )

    def specs(self, baseline: str) -> list[str]:
        return [
            self.spec(baseline, row, column)
            for row in self.rows.values
            for column in self.columns.values
        ]


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A count of `TorchBaseline.counts` that is shown in cells where it is not zero.

    ``over``: the count of which it is a share, shown in percent; empty: the mean count of a run.
    """

    count: str
    symbol: str
    over: str = ""


@dataclass(frozen=True, kw_only=True)
class Study:
    """The panels that are known for one baseline: the spec that they start from, the panels, the
    marks.
    """

    baseline: str
    panels: tuple[Panel, ...]
    marks: tuple[Mark, ...] = ()


MOST = 1000  # cells of a panel, each of which is a run per seed
STUDIES: dict[str, Study] = {}


def register_study(study: Study) -> Study:
    """Make a study known by its baseline's name."""
    STUDIES[parse_spec(study.baseline)[0]] = study
    return study


def find_study(baseline: str, names: str, own: Sequence[str]) -> Study:
    """The study of ``baseline``: its known panels (``names``: some of them, comma-separated) and a
    person's ``own``.

    ``baseline`` may give options; a bare name takes those of the study.

    Raises:
        UserError: an unknown baseline, panel or option, or no panel at all.
    """
    name, options = parse_spec(baseline)
    canonical_spec(baseline)
    known = STUDIES.get(name, Study(baseline=baseline, panels=()))
    start = baseline if options else known.baseline
    panels = {panel.name: panel for panel in known.panels}
    chosen = dict.fromkeys(names.split(",")) if names else {} if own else panels
    for wanted in chosen:
        if wanted not in panels:
            there = f"known for {name}: {', '.join(panels)}"
            there = there if panels else f"none is known for {name}"
            raise UserError(f'unknown panel "{wanted}"{nearest(wanted, panels)}; {there}')
    found = [*(panels[wanted] for wanted in chosen), *map(parse_panel, own)]
    if not found:
        studied = ", ".join(STUDIES)
        raise UserError(
            f'no panels: give --panel OPTION=a/b,OPTION=c/d ("{name}" has no own ones; '
            f"{studied} has)"
        )
    for panel in found:
        for axis in (panel.rows, panel.columns):
            if axis.option not in known_options(start):
                close = nearest(axis.option, known_options(start))
                raise UserError(
                    f'panel "{panel.name}": {name} has no option "{axis.option}"{close}'
                )
        panel.specs(start)
    if twice := {panel.name for panel in found if [p.name for p in found].count(panel.name) > 1}:
        raise UserError(f'panel "{sorted(twice)[0]}" is given twice')
    return replace(known, baseline=canonical_spec(start), panels=tuple(found))


def parse_panel(text: str, name: str = "") -> Panel:
    """``"gamma=0/0.9/1,meta_lr=0.001/0.01"``: rows, then columns; further single values are fixed.

    Without a ``name`` it has that of its axes, ``"gamma-meta_lr"``.

    Raises:
        UserError: it is not of this form.
    """
    form = f"--panel {shown(text)}: expected ROW=a/b/c,COLUMN=x/y"
    axes: list[Axis] = []
    fixed: dict[str, str] = {}
    for piece in text.split(","):
        option, equals, values = (part.strip() for part in piece.partition("="))
        split = tuple(dict.fromkeys(value.strip() for value in values.split("/")))
        if not (option and equals) or not all(split):
            raise UserError(form)
        if len(axes) < 2:
            axes.append(Axis(option=option, values=split))
        elif len(split) == 1:
            fixed[option] = split[0]
        else:
            raise UserError(f"{form}, and no third option with several values")
    if len(axes) < 2 or axes[0].option == axes[1].option:
        raise UserError(f"{form} with two different options")
    if len(axes[0].values) * len(axes[1].values) > MOST:
        raise UserError(f"{form}, of at most {MOST} cells")
    rows, columns = axes
    name = name or f"{rows.option}-{columns.option}"
    return Panel(name=name, rows=rows, columns=columns, fixed=fixed)


_BASE_META = "base=sgd/sgdm/rmsprop/adamw/lion,meta=fixed/sgd/rmsprop/adam/lion"
_EVERY_BLOCKS = "meta_every=1/4/16/64,blocks=scalar/tensor/node/weight"

register_study(
    Study(
        baseline="torch-metaoptimize:lr=0.0001,meta_lr=0.03",
        panels=(
            parse_panel(_BASE_META),
            parse_panel(f"{_BASE_META},lr=0.01", "base-meta-large"),
            parse_panel("gamma=0/0.9/0.99/0.999/1,meta_lr=0.001/0.003/0.01/0.03/0.1"),
            parse_panel(_EVERY_BLOCKS),
            parse_panel(f"{_EVERY_BLOCKS},lr=0.01", "meta_every-blocks-large"),
        ),
        marks=(
            Mark(count="oscillating", symbol="~", over="block_windows"),
            Mark(count="collapsing", symbol="↓", over="block_windows"),
            Mark(count="exploding", symbol="↑", over="block_windows"),
            Mark(count="skipped", symbol="∅"),
        ),
    )
)
register_study(
    Study(
        baseline="metaadamw:lr=0.01",
        panels=(
            parse_panel(
                "features=basic/norm_basic/basic_plus/norm_basic_plus/enhanced/tokens,"
                "grouping=fine_grained/tensor"
            ),
            parse_panel("grouping=fine_grained/original/tensor,gating=false/true"),
            parse_panel(
                "objective=combined/gradient/loss_decrease/gen_gap,order=difference/exact/first"
            ),
            parse_panel("weighting=huw/sum,meta_every=5/10/50"),
            parse_panel("priorities=1x1x1/2x5x1/5x2x1/1x3x5,meta_lr=0.0003/0.003/0.03"),
            parse_panel("head_scale=0/0.1/0.3,online=true/false"),
            parse_panel("reproduce=none/paper/reference,online=true/false"),
        ),
        marks=(Mark(count="skipped", symbol="∅"),),
    )
)
