"""Pictures as SVG inside a page: they have the page's letters and colours, on light and dark
screens.
"""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

from lo_framework.eval.report.drawing import COLOURS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What a picture is drawn in -> the page's variable (page.html), which a dark screen changes. Black
# and white are text and ground; the greys are those of grids and of small print.
VARIABLES = {colour.lower(): f"var(--c{i})" for i, colour in enumerate(COLOURS[:-1])}
VARIABLES |= {"#000000": "var(--text)", "#ffffff": "var(--ground)"}
VARIABLES |= dict.fromkeys(("#e0e0e0", "#e6e6e6"), "var(--line)")
VARIABLES |= dict.fromkeys(("#595959", "#666666"), "var(--soft)")
SALT = "lo-framework"  # matplotlib's own names are then the same for the same picture
DPI = 110  # of the parts that are drawn as points (`set_rasterized`)
INCH = 96 / 72  # points to the pixels of a page

_HEAD = re.compile(r"^.*?(?=<svg)", re.DOTALL)
_DROPPED = re.compile(r"<metadata>.*?</metadata>|<style type=\"text/css\">.*?</style>", re.DOTALL)
_SIZE = re.compile(r'<svg [^>]*?width="([\d.]+)pt"[^>]*?(viewBox="[^"]*")[^>]*>')
_TAG = re.compile(r"<[^>]*>")  # in values > stands as an entity
_LONG = re.compile(r"(\d\.\d\d)\d+")
_COLOUR = re.compile(r"(?<=: )#[0-9a-f]{6}(?=[;\"])")
_FONT = re.compile(r" ?font-family: [^;\"]*;?| transform=\"rotate\(-0 [^\"]*\"")  # and no turn
_USED = re.compile(r"(?:url\(|href=\")#([^)\"]+)")
_NAMED = re.compile(r' id="([^"]*)"')


class Drawn(NamedTuple):
    text: str
    mark: str


def svg(figure: Figure) -> Drawn:
    """Return ``figure`` as an element of an HTML page.

    It is transparent, its text is text, and its colours are variables of the page's style. Nothing
    in it refers to anything outside, and the same figure gives the same text: its ids begin with
    ``mark``, in whose place a page puts the picture's number.
    """
    from matplotlib import rc_context

    stream = io.StringIO()
    options: dict[str, Any] = dict(format="svg", dpi=DPI, transparent=True)
    with warnings.catch_warnings(), rc_context({"svg.fonttype": "none", "svg.hashsalt": SALT}):
        # Of names: characters that the font lacks, labels too long for the layout.
        warnings.simplefilter("ignore")
        figure.savefig(stream, metadata={"Date": None, "Creator": None}, **options)
    text = _DROPPED.sub("", _HEAD.sub("", stream.getvalue()))
    size = _SIZE.search(text)
    assert size is not None, "an SVG file of matplotlib has a size"
    width = round(INCH * float(size[1]))
    text = text.replace(size[0], f'<svg {size[2]} style="--width: {width}px">', 1)
    mark = hashlib.sha256(text.encode()).hexdigest()[:8]
    used = set(_USED.findall(text))
    text = _TAG.sub(lambda tag: _tag(tag[0], used, mark), text)
    return Drawn(re.sub(r">\s+<", "><", text).strip(), mark)


def _tag(tag: str, used: set[str], mark: str) -> str:
    """Return a tag with short numbers, the page's colours and letters, and ids of this picture."""
    if tag.startswith("<image"):  # its points are data
        return tag.replace("xlink:href", "href")
    tag = _NAMED.sub(lambda name: f' id="{mark}-{name[1]}"' if name[1] in used else "", tag)
    tag = _USED.sub(lambda name: name[0].replace("#", f"#{mark}-", 1), tag)
    tag = _COLOUR.sub(lambda colour: VARIABLES.get(colour[0], colour[0]), tag)
    tag = " ".join(_FONT.sub("", tag).replace("xlink:href", "href").split())
    return _LONG.sub(r"\1", tag)
