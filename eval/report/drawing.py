"""The parts that all pictures share: a canvas, a look per optimizer, a legend, labels and the PNG.

Only matplotlib's object interface is used (Figure and the Agg canvas), imported when first needed:
no pyplot state, no display. Every picture begins with a `canvas`.
"""

from __future__ import annotations

import io
import itertools
import math
import textwrap
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from lo_framework.errors import visible
from lo_framework.optional import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LONGEST = 70  # characters of a label

# Okabe & Ito 2008, "Color universal design", without the yellow (too pale for a line on white);
# dash patterns, so that colour is never alone.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DARK = ("#4AA3E0", "#F08A4B", "#35C79B", "#E3A6C8", "#F2B632", "#A5DBFA")  # on a dark page
DASHES: tuple[tuple[float, ...], ...] = ((), (5, 1.5), (1.2, 1.2), (6, 1.5, 1.2, 1.5))

# Where a logarithmic axis is labelled, at multiples of powers of ten: up to which span of its ends.
TICKS: dict[float, tuple[float, ...]] = {
    3: (1, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.8, 2, 2.5, 3, 3.5, 4, 4.5, 5, 5.5, 6, 7, 8, 9),
    10: (1, 1.5, 2, 3, 5, 7),
    1000: (1, 2, 5),
}

# The places of the optimizers that reports show, place = colour + 7 x dashes: relatives share a
# colour. What is not listed takes a colour that its figure leaves free.
PLACES = {
    "adamw": 0,
    "attention-mlp": 1,
    "mlp": 8,
    "attention": 5,
    "hyper-adamw": 12,
    "lstm": 15,
    "metaadamw": 3,
    "metaoptimize": 4,
    "sam": 2,
    "gsam": 9,
    "gam": 16,
    "sgdm": 6,
}


class Look(NamedTuple):
    colour: str
    dashes: tuple[float, ...]  # lengths in points, empty: solid


def looks(labels: Iterable[str]) -> dict[str, Look]:
    """A look for each label. The first word of a label ("adamw" of "adamw lr=0.01 cosine") finds
    its fixed place.

    Two variants of one optimizer share its colour and differ in dashes; more take the colours that
    are left, in order, as strangers do: five dash patterns of one colour cannot be told apart.
    """
    bases = {label: (label.replace(":", " ").split() or [label])[0] for label in labels}
    places = {base: PLACES[base] for base in bases.values() if base in PLACES}
    for base in bases.values():
        if base not in places:
            # A free colour; more optimizers than colours begin again with the next dash pattern.
            taken = {x for place in places.values() for x in (place, place % len(COLOURS))}
            places[base] = next(place for place in itertools.count() if place not in taken)
    taken = {place % len(COLOURS) for place in places.values()}
    left = [colour for i, colour in enumerate(COLOURS) if i not in taken]
    variants, before = Counter(bases.values()), Counter[str]()
    result = {}
    for label, base in bases.items():
        place, variant = places[base], before[base]
        before[base] += 1
        colour = COLOURS[place % len(COLOURS)]
        if variant and variants[base] > 2 and left:
            colour = left.pop(0)
        result[label] = Look(colour, DASHES[(variant + place // len(COLOURS)) % len(DASHES)])
    return result


def canvas(
    count: int,
    columns: int,
    panel: tuple[float, float],
    room: tuple[float, float] = (0.0, 0.6),
    *,
    least: float = 5.6,
    **shared: Any,
) -> tuple[Figure, list[Any]]:
    """Return a figure and the axes of ``count`` panels, row by row.

    Args:
        panel: inches of one; room: inches beside and below all of them; least: of the width.
        shared: ``sharex``, ``sharey``.
    """
    require("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = math.ceil(count / columns)
    size = (max(least, panel[0] * columns + room[0]), panel[1] * rows + room[1])
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    grid = [*figure.subplots(rows, columns, squeeze=False, **shared).flat]
    for axes in grid[count:]:
        axes.remove()
    return figure, grid[:count]


def outer_labels(grid: Sequence[Any], columns: int, x: str, y: str = "") -> None:
    """Label the axes that have no panel below them, and those of the first column."""
    for i, axes in enumerate(grid):
        if i + columns >= len(grid):
            axes.set_xlabel(x)
        if i % columns == 0:
            axes.set_ylabel(y)


def png(figure: Figure, dpi: int) -> bytes:
    """Return the picture; the same data give the same bytes, as no software version is inside."""
    stream = io.BytesIO()
    with warnings.catch_warnings():
        # Of names: characters that the font lacks, labels too long for the layout.
        warnings.simplefilter("ignore")
        figure.savefig(stream, format="png", dpi=dpi, metadata={"Software": None})
    return stream.getvalue()


def label(name: str) -> str:
    """Return a name that is not mathematics (as between dollars) and not too long for a picture: of
    a longer one both ends, as specs that differ in one option mostly do so in the last.
    """
    shown = visible(name)
    half = LONGEST // 2
    shown = shown if len(shown) <= LONGEST else f"{shown[: half - 1]}…{shown[-half:]}"
    # matplotlib leaves names with a first underscore out of legends
    return " " * shown.startswith("_") + shown.replace("$", r"\$")


def line_handle(text: str, look: Look, **options: Any) -> Any:
    """Return what stands for a line in a legend."""
    from matplotlib.lines import Line2D

    handle = Line2D([], [], color=look.colour, label=text, **{"linewidth": 1.8, **options})
    if look.dashes and handle.get_linewidth():
        handle.set_dashes(look.dashes)
    return handle


def curve(axes: Any, x: Any, y: Any, look: Look, width: float, **options: Any) -> None:
    """Draw a line with an optimizer's look."""
    style = dict(color=look.colour, dashes=look.dashes or (None, None), linewidth=width)
    axes.plot(x, y, **style, **options)


def legend(figure: Figure, handles: Sequence[Any], title: str = "") -> None:
    """Draw a legend below the panels, in as many columns as fit."""
    longest = max((len(str(handle.get_label())) for handle in handles), default=1)
    width = figure.get_figwidth()
    fit = int(width / (0.6 + 0.072 * longest))  # inches at nine points
    words = figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=max(1, min(fit, len(handles))),
        frameon=False,
        fontsize=9,
        title=textwrap.fill(title, int(16 * width)),
        title_fontproperties={"size": 8},
    )
    words.get_title().set(color="0.35", multialignment="center")


def open_frame(axes: Any, title: str, *, fontsize: float = 11, grid: str = "0.88") -> None:
    """Draw a title, a grid behind everything and no frame above and at the right."""
    axes.set_title(title, fontsize=fontsize)
    axes.grid(True, which="major", color=grid, linewidth=0.8, zorder=0)
    axes.spines[["top", "right"]].set_visible(False)


def log_labels(axis: Any) -> None:
    """Write plain numbers at the larger ticks of a logarithmic axis and none at the others."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def log_limits(low: float, high: float) -> tuple[float, float]:
    """Return ends of a logarithmic axis, a little inside of what floats can hold."""
    return min(max(low, 1e-305), 1e304), min(max(high, 1e-304), 1e305)


def readable_ticks(axis: Any) -> None:
    """Label a logarithmic axis with plain numbers, more often than once per decade where it spans
    few of them; call when its ends are known.
    """
    from matplotlib.ticker import LogLocator

    low, high = axis.get_view_interval()
    subs = next((subs for span, subs in TICKS.items() if high < span * low), (1.0,))
    axis.set_major_locator(LogLocator(subs=subs))
    log_labels(axis)
