"""The parts that all pictures share: a canvas, a legend, labels and the PNG.

Only matplotlib's object interface is used (Figure and the Agg canvas), imported when first needed:
no pyplot state, no display. Every picture begins with a `canvas`.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from lo_framework.errors import visible
from lo_framework.eval.report.palette import Look
from lo_framework.optional import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LONGEST = 70  # characters of a label


def canvas(
    rows: int, columns: int, size: tuple[float, float], used: int | None = None, **shared: Any
) -> tuple[Figure, list[Any]]:
    """Return a figure and its axes, row by row; the last ones are removed beyond ``used``."""
    require("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    grid = [*figure.subplots(rows, columns, squeeze=False, **shared).flat]
    for axes in grid[used:] if used is not None else ():
        axes.remove()
    return figure, grid[:used]


def png(figure: Figure, dpi: int) -> bytes:
    """Return the picture; the same data give the same bytes, as no software version is inside."""
    stream = io.BytesIO()
    with warnings.catch_warnings():
        # Of names: characters that the font lacks, labels too long for the layout.
        warnings.simplefilter("ignore")
        figure.savefig(stream, format="png", dpi=dpi, metadata={"Software": None})
    return stream.getvalue()


def label(name: str) -> str:
    """Return a name that is not mathematics (as between dollars) and not too long for a picture."""
    shown = visible(name)
    shown = shown if len(shown) <= LONGEST else f"{shown[: LONGEST - 1]}…"
    # matplotlib leaves names with a first underscore out of legends
    return " " * shown.startswith("_") + shown.replace("$", r"\$")


def line_handle(text: str, look: Look, **options: Any) -> Any:
    """Return what stands for a line in a legend."""
    from matplotlib.lines import Line2D

    handle = Line2D([], [], color=look.colour, label=text, **{"linewidth": 1.8, **options})
    if look.dashes and handle.get_linewidth():
        handle.set_dashes(look.dashes)
    return handle


def legend(figure: Figure, handles: Sequence[Any], *, columns: int = 0, **options: Any) -> Any:
    """Draw a legend below the panels, in as many columns as fit (or ``columns``)."""
    longest = max((len(str(handle.get_label())) for handle in handles), default=1)
    fit = int(figure.get_figwidth() / (0.6 + 0.072 * longest))  # inches at nine points
    return figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=columns or max(1, min(fit, len(handles))),
        frameon=False,
        fontsize=9,
        **options,
    )


def open_frame(axes: Any, title: str, *, fontsize: float = 11, grid: str = "0.88") -> None:
    """Draw a title, a grid behind everything and no frame above and at the right."""
    axes.set_title(title, fontsize=fontsize)
    axes.grid(True, which="major", color=grid, linewidth=0.8, zorder=0)
    axes.spines[["top", "right"]].set_visible(False)


def log_ticks(axis: Any, subs: Iterable[float], digits: str = "g") -> None:
    """Label a logarithmic axis with plain numbers at these multiples of powers of ten."""
    from matplotlib.ticker import LogLocator

    axis.set_major_locator(LogLocator(subs=tuple(subs)))
    log_labels(axis, digits)


def log_labels(axis: Any, digits: str = "g") -> None:
    """Write plain numbers at the larger ticks of a logarithmic axis and none at the others."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:{digits}}"))
    axis.set_minor_formatter(NullFormatter())


def log_limits(low: float, high: float) -> tuple[float, float]:
    """Return ends of a logarithmic axis, a little inside of what floats can hold."""
    return min(max(low, 1e-305), 1e304), min(max(high, 1e-304), 1e305)


def readable_ticks(axis: Any, low: float, high: float) -> None:
    """Label a logarithmic axis more often than once per decade where it spans few of them."""
    ratio = high / low
    few = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)
    log_ticks(axis, few if ratio < 10 else (1.0, 2.0, 5.0) if ratio < 1000 else (1.0,))
